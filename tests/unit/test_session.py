"""fabric_ext.session: what it makes of bytes, and how it ends, on a transport that the test holds in its hand."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fabric_ext.broadcast import Shared
from fabric_ext.bucket import RateGate, TokenBucket
from fabric_ext.deflate import DeflateCodec
from fabric_ext.frames import Fault
from fabric_ext.message import Message
from fabric_ext.protocol import State
from fabric_ext.session_user import Part
from fabric_ext.throttle import Throttle
from support.fake_time import in_fake_time
from support.fake_transport import FakeTransport, in_loop
from support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Wire,
    close_frame,
    encode,
)
from support.session_peer import LIMIT, Data, Peer, answers, closes_with, deflated

pytestmark = pytest.mark.usefixtures("no_look_ahead")

# --- receiving ---------------------------------------------------------------------------------------------


async def test_messages_arrive_whole_whatever_the_reads() -> None:
    stream = b"".join(
        [
            encode(TEXT, "aé"),
            encode(BINARY, b"b" * 500),
            encode(TEXT, "😀".encode()[:2], fin=False),
            encode(PING, "ping"),
            encode(CONTINUATION, "😀".encode()[2:]),
            encode(BINARY),
            encode(TEXT, "", fin=False),
            encode(CONTINUATION, ""),
        ]
    )
    for size in (1, 2, 3, 7, 100, len(stream)):
        peer = Peer()
        transport = peer.open()
        for at in range(0, len(stream), size):
            transport.feed(stream[at : at + size])
        assert peer.got == ["aé", b"b" * 500, "😀", b"", ""]
        assert answers(transport) == [Wire(PONG, b"ping")]
        assert (peer.messages_received, peer.bytes_received) == (5, 507)
        assert (peer.counters.messages_received, peer.counters.bytes_received) == (5, 507)
        assert not peer.session.has_partial_message


class Stamped(Peer):
    """Notes when what it gets was received."""

    def __init__(self, on_message: Any = None) -> None:
        self.stamps: list[int] = []
        self.inside: Any = on_message
        super().__init__(Stamped.stamp)

    def stamp(self, message: Any) -> None:
        self.stamps.append(message.received_ns)
        if self.inside is not None:
            inside, self.inside = self.inside, None
            inside()


async def test_a_message_tells_when_the_read_returned_that_completed_it() -> None:
    peer = Stamped()
    transport = peer.open()
    times = [time.monotonic_ns()]
    for data in (
        encode(TEXT, "a") + encode(TEXT, "b") + encode(TEXT, "c", fin=False),
        encode(PING),
        encode(CONTINUATION, "c") + encode(BINARY, b"d" * 500)[:100],
        encode(BINARY, b"d" * 500, key=bytes(4))[100:],
    ):
        transport.feed(data)
        times.append(time.monotonic_ns())
    a, b, c, d = peer.stamps
    assert a == b
    assert times[0] <= a <= times[1]
    assert times[2] <= c <= times[3] <= d <= times[4]


async def test_a_read_inside_a_read_has_a_time_of_its_own() -> None:
    times: list[int] = []

    def read_inside() -> None:
        times.append(time.monotonic_ns())
        other_transport.feed(encode(TEXT, "inside"))

    peer, other = Stamped(read_inside), Stamped()
    transport, other_transport = peer.open(), other.open()
    transport.feed(encode(TEXT, "a") + encode(TEXT, "b"))
    assert peer.stamps[0] == peer.stamps[1] <= times[0] <= other.stamps[0]


async def test_what_was_not_received_was_received_at_no_time() -> None:
    peer = Stamped()
    transport = peer.open()
    transport.feed(encode(TEXT, "a"))
    received = Message("a")
    assert received.received_ns == 0 != peer.stamps[0]
    with pytest.raises(AttributeError):
        received.received_ns = 5  # type: ignore[misc]


async def test_a_frame_larger_than_any_read() -> None:
    peer = Peer()
    transport = peer.open(max_message_size=3_000_000)
    payload = bytes(range(256)) * 10_000
    transport.feed(encode(BINARY, payload) + encode(TEXT, "after"))
    assert peer.got == [payload, "after"]


async def test_what_came_behind_the_handshake_is_read_two_turns_later() -> None:
    peer = Peer()
    peer.open(max_message_size=1 << 20)
    large = bytes(200_000)
    peer.session.feed_early(encode(TEXT, "a") + encode(BINARY, large) + encode(TEXT, "half")[:-1])
    await asyncio.sleep(0)
    assert peer.got == []
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert peer.got == ["a", large]
    assert peer.session.has_partial_message


async def test_what_came_behind_the_handshake_is_read_before_what_comes_next() -> None:
    peer = Peer()
    transport = peer.open()
    frames = encode(TEXT, "first") + encode(TEXT, "second")
    peer.session.feed_early(frames[:7])
    transport.feed(frames[7:])
    assert peer.got == ["first", "second"]


async def test_what_came_behind_the_handshake_is_read_when_the_transport_is_lost() -> None:
    peer = Peer()
    transport = peer.open()
    peer.session.feed_early(encode(TEXT, "a"))
    transport.lose()
    assert peer.got == ["a"]
    assert peer.state is State.CLOSED


async def test_a_length_is_a_claim_that_takes_no_memory() -> None:
    peer = Peer()
    transport = peer.open(max_message_size=1 << 30)
    head = encode(BINARY, b"", length=1 << 30, form=8)
    transport.feed(head)
    tracemalloc.start()
    try:
        transport.feed(b"x" * 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000


async def test_bytes_are_a_sign_of_life_before_they_are_a_frame() -> None:
    peer = Peer()
    transport = peer.open()
    assert peer.session.inbound_seen  # it has just opened
    peer.session.inbound_seen = False
    transport.feed(encode(TEXT, "x")[:1])
    assert peer.session.inbound_seen


async def test_a_client_masks_and_is_not_masked_to() -> None:
    peer = Peer()
    transport = peer.open(masking=True)
    transport.feed(encode(TEXT, "a", mask=False) + encode(PING, "p", mask=False))
    peer.session.write_ping(b"q")
    peer.flush()
    assert peer.got == ["a"]
    assert answers(transport) == [Wire(PONG, b"p", masked=True), Wire(PING, b"q", masked=True)]


async def test_pongs_and_unasked_ones() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(encode(PONG, "a") + encode(PONG))
    assert peer.pongs == [b"a", b""]
    peer.session.write_pong(b"alive")
    assert answers(transport) == [Wire(PONG, b"alive")]


# --- in parts ----------------------------------------------------------------------------------------------


def parts(peer: Peer) -> list[tuple[Data, bool]]:
    """The parts that are queued."""
    found = []
    while peer.queued:
        part = next_item(peer)
        assert isinstance(part, Part)
        assert not part.is_cut_off
        found.append((part.data, part.final))
    return found


def next_item(peer: Peer) -> Any:
    """The next item of a stream, which must not have to wait for it."""
    try:
        peer._recv_part().send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


async def test_a_frame_is_delivered_in_parts_while_it_arrives() -> None:
    peer = Peer(None)
    transport = peer.open()
    peer._start_stream()
    data = encode(TEXT, "aé€😀")
    head = len(data) - 10
    transport.feed(data[:head])
    assert parts(peer) == []
    got = []
    for at in range(head, len(data)):
        transport.feed(data[at : at + 1])
        got += parts(peer)
    assert [data for data, _ in got if data] == ["a", "é", "€", "😀"]
    assert [final for _, final in got] == [False] * (len(got) - 1) + [True]


async def test_a_large_frame_in_parts_takes_little_memory() -> None:
    size = 30_000_000
    block = bytes(60_000)
    peer = Peer(None)
    transport = peer.open(max_message_size=size)
    peer._start_stream()
    transport.feed(encode(BINARY, b"", length=size, form=8))
    total = 0
    tracemalloc.start()
    try:
        for _ in range(size // len(block)):
            transport.feed(block)
            total += sum(len(data) for data, _ in parts(peer))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == size
    assert peak < 10 * len(block)
    assert not peer.session.has_partial_message
    transport.feed(encode(TEXT, "whole again"))
    assert (await peer.recv()).as_text() == "whole again"  # type: ignore[union-attr]


async def test_text_is_judged_inside_a_frame_that_is_still_arriving() -> None:
    """Autobahn 6.4.3 and 6.4.4."""
    for streaming in (False, True):
        peer = Peer(None)
        transport = peer.open()
        if streaming:
            peer._start_stream()
        data = encode(TEXT, b"ok \xed\xa0\x80 and more")
        transport.feed(data[:-11])
        assert answers(transport) == []
        transport.feed(data[-11:-10])  # a surrogate cannot be, says its second byte
        assert closes_with(transport) == (1007, "text is not UTF-8")


class Lasting(Peer):
    """Goes on with another session."""

    def _on_lost(self, session: Any) -> None:
        self._lose()


async def test_a_stream_does_not_go_on_with_a_message_of_the_next_session() -> None:
    peer = Lasting(None)
    transport = peer.open()
    peer._start_stream()
    transport.feed(encode(TEXT, "begun", fin=False))
    assert parts(peer) == [("begun", False)]
    transport.lose()
    assert next_item(peer).is_cut_off
    transport = peer.open()
    transport.feed(encode(TEXT, "another", fin=False) + encode(CONTINUATION))
    assert next_item(peer).as_text() == "another"


async def test_a_stream_that_has_not_begun_gets_its_parts_from_the_next_session() -> None:
    peer = Lasting(None)
    transport = peer.open()
    peer._start_stream()
    transport.lose()
    transport = peer.open()
    transport.feed(encode(TEXT, "in", fin=False))
    transport.feed(encode(CONTINUATION, " parts"))
    assert parts(peer) == [("in", False), (" parts", True)]


async def test_what_is_skipped_is_judged_all_the_same() -> None:
    peer = Peer(None)
    transport = peer.open()
    number = peer._start_stream()
    transport.feed(encode(TEXT, "begun", fin=False))
    assert parts(peer) == [("begun", False)]
    peer._stop_stream(number)
    transport.feed(encode(CONTINUATION, "skipped", fin=False))
    assert peer.queued == 0
    transport.feed(encode(CONTINUATION, b"\xff", fin=False))
    assert closes_with(transport)[0] == 1007


# --- faults ------------------------------------------------------------------------------------------------

PACKED = {"codec": DeflateCodec}
FAULTS: dict[Fault, tuple[list[bytes], int, str]] = {
    Fault.BAD_RSV: ([encode(TEXT, rsv=2)], 1002, "reserved bits set that no extension has given a meaning"),
    Fault.BAD_OPCODE: ([encode(3)], 1002, "unknown opcode"),
    Fault.NOT_MASKED: ([encode(TEXT, mask=False)], 1002, "frame of a client is not masked"),
    Fault.MASKED: ([encode(TEXT)], 1002, "frame of a server is masked"),
    Fault.LONG_LENGTH: ([encode(TEXT, form=2)], 1002, "frame length not in its shortest form"),
    Fault.CONTROL_FRAGMENTED: ([encode(PING, fin=False)], 1002, "control frame in fragments"),
    Fault.CONTROL_TOO_LONG: ([encode(PING, bytes(126))], 1002, "control frame of more than 125 bytes"),
    Fault.UNEXPECTED_CONTINUATION: (
        [encode(CONTINUATION)],
        1002,
        "continuation frame without a message to continue",
    ),
    Fault.EXPECTED_CONTINUATION: (
        [encode(TEXT, fin=False), encode(TEXT)],
        1002,
        "new message inside an unfinished one",
    ),
    Fault.BAD_UTF8: ([encode(TEXT, b"\xff")], 1007, "text is not UTF-8"),
    Fault.TOO_LARGE: ([encode(TEXT, bytes(1001))], 1009, "message over 1000 bytes"),
    Fault.TOO_MANY_FRAGMENTS: (
        [encode(TEXT, fin=False)] + [encode(CONTINUATION, fin=False)] * 5,
        1008,
        "message in more than 5 fragments",
    ),
    Fault.BAD_COMPRESSION: ([encode(TEXT, b"\xff\xff", rsv=4)], 1007, "message does not inflate"),
    Fault.BAD_CLOSE: ([close_frame(1005)], 1002, "malformed close frame"),
    Fault.BAD_CLOSE_TEXT: ([close_frame(1000, b"\xff")], 1007, "malformed close frame"),
    Fault.RATE_EXCEEDED: ([encode(TEXT, "a"), encode(TEXT, "b")], 1008, "rate limit exceeded"),
    Fault.CALLBACK_FAILED: ([encode(TEXT, "fail")], 1011, "internal error"),
    Fault.READ_FAILED: ([encode(PONG, "fail")], 1011, "internal error"),
}


def test_every_fault_is_here() -> None:
    assert set(FAULTS) == set(Fault) - {Fault.NO_FAULT}


class Failing(Peer):
    """Fails where its application's callback or one of its own is called with "fail"."""

    def note(self, message: Any) -> None:
        super().note(message)
        if message.as_text() == "fail":
            raise LookupError("mine")

    def _on_pong(self, payload: bytes) -> None:
        raise LookupError("fabric's")


