"""fabric.websockets.asyncio.connection: closing, keepalive, fragments, pings and broadcast, on a transport in hand.

Time passes as it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import types
import uuid
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric.websockets._negotiation import ServerNegotiation
from fabric.websockets.asyncio import connection as module
from fabric.websockets.asyncio.connection import Connection, broadcast
from fabric.websockets.exceptions import (
    ConcurrencyError,
    ConnectionClosed,
    ConnectionClosedError,
    ConnectionClosedOK,
    PayloadTooBig,
    ProtocolError,
    TooManyFragments,
)
from fabric.websockets.frames import Close, CloseCode
from fabric.websockets.protocol import State
from support.fake_time import in_fake_time, settle
from support.fake_transport import FakeTransport
from support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Wire, close_frame, decode_all, encode


class Transport(FakeTransport):
    """Ends when it is closed or aborted, as the event loop would see to."""

    def get_extra_info(self, name: str) -> Any:
        return {"sockname": ("here", 1), "peername": ("there", 2)}.get(name) or super().get_extra_info(name)

    def close(self) -> None:
        self._end()
        super().close()

    def abort(self) -> None:
        self._end()
        super().abort()

    def _end(self) -> None:
        if not self.closing:
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


def opened(max_size: Any = 2**20, **options: Any) -> tuple[Connection, Transport]:
    """A server's open connection."""
    negotiation = ServerNegotiation(max_size=max_size)
    connection, transport = Connection(negotiation, **options), Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection._open(b"")
    return connection, transport


def sent(transport: FakeTransport) -> list[Wire]:
    frames = decode_all(transport.output)
    transport.written.clear()
    return frames


def fragments(*texts: str) -> bytes:
    last = len(texts) - 1
    return b"".join(encode(CONTINUATION if i else TEXT, text, fin=i == last) for i, text in enumerate(texts))


async def listed(iterator: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in iterator]


async def ended(transport: Transport, connection: Connection) -> ConnectionClosed:
    """How it ended, once it has."""
    await connection.wait_closed()
    with pytest.raises(ConnectionClosed) as caught:
        await connection.recv()
    return caught.value


# --- what it is --------------------------------------------------------------------------------------------


@in_fake_time
async def test_attributes() -> None:
    connection, transport = opened()
    assert isinstance(connection.id, uuid.UUID)
    assert connection.id == connection.id
    assert connection.state is State.OPEN
    assert connection.protocol.state is State.OPEN
    assert connection.protocol.extensions == []
    assert (connection.local_address, connection.remote_address) == (("here", 1), ("there", 2))
    assert (connection.close_code, connection.close_reason, connection.latency) == (None, None, 0.0)
    assert (connection.subprotocol, connection.request, connection.response) == (None, None, None)
    assert connection.transport is transport
    connection.anything = 5  # type: ignore[attr-defined]
    assert {connection: 1}[connection] == 1
    assert weakref.ref(connection)() is connection
    assert "OPEN" in repr(connection)
    with pytest.raises(AssertionError):
        connection.protocol.close_exc  # noqa: B018
    await connection.close()
    assert connection.state is State.CLOSED
    assert (connection.close_code, connection.close_reason) == (1006, "")
    assert str(connection.protocol.close_exc) == "sent 1000 (OK); no close frame received"
    assert connection.remote_address == ("there", 2)


@in_fake_time
async def test_its_log_records_know_it() -> None:
    connection, _ = opened()
    assert isinstance(connection.logger, logging.LoggerAdapter)
    assert connection.logger.extra is not None
    assert connection.logger.extra["websocket"] == weakref.proxy(connection)
    assert connection.logger.name == "websockets.server"
    connection.logger = logging.getLogger("other")
    assert connection.logger.name == "other"
    await connection.close()


@in_fake_time
async def test_it_is_collected_when_it_is_over() -> None:
    connection, transport = opened(ping_interval=5)
    connection.start_keepalive()
    transport.lose()
    known = weakref.ref(connection)
    del connection, transport
    gc.collect()
    assert known() is None


@pytest.mark.parametrize(
    ("max_queue", "marks"), [(16, (16, 4)), (None, (None, 0)), ((8, 2), (8, 2)), ((None, 3), (12, 3)), (0, (0, 0))]
)
def test_marks_of_the_queue(max_queue: Any, marks: tuple[Any, int]) -> None:
    assert module._marks(max_queue) == marks


