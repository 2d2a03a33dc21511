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

from fabric import websockets as dropin
from fabric.client import WebSocketClient
from fabric.error import ConnectionClosed, InvalidState
from fabric.rpc import Rpc
from fabric.server import WebSocketServer
from fabric.websockets.asyncio.server import ServerConnection
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
    "recv": lambda end, _: end.recv(),
    "iterate": lambda end, _: anext(end),
    "recv_many": lambda end, _: end.recv_many(),
    "recv_stream": lambda end, _: anext(end.recv_stream()),
    "close": lambda end, _: end.close(),
    "flush": lambda end, _: end.flush(),
    "cork": lambda end, _: end.send_many(["a", "b"]),
    "broadcast": lambda _, server: server.broadcast("x"),
    "publish": lambda _, server: server.publish("topic", "x"),
    "call": lambda end, _: Rpc(end).serve(),
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
        kept[1].subscribe("topic")
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
            assert action in {"broadcast", "publish", "shutdown", "close", "flush"}
        except (ConnectionClosed, InvalidState):
            assert action not in {"broadcast", "publish", "shutdown", "close", "flush"}
        finally:
            again.close()
        with pytest.raises(BlockingIOError):
            print(other.recv(1000))
        assert not end.is_connected
        assert end.state.name == "CLOSED"


DROP_IN_ACTIONS: dict[str, Callable[[Any], Any]] = {
    "send": lambda end: end.send("x" * 100),
    "send large": lambda end: end.send(bytes(100_000)),
    "send in fragments": lambda end: end.send(iter(["a", "b"])),
    "ping": lambda end: end.ping(),
    "recv": lambda end: end.recv(),
    "recv(decode=True)": lambda end: end.recv(decode=True),
    "iterate": lambda end: anext(aiter(end)),
    "recv_streaming": lambda end: anext(end.recv_streaming()),
    "pong": lambda end: end.pong(),
    "close": lambda end: end.close(),
    "broadcast": lambda end: dropin.broadcast([end], "x"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("tidied")
@pytest.mark.parametrize("action", DROP_IN_ACTIONS)
@pytest.mark.parametrize("side", ["client", "server"])
@SECURE
def test_nothing_is_written_by_the_drop_in_after_the_loop_is_closed(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], action: str, side: str, *, secure: bool
) -> None:
    loop = loop_factory()
    kept: list[Any] = []

    async def hold(connection: Any) -> None:
        kept.append(connection)
        await connection.wait_closed()

    async def open_both() -> int:
        tls = {"ssl": server_context()} if secure else {}
        server = await dropin.serve(hold, "127.0.0.1", 0, ping_interval=None, **tls)
        kept.append(server)
        port = server.sockets[0].getsockname()[1]
        trust = {"ssl": client_context()} if secure else {}
        client = await dropin.connect(f"{'wss' if secure else 'ws'}://127.0.0.1:{port}", ping_interval=None, **trust)
        kept.append(client)
        await until(lambda: len(kept) == 3)  # the server, and both ends
        (theirs,) = (each for each in kept if isinstance(each, ServerConnection))
        end = client if side == "client" else theirs
        kept.append(end)
        number: int = end.transport.get_extra_info("socket").fileno()
        return number

    number = loop.run_until_complete(open_both())
    loop.close()

    async def act() -> Any:
        result = DROP_IN_ACTIONS[action](kept[-1])
        return await result if result is not None else None

    with owner_of(number) as other:
        again = loop_factory()
        try:
            again.run_until_complete(asyncio.wait_for(act(), 20))
            assert action in {"close", "broadcast"}
        except dropin.ConnectionClosed:
            assert action not in {"close", "broadcast"}
        finally:
            again.close()
        with pytest.raises(BlockingIOError):
            print(other.recv(1000))
        assert kept[-1].state.name == "CLOSED"


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