@pytest.mark.parametrize("fault", FAULTS)
async def test_how_each_fault_fails_the_connection(fault: Fault) -> None:
    frames, code, reason = FAULTS[fault]
    peer = Failing(Failing.note)
    options: dict[str, Any] = {"masking": fault is Fault.MASKED}
    if fault is Fault.BAD_COMPRESSION:
        options["codec"] = DeflateCodec()
    if fault is Fault.RATE_EXCEEDED:
        options["throttle"] = Throttle(RateGate(TokenBucket(0.001, 1)), "close", "close")
    transport = peer.open(**options)
    transport.feed(b"".join(frames) + encode(TEXT, "not read any more"))
    assert closes_with(transport) == (code, reason)
    assert "not read any more" not in peer.got
    closing = peer.session.closing
    assert (closing.began_by, closing.sent_code, closing.received_code) == ("local", code, 0)
    assert (closing.reason, closing.fault) == (reason, fault)
    assert peer.counters.receive_errors == 1
    assert transport.eof, "it hangs up, for what it sends"
    assert not transport.closing, "it has not read what is on its way, which would reset the connection"
    assert transport.reading
    assert peer.state is State.CLOSING
    in_callback = fault is Fault.CALLBACK_FAILED
    if fault in (Fault.CALLBACK_FAILED, Fault.READ_FAILED):
        assert [(str(error), where) for error, where in peer.failures] == [
            ("mine" if in_callback else "fabric's", in_callback)
        ]
        assert closing.cause is peer.failures[0][0]
    elif fault is Fault.BAD_UTF8:
        assert isinstance(closing.cause, UnicodeDecodeError)
    elif fault is not Fault.BAD_COMPRESSION:
        assert closing.cause is None
    transport.feed(encode(TEXT, "nor later") + close_frame(1000))
    assert answers(transport) == []
    transport.lose()
    assert peer.state is State.CLOSED


