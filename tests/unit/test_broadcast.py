"""fabric_ext.broadcast and fabric_ext.fanout: what is sent to many leaves connection by connection, in order."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import weakref
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from fabric._connection.base import BaseConnection
from fabric._server.broadcast import _send_to_slow
from fabric.error import ConnectionClosed
from fabric_ext.broadcast import Shared
from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from fabric_ext.deflate import DeflateCodec
from fabric_ext.message import Message
from fabric_ext.writer import hold_back
from support.fake_time import in_fake_time
from support.fake_transport import FakeTransport
from support.frames import BINARY, CLOSE, PING, decode_all, encode
from support.kernel import Kernel
from support.writing import cork

if TYPE_CHECKING:
    import random

BLOCK = 65536  # bytes that one turn may put off
SLICE = 0.002  # seconds for which a fan-out may hold up everything else


class Peer(Connection):
    """A server's connection on a socket pair."""

    def __init__(self, kernel: Kernel | None = None, on_message: Any = None, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop, Counters(), queue_limit=1000, queue_byte_limit=1 << 30, on_message=on_message)
        self.transport = FakeTransport(kernel and kernel.near).connect(self, **options)

    def _queue_now(self, message: Any, compress: bool | None) -> None:
        self._outbox_push(Message(message), compress)

    def taken_back(self) -> list[bytes]:
        return [self._outbox_pop()[0].as_bytes() for _ in range(self._outbox_size)]


@pytest.fixture
def kernels() -> Iterator[list[Kernel]]:
    """Datagram sockets: each system call is one datagram."""
    made = [Kernel(socket.SOCK_DGRAM, 400_000) for _ in range(3)]
    yield made
    for kernel in made:
        kernel.near.close()
        kernel.far.close()


def shared(payload: bytes, compress: bool | None = None, fragment_size: int = 0) -> Shared:
    return Shared(Message(payload), compress, fragment_size)


def publish(payload: bytes, peers: list[Peer]) -> None:
    assert shared(payload).send_to(peers) == (len(peers), [])


def payloads(calls: list[bytes]) -> list[list[bytes]]:
    return [[frame.payload for frame in decode_all(call)] for call in calls]


async def end_of_turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@in_fake_time
@pytest.mark.parametrize("reads", [True, False])
async def test_one_that_takes_bytes_is_waited_for_although_others_send_as_much(reads: bool) -> None:
    """As many broadcasts do that wait for it together: what is left for it is not less then."""

    class Slow:
        messages_sent = 0
        is_cut_off = False

        async def send(self, message: Message, *, compress: bool | None) -> None:
            while self.messages_sent < 100:
                await asyncio.sleep(1)
                self.messages_sent += reads
                if self.is_cut_off:
                    raise ConnectionClosed(1006, "")

        def _left_to_send(self) -> int:
            return 1000

        def _cut_off(self) -> None:
            self.is_cut_off = True

        _standing, _has_moved = BaseConnection._standing, BaseConnection._has_moved

    slow: Any = Slow()
    assert await _send_to_slow(slow, Message("x"), None, 5) is reads
    assert slow.is_cut_off is not reads


async def test_all_of_a_turn_leaves_by_one_call_for_each_connection(kernels: list[Kernel]) -> None:
    peers = [Peer(kernel) for kernel in kernels]
    for payload in (b"1", b"2", b"3"):
        publish(payload, peers)
    publish(b"4", peers[1:])
    await end_of_turn()
    expected = [[b"1", b"2", b"3"], [b"1", b"2", b"3", b"4"], [b"1", b"2", b"3", b"4"]]
    for kernel, own in zip(kernels, expected, strict=True):
        assert payloads(kernel.take()) == [own]
    assert [peer.messages_sent for peer in peers] == [3, 4, 4]
    assert [peer.bytes_sent for peer in peers] == [3, 4, 4]


async def test_one_alone_leaves_at_the_end_of_its_turn(kernels: list[Kernel]) -> None:
    peer = Peer(kernels[0])
    for payload in (b"1", b"2", b"3"):
        publish(payload, [peer])
        await end_of_turn()
        assert payloads(kernels[0].take()) == [[payload]]


async def test_what_is_sent_on_a_connection_takes_what_is_due_first(kernels: list[Kernel]) -> None:
    peer = Peer(kernels[0])
    publish(b"1", [peer])
    publish(b"2", [peer])
    peer.send_nowait(b"3")
    assert payloads(kernels[0].take()) == [[b"1", b"2", b"3"]]
    publish(b"4", [peer])
    peer.send_nowait(b"x" * 100_000)
    assert payloads(kernels[0].take())[0] == [b"4"]
    publish(b"5", [peer])
    peer._session_now.write_ping(b"6")
    publish(b"7", [peer])
    peer._write_part(BINARY, b"8", False, None)
    peer._write_part(0, b"9", True, None)
    publish(b"10", [peer])
    await end_of_turn()
    frames = [frame for call in kernels[0].take() for frame in decode_all(call)]
    assert [frame.payload for frame in frames] == [b"5", b"6", b"7", b"8", b"9", b"10"]
    assert frames[1].opcode == PING


