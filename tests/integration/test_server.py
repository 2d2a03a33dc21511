"""The server as a whole: its life, its handlers and callbacks, what it knows of its clients, how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import socket
import time
import uuid
import weakref
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
import websockets

from fabric import Request, Response
from fabric._handshake.server import ServerHandshake
from fabric.client import WebSocketClient
from fabric.config import BackpressureConfig, RateLimitConfig, ServerConfig
from fabric.error import BufferFull, ConnectionClosed, HandshakeFailed, InvalidState, Io
from fabric.message import Message
from fabric.server import ConnectedClient, WebSocketServer
from fabric_ext.protocol import State
from support.frames import BINARY, CLOSE, CONTINUATION, TEXT, encode
from support.raw_peer import RawPeer, request
from support.serving import Held, Recorder, echo, serve, turns, until

Stack = contextlib.AsyncExitStack


# --- its life ----------------------------------------------------------------------------------------------


async def test_start_and_shutdown() -> None:
    server = WebSocketServer(ServerConfig("127.0.0.1:0"), echo)
    assert not server.is_running
    assert (server.sockets, server.connection_count, server.clients()) == ((), 0, [])
    await server.start()
    assert server.is_running
    assert server.port == server.sockets[0].getsockname()[1] > 0
    with pytest.raises(InvalidState):
        await server.start()
    async with await RawPeer.open(server.port):
        assert server.connection_count == 1
    await server.shutdown()
    assert not server.is_running
    await server.shutdown()  # twice is once
    with pytest.raises(InvalidState):
        await server.start()


async def test_several_connections_are_accepted_in_one_turn(stack: Stack) -> None:
    """uvloop's listener accepts one a turn."""
    turn, came = 0, []
    server = await serve(stack, Held(), process_request=lambda request: came.append(turn))
    for _ in range(8):  # all wait before the loop looks
        client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        client.sendall(request())
    while len(came) < 8:
        turn += 1
        await asyncio.sleep(0)
    assert len(set(came)) <= 4
    assert len(server.sockets) == 1  # however many descriptors it has


async def test_async_with() -> None:
    async with WebSocketServer.bind("127.0.0.1:0", echo) as server:
        assert server.is_running
        repr(server)
    assert not server.is_running


async def test_serve_forever_until_it_is_shut_down() -> None:
    server = WebSocketServer.bind("127.0.0.1:0", echo)
    serving = asyncio.create_task(server.serve_forever())
    await until(lambda: server.is_running)
    await server.shutdown()
    await serving


async def test_serve_forever_until_it_is_cancelled() -> None:
    held = Recorder()
    server = WebSocketServer.bind("127.0.0.1:0", held)
    serving = asyncio.create_task(server.serve_forever())
    await until(lambda: server.is_running)
    async with await RawPeer.open(server.port) as peer:
        serving.cancel()
        assert await peer.close_seen() == (1001, "server shutdown")
        peer.send_close(1001)
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert not server.is_running


async def test_a_port_that_is_taken(stack: Stack) -> None:
    server = await serve(stack, echo)
    for other in (WebSocketServer.bind(f"127.0.0.1:{server.port}"), WebSocketServer.bind("192.0.2.1:80")):
        with pytest.raises(Io, match="cannot listen on"):
            await other.start()
        assert not other.is_running
        await other.shutdown()


async def test_two_servers_on_one_port(stack: Stack) -> None:
    first = await serve(stack, echo, reuse_port=True)
    second = WebSocketServer.bind(f"127.0.0.1:{first.port}", echo, reuse_port=True)
    async with second:
        assert second.port == first.port


async def test_handlers_are_checked() -> None:
    with pytest.raises(ValueError, match="handler or on_message"):
        WebSocketServer("127.0.0.1:0", echo, on_message=lambda *_: None)
    with pytest.raises(TypeError, match="on_connect"):
        WebSocketServer("127.0.0.1:0", on_connect=3)  # type: ignore[arg-type]


# --- handlers and callbacks --------------------------------------------------------------------------------


async def test_a_plain_callback(stack: Stack) -> None:
    """Called where the message arrives, with no task at all."""
    tasks = []

    def answer(client: ConnectedClient, message: Message) -> None:
        tasks.append(asyncio.current_task())
        client.send_nowait(message.as_text().upper())

    server = await serve(stack, on_message=answer)
    async with await RawPeer.open(server.port) as peer:
        for number in range(10):
            peer.send_text(f"a{number}")
        assert [await peer.payload() for _ in range(10)] == [b"A%d" % number for number in range(10)]
    assert tasks == [None] * 10


