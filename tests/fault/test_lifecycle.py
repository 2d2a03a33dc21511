"""Servers and clients that are kept after their loop, and servers that are started and shut down at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.error import ConnectionClosed, InvalidState
from fabric.server import WebSocketServer
from support.raw_peer import RawPeer
from support.serving import serve, until
from support.tls import client_context, server_context

PLAIN: dict[str, Any] = {"compression": None, "auto_reconnect": False, "heartbeat": None}
SECURE = pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])


# -- after loop.close()


@contextlib.contextmanager
def owner_of(number: int) -> Iterator[socket.socket]:
    """Make descriptor `number` somebody else's socket; the other end of it."""
    ours, theirs = socket.socketpair()
    kept = None
    with contextlib.suppress(OSError):
        kept = os.dup(number)  # plain asyncio leaves it open
    os.dup2(ours.fileno(), number)
    theirs.setblocking(False)
    try:
        yield theirs
    finally:
        if kept is not None:
            os.dup2(kept, number)
            os.close(kept)
        elif number != ours.fileno():
            os.close(number)
        ours.close()
        theirs.close()


ACTIONS: dict[str, Callable[[Any, WebSocketServer], Any]] = {
    "send": lambda end, _: end.send("x" * 100),
    "send large": lambda end, _: end.send(bytes(100_000)),
    "send_nowait": lambda end, _: end.send_nowait("x"),
    "send in parts": lambda end, _: end.send(iter(["a", "b"])),
    "ping": lambda end, _: end.ping(),
    "close": lambda end, _: end.close(),
    "flush": lambda end, _: end.flush(),
    "cork": lambda end, _: end.send_many(["a", "b"]),
    "broadcast": lambda _, server: server.broadcast("x"),
    "shutdown": lambda _, server: server.shutdown(timeout=0.1),
}


@pytest.fixture
def tidied(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was left on a closed loop is collected here, and its reports claimed: they are what the test provokes."""
    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", True)
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("tidied")
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("waiting", [False, True], ids=["", "gathered"])
@SECURE
def test_nothing_is_written_after_the_loop_is_closed(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], action: str, side: str, *, waiting: bool, secure: bool
) -> None:
    loop = loop_factory()
    kept: list[Any] = []
    server = WebSocketServer.bind(
        "127.0.0.1:0",
        on_message=lambda *_: None,
        ping_interval=None,
        compression=None,
        **({"ssl": server_context()} if secure else {}),
    )

    async def connect() -> int:
        await server.start()
        url = f"{'wss' if secure else 'ws'}://127.0.0.1:{server.port}/"
        trust = {"ssl": client_context()} if secure else {}
        kept.append(await WebSocketClient.connect(url, **PLAIN, **trust))
        await until(lambda: server.connection_count)
        kept.append(server.clients()[0])
        end = kept[0] if side == "client" else kept[1]
        number: int = end._transport.get_extra_info("socket").fileno()
        if waiting:
            end.send_nowait("first")
            end.send_nowait("second")  # gathered until the end of the turn, which does not come
        return number

    number = loop.run_until_complete(connect())
    end = kept[0] if side == "client" else kept[1]
    loop.close()

    async def act() -> Any:
        result = ACTIONS[action](end, server)
        return await result if result is not None else None

    with owner_of(number) as other:
        again = loop_factory()
        try:
            result = again.run_until_complete(asyncio.wait_for(act(), 20))
            assert result in (None, 0)
            assert action not in {"send", "send large", "send_nowait", "send in parts", "ping"}
        except (ConnectionClosed, InvalidState):
            assert action not in {"broadcast", "shutdown", "close", "flush"}
        finally:
            again.close()
        with pytest.raises(BlockingIOError):
            print(other.recv(1000))
        assert not end.is_connected
        assert end.state.name == "CLOSED"


# -- start and shutdown


def is_listening(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "localhost:{}"])
async def test_shutdown_while_it_starts(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    for turn in range(5):
        server = WebSocketServer.bind(address.format(port), lambda _: asyncio.sleep(0))
        starting = asyncio.ensure_future(server.start())
        for _ in range(turn):
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await server.shutdown(timeout=0.1)
            with contextlib.suppress(InvalidState):
                await starting
            await server.shutdown(timeout=0.1)
            await server.serve_forever() if server._phase.name == "STOPPED" else None
        assert not server.is_running
        assert not is_listening(port)


async def test_two_starts_at_once() -> None:
    server = WebSocketServer.bind("127.0.0.1:0", lambda _: asyncio.sleep(0))
    results = await asyncio.gather(server.start(), server.start(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), InvalidState]
    port = server.port
    assert len(server.sockets) == 1
    async with asyncio.timeout(20):
        await asyncio.gather(server.shutdown(timeout=0.1), server.shutdown(timeout=0.1))
    assert not is_listening(port)


async def test_a_start_that_is_cancelled_can_be_tried_again() -> None:
    server = WebSocketServer.bind("localhost:0", lambda _: asyncio.sleep(0))
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    if not server.is_running:
        await server.start()
    async with server, await RawPeer.open(server.port):
        await until(lambda: server.is_running)


async def test_shutdown_before_start(stack: contextlib.AsyncExitStack) -> None:
    server = WebSocketServer.bind("127.0.0.1:0", lambda _: asyncio.sleep(0))
    await server.shutdown()
    with pytest.raises(InvalidState):
        await server.start()
    other = await serve(stack)
    assert other.is_running
