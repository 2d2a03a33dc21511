"""Code of the application that runs where it was not expected: in a finalizer, a signal handler, another thread, a
callback that sends, or one that raises. Frames stay whole and in order, and a connection goes on whole or ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import signal
import socket
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import BackpressureConfig, ClientConfig, PoolConfig, ReconnectConfig
from fabric.error import BackpressureTimeout, BufferFull, ConnectionClosed, Error, InvalidState, ReconnectTimeout
from fabric.pool import ConnectionPool
from fabric.server import WebSocketServer
from support.frames import CLOSE, TEXT, encode
from support.raw_peer import RawPeer
from support.serving import Held, echo, serve, turns, until
from support.tls import client_context, server_context

SMALL = 4096  # bytes of a kernel's buffer
ROOMY = BackpressureConfig(max_buffer_size=100_000)
PLAIN: dict[str, Any] = {"compression": None, "auto_reconnect": False, "heartbeat": None}


@contextlib.asynccontextmanager
async def connected(
    stack: contextlib.AsyncExitStack, *, secure: bool = False, **options: Any
) -> AsyncIterator[tuple[Any, Any]]:
    """The two ends of a connection: the client's, the server's."""
    held = Held()
    tls = {"ssl": server_context()} if secure else {}
    server = await serve(stack, held, **tls, **options)
    url = f"{'wss' if secure else 'ws'}://127.0.0.1:{server.port}/"
    trust = {"ssl": client_context()} if secure else {}
    async with WebSocketClient.connect(url, **PLAIN, **trust, **options_of_client(options)) as client:
        yield client, await held.next()
        held.release()


def options_of_client(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in {"backpressure", "close_timeout", "buffer_size"}}


def shrink(*ends: Any) -> None:
    """Let the system keep as little as it can of what is sent and received."""
    for end in ends:
        sock = end._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)


async def received(end: Any, last: str) -> list[str]:
    """The heads of all messages up to `last`; their ends must be where they belong."""
    heads: list[str] = []
    while not heads or heads[-1] != last:
        message = await end.recv()
        head, _, body = message.as_text().partition(":")
        assert set(body) <= {"."}
        heads.append(head)
    return heads


def in_order(heads: list[str], kind: str) -> bool:
    numbers = [int(head.split()[1]) for head in heads if head.startswith(kind)]
    return numbers == list(range(len(numbers)))


# -- who sends while bytes are handed over


class Sends:
    """Garbage whose finalizer sends, and leaves new garbage behind."""

    def __init__(self, end: Any, numbers: Iterator[int]) -> None:
        self.me = self
        self.end = end
        self.numbers = numbers

    def __del__(self) -> None:
        try:
            number = next(self.numbers)
            self.end.send_nowait(f"late {number}:")
            Sends(self.end, self.numbers)
        except StopIteration:
            pass


@pytest.fixture
def eager_collector() -> Iterator[None]:
    """Collect garbage at nearly every allocation."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1000, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


SIDES = pytest.mark.parametrize("side", ["client", "server"])
SECURE = pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])


@SIDES
@SECURE
async def test_a_finalizer_that_sends(
    stack: contextlib.AsyncExitStack, eager_collector: None, side: str, *, secure: bool
) -> None:
    async with connected(stack, secure=secure, backpressure=ROOMY) as (client, server_end):
        sender, receiver = (client, server_end) if side == "client" else (server_end, client)
        shrink(sender)
        reading = asyncio.create_task(received(receiver, "end"))
        numbers = iter(range(3000))
        for number in range(300):
            Sends(sender, numbers)
            await sender.send(f"main {number}:" + "." * (number * 997 % 30_000))
            if number % 10 == 0:
                await asyncio.sleep(0)
        for _ in numbers:
            pass
        await sender.send("end:")
        heads = await reading
        assert in_order(heads, "main")
        assert in_order(heads, "late")
        assert heads.count("end") == 1
        assert len(heads) > 301  # finalizers did send


