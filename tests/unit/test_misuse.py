"""What people write by mistake is refused where it is written, with a sentence that says what to write instead."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import ClientConfig, ServerConfig
from fabric.pool import ConnectionPool
from fabric.server import WebSocketServer

URL = "ws://127.0.0.1:1/"


async def of_two(client: Any, path: Any) -> None: ...
async def of_none() -> None: ...
def plain(client: Any) -> None: ...
async def good(client: Any) -> None: ...
async def with_default(client: Any, path: Any = None) -> None: ...


class Bound:
    async def handle(self, client: Any) -> None: ...
    async def __call__(self, client: Any) -> None: ...


class Plain:
    def __call__(self, client: Any) -> None: ...


def makes(client: Any) -> Awaitable[None]:
    return good(client)


def makes_without_saying(client):  # type: ignore[no-untyped-def]
    return good(client)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"handler": of_two}, r"handler is called with \(client\).*client\.request\.path"),
        ({"handler": of_none}, r"handler is called with \(client\)"),
        ({"handler": plain}, r"handler.*async def"),
        ({"handler": lambda a, b: None}, r"handler is called with \(client\)"),
        ({"on_message": of_none}, r"on_message is called with \(client, message\)"),
        ({"on_message": good}, r"on_message is called with \(client, message\)"),
        ({"on_connect": of_two}, r"on_connect is called with \(client\)"),
        ({"on_disconnect": of_two}, r"on_disconnect is called with \(client\)"),
        ({"process_request": of_two}, r"process_request is called with \(request\)"),
        ({"on_gap": plain}, r"on_gap is called with \(topic, since\)"),
        ({"on_gap": of_two}, "on_gap must be a plain function"),
        ({"handler": 5}, "handler must be callable, not int"),
        ({"handler": Bound}, r"handler is a class"),
    ],
)
def test_callbacks_of_a_server(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        WebSocketServer(ServerConfig("127.0.0.1:0"), **options)


@pytest.mark.parametrize(
    "handler",
    [good, with_default, makes, makes_without_saying, Bound().handle, Bound(), functools.partial(of_two, path=1)],
)
def test_handlers_that_work(handler: Any) -> None:
    WebSocketServer(ServerConfig("127.0.0.1:0"), handler)  # raises nothing


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: WebSocketServer.bind("127.0.0.1", 8080, good), r'bind\("127\.0\.0\.1:8080", handler\)'),  # type: ignore[arg-type]
        (lambda: WebSocketServer.bind("127.0.0.1", 8080), r'bind\("127\.0\.0\.1:8080", handler\)'),  # type: ignore[arg-type]
        (lambda: WebSocketServer(good), r"WebSocketServer\(config, handler\)"),  # type: ignore[arg-type]
        (lambda: WebSocketServer(URL), "host:port"),
        (lambda: WebSocketClient(URL), r"await WebSocketClient\.connect\("),  # type: ignore[arg-type]
        (lambda: WebSocketClient(ClientConfig(URL)), r"await WebSocketClient\.connect\("),
        (lambda: WebSocketClient.connect(URL, ping_interval=5), r"heartbeat=HeartbeatConfig\(ping_interval=\.\.\.\)"),
        (lambda: WebSocketClient.connect("127.0.0.1", 8080), r'connect\("ws://127\.0\.0\.1:8080"\)'),  # type: ignore[misc]
        (lambda: WebSocketClient.connect(URL, on_message=of_none), "on_message"),
        (lambda: WebSocketClient.connect(URL, on_message=lambda m: None), r"on_message is called with \(client, mess"),  # type: ignore[misc]
        (lambda: WebSocketClient.connect(URL, on_connect=lambda: None), r"on_connect is called with \(client\)"),  # type: ignore[misc]
        (lambda: WebSocketClient.connect(URL, on_disconnect=good), r"on_disconnect is called with \(client, error\)"),  # type: ignore[arg-type]
        (lambda: WebSocketClient.connect(URL, on_reconnect=of_two), r"on_reconnect is called with \(client\)"),  # type: ignore[arg-type]
    ],
)
def test_calls(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        call()


def test_with_instead_of_async_with() -> None:
    with pytest.raises(TypeError, match="async with"):
        with WebSocketClient.connect(URL):  # type: ignore[attr-defined]
            pass
    with pytest.raises(TypeError, match="async with"):
        with WebSocketServer.bind("127.0.0.1:0"):  # type: ignore[attr-defined]
            pass


async def test_a_forgotten_await() -> None:
    with pytest.warns(RuntimeWarning, match=r"connect\(\) was never awaited"):
        WebSocketClient.connect(URL)
    client: Any = WebSocketClient.connect(URL)
    with pytest.raises(AttributeError, match="await"):
        await client.send_text("x")
    with pytest.raises(TypeError, match=r"write `await connect\(\)`"):
        await WebSocketClient.connect(URL).send("x")  # which is also what a coroutine is resumed with
    with pytest.raises(TypeError, match="await"):
        async for _ in client:
            pass
    client.close()  # as of a coroutine


async def test_one_that_was_begun_or_closed_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WebSocketClient.connect(URL).close()
        task = asyncio.ensure_future(WebSocketClient.connect(URL))
        await asyncio.wait([task])
        assert task.exception() is not None
        async with ConnectionPool.with_defaults() as pool:
            with pytest.raises(ConnectionError):
                await pool.get(URL)


async def test_a_handler_that_returns_nothing_to_await_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be seen before it is called."""

    def handler(client):  # type: ignore[no-untyped-def]
        return None if client else good(client)

    async with WebSocketServer.bind("127.0.0.1:0", handler) as server:
        async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", auto_reconnect=False) as client:
            with pytest.raises(ConnectionError):
                await client.recv()
            assert client.close_code == 1011
    assert "returned None, which cannot be awaited: write it as `async def`" in caplog.text


def test_false_switches_reconnecting_off() -> None:
    assert not ClientConfig(URL, reconnect=False).reconnect.enabled
