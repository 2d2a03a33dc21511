"""What becomes of a client, whatever goes wrong: it is connected, repairing, or closed with the reason."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import ReconnectConfig
from fabric.error import AuthenticationFailed, ConnectionClosed, MessageTooLarge, ReconnectTimeout
from fabric.message import Frame, Message
from fabric.reconnect import ReconnectState
from fabric.server import ConnectedClient
from integration.raw import RawServer, Visit
from support.serving import Held, serve, until
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack

QUICK = ReconnectConfig(initial_delay=0.01, max_delay=0.02, jitter=0)


def text(payload: str) -> bytes:
    return Frame(opcode=1, payload=payload.encode()).encode()


def close_frame(code: int, reason: str = "") -> bytes:
    return Frame(opcode=8, payload=code.to_bytes(2, "big") + reason.encode()).encode()


async def lose_each(visit: Visit) -> None:
    """Accept, and hang up at the first frame."""
    await visit.accept()
    await visit.frame()
    visit.writer.transport.abort()


# Whatever is raised in the repair.


class Wrong(logging.Filter):
    """Raises for each record of a level, as a handler with a bug does."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING:
            raise LookupError("a logging filter with a bug")
        return True


def bug(error: BaseException) -> Callable[..., Any]:
    def raises(*args: Any, **kwargs: Any) -> Any:
        raise error

    return raises


@pytest.mark.parametrize("place", ["next_delay", "disconnected"])
@pytest.mark.parametrize(
    "error", [LookupError("a bug"), OverflowError(), asyncio.CancelledError(), GeneratorExit()], ids=repr
)
async def test_a_fault_in_the_repair_ends_the_client(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException, loop_reports: list[str]
) -> None:
    server = await stack.enter_async_context(RawServer(lose_each))
    client = await WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1)
    waiting = asyncio.create_task(client.recv())
    monkeypatch.setattr(ReconnectState, place, bug(error))
    await client.send("x")
    done, _ = await asyncio.wait([waiting], timeout=2)
    assert done, client
    assert isinstance(waiting.exception(), ReconnectTimeout)
    assert client.state.name == "CLOSED"
    with pytest.raises(ConnectionClosed):
        await client.send("y")
    await client.close()
    loop_reports.clear()


@pytest.mark.parametrize("error", [LookupError("a bug"), OverflowError(), asyncio.CancelledError()], ids=repr)
async def test_a_function_for_tls_that_raises_ends_the_repair(stack: Stack, error: BaseException) -> None:
    calls, used = 0, client_context()

    def context() -> ssl.SSLContext:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise error
        return used

    held = Held()
    server = await serve(stack, held, ssl=server_context())
    client = await WebSocketClient.connect(f"wss://localhost:{server.port}/", reconnect=QUICK, ssl=context)
    (await held.next())._abort()
    with pytest.raises(ReconnectTimeout) as info:
        await client.recv()
    assert isinstance(info.value.cause, type(error))
    assert client.state.name == "CLOSED"
    await client.close()


async def test_a_log_that_raises_does_not_stop_the_repair(stack: Stack, loop_reports: list[str]) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        if server.visits == 1:
            await visit.frame()
            visit.writer.transport.abort()
        await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    client = await stack.enter_async_context(WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1))
    wrong = Wrong()
    logging.getLogger("fabric.client").addFilter(wrong)
    try:
        await client.send("x")
        await until(lambda: (server.visits == 2 and client.is_connected) or client.state.name == "CLOSED")
    finally:
        logging.getLogger("fabric.client").removeFilter(wrong)
    loop_reports.clear()


# The first connection.