@pytest.fixture
def interruptions() -> Iterator[Callable[[Callable[[], None]], None]]:
    """`interruptions(function)` has `function` called by a signal handler, thousands of times a second."""
    called: list[Callable[[], None]] = []

    def interrupt(*_: object) -> None:
        for function in called:
            function()

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    try:
        yield called.append
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@SIDES
@SECURE
async def test_a_signal_handler_that_sends(
    stack: contextlib.AsyncExitStack, interruptions: Callable[..., None], side: str, *, secure: bool
) -> None:
    async with connected(stack, secure=secure, backpressure=ROOMY) as (client, server_end):
        sender, receiver = (client, server_end) if side == "client" else (server_end, client)
        shrink(sender)
        late = 0
        sending = False

        def interrupt() -> None:
            nonlocal late, sending
            if late < 500 and not sending:  # a handler may be interrupted by the next signal
                sending = True
                sender.send_nowait(f"late {late}:" + "." * (late * 331 % 2000))
                late += 1
                sending = False

        reading = asyncio.create_task(received(receiver, "end"))
        interruptions(interrupt)
        number = 0
        while late < 500 or number < 100:
            await sender.send(f"main {number}:" + "." * (number * 997 % 30_000))
            number += 1
            await asyncio.sleep(0)
        await sender.send("end:")
        heads = await reading
        assert in_order(heads, "main")
        assert in_order(heads, "late")
        assert len(heads) == late + number + 1
        assert (sender.backpressure.messages, sender.backpressure.bytes) == (0, 0)


# -- threads


@SIDES
@SECURE
@pytest.mark.parametrize(
    ("compression", "debug"),
    [(True, False), (False, False), (True, True)],
    ids=["compressed", "as is", "in debug mode"],
)
async def test_sending_from_another_thread(
    stack: contextlib.AsyncExitStack, side: str, *, secure: bool, compression: bool, debug: bool
) -> None:
    """A coroutine is handed to the loop; what acts at once is refused."""
    asyncio.get_running_loop().set_debug(debug)
    packing: dict[str, Any] = {} if compression else {"compression": None}
    held = Held()
    tls = {"ssl": server_context()} if secure else {}
    server = WebSocketServer.bind("127.0.0.1:0", held, ping_interval=None, **tls, **packing)
    async with server:
        trust = {"ssl": client_context()} if secure else {}
        url = f"{'wss' if secure else 'ws'}://127.0.0.1:{server.port}/"
        async with WebSocketClient.connect(url, auto_reconnect=False, heartbeat=None, **trust, **packing) as client:
            server_end = await held.next()
            sender, receiver = (client, server_end) if side == "client" else (server_end, client)
            loop = asyncio.get_running_loop()

            def send_all() -> str:
                for number in range(200):
                    asyncio.run_coroutine_threadsafe(sender.send(f"thread {number}:" + "." * 3000), loop).result(10)
                with pytest.raises(InvalidState, match="thread"):
                    sender.send_nowait("no:")
                return "done"

            working = asyncio.create_task(asyncio.to_thread(send_all))
            for number in range(200):
                await sender.send(f"main {number}:" + "." * 3000)
                await asyncio.sleep(0)
            assert await working == "done"
            await sender.send("end:")
            heads = await received(receiver, "end")
            assert in_order(heads, "main")
            assert in_order(heads, "thread")
            assert len(heads) == 401
            held.release()


async def collected(iterator: AsyncIterator[Any]) -> list[Any]:
    return [each async for each in iterator]


def corked(end: Any) -> None:
    with end.cork():
        pass


async def gaps() -> AsyncIterator[str]:
    for part in "abc":
        await asyncio.sleep(0)
        yield part


