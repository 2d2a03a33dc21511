"""fabric_ext.closing: how a session ends, by whom, with which codes, and how long that may take (RFC 6455 §7)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fabric_ext.protocol import State
from support.fake_time import in_fake_time
from support.fake_transport import FakeTransport
from support.frames import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    Wire,
    close_frame,
    encode,
)
from support.session_peer import Peer, answers, closes_with

# --- the close handshake (RFC 6455 §7) ---------------------------------------------------------------------


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4000, "bye"), (3000, "é" * 60), (1005, "")])
async def test_our_close(client: bool, code: int, reason: str) -> None:
    peer = Peer()
    transport = peer.open(masking=client)
    peer.session.begin_close(code, reason)
    (frame,) = answers(transport)
    assert frame.opcode == CLOSE
    assert (frame.close_code, frame.close_reason) == (None if code == 1005 else code, reason)
    assert frame.masked == client
    closing = peer.session.closing
    assert (closing.began_by, closing.sent_code, closing.received_code) == ("local", code, 0)
    assert peer.state is State.CLOSING
    transport.feed(encode(TEXT, "on its way", mask=not client) + close_frame(4001, "theirs", mask=not client))
    assert peer.got == ["on its way"]
    assert answers(transport) == []
    assert (closing.received_code, closing.reason) == (4001, "theirs")
    assert transport.closing != client, "the server hangs up first (§7.1.1)"
    transport.lose()
    assert peer.state is State.CLOSED


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4000, "bye"), (None, "")])
async def test_their_close_is_echoed(client: bool, code: int | None, reason: str) -> None:
    peer = Peer()
    transport = peer.open(masking=client)
    transport.feed(close_frame(code, reason, mask=not client) + encode(TEXT, "data after it", mask=not client))
    (frame,) = answers(transport)
    assert (frame.opcode, frame.close_code, frame.close_reason) == (CLOSE, code, reason)
    closing = peer.session.closing
    known = 1005 if code is None else code
    assert (closing.began_by, closing.sent_code, closing.received_code) == ("remote", known, known)
    assert (closing.reason, closing.fault, closing.oversize) == (reason, 0, 0)
    assert peer.got == []
    assert transport.closing != client


async def test_a_client_that_will_be_replaced_waits_for_nothing() -> None:
    peer = Peer()
    peer.replaced = True
    transport = peer.open(masking=True)
    transport.feed(close_frame(1012, mask=False))
    assert closes_with(transport) == (1012, "")
    assert transport.closing


async def test_a_close_begins_once() -> None:
    peer = Peer()
    transport = peer.open()
    peer.session.begin_close(4000, "first")
    peer.session.begin_close(4001, "second")
    assert closes_with(transport) == (4000, "first")
    transport.lose()
    peer.session.begin_close(4002, "third")
    assert answers(transport) == []


async def test_pings_are_answered_while_we_wait_for_their_close() -> None:
    peer = Peer()
    transport = peer.open()
    peer.session.begin_close(1000, "")
    answers(transport)
    transport.feed(encode(PING, "still there?"))
    assert answers(transport) == [Wire(PONG, b"still there?")]


@pytest.mark.usefixtures("no_look_ahead")
async def test_a_close_lets_what_was_not_read_come() -> None:
    """The answer stands behind it."""
    peer = Peer(None, queue_limit=2)
    transport = peer.open()
    transport.feed(encode(TEXT, "1") + encode(TEXT, "2"))
    assert not transport.reading
    peer.session.begin_close(1000, "")
    assert transport.reading
    transport.feed(encode(TEXT, "no room for it") * 10 + close_frame(1000))
    assert transport.reading
    assert peer.session.closing.received_code == 1000
    assert peer.queued == 3  # the one that finds that there is no room
    transport.lose()


async def test_the_close_frame_stands_behind_what_the_transport_holds() -> None:
    peer = Peer(lambda peer, message: peer.send_nowait(message))
    transport = peer.open()
    transport.keeps = True
    transport.feed(encode(TEXT, "kept"))
    assert peer._is_blocked
    transport.feed(close_frame(4000))
    assert transport.closing
    assert [frame.opcode for frame in answers(transport)] == [TEXT, CLOSE]


async def test_the_transport_may_go_at_any_time_and_is_gone_once() -> None:
    ended = []

    class Noting(Peer):
        def _on_lost(self, session: Any) -> None:
            ended.append(session)
            super()._on_lost(session)

    peer = Noting()
    transport = peer.open()
    transport.lose(ConnectionResetError())
    transport.lose()
    assert ended == [peer.session]
    assert peer.session.closing is None
    assert peer.session.io is None
    assert peer._session_now is None
    peer.session.abort()
    assert not transport.aborted
    transport.feed(encode(TEXT, "late"))
    transport.protocol.resume_writing()
    assert peer.got == []


class Interrupted(FakeTransport):
    """A finalizer or a signal handler sends while it stops and begins to read."""

    peer: Any = None

    def pause_reading(self) -> None:
        self.peer.send_nowait("when it stopped to read")
        self.during = len(self.written)
        super().pause_reading()

    def resume_reading(self) -> None:
        self.peer.send_nowait("when it began to read")
        self.during = len(self.written)
        super().resume_reading()


@pytest.mark.usefixtures("no_look_ahead")
async def test_nothing_is_written_while_the_transport_is_at_work() -> None:
    """It may just be changing what the event loop watches for, as a write that the kernel does not take would."""
    peer = Peer(None, queue_limit=1)
    transport = Interrupted()
    transport.peer = peer
    transport.connect(peer)
    transport.feed(encode(TEXT, "fills the queue"))
    await asyncio.sleep(0)
    assert transport.during == 0
    assert [frame.payload for frame in answers(transport)] == [b"when it stopped to read"]
    await peer.recv()
    await asyncio.sleep(0)
    assert transport.during == 0
    assert [frame.payload for frame in answers(transport)] == [b"when it began to read"]
    transport.protocol.pause_writing()
    transport.protocol.write_ping(b"waits")
    transport.protocol.resume_writing()
    assert transport.written == []
    await asyncio.sleep(0)
    assert answers(transport) == [Wire(PING, b"waits")]


async def test_the_end_of_what_the_peer_sends_is_the_end() -> None:
    peer = Peer()
    transport = peer.open()
    assert transport.protocol.eof_received() is False  # the transport closes itself


async def test_why_it_was_aborted() -> None:
    peer = Peer()
    transport = peer.open()
    first = TimeoutError("no answer")
    peer.session.abort(first)
    peer.session.abort(LookupError("another reason"))
    assert transport.aborted
    assert peer.session.abort_cause is first


# --- how long it may take ----------------------------------------------------------------------------------


@in_fake_time
async def test_a_peer_that_does_not_answer_is_dropped_after_close_timeout() -> None:
    peer = Peer()
    transport = peer.open()
    peer.session.begin_close(1000, "")
    await asyncio.sleep(4.9)
    assert not transport.aborted
    await asyncio.sleep(0.2)
    assert transport.aborted
    transport.lose()


@in_fake_time
async def test_the_time_begins_again_whenever_the_peer_takes_bytes() -> None:
    peer = Peer()
    transport = peer.open()
    transport.keeps = True
    peer.send_nowait(b"x" * 100)
    peer.session.begin_close(1000, "")
    for left in (90, 50, 10, 1):
        await asyncio.sleep(4.9)
        transport.held = left
    await asyncio.sleep(5.2)
    assert not transport.aborted
    await asyncio.sleep(5.2)
    assert transport.aborted
    transport.lose()


@in_fake_time
async def test_a_peer_that_ignores_that_it_was_refused_is_dropped() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(encode(3))
    for _ in range(4):
        await asyncio.sleep(1)
        transport.feed(encode(TEXT, "flood"))
    assert not transport.aborted
    await asyncio.sleep(2)
    assert transport.aborted
    transport.lose()


@in_fake_time
async def test_no_timer_is_set_where_all_has_left() -> None:
    """The event loop ends such a transport in its next turn."""
    loop: Any = asyncio.get_running_loop()
    peer = Peer()
    transport = peer.open()
    transport.feed(close_frame(1000))
    assert transport.closing
    assert loop._scheduled == []
    transport.lose()


@in_fake_time
async def test_the_server_does_not_wait_for_ever_for_its_close_frame_to_leave() -> None:
    peer = Peer()
    transport = peer.open()
    transport.keeps = True
    transport.feed(close_frame(1000))
    assert transport.closing
    await asyncio.sleep(4.9)
    assert not transport.aborted
    await asyncio.sleep(0.2)
    assert transport.aborted
    transport.lose()


@in_fake_time
async def test_no_timer_outlives_the_transport() -> None:
    peer = Peer(None, queue_limit=1)
    transport = peer.open()
    transport.feed(encode(TEXT, "x"))
    peer.session.begin_close(1000, "")
    transport.lose()
    handles = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
    assert handles == []
