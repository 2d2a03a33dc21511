"""fabric.websockets.sync.server and router: hooks of the opening handshake, handlers, shutdown, and bad clients."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fabric.websockets.sync.server as server_module
from fabric.websockets.exceptions import (
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidMessage,
    InvalidStatus,
    NegotiationError,
)
from fabric.websockets.http11 import Request, Response
from fabric.websockets.sync.client import connect
from fabric.websockets.sync.router import Router, route, unix_route
from fabric.websockets.sync.server import Server, ServerConnection, basic_auth, broadcast, serve, unix_serve
from support.dropin_sync import DEADLINE, echo, nothing_left, running, started, until, url
from support.threads import Caller
from support.tls import client_context, server_context

Log = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def clean(caplog: Log) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, "websockets")
    with nothing_left():
        yield


def refused(target: str, status: int, **options: Any) -> None:
    with pytest.raises(InvalidStatus, match=f"HTTP {status}"):
        connect(target, **options)


# --- the opening handshake ---------------------------------------------------------------------------------


def test_hooks_get_the_connection_and_may_use_it() -> None:
    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        assert connection.request is request
        connection.username = "set"
        assert connection.remote_address[0] == "127.0.0.1"
        return connection.respond(403, "no") if request.path == "/no" else None

    def process_response(connection: ServerConnection, request: Request, response: Response) -> Response | None:
        headers = response.headers.copy()
        headers["X-One"] = connection.username
        return dataclasses.replace(response, headers=headers)

    options: dict[str, Any] = {"process_request": process_request, "process_response": process_response}
    with started(server_header="own", **options) as server:
        with connect(url(server)) as client:
            assert client.response is not None
            assert (client.response.headers["X-One"], client.response.headers["Server"]) == ("set", "own")
        refused(url(server, "/no"), 403)


def test_hooks_that_raise_or_hang_up(caplog: Log) -> None:
    def process_request(connection: ServerConnection, request: Request) -> None:
        if request.path == "/raises":
            raise RuntimeError("BOOM")
        if request.path == "/shuts":
            connection.socket.shutdown(socket.SHUT_RDWR)
            connection.socket.close()
        connection.close_socket()

    with started(process_request=process_request) as server:
        refused(url(server, "/raises"), 500)
        for path in ("/shuts", "/closes"):
            with pytest.raises((OSError, InvalidMessage)):
                connect(url(server, path))
    assert "process_request failed" in caplog.text
    assert [record.msg for record in caplog.records if record.levelno >= logging.ERROR] == ["process_request failed"]


def test_origins_and_subprotocols() -> None:
    with started(origins=["https://a", re.compile("https://.*b")], subprotocols=["x", "y"]) as server:
        for origin in ("https://a", "https://ab"):
            with connect(url(server), origin=origin, subprotocols=["y"]) as client:
                assert client.subprotocol == "y"
        refused(url(server), 403, subprotocols=["y"])
        refused(url(server), 400, origin="https://a")

    def select(connection: ServerConnection, offered: Any) -> Any:
        connection.username = ",".join(offered)
        if "raise" in offered:
            raise RuntimeError
        if "none" in offered:
            raise NegotiationError("none of them")
        return offered[-1]

    def handler(connection: ServerConnection) -> None:
        connection.send(connection.username)

    with started(handler, select_subprotocol=select) as server:
        with connect(url(server), subprotocols=["p", "q"]) as client:
            assert (client.subprotocol, client.recv(DEADLINE)) == ("q", "p,q")
        refused(url(server), 500, subprotocols=["raise"])
        refused(url(server), 400, subprotocols=["none"])


def test_basic_auth() -> None:
    def handler(connection: ServerConnection) -> None:
        connection.send(connection.username)

    for arguments in (
        {"credentials": ("hello", "iloveyou")},
        {"credentials": [("bye", "x"), ("hello", "iloveyou")]},
        {"check_credentials": lambda username, password: (username, password) == ("hello", "iloveyou")},
    ):
        with started(handler, process_request=basic_auth("realm", **arguments)) as server:
            target = url(server).replace("ws://", "ws://{}@")
            with connect(target.format("hello:iloveyou")) as client:
                assert client.recv(DEADLINE) == "hello"
            refused(target.format("hello:other"), 401)
            refused(url(server), 401)
    with pytest.raises(ValueError, match="provide either credentials or check_credentials"):
        basic_auth()
    with pytest.raises(TypeError, match="invalid credentials argument: 42"):
        basic_auth(credentials=42)  # type: ignore[arg-type]


# --- clients that do wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_a_client_that_says_nothing_or_nonsense_is_dropped(tls: bool, caplog: Log) -> None:
    context = server_context() if tls else None
    with started(open_timeout=0.1, ssl=context) as server:
        for said in (b"", b"HELO relay.invalid\r\n\r\n"):
            with socket.create_connection(server.socket.getsockname()) as sock:
                sock.sendall(said)
                sock.settimeout(DEADLINE)
                with contextlib.suppress(ConnectionResetError):
                    while sock.recv(4096):
                        pass
        until(lambda: not server.handler_threads)
    if not tls:
        assert "! no valid HTTP request" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_plain_http_gets_an_answer() -> None:
    with started() as server, socket.create_connection(server.socket.getsockname()) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.settimeout(DEADLINE)
        answer = b""
        while data := sock.recv(4096):
            answer += data
        assert answer.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")


# --- handlers and the end ----------------------------------------------------------------------------------


def test_a_handler_that_returns_or_raises(caplog: Log) -> None:
    def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        if connection.request.path == "/crash":
            raise RuntimeError("BOOM")

    with started(handler) as server:
        with connect(url(server)) as client, pytest.raises(ConnectionClosedOK, match=r"received 1000 \(OK\)"):
            client.recv(DEADLINE)
        with connect(url(server, "/crash")) as client, pytest.raises(ConnectionClosedError, match="received 1011"):
            client.recv(DEADLINE)
    assert "connection handler failed" in caplog.text
    assert "server listening on 127.0.0.1:" in caplog.text
    assert caplog.messages.count("server closed") >= 1


def test_shutdown_closes_connections_and_waits_for_handlers() -> None:
    returned: list[str] = []

    def handler(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosedError):
            echo(connection)
        returned.append("yes")

    with started(handler) as server, connect(url(server)) as one, connect(url(server)) as two:
        for client in (one, two):
            client.send("x")
            client.recv(DEADLINE)
        assert len(server.connections) == 2
        broadcast(server.connections, "all")
        assert (one.recv(DEADLINE), two.recv(DEADLINE)) == ("all", "all")
        server.shutdown(code=1012, reason="restart")
        assert returned == ["yes", "yes"]
        with pytest.raises(ConnectionClosedError, match=r"received 1012 \(service restart\) restart"):
            one.recv(DEADLINE)
        assert server.socket_closed.is_set()
        assert server.connections == set()


def test_shutdown_may_leave_connections_open() -> None:
    with started() as server:
        with connect(url(server)) as client:
            until(lambda: server.connections)
            stopping = Caller(server.shutdown, close_connections=False)
            assert server.socket_closed.wait(DEADLINE)
            client.send("still")
            assert client.recv(DEADLINE) == "still"
        stopping.result()


@pytest.mark.parametrize("close_connections", [True, False])
def test_handlers_may_shut_their_server_down(close_connections: bool) -> None:
    """Several at once: none waits for itself, nor for another one that waits."""
    both = threading.Barrier(2)
    returned: list[str] = []

    def handler(connection: ServerConnection) -> None:
        both.wait(DEADLINE)
        connection.server.shutdown(close_connections)
        returned.append("yes")

    with started(handler) as server, connect(url(server)) as one, connect(url(server)) as two:
        for client in (one, two):
            code = 1001 if close_connections else 1000
            with pytest.raises(ConnectionClosedOK, match=f"received {code}"):
                client.recv(DEADLINE)
        until(lambda: not server.handler_threads)
        assert returned == ["yes", "yes"]


def test_a_server_that_never_served_can_be_shut_down() -> None:
    server = serve(echo, "127.0.0.1", 0)

    def fail() -> None:
        with server:
            raise LookupError

    with pytest.raises(LookupError):
        Caller(fail).result()
    assert server.socket_closed.is_set()
    Caller(server.serve_forever).result()  # returns at once
    Caller(server.shutdown).result()


def test_a_request_that_is_being_judged_at_shutdown_gets_503() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def process_request(connection: ServerConnection, request: Request) -> None:
        asked.set()
        assert go_on.wait(DEADLINE)

    with started(process_request=process_request) as server:
        connecting = Caller(connect, url(server))
        assert asked.wait(DEADLINE)
        stopping = Caller(server.shutdown)
        assert server.socket_closed.wait(DEADLINE)
        go_on.set()
        with pytest.raises(InvalidStatus, match="HTTP 503"):
            connecting.result()
        stopping.result()


def test_many_clients_at_once() -> None:
    def visit(number: int) -> None:
        with connect(url(server), compression=None) as client:
            for each in range(20):
                client.send(f"{number} {each}")
                assert client.recv(DEADLINE) == f"{number} {each}"

    with started(compression=None) as server:
        for caller in [Caller(visit, number) for number in range(12)]:
            caller.result()


def test_listening(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, running(serve(echo, sock=sock)) as server:
        assert server.socket is sock
        assert server.fileno() == sock.fileno()
        with connect(url(server)) as client:
            client.send("x")
            assert client.recv(DEADLINE) == "x"
        with pytest.raises(ValueError, match="host is incompatible with sock"):
            serve(echo, "localhost", sock=sock)
    with pytest.raises(ValueError, match="missing path argument"):
        unix_serve(echo)
    with pytest.raises(TypeError, match="subprotocols must be a list"):
        serve(echo, subprotocols="chat")
    with pytest.raises(ValueError, match="unsupported compression: False"):
        serve(echo, compression=False)  # type: ignore[arg-type]


# --- shortages ---------------------------------------------------------------------------------------------


class Shortage:
    """While it lasts, `server` gets no connection accepted, or no thread started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
        self.server: Server | None = None
        self.lasts = False
        accept, start = socket.socket.accept, threading.Thread.start

        def fake_accept(sock: socket.socket) -> tuple[socket.socket, Any]:
            if self.lasts and self.server is not None and sock is self.server.socket:
                raise OSError(errno.EMFILE, "Too many open files")
            return accept(sock)

        def fake_start(thread: threading.Thread) -> None:
            if self.lasts and self.server is not None and thread._target == self.server._handle:  # type: ignore[attr-defined]
                raise RuntimeError("can't start new thread")
            start(thread)

        if lacking == "descriptors":
            monkeypatch.setattr(socket.socket, "accept", fake_accept)
        else:
            monkeypatch.setattr(threading.Thread, "start", fake_start)


