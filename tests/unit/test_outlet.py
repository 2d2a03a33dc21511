"""fabric_ext.outlet: what leaves when, in which order, by how many system calls.

The kernel is a pair of datagram sockets, which keep apart what two system calls have sent, or of stream
sockets, which can be full.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from fabric_ext.outlet import hold_back
from support.fake_transport import FakeTransport
from support.frames import BINARY, PING, PONG, TEXT, Wire, decode_all, encode

if TYPE_CHECKING:
    import contextlib
    import random

FOR_EVER = 1 << 62  # ns
LARGE = 8192  # from here on a payload is not copied
SIZES = [0, 1, 125, 126, 127, 1000, LARGE - 1, LARGE, 65521, 65522, 65535, 65536, 70_000]


class Echo(Connection):
    """A connection that sends back what it gets, where it gets it."""

    def __init__(self, *, masking: bool = False, echo: bool = True, fragment_size: int = 0) -> None:
        super().__init__(asyncio.get_running_loop(), masking, Counters())
        self._configure(
            max_message_size=1 << 30,
            max_fragments=1000,
            queue_limit=1000,
            queue_byte_limit=1 << 30,
            fragment_size=fragment_size,
            close_timeout=1,
            on_message=Connection.send_nowait if echo else None,
        )


class Kernel:
    """A pair of sockets: `near` is the connection's, the test reads from the far one."""

    def __init__(self, kind: socket.SocketKind, buffer: int) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, kind)
        for end in (self.near, self.far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)

    def take(self) -> list[bytes]:
        """What was sent since, one item for each system call (of a datagram pair)."""
        found = []
        while True:
            try:
                found.append(self.far.recv(1 << 20))
            except BlockingIOError:
                return found


@pytest.fixture
def datagrams() -> Iterator[Kernel]:
    kernel = Kernel(socket.SOCK_DGRAM, 400_000)
    yield kernel
    kernel.near.close()
    kernel.far.close()


@pytest.fixture
def stream() -> Iterator[Kernel]:
    kernel = Kernel(socket.SOCK_STREAM, 4096)
    yield kernel
    kernel.near.close()
    kernel.far.close()


def open_on(kernel: Kernel | None, connection: Connection) -> FakeTransport:
    """`connection`, open; what belongs to the handshake is taken off."""
    transport = FakeTransport(kernel and kernel.near).connect(connection)
    if kernel is not None:
        kernel.take()
    return transport


def payloads(data: bytes | list[bytes]) -> list[bytes]:
    return [frame.payload for frame in decode_all(data if isinstance(data, bytes) else b"".join(data))]


# --- when it leaves ----------------------------------------------------------------------------------------