@pytest.mark.parametrize(
    ("frames", "oversize"),
    [
        ([encode(BINARY, b"", length=1001, form=2)], 1001),
        ([encode(BINARY, bytes(600), fin=False), encode(CONTINUATION, b"", length=401, form=2)], 1001),
        ([encode(BINARY, b"", length=(1 << 63) - 1, form=8)], (1 << 63) - 1),
        # More than a C integer holds, which is a number as any other to the peer.
        ([encode(BINARY, b"xy", fin=False), encode(CONTINUATION, b"", length=(1 << 63) - 1, form=8)], (1 << 63) + 1),
    ],
)
async def test_by_how_much_a_message_is_over_the_limit(frames: list[bytes], oversize: int) -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(b"".join(frames))
    assert closes_with(transport) == (1009, "message over 1000 bytes")
    assert peer.session.closing.oversize == oversize
    assert peer.failures == []


async def test_a_bomb_is_refused_while_it_inflates() -> None:
    peer = Peer()
    transport = peer.open(codec=DeflateCodec())
    transport.feed(encode(BINARY, deflated(bytes(10_000_000))[:900], rsv=4, fin=False))
    assert closes_with(transport)[0] == 1009
    assert peer.session.closing.oversize > LIMIT


async def test_compressed_messages_count_as_what_they_are() -> None:
    peer = Peer()
    transport = peer.open(codec=DeflateCodec())
    packed = deflated(b"a" * 900)
    transport.feed(encode(TEXT, packed[:4], rsv=4, fin=False) + encode(CONTINUATION, packed[4:]))
    assert peer.got == ["a" * 900]
    assert peer.bytes_received == 900
    assert peer.counters.decompression_bytes_in == len(packed)
    assert peer.counters.decompression_bytes_out == 900