BY_ITSELF: dict[str, Callable[[Any, Any], Any]] = {
    "send": lambda end, _: end.send("x"),
    "send_nowait": lambda end, _: end.send_nowait("x"),
    "send_text": lambda end, _: end.send_text("x"),
    "send_json": lambda end, _: end.send_json(1),
    "send_parts": lambda end, _: end.send_parts(["a", "b"]),
    "parts that come one by one": lambda end, _: end.send(gaps()),
    "send_many": lambda end, _: end.send_many(["a", "b"]),
    "cork": lambda end, _: corked(end),
    "flush": lambda end, _: end.flush(),
    "ping": lambda end, _: end.ping(),
    "close": lambda end, _: end.close(),
    "wait_closed": lambda end, _: end.wait_closed(),
    "broadcast": lambda _, server: server.broadcast("x"),
    "publish": lambda _, server: server.publish("topic", "x"),
    "topic": lambda _, server: server.topic("topic"),
    "stop_accepting": lambda _, server: server.stop_accepting(),
    "shutdown": lambda _, server: server.shutdown(),
    "send_to": lambda _, server: server.send_to("name", "x"),
    "request": lambda _, server: server.request("name", "x", timeout=1),
    "disconnect": lambda _, server: server.disconnect("name"),
}
BY_A_CLIENT: dict[str, Callable[[Any, Any], Any]] = {
    "reconnect": lambda end, _: end.reconnect(),
    "wait_connected": lambda end, _: end.wait_connected(),
    "clear_queue": lambda end, _: end.clear_queue(),
}
BY_A_SERVER: dict[str, Callable[[Any, Any], Any]] = {
    "subscribe": lambda end, _: end.subscribe("topic"),
    "unsubscribe": lambda end, _: end.unsubscribe("topic"),
    "name": lambda end, _: setattr(end, "name", "x"),
}
ACTS = [
    *((side, act) for side in ("client", "server") for act in BY_ITSELF.items()),
    *(("client", act) for act in BY_A_CLIENT.items()),
    *(("server", act) for act in BY_A_SERVER.items()),
]


@pytest.mark.parametrize(("side", "act"), ACTS, ids=[f"{side} {name}" for side, (name, _) in ACTS])
@pytest.mark.parametrize("looping", [False, True], ids=["without a loop", "in a loop of its own"])
async def test_what_acts_at_once_is_refused_in_another_thread(
    stack: contextlib.AsyncExitStack, side: str, act: tuple[str, Callable[[Any, Any], Any]], *, looping: bool
) -> None:
    async with connected(stack) as (client, server_end):
        end, other = (client, server_end) if side == "client" else (server_end, client)

        async def do() -> Any:
            result = act[1](end, server_end.server)
            return await result if inspect.isawaitable(result) else result

        def elsewhere() -> None:
            with pytest.raises((InvalidState, ConnectionClosed), match="another") as refused:
                if looping:
                    asyncio.run(do())
                    return
                running = do()
                try:
                    running.send(None)
                finally:
                    running.close()
            assert isinstance(refused.value, InvalidState)

        async with asyncio.timeout(20):
            await asyncio.to_thread(elsewhere)
        await end.send("here")
        assert (await other.recv()).as_text() == "here"
        assert server_end.server.is_running


@SIDES
@SECURE
async def test_another_thread_may_ask_who_is_connected(
    stack: contextlib.AsyncExitStack, side: str, *, secure: bool
) -> None:
    """For a log, say: a transport with TLS refuses other threads, so it is not asked."""
    async with connected(stack, secure=secure) as (client, server_end):
        end = client if side == "client" else server_end

        def told() -> tuple[Any, ...]:
            return repr(end), end.remote_addr, end.local_addr, end.state, end.id, end.latency

        here = told()
        assert await asyncio.to_thread(told) == here
        assert here[1][0] == here[2][0] == "127.0.0.1"