async def test_the_first_message_of_a_turn_leaves_at_once_the_others_together(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    await asyncio.sleep(0)
    for _ in range(3):
        connection.send_nowait(b"first")
        assert payloads(datagrams.take()) == [b"first"]
        for number in range(4):
            connection.send_nowait(b"%d" % number)
        assert datagrams.take() == []
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        calls = datagrams.take()
        assert len(calls) == 1
        assert payloads(calls) == [b"0", b"1", b"2", b"3"]


async def test_what_a_read_causes_leaves_by_one_call_when_it_ends(datagrams: Kernel) -> None:
    """picows (Resources): each frame costs a system call of its own."""
    hold_back(asyncio.get_running_loop(), FOR_EVER)
    connection = Echo()
    transport = open_on(datagrams, connection)
    transport.feed(b"".join(encode(BINARY, b"%d" % number) for number in range(20)))
    calls = datagrams.take()
    assert len(calls) == 1
    assert payloads(calls) == [b"%d" % number for number in range(20)]


async def test_a_read_that_ends_within_a_frame_sends_what_it_has_caused(datagrams: Kernel) -> None:
    connection = Echo()
    transport = open_on(datagrams, connection)
    transport.feed(encode(BINARY, b"whole") + encode(BINARY, b"x" * 100)[:50])
    assert payloads(datagrams.take()) == [b"whole"]


async def test_a_read_that_ends_with_a_fault_sends_what_came_before_it(datagrams: Kernel) -> None:
    connection = Echo()
    transport = open_on(datagrams, connection)
    transport.feed(encode(BINARY, b"a") + encode(BINARY, b"b") + encode(3, b"no such opcode"))
    for _ in range(3):
        await asyncio.sleep(0)
    frames = decode_all(b"".join(datagrams.take()))
    assert [frame.payload for frame in frames[:-1]] == [b"a", b"b"]
    assert frames[-1].close_code == 1002
    transport.lose()


async def test_no_answer_waits_long_for_others_of_its_read(datagrams: Kernel) -> None:
    seen: list[int] = []

    class Slow(Echo):
        def take(self, message: Any) -> None:
            seen.append(len(datagrams.take()))
            self.send_nowait(message)

    connection = Slow()
    connection._configure(
        max_message_size=1 << 30, max_fragments=9, queue_limit=9, queue_byte_limit=99, fragment_size=0,
        close_timeout=1, on_message=Slow.take,
    )  # fmt: skip
    transport = open_on(datagrams, connection)
    hold_back(asyncio.get_running_loop(), 0)  # as if each took its time
    transport.feed(b"".join(encode(BINARY, b"%d" % number) for number in range(6)))
    assert seen == [0, 0, 0, 1, 1, 1]  # from the third on, each leaves before the next is handled
    assert len(datagrams.take()) == 1


async def test_what_a_read_causes_elsewhere_leaves_with_it(datagrams: Kernel) -> None:
    """One connection's message makes another one send, as in a chat."""
    hold_back(asyncio.get_running_loop(), FOR_EVER)
    others = [Echo() for _ in range(3)]
    for other in others:
        open_on(None, other)
    quiet = FakeTransport()
    listener = Echo()
    open_on(datagrams, listener)

    class Relay(Echo):
        def relay(self, message: Any) -> None:
            listener.send_nowait(message)
            listener.send_nowait(message)

    relay = Relay()
    relay._configure(
        max_message_size=1 << 30, max_fragments=9, queue_limit=9, queue_byte_limit=99, fragment_size=0,
        close_timeout=1, on_message=Relay.relay,
    )  # fmt: skip
    quiet.connect(relay)
    quiet.feed(encode(TEXT, "a") + encode(TEXT, "b"))
    calls = datagrams.take()
    assert len(calls) == 1
    assert payloads(calls) == [b"a", b"a", b"b", b"b"]


async def test_much_at_once_does_not_wait_for_the_end_of_the_turn(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    for number in range(200):
        connection.send_nowait(bytes([number]) * 1000)
    sent = datagrams.take()
    assert sum(map(len, sent)) > 100_000
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert payloads(sent + datagrams.take()) == [bytes([number]) * 1000 for number in range(200)]


async def test_a_large_payload_leaves_by_one_call_with_its_header(datagrams: Kernel) -> None:
    connection = Echo()
    open_on(datagrams, connection)
    connection.send_nowait(b"x" * 50_000)
    connection.send_nowait("y" * 50_000)
    calls = datagrams.take()
    assert len(calls) == 2
    assert payloads(calls) == [b"x" * 50_000, b"y" * 50_000]


# --- order and content -------------------------------------------------------------------------------------


@pytest.mark.parametrize("masking", [False, True], ids=["server", "client"])
@pytest.mark.parametrize("kernel", ["free", "none"])
async def test_any_mixture_of_sizes_keeps_its_order(
    masking: bool, kernel: str, datagrams: Kernel, rng: random.Random
) -> None:
    connection = Echo(masking=masking)
    if masking:
        # Opened as a server, which is what finish_server can do; only what is sent is looked at.
        pass
    transport = open_on(datagrams if kernel == "free" else None, connection)
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
        if rng.random() < 0.2:
            await asyncio.sleep(0)
        received += b"".join(datagrams.take())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    received += b"".join(datagrams.take()) + transport.output
    frames = decode_all(received)
    assert [frame.payload for frame in frames] == sent
    assert {frame.masked for frame in frames} == {masking}


async def test_a_client_masks_each_frame_with_another_key(datagrams: Kernel) -> None:
    connection = Echo(masking=True)
    open_on(datagrams, connection)
    for _ in range(50):
        connection.send_nowait(b"\0" * 8)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    keys = {call[2:6] for call in datagrams.take()}
    assert len(keys) == 50


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masking", [False, True], ids=["server", "client"])
async def test_one_message_of_each_size(size: int, masking: bool, datagrams: Kernel) -> None:
    connection = Echo(masking=masking)
    open_on(datagrams, connection)
    connection.send_nowait("é" * (size // 2))
    connection.send_nowait(b"e" * size)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    frames = decode_all(b"".join(datagrams.take()))
    assert [(frame.opcode, frame.fin, frame.rsv) for frame in frames] == [(TEXT, True, 0), (BINARY, True, 0)]
    assert [frame.payload for frame in frames] == [("é" * (size // 2)).encode(), b"e" * size]


@pytest.mark.parametrize("size", [0, 9, 10, 11, 20, 21, 20_000])
async def test_fragment_size_splits_what_is_longer(size: int, datagrams: Kernel) -> None:
    limit = 9_000 if size > 100 else 10
    connection = Echo(fragment_size=limit)
    open_on(datagrams, connection)
    payload = bytes(itertools.islice(itertools.cycle(range(256)), size))
    connection.send_nowait(payload)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    frames = decode_all(b"".join(datagrams.take()))
    assert b"".join(frame.payload for frame in frames) == payload
    assert [frame.opcode for frame in frames] == [BINARY] + [0] * (len(frames) - 1)
    assert [frame.fin for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert all(len(frame.payload) == limit for frame in frames[:-1])
    assert len(frames[-1].payload) <= limit
    assert len(frames) == max(1, -(-size // limit))


# --- what the kernel does not take -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, LARGE, 100_000])
async def test_what_the_kernel_refuses_goes_to_the_transport_in_order(size: int, stream: Kernel) -> None:
    connection = Echo()
    transport = open_on(stream, connection)
    sent = [bytes([number]) * size for number in range(60)]
    taken = b""
    for payload in sent:
        connection.send_nowait(payload)
        if transport.written:
            transport.protocol.pause_writing()
            break
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert transport.written, "the kernel took everything"
    taken = b"".join(stream.take())
    whole = decode_all(taken + transport.output)
    assert [frame.payload for frame in whole] == sent[: len(whole)]
    # Free again, but the transport has not said that it is through: nothing may overtake.
    connection._write_ping(b"later")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert stream.take() == []
    assert decode_all(taken + transport.output)[-1] == Wire(PING, b"later")


async def test_nothing_is_copied_that_the_transport_can_keep() -> None:
    connection = Echo()
    transport = open_on(None, connection)
    payload = b"x" * 100_000
    connection.send_nowait(payload)
    header, rest = transport.written
    assert isinstance(rest, memoryview)
    assert rest.obj is payload
    assert decode_all(bytes(header) + bytes(rest)) == [Wire(BINARY, payload)]


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
        connection.send_nowait(b"x")  # the bare core keeps nothing: fabric._connection.base has the outbox
    assert transport.written == []
    transport.protocol.resume_writing()
    connection.send_nowait(b"y")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
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
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert decode_all(b"".join(stream.take())) == [Wire(PONG, b"999")]


async def test_a_lost_transport_takes_what_was_gathered_with_it(datagrams: Kernel) -> None:
    connection = Echo()
    transport = open_on(datagrams, connection)
    connection.send_nowait(b"at once")
    connection.send_nowait(b"gathered")
    transport.lose()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert payloads(datagrams.take()) == [b"at once"]
    assert transport.written == []


async def test_one_connection_that_cannot_write_does_not_keep_the_others_from_it(
    datagrams: Kernel, loop_reports: list[str]
) -> None:
    broken, sound = Echo(), Echo()
    transport = open_on(None, broken)
    open_on(datagrams, sound)
    await asyncio.sleep(0)
    for connection in (broken, sound):
        connection.send_nowait(b"first")
    datagrams.take()
    for connection in (broken, sound):
        connection.send_nowait(b"second")
    transport.write_error = RuntimeError("the transport has a fault")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert payloads(datagrams.take()) == [b"second"]
    loop_reports.clear()
    sound.send_nowait(b"third")
    sound.send_nowait(b"fourth")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert payloads(datagrams.take()) == [b"third", b"fourth"]


async def test_a_callback_that_fails_does_not_stop_the_loops_other_connections(datagrams: Kernel) -> None:
    """The end of a read is noticed even when everything goes wrong in its last frame."""

    class Broken(Echo):
        def fail(self, message: Any) -> None:
            raise LookupError(message)

        def _on_error(self, error: BaseException) -> None:
            raise RuntimeError("the handler of errors fails too")

    broken = Broken()
    broken._configure(
        max_message_size=1 << 30, max_fragments=9, queue_limit=9, queue_byte_limit=99, fragment_size=0,
        close_timeout=1, on_message=Broken.fail,
    )  # fmt: skip
    transport = open_on(None, broken)
    sound = Echo()
    open_on(datagrams, sound)
    transport.feed(encode(BINARY, b"x"))
    await asyncio.sleep(0)
    for payload in (b"a", b"b"):
        sound.send_nowait(payload)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert payloads(datagrams.take()) == [b"a", b"b"]
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
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [payloads(transport.output) for transport in transports] == sent


async def test_a_connection_may_go_while_it_gathers(stack: contextlib.AsyncExitStack) -> None:
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
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert payloads(transport.output) == [b"y" * 3000] * 3