@pytest.mark.parametrize(("max_queue", "why"), [((2, 4), "greater than or equal to low"), ((4, -1), "positive")])
def test_marks_that_cannot_be(max_queue: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        module._marks(max_queue)


@in_fake_time
async def test_frames_are_logged_at_debug() -> None:
    logger = logging.getLogger("websockets.server")
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        connection, transport = opened()
        wire = encode(TEXT, "hello") + encode(BINARY, b"\xff", fin=False) + encode(CONTINUATION, b"")
        transport.feed(wire[:3])
        transport.feed(wire[3:])
        await connection.send("x" * 10)
        await settle()
        transport.feed(encode(3, b"") + encode(TEXT, "not looked at"))
        transport.lose()
    finally:
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)
    assert [record.getMessage() for record in records if record.levelno == logging.DEBUG] == [
        "< TEXT 'hello' [5 bytes]",
        "< BINARY ff [1 byte, continued]",
        "< CONT '' [0 bytes]",
        "> TEXT 'xxxxxxxxxx' [10 bytes]",
        "> CLOSE 1002 (protocol error) invalid opcode [16 bytes]",
    ]


# --- receiving ---------------------------------------------------------------------------------------------


@in_fake_time
async def test_recv_decodes_as_asked() -> None:
    connection, transport = opened()
    transport.feed(encode(TEXT, "é") + encode(TEXT, "é") + encode(BINARY, "é".encode()) + encode(BINARY, b"\xff"))
    assert await connection.recv() == "é"
    assert await connection.recv(decode=False) == "é".encode()
    assert await connection.recv(decode=True) == "é"
    assert await connection.recv(decode=None) == b"\xff"
    transport.feed(encode(BINARY, b"a\xff"))
    receiving = asyncio.ensure_future(connection.recv(decode=True))
    await settle()
    assert [frame.close_reason for frame in sent(transport)] == ["invalid start byte at position 1"]
    transport.lose()
    with pytest.raises(ConnectionClosedError, match="sent 1007") as caught:
        await receiving
    assert isinstance(caught.value.__cause__, UnicodeDecodeError)


@in_fake_time
async def test_a_stream_yields_frames_as_they_were_sent() -> None:
    connection, transport = opened()
    transport.feed(fragments("é", "", "b") + encode(TEXT, "whole") + fragments("c", "d"))
    assert await listed(connection.recv_streaming()) == ["é", "", "b"]
    assert await listed(connection.recv_streaming()) == ["whole"]
    assert await listed(connection.recv_streaming(decode=False)) == [b"c", b"d"]
    streaming = asyncio.ensure_future(listed(connection.recv_streaming()))
    await settle()
    for frame in (encode(TEXT, "x", fin=False), encode(CONTINUATION, "y", fin=False), encode(CONTINUATION, "z")):
        assert not streaming.done()
        transport.feed(frame)
        await settle()
    assert await streaming == ["x", "y", "z"]
    transport.lose()


@in_fake_time
async def test_a_stream_that_is_given_up_half_way_blocks_the_connection() -> None:
    connection, transport = opened()
    iterator = connection.recv_streaming()
    transport.feed(encode(TEXT, "a", fin=False))
    assert await anext(iterator) == "a"
    for receiving in (connection.recv(), connection.recv(decode=False), connection.recv(decode=True)):
        with pytest.raises(ConcurrencyError, match="cannot call recv while another coroutine is already running recv"):
            await receiving
    with pytest.raises(ConcurrencyError, match="cannot call recv_streaming while another"):
        await anext(connection.recv_streaming())
    await iterator.aclose()  # type: ignore[attr-defined]
    with pytest.raises(ConcurrencyError):
        await connection.recv()
    transport.lose()


@in_fake_time
async def test_a_stream_that_is_cancelled_before_its_first_frame_loses_nothing() -> None:
    connection, transport = opened()
    streaming = asyncio.ensure_future(listed(connection.recv_streaming()))
    await settle()
    streaming.cancel()
    await settle()
    transport.feed(fragments("a", "b"))
    assert await connection.recv() == "ab"
    transport.lose()
    with pytest.raises(ConnectionClosedError):
        await listed(connection.recv_streaming())
    with pytest.raises(ConnectionClosedError):
        await connection.recv()