async def test_a_connection_lost_while_on_connect_waits_is_raised_by_connect(stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        await visit.frame()

    async def hello(client: WebSocketClient) -> None:
        await client.send("hello")
        await asyncio.Event().wait()

    server = await stack.enter_async_context(RawServer(handle))
    with pytest.raises(ConnectionClosed):
        await WebSocketClient.connect(server.url, on_connect=hello, connection_timeout=3600)


async def test_a_message_awaited_in_on_connect_that_does_not_come(stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept(body=close_frame(1012, "restart"))
        await visit.until_closed()

    async def hello(client: WebSocketClient) -> None:
        await client.recv()
        raise AssertionError("nothing was sent")

    server = await stack.enter_async_context(RawServer(handle))
    with pytest.raises(ConnectionClosed) as info:
        await WebSocketClient.connect(server.url, on_connect=hello, close_timeout=0.1)
    assert info.value.code == 1012


# Each loss is told.


async def test_an_oversize_message_after_each_connect_ends_with_its_cause(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept(body=text("x" * 101))
        await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    client = await WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1, max_message_size=100)
    with pytest.raises(ConnectionClosed) as info:
        await client.recv()
    assert isinstance(info.value.__cause__, MessageTooLarge)
    assert server.visits == 1
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.levelno == logging.WARNING
    assert "1009" in record.getMessage()
    assert "101 bytes" in record.getMessage()
    await client.close()


async def test_each_loss_and_each_kind_of_failure_is_logged(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    async def handle(visit: Visit) -> None:
        if server.visits in (1, 6):
            await visit.accept(body=close_frame(1012, "restart"))
        elif server.visits < 6:
            await visit.request()
            visit.send("HTTP/1.1 503 Busy" if server.visits < 5 else "HTTP/1.1 502 Bad", "Content-Length: 0")
        else:
            await visit.accept()
        if server.visits > 6:
            await visit.until_closed()

    server = await stack.enter_async_context(RawServer(handle))
    client = await stack.enter_async_context(WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1))
    await until(lambda: server.visits == 7 and client.is_connected)
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(told) == 4, told
    assert all(type(value) in (str, int, float) for r in caplog.records for value in r.args or ())  # keeps no client
    for line, part in zip(told, ("1012", "503", "502", "1012"), strict=True):
        assert part in line
    assert "restart" in told[0]


async def test_neither_log_nor_error_tells_a_query(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fabric")

    async def handle(visit: Visit) -> None:
        if server.visits == 1:
            await visit.accept(body=close_frame(1012))
            await visit.until_closed()
        await visit.request()
        visit.send("HTTP/1.1 302 Found", "Location: ftp://h/?token=hunter2", "Content-Length: 0")

    server = await stack.enter_async_context(RawServer(handle))
    client = await WebSocketClient.connect(
        server.url.replace("//", "//me:hunter2@") + "?token=hunter2",
        reconnect=QUICK.with_max_attempts(3),
        close_timeout=0.1,
    )
    with pytest.raises(ReconnectTimeout) as info:
        await client.recv()
    assert "Found" in caplog.text or "302" in caplog.text
    for told in (caplog.text, str(info.value), repr(info.value), str(info.value.cause), repr(client)):
        assert "hunter2" not in told
    await client.close()


async def test_an_ordinary_end_is_no_warning(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept(body=close_frame(1000))

    server = await stack.enter_async_context(RawServer(handle))
    client = await WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1)
    assert await client.recv() is None
    await client.close()
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_send_after_the_end_says_why(stack: Stack) -> None:
    async def handle(visit: Visit) -> None:
        if server.visits == 1:
            await visit.accept()
        else:
            await visit.request()
            visit.send("HTTP/1.1 401 Unauthorized", "Content-Length: 0")

    server = await stack.enter_async_context(RawServer(handle))
    client = await WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=0.1)
    with pytest.raises(ReconnectTimeout):
        await client.wait_closed()
    for send in (client.send, client.send_json, client.ping):
        with pytest.raises(ConnectionClosed) as info:
            await send("x")
        assert isinstance(info.value.__cause__, ReconnectTimeout)
        assert isinstance(info.value.__cause__.cause, AuthenticationFailed)
    with pytest.raises(ConnectionClosed) as info:
        client.send_nowait("x")
    assert isinstance(info.value.__cause__, ReconnectTimeout)
    await client.close()


# Between the server's close frame and its FIN.


@pytest.mark.parametrize("secure", [False, True])
async def test_what_is_sent_behind_the_servers_close_frame_is_queued_and_the_repair_begins_at_once(
    stack: Stack, *, secure: bool
) -> None:
    second: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle(visit: Visit) -> None:
        if server.visits == 1:
            await visit.accept(body=text("now") + close_frame(1012))
            visit.writer.transport.pause_reading()  # type: ignore[attr-defined]
            try:
                await asyncio.Event().wait()  # keeps TCP open, and reads nothing, not even that TLS is to end
            finally:
                visit.writer.transport.abort()
        await visit.accept()
        while True:
            second.put_nowait((await visit.frame()).payload)

    server = await stack.enter_async_context(RawServer(handle, ssl=server_context() if secure else None))
    # A repair that waited for `close_timeout` would not be seen.
    tls: dict[str, Any] = {"ssl": client_context()} if secure else {}
    client = await WebSocketClient.connect(server.url, reconnect=QUICK, close_timeout=3600, **tls)
    assert await client.recv() == Message("now")
    sent = 0
    while client.state.name == "OPEN":
        await asyncio.sleep(0)
    while client.state.name != "OPEN":
        await client.send(str(sent))
        client.send_nowait(str(sent + 1))
        sent += 2
        await asyncio.sleep(0.001)
    assert sent
    assert [await second.get() for _ in range(sent)] == [str(number).encode() for number in range(sent)]
    client._abort()
    client._stop()
    await client.wait_closed()


async def test_a_relay_whose_upstream_is_lost_fails_its_own_client(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    upstream = await serve(stack, held)

    async def relay(client: ConnectedClient) -> None:
        async with WebSocketClient.connect(f"ws://127.0.0.1:{upstream.port}/", auto_reconnect=False) as source:
            while True:
                message = await source.recv()
                assert message is not None
                await client.send(message)

    server = await serve(stack, relay)
    client = await WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", auto_reconnect=False)
    (await held.next())._abort()
    with pytest.raises(ConnectionClosed) as info:
        await client.recv()
    assert info.value.code == 1011
    assert "the handler of connection" in caplog.text
    assert "ConnectionClosed" in caplog.text
