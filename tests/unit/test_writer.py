"""fabric_ext.writer: what leaves when, in which order, by how many system calls, and what comes back.

The kernel is a pair of datagram sockets, which keep apart what two system calls have sent, or of stream
sockets, which can be full or closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fabric_ext.connection import Connection
from fabric_ext.deflate import DeflateCodec
from fabric_ext.message import Message
from fabric_ext.writer import hold_back
from support.fake_transport import FakeTransport, in_loop
from support.frames import BINARY, CLOSE, PING, PONG, TEXT, Wire, decode_all, encode
from support.kernel import Kernel
from support.writing import (
    BLOCK,
    LARGE,
    LONG,
    PATIENCE,
    SIZES,
    Echo,
    cork,
    end_of_turn,
    grow_old,
    numbers,
    open_on,
    payloads,
)

if TYPE_CHECKING:
    import random

SHORT = 5_000_000  # ns

# --- when it leaves ----------------------------------------------------------------------------------------


async def test_the_first_message_is_at_the_kernel_when_send_returns_what_follows_is_gathered(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    await connection.send(b"first")
    assert payloads(datagrams.take()) == [b"first"]
    for payload in numbers(4):
        await connection.send(payload)
    assert datagrams.take() == []
    await end_of_turn()
    calls = datagrams.take()
    assert len(calls) == 1
    assert payloads(calls) == numbers(4)


async def test_fifty_microseconds_of_silence_are_enough(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection, patience=None)
    for payload in numbers(50):
        connection.send_nowait(payload)
        sent = time.monotonic_ns()
        assert payloads(datagrams.take()) == [payload]
        while time.monotonic_ns() < sent + 2 * PATIENCE:
            pass


async def test_what_left_gathered_is_no_silence(datagrams: Kernel) -> None:
    """Answers to pipelined reads leave by one call each, although the last message that left alone is long ago."""
    connection = Echo()
    open_on(datagrams, connection)
    loop = asyncio.get_running_loop()
    while True:
        grow_old()
        connection.send_nowait("alone")
        began = time.monotonic_ns()
        while time.monotonic_ns() < began + 2 * SHORT:
            pass
        hold_back(loop, LONG)
        connection.send_nowait("gathered")
        before = time.monotonic_ns()
        await end_of_turn()
        assert datagrams.take()[-1].endswith(b"gathered")
        hold_back(loop, SHORT)
        connection.send_nowait("gathered too")
        sent_alone = datagrams.take()
        if time.monotonic_ns() - before < SHORT:  # else the machine was busy with something else
            break
        await end_of_turn()
        datagrams.take()
    assert sent_alone == []
    await end_of_turn()
    assert datagrams.take()[0].endswith(b"gathered too")


async def test_more_that_is_sent_takes_what_is_old_with_it(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    for payload in numbers(4):
        connection.send_nowait(payload)
    assert payloads(datagrams.take()) == numbers(1)
    grow_old()
    connection.send_nowait(b"4")
    connection.send_nowait(b"5")
    calls = datagrams.take()
    assert payloads(calls) == numbers(5, 1)
    assert len(calls) <= 2


async def test_what_is_old_leaves_when_another_connection_sends(datagrams: Kernel) -> None:
    old, other = Echo(), Echo()
    open_on(datagrams, old)
    open_on(None, other)
    for payload in numbers(3):
        old.send_nowait(payload)
        other.send_nowait(payload)
    datagrams.take()
    grow_old()
    other.send_nowait(b"x")
    other.send_nowait(b"y")
    assert payloads(datagrams.take()) == numbers(2, 1)


async def test_nothing_is_gathered_without_a_cork(datagrams: Kernel) -> None:
    connection = Echo()
    transport = open_on(datagrams, connection, cork=False)
    for payload in numbers(5):
        connection.send_nowait(payload)
        assert payloads(datagrams.take()) == [payload]
    transport.feed(b"".join(encode(BINARY, payload) for payload in numbers(20)))
    assert [payloads(call) for call in datagrams.take()] == [[payload] for payload in numbers(20)]


async def test_what_a_read_causes_leaves_by_one_call_when_it_ends(datagrams: Kernel) -> None:
    """picows (Resources): each frame costs a system call of its own."""
    connection = Echo()
    transport = open_on(datagrams, connection)
    transport.feed(b"".join(encode(BINARY, payload) for payload in numbers(20)))
    assert [payloads(call) for call in datagrams.take()] == [numbers(1), numbers(19, 1)]


async def test_a_read_that_ends_within_a_frame_sends_what_it_has_caused(datagrams: Kernel) -> None:
    connection = Echo()
    transport = open_on(datagrams, connection)
    transport.feed(encode(BINARY, b"a") + encode(BINARY, b"b") + encode(BINARY, b"x" * 100)[:50])
    assert payloads(datagrams.take()) == [b"a", b"b"]


async def test_a_read_that_ends_with_a_fault_sends_what_came_before_it(datagrams: Kernel) -> None:
    connection = Echo()
    transport = open_on(datagrams, connection)
    transport.feed(encode(BINARY, b"a") + encode(BINARY, b"b") + encode(3, b"no such opcode"))
    frames = decode_all(b"".join(datagrams.take()))
    assert [frame.payload for frame in frames[:-1]] == [b"a", b"b"]
    assert frames[-1].close_code == 1002
    transport.lose()


@pytest.mark.parametrize("receiver", ["callback", "task"])
async def test_no_answer_waits_long_for_others_of_its_read(receiver: str, datagrams: Kernel) -> None:
    """It leaves before the next message is handled, once it is old enough."""
    seen: list[list[bytes]] = []

    def answer(connection: Connection, payload: bytes) -> None:
        seen.append(payloads(datagrams.take()))
        if payload == b"3":
            grow_old()
        connection.send_nowait(payload)

    connection = Echo((lambda self, message: answer(self, message.as_bytes())) if receiver == "callback" else None)
    transport = open_on(datagrams, connection)

    async def receive() -> None:
        async for message in connection:
            answer(connection, message.as_bytes())

    task = asyncio.create_task(receive()) if receiver == "task" else None
    await end_of_turn()
    await in_loop(lambda: transport.feed(b"".join(encode(BINARY, payload) for payload in numbers(6))))
    assert seen == [[], [b"0"], [], [], [b"1", b"2", b"3"], [b"4"]]
    assert payloads(datagrams.take()) == [b"5"]
    transport.lose()
    if task is not None:
        await task


async def test_what_a_read_causes_elsewhere_leaves_with_it(datagrams: Kernel) -> None:
    """One connection's message makes another one send, as in a chat."""
    listener = Echo()
    open_on(datagrams, listener)

    def relay(_: Connection, message: Any) -> None:
        listener.send_nowait(message)
        listener.send_nowait(message)

    transport = open_on(None, Echo(relay))
    transport.feed(encode(TEXT, "a") + encode(TEXT, "b"))
    assert [payloads(call) for call in datagrams.take()] == [[b"a"], [b"a", b"b", b"b"]]