async def test_flush_takes_it_too(kernels: list[Kernel]) -> None:
    peer = Peer(kernels[0])
    publish(b"1", [peer])
    peer.flush()
    assert payloads(kernels[0].take()) == [[b"1"]]
    await end_of_turn()
    assert kernels[0].take() == []


async def test_a_close_leaves_behind_what_is_due(kernels: list[Kernel]) -> None:
    peers = [Peer(kernel) for kernel in kernels[:2]]
    publish(b"1", peers)
    peers[0]._session_now.begin_close(1000, "")
    peers[1].transport.feed(encode(CLOSE, b"\x03\xe8"))
    for kernel in kernels[:2]:
        frames = [frame for call in kernel.take() for frame in decode_all(call)]
        assert [frame.payload for frame in frames] == [b"1", b"\x03\xe8"]
        assert frames[1].opcode == CLOSE
    assert shared(b"2").send_to(peers) == (0, [])
    peers[0].transport.lose()
    await end_of_turn()


async def test_a_cork_keeps_it(kernels: list[Kernel]) -> None:
    peer = Peer(kernels[0])
    cork(peer, 1)
    publish(b"1", [peer])
    await end_of_turn()
    publish(b"2", [peer])
    await end_of_turn()
    assert kernels[0].take() == []
    cork(peer, -1)
    assert payloads(kernels[0].take()) == [[b"1", b"2"]]


async def test_without_gathering_it_leaves_at_once(kernels: list[Kernel]) -> None:
    quick, usual = Peer(kernels[0], cork=False), Peer(kernels[1])
    for payload in (b"1", b"2"):
        publish(payload, [usual, quick])
        assert payloads(kernels[0].take()) == [[payload]]
    assert kernels[1].take() == []
    await end_of_turn()
    assert payloads(kernels[1].take()) == [[b"1", b"2"]]


async def test_no_more_than_a_block_is_put_off(kernels: list[Kernel]) -> None:
    peer = Peer(kernels[0])
    sent = [b"%d " % number + b"x" * 10_000 for number in range(20)]
    for payload in sent:
        publish(payload, [peer])
    calls = kernels[0].take()
    assert len(calls) == 3
    assert all(len(call) <= BLOCK for call in calls)
    await end_of_turn()
    assert [frame.payload for call in [*calls, *kernels[0].take()] for frame in decode_all(call)] == sent


async def test_what_is_compressed_keeps_its_window_in_step(kernels: list[Kernel]) -> None:
    """Compressed one by one it would be other bytes than together: the peer inflates them in the order of the wire."""
    peer = Peer(kernels[0], codec=DeflateCodec(threshold=0))
    reader = zlib.decompressobj(-15)
    sent = [b"the same and the same %d" % number * 9 for number in range(6)]
    for number, payload in enumerate(sent):
        if number % 3 == 2:
            peer.send_nowait(payload)
        else:
            publish(payload, [peer])
    await end_of_turn()
    frames = [frame for call in kernels[0].take() for frame in decode_all(call)]
    assert [reader.decompress(frame.payload + b"\x00\x00\xff\xff") for frame in frames] == sent


async def test_a_fan_out_that_takes_long_lets_others_run() -> None:
    """Each write takes a quarter of a slice: the loop comes to its other callbacks before all have been served."""

    def take_long(_: Any) -> None:
        until = time.monotonic() + SLICE / 4
        while time.monotonic() < until:
            pass

    peers = [Peer() for _ in range(64)]
    for peer in peers:
        peer.transport.on_write = take_long
    publish(b"1", peers)
    counts = []
    while len(counts) < 10:
        await asyncio.sleep(0)
        counts.append(sum(bool(peer.transport.written) for peer in peers))
    assert counts[-1] == 64
    assert len(set(counts) - {0}) == 4
    publish(b"2", peers[:40])
    await end_of_turn()
    publish(b"3", peers[:40])
    for _ in range(20):
        await asyncio.sleep(0)
    for peer in peers[:40]:
        assert [frame.payload for frame in decode_all(peer.transport.output)] == [b"1", b"2", b"3"]


async def test_what_is_due_for_long_leaves_before_the_next_message_is_delivered(kernels: list[Kernel]) -> None:
    seen: list[Any] = []

    def answer(peer: Connection, message: Message) -> None:
        seen.append(payloads(kernels[1].take()))
        publish(message.as_bytes(), [listener])
        until = time.monotonic() + 1.5 * SLICE
        while time.monotonic() < until:
            pass

    peer, listener = Peer(kernels[0], on_message=answer), Peer(kernels[1])
    peer.transport.feed(b"".join(encode(BINARY, payload) for payload in (b"1", b"2", b"3")))
    assert seen == [[], [[b"1"]], [[b"2"]]]