@in_fake_time
async def test_a_stream_that_is_cut_off_tells_of_the_end_and_so_does_recv() -> None:
    connection, transport = opened()
    iterator = connection.recv_streaming()
    transport.feed(encode(TEXT, "a", fin=False))
    assert await anext(iterator) == "a"
    transport.lose()
    with pytest.raises(ConnectionClosedError):
        await anext(iterator)
    with pytest.raises(ConnectionClosedError):
        await connection.recv()


def test_whatever_comes_and_however_it_is_taken(rng: random.Random) -> None:
    """In one frame or several, in any cut; taken whole, frame by frame, or after an attempt that was cancelled."""

    @in_fake_time
    async def run() -> None:
        high = rng.choice([0, 1, 3, 16, None])
        connection, transport = opened(max_queue=high)
        messages = []
        for _ in range(60):
            texts = ["x" * rng.choice([0, 1, 5, 130, 3000]) + "é" for _ in range(rng.choice([1, 1, 1, 2, 3, 20]))]
            messages.append(texts)
        wire = b"".join(fragments(*texts) for texts in messages)

        async def arrive() -> None:
            nonlocal wire
            while wire:
                if transport.reading:
                    size = rng.choice([1, 7, 100, 5000])
                    transport.feed(wire[:size])
                    wire = wire[size:]
                await asyncio.sleep(0)

        arriving = asyncio.ensure_future(arrive())
        for texts in messages:
            way = rng.randrange(4)
            if way == 0:
                assert await connection.recv() == "".join(texts)
            elif way == 1:
                assert await connection.recv(decode=False) == "".join(texts).encode()
            elif way == 2:
                assert await listed(connection.recv_streaming()) == texts
            else:
                with contextlib.suppress(asyncio.CancelledError):
                    attempt = asyncio.ensure_future(connection.recv())
                    for _ in range(rng.randrange(3)):
                        await asyncio.sleep(0)
                    attempt.cancel()
                    assert await attempt == "".join(texts)
                    continue  # it was there already
                assert await anext(aiter(connection)) == "".join(texts)
        await arriving
        assert connection.queued == 0
        transport.lose()

    run()


@in_fake_time
async def test_too_many_fragments() -> None:
    connection, transport = opened(max_queue=None)
    for _ in range(module.MAX_FRAGMENTS + 1):
        transport.feed(encode(TEXT if _ == 0 else CONTINUATION, "", fin=False))
    [frame] = sent(transport)
    assert (frame.close_code, frame.close_reason) == (1009, "too many fragments")
    transport.lose()
    assert isinstance((await ended(transport, connection)).__cause__, TooManyFragments)


SIZES = [
    (5, encode(TEXT, "123456"), "frame with 6 bytes exceeds limit of 5 bytes"),
    (5, fragments("123", "456"), "frame with 3 bytes after reading 3 bytes exceeds limit of 5 bytes"),
    ((None, 3), fragments("123", "4567"), "frame with 4 bytes after reading 3 bytes exceeds limit of 6 bytes"),
    ((8, 3), encode(TEXT, "1234"), "frame with 4 bytes exceeds limit of 3 bytes"),
    ((8, None), encode(TEXT, "123456789"), "frame with 9 bytes exceeds limit of 8 bytes"),
]


@pytest.mark.parametrize(("max_size", "data", "reason"), SIZES)
def test_sizes_are_limited(max_size: Any, data: bytes, reason: str) -> None:
    @in_fake_time
    async def run() -> None:
        connection, transport = opened(max_size)
        transport.feed(data)
        [frame] = sent(transport)
        assert (frame.close_code, frame.close_reason) == (1009, reason)
        transport.lose()
        error = await ended(transport, connection)
        assert isinstance(error.__cause__, PayloadTooBig)
        assert str(error) == f"sent 1009 (message too big) {reason}; no close frame received"

    run()


FAULTS = [
    (encode(3, b""), 1002, "invalid opcode"),
    (encode(TEXT, b"", rsv=4), 1002, "reserved bits must be 0"),
    (encode(TEXT, b"", mask=False), 1002, "incorrect masking"),
    (encode(PING, b"x" * 126), 1002, "control frame too long"),
    (encode(PING, b"", fin=False), 1002, "fragmented control frame"),
    (encode(CONTINUATION, b""), 1002, "unexpected continuation frame"),
    (encode(TEXT, b"", fin=False) + encode(TEXT, b""), 1002, "expected a continuation frame"),
    (encode(TEXT, b"a\xffb"), 1007, "invalid start byte at position 1"),
    (close_frame(1005), 1002, "invalid status code"),
]