async def test_much_at_once_does_not_wait_for_the_end_of_the_turn(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    sent = [bytes([number]) * 1000 for number in range(200)]
    for payload in sent:
        connection.send_nowait(payload)
    calls = datagrams.take()
    assert sum(map(len, calls)) > 2 * BLOCK
    assert max(map(len, calls)) < BLOCK + 1004
    await end_of_turn()
    assert payloads(calls + datagrams.take()) == sent


async def test_a_large_payload_leaves_at_once_by_one_call_with_its_header(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    for payload in (b"x" * 50_000, b"small", b"y" * 50_000):
        connection.send_nowait(payload)
    assert [payloads(call) for call in datagrams.take()] == [[b"x" * 50_000], [b"small"], [b"y" * 50_000]]


# --- when the application says so --------------------------------------------------------------------------


async def test_flush_sends_what_was_gathered(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    for payload in numbers(3):
        connection.send_nowait(payload)
    datagrams.take()
    connection.flush()
    assert payloads(datagrams.take()) == numbers(2, 1)
    connection.flush()
    await end_of_turn()
    assert datagrams.take() == []


async def test_a_cork_holds_back_nothing_that_was_sent_before(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    connection.send_nowait(b"at once")
    connection.send_nowait(b"gathered")
    cork(connection, 1)
    assert payloads(datagrams.take()) == [b"at once", b"gathered"]
    for payload in numbers(3):
        connection.send_nowait(payload)
        await end_of_turn()
    assert datagrams.take() == []
    cork(connection, -1)
    assert payloads(datagrams.take()) == numbers(3)


async def test_a_cork_gathers_even_the_first_and_over_turns(datagrams: Kernel) -> None:
    connection = Echo()
    transport = open_on(datagrams, connection, patience=0)
    cork(connection, 1)
    for payload in numbers(3):
        connection.send_nowait(payload)
        await end_of_turn()
    transport.feed(encode(BINARY, b"3"))
    assert datagrams.take() == []
    cork(connection, -1)
    calls = datagrams.take()
    assert len(calls) == 1
    assert payloads(calls) == numbers(4)
    connection.send_nowait(b"free")
    assert payloads(datagrams.take()) == [b"free"]


async def test_the_outermost_cork_counts_and_none_is_taken_twice(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection, patience=0)
    cork(connection, -1)  # nobody had asked
    cork(connection, 1)
    cork(connection, 1)
    connection.send_nowait(b"a")
    cork(connection, -1)
    assert datagrams.take() == []
    cork(connection, -1)
    assert payloads(datagrams.take()) == [b"a"]


async def test_a_cork_holds_no_more_than_a_block(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    cork(connection, 1)
    sent = [bytes([number]) * 1000 for number in range(200)]
    for payload in sent:
        connection.send_nowait(payload)
    calls = datagrams.take()
    assert len(calls) == 3
    assert all(BLOCK <= len(call) < BLOCK + 1004 for call in calls)
    cork(connection, -1)
    assert payloads(calls + datagrams.take()) == sent


async def test_flush_sends_what_a_cork_holds(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    cork(connection, 1)
    connection.send_nowait(b"a")
    connection.flush()
    assert payloads(datagrams.take()) == [b"a"]
    cork(connection, -1)
    assert datagrams.take() == []


async def test_a_large_payload_waits_for_the_cork_too(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    cork(connection, 1)
    for payload in (b"a", b"x" * 10_000, b"b"):
        connection.send_nowait(payload)
    assert datagrams.take() == []
    cork(connection, -1)
    assert [payloads(call) for call in datagrams.take()] == [[b"a", b"x" * 10_000, b"b"]]


async def test_a_close_leaves_at_once_behind_what_was_gathered(datagrams: Kernel) -> None:
    connection = Echo()
    transport = open_on(datagrams, connection)
    cork(connection, 1)
    connection.send_nowait(b"a")
    connection._session_now.begin_close(4000, "bye")  # type: ignore[union-attr]
    frames = decode_all(b"".join(datagrams.take()))
    assert [frame.opcode for frame in frames] == [BINARY, CLOSE]
    transport.lose()


# --- order and content -------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", [False, True], ids=["server", "client"])
@pytest.mark.parametrize("kernel", ["free", "none"])
@pytest.mark.parametrize("patience", [0, PATIENCE, LONG])
async def test_any_mixture_of_sizes_keeps_its_order(
    masking: bool, kernel: str, patience: int, datagrams: Kernel, rng: random.Random
) -> None:
    connection = Echo()
    transport = open_on(datagrams if kernel == "free" else None, connection, masking=masking, patience=patience)
    sent: list[bytes] = []
    received = b""
    for _ in range(300):
        size = rng.choice(SIZES) if rng.random() < 0.1 else rng.randrange(300)
        payload = rng.randbytes(size)
        kind = rng.randrange(3)
        if kind == 0:
            connection.send_nowait(payload)
        elif kind == 1:
            changed = bytearray(payload)
            connection.send_nowait(changed)
            changed[:] = b"\0" * size
        else:
            connection.send_nowait(memoryview(payload))
        sent.append(payload)
        chance = rng.random()
        if chance < 0.2:
            await asyncio.sleep(0)
        elif chance < 0.3:
            cork(connection, rng.choice((1, -1)))
        elif chance < 0.35:
            connection.flush()
        received += b"".join(datagrams.take())
    cork(connection, -1000)
    received += b"".join(datagrams.take()) + transport.output
    frames = decode_all(received)
    assert [frame.payload for frame in frames] == sent
    assert {frame.masked for frame in frames} == {masking}


async def test_a_client_masks_each_frame_with_another_key(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection, masking=True, cork=False)
    for _ in range(50):
        connection.send_nowait(b"\0" * 8)
    keys = {call[2:6] for call in datagrams.take()}
    assert len(keys) == 50


# --- what the kernel does not take -------------------------------------------------------------------------


@pytest.mark.parametrize("masking", [False, True], ids=["server", "client"])
@pytest.mark.parametrize("size", [100, LARGE, 100_000])
async def test_what_the_kernel_refuses_goes_to_the_transport_in_order(size: int, masking: bool, stream: Kernel) -> None:
    connection = Echo()
    transport = open_on(stream, connection, masking=masking)
    transport.keeps = True
    sent = [bytes([number]) * size for number in range(100)]
    count = 0
    while not transport.written:
        connection.send_nowait(sent[count])
        count += 1
        await end_of_turn()
    taken = b"".join(stream.take())
    whole = decode_all(taken + transport.output)
    assert [frame.payload for frame in whole] == sent[:count]
    # The kernel is free again, but the transport has not said that it is through: nothing may overtake.
    session = connection._session_now
    assert session is not None
    assert session.is_blocked
    session.write_ping(b"later")
    await end_of_turn()
    connection.flush()
    assert stream.take() == []
    output = transport.output
    transport.release()
    await asyncio.sleep(0)
    assert not session.is_blocked
    assert transport.output == output
    later = decode_all(taken + output + b"".join(stream.take()))[-1]
    assert later == Wire(PING, b"later", masked=masking)


async def test_a_message_that_the_kernel_takes_in_part_is_not_sent_twice(stream: Kernel) -> None:
    """The rest goes to the transport: of a header and payload too, whichever the cut is in."""
    for room in range(1, 13):
        connection = Echo()
        transport = open_on(stream, connection)
        transport.keeps = True
        stream.fill()
        stream.far.recv(room)
        connection.send_nowait(b"y" * 70_000)
        taken = b"".join(stream.take()).lstrip(b"x")
        assert decode_all(taken + transport.output) == [Wire(BINARY, b"y" * 70_000)]
        transport.lose()


@pytest.mark.parametrize("wrapped", [False, True], ids=["bytes", "Message"])
async def test_nothing_is_copied_that_the_transport_can_keep(wrapped: bool) -> None:
    connection = Echo()
    transport = open_on(None, connection)
    payload = b"x" * 100_000
    connection.send_nowait(Message(payload) if wrapped else payload)
    header, rest = transport.written
    assert isinstance(rest, memoryview)
    assert rest.obj is payload
    assert decode_all(bytes(header) + bytes(rest)) == [Wire(BINARY, payload)]


@pytest.mark.parametrize("room", [0, 5, 4000])
@pytest.mark.parametrize("text", ["x" * 100_000, "é" * 50_000], ids=["ASCII", "UTF-8"])
async def test_a_large_text_leaves_from_where_it_lies(text: str, room: int, stream: Kernel) -> None:
    connection = Echo()
    transport = open_on(stream, connection)
    if not room:
        before = stream.fill()
    else:
        before = b"".join(stream.take())
    connection.send_nowait(text)
    taken = b"".join(stream.take())[len(before) :]
    assert decode_all(taken + transport.output) == [Wire(TEXT, text.encode())]


async def test_what_may_change_is_copied() -> None:
    connection = Echo()
    transport = open_on(None, connection)
    payload = bytearray(b"x" * 100_000)
    connection.send_nowait(payload)
    payload[:] = b"y" * 100_000
    assert decode_all(transport.output) == [Wire(BINARY, b"x" * 100_000)]


async def test_while_the_transport_is_blocked_messages_wait_and_then_go_in_order(stream: Kernel) -> None:
    connection = Echo()
    transport = open_on(stream, connection)
    transport.protocol.pause_writing()
    with pytest.raises(RuntimeError):
        connection.send_nowait(b"x")  # the bare core keeps nothing by itself: fabric._connection.base does
    assert transport.written == []
    transport.protocol.resume_writing()
    await asyncio.sleep(0)
    connection.send_nowait(b"y")
    assert payloads(stream.take()) == [b"y"]


async def test_one_pong_waits_while_the_transport_is_blocked(stream: Kernel) -> None:
    """picows (Resources): automatic pongs to a peer that does not read pile up."""
    connection = Echo()
    transport = open_on(stream, connection)
    transport.protocol.pause_writing()
    for number in range(1000):
        transport.feed(encode(PING, b"%d" % number))
    assert (transport.written, stream.take()) == ([], [])
    transport.protocol.resume_writing()
    await end_of_turn()
    assert decode_all(b"".join(stream.take())) == [Wire(PONG, b"999")]


async def test_a_secure_transport_is_never_written_past(datagrams: Kernel) -> None:
    connection = Echo()
    transport = FakeTransport(datagrams.near, secure=True).connect(connection)
    for payload in (b"a", b"x" * 70_000, b"b"):
        connection.send_nowait(payload)
    connection.flush()
    assert datagrams.take() == []
    assert payloads(transport.output) == [b"a", b"x" * 70_000, b"b"]


# --- what is sent while the transport writes ---------------------------------------------------------------
#
# A signal handler, or a finalizer that a collection runs: anything may be sent in the midst of a write.


class Interrupted(FakeTransport):
    """Encrypts, so that all is written through it; calls `interrupt` once, before the next thing that is."""

    interrupt: Callable[[], object] | None = None

    def __init__(self) -> None:
        super().__init__(secure=True)

    def write(self, data: Any) -> None:
        if self.interrupt is not None:
            interrupt, self.interrupt = self.interrupt, None
            interrupt()
        super().write(bytes(data))


@pytest.mark.parametrize("outer", [b"outer", b"o" * 20_000], ids=["small", "large"])
@pytest.mark.parametrize("inner", [b"inner", b"i" * 20_000, "ping", "close"], ids=["small", "large", "ping", "close"])
async def test_what_is_sent_during_a_write_follows_it(outer: bytes, inner: bytes | str) -> None:
    connection = Echo()
    transport = open_on(None, connection)
    session = connection._session_now
    assert session is not None

    def interrupt(_: object) -> None:
        transport.on_write = None
        if inner == "ping":
            session.write_ping(b"ping")
        elif inner == "close":
            session.begin_close(4000, "bye")
        else:
            connection.send_nowait(inner)

    transport.on_write = interrupt
    connection.send_nowait(outer)
    await end_of_turn()  # by itself
    first, second = decode_all(transport.output)
    assert first == Wire(BINARY, outer)
    assert second.payload == {"ping": b"ping", "close": b"\x0f\xa0bye"}.get(inner, inner)  # type: ignore[call-overload]
    transport.lose()


async def test_what_is_sent_during_a_write_that_fills_the_transport_waits_for_it(stream: Kernel) -> None:
    connection = Echo()
    transport = open_on(stream, connection)
    transport.keeps = True
    stream.fill()
    session = connection._session_now
    assert session is not None

    def interrupt(_: object) -> None:
        transport.on_write = None
        session.write_ping(b"ping")

    transport.on_write = interrupt
    connection.send_nowait(b"outer")
    await end_of_turn()
    assert payloads(transport.output) == [b"outer"]
    stream.take()
    transport.release()
    await end_of_turn()
    assert decode_all(b"".join(stream.take())) == [Wire(PING, b"ping")]


@pytest.mark.parametrize("compressing", [False, True])
async def test_random_interruptions_keep_the_order(compressing: bool, rng: random.Random) -> None:
    """Compressed, each message refers to those before it: it can be read in the very order it was compressed in."""
    connection = Echo()
    transport = Interrupted()
    transport.connect(connection, codec=DeflateCodec() if compressing else None)
    hold_back(asyncio.get_running_loop(), LONG)
    sent: dict[bytes, int] = {b"outer": 0, b"inner": 0}

    def send(kind: bytes) -> None:
        sent[kind] += 1
        text = b"%s %d " % (kind, sent[kind])
        connection.send_nowait(text + rng.choice((b"", b"", b"the same again and again " * 40, rng.randbytes(10_000))))

    for _ in range(500):
        if rng.random() < 0.5:
            transport.interrupt = lambda: send(b"inner")
        send(b"outer")
        if rng.random() < 0.3:
            connection.flush()
        if rng.random() < 0.3:
            await asyncio.sleep(0)
    transport.interrupt = None
    await end_of_turn()
    codec = DeflateCodec()
    arrived: dict[bytes, list[int]] = {b"outer": [], b"inner": []}
    for frame in decode_all(transport.output):
        payload = codec.decode(frame.payload, limit=1 << 20) if frame.rsv else frame.payload
        kind, number, _ = payload.split(b" ", 2)
        arrived[kind].append(int(number))
    assert sent[b"inner"] > 100
    assert arrived == {kind: list(range(1, count + 1)) for kind, count in sent.items()}


# --- what comes back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", [False, True], ids=["server", "client"])
@pytest.mark.parametrize("size", [1, 5000, LARGE, BLOCK + 1])
async def test_a_message_that_meets_a_lost_connection_comes_back(size: int, masking: bool, stream: Kernel) -> None:
    connection = Echo()
    transport = open_on(stream, connection, masking=masking)
    stream.far.close()
    connection.send_nowait(b"x" * size)
    assert connection._is_blocked
    assert (connection.messages_sent, connection.bytes_sent) == (0, 0)
    assert transport.written == []
    transport.lose()
    assert connection.taken_back() == [(b"x" * size, None)]


async def test_all_that_was_gathered_comes_back_whole_in_order_and_once(stream: Kernel) -> None:
    connection = Echo()
    transport = open_on(stream, connection, codec=DeflateCodec())
    session = connection._session_now
    assert session is not None
    connection.send_nowait(b"arrives")
    assert len(stream.take()) == 1
    cork(connection, 1)
    connection.send_nowait("a")
    session.write_ping(b"no message")
    connection.send_nowait(bytearray(b"b" * 2000), compress=True)
    connection.send_nowait("c", compress=False)
    stream.far.close()
    cork(connection, -1)
    lost = [("a", None), (b"b" * 2000, True), ("c", False)]
    assert connection._outbox_size == 3
    assert (connection.messages_sent, connection.bytes_sent) == (1, 7)
    await end_of_turn()
    transport.lose()
    assert connection.taken_back() == lost


async def test_what_was_gathered_when_the_transport_goes_comes_back(datagrams: Kernel) -> None:
    connection = Echo()
    transport = open_on(datagrams, connection)
    connection.send_nowait(b"at once")
    connection.send_nowait(b"gathered")
    connection.send_nowait("gathered too")
    transport.lose()
    await end_of_turn()
    assert payloads(datagrams.take()) == [b"at once"]
    assert transport.written == []
    assert connection.taken_back() == [(b"gathered", None), ("gathered too", None)]
    assert connection.messages_sent == 1


async def test_what_comes_back_stands_before_what_is_sent_meanwhile(stream: Kernel) -> None:
    class Meanwhile(Echo):
        def _on_taken_back(self, message: Any) -> None:
            self.send_nowait(Message(b"after " + message.as_bytes()))

        def _queue_now(self, message: Any, compress: Any) -> None:
            self._outbox_push(message, compress)

    connection = Meanwhile()
    transport = open_on(stream, connection)
    cork(connection, 1)
    connection.send_nowait(b"1")
    connection.send_nowait(b"2")
    stream.far.close()
    cork(connection, -1)
    transport.lose()
    assert [payload for payload, _ in connection.taken_back()] == [b"1", b"2", b"after 1", b"after 2"]


async def test_what_comes_back_goes_out_by_the_next_session_first(stream: Kernel, datagrams: Kernel) -> None:
    class Lasting(Echo):
        def _on_lost(self, session: Any) -> None:
            self._lose()

    connection = Lasting()
    transport = open_on(stream, connection)
    cork(connection, 1)
    for payload in numbers(3):
        connection.send_nowait(payload)
    stream.far.close()
    cork(connection, -1)
    transport.lose()
    open_on(datagrams, connection)
    connection._flush_outbox()
    connection.send_nowait(b"3")
    await end_of_turn()
    assert payloads(datagrams.take()) == numbers(4)


async def test_a_message_whose_end_has_not_left_is_told(stream: Kernel) -> None:
    """The kernel has never had its last byte, so no peer has the message. Of those before it, that is not known."""
    for rest in (1, 2500):  # bytes that the transport still holds when it is dropped
        connection = Echo()
        transport = open_on(stream, connection)
        stream.fill()
        transport.keeps = True
        cork(connection, 1)
        for number in range(3):
            connection.send_nowait(bytes([number]) * 1000)
        cork(connection, -1)
        session = connection._session_now
        assert session is not None
        if rest > 1:
            transport.held = rest
            session.abort()
        transport.lose()
        assert connection.taken_back() == []
        names = [message.as_bytes()[:1] for message in session.cut_off_messages()]
        assert names == ([b"\2"] if rest == 1 else [b"\0", b"\1", b"\2"])
        stream.take()


async def test_a_message_that_the_transport_is_through_with_may_have_arrived(stream: Kernel) -> None:
    connection = Echo()
    transport = open_on(stream, connection)
    stream.fill()
    transport.keeps = True
    connection.send_nowait(b"x" * 1000)
    session = connection._session_now
    assert session is not None
    transport.release()
    transport.lose()
    assert connection.taken_back() == []
    assert session.cut_off_messages() == ()
    assert connection.messages_sent == 1


async def test_one_connection_that_cannot_write_does_not_keep_the_others_from_it(datagrams: Kernel) -> None:
    broken, sound = Echo(), Echo()
    transport = open_on(None, broken)
    open_on(datagrams, sound)
    for connection in (sound, broken):
        connection.send_nowait(b"first")
    datagrams.take()
    for connection in (sound, broken):
        connection.send_nowait(b"second")
    transport.write_error = RuntimeError("the transport has a fault")
    await end_of_turn()
    assert payloads(datagrams.take()) == [b"second"]
    assert transport.aborted
    sound.send_nowait(b"third")
    sound.send_nowait(b"fourth")
    await end_of_turn()
    assert payloads(datagrams.take()) == [b"third", b"fourth"]


async def test_a_fault_of_the_transport_is_the_senders_to_know_and_ends_it() -> None:
    for payload in (b"x", b"x" * 20_000):
        connection = Echo()
        transport = open_on(None, connection)
        transport.write_error = LookupError("a fault")
        with pytest.raises(LookupError, match="a fault"):
            connection.send_nowait(payload)
        assert transport.aborted
        with pytest.raises(RuntimeError):
            connection.send_nowait(b"y")
        transport.lose()


async def test_a_callback_that_fails_does_not_stop_the_loops_other_connections(datagrams: Kernel) -> None:
    """The end of a read is noticed even when everything goes wrong in its last frame."""

    class Broken(Echo):
        def _on_failed(self, error: BaseException, in_callback: bool) -> None:
            raise RuntimeError("the handler of errors fails too")

    def fail(_: Connection, message: Any) -> None:
        raise LookupError(message)

    transport = open_on(None, Broken(fail))
    sound = Echo()
    open_on(datagrams, sound)
    with pytest.raises(RuntimeError, match="fails too"):
        transport.feed(encode(BINARY, b"x"))
    for payload in (b"a", b"b", b"c"):
        sound.send_nowait(payload)
    await end_of_turn()
    assert payloads(datagrams.take()) == [b"a", b"b", b"c"]
    transport.lose()


# --- buffers -----------------------------------------------------------------------------------------------


async def test_connections_that_gather_at_the_same_time_do_not_mix(rng: random.Random) -> None:
    connections = [Echo() for _ in range(20)]
    transports = [open_on(None, connection) for connection in connections]
    sent: list[list[bytes]] = [[] for _ in connections]
    for _ in range(2000):
        number = rng.randrange(20)
        payload = rng.randbytes(rng.choice((3, 100, 3000, 9000)))
        connections[number].send_nowait(payload)
        sent[number].append(payload)
        if rng.random() < 0.01:
            await asyncio.sleep(0)
    await end_of_turn()
    assert [payloads(transport.output) for transport in transports] == sent


async def test_a_connection_may_go_while_it_gathers() -> None:
    for _ in range(100):
        connection = Echo()
        transport = open_on(None, connection)
        for _ in range(3):
            connection.send_nowait(b"x" * 3000)
        transport.lose()
        del connection, transport
    survivor = Echo()
    transport = open_on(None, survivor)
    for _ in range(3):
        survivor.send_nowait(b"y" * 3000)
    await end_of_turn()
    assert payloads(transport.output) == [b"y" * 3000] * 3
