"""Servers of `fabric.websockets.sync` in threads, for one test; and what such tests may leave behind."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

from conftest import descriptors
from fabric._sync.keeper import keeper
from fabric.websockets.sync.server import Server, ServerConnection, serve
from support.threads import DEADLINE, Caller

__all__ = ["DEADLINE", "echo", "nothing_left", "running", "started", "until", "url"]


def echo(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """`server` accepts connections, until the end of the block."""
    with server:
        serving = Caller(server.serve_forever)
        try:
            yield server
        finally:
            server.shutdown()
            serving.result()


def started(handler: Any = echo, **options: Any) -> contextlib.AbstractContextManager[Server]:
    """A server on a free port of the loopback. No keepalive unless asked for."""
    options.setdefault("ping_interval", None)
    return running(serve(handler, "127.0.0.1", 0, **options))


def url(server: Server, path: str = "/", *, scheme: str = "ws") -> str:
    return f"{scheme}://localhost:{server.socket.getsockname()[1]}{path}"


def until(condition: Callable[[], Any]) -> None:
    """Wait for what no event tells of."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.001)


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """After the block nothing of its connections is left."""
    before = descriptors()
    yield
    gc.collect()
    until(lambda: not keeper._drivers)
    until(lambda: not set(descriptors().items()) - set(before.items()))