@pytest.mark.parametrize(("data", "code", "reason"), FAULTS, ids=[reason for _, _, reason in FAULTS])
def test_faults_of_the_peer_are_named(data: bytes, code: int, reason: str) -> None:
    @in_fake_time
    async def run() -> None:
        connection, transport = opened()
        transport.feed(data)
        [frame] = sent(transport)
        assert (frame.close_code, frame.close_reason) == (code, reason)
        transport.lose()
        error = await ended(transport, connection)
        assert (error.rcvd, error.sent) == (None, Close(code, reason))
        assert isinstance(error.__cause__, ProtocolError if code == 1002 else UnicodeDecodeError)
        assert connection.close_code == 1006

    run()


# --- sending -----------------------------------------------------------------------------------------------


@in_fake_time
async def test_an_iterable_is_one_message_with_an_empty_last_frame() -> None:
    connection, transport = opened()

    async def later() -> AsyncIterator[Any]:
        yield b"a"
        yield bytearray(b"b")

    await connection.send(["x", "y"])
    await connection.send(later())
    await connection.send(["x"], text=False)
    await connection.send(iter([b"x"]), text=True)
    await connection.send([])
    assert [(frame.opcode, frame.payload, frame.fin) for frame in sent(transport)] == [
        (TEXT, b"x", False),
        (CONTINUATION, b"y", False),
        (CONTINUATION, b"", True),
        (BINARY, b"a", False),
        (CONTINUATION, b"b", False),
        (CONTINUATION, b"", True),
        (BINARY, b"x", False),
        (CONTINUATION, b"", True),
        (TEXT, b"x", False),
        (CONTINUATION, b"", True),
    ]
    transport.lose()


@in_fake_time
async def test_a_message_waits_for_one_in_fragments() -> None:
    connection, transport = opened()
    gate = asyncio.Event()

    async def slow() -> AsyncIterator[str]:
        yield "a"
        await gate.wait()
        yield "b"

    first = asyncio.ensure_future(connection.send(slow()))
    await settle()
    second, third = (asyncio.ensure_future(connection.send(each)) for each in ("next", ["in", "parts"]))
    await settle()
    assert sent(transport) == [Wire(TEXT, b"a", fin=False)]
    gate.set()
    await asyncio.gather(first, second, third)
    assert [frame.payload for frame in sent(transport)] == [b"b", b"", b"next", b"in", b"parts", b""]
    transport.lose()


@pytest.mark.parametrize("items", [["a", b"b"], [b"a", "b"], ["a", 5], [None], ["a", None]])
@pytest.mark.parametrize("is_async", [False, True])
def test_fragments_of_another_type_fail_the_connection(items: list[Any], is_async: bool) -> None:
    async def later() -> AsyncIterator[Any]:
        for item in items:
            yield item

    @in_fake_time
    async def run() -> None:
        connection, transport = opened(close_timeout=7)
        kind = "async iterable" if is_async else "iterable"
        with pytest.raises(TypeError, match=f"^{kind} must contain (bytes or str|uniform types)$"):
            await connection.send(later() if is_async else items)
        assert (connection.state, transport.aborted) == (State.CLOSED, True)
        frame = sent(transport)[-1]
        assert (frame.opcode, frame.close_code, frame.close_reason) == (CLOSE, 1011, "error in fragmented message")

    run()


@in_fake_time
async def test_a_message_that_is_cancelled_half_way_fails_the_connection() -> None:
    connection, transport = opened()

    async def endless() -> AsyncIterator[str]:
        yield "a"
        await asyncio.Event().wait()

    sending = asyncio.ensure_future(connection.send(endless()))
    await settle()
    sending.cancel()
    await settle()
    assert sending.cancelled()
    assert connection.state is State.CLOSING
    assert sent(transport)[-1].close_code == 1011
    transport.lose()


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"a": 1}, "data is a dict-like object"),
        (None, "data must be str, bytes, iterable, or async iterable"),
        (5, "data must"),
    ],
)
def test_what_is_no_message(message: Any, why: str) -> None:
    @in_fake_time
    async def run() -> None:
        connection, transport = opened()
        with pytest.raises(TypeError, match=why):
            await connection.send(message)
        assert connection.state is State.OPEN
        transport.lose()

    run()