def errors(caplog: Log) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("lacking", ["descriptors", "threads"])
def test_a_shortage_is_logged_and_outlived(lacking: str, monkeypatch: pytest.MonkeyPatch, caplog: Log) -> None:
    monkeypatch.setattr(server_module, "RETRY", 0.001)
    shortage = Shortage(monkeypatch, lacking)
    with started() as server:
        shortage.server, shortage.lasts = server, True
        with contextlib.ExitStack() as visitors:
            visitors.enter_context(socket.create_connection(server.socket.getsockname()))
            until(lambda: errors(caplog))
            if lacking == "threads":  # each of them is hung up on
                visitors.enter_context(socket.create_connection(server.socket.getsockname()))
            until(lambda: len(errors(caplog)) >= 2)
            shortage.lasts = False
        with connect(url(server)) as client:
            client.send("x")
            assert client.recv(DEADLINE) == "x"
    first, second, *_ = errors(caplog)
    assert first.startswith("no connection can be accepted: ")
    assert re.fullmatch(r"for \d+ s no connection could be accepted", second)
    assert caplog.messages.count("connections are accepted again") == 1


def test_a_connection_without_a_thread_is_closed(monkeypatch: pytest.MonkeyPatch, caplog: Log) -> None:
    shortage = Shortage(monkeypatch, "threads")
    with started() as server:
        shortage.server, shortage.lasts = server, True
        with socket.create_connection(server.socket.getsockname()) as sock:
            sock.settimeout(DEADLINE)
            assert sock.recv(1) == b""
        assert server.handler_threads == set()


