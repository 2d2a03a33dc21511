"""fabric.websockets.serve: hooks of the opening handshake, handlers, closing, and clients that do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http
import logging
import socket
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from fabric.websockets import Request, Response, State
from fabric.websockets.asyncio import router as router_module
from fabric.websockets.asyncio.client import connect, unix_connect
from fabric.websockets.asyncio.server import Server, ServerConnection, basic_auth, broadcast, serve, unix_serve
from fabric.websockets.exceptions import (
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidMessage,
    InvalidStatus,
    NegotiationError,
)
from fabric.websockets.extensions.base import ServerExtensionFactory
from support.dropin import Held, echo, start, url
from support.frames import PONG
from support.raw_peer import RawPeer, request
from support.serving import turns, until
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack
Log = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def all_records(caplog: Log) -> None:
    caplog.set_level(logging.DEBUG, "websockets")


def logged(caplog: Log, level: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def port(server: Server) -> int:
    number: int = server.sockets[0].getsockname()[1]
    return number


# --- its life ----------------------------------------------------------------------------------------------


async def test_it_is_a_context_manager_or_awaited(caplog: Log) -> None:
    async with serve(echo, "127.0.0.1", 0) as server:
        assert server.is_serving()
        assert server.get_loop() is asyncio.get_running_loop()
        assert server.connections == set()
        where = server.sockets[0].getsockname()
    assert not server.is_serving()
    assert server.sockets == ()
    assert logged(caplog) == [f"server listening on {where[0]}:{where[1]}", "server closing", "server closed"]
    server = await serve(echo, "127.0.0.1", 0)
    async with server:
        assert await server is server
    server.close()
    await server.wait_closed()


async def test_it_serves_when_it_is_asked_to() -> None:
    server = await serve(echo, "127.0.0.1", 0, start_serving=False)
    assert not server.is_serving()
    serving = asyncio.ensure_future(server.serve_forever())
    await until(server.is_serving)
    async with connect(f"ws://127.0.0.1:{port(server)}") as client:
        serving.cancel()
        with pytest.raises(ConnectionClosedOK, match=r"received 1001 \(going away\); then sent 1001"):
            await client.recv()
    with pytest.raises(asyncio.CancelledError):
        await serving
    server = await serve(echo, "127.0.0.1", 0)
    serving = asyncio.ensure_future(server.serve_forever())
    server.close()
    await serving


async def test_the_event_loop_judges_its_own_arguments(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        with pytest.raises(ValueError, match="host/port and sock can not be specified at the same time"):
            await serve(echo, "127.0.0.1", sock=sock)
        async with serve(echo, sock=sock) as server, connect(url(server)) as client:
            await client.send("x")
            assert await client.recv() == "x"
    with pytest.raises(ValueError, match="path"):
        await unix_serve(echo)
    with pytest.raises(TypeError):
        await serve(echo, "127.0.0.1", 0, nonsense=True)
    async with unix_serve(echo, tmp_path / "socket"), unix_connect(str(tmp_path / "socket")) as client:
        await client.send("x")
        assert await client.recv() == "x"


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"klass": object}, TypeError, r"serve\(\) has no argument 'klass' any more; instead of it: create_connection"),
        ({"subprotocols": "chat"}, TypeError, "subprotocols must be a list, not a str"),
        ({"compression": False}, ValueError, "unsupported compression: False"),
        ({"extensions": [ServerExtensionFactory()]}, TypeError, "only ServerPerMessageDeflateFactory is"),
    ],
)
async def test_arguments_that_are_refused(options: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        serve(echo, "127.0.0.1", 0, **options)


async def test_tls(stack: Stack) -> None:
    server = await start(stack, ssl=server_context())
    async with connect(url(server, scheme="wss"), ssl=client_context()) as client:
        await client.send("x" * 100_000)
        assert await client.recv() == "x" * 100_000
    _, writer = await asyncio.open_connection("127.0.0.1", port(server))
    writer.close()  # in the midst of the TLS handshake
    await writer.wait_closed()


# --- handlers ----------------------------------------------------------------------------------------------


async def test_a_connection_ends_with_its_handler(stack: Stack, caplog: Log) -> None:
    async def handler(connection: ServerConnection) -> None:
        if connection.request is not None and connection.request.path == "/crash":
            raise LookupError("BOOM")

    server = await start(stack, handler)
    async with connect(url(server)) as client:
        with pytest.raises(ConnectionClosedOK, match=r"^received 1000 \(OK\); then sent 1000 \(OK\)$"):
            await client.recv()
    async with connect(url(server, "/crash")) as client:
        with pytest.raises(ConnectionClosedError, match=r"^received 1011 \(internal error\); then sent 1011"):
            await client.recv()
    await until(lambda: not server.handler_tasks)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (record.name, record.getMessage()) == ("websockets.server", "connection handler failed")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "BOOM"
    assert isinstance(record.websocket, ServerConnection)  # type: ignore[attr-defined]
    assert logged(caplog).count("connection open") == logged(caplog).count("connection closed") == 2


async def test_connections_are_those_that_are_open(stack: Stack) -> None:
    held = Held()
    server = await start(stack, held)
    async with connect(url(server)) as first, connect(url(server)):
        accepted = {await held.next(), await held.next()}
        assert server.connections == accepted
        assert {each.server for each in accepted} == {server}
        broadcast(server.connections, "all")
        assert await first.recv() == "all"
    await until(lambda: not server.connections)


async def test_closing_tells_open_connections(stack: Stack) -> None:
    server = await serve(echo, "127.0.0.1", 0)
    async with connect(url(server)) as client:
        server.close(code=1012, reason="restarting")
        server.close()
        with pytest.raises(ConnectionClosedError, match=r"received 1012 \(service restart\) restarting"):
            await client.recv()
    await server.wait_closed()


async def test_closing_can_leave_connections_open() -> None:
    server = await serve(echo, "127.0.0.1", 0)
    async with connect(url(server)) as client:
        server.close(close_connections=False)
        waiting = asyncio.ensure_future(server.wait_closed())
        await client.send("x")
        assert await client.recv() == "x"
        assert not waiting.done()
    await waiting


async def test_closing_waits_for_handlers() -> None:
    gate = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        await connection.wait_closed()
        await gate.wait()

    server = await serve(handler, "127.0.0.1", 0)
    async with connect(url(server)) as client:
        server.close()
        await client.wait_closed()
    waiting = asyncio.ensure_future(server.wait_closed())
    await turns()
    assert not waiting.done()
    gate.set()
    await waiting


async def test_who_is_in_the_opening_handshake_gets_503(stack: Stack) -> None:
    server: Any = None

    async def process_request(connection: ServerConnection, request: Request) -> None:
        server.close()
        await until(lambda: not server.is_serving())

    server = await serve(echo, "127.0.0.1", 0, process_request=process_request)
    with pytest.raises(InvalidStatus, match="HTTP 503") as caught:
        await connect(url(server))
    assert caught.value.response.body == b"Server is shutting down.\n"
    await server.wait_closed()


# --- hooks of the opening handshake ------------------------------------------------------------------------


def as_coroutine(function: Any) -> Any:
    async def run(*arguments: Any) -> Any:
        await asyncio.sleep(0)
        return function(*arguments)

    return run


@pytest.fixture(params=["plain", "async"])
def hook(request: pytest.FixtureRequest) -> Any:
    """Makes a hook of a function, plain or as a coroutine function."""
    return as_coroutine if request.param == "async" else lambda function: function


async def test_process_request_goes_on_or_answers(hook: Any, stack: Stack, caplog: Log) -> None:
    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        connection.seen = request.headers["Host"]  # type: ignore[attr-defined]
        if request.path == "/health":
            return connection.respond(200, "fine\n")
        return connection.respond(http.HTTPStatus.FORBIDDEN, "no") if request.path == "/no" else None

    held = Held()
    server = await start(stack, held, process_request=hook(process_request))
    async with connect(url(server)):
        assert (await held.next()).seen == f"localhost:{port(server)}"  # type: ignore[attr-defined]
    with pytest.raises(InvalidStatus, match="HTTP 403"):
        await connect(url(server, "/no"))
    async with await RawPeer.connect(port(server)) as peer:
        peer.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await peer.read_answer()
        assert (answer.status, answer.body) == (200, b"fine\n")
        assert answer.headers["connection"] == "close"
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["server"].startswith("Python/")
        assert "date" in answer.headers
    await until(lambda: "HTTP response sent (200 OK)" in logged(caplog))
    assert "HTTP response sent (403 Forbidden)" in logged(caplog)
    assert logged(caplog, logging.ERROR) == []


async def test_process_request_may_change_the_request(hook: Any, stack: Stack) -> None:
    def process_request(connection: ServerConnection, request: Request) -> None:
        del request.headers["Sec-WebSocket-Key"]

    server = await start(stack, process_request=hook(process_request))
    with pytest.raises(InvalidStatus, match="HTTP 400") as caught:
        await connect(url(server))
    why = b"Failed to open a WebSocket connection: missing Sec-WebSocket-Key header.\n"
    assert caught.value.response.body == why


async def test_process_response_changes_or_replaces_the_response(hook: Any, stack: Stack) -> None:
    def process_response(connection: ServerConnection, request: Request, response: Response) -> Response | None:
        response.headers["X-Mine"] = request.path
        if request.path != "/replaced":
            return None
        headers = response.headers.copy()
        headers["X-Other"] = "y"
        return dataclasses.replace(response, headers=headers)

    server = await start(stack, process_response=hook(process_response), server_header="Neo")
    for path, other in (("/", None), ("/replaced", "y")):
        async with connect(url(server, path)) as client:
            assert client.response is not None
            headers = client.response.headers
            assert (headers["X-Mine"], headers.get("X-Other"), headers["Server"]) == (path, other, "Neo")
    plain = await start(stack, server_header=None)
    async with connect(url(plain)) as client:
        assert client.response is not None
        assert "Server" not in client.response.headers


@pytest.mark.parametrize("name", ["process_request", "process_response"])
@pytest.mark.parametrize("returns", [False, True])
async def test_hooks_that_fail(name: str, returns: bool, hook: Any, stack: Stack, caplog: Log) -> None:
    def fail(*arguments: Any) -> Any:
        if returns:
            return "nonsense"
        raise LookupError("BOOM")

    server = await start(stack, **{name: hook(fail)})
    with pytest.raises(InvalidStatus, match="HTTP 500") as caught:
        await connect(url(server))
    assert b"See server log for more information." in caught.value.response.body
    assert logged(caplog, logging.ERROR) == [f"{name} failed"]


class Rude(logging.Handler):
    """A logging handler that raises."""

    def emit(self, record: logging.LogRecord) -> None:
        raise LookupError("of the logging handler")


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit])
@pytest.mark.parametrize("place", ["process_request", "process_response", "select_subprotocol", "handler"])
async def test_whatever_is_raised_ends_the_connection(place: str, kind: type[BaseException], stack: Stack) -> None:
    def hit(*_: Any) -> None:
        raise kind("of the application")

    async def handler(connection: ServerConnection) -> None:
        hit()

    options: dict[str, Any] = {"close_timeout": 0.1} if place == "handler" else {place: hit}
    server = await start(stack, handler if place == "handler" else echo, subprotocols=["a"], **options)
    async with await RawPeer.connect(port(server)) as peer:
        peer.send(request("Sec-WebSocket-Protocol: a"))
        async with asyncio.timeout(20):
            await peer.reader.read()
    await until(lambda: not server.handler_tasks and not server.all_connections)


@pytest.mark.parametrize("early", [False, True], ids=["open", "in its handshake"])
async def test_a_logging_handler_that_raises_keeps_no_connection(
    early: bool, stack: Stack, loop_reports: list[str]
) -> None:
    logger = logging.getLogger("rude")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    server = await start(stack, echo, logger=logger, open_timeout=1000)
    async with await RawPeer.connect(port(server)) as peer:
        if not early:
            peer.send(request())
            await peer.read_answer()
        rude = Rude()
        logger.addHandler(rude)
        try:
            if early:
                peer.send(request())
            else:
                peer.send_close(1000)
            async with asyncio.timeout(20):
                await peer.reader.read()
            await until(lambda: not server.handler_tasks and not server.all_connections)
        finally:
            logger.removeHandler(rude)
            loop_reports.clear()


async def test_a_tls_handshake_that_ends_after_close_is_answered(stack: Stack) -> None:
    server = await start(stack, ssl=server_context())
    where = port(server)
    first = await connect(url(server, scheme="wss"), ssl=client_context())
    async with await RawPeer.connect(where) as peer:
        # Accepted in order: what came before this one has been accepted.
        async with connect(url(server, scheme="wss"), ssl=client_context()):
            pass
        server.close()
        await first.wait_closed()
        await peer.writer.start_tls(client_context(), server_hostname="localhost")
        peer.send(request())
        assert (await peer.read_answer()).status == 503
    await server.wait_closed()


async def test_keepalive_and_close_go_on_although_the_log_raises(stack: Stack) -> None:
    logger = logging.getLogger("rude")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    held = Held()
    server = await start(stack, held, logger=logger, ping_interval=0.01)
    async with await RawPeer.open(port(server)) as peer:
        await held.next()
        rude = Rude()
        logger.addHandler(rude)
        logger.setLevel(logging.DEBUG)
        try:
            for _ in range(3):
                ping = await peer.frame()
                peer.send_frame(PONG, ping.payload)
            server.close()
            await peer.close_seen()
            peer.send_close(1001)
            await peer.rest()
            await server.wait_closed()
        finally:
            logger.removeHandler(rude)


async def test_select_subprotocol_has_the_connection(stack: Stack) -> None:
    def select(connection: ServerConnection, offered: Any) -> Any:
        connection.asked = list(offered)  # type: ignore[attr-defined]
        if not offered:
            raise NegotiationError("none offered")
        return offered[-1]

    held = Held()
    server = await start(stack, held, subprotocols=["a"], select_subprotocol=select)
    async with connect(url(server), subprotocols=["x", "y"]) as client:  # type: ignore[list-item]
        accepted = await held.next()
        assert (client.subprotocol, accepted.subprotocol) == ("y", "y")
        assert accepted.asked == ["x", "y"]  # type: ignore[attr-defined]
    with pytest.raises(InvalidStatus, match="HTTP 400"):
        await connect(url(server))


@pytest.mark.parametrize(
    ("credentials", "header", "body"),
    [
        (("hello", "iloveyou"), None, b"Missing credentials\n"),
        (("hello", "iloveyou"), "Negotiate ...", b"Unsupported credentials\n"),
        (("hello", "changeme"), "Basic aGVsbG86aWxvdmV5b3U=", b"Invalid credentials\n"),
        (("other", "iloveyou"), "Basic aGVsbG86aWxvdmV5b3U=", b"Invalid credentials\n"),
        (("hello", "iloveyou"), "Basic aGVsbG86aWxvdmV5b3U=", None),
        ([("other", "x"), ("hello", "iloveyou")], "Basic aGVsbG86aWxvdmV5b3U=", None),
    ],
)
async def test_basic_auth(credentials: Any, header: str | None, body: bytes | None, stack: Stack) -> None:
    held = Held()
    server = await start(stack, held, process_request=basic_auth("realm", credentials))
    headers = {} if header is None else {"Authorization": header}
    if body is None:
        async with connect(url(server), additional_headers=headers):
            assert (await held.next()).username == "hello"
        return
    with pytest.raises(InvalidStatus, match="HTTP 401") as caught:
        await connect(url(server), additional_headers=headers)
    assert caught.value.response.body == body
    assert caught.value.response.headers["WWW-Authenticate"] == 'Basic realm="realm", charset="UTF-8"'


async def test_basic_auth_asks_the_application(hook: Any, stack: Stack) -> None:
    held = Held()
    check = hook(lambda username, password: (username, password) == ("hello", "iloveyou"))
    server = await start(stack, held, process_request=basic_auth(check_credentials=check))
    async with connect(url(server).replace("ws://", "ws://hello:iloveyou@")):
        assert (await held.next()).username == "hello"
    with pytest.raises(InvalidStatus, match="HTTP 401"):
        await connect(url(server).replace("ws://", "ws://hello:wrong@"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, ValueError),
        ({"credentials": ("a", "b"), "check_credentials": lambda: True}, ValueError),
        ({"credentials": 42}, TypeError),
        ({"credentials": [42]}, TypeError),
        ({"credentials": "abc"}, TypeError),
    ],
)
def test_basic_auth_refuses_what_is_none(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        basic_auth(**options)


async def test_connections_of_ones_own(stack: Stack) -> None:
    class Mine(ServerConnection):
        async def twice(self, text: str) -> None:
            await self.send(text)
            await self.send(text)

    async def handler(connection: ServerConnection) -> None:
        assert isinstance(connection, Mine)
        await connection.twice("x")

    server = await start(stack, handler, create_connection=Mine)
    async with connect(url(server)) as client:
        assert [message async for message in client] == ["x", "x"]


# --- clients that do wrong ---------------------------------------------------------------------------------


async def test_who_never_asks_is_dropped(stack: Stack, caplog: Log) -> None:
    server = await start(stack, open_timeout=0.01)
    async with await RawPeer.connect(port(server)) as peer:
        await peer.closed()
    await until(lambda: not server.handler_tasks)
    [record] = [record for record in caplog.records if record.getMessage() == "! no valid HTTP request"]
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "connection closed while reading HTTP request line"


async def test_a_hook_that_takes_too_long_is_cancelled(stack: Stack) -> None:
    cancelled = asyncio.Event()

    async def process_request(connection: ServerConnection, request: Request) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    server = await start(stack, process_request=process_request, open_timeout=0.01)
    while not cancelled.is_set():  # where the machine stalls, the time is over before the request has come
        with pytest.raises(InvalidMessage):
            await connect(url(server))


@pytest.mark.parametrize(
    "data", [b"HELO relay.invalid\r\n", b"GET / HTTP/1.1\r\nbad line\r\n\r\n", b"GET / HTTP/1.1\n"]
)
async def test_what_is_no_request_is_not_answered(data: bytes, stack: Stack) -> None:
    server = await start(stack)
    async with await RawPeer.connect(port(server)) as peer:
        peer.send(data)
        await peer.closed()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET " + b"/" * 9000, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 9000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 426),
        (request(line="POST / HTTP/1.1"), 405),
        (request(line="GET / HTTP/1.0"), 505),
        (request(Sec_WebSocket_Version="8"), 400),
    ],
    ids=lambda value: str(value)[-40:],
)
async def test_requests_that_are_refused(data: bytes, status: int, stack: Stack, caplog: Log) -> None:
    server = await start(stack)
    async with await RawPeer.connect(port(server)) as peer:
        peer.send(data)
        assert (await peer.read_answer()).status == status
    await until(lambda: not server.handler_tasks)
    assert logged(caplog, logging.ERROR) == []


async def test_a_client_that_hangs_up_while_it_is_judged(stack: Stack, caplog: Log) -> None:
    async def process_request(connection: ServerConnection, request: Request) -> None:
        connection.transport.close()
        await until(lambda: connection.state is State.CLOSED)

    server = await start(stack, process_request=process_request)
    with pytest.raises(InvalidMessage):
        await connect(url(server))
    await until(lambda: not server.handler_tasks)
    assert logged(caplog, logging.ERROR) == []


async def test_a_client_that_is_answered_and_does_not_hang_up(stack: Stack) -> None:
    server = await start(stack, close_timeout=0.01)
    async with await RawPeer.connect(port(server)) as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await peer.read_answer()).status == 426
        await until(lambda: not server.handler_tasks)


async def test_frames_that_come_with_the_request(stack: Stack) -> None:
    server = await start(stack)
    async with await RawPeer.open(port(server), rest=b"\x81\x82\x00\x00\x00\x00hi") as peer:
        assert await peer.payload() == b"hi"
        peer.send_close(1001, "bye")
        assert await peer.close_seen() == (1001, "bye")
        await peer.closed()


async def test_a_client_that_floods_before_it_is_answered_is_not_read(stack: Stack) -> None:
    gate = asyncio.Event()

    async def process_request(connection: ServerConnection, request: Request) -> None:
        await gate.wait()

    server = await start(stack, process_request=process_request)
    async with await RawPeer.connect(port(server)) as peer:
        message = b"\x82\xfe\x27\x10" + bytes(4) + bytes(10_000)
        peer.send(request() + message * 100)
        [task] = await _handlers(server)
        gate.set()
        answer = await peer.read_answer()
        assert answer.status == 101
        for _ in range(100):
            assert await peer.payload() == bytes(10_000)
        assert not task.done()


async def _handlers(server: Server) -> list[Any]:
    await until(lambda: server.handler_tasks)
    return list(server.handler_tasks)


async def test_a_client_that_never_reads_is_waited_for(stack: Stack) -> None:
    waiting = asyncio.Event()

    async def handler(connection: ServerConnection) -> None:
        async def send() -> None:
            while True:
                await connection.send(bytes(100_000))

        sending = asyncio.ensure_future(send())
        await until(lambda: connection._writable_waiter is not None)
        waiting.set()
        try:
            await sending
        except ConnectionClosedError:
            return
        finally:
            sending.cancel()

    server = await start(stack, handler, close_timeout=0.01)
    async with await RawPeer.open(port(server), receive_buffer=4096):
        await waiting.wait()


# --- routes ------------------------------------------------------------------------------------------------


async def test_routes_need_werkzeug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "werkzeug.routing", None)
    monkeypatch.setitem(sys.modules, "werkzeug", None)
    with pytest.raises(ImportError, match=r"route\(\) requires werkzeug"):
        router_module.route(None)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=r"unix_route\(\) requires werkzeug"):
        router_module.unix_route(None)  # type: ignore[arg-type]


class Redirect(Exception):
    new_url = "ws://elsewhere/"


class Rules:
    """As much of `werkzeug.routing.Map` as a router asks of it."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self.rules = [types.SimpleNamespace(websocket=False)]
        self.bound: list[dict[str, str]] = []

    def iter_rules(self) -> Any:
        return iter(self.rules)

    def bind(self, **options: str) -> Any:
        self.bound.append(options)
        return self

    def match(self, path_info: str, query_args: str) -> Any:
        if path_info == "/moved":
            raise Redirect
        if not path_info.startswith("/room/"):
            raise LookupError
        return self.handler, {"room": path_info.removeprefix("/room/"), "query": query_args}