async def test_what_is_due_to_a_connection_that_is_lost_comes_back(kernels: list[Kernel]) -> None:
    gone, other = Peer(kernels[0]), Peer(kernels[1])
    gathering = hold_back(asyncio.get_running_loop(), 10**10)  # ns, more than a test takes
    gone.send_nowait(b"0")
    kernels[0].take()
    gone.send_nowait(b"1")
    for payload in (b"2", b"3"):
        publish(payload, [gone, other])
    gone.transport.lose()
    await end_of_turn()
    del gathering
    assert gone.taken_back() == [b"1", b"2", b"3"]
    assert gone.messages_sent == 1
    assert kernels[0].take() == []
    assert payloads(kernels[1].take()) == [[b"2", b"3"]]


async def test_what_the_kernel_says_is_lost_comes_back_whole() -> None:
    kernel = Kernel(socket.SOCK_STREAM, 4096)
    peer = Peer(kernel)
    kernel.far.close()
    for payload in (b"1", b"2"):
        publish(payload, [peer])
    await end_of_turn()
    assert peer.taken_back() == [b"1", b"2"]
    peer.transport.lose()
    kernel.near.close()


async def test_one_that_cannot_write_does_not_keep_the_others_from_it(kernels: list[Kernel]) -> None:
    broken, fine = Peer(), Peer(kernels[0])
    broken.transport.write_error = OSError("broken")
    publish(b"1", [broken, fine])
    await end_of_turn()
    assert payloads(kernels[0].take()) == [[b"1"]]
    assert broken.transport.aborted


async def test_publishing_and_losing_connections_while_it_is_written(kernels: list[Kernel]) -> None:
    """A write that runs the application: it publishes, and the next receivers go."""
    busy, gone, last = Peer(), Peer(kernels[0]), Peer(kernels[1])

    def in_the_midst(_: Any) -> None:
        busy.transport.on_write = None
        gone.transport.lose()
        for payload in (b"2", b"3"):
            publish(payload, [busy, last])
        publish(b"x" * BLOCK, [last])

    busy.transport.on_write = in_the_midst
    publish(b"1", [busy, gone, last])
    for _ in range(4):
        await end_of_turn()
    assert [frame.payload for frame in decode_all(busy.transport.output)] == [b"1", b"2", b"3"]
    frames = [frame for call in kernels[1].take() for frame in decode_all(call)]
    assert [frame.payload for frame in frames] == [b"1", b"2", b"3", b"x" * BLOCK]
    assert gone.taken_back() == [b"1"]


async def test_nothing_is_kept_after_the_turn(kernels: list[Kernel]) -> None:
    peer = Peer(kernels[0])
    publish(b"1", [peer])
    await end_of_turn()
    peer.transport.lose()
    reference = weakref.ref(peer)
    del peer
    gc.collect()
    assert reference() is None


async def test_a_peer_that_holds_bytes_is_left_to_the_caller() -> None:
    peer = Peer()
    peer.transport.keeps = True
    publish(b"1", [peer])
    assert shared(b"2").send_to([peer]) == (1, [])
    await end_of_turn()
    assert shared(b"3").send_to([peer]) == (0, [peer])


async def test_any_mixture_keeps_the_order_of_each_connection(rng: random.Random) -> None:
    """Against a model: what was accepted on a connection, in the order in which it was."""
    kernels = [Kernel(socket.SOCK_STREAM, 200_000) for _ in range(4)]
    peers = [Peer(kernel, cork=number != 3) for number, kernel in enumerate(kernels)]
    expected: list[list[bytes]] = [[] for _ in peers]
    received = [b"" for _ in peers]
    for number in range(600):
        payload = b"%d " % number + b"x" * rng.choice([0, 1, 120, 130, 9000])
        step = rng.random()
        if step < 0.5:
            chosen = rng.sample(range(4), rng.randint(1, 4))
            publish(payload, [peers[each] for each in chosen])
            for each in chosen:
                expected[each].append(payload)
        elif step < 0.8:
            each = rng.randrange(4)
            peers[each].send_nowait(payload)
            expected[each].append(payload)
        elif step < 0.85:
            peers[rng.randrange(4)].flush()
        else:
            await end_of_turn()
        if number % 10 == 0:
            await end_of_turn()
        for each, kernel in enumerate(kernels):
            received[each] += b"".join(kernel.take())
    for _ in range(3):
        await end_of_turn()
    for each, kernel in enumerate(kernels):
        received[each] += b"".join(kernel.take())
        assert [frame.payload for frame in decode_all(received[each])] == expected[each]
        kernel.near.close()
        kernel.far.close()