def test_shutdown_ends_the_wait_for_what_is_lacking(monkeypatch: pytest.MonkeyPatch, caplog: Log) -> None:
    monkeypatch.setattr(server_module, "RETRY", 3600.0)
    shortage = Shortage(monkeypatch, "descriptors")
    with started() as server:
        shortage.server, shortage.lasts = server, True
        with socket.create_connection(server.socket.getsockname()):
            until(lambda: errors(caplog))
            Caller(server.shutdown).result()
    assert len(errors(caplog)) == 1


# --- routing -----------------------------------------------------------------------------------------------


def test_routes(tmp_path: Path) -> None:
    def name(connection: ServerConnection, **found: Any) -> None:
        connection.send(str(sorted(found.items())))

    routing = pytest.importorskip("werkzeug.routing")
    rules = routing.Map(
        [
            routing.Rule("/", endpoint=name),
            routing.Rule("/user/<int:number>", endpoint=name),
            routing.Rule("/r", redirect_to="/user/9"),
        ]
    )
    with running(route(rules, "127.0.0.1", 0)) as server:
        with connect(url(server, "/user/7?x=1")) as client:
            assert client.recv(DEADLINE) == "[('number', 7)]"
        with connect(url(server, "/r")) as client:
            assert client.recv(DEADLINE) == "[('number', 9)]"
        refused(url(server, "/other"), 404)

    class Own(Router):
        def handler(self, connection: ServerConnection) -> None:
            connection.send("own")

    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(403, "") if request.path == "/" else None

    options: dict[str, Any] = {"create_router": Own, "process_request": process_request}
    with running(route(rules, "127.0.0.1", 0, ssl=server_context(), **options)) as server:
        with connect(url(server, "/user/7", scheme="wss"), ssl=client_context()) as client:
            assert client.recv(DEADLINE) == "own"
        refused(url(server, scheme="wss"), 403, ssl=client_context())
    server = unix_route(rules, tmp_path / "socket")
    server.shutdown()