async def test_what_was_good_is_answered_before_the_close_frame() -> None:
    peer = Peer(lambda peer, message: peer.send_nowait(message))
    transport = peer.open()
    transport.feed(encode(TEXT, "a") + encode(PING, "b") + encode(TEXT, "c") + encode(3))
    opcodes = [(frame.opcode, frame.payload) for frame in answers(transport)[:-1]]
    assert opcodes == [(TEXT, b"a"), (PONG, b"b"), (TEXT, b"c")]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("how", ["read", "lost"])
def test_what_is_to_stop_the_program_stops_the_loop_and_the_connection_ends(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], kind: type[BaseException], how: str
) -> None:
    """Whatever the transport does with what its protocol raises."""

    def stop(*_: Any) -> None:
        raise kind

    async def receive() -> None:
        peer = Peer(stop)
        transport = peer.open()
        if how == "read":
            transport.feed(encode(TEXT, "x"))
            assert closes_with(transport)[0] == 1011
        else:
            peer.session.feed_early(encode(TEXT, "x"))
            transport.lose()
            assert peer.state is State.CLOSED
        assert peer.failures == []
        await asyncio.sleep(0)
        pytest.fail("the loop goes on")

    with asyncio.Runner(loop_factory=loop_factory) as runner, pytest.raises(kind):
        runner.run(receive())


