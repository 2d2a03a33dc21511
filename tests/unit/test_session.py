"""fabric_ext.session: what it makes of bytes, and how it ends, on a transport that the test holds in its hand."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from fabric_ext.bucket import RateGate, TokenBucket
from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from fabric_ext.deflate import DeflateCodec
from fabric_ext.frames import Fault
from fabric_ext.protocol import State
from fabric_ext.session import Part
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
    decode_all,
    encode,
)

LIMIT = 1000
MAX_FRAGMENTS = 5
Data = str | bytes


class Peer(Connection):
    """A connection that notes what its session reports.

    Attributes:
        got: payloads, of a callback or of parts.
        counters: what its session counts in.
        failures: what `_on_failed` was told.
        pongs: payloads.
        session: the latest one.
    """

    def __init__(self, on_message: Any = "note", *, queue_limit: int = 1000, queue_byte_limit: int = 1 << 30) -> None:
        self.counters = Counters()
        self.got: list[Data] = []
        self.failures: list[tuple[BaseException, bool]] = []
        self.pongs: list[bytes] = []
        self.replaced = False
        super().__init__(
            asyncio.get_running_loop(),
            self.counters,
            queue_limit=queue_limit,
            queue_byte_limit=queue_byte_limit,
            on_message=Peer.note if on_message == "note" else on_message,
        )

    def note(self, message: Any) -> None:
        self.got.append(message.as_text() if message.is_text else message.as_bytes())

    def open(self, *, kernel: socket.socket | None = None, secure: bool = False, **options: Any) -> FakeTransport:
        options = {"max_message_size": LIMIT, "max_fragments": MAX_FRAGMENTS, "close_timeout": 5.0, **options}
        transport = FakeTransport(kernel, secure=secure).connect(self, **options)
        self.session: Any = self._session_now
        return transport

    def _on_pong(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def _on_failed(self, error: BaseException, in_callback: bool) -> None:
        self.failures.append((error, in_callback))

    def _is_followed(self, session: Any) -> bool:
        return self.replaced


def answers(transport: FakeTransport) -> list[Wire]:
    """The frames written since."""
    frames = decode_all(transport.output)
    transport.written.clear()
    return frames


def closes_with(transport: FakeTransport) -> tuple[int | None, str]:
    """Code and reason of the only frame written since, a close frame."""
    (frame,) = answers(transport)
    assert frame.opcode == CLOSE
    return frame.close_code, frame.close_reason


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


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
    peer.session._feed(encode(TEXT, "a") + encode(BINARY, large) + encode(TEXT, "half")[:-1])
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
    peer.session._feed(frames[:7])
    transport.feed(frames[7:])
    assert peer.got == ["first", "second"]


async def test_what_came_behind_the_handshake_is_read_when_the_transport_is_lost() -> None:
    peer = Peer()
    transport = peer.open()
    peer.session._feed(encode(TEXT, "a"))
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
    peer.session._write_ping(b"q")
    peer.flush()
    assert peer.got == ["a"]
    assert answers(transport) == [Wire(PONG, b"p", masked=True), Wire(PING, b"q", masked=True)]


async def test_pongs_and_unasked_ones() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(encode(PONG, "a") + encode(PONG))
    assert peer.pongs == [b"a", b""]
    peer.session._write_pong(b"alive")
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
            peer.session._feed(encode(TEXT, "x"))
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
    peer.session._close(4000, "bye")
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


# --- the close handshake (RFC 6455 §7) ---------------------------------------------------------------------


@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4000, "bye"), (3000, "é" * 60), (1005, "")])
async def test_our_close(client: bool, code: int, reason: str) -> None:
    peer = Peer()
    transport = peer.open(masking=client)
    peer.session._close(code, reason)
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
    peer.session._close(4000, "first")
    peer.session._close(4001, "second")
    assert closes_with(transport) == (4000, "first")
    transport.lose()
    peer.session._close(4002, "third")
    assert answers(transport) == []


async def test_pings_are_answered_while_we_wait_for_their_close() -> None:
    peer = Peer()
    transport = peer.open()
    peer.session._close(1000, "")
    answers(transport)
    transport.feed(encode(PING, "still there?"))
    assert answers(transport) == [Wire(PONG, b"still there?")]


async def test_a_close_lets_what_was_not_read_come() -> None:
    """The answer stands behind it."""
    peer = Peer(None, queue_limit=2)
    transport = peer.open()
    transport.feed(encode(TEXT, "1") + encode(TEXT, "2"))
    assert not transport.reading
    peer.session._close(1000, "")
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
    peer.session._abort()
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
    transport.protocol._write_ping(b"waits")
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
    peer.session._abort(first)
    peer.session._abort(LookupError("another reason"))
    assert transport.aborted
    assert peer.session.abort_cause is first


# --- how long it may take ----------------------------------------------------------------------------------


@in_fake_time
async def test_a_peer_that_does_not_answer_is_dropped_after_close_timeout() -> None:
    peer = Peer()
    transport = peer.open()
    peer.session._close(1000, "")
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
    peer.session._close(1000, "")
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
async def test_no_timer_outlives_the_transport() -> None:
    peer = Peer(None, queue_limit=1)
    transport = peer.open()
    transport.feed(encode(TEXT, "x"))
    peer.session._close(1000, "")
    transport.lose()
    handles = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
    assert handles == []


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


@in_fake_time
async def test_a_peer_that_has_left_is_read_to_its_end_though_the_queue_is_full() -> None:
    near, far = socket.socketpair()
    with near, far:
        peer = Peer(None, queue_limit=1)
        transport = peer.open(kernel=near)
        transport.feed(encode(TEXT, "1"))
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


# --- a handler that ends it --------------------------------------------------------------------------------

ENDS: dict[str, Callable[[Peer, FakeTransport], Any]] = {
    "close": lambda peer, _: peer.session._close(4000, "enough"),
    "abort": lambda peer, _: peer.session._abort(),
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