async def test_in_an_outage_too_nothing_acts_in_another_thread(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    again = ReconnectConfig(initial_delay=1000, max_delay=1000)
    url = f"ws://127.0.0.1:{server.port}/"
    async with WebSocketClient.connect(url, compression=None, heartbeat=None, reconnect=again) as client:
        server.clients()[0]._abort()
        await until(lambda: not client.is_connected)

        def elsewhere() -> None:
            for act in (client.send_nowait, lambda text: asyncio.run(awaiting(client.send(text)))):
                with pytest.raises(InvalidState, match="another thread"):
                    act("x")

        async def awaiting(sending: Any) -> None:
            await sending

        await asyncio.to_thread(elsewhere)
        assert client.clear_queue() == ()


async def test_a_listener_may_be_collected_by_another_thread(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, Held())
    kept = [server.topic("topic")]
    await asyncio.to_thread(kept.clear)
    await until(lambda: not len(server.topics))


# -- a fault of the peer behind a good message


@pytest.mark.parametrize("handler", ["task", "callback"])
async def test_an_answer_of_20_mb_before_a_protocol_fault(stack: contextlib.AsyncExitStack, handler: str) -> None:
    answer = bytes(20_000_000)

    async def handle(client: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for _ in client:
                await client.send(answer)

    if handler == "task":
        server = await serve(stack, handle)
    else:
        server = await serve(stack, on_message=lambda client, _: client.send_nowait(answer))
    async with await RawPeer.open(server.port) as peer:
        peer.send(encode(TEXT, "go"), encode(0xB, b""))
        frames = await peer.rest()
        assert [len(frame.payload) for frame in frames[:-1]] == [20_000_000]
        assert frames[-1].opcode == CLOSE
        assert frames[-1].close_code == 1002


# -- callbacks that send


async def test_a_backpressure_callback_that_sends_overtakes_nothing(stack: contextlib.AsyncExitStack) -> None:
    few = BackpressureConfig(max_buffer_size=20)
    async with connected(stack, backpressure=few) as (client, server_end):
        for sender, receiver in ((server_end, client), (client, server_end)):
            shrink(sender)
            accepted: list[str] = []

            def note(active: bool, sender: Any = sender, accepted: list[str] = accepted) -> None:
                text = f"callback {len(accepted)}:"
                with contextlib.suppress(BufferFull):
                    sender.send_nowait(text)
                    accepted.append(text[:-1])

            sender.backpressure.on_state_change(note)
            with contextlib.suppress(BufferFull):
                for number in range(1000):
                    text = f"main {number}:"
                    sender.send_nowait(text + "." * 50_000)
                    accepted.append(text[:-1])
            await reads_what_was_accepted(receiver, accepted)
            assert sum(text.startswith("callback") for text in accepted) == 2


async def reads_what_was_accepted(receiver: Any, accepted: list[str]) -> None:
    heads = []
    while len(heads) < len(accepted):
        heads.append((await receiver.recv()).as_text().partition(":")[0])
    assert heads == accepted


async def in_a_thread(sending: Any) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(sending, loop).result())


async def in_a_group(sending: Any) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(sending)
    except* InvalidState as errors:
        raise errors.exceptions[0] from None


AWAITED: list[Callable[[Any], Any]] = [
    lambda sending: sending,
    asyncio.create_task,
    asyncio.gather,
    lambda sending: asyncio.wait_for(sending, 100),
    in_a_group,
    in_a_thread,
]


@SIDES
@pytest.mark.parametrize("begun", [False, True], ids=["before a part has left", "after"])
@pytest.mark.parametrize("awaited", AWAITED, ids=["await", "a task", "gather", "wait_for", "a group", "a thread"])
async def test_parts_that_send_parts_are_refused(
    stack: contextlib.AsyncExitStack, side: str, *, begun: bool, awaited: Callable[[Any], Any]
) -> None:
    async with connected(stack) as (client, server_end):
        sender, receiver = (client, server_end) if side == "client" else (server_end, client)

        async def parts() -> AsyncIterator[str]:
            yield "a"
            if begun:
                yield "b"
            await awaited(sender.send(iter(["inner"])))
            yield "c"

        async with asyncio.timeout(20):
            with pytest.raises(InvalidState):
                await sender.send(parts())
            if begun:
                with pytest.raises(ConnectionClosed) as closed:
                    await receiver.recv()
                assert closed.value.code == 1011
            else:
                await sender.send("whole")
                assert (await receiver.recv()).as_text() == "whole"


@SIDES
async def test_parts_of_two_connections_that_send_parts_on_each_other(
    stack: contextlib.AsyncExitStack, side: str
) -> None:
    async with connected(stack) as (one, _), connected(stack) as (two, _):
        ends = (one, two) if side == "client" else (_, two)

        async def parts(depth: int) -> AsyncIterator[str]:
            yield "a"
            await asyncio.create_task(ends[depth % 2].send(parts(depth + 1)))
            yield "b"

        async with asyncio.timeout(20):
            with pytest.raises(InvalidState):
                await ends[0].send(parts(1))


@SIDES
async def test_parts_that_send_more_than_can_wait_are_told(stack: contextlib.AsyncExitStack, side: str) -> None:
    """There would be room when the message in parts has left, which ends when there is room."""
    async with connected(stack, backpressure=BackpressureConfig(max_buffer_size=10)) as (client, server_end):
        sender, receiver = (client, server_end) if side == "client" else (server_end, client)
        accepted: list[str] = []

        async def parts() -> AsyncIterator[str]:
            yield "a"
            yield "b"
            with pytest.raises(BufferFull):
                for number in range(11):
                    await asyncio.create_task(sender.send(str(number)))
                    accepted.append(str(number))
            yield "c"

        async with asyncio.timeout(20):
            await sender.send(parts())
            assert len(accepted) == 10
            assert [(await receiver.recv()).as_text() for _ in range(11)] == ["abc", *accepted]


@SIDES
@pytest.mark.parametrize("what", ["parts", "more than has room"])
async def test_parts_that_wait_for_a_task_made_before_end_after_the_timeout(
    stack: contextlib.AsyncExitStack, side: str, what: str
) -> None:
    """That the iterable waits for that task cannot be known; that it does so in vain ends with an error."""
    limits = BackpressureConfig(max_buffer_size=10, timeout=0.05)
    async with connected(stack, backpressure=limits) as (client, server_end):
        sender, receiver = (client, server_end) if side == "client" else (server_end, client)
        asked = asyncio.Event()

        async def work() -> None:
            await asked.wait()
            if what == "parts":
                await sender.send_parts(["inner"])
            else:
                for number in range(11):
                    await sender.send(str(number))

        worker = asyncio.create_task(work())

        async def parts() -> AsyncIterator[str]:
            yield "a"
            yield "b"
            asked.set()
            with pytest.raises(BackpressureTimeout, match="parts" if what == "parts" else "full"):
                await worker
            yield "c"

        await sender.send_parts(parts())
        assert (await receiver.recv()).as_text() == "abc"


async def test_a_task_made_in_parts_may_send_parts_later(stack: contextlib.AsyncExitStack) -> None:
    async with connected(stack) as (client, server_end):
        made: list[asyncio.Task[None]] = []
        sent = asyncio.Event()

        async def later() -> None:
            await sent.wait()
            await client.send(iter("de"))

        async def parts() -> AsyncIterator[str]:
            yield "a"
            made.append(asyncio.create_task(later()))
            yield "b"

        await client.send(parts())
        sent.set()
        await made[0]
        assert [(await server_end.recv()).as_text() for _ in range(2)] == ["ab", "de"]


# -- receiving where resuming the transport raises


def at_the_limit(room: int, function: Callable[[], Any]) -> Any:
    """Call `function` where only about `room` more calls may be nested."""

    frame, depth = sys._getframe(), 0
    while frame is not None:
        depth += 1
        frame = frame.f_back  # type: ignore[assignment]
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + room + 1)
    try:
        return function()
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.usefixtures("no_look_ahead")
@SIDES
async def test_no_message_is_lost_where_resuming_raises(stack: contextlib.AsyncExitStack, side: str) -> None:
    async with connected(stack, buffer_size=10) as (client, server_end):
        sender, receiver = (client, server_end) if side == "client" else (server_end, client)
        sending = asyncio.create_task(send_numbers(sender, 200))
        await until(lambda: receiver.is_reading_paused)
        numbers: list[int] = []
        raised = 0

        def take() -> None:
            receiving = receiver.recv()
            try:
                receiving.send(None)
            except StopIteration as stop:
                numbers.append(int(stop.value.as_text()))
            finally:
                receiving.close()

        while len(numbers) < 200:
            await until(lambda: receiver.queued)
            for room in range(2, 40):
                count = len(numbers)
                try:
                    at_the_limit(room, take)
                except RecursionError:
                    raised += 1
                if len(numbers) > count:
                    break
        await sending
        assert numbers == list(range(200))
        assert raised