async def test_a_fault_while_closing_ends_it_without_another_close_frame() -> None:
    peer = Peer()
    transport = peer.open()
    peer.session.begin_close(4000, "bye")
    assert closes_with(transport) == (4000, "bye")
    transport.feed(encode(3))
    assert answers(transport) == []
    assert transport.aborted
    assert peer.session.closing.fault == Fault.NO_FAULT


async def test_a_secure_transport_is_closed_since_it_has_no_half_end() -> None:
    peer = Peer()
    transport = peer.open(secure=True)
    transport.feed(encode(3))
    assert transport.closing
    assert not transport.eof


# --- when the socket is not read ---------------------------------------------------------------------------


async def test_a_full_queue_stops_the_reading_and_half_a_queue_begins_it_again() -> None:
    peer = Peer(None, queue_limit=4)
    transport = peer.open()
    transport.feed(b"".join(encode(TEXT, str(number)) for number in range(6)))
    assert not transport.reading
    assert peer.session.is_reading_paused
    assert peer.queued == 6  # those of the read that were there
    for number in range(3):
        message = await peer.recv()
        assert message is not None
        assert message.as_text() == str(number)
        assert not transport.reading
    await peer.recv()
    assert transport.reading
    assert not peer.session.is_reading_paused


def compressed(*texts: str) -> bytes:
    return b"".join(encode(TEXT, deflated(text.encode()), rsv=4) for text in texts)