@in_fake_time
async def test_send_waits_above_the_write_limit_and_writes_first() -> None:
    connection, transport = opened(write_limit=(100, 50))
    transport.keeps = True
    await connection.send("x" * 50)
    first = asyncio.ensure_future(connection.send("y" * 60))
    second = asyncio.ensure_future(connection.send(["z" * 10, "z"]))
    await settle()
    assert not first.done()
    assert not second.done()
    transport.release()
    await asyncio.gather(first, second)
    assert [len(frame.payload) for frame in sent(transport)] == [50, 60, 10, 1, 0]
    transport.lose()


@in_fake_time
async def test_a_sender_that_waits_is_let_go_at_the_end() -> None:
    connection, transport = opened(write_limit=10)
    transport.keeps = True
    sending = asyncio.ensure_future(connection.send("x" * 50))
    await settle()
    transport.lose()
    await sending


@in_fake_time
async def test_send_waits_for_the_end_of_a_connection_that_closes() -> None:
    connection, transport = opened()
    transport.closing = True  # close() has no effect: the client has not hung up
    transport.feed(b"")
    connection._session_now.begin_close(1000, "")  # type: ignore[union-attr]
    sending = [asyncio.ensure_future(connection.send(each)) for each in ("text", ["parts"])]
    pinging = asyncio.ensure_future(connection.ping())
    ponging = asyncio.ensure_future(connection.pong())
    await settle()
    assert not any(each.done() for each in [*sending, pinging, ponging])
    transport.lose()
    for each in [*sending, pinging, ponging]:
        with pytest.raises(ConnectionClosedError, match="sent 1000"):
            await each


# --- pings -------------------------------------------------------------------------------------------------


@in_fake_time
async def test_a_ping_is_answered_by_its_pong_or_a_later_one() -> None:
    connection, transport = opened()
    first, second, third = [await connection.ping(data) for data in (b"1", "2", bytearray(b"3"))]
    await settle()
    assert [(frame.opcode, frame.payload) for frame in sent(transport)] == [(PING, b"1"), (PING, b"2"), (PING, b"3")]
    with pytest.raises(ConcurrencyError, match="already waiting for a pong with the same data"):
        await connection.ping("1")
    transport.feed(encode(PONG, b"unknown") + encode(PONG, b"2"))
    assert await first >= 0
    assert connection.latency == await second
    assert not third.done()  # type: ignore[attr-defined]
    transport.feed(close_frame())
    transport.lose()
    with pytest.raises(ConnectionClosedOK):
        await third
    with pytest.raises(ConnectionClosedOK):
        await connection.ping()


@in_fake_time
async def test_a_ping_has_four_bytes_of_its_own() -> None:
    connection, transport = opened()
    await asyncio.gather(*(connection.ping() for _ in range(50)))
    payloads = [frame.payload for frame in sent(transport)]
    assert {len(payload) for payload in payloads} == {4}
    assert len(set(payloads)) == 50
    for data, error in ((5, TypeError), ("x" * 126, ProtocolError)):
        for sending in (connection.ping(data), connection.pong(data)):  # type: ignore[arg-type]
            with pytest.raises(error):
                await sending
    transport.lose()


@in_fake_time
async def test_a_pong_that_nobody_asked_for() -> None:
    connection, transport = opened()
    await connection.pong()
    await connection.pong("x")
    await settle()
    assert sent(transport) == [Wire(PONG, b""), Wire(PONG, b"x")]
    transport.lose()


@in_fake_time
async def test_keepalive_pings_and_goes_on_as_long_as_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(perf_counter=asyncio.get_running_loop().time)
    monkeypatch.setattr(module, "time", clock)
    connection, transport = opened(ping_interval=20, ping_timeout=10)
    connection.start_keepalive()
    for _ in range(3):
        await asyncio.sleep(18)
        assert sent(transport) == []
        await asyncio.sleep(2.5)
        [ping] = sent(transport)
        assert ping.opcode == PING
        transport.feed(encode(PONG, ping.payload))
        await settle()
        assert connection.latency > 0
    await asyncio.sleep(15)
    assert connection.state is State.OPEN
    transport.lose()
    await settle()
    assert connection._keepalive is None