async def send_numbers(end: Any, count: int) -> None:
    for number in range(count):
        await end.send(str(number))


@pytest.mark.usefixtures("no_look_ahead")
@SIDES
@SECURE
async def test_what_was_read_before_a_pause_is_delivered_after_it(
    stack: contextlib.AsyncExitStack, side: str, *, secure: bool
) -> None:
    """aiofastnet 1.2 raises where it should go on with what it has decrypted; nothing more comes that would help."""
    roomy = BackpressureConfig(max_buffer_bytes=10_000_000)
    async with connected(stack, secure=secure, buffer_size=4, backpressure=roomy) as (client, server_end):
        sender, receiver = (client, server_end) if side == "client" else (server_end, client)
        for number in range(400):
            sender.send_nowait(f"{number}:" + "." * 1000)
        await until(lambda: receiver.is_reading_paused)
        await turns()
        for number in range(400):
            assert (await receiver.recv()).as_text().partition(":")[0] == str(number)


# -- exceptions keep nothing alive


class Loan:
    """Something that is given back when it is dropped."""


@SIDES
@pytest.mark.parametrize("how", ["recv", "iterate", "send", "ping", "recv_stream"])
async def test_what_is_raised_keeps_no_frames(stack: contextlib.AsyncExitStack, side: str, how: str) -> None:
    loans: list[weakref.ref[Loan]] = []

    async def borrow(end: Any) -> None:
        loan = Loan()
        loans.append(weakref.ref(loan))
        if how == "recv":
            await end.recv()
        elif how == "iterate":
            async for _ in end:
                pass
        elif how == "send":
            await end.send("x")
        elif how == "recv_stream":
            async for _ in end.recv_stream():
                pass
        else:
            await end.ping()

    async with connected(stack) as (client, server_end):
        end, other = (client, server_end) if side == "client" else (server_end, client)
        other._abort()
        if how == "send":
            await end.wait_closed()
        for _ in range(2):
            with contextlib.suppress(ConnectionClosed):
                await borrow(end)
                pytest.fail("the connection is gone")
            gc.disable()
            try:
                await asyncio.sleep(0)
                assert loans[-1]() is None
            finally:
                gc.enable()
            await end.wait_closed()