async def test_what_is_compressed_stays_so_while_the_queue_is_full() -> None:
    """A read may become a thousand times as much. What comes behind what is kept stays behind it."""
    peer = Peer(None, queue_limit=4)
    transport = peer.open(codec=DeflateCodec())
    transport.feed(compressed(*"012345") + encode(PING, "behind") + compressed("6"))
    assert peer.queued == 4
    assert not transport.reading
    transport.reading = True  # one that does not pause at once
    transport.feed(compressed(*"789"))
    transport.reading = False
    assert peer.queued == 4
    assert answers(transport) == []
    taken = [(await peer.recv()).as_text() for _ in range(2)]  # type: ignore[union-attr]
    assert peer.queued == 2
    await asyncio.sleep(0)
    assert (peer.queued, transport.reading) == (4, False)
    while len(taken) < 10:
        taken.append((await peer.recv()).as_text())  # type: ignore[union-attr]
        await asyncio.sleep(0)
    assert taken == list("0123456789")
    assert answers(transport) == [Wire(PONG, b"behind")]
    assert transport.reading
    transport.lose()


@pytest.mark.parametrize("how", ["loss", "close"])
async def test_what_is_kept_compressed_is_delivered_at_the_end(how: str) -> None:
    peer = Peer(None, queue_limit=2)
    transport = peer.open(codec=DeflateCodec())
    transport.feed(compressed(*"01234"))
    assert peer.queued == 2
    if how == "close":
        peer.session.begin_close(1000, "")
        await asyncio.sleep(0)
        assert peer.queued == 3  # the one that finds that there is no room
    transport.lose()
    assert peer.queued == (5 if how == "loss" else 3)


async def test_nothing_is_written_to_a_lost_transport_over_what_was_kept() -> None:
    """Its descriptor may be another's by then."""
    peer = Peer(lambda peer, message: peer.send_nowait(message))
    near, far = socket.socketpair()
    with near, far:
        transport = peer.open(kernel=near)
        peer.session.feed_early(encode(TEXT, "early") + encode(PING, "early") + close_frame(1000))
        transport.lose()
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            far.recv(1000)
        assert transport.output == b""


async def test_bytes_fill_the_queue_too() -> None:
    peer = Peer(None, queue_byte_limit=1000)
    transport = peer.open()
    transport.feed(encode(BINARY, bytes(499)) + encode(BINARY, bytes(500)))
    assert transport.reading
    transport.feed(encode(BINARY, bytes(1)))
    assert not transport.reading
    await peer.recv()
    assert not transport.reading
    await peer.recv()
    assert transport.reading


async def test_reading_does_not_begin_inside_the_delivery_of_a_read() -> None:
    """A transport that delivers at once what it holds would deliver it into the middle."""
    full = Peer(None, queue_limit=1)
    full_transport = full.open()
    full_transport.feed(encode(TEXT, "x"))
    reading = []

    def take(*_: Any) -> None:
        assert full._take_now() is not None
        reading.append(full_transport.reading)

    transport = Peer(take).open()
    transport.feed(encode(TEXT, "y"))
    assert reading == [False]
    await asyncio.sleep(0)
    assert full_transport.reading


@pytest.mark.parametrize("why", ["the queue is full", "it is over its rate"])
@in_fake_time
async def test_a_peer_that_has_left_is_read_to_its_end_although(why: str) -> None:
    near, far = socket.socketpair()
    with near, far:
        peer = Peer(None, queue_limit=1 if why == "the queue is full" else 1000)
        transport = peer.open(kernel=near)
        transport.feed(encode(TEXT, "1"))
        if why == "it is over its rate":
            peer.session.pause_for_rate()
        assert not transport.reading
        await asyncio.sleep(3.5)
        assert not transport.reading, "it is still there"
        far.shutdown(socket.SHUT_WR)
        await asyncio.sleep(1)
        assert transport.reading
        transport.feed(encode(TEXT, "2"))
        assert transport.reading, "what is left is no more than a socket's buffer"
        transport.lose()
    assert peer.queued == 2


