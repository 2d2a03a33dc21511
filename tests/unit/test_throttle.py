"""fabric_ext.throttle: what passes, what waits and in which order, what is dropped, and what ends the connection."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from fabric_ext.bucket import RateGate, TokenBucket
from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from fabric_ext.throttle import Throttle
from support.fake_transport import FakeTransport
from support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, decode_all, encode
from support.serving import until

RARELY = 0.001  # tokens per second: what the burst does not cover does not come in this test
OFTEN = 1000.0


class Peer(Connection):
    """Notes the texts it gets; None for `noting` queues them."""

    def __init__(self, *, noting: bool = True) -> None:
        self.counters = Counters()
        self.got: list[str] = []
        super().__init__(
            asyncio.get_running_loop(),
            self.counters,
            queue_limit=1000,
            queue_byte_limit=1 << 20,
            on_message=Peer.note if noting else None,
        )

    def note(self, message: Any) -> None:
        self.got.append(message.as_text())


def messages(rate: float, burst: int) -> RateGate:
    return RateGate(TokenBucket(rate, burst))


def open_with(
    gate: RateGate, on_exceed: str, on_shared_exceed: str = "slow", *, noting: bool = True
) -> tuple[Peer, FakeTransport]:
    peer = Peer(noting=noting)
    throttle = Throttle(gate, on_exceed, on_shared_exceed)
    return peer, FakeTransport().connect(peer, throttle=throttle, max_message_size=1 << 20)


def texts(count: int, start: int = 0) -> bytes:
    return b"".join(encode(TEXT, str(number)) for number in range(start, start + count))


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def close_code(transport: FakeTransport) -> int | None:
    *_, last = decode_all(transport.output)
    assert last.opcode == CLOSE
    return last.close_code


def test_there_are_three_actions() -> None:
    for action in ("slow", "drop", "close"):
        Throttle(messages(1, 1), action, action)
    with pytest.raises(KeyError):
        Throttle(messages(1, 1), "wait", "slow")


async def test_what_the_burst_covers_passes() -> None:
    for action in ("slow", "drop", "close"):
        peer, transport = open_with(messages(RARELY, 3), action)
        transport.feed(texts(3))
        assert peer.got == names(3)
        assert transport.reading
        assert transport.written == []


async def test_drop_drops_and_counts() -> None:
    peer, transport = open_with(messages(RARELY, 3), "drop")
    transport.feed(texts(10))
    assert peer.got == names(3)
    assert peer.counters.rate_limit_drops == 7
    assert peer.messages_received == 10
    assert transport.reading


async def test_close_closes() -> None:
    peer, transport = open_with(messages(RARELY, 3), "close")
    transport.feed(texts(10))
    assert peer.got == names(3)
    assert close_code(transport) == 1008
    assert peer.counters.rate_limit_drops == 0


async def test_slow_delivers_all_in_order_and_reads_nothing_meanwhile() -> None:
    peer, transport = open_with(messages(OFTEN, 2), "slow")
    transport.feed(texts(6))
    assert peer.got == names(2)
    assert not transport.reading
    await until(lambda: len(peer.got) == 6)
    assert peer.got == names(6)
    await until(lambda: transport.reading)
    assert peer.counters.rate_limit_drops == 0
    transport.lose()


async def test_a_task_gets_what_was_held_too() -> None:
    peer, transport = open_with(messages(OFTEN, 1), "slow", noting=False)
    transport.feed(texts(4))
    for number in range(4):
        message = await peer.recv()
        assert message is not None
        assert message.as_text() == str(number)
    transport.lose()


async def test_more_than_the_burst_can_never_pass() -> None:
    peer, transport = open_with(RateGate(bytes_=TokenBucket(OFTEN, 10)), "slow")
    transport.feed(encode(TEXT, "x" * 10) + encode(TEXT, "x" * 11))
    assert peer.got == ["x" * 10]
    assert close_code(transport) == 1008


async def test_the_limit_that_refuses_says_what_happens() -> None:
    peer, transport = open_with(RateGate(TokenBucket(RARELY, 2), shared=messages(RARELY, 10)), "drop", "close")
    transport.feed(texts(3))
    assert peer.got == names(2)
    assert peer.counters.rate_limit_drops == 1
    peer, transport = open_with(RateGate(TokenBucket(RARELY, 10), shared=messages(RARELY, 2)), "drop", "close")
    transport.feed(texts(3))
    assert peer.got == names(2)
    assert close_code(transport) == 1008


async def test_connections_that_share_a_limit_take_turns() -> None:
    """The tokens of what waits are reserved."""
    began = time.monotonic()
    shared = messages(OFTEN, 1)
    peers = [open_with(RateGate(shared=shared), "slow") for _ in range(3)]
    for _, transport in peers:
        transport.feed(texts(3))
    # Milliseconds bring further tokens, where the machine stands still for some.
    assert 1 <= sum(len(peer.got) for peer, _ in peers) <= 1 + OFTEN * (time.monotonic() - began)
    assert peers[0][0].got[:1] == names(1)
    await until(lambda: all(peer.got == names(3) for peer, _ in peers))
    for _, transport in peers:
        transport.lose()


async def test_what_is_held_is_delivered_when_the_transport_goes() -> None:
    peer, transport = open_with(messages(RARELY, 1), "slow")
    transport.feed(texts(4))
    assert peer.got == names(1)
    transport.lose()
    assert peer.got == names(4)


async def test_a_connection_that_closes_holds_nothing_more() -> None:
    """Reading goes on, up to the peer's close frame: what is over the limit has no room to wait in."""
    for held in (0, 2):
        peer, transport = open_with(messages(RARELY, 1), "slow")
        transport.feed(texts(1 + held))
        session: Any = peer._session_now
        session.begin_close(1000, "")
        assert transport.reading
        transport.feed(texts(500, 1 + held))
        assert transport.reading
        transport.feed(close_frame(1000))
        assert session.closing.received_code == 1000
        transport.lose()
        assert peer.got == names(1 + held)


