"""What an application asks of a client, connected or not: a fresh connection, to wait for one, its queue back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import BackpressureConfig, ClientConfig, ReconnectConfig
from fabric.error import AuthenticationFailed, BufferFull, ConnectionClosed, ConnectionFailed, InvalidState
from fabric.message import Message
from integration.raw import RawServer, Visit
from support.serving import turns, until

Stack = contextlib.AsyncExitStack

QUICK = ReconnectConfig(initial_delay=0.01, max_delay=0.02, jitter=0)
SLOW = ReconnectConfig(initial_delay=3600, max_delay=3600, jitter=0)


class Echo:
    """Answers each frame with its number of the connection; `refuse` has connections refused, with a status."""

    def __init__(self) -> None:
        self.refuse = 0
        self.closes: list[int] = []
        self.frames: list[bytes] = []
        self.visit: Visit | None = None

    async def __call__(self, visit: Visit) -> None:
        if self.refuse:
            await visit.request()
            visit.send(f"HTTP/1.1 {self.refuse} No", "Content-Length: 0")
            return
        await visit.accept()
        self.visit = visit
        while True:
            frame = await visit.frame()
            if frame.opcode == 8:
                self.closes.append(int.from_bytes(frame.payload[:2], "big"))
                visit.writer.write(bytes([0x88, len(frame.payload)]) + frame.payload)
                return
            self.frames.append(frame.payload)
            visit.writer.write(bytes([0x81, len(frame.payload)]) + frame.payload)

    def drop(self) -> None:
        assert self.visit is not None
        self.visit.writer.transport.abort()


async def connected(stack: Stack, **options: Any) -> tuple[WebSocketClient, Echo, RawServer]:
    echo = Echo()
    server = await stack.enter_async_context(RawServer(echo))
    options.setdefault("reconnect", QUICK)
    client = await stack.enter_async_context(
        WebSocketClient.connect(server.url, close_timeout=0.5, compression=None, **options)
    )
    return client, echo, server


async def outage(client: WebSocketClient, echo: Echo, status: int = 503) -> None:
    echo.refuse = status
    echo.drop()
    await until(lambda: client.state.name == "RECONNECTING")


# reconnect


async def test_a_fresh_connection_is_asked_for(stack: Stack) -> None:
    losses: list[Any] = []
    client, echo, server = await connected(stack, reconnect=SLOW, on_disconnect=lambda _, error: losses.append(error))
    await client.send("before")
    waiting = asyncio.create_task(client.recv())
    await client.reconnect()
    assert client.is_connected
    assert server.visits == 2
    assert echo.closes == [1001]
    assert echo.frames == [b"before"]
    assert await waiting == Message("before")
    await client.send("after")
    assert await client.recv() == Message("after")
    assert [(error.code, error.by) for error in losses] == [(1001, "local")]


async def test_what_is_sent_while_the_connection_is_replaced_goes_to_the_new_one(stack: Stack) -> None:
    client, _, server = await connected(stack)
    replacing = asyncio.create_task(client.reconnect())
    await until(lambda: client.state.name != "OPEN")
    await client.send("meanwhile")
    await replacing
    assert await client.recv() == Message("meanwhile")
    assert server.visits == 2


async def test_asked_in_an_outage_the_next_attempt_begins_now(stack: Stack) -> None:
    client, echo, server = await connected(stack, reconnect=SLOW)
    await outage(client, echo)
    echo.refuse = 0
    await until(lambda: client._retry_now)
    await client.reconnect()
    assert client.is_connected
    assert server.visits == 2


async def test_reconnect_raises_where_there_will_be_no_connection(stack: Stack) -> None:
    client, echo, _ = await connected(stack)
    echo.refuse = 401
    with pytest.raises(ConnectionClosed) as info:
        await client.reconnect()
    assert isinstance(info.value.__cause__.__cause__, AuthenticationFailed)  # type: ignore[union-attr]
    with pytest.raises(ConnectionClosed):
        await client.reconnect()
    other, _, _ = await connected(stack, auto_reconnect=False)
    with pytest.raises(InvalidState, match="does not reconnect"):
        await other.reconnect()


# wait_connected


async def test_waiting_for_a_connection(stack: Stack) -> None:
    client, echo, _ = await connected(stack)
    await client.wait_connected()
    await outage(client, echo)
    waiting = [asyncio.create_task(client.wait_connected()) for _ in range(3)]
    await turns()
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    echo.refuse = 0
    await asyncio.gather(*waiting[1:])
    assert client.is_connected
    await client.close()
    with pytest.raises(ConnectionClosed):
        await client.wait_connected()


async def test_waiting_for_a_connection_that_never_comes(stack: Stack) -> None:
    client, echo, _ = await connected(stack)
    await outage(client, echo)
    waiting = asyncio.create_task(client.wait_connected())
    echo.refuse = 403
    with pytest.raises(ConnectionClosed) as info:
        await waiting
    assert isinstance(info.value.__cause__.__cause__, AuthenticationFailed)  # type: ignore[union-attr]


WAITS: dict[str, Callable[[WebSocketClient], Coroutine[Any, Any, Any]]] = {
    "reconnect": lambda client: client.reconnect(),
    "wait_connected": lambda client: client.wait_connected(),
    "wait_closed": lambda client: client.wait_closed(),
    "send": lambda client: client.send("x"),
    "send parts": lambda client: client.send_parts(["x", "y"]),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
async def test_on_disconnect_cannot_wait_for_what_comes_after_it(
    stack: Stack, wait: Callable[[WebSocketClient], Coroutine[Any, Any, Any]]
) -> None:
    """It would wait for ever: it is told so. A task that it makes can wait."""
    refused: list[InvalidState] = []
    later: list[asyncio.Task[Any]] = []

    async def on_disconnect(client: WebSocketClient, _: Any) -> None:
        if refused:
            return
        later.append(asyncio.create_task(client.wait_connected()))
        with pytest.raises(InvalidState, match="on_disconnect") as info:
            await wait(client)
        refused.append(info.value)

    client, echo, _ = await connected(stack, on_disconnect=on_disconnect, outage="wait")
    echo.drop()
    await until(lambda: refused)
    await later[0]
    await client.send("again")
    assert await client.recv() == "again"


# first_connect


async def test_the_first_connection_is_tried_again_if_asked(stack: Stack) -> None:
    echo = Echo()
    echo.refuse = 503
    server = await stack.enter_async_context(RawServer(echo))
    options: dict[str, Any] = {"reconnect": QUICK, "close_timeout": 0.5, "first_connect": "retry"}
    connecting = asyncio.ensure_future(WebSocketClient.connect(server.url, **options))
    await until(lambda: server.visits > 2)
    echo.refuse = 0
    client = await connecting
    await client.send("x")
    assert await client.recv() == Message("x")
    await client.close()
    echo.refuse = 403
    with pytest.raises(AuthenticationFailed):
        await WebSocketClient.connect(server.url, **options)


async def test_the_first_connection_is_not_tried_for_ever(stack: Stack) -> None:
    options: dict[str, Any] = {"first_connect": "retry", "reconnect": QUICK.with_max_attempts(3)}
    with pytest.raises(ConnectionFailed):
        await WebSocketClient.connect("ws://127.0.0.1:1/", **options)
    connecting = asyncio.ensure_future(
        WebSocketClient.connect("ws://127.0.0.1:1/", first_connect="retry", reconnect=SLOW)
    )
    await turns()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting


# outage, clear_queue


async def test_an_outage_that_queues_and_a_queue_that_is_taken_back(stack: Stack) -> None:
    client, echo, _ = await connected(stack, backpressure=BackpressureConfig(max_buffer_size=2))
    await outage(client, echo)
    await client.send("a")
    await client.send("b")
    with pytest.raises(BufferFull):
        await client.send("c")
    assert client.clear_queue() == (Message("a"), Message("b"))
    assert client.clear_queue() == ()
    assert client.backpressure.messages == 0
    await client.send("d")
    echo.refuse = 0
    assert await client.recv() == Message("d")
    assert echo.frames == [b"d"]


async def test_an_outage_that_raises(stack: Stack) -> None:
    client, echo, _ = await connected(stack, outage="raise")
    await outage(client, echo)
    for send in (client.send, lambda x: client.send_parts([x, x])):
        with pytest.raises(ConnectionClosed) as info:
            await send("x")
        assert info.value.code == 1006
    with pytest.raises(ConnectionClosed):
        client.send_nowait("x")
    assert client.metrics.send_errors == 3
    echo.refuse = 0
    await client.wait_connected()
    await client.send("y")
    assert await client.recv() == Message("y")
    assert echo.frames == [b"y"]


async def test_an_outage_that_is_waited_for(stack: Stack) -> None:
    client, echo, _ = await connected(stack, outage="wait")
    await outage(client, echo)
    sending = [asyncio.create_task(client.send(text)) for text in "abc"]
    cancelled = asyncio.create_task(client.send("never"))
    with pytest.raises(ConnectionClosed):
        client.send_nowait("x")
    await turns()
    assert not any(task.done() for task in sending)
    assert client.backpressure.messages == 0
    cancelled.cancel()
    echo.refuse = 0
    await asyncio.gather(*sending)
    assert [await client.recv() for _ in "abc"] == [Message(text) for text in "abc"]
    await outage(client, echo, 401)
    with pytest.raises(ConnectionClosed):
        await client.send("x")


async def test_nobody_overtakes_those_who_wait_for_the_end_of_an_outage(stack: Stack) -> None:
    client, echo, _ = await connected(stack, outage="wait")
    await outage(client, echo)

    async def as_soon_as_it_is_connected() -> None:
        await client.wait_connected()
        for text in "fgh":
            await client.send(text)

    newer = asyncio.create_task(as_soon_as_it_is_connected())
    await turns()
    waiting = [asyncio.create_task(client.send(text)) for text in "abc"]
    waiting.append(asyncio.create_task(client.send(iter("de"))))
    await turns()
    echo.refuse = 0
    await asyncio.gather(newer, *waiting)
    assert [(await client.recv()).as_text() for _ in range(3)] == ["a", "b", "c"]
    rest = [(await client.recv()).as_text() for _ in range(5)]
    assert [text for text in rest if text in "fgh"] == ["f", "g", "h"]
    assert [text for text in rest if text in "de"] == ["d", "e"]  # this server echoes each frame


# url and headers of each attempt


async def test_url_and_headers_are_asked_at_each_attempt(stack: Stack) -> None:
    heads: list[str] = []
    asked: list[str] = []

    async def handle(visit: Visit) -> None:
        fields = await visit.accept()
        heads.append(f"{fields['']} {fields['authorization']} {fields['x-n']}")
        if server.visits == 2:
            await visit.until_closed()

    def url() -> str:
        asked.append("url")
        return f"ws://me:{len(asked)}@127.0.0.1:{server.port}/{len(asked)}"

    async def headers() -> dict[str, str]:
        await asyncio.sleep(0)
        asked.append("headers")
        return {"X-N": str(len(asked)), "Authorization": f"Bearer {len(asked)}"}

    server = await stack.enter_async_context(RawServer(handle))
    client = await stack.enter_async_context(
        WebSocketClient.connect(url, headers=headers, reconnect=QUICK, close_timeout=0.1)
    )
    await until(lambda: server.visits == 2 and client.is_connected)
    assert asked == ["url", "headers"] * 2
    assert heads == ["GET /1 HTTP/1.1 Bearer 2 2", "GET /3 HTTP/1.1 Bearer 4 4"]
    assert client.url == f"ws://127.0.0.1:{server.port}/3"


@pytest.mark.parametrize("wrong", ["http://h/", 5, LookupError("a bug")], ids=repr)
async def test_a_function_for_the_url_that_is_wrong(wrong: Any) -> None:
    def url() -> Any:
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    kind = type(wrong) if isinstance(wrong, Exception) else (ValueError, TypeError)
    with pytest.raises(kind):
        await WebSocketClient.connect(url)


async def test_what_a_function_gives_is_not_known_before() -> None:
    config = ClientConfig(lambda: "ws://h/", headers=lambda: {"A": "b"})
    with pytest.raises(ValueError, match="url is a function"):
        _ = config.address
    with pytest.raises(ValueError, match="headers is a function"):
        config.with_header("B", "c")
    with pytest.raises(TypeError, match="url"):
        ClientConfig(str)
    settled = await config.settled()
    assert (settled.url, settled.headers) == ("ws://h/", {"A": "b"})