@in_fake_time
async def test_keepalive_closes_with_1011_without_a_pong() -> None:
    connection, transport = opened(ping_interval=20, ping_timeout=10, close_timeout=5)
    connection.start_keepalive()
    await asyncio.sleep(29)
    assert connection.state is State.OPEN
    await asyncio.sleep(2)
    assert connection.state is State.CLOSING
    assert [(frame.opcode, frame.close_code, frame.close_reason) for frame in sent(transport)[1:]] == [
        (CLOSE, 1011, "keepalive ping timeout")
    ]
    await asyncio.sleep(5)
    assert transport.aborted
    error = await ended(transport, connection)
    assert str(error) == "sent 1011 (internal error) keepalive ping timeout; no close frame received"


@in_fake_time
async def test_keepalive_that_waits_for_ever_or_never_begins() -> None:
    connection, transport = opened(ping_interval=20, ping_timeout=None)
    connection.start_keepalive()
    await asyncio.sleep(1010)
    assert (connection.state, len(sent(transport))) == (State.OPEN, 50)
    transport.lose()
    connection, transport = opened(ping_interval=None)
    connection.start_keepalive()
    await asyncio.sleep(1000)
    assert sent(transport) == []
    transport.lose()


@in_fake_time
async def test_a_failure_in_keepalive_is_logged() -> None:
    connection, transport = opened(ping_interval=1)
    connection.start_keepalive()
    await asyncio.sleep(1)
    assert connection._pings is not None
    [(answer, _)] = connection._pings.values()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("websockets.server").addHandler(handler)
    try:
        answer.set_exception(Exception("BOOM"))
        await settle()
    finally:
        logging.getLogger("websockets.server").removeHandler(handler)
    assert [(record.getMessage(), str(record.exc_info[1])) for record in records if record.exc_info] == [
        ("keepalive ping failed", "BOOM")
    ]
    transport.lose()


# --- closing -----------------------------------------------------------------------------------------------


@in_fake_time
async def test_close_waits_for_the_peer_and_the_transport() -> None:
    connection, transport = opened()
    closing = asyncio.ensure_future(connection.close(CloseCode.GOING_AWAY, "bye"))
    await settle()
    assert sent(transport) == [Wire(CLOSE, b"\x03\xe9bye")]
    assert (connection.state, connection.close_code) == (State.CLOSING, None)
    transport.feed(close_frame(1000, "ok"))
    await closing
    assert (connection.state, connection.close_code, connection.close_reason) == (State.CLOSED, 1000, "ok")
    error = await ended(transport, connection)
    assert isinstance(error, ConnectionClosedOK)
    assert str(error) == "sent 1001 (going away) bye; then received 1000 (OK) ok"
    assert error.__cause__ is None
    await connection.close()
    assert sent(transport) == []


@in_fake_time
async def test_close_gives_up_after_close_timeout() -> None:
    loop = asyncio.get_running_loop()
    connection, transport = opened(close_timeout=7)
    began = loop.time()
    await connection.close()
    assert loop.time() - began == 7
    assert transport.aborted
    error = await ended(transport, connection)
    assert isinstance(error, ConnectionClosedError)
    assert str(error) == "sent 1000 (OK); no close frame received"
    assert isinstance(error.__cause__, TimeoutError)
    assert str(error.__cause__) == "timed out while closing connection"


@in_fake_time
async def test_close_without_a_timeout_waits_for_ever() -> None:
    connection, transport = opened(close_timeout=None)
    closing = asyncio.ensure_future(connection.close())
    await asyncio.sleep(10_000_000)
    assert not closing.done()
    transport.feed(close_frame())
    await closing


@in_fake_time
async def test_a_close_that_is_cancelled_goes_on() -> None:
    connection, transport = opened()
    closing = asyncio.ensure_future(connection.close())
    await settle()
    closing.cancel()
    await settle()
    transport.feed(close_frame())
    await connection.wait_closed()
    assert connection.close_code == 1000


@pytest.mark.parametrize(("code", "reason"), [(1005, ""), (1004, ""), (999, ""), (5000, ""), (1000, "x" * 124)])
def test_what_a_close_frame_cannot_say(code: int, reason: str) -> None:
    @in_fake_time
    async def run() -> None:
        connection, transport = opened()
        with pytest.raises(ProtocolError):
            await connection.close(code, reason)
        assert connection.state is State.OPEN
        transport.lose()

    run()