@pytest.fixture
def werkzeug(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {
        "werkzeug": {},
        "werkzeug.exceptions": {"NotFound": LookupError},
        "werkzeug.routing": {"RequestRedirect": Redirect},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("werkzeug")
async def test_routes(hook: Any, stack: Stack) -> None:
    async def handler(connection: ServerConnection, room: str, query: str) -> None:
        await connection.send(f"{room} {query}")

    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(403, "no") if request.path == "/room/closed" else None

    rules: Any = Rules(handler)
    for options in ({}, {"process_request": hook(process_request), "server_name": "name", "ssl": True}):
        server = await stack.enter_async_context(router_module.route(rules, "127.0.0.1", 0, **options))
        assert rules.rules[0].websocket
        async with connect(url(server, "/room/7?a=b")) as client:
            assert await client.recv() == "7 a=b"
        with pytest.raises(InvalidStatus, match="HTTP 404"):
            await connect(url(server, "/nowhere"))
        async with await RawPeer.connect(port(server)) as peer:
            peer.send(request(line="GET /moved HTTP/1.1"))
            answer = await peer.read_answer()
            assert (answer.status, answer.headers["location"]) == (302, "ws://elsewhere/")
    assert rules.bound[-1] == {"server_name": "name", "url_scheme": "wss"}
    with pytest.raises(InvalidStatus, match="HTTP 403"):
        await connect(url(server, "/room/closed"))
