"""What the kernel's figures say about a peer: gone, or only not reading."""

from __future__ import annotations

import logging
import socket
import struct

import pytest

from fabric._connection.liveness import LivenessProbe, _silence_of
from fabric.config import HeartbeatConfig
from fabric.error import Timeout


class Told:
    """A socket whose kernel tells what the test wants."""

    family = socket.AF_INET

    def __init__(self, *, largest: int = 1448, flying: int = 0, probes: int = 0, acknowledged: int = 0) -> None:
        # struct tcp_info: 8 bytes, then 32-bit fields; tcpi_snd_mss is the 3rd, tcpi_unacked the 5th,
        # tcpi_last_ack_recv the 13th.
        words = [0] * 13
        words[2], words[4], words[12] = largest, flying, acknowledged
        self.info = struct.pack("=8B13I", 1, 0, 0, probes, 0, 0, 0, 0, *words)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return self.info[:size]


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system has no TCP_INFO")
@pytest.mark.parametrize(
    ("told", "silence"),
    [
        (Told(acknowledged=40_000), 0.0),  # nothing is owed: an idle peer
        (Told(acknowledged=60_000, probes=1), 0.0),  # not reading; a probe is on its way
        (Told(acknowledged=25_000, probes=5), 25.0),  # not reading, and not answering probes
        (Told(acknowledged=25_000, flying=4), 25.0),  # what is on its way was not acknowledged
        (Told(acknowledged=20, flying=40), 0.02),  # a peer that takes what we send
        (Told(acknowledged=0, flying=40), 0.0),  # one that has just taken some
        (Told(largest=0), None),  # a system that does not know
    ],
)
def test_how_long_the_kernel_has_owed_an_acknowledgement(told: Told, silence: float | None) -> None:
    assert _silence_of(told) == silence


class Recording:
    """Enough of a connection, and of its session, for a probe that sends pings."""

    is_connected = True

    def __init__(self) -> None:
        self.messages_sent = self.messages_received = 0
        self.done: list[str] = []
        self.inbound_seen = False
        self.causes: list[BaseException | None] = []
        self.id = "id"
        self._logger = logging.getLogger("fabric.test")
        self._session_now: Recording | None = self

    def write_ping(self, payload: bytes) -> None:
        self.done.append("ping")

    def release_codec(self) -> None:
        self.done.append("release")

    def abort(self, cause: BaseException | None = None) -> None:
        self.causes.append(cause)


class Nobody:
    """A heartbeat that does nothing by itself."""

    config = HeartbeatConfig(ping_timeout=7)

    def add(self, target: object) -> None:
        pass


def test_what_was_idle_from_one_ping_to_the_next_lets_its_compression_go() -> None:
    peer = Recording()
    probe = LivenessProbe(peer, Nobody())  # type: ignore[arg-type]
    probe.send_ping(b"1")
    peer.messages_sent += 1
    probe.send_ping(b"2")
    assert peer.done == ["ping", "ping"]
    probe.send_ping(b"3")
    assert peer.done == ["ping", "ping", "release", "ping"]
    peer.messages_received += 1
    probe.send_ping(b"4")
    assert peer.done[4:] == ["ping"]


def test_it_looks_at_the_session_of_the_moment() -> None:
    peer = Recording()
    probe = LivenessProbe(peer, Nobody())  # type: ignore[arg-type]
    assert not probe.inbound_seen
    peer.inbound_seen = True
    assert probe.inbound_seen
    probe.inbound_seen = False
    assert not peer.inbound_seen
    probe.fail("no answer")
    assert [str(cause) for cause in peer.causes] == [str(Timeout("heartbeat", 7))]


def test_without_a_session_it_does_nothing() -> None:
    peer = Recording()
    probe = LivenessProbe(peer, Nobody())  # type: ignore[arg-type]
    peer._session_now = None
    assert not probe.inbound_seen
    probe.inbound_seen = True
    probe.send_ping(b"1")
    probe.fail("no answer")
    assert (peer.done, peer.causes) == ([], [])