@pytest.mark.parametrize("raising", [False, True])
async def test_an_item_stays_where_it_is_when_reading_cannot_begin_again(raising: bool) -> None:
    peer = Peer(None, queue_limit=1)
    transport = peer.open()
    transport.feed(encode(TEXT, "1"))

    def refuse() -> None:
        raise LookupError("the transport has a fault")

    if raising:
        transport.resume_reading = refuse  # type: ignore[method-assign]
        with pytest.raises(LookupError, match="has a fault"):
            await peer.recv()
        assert peer.queued == 1
        del transport.resume_reading
    message = await peer.recv()
    assert message is not None
    assert message.as_text() == "1"
    assert transport.reading


async def test_another_receiver_may_take_the_last_item_while_reading_begins_again() -> None:
    """Where the event loop writes to a log that it reads on, say, and the handler of the log receives."""
    peer = Peer(None, queue_limit=1)
    transport = peer.open()
    transport.feed(encode(TEXT, "1"))
    taken: list[Any] = []

    def take() -> None:
        del transport.resume_reading  # once
        transport.resume_reading()
        taken.append(peer._take_now())

    transport.resume_reading = take  # type: ignore[method-assign]
    task = asyncio.create_task(peer.recv())
    await asyncio.sleep(0)
    assert taken == [Message("1")]
    assert peer._is_awaited
    await in_loop(lambda: transport.feed(encode(TEXT, "2")))
    assert await task == Message("2")
    transport.feed(encode(TEXT, "3"))
    assert not transport.reading, "the queue holds as much as it says"
    assert peer._take_now() == Message("3")
    assert transport.reading


# --- finalizers --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def at_collection(number: int, function: Callable[[], Any]) -> Iterator[None]:
    """Inside it, garbage is collected at nearly every allocation, and in one of these `function` is called."""
    seen = 0

    def note(phase: str, _: Any) -> None:
        nonlocal seen
        seen += phase == "stop"
        if phase == "stop" and seen == number:
            function()

    before = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1, 1000, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(note)


@pytest.mark.parametrize("number", range(1, 9))
async def test_a_finalizer_that_lets_the_session_end_while_a_message_inflates(number: int) -> None:
    peer = Peer()
    transport = peer.open(codec=DeflateCodec(), max_message_size=1 << 20)
    text = random.Random(1).randbytes(40_000).hex()
    frame = encode(TEXT, deflated(text.encode()), rsv=4)
    with at_collection(number, transport.lose):
        transport.feed(frame)
    assert peer.got in ([], [text])


@pytest.mark.parametrize("number", range(1, 9))
async def test_a_finalizer_that_lets_more_of_a_message_be_read(number: int) -> None:
    peer = Peer(None)
    transport = peer.open()
    peer._start_stream()
    rest = encode(CONTINUATION, "b", fin=False) + encode(CONTINUATION, "c")
    frame = encode(TEXT, "a", fin=False)
    fed = False

    def feed() -> None:
        nonlocal fed
        fed = True
        transport.feed(rest)

    transport.protocol.get_buffer(-1)[: len(frame)] = frame
    updated, size = transport.protocol.buffer_updated, len(frame)
    with at_collection(number, feed):
        updated(size)
    if not fed:
        transport.feed(rest)
    parts = [await peer._recv_part() for _ in range(peer.queued)]
    assert [part.data for part in parts] == ["a", "b", "c"]


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("how", ["message", "large message", "parts", "broadcast"])
async def test_a_finalizer_that_closes_while_a_message_is_sent(how: str, number: int) -> None:
    peer = Peer(None)
    transport = peer.open(codec=DeflateCodec(own_takeover=False))
    session = peer.session
    peer._queue_now = lambda message, _: None
    sent = peer.messages_sent
    shared = Shared(Message("x" * 100), True, 0)
    with at_collection(number, lambda: session.begin_close(4000, "")):
        if how == "parts":
            peer._write_part(TEXT, b"x", False, True)
        elif how == "broadcast":
            shared.send_to([peer])
        else:
            peer.send_nowait("x" * (20_000 if how == "large message" else 100), compress=True)
    peer.flush()
    frames = [each.opcode for each in answers(transport)]
    assert CLOSE not in frames[:-1], "nothing follows a close frame"
    assert peer.messages_sent - sent == (0 if how == "parts" else frames.count(TEXT))


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("end", ["close", "loss"])
@pytest.mark.parametrize("frame", [close_frame(1000), encode(CONTINUATION, "x")], ids=["closed", "failed"])
async def test_a_finalizer_that_ends_it_while_the_peer_does(frame: bytes, end: str, number: int) -> None:
    peer = Peer(None)
    transport = peer.open()
    session = peer.session
    transport.protocol.get_buffer(-1)[: len(frame)] = frame
    updated, size = transport.protocol.buffer_updated, len(frame)
    with at_collection(number, transport.lose if end == "loss" else lambda: session.begin_close(4000, "")):
        updated(size)
    assert [each.opcode for each in answers(transport)] in ([CLOSE], [CLOSE] if end == "close" else [])
    assert peer.failures == []