async def test_giving_up_keeps_no_frames(stack: contextlib.AsyncExitStack) -> None:
    server = await serve(stack, echo)
    once = ReconnectConfig(max_attempts=1, initial_delay=0.01)
    client = await WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", compression=None, reconnect=once)
    loans: list[weakref.ref[Loan]] = []

    async def borrow(call: Callable[[], Any]) -> None:
        loan = Loan()
        loans.append(weakref.ref(loan))
        await call()

    server.stop_accepting()
    for connection in server.clients():
        connection._abort()
    for call in (client.recv, client.wait_closed, client.recv, client.wait_closed):
        with pytest.raises(ReconnectTimeout):
            await borrow(call)
        await asyncio.sleep(0)
        assert loans[-1]() is None


async def no_server(stack: contextlib.AsyncExitStack) -> str:
    """The address of nobody."""
    probe = stack.enter_context(socket.socket())
    probe.bind(("127.0.0.1", 0))
    return f"ws://127.0.0.1:{probe.getsockname()[1]}/"


async def hangs_up(stack: contextlib.AsyncExitStack) -> str:
    """The address of a server that closes each connection at once."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    stack.push_async_callback(server.wait_closed)
    stack.callback(server.close)
    return f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def refuses(stack: contextlib.AsyncExitStack) -> str:
    server = await serve(stack, echo, process_request=lambda _: (404, {}, b"not here"))
    return f"ws://127.0.0.1:{server.port}/"


async def redirects(stack: contextlib.AsyncExitStack) -> str:
    server = await serve(stack, echo, process_request=lambda _: (302, {"Location": "http://[::1"}, b""))
    return f"ws://127.0.0.1:{server.port}/"


async def says_nothing(stack: contextlib.AsyncExitStack) -> str:
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return f"ws://127.0.0.1:{silent.getsockname()[1]}/"


async def answers(stack: contextlib.AsyncExitStack) -> str:
    server = await serve(stack, echo)
    return f"ws://127.0.0.1:{server.port}/"


def refuse(_: Any) -> None:
    raise ValueError("of on_connect")


async def refuse_later(client: Any) -> None:
    await asyncio.sleep(0)
    refuse(client)


async def from_a_pool(url: str, **options: Any) -> Any:
    async with ConnectionPool(PoolConfig(enable_health_check=False)) as pool:
        return await pool.get(ClientConfig(url, **options))


@pytest.mark.parametrize(
    ("server", "call"),
    [
        (no_server, WebSocketClient.connect),
        (no_server, from_a_pool),
        (hangs_up, WebSocketClient.connect),
        (hangs_up, from_a_pool),
        (refuses, WebSocketClient.connect),
        (refuses, from_a_pool),
        (redirects, WebSocketClient.connect),
        (says_nothing, functools.partial(WebSocketClient.connect, connection_timeout=0.01)),
        (
            no_server,
            functools.partial(
                WebSocketClient.connect,
                first_connect="retry",
                reconnect=ReconnectConfig(max_attempts=2, initial_delay=0.001),
            ),
        ),
        (answers, functools.partial(WebSocketClient.connect, on_connect=refuse)),
        (answers, functools.partial(WebSocketClient.connect, on_connect=refuse_later)),
    ],
)
async def test_a_connection_that_is_not_to_be_had_keeps_no_frames(
    stack: contextlib.AsyncExitStack, server: Callable[..., Any], call: Callable[..., Any]
) -> None:
    url = await server(stack)
    loans: list[weakref.ref[Loan]] = []

    async def borrow() -> None:
        loan = Loan()
        loans.append(weakref.ref(loan))
        await call(url)

    async def fail() -> None:
        with contextlib.suppress(Error, ValueError):
            await borrow()
            pytest.fail("nothing was raised")

    gc.disable()
    try:
        for _ in range(2):
            await fail()
            await turns(3)
            assert loans[-1]() is None
    finally:
        gc.enable()


# -- whatever is raised by what the application gave us


class Odd(BaseException):
    """Of no class that anybody expects."""


RAISED: list[type[BaseException]] = [
    ValueError,
    asyncio.CancelledError,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    KeyboardInterrupt,
    SystemExit,
    RecursionError,
    MemoryError,
    Odd,
]


class Patient:
    """Runs coroutines on a loop that exceptions may stop: what stopped it is noted, and it goes on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.stopped_by: list[BaseException] = []
        loop.set_exception_handler(lambda *_: None)

    def run(self, coroutine: Any) -> Any:
        task = self.loop.create_task(asyncio.wait_for(coroutine, 30))
        while True:
            try:
                return self.loop.run_until_complete(task)
            except (KeyboardInterrupt, SystemExit, Odd, GeneratorExit) as error:
                self.stopped_by.append(error)
                if task.done():
                    raise