async def test_a_coroutine_callback_keeps_the_order(stack: Stack) -> None:
    async def answer(client: ConnectedClient, message: Message) -> None:
        await asyncio.sleep(0.01 if message.as_text() == "0" else 0)
        await client.send(message)

    server = await serve(stack, on_message=answer)
    async with await RawPeer.open(server.port) as peer:
        for number in range(5):
            peer.send_text(str(number))
        assert [await peer.payload() for _ in range(5)] == [b"%d" % number for number in range(5)]


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_callback_that_raises(stack: Stack, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def plain(_: ConnectedClient, message: Message) -> None:
        raise LookupError("secret " + message.as_text())

    async def coroutine(client: ConnectedClient, message: Message) -> None:
        plain(client, message)

    server = await serve(stack, on_message=plain if kind == "plain" else coroutine)
    async with await RawPeer.open(server.port) as peer:
        peer.send(encode(TEXT, "one"), encode(TEXT, "two"))
        code, reason = await peer.close_seen()
        assert code == 1011
        assert "secret" not in reason
        peer.send_close(1011)
        await peer.closed()
    await until(lambda: server.connection_count == 0)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_callbacks_at_both_ends_of_a_connection(
    stack: Stack, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[tuple[str, ConnectedClient, int | None]] = []

    def connected(client: ConnectedClient) -> None:
        events.append(("connect", client, client.close_code))
        assert client.is_connected
        client.send_nowait("welcome")

    def disconnected(client: ConnectedClient) -> None:
        events.append(("disconnect", client, client.close_code))
        assert client.remote_addr is not None

    async def later_connected(client: ConnectedClient) -> None:
        await asyncio.sleep(0)
        connected(client)

    async def later_disconnected(client: ConnectedClient) -> None:
        await asyncio.sleep(0)
        disconnected(client)

    ends: Any = (connected, disconnected) if kind == "plain" else (later_connected, later_disconnected)
    server = await serve(stack, on_connect=ends[0], on_disconnect=ends[1], on_message=lambda *_: None)
    async with await RawPeer.open(server.port) as peer:
        assert await peer.payload() == b"welcome"
        peer.send_close(4000)
        await peer.close_seen()
    await until(lambda: len(events) == 2)
    assert [(name, code) for name, _, code in events] == [("connect", None), ("disconnect", 4000)]
    assert events[0][1] is events[1][1]
    assert caplog.records == []  # no assertion above has failed


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_callbacks_that_raise_are_logged(stack: Stack, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def plain(_: ConnectedClient) -> None:
        raise LookupError

    async def coroutine(_: ConnectedClient) -> None:
        raise LookupError

    function: Any = plain if kind == "plain" else coroutine
    server = await serve(stack, echo, on_connect=function, on_disconnect=function)
    async with await RawPeer.open(server.port) as peer:
        peer.send_text("works")
        assert await peer.payload() == b"works"
        peer.send_close()
        await peer.close_seen()
    await until(lambda: len(caplog.records) == 2)
    assert all(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
@pytest.mark.parametrize("place", ["on_message", "on_connect", "on_disconnect"])
async def test_the_end_of_another_connection_is_told(
    stack: Stack, place: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the connection's own end is an ordinary one."""
    upstream = await serve(stack, echo)
    async with WebSocketClient.connect(f"ws://127.0.0.1:{upstream.port}/", auto_reconnect=False) as other:
        await other.close()

        def plain(*_: Any) -> None:
            other.send_nowait("x")

        async def coroutine(*_: Any) -> None:
            await other.send("x")

        function: Any = plain if kind == "plain" else coroutine
        handler = {} if place == "on_message" else {"handler": echo}
        server = await serve(stack, **handler, **{place: function})
        async with await RawPeer.open(server.port) as peer:
            peer.send_text("x")
            if place == "on_disconnect":
                peer.send_close()
            await until(lambda: caplog.records)
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[0] is ConnectionClosed


async def test_a_handler_that_is_no_coroutine_function(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    server = await serve(stack, lambda client: None if client else echo(client))
    async with await RawPeer.open(server.port) as peer:
        assert (await peer.close_seen())[0] == 1011
        peer.send_close(1011)
        await peer.closed()
    await until(lambda: server.connection_count == 0)
    assert any(record.levelno >= logging.ERROR for record in caplog.records)


async def test_a_handler_that_is_a_method_and_one_that_returns_an_awaitable(stack: Stack) -> None:
    class Application:
        async def handle(self, client: ConnectedClient) -> None:
            await client.send("method")

    server = await serve(stack, Application().handle)
    async with await RawPeer.open(server.port) as peer:
        assert await peer.payload() == b"method"


async def test_no_handler_at_all(stack: Stack) -> None:
    server = await serve(stack)
    async with await RawPeer.open(server.port):
        await until(lambda: server.connection_count == 1)
        assert await server.broadcast("x") == 1


async def test_a_connection_keeps_nothing_of_its_opening_handshake(stack: Stack) -> None:
    server = await serve(stack)
    async with await RawPeer.open(server.port):
        await until(lambda: server.connection_count == 1)
        gc.collect()
        assert [kept for kept in gc.get_objects() if isinstance(kept, ServerHandshake)] == []


async def test_a_handler_that_is_cancelled(stack: Stack) -> None:
    held = Recorder()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port) as peer:
        client = await held.connected()
        assert client._task is not None
        client._task.cancel()
        code, _ = await peer.close_seen()
        assert code in (1000, 1001, 1011)
        peer.send_close(code)
        await peer.closed()
    await client.wait_closed()


async def test_a_handler_that_goes_on_after_the_end(stack: Stack) -> None:
    go = asyncio.Event()
    ends: list[Any] = []

    async def handler(client: ConnectedClient) -> None:
        await go.wait()
        try:
            await client.send("x")
        except ConnectionClosed as error:
            ends.append(error.code)
            raise

    server = await serve(stack, handler)
    async with await RawPeer.open(server.port) as peer:
        await until(lambda: server.connection_count == 1)
        peer.reset()
        await until(lambda: server.connection_count == 0)
    go.set()
    await until(lambda: ends)
    assert ends == [1006]


# --- what it knows -----------------------------------------------------------------------------------------


async def test_clients(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    assert server.get_client(uuid.uuid4()) is None
    async with await RawPeer.open(server.port) as first:
        one = await held.next()
        async with await RawPeer.open(server.port):
            two = await held.next()
            assert set(server.clients()) == {one, two}
            assert one.id != two.id
            assert server.get_client(two.id) is two
            assert one.remote_addr == first.writer.get_extra_info("sockname")
            assert one.local_addr == ("127.0.0.1", server.port)
            assert two.local_addr is one.local_addr, "10,000 connections need not keep it 10,000 times"
            repr(one)
        await two.wait_closed()
        assert server.get_client(two.id) is None
        assert server.clients() == [one]
        assert two.remote_addr is not None
        assert server.connection_count == 1


async def test_counters(stack: Stack) -> None:
    server = await serve(stack, echo)
    async with await RawPeer.open(server.port) as peer:
        for text in ("a", "é", "💥x"):
            peer.send_text(text)
            assert (await peer.payload()).decode() == text
        peer.send_frame(TEXT, b"x" * 10, fin=False)
        peer.send_frame(CONTINUATION, b"y" * 5)
        assert len(await peer.payload()) == 15
        metrics, (client,) = server.metrics, server.clients()
        assert (metrics.active_connections, metrics.total_connections) == (1, 1)
        assert (
            metrics.messages_received == metrics.messages_sent == client.messages_sent == client.messages_received == 4
        )
        assert (
            metrics.bytes_received == metrics.bytes_sent == client.bytes_sent == client.bytes_received == 1 + 2 + 5 + 15
        )
    await until(lambda: metrics.active_connections == 0)
    assert metrics.total_connections == 1


async def test_a_closed_connection_is_let_go(stack: Stack) -> None:
    watched = []

    async def handler(client: ConnectedClient) -> None:
        watched.append(weakref.ref(client))
        client.id  # noqa: B018 (the server keeps it by its id, too)
        async for message in client:
            await client.send(message)

    server = await serve(stack, handler)
    for how in ("close", "reset", "fault"):
        async with await RawPeer.open(server.port) as peer:
            peer.send_text("x")
            await peer.payload()
            if how == "close":
                peer.send_close()
                await peer.rest()
            elif how == "reset":
                peer.reset()
            else:
                peer.send(b"\xff" * 10)
                await peer.rest()
    await until(lambda: server.connection_count == 0)
    await turns()
    gc.collect()
    assert [reference() for reference in watched] == [None] * 3


@pytest.mark.parametrize("action", ["slow", "drop", "close"])
async def test_rate_limits(stack: Stack, action: Any) -> None:
    recorder = Recorder()
    limit = RateLimitConfig(messages_per_second=50, messages_burst=5, on_exceed=action)
    server = await serve(stack, recorder, rate_limit=limit)
    async with await RawPeer.open(server.port) as peer:
        begun = time.monotonic()
        peer.send(*(encode(BINARY, b"%d" % number) for number in range(10)))
        if action == "close":
            assert (await peer.close_seen())[0] == 1008
        else:
            # A close would end the wait: what has come is delivered with the end of the connection.
            await until(lambda: len(recorder.messages) == (10 if action == "slow" else 5))
            took = time.monotonic() - begun
            peer.send_close()
            await peer.close_seen()
    await recorder.ended()
    got = [int(message) for message in recorder.messages]
    if action == "slow":
        assert got == list(range(10))
        assert took > 0.05
    else:
        assert got == list(range(5))


# --- how it stops ------------------------------------------------------------------------------------------


async def test_shutdown_closes_with_1001_and_waits_for_the_answers(stack: Stack) -> None:
    recorders = [Recorder() for _ in range(3)]
    rest = iter(recorders)

    def handler(client: ConnectedClient) -> Any:
        return next(rest)(client)

    server = await serve(stack, handler)
    peers = [await stack.enter_async_context(await RawPeer.open(server.port)) for _ in recorders]
    for recorder in recorders:
        await recorder.connected()
    stopping = asyncio.create_task(server.shutdown())
    for peer in peers:
        assert await peer.close_seen() == (1001, "server shutdown")
        assert not stopping.done()
        peer.send_close(1001)
        await peer.closed()
    await stopping
    assert all(recorder.client.close_code == 1001 and recorder.error is None for recorder in recorders)
    assert (server.connection_count, server.is_running) == (0, False)


async def test_shutdown_with_another_code(stack: Stack) -> None:
    server = await serve(stack, echo)
    async with await RawPeer.open(server.port) as peer:
        stopping = asyncio.create_task(server.shutdown(code=1012))
        assert await peer.close_seen() == (1012, "server shutdown")
        peer.send_close(1012)
        await stopping


async def test_what_is_open_goes_on_when_nothing_more_is_accepted(stack: Stack) -> None:
    server = await serve(stack, echo)
    port = server.port
    async with await RawPeer.open(port) as peer:
        server.stop_accepting()
        with pytest.raises(ConnectionRefusedError):
            await RawPeer.connect(port)
        peer.send_text("hello")
        assert await peer.payload() == b"hello"


@pytest.mark.parametrize("timeout", [None, "1", True, math.nan, math.inf, -1, timedelta(seconds=-1)], ids=repr)
async def test_a_wrong_time_limit_changes_nothing(stack: Stack, timeout: Any) -> None:
    server = await serve(stack, Held())
    with pytest.raises((TypeError, ValueError), match="timeout is"):
        await server.shutdown(timeout)
    with pytest.raises(ValueError, match="close code"):
        await server.shutdown(code=1)
    assert server.is_running
    await server.shutdown(timedelta(seconds=5))
    assert not server.is_running


async def test_shutdown_delivers_what_was_sent(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    peer = await stack.enter_async_context(await RawPeer.open(server.port, receive_buffer=4096))
    client = await held.next()
    sent = []
    while client._outbox_size < 20:
        sent.append(b"%d" % len(sent) + b"x" * 50_000)
        client.send_nowait(sent[-1])
    held.release()
    stopping = asyncio.create_task(server.shutdown())
    assert [await peer.payload() for _ in sent] == sent
    code, _ = await peer.close_seen()
    assert code in (1000, 1001)  # the handler's end and the server's compete
    peer.send_close(code)
    await stopping


async def test_shutdown_aborts_at_the_deadline(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    cancelled = []

    async def stubborn(client: ConnectedClient) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(client)
            raise

    server = await serve(stack, stubborn, close_timeout=60)
    async with await RawPeer.open(server.port) as silent:
        await until(lambda: server.connection_count == 1)
        await server.shutdown(timeout=0.1)
        assert len(cancelled) == 1
        with contextlib.suppress(ConnectionError):
            assert (await silent.rest())[-1].opcode == CLOSE
    assert server.connection_count == 0


async def test_a_cancelled_shutdown_still_leaves_nothing(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port):
        client = await held.next()
        stopping = asyncio.create_task(server.shutdown(timeout=30))
        await turns()
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert client.state is State.CLOSED
        assert server.connection_count == 0


async def test_shutdown_from_a_handler(stack: Stack) -> None:
    """A server told to stop by one of its clients."""
    stopped = asyncio.Event()

    async def handler(client: ConnectedClient) -> None:
        async for message in client:
            if message.as_text() == "stop":
                await server.shutdown(timeout=60)
                stopped.set()

    server = await serve(stack, handler)
    async with await RawPeer.open(server.port) as peer:
        peer.send_text("stop")
        assert await peer.close_seen() == (1001, "server shutdown")
        peer.send_close(1001)
        await stopped.wait()
    assert not server.is_running


async def test_shutdown_while_clients_come_and_go(stack: Stack) -> None:
    server = await serve(stack, echo)

    async def visit() -> None:
        with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError, AssertionError):
            async with await RawPeer.open(server.port) as peer:
                peer.send_text("x")
                await peer.payload()
                code, _ = await peer.close_seen()
                peer.send_close(code)

    port = server.port
    visits = [asyncio.create_task(visit()) for _ in range(20)]
    await asyncio.sleep(0.005)
    await server.shutdown(timeout=5)
    await asyncio.gather(*visits)
    with pytest.raises(ConnectionRefusedError):
        await RawPeer.connect(port)


# --- other people's clients --------------------------------------------------------------------------------


async def test_the_client_of_websockets(stack: Stack) -> None:
    recorder = Recorder(echo=True)
    server = await serve(stack, recorder)
    async with websockets.connect(f"ws://127.0.0.1:{server.port}/path", compression=None) as client:
        for message in ("text", b"binary", "", "x" * 70_000):
            await client.send(message)
            assert await client.recv() == message
        await client.send(["in ", "parts"])
        assert await client.recv() == "in parts"
        await (await client.ping())
        await recorder.client.ping()
        await client.close(4000, "bye")
    await recorder.ended()
    assert (recorder.client.close_code, recorder.client.close_reason) == (4000, "bye")
    assert (client.close_code, client.close_reason) == (4000, "bye")


async def test_the_client_of_aiohttp(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{server.port}/", protocols=["a"]) as client,
    ):
        ours = await held.next()
        await client.send_str("text")
        message = await ours.recv()
        assert message is not None
        assert message.as_text() == "text"
        await ours.send(b"binary")
        assert await client.receive_bytes() == b"binary"
        closing = asyncio.create_task(ours.close(4001, "ciao"))
        end = await client.receive()
        assert (end.type, end.data, end.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "ciao")
        await closing
    assert ours.close_code == 1000  # what aiohttp answers to any code


async def test_a_port_scanner(stack: Stack) -> None:
    """Connections that open and close at once leave nothing."""
    server = await serve(stack, echo)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port)):
            pass
    await until(lambda: not server._handshakes)
    assert server.connection_count == 0


async def test_each_request_can_have_headers_and_a_subprotocol_of_its_own(stack: Stack) -> None:
    def choose(request: Request) -> Any:
        if request.path == "/plain":
            return None
        if request.path == "/wrong":
            return Response(101, {"Sec-WebSocket-Protocol": "v3"})
        return (
            101,
            [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("sec-websocket-protocol", "v1"), ("Upgrade", "x")],
            "",
        )

    held = Held()
    server = await serve(stack, held, process_request=choose, subprotocols=("v2", "v1"), headers={"Server": "mine"})
    url = f"ws://127.0.0.1:{server.port}"
    options: dict[str, Any] = {"subprotocols": ("v2", "v1"), "auto_reconnect": False}
    async with WebSocketClient.connect(f"{url}/", **options) as client:
        assert client.subprotocol == "v1"
        assert client.response is not None
        assert client.response.headers.getall("Set-Cookie") == ["a=1", "b=2"]
        assert client.response.headers.getall("Upgrade") == ["websocket"]
        assert "Content-Type" not in client.response.headers
        assert client.response.headers["Server"] == "mine"
        assert (await held.next()).subprotocol == "v1"
    async with WebSocketClient.connect(f"{url}/plain", **options) as client:
        assert client.subprotocol == "v2"
    with pytest.raises(HandshakeFailed) as caught:
        await WebSocketClient.connect(f"{url}/wrong", **options)
    assert caught.value.status == 500


async def test_who_cannot_send_is_counted(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, backpressure=BackpressureConfig(max_buffer_size=1))
    async with await RawPeer.open(server.port, receive_buffer=4096):
        client = await held.next()
        with pytest.raises(BufferFull):
            while True:
                client.send_nowait(b"x" * 100_000)
        assert server.metrics.send_errors == 1
        client._abort()
        await client.wait_closed()
    for _ in range(2):
        with pytest.raises(ConnectionClosed):
            await client.send("late")
    assert server.metrics.send_errors == 3
