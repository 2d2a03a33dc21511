"""A plugin for pytest: the fixtures `ws_server` and `ws_client`, for asynchronous tests.

    pytest_plugins = ["fabric.testing.plugin"]  # in conftest.py

It runs no asynchronous tests itself: pytest-asyncio, anyio or another plugin does. What a test has opened is closed
when it returns, in its own event loop: clients first. What a handler or callback of a server has raised meanwhile, and
only the log would tell, fails the test.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Generator, Iterator
from typing import Any, Unpack

import pytest

from fabric._config.options import ClientOptions, ServerOptions
from fabric.client import WebSocketClient
from fabric.config import ClientConfig
from fabric.server import Handler, WebSocketServer
from fabric.testing.network import PATIENCE

__all__ = ["WsClient", "WsServer", "ws_client", "ws_server"]


class _Opened:
    """What one test has opened, and what was raised behind its back."""

    def __init__(self) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.errors: list[Exception] = []


_KEY = pytest.StashKey[_Opened]()


def _opened(request: pytest.FixtureRequest) -> _Opened:
    opened: _Opened = request.node.stash.setdefault(_KEY, _Opened())
    return opened


class WsServer:
    """The type of the fixture `ws_server`.

    Attributes:
        errors: what handlers and callbacks of servers have raised. What is left here when the test returns fails it:
            a test that expects an error takes it out.
    """

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        self.errors = opened.errors

    async def __call__(
        self, server: Handler | WebSocketServer | None = None, **options: Unpack[ServerOptions]
    ) -> WebSocketServer:
        """Start a server on a free port of loopback, or the one that is given.

        Args:
            server: a handler, or a `WebSocketServer` that has not been started.
            options: of `ServerConfig`, where a handler is given.
        """
        if not isinstance(server, WebSocketServer):
            server = WebSocketServer.bind("127.0.0.1:0", server, **options)
        elif options:
            raise TypeError("options are for a server that is made here, not for one that is given")
        await server.start()
        self._opened.stack.push_async_callback(server.shutdown, PATIENCE)
        return server


class WsClient:
    """The type of the fixture `ws_client`."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened

    async def __call__(
        self, server: WebSocketServer | ClientConfig | str, path: str = "/", **options: Unpack[ClientOptions]
    ) -> WebSocketClient:
        """Connect to a server.

        Args:
            server: a `WebSocketServer` that has been started, a URL, or a `ClientConfig`.
            path: with the query; for a `WebSocketServer`.
            options: of `ClientConfig`. `auto_reconnect` is False by default.
        """
        where = f"ws://127.0.0.1:{server.port}{path}" if isinstance(server, WebSocketServer) else server
        if not isinstance(where, ClientConfig):
            options.setdefault("auto_reconnect", False)
        return await self._opened.stack.enter_async_context(WebSocketClient.connect(where, **options))


@pytest.fixture
def ws_server(request: pytest.FixtureRequest) -> WsServer:
    """`server = await ws_server(handler)`: a server on a free port of loopback, shut down when the test returns.

    Takes a handler, and options of `ServerConfig` by name; or a `WebSocketServer` that has not been started.
    """
    return WsServer(_opened(request))


@pytest.fixture
def ws_client(request: pytest.FixtureRequest) -> WsClient:
    """`client = await ws_client(server, "/path")`: a client of that server, closed when the test returns.

    Takes a URL or a `ClientConfig` as well, and options of `ClientConfig` by name. It does not reconnect, unless a
    config or `auto_reconnect=True` says so: a test sees the end of its connection.
    """
    return WsClient(_opened(request))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Have what the fixtures have opened closed in the loop of the test, whatever runs it."""
    opened = item.stash.get(_KEY, None)
    test = getattr(item, "obj", None)
    if opened is None or not inspect.iscoroutinefunction(test):
        return (yield)
    item.obj = _closing(test, opened)  # type: ignore[attr-defined]
    try:
        return (yield)
    finally:
        item.obj = test  # type: ignore[attr-defined]


def _closing(test: Callable[..., Any], opened: _Opened) -> Callable[..., Any]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with _noted(opened.errors):
            try:
                async with opened.stack:
                    await test(*args, **kwargs)
            except BaseException as failure:
                for error in opened.errors:
                    failure.add_note(f"a handler or callback of a server has raised {error!r}")
                raise
        if opened.errors:
            raise ExceptionGroup("handlers or callbacks of a server have raised", opened.errors)

    return run


@contextlib.contextmanager
def _noted(errors: list[Exception]) -> Iterator[None]:
    """Add to `errors` the exceptions that `fabric.server` logs."""

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info is not None and isinstance(record.exc_info[1], Exception):
                errors.append(record.exc_info[1])

    handler, logger = Note(logging.ERROR), logging.getLogger("fabric.server")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
