"""fabric_ext.connection: `send` and `recv` as coroutines, the outbox, and what outlives a session."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from fabric.error import InvalidState, Utf8Error
from fabric.message import Message
from fabric_ext.connection import Connection, Send
from fabric_ext.counters import Counters
from fabric_ext.protocol import State
from fabric_ext.receive_queue import Recv
from support.fake_transport import FakeTransport, in_loop
from support.frames import BINARY, CLOSE, CONTINUATION, TEXT, decode_all, encode


class Peer(Connection):
    """Keeps what cannot be written at once, as far as `room` goes, and notes what it is told."""

    def __init__(self, *, lasting: bool = False) -> None:
        super().__init__(asyncio.get_running_loop(), Counters(), queue_limit=100, queue_byte_limit=1 << 20)
        self.lasting = lasting
        self.told: list[str] = []
        self.room: asyncio.Future[None] | None = None

    async def _send_later(self, message: Any, compress: bool | None) -> None:
        if self.room is not None:
            await self.room
        self._outbox_push(Message(message), compress)
        self._flush_outbox()

    def _queue_now(self, message: Any, compress: bool | None) -> None:
        self._outbox_push(Message(message), compress)

    def _on_lost(self, session: Any) -> None:
        self.told.append("lost")
        if self.lasting:
            self._lose()
        else:
            self._finish()

    def _on_writable(self) -> None:
        self.told.append("writable")

    def _on_taken_back(self, message: Message) -> None:
        self.told.append(f"taken back {message.as_text()}")


class Backpressure:
    def __init__(self) -> None:
        self.released: list[int] = []

    def release(self, size: int) -> None:
        self.released.append(size)


def connect(peer: Peer, **options: Any) -> FakeTransport:
    return FakeTransport().connect(peer, cork=False, **options)


def sent(transport: FakeTransport) -> list[bytes]:
    return [frame.payload for frame in decode_all(transport.output)]


@pytest.fixture
def strict() -> Iterator[list[warnings.WarningMessage]]:
    """The warnings of the test, which are not raised."""
    with warnings.catch_warnings(record=True, action="always") as found:
        yield found


# --- what send() returns -----------------------------------------------------------------------------------


async def test_it_begins_when_it_is_awaited() -> None:
    peer = Peer()
    transport = connect(peer)
    first, second = peer.send("a"), peer.send("b")
    assert sent(transport) == []
    await second
    await first
    assert sent(transport) == [b"b", b"a"]


async def test_one_that_is_never_awaited_sends_nothing_and_warns(strict: list[warnings.WarningMessage]) -> None:
    peer = Peer()
    transport = connect(peer)
    peer.send("lost")
    gc.collect()
    assert [(warning.category, str(warning.message)) for warning in strict] == [
        (RuntimeWarning, "send() was never awaited: nothing was sent")
    ]
    assert sent(transport) == []
    await peer.send("fine")
    peer.send("given up").close()
    assert len(strict) == 1


async def test_an_exception_that_is_on_its_way_survives_the_warning(strict: list[warnings.WarningMessage]) -> None:
    peer = Peer()
    connect(peer)
    nothing: dict[str, str] = {}
    with pytest.raises(KeyError, match="mine"):
        (peer.send("x"), nothing["mine"])  # on the stack of what raises, and gone with it
    assert len(strict) == 1


async def test_it_is_awaited_once() -> None:
    peer = Peer()
    transport = connect(peer)
    sending = peer.send("a")
    await sending
    with pytest.raises(RuntimeError, match=r"this send\(\) has already been awaited"):
        await sending
    assert sent(transport) == [b"a"]


def by_thread(sending: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    return asyncio.ensure_future(asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(sending, loop).result(10)))


async def in_group(sending: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(sending)


TAKERS: dict[str, Callable[[Coroutine[Any, Any, None]], Any]] = {
    "await": lambda sending: sending,
    "create_task": asyncio.create_task,
    "ensure_future": asyncio.ensure_future,
    "gather": asyncio.gather,
    "wait_for": lambda sending: asyncio.wait_for(sending, 10),
    "shield": asyncio.shield,
    "a task group": in_group,
    "run_coroutine_threadsafe": by_thread,
}


@pytest.mark.parametrize("by", TAKERS)
@pytest.mark.parametrize("blocked", [False, True])
async def test_everything_that_takes_a_coroutine_takes_it(by: str, blocked: bool) -> None:
    peer = Peer()
    transport = connect(peer)
    if blocked:
        transport.protocol.pause_writing()
    sending = peer.send("x")
    assert inspect.isawaitable(sending)
    assert asyncio.iscoroutine(sending)
    await TAKERS[by](sending)
    if blocked:
        transport.protocol.resume_writing()
        await asyncio.sleep(0)
    assert sent(transport) == [b"x"]


async def test_a_cancelled_task_gives_up_what_send_waits_for() -> None:
    peer = Peer()
    transport = connect(peer)
    transport.protocol.pause_writing()
    peer.room = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(peer.send("x"))
    await asyncio.sleep(0)
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError, match="why"):
        await task
    assert peer.room.cancelled()
    transport.protocol.resume_writing()
    await asyncio.sleep(0)
    assert sent(transport) == []


async def test_a_task_that_is_cancelled_before_its_first_step_sends_nothing() -> None:
    peer = Peer()
    transport = connect(peer)
    task = asyncio.create_task(peer.send("x"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sent(transport) == []


async def test_what_goes_wrong_later_is_raised_by_it() -> None:
    peer = Peer()
    connect(peer).protocol.pause_writing()
    with pytest.raises(TypeError):
        await peer.send(object())
    sending = peer.send("x")
    with pytest.raises(LookupError, match="thrown"):
        sending.throw(LookupError("thrown"))


def test_nobody_else_makes_one() -> None:
    for kind in (Send, Recv):
        with pytest.raises(TypeError, match="is made by"):
            kind().send(None)


# --- what may be sent --------------------------------------------------------------------------------------


async def test_text_binary_and_messages() -> None:
    peer = Peer()
    transport = connect(peer)
    for message in ("é", b"b", bytearray(b"c"), memoryview(b"xdx")[1:2], Message("e"), Message(b"f")):
        await peer.send(message)
        peer.send_nowait(message)
    kinds = [(frame.opcode, frame.payload) for frame in decode_all(transport.output)]
    expected = [(TEXT, "é".encode()), (BINARY, b"b"), (BINARY, b"c"), (BINARY, b"d"), (TEXT, b"e"), (BINARY, b"f")]
    assert kinds == [each for each in expected for _ in range(2)]
    assert (peer.messages_sent, peer.bytes_sent) == (12, 14)


@pytest.mark.parametrize("end", ["close", "loss"])
@pytest.mark.parametrize("how", ["send", "send_nowait"])
async def test_what_ends_the_connection_while_it_becomes_bytes_is_sent_by_nobody(how: str, end: str) -> None:
    peer = Peer()
    transport = connect(peer)

    class Ends(bytearray):
        def __bytes__(self) -> bytes:
            if end == "loss":
                transport.lose()
            else:
                session.begin_close(1000, "")
            return b"data"

    session = peer._session_now
    if how == "send":
        await peer.send(Ends())
    else:
        peer.send_nowait(Ends())
    assert [frame.opcode for frame in decode_all(transport.output)] == ([CLOSE] if end == "close" else [])
    assert peer._outbox_size == 1
    assert peer.messages_sent == 0


async def test_text_that_is_none() -> None:
    peer = Peer()
    transport = connect(peer)
    with pytest.raises(Utf8Error):
        await peer.send("\ud800")
    with pytest.raises(Utf8Error):
        peer.send_nowait("\ud800")
    assert sent(transport) == []
    assert peer.messages_sent == 0


async def test_another_thread_is_refused() -> None:
    peer = Peer()
    transport = connect(peer)
    raised: list[Exception] = []

    def work() -> None:
        for use in (lambda: peer.send_nowait("x"), lambda: peer.send("x").send(None)):
            try:
                use()
            except Exception as error:  # noqa: BLE001 (it is looked at)
                raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [type(error) for error in raised] == [InvalidState, InvalidState]
    assert "asyncio.run_coroutine_threadsafe" in str(raised[0])
    assert sent(transport) == []


def test_a_loop_that_was_closed_tells_nobody(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    loop = loop_factory()

    async def begin() -> Peer:
        peer = Peer()
        connect(peer)
        return peer

    peer = loop.run_until_complete(begin())
    loop.close()
    peer.send_nowait("kept")
    assert peer.told == ["lost"]
    assert peer.state is State.CLOSED
    assert peer._outbox_size == 1


# --- the outbox --------------------------------------------------------------------------------------------


async def test_what_waits_goes_before_what_is_sent_later() -> None:
    peer = Peer()
    peer._backpressure = Backpressure()
    transport = connect(peer)
    transport.protocol.pause_writing()
    for text in ("a", "bb"):
        peer.send_nowait(text)
    assert (peer._outbox_size, peer._outbox_bytes) == (2, 3)
    await peer.send("ccc")
    transport.protocol.resume_writing()
    await asyncio.sleep(0)
    peer.send_nowait("d")
    assert sent(transport) == [b"a", b"bb", b"ccc", b"d"]
    assert (peer._outbox_size, peer._outbox_bytes) == (0, 0)
    assert peer._backpressure.released == [1, 2, 3]
    assert peer.told == ["writable"]


async def test_the_outbox_stops_where_the_transport_does() -> None:
    peer = Peer()
    transport = connect(peer)
    transport.protocol.pause_writing()
    for number in range(5):
        peer.send_nowait(str(number))
    transport.keeps = True
    transport.protocol.resume_writing()
    await asyncio.sleep(0)
    assert sent(transport) == [b"0"]
    assert peer._outbox_size == 4
    assert peer.told == []
    transport.release()
    await asyncio.sleep(0)
    assert sent(transport) == [b"0", b"1", b"2", b"3", b"4"]
    assert peer.told == ["writable"]


async def test_nobody_overtakes_a_sender_that_waits_for_room() -> None:
    peer = Peer()
    transport = connect(peer)
    peer._set_waiting(1)
    peer.send_nowait("second")
    assert sent(transport) == []
    peer._set_waiting(-1)
    assert sent(transport) == [b"second"]
    assert peer.told == ["writable"]


async def test_what_was_kept_is_taken_out_oldest_first() -> None:
    peer = Peer()
    connect(peer).protocol.pause_writing()
    peer.send_nowait("a", compress=False)
    peer.send_nowait(b"b")
    assert peer._outbox_pop() == (Message("a"), False)
    assert peer._outbox_pop() == (Message(b"b"), None)
    with pytest.raises(IndexError):
        peer._outbox_pop()


async def test_a_message_in_parts_lets_no_other_between_them() -> None:
    peer = Peer()
    transport = connect(peer)
    peer._write_part(TEXT, b"1", False, None)
    peer.send_nowait("other")
    peer._session_now.write_ping(b"ping")  # type: ignore[union-attr]
    peer._write_part(0, b"2", True, None)
    assert [(frame.opcode, frame.payload) for frame in decode_all(transport.output)] == [
        (TEXT, b"1"),
        (9, b"ping"),
        (CONTINUATION, b"2"),
        (TEXT, b"other"),
    ]


# --- over several sessions ---------------------------------------------------------------------------------


async def test_a_lost_session_is_followed_by_another() -> None:
    peer = Peer(lasting=True)
    assert peer.state is State.CONNECTING
    transport = connect(peer)
    first = peer._session_now
    assert peer.state is State.OPEN
    transport.feed(encode(TEXT, "a"))
    transport.lose()
    assert peer.state is State.RECONNECTING
    assert peer._session_now is None
    assert peer._is_blocked
    peer.send_nowait("b")
    transport = connect(peer)
    assert peer._session_now is not first
    peer._flush_outbox()
    transport.feed(encode(TEXT, "c"))
    assert sent(transport) == [b"b"]
    assert [(await peer.recv()).as_text() for _ in range(2)] == ["a", "c"]  # type: ignore[union-attr]
    assert (peer.messages_received, peer.messages_sent) == (2, 1)
    peer.lasting = False
    transport.lose()
    assert peer.state is State.CLOSED
    assert await peer.recv() is None


async def test_an_end_that_was_told_comes_after_what_is_queued() -> None:
    peer = Peer()
    transport = connect(peer)
    transport.feed(encode(TEXT, "a"))
    transport.lose()
    with pytest.raises(RuntimeError, match="no move from CLOSED"):
        peer._lose()
    assert await peer.recv() == Message("a")
    assert await peer.recv() is None


# --- receiving ---------------------------------------------------------------------------------------------


async def test_a_message_that_is_there_is_taken_without_waiting() -> None:
    peer = Peer()
    transport = connect(peer)
    assert peer._take_now() is None
    transport.feed(encode(TEXT, "a") + encode(TEXT, "b"))
    assert peer._take_now() == Message("a")
    assert await peer.recv() == Message("b")
    assert peer._take_now() is None


async def test_does_a_task_wait() -> None:
    peer = Peer()
    transport = connect(peer)
    assert not peer._is_awaited
    task = asyncio.create_task(peer.recv())
    await asyncio.sleep(0)
    assert peer._is_awaited
    task.cancel()
    assert not peer._is_awaited, "it will be told, and takes nothing"
    await asyncio.wait([task])
    task = asyncio.create_task(peer.recv())
    await asyncio.sleep(0)
    await in_loop(lambda: transport.feed(encode(TEXT, "a")))
    assert await task == Message("a")
    assert not peer._is_awaited


async def test_one_task_receives() -> None:
    peer = Peer()
    connect(peer)
    task = asyncio.create_task(peer.recv())
    await asyncio.sleep(0)
    with pytest.raises(InvalidState, match="another task is already waiting in recv"):
        await peer.recv()
    task.cancel()
    await asyncio.wait([task])


async def test_a_task_is_resumed_once_for_some_messages_of_a_read() -> None:
    """Sixteen, or 16 KB; their number when it runs is what it can take without waiting."""
    peer = Peer()
    transport = connect(peer)
    found: list[int] = []

    async def receive() -> None:
        while await peer.recv() is not None:
            found.append(peer.queued)

    task = asyncio.create_task(receive())
    await asyncio.sleep(0)
    await in_loop(lambda: transport.feed(encode(TEXT, "x") * 20))
    assert found == [*range(15, -1, -1), 3, 2, 1, 0]
    found.clear()
    await in_loop(lambda: transport.feed(encode(BINARY, bytes(10_000)) * 3))
    assert found == [1, 0, 0]
    transport.lose()
    await task


# --- a full queue ------------------------------------------------------------------------------------------


async def fill(peer: Peer, transport: FakeTransport) -> None:
    transport.feed(encode(TEXT, "x") * 100)
    assert transport.reading


async def test_it_is_read_on_for_64_kb_where_the_queue_is_full() -> None:
    peer = Peer()
    transport = FakeTransport().connect(peer)
    await fill(peer, transport)
    transport.feed(encode(TEXT, "x") * 1008)  # 65 bytes each with what is added: 16 short of it
    assert transport.reading
    transport.feed(encode(TEXT, "x"))
    assert not transport.reading
    transport.lose()


async def test_what_is_read_on_begins_anew_when_the_queue_was_not_full() -> None:
    peer = Peer()
    transport = FakeTransport().connect(peer)
    for _ in range(3):
        await fill(peer, transport)
        transport.feed(encode(BINARY, bytes(60_000)))
        assert transport.reading
        for _ in range(101):
            await peer.recv()
    await fill(peer, transport)
    transport.feed(encode(BINARY, bytes(70_000)))
    assert not transport.reading
    transport.lose()


async def test_bytes_fill_it_too() -> None:
    peer = Peer()
    transport = FakeTransport().connect(peer, max_message_size=1 << 22)
    transport.feed(encode(BINARY, bytes(1 << 20)))  # the queue's limit
    transport.feed(encode(BINARY, bytes(65_535 - 64)))
    assert transport.reading
    transport.feed(encode(BINARY, b"x"))
    assert not transport.reading
    transport.lose()


# --- what is looked at from outside ------------------------------------------------------------------------


async def test_it_tells_when_the_oldest_message_in_its_queue_was_received() -> None:
    peer = Peer()
    transport = connect(peer)
    assert peer._oldest_ns == 0
    transport.feed(encode(TEXT, "a"))
    first = peer._oldest_ns
    transport.feed(encode(TEXT, "b"))
    assert peer._oldest_ns == first > 0
    message = await peer.recv()
    assert message.received_ns == first
    assert peer._oldest_ns > first
    await peer.recv()
    assert peer._oldest_ns == 0
    peer._start_stream()
    transport.feed(encode(TEXT, "part", fin=False))
    assert peer._oldest_ns == 0