class Rude(logging.Handler):
    """A logging handler that raises."""

    def __init__(self, kind: type[BaseException]) -> None:
        super().__init__()
        self.kind = kind
        self.called = 0

    def emit(self, record: logging.LogRecord) -> None:
        if not self.called:
            self.called += 1
            raise self.kind("of the logging handler")


PLACES = [
    "on_message",
    "on_connect",
    "on_disconnect",
    "process_request",
    "async process_request",
    "handler",
    "async on_message",
    "backpressure",
    "log",
    "client on_message",
    "client on_disconnect",
]


class Faulty:
    """Raises once, in one place."""

    def __init__(self, place: str, kind: type[BaseException]) -> None:
        self.place = place
        self.kind = kind
        self.raised = 0

    def hit(self, place: str) -> None:
        if place == self.place and not self.raised:
            self.raised += 1
            raise self.kind("of the application")

    def server(self) -> WebSocketServer:
        async def handler(client: Any) -> None:
            if self.place == "backpressure":
                client.backpressure.on_state_change(lambda _: self.hit("backpressure"))
                shrink(client)
                for _ in range(40):
                    await client.send("." * 50_000)
            async for message in client:
                self.hit("handler")
                await client.send(message)

        def process_request(_: Any) -> Any:
            self.hit("process_request")
            return judge() if self.place == "async process_request" else None

        async def judge() -> None:
            await asyncio.sleep(0)
            self.hit("async process_request")

        def on_message(client: Any, message: Any) -> None:
            self.hit("on_message")
            if self.place == "log":
                raise ValueError("to be logged")
            client.send_nowait(message)

        async def on_message_async(client: Any, message: Any) -> None:
            self.hit("async on_message")
            await client.send(message)

        what: dict[str, Any] = {"handler": handler}
        if self.place in ("on_message", "log"):
            what = {"on_message": on_message}
        elif self.place == "async on_message":
            what = {"on_message": on_message_async}
        return WebSocketServer.bind(
            "127.0.0.1:0",
            **what,
            on_connect=lambda _: self.hit("on_connect"),
            on_disconnect=lambda _: self.hit("on_disconnect"),
            process_request=process_request,
            ping_interval=None,
            compression=None,
            close_timeout=0.2,
            handshake_timeout=1,
            backpressure=BackpressureConfig(max_buffer_size=10),
        )

    async def use(self, server: WebSocketServer) -> None:
        """Connect and send: the connection works to the end, or is told to end; nothing hangs."""
        options: dict[str, Any] = {**PLAIN, "connection_timeout": 2, "close_timeout": 0.2}
        callbacks: dict[str, Any] = {"on_disconnect": lambda *_: self.hit("client on_disconnect")}
        answered = asyncio.Event()
        if self.place == "client on_message":

            def on_message(_: Any, message: Any) -> None:
                self.hit("client on_message")
                answered.set()

            callbacks["on_message"] = on_message
        try:
            client = await WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", **options, **callbacks)
        except Exception:  # noqa: BLE001  (told)
            return
        try:
            await client.send("one")
            await client.send("two")
            if self.place == "client on_message":
                closed = asyncio.ensure_future(client.wait_closed())
                answer = asyncio.ensure_future(answered.wait())
                await asyncio.wait([closed, answer], return_when=asyncio.FIRST_COMPLETED)
                closed.cancel()
                answer.cancel()
            else:
                for _ in range(40 if self.place == "backpressure" else 0):
                    if await client.recv() is None:
                        return
                for text in ("one", "two"):
                    message = await client.recv()
                    if message is None:
                        return
                    assert message.as_text() == text  # none is missing if it goes on
        except ConnectionClosed:
            return  # told
        finally:
            await client.close()


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_is_raised(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], place: str, kind: type[BaseException]
) -> None:
    loop = loop_factory()
    patient = Patient(loop)
    faulty = Faulty(place, kind)
    rude = Rude(kind)
    loggers = [logging.getLogger("fabric.server"), logging.getLogger("fabric.client")]
    if place == "log":
        for logger in loggers:
            logger.addHandler(rude)
    try:
        server = faulty.server()
        patient.run(server.start())
        patient.run(faulty.use(server))
        again = Faulty("nowhere", kind)
        if place not in ("log", "backpressure"):
            patient.run(again.use(server))  # the server goes on
        patient.run(server.shutdown(timeout=0.5))
        assert server.connection_count == 0
        assert faulty.raised or rude.called
        if kind in (KeyboardInterrupt, SystemExit):
            assert kind in map(type, patient.stopped_by)
    finally:
        for logger in loggers:
            logger.removeHandler(rude)
        with contextlib.suppress(BaseException):
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@SIDES
@SECURE
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_ends_run_and_both_sides_are_told(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], side: str, kind: type[BaseException], *, secure: bool
) -> None:
    got: list[str] = []
    ends: dict[str, Any] = {}

    def on_message(_: Any, message: Any) -> None:
        got.append(message.as_text())
        if len(got) == 2:
            raise kind

    async def use(stack: contextlib.AsyncExitStack) -> None:
        held = Held()
        callback: dict[str, Any] = {"on_message": on_message}
        server_side: dict[str, Any] = {"on_connect": lambda client: ends.update(server=client)} | callback
        tls = {"ssl": server_context()} if secure else {}
        server = await serve(stack, **({"handler": held} if side == "client" else server_side), **tls)
        trust = {"ssl": client_context()} if secure else {}
        url = f"{'wss' if secure else 'ws'}://127.0.0.1:{server.port}/"
        more = callback if side == "client" else {}
        client = ends["client"] = await WebSocketClient.connect(url, **PLAIN, **trust, **more)
        if side == "client":
            ends["server"] = await held.next()
        other = ends["server" if side == "client" else "client"]
        for text in "123":
            await other.send(text)
        await client.wait_closed()  # the loop is stopped before
        await asyncio.Event().wait()

    async def look() -> None:
        for end in ends.values():
            await end.wait_closed()
            assert end.close_code == 1011
            assert not end.undelivered

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        stack = contextlib.AsyncExitStack()
        with pytest.raises(kind):
            runner.run(use(stack))
        runner.run(look())
        assert got == ["1", "2"]
        runner.run(stack.aclose())