@in_fake_time
async def test_the_peer_closes() -> None:
    connection, transport = opened()
    transport.feed(encode(TEXT, "last") + close_frame(None))
    assert await connection.recv() == "last"
    error = await ended(transport, connection)
    assert isinstance(error, ConnectionClosedOK)
    none = "1005 (no status received [internal])"
    assert str(error) == f"received {none}; then sent {none}"
    assert (connection.close_code, connection.close_reason) == (1005, "")
    assert await listed(aiter(connection)) == []


@in_fake_time
async def test_an_end_without_a_close_frame() -> None:
    for error in (None, ConnectionResetError("reset")):
        connection, transport = opened()
        transport.lose(error)
        closed = await ended(transport, connection)
        assert isinstance(closed, ConnectionClosedError)
        assert str(closed) == "no close frame received or sent"
        assert type(closed.__cause__) is (EOFError if error is None else ConnectionResetError)
        with pytest.raises(ConnectionClosedError):
            await listed(aiter(connection))
        with pytest.raises(ConnectionClosedError):
            await connection.send("x")


@in_fake_time
async def test_closing_during_a_message_in_fragments() -> None:
    connection, transport = opened(close_timeout=3)

    async def endless() -> AsyncIterator[str]:
        yield "a"
        await connection.wait_closed()
        yield "b"

    sending = asyncio.ensure_future(connection.send(endless()))
    await settle()
    await connection.close()
    frame = sent(transport)[-1]
    assert (frame.close_code, frame.close_reason) == (1011, "close during fragmented message")
    with pytest.raises(ConnectionClosedError):
        await sending


@in_fake_time
async def test_a_context_manager_closes() -> None:
    for error, code in ((None, 1000), (LookupError("mine"), 1011)):
        connection, transport = opened(close_timeout=1)
        with contextlib.nullcontext() if error is None else pytest.raises(LookupError, match="mine"):
            async with connection as entered:
                assert entered is connection
                if error is not None:
                    raise error
        assert [frame.close_code for frame in sent(transport)] == [code]


# --- broadcast ---------------------------------------------------------------------------------------------


@in_fake_time
async def test_a_broadcast_goes_to_all_that_are_open() -> None:
    pairs = [opened() for _ in range(3)]
    connections = [connection for connection, _ in pairs]
    pairs[2][1].lose()
    await settle()
    broadcast(connections, "é")
    broadcast(connections, bytearray(b"b"))
    broadcast(connections, "t", text=False)
    broadcast(iter(connections), b"t", text=True)
    broadcast([], "x")
    await settle()
    for _, transport in pairs[:2]:
        assert [(frame.opcode, frame.payload) for frame in sent(transport)] == [
            (TEXT, "é".encode()),
            (BINARY, b"b"),
            (BINARY, b"t"),
            (TEXT, b"t"),
        ]
        transport.lose()
    with pytest.raises(TypeError, match="data must be str or bytes"):
        broadcast(connections, ["a"])  # type: ignore[arg-type]


@in_fake_time
async def test_a_broadcast_waits_for_nobody() -> None:
    connection, transport = opened(write_limit=10)
    transport.keeps = True
    for _ in range(5):
        broadcast([connection], "x" * 100)
    transport.release()
    await settle()
    assert len(sent(transport)) == 5
    transport.lose()


@in_fake_time
async def test_a_broadcast_leaves_out_who_sends_fragments() -> None:
    (connection, transport), (other, _) = opened(), opened()

    async def endless() -> AsyncIterator[str]:
        yield "a"
        await asyncio.Event().wait()

    sending = asyncio.ensure_future(connection.send(endless()))
    await settle()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("websockets.server").addHandler(handler)
    try:
        broadcast([connection, other], "x")
    finally:
        logging.getLogger("websockets.server").removeHandler(handler)
    assert [record.getMessage() for record in records] == ["skipped broadcast: sending a fragmented message"]
    with pytest.raises(ExceptionGroup, match=r"^skipped broadcast$") as caught:
        broadcast([connection, other], "x", raise_exceptions=True)
    [error] = caught.value.exceptions
    assert (type(error), str(error)) == (ConcurrencyError, "sending a fragmented message")
    other._session_now.io.write_error = OSError("gone")  # type: ignore[union-attr]
    with pytest.raises(ExceptionGroup) as caught:
        broadcast([other], "x" * 100_000, raise_exceptions=True)  # too much to be gathered
    [error] = caught.value.exceptions
    assert (str(error), str(error.__cause__)) == ("failed to write message", "gone")
    sending.cancel()
    transport.lose()
    await settle()
