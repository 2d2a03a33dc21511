"""fabric_ext.plain_connection: str and bytes, frames kept apart, and who waits for what."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from fabric_ext.deflate import DeflateCodec
from fabric_ext.frames import Fault
from fabric_ext.plain_connection import Fragments, PlainConnection, broadcast
from fabric_ext.session_user import Part
from support.fake_transport import FakeTransport, in_loop
from support.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Wire, close_frame, decode_all, encode


class Lost(ConnectionError):
    pass


class Peer(PlainConnection):
    """Notes what it is told; `quiet` says how its iteration ends."""

    def __init__(self, *, high: int | None = 16, low: int = 4, write_limit: int = 100, max_fragments: int = 50) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop, high=high, low=low, write_limit=write_limit, max_fragments=max_fragments)
        self.told: list[str] = []
        self.faults: list[tuple[Any, ...]] = []
        self.answer: Any = None
        self.quiet = False
        self.session: Any = None

    def open(self, **options: Any) -> FakeTransport:
        transport = FakeTransport().connect(self, **{"frames_apart": True, "cork": False, **options})
        self.session = self._session_now
        return transport

    def _on_closing(self) -> None:
        self.told.append("closing")

    def _on_lost(self, session: Any) -> None:
        self._finish_with(Lost("over"), self.quiet)

    def _on_too_many_fragments(self) -> None:
        self.told.append("too many")
        self.session.fail_connection(1009, "too many")

    def _explain(self, fault: int, length: int, before: int, cause: Any) -> Any:
        self.faults.append((Fault(fault), length, before, cause))
        return self.answer

    def _concurrent(self, method: str) -> Exception:
        return RuntimeError(f"not {method} now")

    async def _recv_text(self) -> str:
        return (await self.recv(False)).decode()

    async def _send_later(self, message: Any, text: bool | None) -> None:
        self.told.append(f"later {message!r} {text}")

    async def _drain(self) -> None:
        self.told.append("drain")


def sent(transport: FakeTransport) -> list[Wire]:
    frames = decode_all(transport.output)
    transport.written.clear()
    return frames


def pieces(*texts: str, opcode: int = TEXT) -> list[bytes]:
    """The frames of one message."""
    last = len(texts) - 1
    return [encode(CONTINUATION if i else opcode, text, fin=i == last) for i, text in enumerate(texts)]


async def waiting(peer: Peer, **options: Any) -> asyncio.Task[Any]:
    """A task that waits in recv()."""
    task = asyncio.ensure_future(peer.recv(**options))
    await asyncio.sleep(0)
    assert peer._is_awaited
    return task


async def stream(peer: Peer, got: list[Any]) -> None:
    """Take one message frame by frame."""
    peer._open_stream()
    peer._streaming = True
    while True:
        item = await peer._recv_item()
        got.append(item.data if isinstance(item, Part) else item)
        if not isinstance(item, Part) or item.final:
            break
    peer._streaming = False


# --- receiving ---------------------------------------------------------------------------------------------


async def test_messages_are_str_and_bytes() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(encode(TEXT, "é") + encode(BINARY, b"\xff") + encode(TEXT, "") + encode(TEXT, "é"))
    assert [await peer.recv(), await peer.recv(), await peer.recv()] == ["é", b"\xff", ""]
    assert await peer.recv(False) == "é".encode()
    transport.feed(encode(BINARY, "é".encode()) + encode(BINARY, b"x"))
    assert await peer.recv(True) == "é"
    assert await peer.recv(False) == b"x"


@pytest.mark.parametrize("cut", [1, 5, 100])
async def test_a_message_in_several_frames_is_one(cut: int) -> None:
    peer = Peer()
    transport = peer.open()
    wire = b"".join([*pieces("a", "", "é" * 80), *pieces("x", "y", opcode=BINARY), encode(TEXT, "z" * 300)])
    for at in range(0, len(wire), cut):
        transport.feed(wire[at : at + cut])
    assert [await peer.recv() for _ in range(3)] == ["a" + "é" * 80, b"xy", "z" * 300]


@pytest.mark.parametrize("cut", [1, 7, 1000])
async def test_its_frames_can_be_taken_one_by_one_when_all_have_come(cut: int) -> None:
    peer = Peer()
    transport = peer.open()
    wire = b"".join([*pieces("one", "", "two" * 50), *pieces("a", "b", opcode=BINARY)])
    for at in range(0, len(wire), cut):
        transport.feed(wire[at : at + cut])
    first, second = await peer._recv_item(), await peer._recv_item()
    assert isinstance(first, Fragments)
    assert first.parts == ["one", "", "two" * 50]
    assert second.parts == [b"a", b"b"]


async def test_a_compressed_message_keeps_its_frames_too() -> None:
    sender = DeflateCodec()
    packed = sender.encode(b"abc" * 100)
    peer = Peer()
    transport = peer.open(codec=DeflateCodec())
    transport.feed(encode(TEXT, packed[:5], rsv=4, fin=False) + encode(CONTINUATION, packed[5:]))
    transport.feed(encode(TEXT, sender.encode(b"whole"), rsv=4))
    item = await peer._recv_item()
    assert len(item.parts) == 2
    assert "".join(item.parts) == "abc" * 100
    assert await peer.recv() == "whole"


async def test_a_stream_gets_frames_as_they_come() -> None:
    peer = Peer()
    transport = peer.open()
    got: list[Any] = []
    task = asyncio.ensure_future(stream(peer, got))
    await asyncio.sleep(0)
    frames = pieces("a", "b" * 300, "c")
    await in_loop(lambda: transport.feed(frames[0]))
    assert got == ["a"]
    await in_loop(lambda: transport.feed(frames[1][:100]))
    assert got == ["a"], "a frame is whole"
    await in_loop(lambda: transport.feed(frames[1][100:]))
    assert got == ["a", "b" * 300]
    transport.feed(frames[2] + encode(TEXT, "next"))
    await task
    assert got == ["a", "b" * 300, "c"]
    assert await peer.recv() == "next"


async def test_a_stream_ends_with_its_message() -> None:
    peer = Peer()
    transport = peer.open()
    got: list[Any] = []
    task = asyncio.ensure_future(stream(peer, got))
    await asyncio.sleep(0)
    transport.feed(b"".join([encode(TEXT, "whole"), *pieces("a", "b")]))
    await task
    assert got == ["whole"]
    assert await peer.recv() == "ab"


async def test_a_stream_takes_up_a_message_that_has_begun() -> None:
    peer = Peer()
    transport = peer.open()
    frames = pieces("a", "b", "c")
    transport.feed(frames[0] + frames[1])
    got: list[Any] = []
    task = asyncio.ensure_future(stream(peer, got))
    await asyncio.sleep(0)
    assert got == ["a", "b"]
    transport.feed(frames[2])
    await task
    assert got == ["a", "b", "c"]


@pytest.mark.parametrize("whole", [False, True])
async def test_a_stream_that_is_given_up_before_its_first_frame_loses_nothing(whole: bool) -> None:
    peer = Peer()
    transport = peer.open()
    frames = pieces("a", "b", "c")
    peer._open_stream()
    transport.feed(b"".join(frames if whole else frames[:2]))
    peer._close_stream()
    if not whole:
        transport.feed(frames[2])
    transport.feed(encode(TEXT, "next"))
    assert [await peer.recv(), await peer.recv()] == ["abc", "next"]


async def test_the_next_message_without_an_iterator() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(b"".join(pieces("a", "b")))
    assert await anext(peer) == "ab"


async def test_nobody_else_receives_while_a_stream_is_open() -> None:
    peer = Peer()
    transport = peer.open()
    peer._open_stream()
    peer._streaming = True
    transport.feed(encode(TEXT, "x"))
    for receiving in (peer.recv(), peer.recv(False), anext(aiter(peer))):
        with pytest.raises(RuntimeError, match="not recv now"):
            await receiving


async def test_two_tasks_cannot_receive() -> None:
    peer = Peer()
    transport = peer.open()
    task = await waiting(peer)
    with pytest.raises(RuntimeError, match="not recv now"):
        await peer.recv()
    transport.feed(encode(TEXT, "x"))
    assert await task == "x"


async def test_a_cancelled_recv_loses_nothing() -> None:
    peer = Peer()
    transport = peer.open()
    task = await waiting(peer)
    frames = pieces("a", "b")
    transport.feed(frames[0])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    transport.feed(frames[1])
    assert await peer.recv() == "ab"


async def test_a_waiting_task_is_resumed_once_for_what_one_read_brings() -> None:
    peer = Peer()
    transport = peer.open()
    seen: list[tuple[str, int]] = []

    async def receive() -> None:
        async for message in peer:
            seen.append((str(message), peer.queued))

    task = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    await in_loop(lambda: transport.feed(b"".join(encode(TEXT, str(i)) for i in range(5))))
    assert seen == [(str(i), 4 - i) for i in range(5)]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


# --- how it ends -------------------------------------------------------------------------------------------


async def test_what_was_received_comes_before_the_end_which_is_raised_each_time() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(encode(TEXT, "last") + pieces("cut", "off")[0])
    transport.lose()
    assert peer._phase == 3
    assert await peer.recv() == "last"
    for _ in range(2):
        with pytest.raises(Lost, match="over"):
            await peer.recv()
    with pytest.raises(Lost, match="over"):
        await peer._recv_item()


@pytest.mark.parametrize("quiet", [False, True])
async def test_iteration_ends_quietly_or_not(quiet: bool) -> None:
    peer = Peer()
    peer.quiet = quiet
    transport = peer.open()
    transport.feed(encode(TEXT, "a"))
    transport.lose()
    got = []
    async with contextlib.aclosing(aiter(peer)) as messages:
        with contextlib.nullcontext() if quiet else pytest.raises(Lost, match="over"):
            async for message in messages:
                got.append(message)
    assert got == ["a"]
    with pytest.raises(Lost, match="over"):
        await peer.recv()


async def test_both_close_frames_are_told_with_their_reasons() -> None:
    peer = Peer()
    transport = peer.open()
    peer.session.begin_close(3000, "mine")
    transport.feed(close_frame(4000, "yours"))
    closing = peer.session.closing
    assert (closing.sent_code, closing.sent_reason, closing.received_code, closing.received_reason) == (
        3000,
        "mine",
        4000,
        "yours",
    )
    assert peer.told == ["closing"]
    assert peer._phase == 2


async def test_the_echo_of_a_close_frame_has_its_reason() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(close_frame(1001, "bye"))
    closing = peer.session.closing
    assert (closing.sent_code, closing.sent_reason, closing.received_reason) == (1001, "bye", "bye")


async def test_failing_says_why_and_reads_no_more() -> None:
    peer = Peer()
    transport = peer.open()
    error = ValueError("why")
    peer.session.fail_connection(1011, "because", error)
    [frame] = sent(transport)
    assert (frame.opcode, frame.close_code, frame.close_reason) == (CLOSE, 1011, "because")
    assert transport.eof
    transport.feed(encode(TEXT, "late") + close_frame())
    assert peer.queued == 0
    closing = peer.session.closing
    assert (closing.sent_code, closing.received_code, closing.cause) == (1011, 0, error)
    peer.session.fail_connection(1002, "again")
    assert sent(transport) == []


async def test_what_the_event_loop_said_of_the_end_is_kept() -> None:
    peer = Peer()
    transport = peer.open()
    session, error = peer.session, ConnectionResetError("reset")
    assert session.lost_error is None
    transport.lose(error)
    assert session.lost_error is error


async def test_a_fault_is_explained_by_the_connection() -> None:
    peer = Peer()
    cause = ValueError("mine")
    peer.answer = (3003, "so there", cause)
    transport = peer.open()
    transport.feed(encode(TEXT, b"\xff\xfe"))
    [(fault, length, before, error)] = peer.faults
    assert (fault, length, before) == (Fault.BAD_UTF8, 2, 0)
    assert isinstance(error, UnicodeDecodeError)
    [frame] = sent(transport)
    assert (frame.close_code, frame.close_reason) == (3003, "so there")
    assert peer.session.closing.cause is cause


async def test_a_fault_that_it_does_not_explain_is_said_as_ever() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(encode(3, b""))
    assert [frame.close_code for frame in sent(transport)] == [1002]


# --- limits ------------------------------------------------------------------------------------------------


async def test_a_frame_has_a_limit_of_its_own() -> None:
    for size in (100, 1000):
        peer = Peer()
        transport = peer.open(max_message_size=5 * size, max_frame_size=size)
        transport.feed(b"".join(pieces("x" * size, "y" * size, "z")))
        assert len(await peer.recv()) == 2 * size + 1
        transport.feed(encode(TEXT, "x", fin=False) + encode(CONTINUATION, "x" * (size + 1)))
        assert peer.faults == [(Fault.TOO_LARGE, size + 1, 1, None)]


async def test_the_limit_of_a_frame_holds_for_what_it_inflates_to() -> None:
    sender = DeflateCodec()
    peer = Peer()
    transport = peer.open(codec=DeflateCodec(), max_message_size=10_000, max_frame_size=1000)
    transport.feed(encode(TEXT, sender.encode(b"x" * 1000), rsv=4))
    assert len(await peer.recv()) == 1000
    transport.feed(encode(TEXT, sender.encode(b"x" * 1001), rsv=4))
    assert [fault for fault, *_ in peer.faults] == [Fault.TOO_LARGE]


async def test_a_message_has_so_many_frames_at_most() -> None:
    peer = Peer(max_fragments=3, high=None)
    transport = peer.open()
    transport.feed(b"".join(pieces("a", "b", "c")) + b"".join(pieces("a", "b", "c", "d")))
    assert await peer.recv() == "abc"
    assert peer.told == []
    transport.feed(b"".join(pieces("1", "2", "3", "4", "5")))
    assert peer.told == ["too many", "closing"]


async def test_reading_stops_above_the_high_water_mark_and_goes_on_at_the_low_one() -> None:
    peer = Peer(high=4, low=1)
    transport = peer.open()
    transport.feed(b"".join(encode(TEXT, str(i)) for i in range(4)))
    assert transport.reading
    transport.feed(encode(TEXT, "4"))
    assert not transport.reading
    for left in (4, 3, 2):
        await peer.recv()
        assert (peer.queued, transport.reading) == (left, False)
    await peer.recv()
    assert transport.reading


async def test_each_frame_of_a_message_counts() -> None:
    peer = Peer(high=3, low=0)
    transport = peer.open()
    transport.feed(b"".join(pieces("a", "b", "c", "d")))
    assert not transport.reading
    assert await peer.recv() == "abcd"
    assert transport.reading


async def test_a_message_of_more_frames_than_the_queue_holds_can_be_received() -> None:
    peer = Peer(high=2, low=1)
    transport = peer.open()
    frames = pieces("a", "b", "c", "d", "e", "f")
    for frame in frames[:4]:
        transport.feed(frame)
    assert not transport.reading
    task = await waiting(peer)
    assert transport.reading
    for frame in frames[3:]:  # the third was the last that was read
        assert transport.reading
        transport.feed(frame)
    assert await task == "abcdef"
    assert transport.reading


async def test_without_limits_reading_never_stops() -> None:
    peer = Peer(high=None)
    transport = peer.open()
    transport.feed(b"".join(encode(TEXT, str(i)) for i in range(100)))
    assert transport.reading
    assert peer.queued == 100


async def test_what_comes_while_closing_does_not_fill_the_queue_for_ever() -> None:
    peer = Peer(high=2, low=1)
    transport = peer.open()
    peer.session.begin_close(1000, "")
    for i in range(10):
        transport.feed(encode(TEXT, str(i)))
    assert peer.queued == 3
    assert transport.reading, "the peer's close frame stands behind"


# --- sending -----------------------------------------------------------------------------------------------


async def test_messages_go_out_by_type_or_as_said() -> None:
    peer = Peer()
    transport = peer.open()
    await peer.send("é")
    await peer.send(b"\xff")
    await peer.send(bytearray(b"a"))
    await peer.send(memoryview(b"abcd")[::2])
    await peer.send("é", text=False)
    await peer.send(b"a", text=True)
    assert sent(transport) == [
        Wire(TEXT, "é".encode()),
        Wire(BINARY, b"\xff"),
        Wire(BINARY, b"a"),
        Wire(BINARY, b"ac"),
        Wire(BINARY, "é".encode()),
        Wire(TEXT, b"a"),
    ]


async def test_it_begins_when_it_is_awaited() -> None:
    peer = Peer()
    transport = peer.open()
    sending = peer.send("x")
    assert sent(transport) == []
    await sending
    assert sent(transport) == [Wire(TEXT, b"x")]
    with pytest.warns(RuntimeWarning, match="never awaited"):
        peer.send("y")


async def test_what_is_no_message_is_for_the_class_above() -> None:
    peer = Peer()
    transport = peer.open()
    await peer.send(["a", "b"])
    await peer.send(None, text=True)  # type: ignore[arg-type]
    assert peer.told == ["later ['a', 'b'] None", "later None True"]
    assert sent(transport) == []
    with pytest.raises(UnicodeEncodeError):
        await peer.send("\ud800")


async def test_a_message_in_frames_leaves_them_as_they_come_and_others_wait() -> None:
    peer = Peer()
    transport = peer.open()
    peer._write_part(TEXT, b"a", False)
    assert sent(transport) == [Wire(TEXT, b"a", fin=False)]
    await peer.send("other")
    assert peer.told == ["later 'other' None"]
    with pytest.raises(RuntimeError, match="in parts"):
        peer._write("broadcast", None)
    peer._write_part(CONTINUATION, b"", True)
    peer._end_parts()
    assert sent(transport) == [Wire(CONTINUATION, b"")]
    await peer.send("next")
    assert sent(transport) == [Wire(TEXT, b"next")]


async def test_a_sender_waits_while_the_transport_holds_much() -> None:
    peer = Peer(write_limit=100)
    transport = peer.open()
    transport.keeps = True
    await peer.send("x" * 50)
    assert peer.told == []
    assert not peer._is_congested
    await peer.send("y" * 50)
    assert peer.told == ["drain"]
    assert peer._is_congested
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    peer._writable_waiter = waiter
    transport.release()
    await waiter
    assert not peer._is_congested
    assert [len(frame.payload) for frame in sent(transport)] == [50, 50]


async def test_what_is_sent_after_the_end_is_for_the_class_above() -> None:
    peer = Peer()
    transport = peer.open()
    transport.feed(close_frame())
    await peer.send("closing")
    transport.lose()
    await peer.send("closed")
    assert peer.told == ["closing", "later 'closing' None", "later 'closed' None"]
    with pytest.raises(RuntimeError, match="not connected"):
        peer._write("x", None)


async def test_a_broadcast_goes_to_the_open_ones_and_tells_of_the_others() -> None:
    peers = [Peer() for _ in range(6)]
    options: list[dict[str, Any]] = [
        {},
        {"codec": DeflateCodec()},
        {"codec": DeflateCodec()},
        {"masking": True},
        {},
        {},
    ]
    transports = [peer.open(**each) for peer, each in zip(peers, options, strict=True)]
    peers[4]._write_part(TEXT, b"a", False)
    transports[5].lose()
    text = "hello " * 20
    assert broadcast(peers, text, None) == [(peers[4], None)]
    frames = [decode_all(transport.output)[-1] for transport in transports[:4]]
    assert [frame.payload for frame in (frames[0], frames[3])] == [text.encode()] * 2
    assert frames[1].payload == frames[2].payload
    assert DeflateCodec().decode(frames[1].payload, limit=1000) == text.encode()
    for message, as_text, opcode in (
        ("é", False, BINARY),
        (bytearray(b"a"), True, TEXT),
        (memoryview(b"a"), None, BINARY),
    ):
        broadcast(peers[:1], message, as_text)
        assert decode_all(transports[0].output)[-1].opcode == opcode
    error = OSError("gone")
    transports[0].write_error = error
    assert broadcast(peers[:2], "x", None) == [(peers[0], error)]
    with pytest.raises(TypeError):
        broadcast([None], "x", None)  # type: ignore[type-var]


@pytest.mark.parametrize("end", ["close", "loss"])
async def test_what_ends_the_connection_while_it_becomes_bytes_is_sent_by_nobody(end: str) -> None:
    peer = Peer()
    transport = peer.open()

    class Ends(bytearray):
        def __bytes__(self) -> bytes:
            if end == "loss":
                transport.lose()
            else:
                peer.session.begin_close(1000, "")
            return b"data"

    await peer.send(Ends())
    assert [frame.opcode for frame in sent(transport)] == ([CLOSE] if end == "close" else [])
    assert any(each.startswith("later") for each in peer.told)


@pytest.mark.parametrize("masking", [False, True])
async def test_a_broadcast_that_ends_a_connection_while_it_becomes_bytes_goes_to_the_others(masking: bool) -> None:
    peers = [Peer() for _ in range(2)]
    transports = [peer.open(masking=masking) for peer in peers]

    class Ends(bytearray):
        def __bytes__(self) -> bytes:
            if not transports[0].closing:
                transports[0].lose()
            return b"data"

    assert broadcast(peers, Ends(), None) == []
    assert sent(transports[0]) == []
    assert [frame.payload for frame in sent(transports[1])] == [b"data"]


async def test_another_receiver_may_take_the_last_item_while_reading_begins_again() -> None:
    peer = Peer(high=0, low=0)
    transport = peer.open()
    transport.feed(encode(TEXT, "1"))
    assert not transport.reading
    taken: list[Any] = []

    def take() -> None:
        del transport.resume_reading  # once
        transport.resume_reading()
        other = peer.recv()
        with pytest.raises(StopIteration) as stop:
            other.send(None)
        taken.append(stop.value.value)

    transport.resume_reading = take  # type: ignore[method-assign]
    task = asyncio.ensure_future(peer.recv())
    await asyncio.sleep(0)
    assert taken == ["1"]
    await in_loop(lambda: transport.feed(encode(TEXT, "2")))
    assert await task == "2"


async def test_another_thread_is_refused() -> None:
    peer = Peer()
    transport = peer.open()
    errors: list[BaseException] = []

    def foreign() -> None:
        try:
            peer.send("x").send(None)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=foreign)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert ["another thread" in str(error) for error in errors] == [True]
    assert sent(transport) == []


async def test_pings_are_answered_behind_what_answers_the_messages_before_them() -> None:
    peer = Peer()
    transport = peer.open()

    async def echo() -> None:
        async for message in peer:
            await peer.send(message)

    task = asyncio.ensure_future(echo())
    await asyncio.sleep(0)
    await in_loop(lambda: transport.feed(encode(TEXT, "a") + encode(PING, b"p") + encode(TEXT, "b")))
    assert [(frame.opcode, frame.payload) for frame in sent(transport)] == [(TEXT, b"a"), (PONG, b"p"), (TEXT, b"b")]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