# --- a handler that ends it --------------------------------------------------------------------------------

ENDS: dict[str, Callable[[Peer, FakeTransport], Any]] = {
    "close": lambda peer, _: peer.session.begin_close(4000, "enough"),
    "abort": lambda peer, _: peer.session.abort(),
    "loss": lambda _, transport: transport.lose(),
    "error": lambda *_: {}["missing"],
}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("received_by", ["callback", "task"])
async def test_whatever_a_handler_does_to_its_connection_the_rest_of_the_read_is_safe(
    how: str, received_by: str
) -> None:
    got = []

    def handle(peer: Peer, message: Any) -> None:
        got.append(message.as_text())
        if message.as_text() == "2":
            ENDS[how](peer, transport)

    peer = Peer(handle if received_by == "callback" else None)
    transport = peer.open()

    async def receive() -> None:
        async for message in peer:
            handle(peer, message)

    task = asyncio.create_task(receive()) if received_by == "task" else None
    await asyncio.sleep(0)
    frames = [encode(TEXT, str(number)) for number in range(1, 5)]
    await in_loop(lambda: transport.feed(b"".join(frames) + close_frame(1000)))
    assert got[:2] == ["1", "2"]
    transport.lose()
    if task is not None:
        await asyncio.wait([task])
        assert isinstance(task.exception(), KeyError) == (how == "error")
    assert peer.state is State.CLOSED


INSIDE = {
    "text": (encode(TEXT, "x" * 300), [(PONG, b"p")]),
    "ping": (encode(PING, "q"), [(PONG, b"q"), (PONG, b"p")]),
    "pong": (encode(PONG, "q"), [(PONG, b"p")]),
    "close": (close_frame(4000), [(CLOSE, b"\x0f\xa0")]),
}


@pytest.mark.parametrize("inside", INSIDE)
async def test_a_ping_stays_what_it_is_where_the_handler_before_it_lets_the_loop_run(inside: str) -> None:
    peer = Peer(None)
    transport = peer.open()
    frame, expected = INSIDE[inside]

    async def receive() -> None:
        async for message in peer:
            if message.as_text() == "first":
                transport.feed(frame)

    task = asyncio.create_task(receive())
    await asyncio.sleep(0)
    await in_loop(lambda: transport.feed(encode(TEXT, "first") + encode(PING, "p")))
    assert [(each.opcode, each.payload) for each in answers(transport)] == expected
    transport.lose()
    await asyncio.wait([task])
    assert peer.pongs == ([b"q"] if inside == "pong" else [])


async def test_a_transport_has_not_read_less_than_nothing() -> None:
    peer = Peer()
    transport = peer.open()
    transport.protocol.get_buffer(-1)
    with pytest.raises(RuntimeError, match="without get_buffer"):
        transport.protocol.buffer_updated(-1)
    transport.feed(encode(TEXT, "x"))
    assert peer.got == ["x"]