async def test_pings_are_operations() -> None:
    for action, code in (("drop", None), ("close", 1008)):
        gate = RateGate(operations=TokenBucket(RARELY, 2))
        peer, transport = open_with(gate, action)
        transport.feed(b"".join(encode(PING, str(number)) for number in range(4)))
        peer.flush()
        frames = decode_all(transport.output)
        assert [frame.payload for frame in frames if frame.opcode == PONG] == [b"0", b"1"]
        assert [frame.close_code for frame in frames if frame.opcode == CLOSE] == ([code] if code else [])


async def test_a_ping_over_the_limit_is_answered_and_paid_for_before_more_is_read() -> None:
    peer, transport = open_with(RateGate(operations=TokenBucket(OFTEN, 1)), "slow")
    transport.feed(encode(PING, "a") + encode(PING, "b") + encode(PING, "c"))
    peer.flush()
    assert [frame.payload for frame in decode_all(transport.output)] == [b"a", b"b", b"c"]
    assert not transport.reading
    await until(lambda: transport.reading)
    transport.lose()


async def test_a_message_in_parts_is_paid_for_as_it_comes() -> None:
    peer, transport = open_with(RateGate(bytes_=TokenBucket(100_000, 100)), "slow", noting=False)
    peer._start_stream()
    transport.feed(encode(BINARY, bytes(100), fin=False))
    assert transport.reading
    transport.feed(encode(CONTINUATION, bytes(100), fin=False))
    assert not transport.reading
    await until(lambda: transport.reading)
    assert peer.queued == 2
    transport.lose()


async def test_a_message_in_parts_that_is_dropped_is_dropped_whole() -> None:
    peer, transport = open_with(messages(RARELY, 1), "drop", noting=False)
    transport.feed(encode(TEXT, "whole"))
    assert (await peer.recv()).as_text() == "whole"  # type: ignore[union-attr]
    peer._start_stream()
    transport.feed(encode(TEXT, "dropped", fin=False) + encode(CONTINUATION, "too"))
    assert peer.queued == 0
    assert peer.counters.rate_limit_drops == 1
    assert transport.reading


async def test_no_timer_of_a_session_that_has_ended_does_anything() -> None:
    peer, transport = open_with(messages(OFTEN, 1), "slow")
    transport.feed(texts(3))
    transport.lose()
    assert peer.got == names(3)
    transport.reading = False
    peer.got.clear()
    after: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.01, after.set_result, None)  # later than every timer of the throttle
    await after
    assert peer.got == []
    assert not transport.reading
