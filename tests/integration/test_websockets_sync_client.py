"""fabric.websockets.sync.client: connecting, messages, pings, closing, threads, and servers that do wrong."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import re
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from fabric._handshake.rules import accept_key
from fabric.websockets import State
from fabric.websockets.exceptions import (
    ConcurrencyError,
    ConnectionClosedError,
    ConnectionClosedOK,
    InvalidHandshake,
    InvalidMessage,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
    ProtocolError,
    SecurityError,
)
from fabric.websockets.sync.client import ClientConnection, connect, reconnect, unix_connect
from fabric.websockets.sync.server import ServerConnection, broadcast, unix_serve
from integration.proxies import HttpProxy, SocksProxy
from support.dropin_sync import DEADLINE, echo, nothing_left, running, started, until, url
from support.threads import Caller, another_loop
from support.tls import client_context, server_context


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with nothing_left():
        yield


class Raw:
    """A server that answers a request with given bytes, or accepts it, and then does as it is told."""

    def __init__(self, answer: bytes | None, then: Callable[[socket.socket], None] = lambda sock: None) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listening.getsockname()[1]}/"
        self._answer = answer
        self._then = then
        self._serving = Caller(self._serve)

    def _serve(self) -> None:
        sock, _ = self._listening.accept()
        with sock:
            data = b""
            while b"\r\n\r\n" not in data:
                data += sock.recv(4096)
            sock.sendall(_accepted(data) if self._answer is None else self._answer)
            self._then(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._serving.result()
        self._listening.close()


def _accepted(request: bytes) -> bytes:
    found = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert found is not None
    lines = (
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_key(found[1].decode())}",
    )
    return "\r\n".join([*lines, "", ""]).encode()


def silent(sock: socket.socket) -> None:
    """Answer nothing, until the client hangs up."""
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(4096):
            pass


# --- opening -----------------------------------------------------------------------------------------------


def test_messages_come_back() -> None:
    with started() as server, connect(url(server)) as client:
        for message in ("text", b"\x00\xff", "", "😀" * 70_000):
            client.send(message)
            assert client.recv(DEADLINE) == message
        client.send(bytearray(b"ab"))
        assert client.recv() == b"ab"
        client.send("str", text=False)
        assert client.recv(decode=True) == "str"
        client.send(b"bytes", text=True)
        assert client.recv(decode=False) == b"bytes"
        assert client.state is State.OPEN
        assert client.protocol.state is State.OPEN
        assert client.local_address == client.socket.getsockname()
        assert client.remote_address == client.socket.getpeername()
        assert client.request is not None
        assert client.response is not None
        assert client.response.status_code == 101
    assert (client.state, client.close_code, client.close_reason) == (State.CLOSED, 1000, "")


def test_headers_subprotocol_and_origin_are_sent() -> None:
    seen: list[Any] = []

    def handler(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.append(connection.request.headers)

    options: dict[str, Any] = {
        "additional_headers": {"X-One": "1"},
        "user_agent_header": None,
        "origin": "https://origin",
        "subprotocols": ["a", "b"],
        "compression": None,
    }
    with started(handler, subprotocols=["b"]) as server, connect(url(server), **options) as client:
        assert client.subprotocol == "b"
        assert client.protocol.extensions == []
        assert client.wait_closed(DEADLINE)
    (headers,) = seen
    assert (headers["X-One"], headers["Origin"]) == ("1", "https://origin")
    assert "User-Agent" not in headers
    assert "Sec-WebSocket-Extensions" not in headers


def test_over_tls() -> None:
    with started(ssl=server_context()) as server:
        with connect(url(server, scheme="wss"), ssl=client_context()) as client:
            client.send("hello")
            assert client.recv(DEADLINE) == "hello"
            client.send(b"x" * 500_000)
            assert client.recv(DEADLINE) == b"x" * 500_000
            assert client.socket.version().startswith("TLS")
            assert client.socket.server_hostname == "localhost"
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            connect(url(server, scheme="wss"))


def test_over_a_socket_that_is_given_and_over_unix(tmp_path: Path) -> None:
    with started() as server:
        sock = socket.create_connection(server.socket.getsockname())
        with connect("ws://no.such.host.invalid/", sock=sock, proxy="http://ignored.invalid") as client:
            client.send("hello")
            assert client.recv(DEADLINE) == "hello"
    path = tmp_path / "socket"
    with running(unix_serve(echo, path)), unix_connect(path, uri="ws://name/") as client:
        assert client.request is not None
        assert client.request.headers["Host"] == "name"
        client.send("hello")
        assert client.recv(DEADLINE) == "hello"


def test_through_proxies() -> None:
    with another_loop() as there, started() as server, started(ssl=server_context()) as secure:
        http: HttpProxy = there.enter(HttpProxy())
        tls: HttpProxy = there.enter(HttpProxy(ssl=server_context()))
        socks: SocksProxy = there.enter(SocksProxy())
        for proxy, scheme, options in (
            (http, "http", {}),
            (tls, "https", {"proxy_ssl": client_context()}),
            (socks, "socks5h", {}),
            (socks, "socks5", {}),
        ):
            address = f"{scheme}://localhost:{proxy.port}"
            for target, more in (
                (url(server), {}),
                (url(secure, scheme="wss"), {"ssl": client_context()}),
            ):
                with connect(target, proxy=address, **options, **more) as client:
                    client.send("hello")
                    assert client.recv(DEADLINE) == "hello"
            assert proxy.seen


def test_what_is_wrong_is_said() -> None:
    for call, kind, text in (
        (lambda: connect("http://localhost"), InvalidURI, "scheme isn't ws or wss"),
        (lambda: connect("ws://localhost", ssl=client_context()), ValueError, "incompatible with a ws:// URI"),
        (lambda: connect("ws://localhost", subprotocols="chat"), TypeError, "must be a list, not a str"),
        (lambda: connect("ws://localhost", compression=False), ValueError, "unsupported compression: False"),
        (lambda: connect("ws://localhost", proxy="other://localhost"), InvalidProxy, "other isn't supported"),
        (lambda: connect("ws://localhost", proxy="http://p:1", proxy_ssl=client_context()), ValueError, "proxy_ssl"),
        (lambda: connect("ws://localhost", extra_headers={}), TypeError, "additional_headers"),
        (unix_connect, ValueError, "missing path argument"),
    ):
        with pytest.raises(kind, match=text):
            call()


def test_a_server_that_refuses_or_speaks_no_http_or_nothing() -> None:
    with Raw(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno") as server:
        with pytest.raises(InvalidStatus, match="HTTP 403") as refused:
            connect(server.url)
        assert refused.value.response.body == b"no"
    with (
        Raw(b"nonsense\r\n\r\n") as server,
        pytest.raises(InvalidMessage, match="did not receive a valid HTTP response"),
    ):
        connect(server.url)
    with Raw(b"") as server, pytest.raises(InvalidMessage) as ended:
        connect(server.url)
    assert isinstance(ended.value.__cause__, EOFError)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"ws://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TimeoutError, match="timed out"):  # in which step, the machine decides
            connect(target, open_timeout=0.05)


def test_redirects_are_followed_and_bounded() -> None:
    with started() as server:
        answer = f"HTTP/1.1 302 Found\r\nLocation: {url(server)}\r\nContent-Length: 0\r\n\r\n".encode()
        with Raw(answer) as first, connect(first.url, additional_headers={"Authorization": "x", "Y": "z"}) as client:
            assert client.request is not None
            assert "Authorization" not in client.request.headers
            assert client.request.headers["Y"] == "z"

        def again(connection: ServerConnection, request: Any) -> Any:
            response = connection.respond(302, "")
            response.headers["Location"] = request.path
            return response

    with started(process_request=again) as server, pytest.raises(SecurityError, match="more than 10 redirects"):
        connect(url(server))


def test_a_connection_class_of_the_program() -> None:
    class Own(ClientConnection):
        seen = 0

        def recv(self, *args: Any, **options: Any) -> Any:
            self.seen += 1
            return super().recv(*args, **options)

    with started() as server, connect(url(server), create_connection=Own) as client:
        assert type(client) is Own
        client.send("hello")
        assert next(iter(client)) == "hello"
        assert client.seen == 1


def test_a_connection_without_with_warns_once_unless_it_is_told() -> None:
    with started() as server:
        client = connect(url(server))
        with pytest.warns(DeprecationWarning, match="must be used as a context manager") as warned:
            client.send("hello")
        assert warned[0].filename == __file__
        assert client.recv(DEADLINE) == "hello"
        client.close()
        client = connect(url(server), legacy=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            client.close()


def test_a_connection_that_is_dropped_is_closed() -> None:
    with started() as server:
        client = connect(url(server), legacy=True)
        until(lambda: server.connections)
        del client
        gc.collect()
        until(lambda: not server.connections)


# --- receiving and sending ---------------------------------------------------------------------------------


def test_recv_times_out_and_loses_nothing() -> None:
    with started() as server, connect(url(server)) as client:
        for timeout in (0, -1, 0.01):
            with pytest.raises(TimeoutError, match=r"timed out in -?\d\.\ds"):
                client.recv(timeout)
        client.send("hello")
        assert client.recv(timeout=DEADLINE) == "hello"


def test_fragments_are_kept_apart_and_joined() -> None:
    def handler(connection: ServerConnection) -> None:
        for _ in range(3):
            connection.send(iter(["a", "b"]))
        connection.send([b"\xf0\x9f", b"\x98\x80"])
        connection.send([b"\xff"])
        connection.wait_closed()

    with started(handler) as server, connect(url(server)) as client:
        assert client.recv() == "ab"
        assert list(client.recv_streaming()) == ["a", "b", ""]
        assert list(client.recv_streaming(decode=False)) == [b"a", b"b", b""]
        assert "".join(client.recv_streaming(decode=True)) == "😀"
        with pytest.raises(ConnectionClosedError, match="sent 1007"):
            client.recv(decode=True)


def test_more_frames_than_the_queue_holds_are_one_message() -> None:
    with started() as server, connect(url(server), max_queue=2) as client:
        client.send(["x"] * 200)
        assert client.recv(DEADLINE) == "x" * 200
        for _ in range(50):
            client.send("y")
        assert [client.recv(DEADLINE) for _ in range(50)] == ["y"] * 50


def test_iteration_ends_quietly_or_raises() -> None:
    def handler(connection: ServerConnection) -> None:
        connection.send("one")
        assert connection.request is not None
        if connection.request.path == "/bad":
            connection.close(1011, "no")

    with started(handler) as server:
        with connect(url(server)) as client:
            assert list(client) == ["one"]
            with pytest.raises(ConnectionClosedOK, match=r"^received 1000 \(OK\); then sent 1000 \(OK\)$"):
                client.recv()
            with pytest.raises(ConnectionClosedOK):
                client.send("x")
            with pytest.raises(ConnectionClosedOK):
                client.ping()
        with connect(url(server, "/bad")) as client:
            messages = iter(client)
            assert next(messages) == "one"
            with pytest.raises(ConnectionClosedError, match=r"received 1011 \(internal error\) no"):
                next(messages)


def test_what_cannot_be_sent() -> None:
    with started() as server, connect(url(server)) as client:
        for message, text in (
            ({"a": 1}, "data is a dict-like object"),
            (None, "data must be str, bytes, or iterable"),
        ):
            with pytest.raises(TypeError, match=text):
                client.send(message)
        client.send([])
        client.send("still open")
        assert client.recv(DEADLINE) == "still open"
        with pytest.raises(TypeError, match="iterable must contain uniform types"):
            client.send(["a", b"b"])
        with pytest.raises(ConnectionClosedError, match=r"sent 1011 \(internal error\) error in fragmented message"):
            client.recv()


def test_one_thread_at_a_time_receives_and_sends_parts() -> None:
    with started() as server, connect(url(server)) as client:
        receiving = Caller(client.recv)
        until(lambda: not _free(client))
        with pytest.raises(ConcurrencyError, match="cannot call recv while another thread is already running recv or"):
            client.recv()
        with pytest.raises(ConcurrencyError, match="cannot call recv_streaming while another thread"):
            next(client.recv_streaming())
        client.send("go")
        assert receiving.result() == "go"

        begun, go_on = threading.Event(), threading.Event()

        def parts() -> Iterator[str]:
            yield "a"
            begun.set()
            assert go_on.wait(DEADLINE)
            yield "b"

        sending = Caller(client.send, parts())
        assert begun.wait(DEADLINE)
        for message in ("text", b"bytes", ["x"]):
            with pytest.raises(ConcurrencyError, match="cannot call send while another thread is already running send"):
                client.send(message)
        with pytest.raises(ExceptionGroup, match="skipped broadcast"):
            broadcast([client], "x", raise_exceptions=True)
        go_on.set()
        sending.result()
        assert client.recv(DEADLINE) == "ab"


def _free(client: ClientConnection) -> bool:
    """Can this thread receive?"""
    try:
        client.recv(0)
    except ConcurrencyError:
        return False
    except TimeoutError:
        return True
    raise AssertionError


def test_a_large_message_waits_for_the_peer() -> None:
    with started(max_size=None) as server, connect(url(server), max_size=None, compression=None) as client:
        sending = Caller(client.send, b"z" * 20_000_000)
        assert client.recv(DEADLINE) == b"z" * 20_000_000
        sending.result()


# --- pings -------------------------------------------------------------------------------------------------


def test_pings_are_answered() -> None:
    with started() as server, connect(url(server)) as client:
        pong = client.ping()
        assert isinstance(pong, threading.Event)
        assert pong.wait(DEADLINE)
        assert client.latency > 0
        receiving = Caller(client.recv)
        assert client.ping("data").wait(DEADLINE)
        client.pong("unasked")
        client.send("go")
        receiving.result()
        with pytest.raises(TypeError, match="data must be str or bytes-like"):
            client.ping([])  # type: ignore[arg-type]
        with pytest.raises(ProtocolError, match="control frame too long"):
            client.ping(b"x" * 126)


def test_a_ping_that_is_not_answered() -> None:
    with Raw(None, silent) as server, connect(server.url, ping_interval=None) as client:
        first, closing = client.ping("one"), client.ping("two", ack_on_close=True)
        with pytest.raises(ConcurrencyError, match="already waiting for a pong with the same data"):
            client.ping("one")
        assert not first.wait(0.01)
        client.close_socket()
        assert closing.wait(DEADLINE)
        assert not first.wait(0.01)


def test_keepalive_measures_and_gives_up() -> None:
    with started() as server, connect(url(server), ping_interval=0.01) as client:
        until(lambda: client.latency > 0)
    options: dict[str, Any] = {"ping_interval": 0.01, "ping_timeout": 0.01, "close_timeout": 0.05}
    with Raw(None, silent) as raw, connect(raw.url, **options) as client:
        with pytest.raises(ConnectionClosedError, match=r"sent 1011 \(internal error\) keepalive ping timeout"):
            client.recv(DEADLINE)


# --- closing -----------------------------------------------------------------------------------------------


def test_close_twice_and_wrongly() -> None:
    with started() as server, connect(url(server)) as client:
        with pytest.raises(ProtocolError):
            client.close(1)
        with pytest.raises(ProtocolError):
            client.close(1000, "x" * 124)
        assert not client.wait_closed(0)
        client.send("kept")
        client.close(1001, "bye")
        client.close()
        assert client.wait_closed()
        assert client.close_code == 1001
        with contextlib.suppress(ConnectionClosedOK):
            assert client.recv() == "kept"
        with pytest.raises(ConnectionClosedOK, match=r"^sent 1001 \(going away\) bye; then received 1001"):
            client.recv()


def test_close_ends_what_other_threads_wait_for() -> None:
    with started() as server, connect(url(server)) as client:
        receiving = Caller(client.recv)
        until(lambda: not _free(client))
        waiting = Caller(client.wait_closed)
        client.close()
        with pytest.raises(ConnectionClosedOK):
            receiving.result()
        assert waiting.result()


def test_an_exception_in_the_block_closes_with_1011() -> None:
    seen: list[Any] = []

    def handler(connection: ServerConnection) -> None:
        connection.wait_closed()
        seen.append(connection.close_code)

    with started(handler) as server, pytest.raises(RuntimeError, match="own"), connect(url(server)):
        raise RuntimeError("own")
    assert seen == [1011]


def test_a_server_that_does_not_answer_the_close_frame() -> None:
    with Raw(None, silent) as server, connect(server.url, close_timeout=0.05) as client:
        client.close()
        with pytest.raises(ConnectionClosedError, match=r"sent 1000 \(OK\); no close frame received") as closed:
            client.recv()
        assert isinstance(closed.value.__cause__, TimeoutError)


def test_what_ends_while_nobody_waits_is_noticed() -> None:
    with started(lambda connection: None) as server, connect(url(server)) as client:
        until(lambda: client.state is State.CLOSED)
        until(lambda: client._driver.is_closed)
        assert client.close_code == 1000
        with pytest.raises(ConnectionClosedOK):
            client.recv()


# --- reconnecting ------------------------------------------------------------------------------------------


def test_reconnect_gives_one_connection_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "websockets")
    number = 0

    def process_request(connection: ServerConnection, request: Any) -> Any:
        nonlocal number
        number += 1
        return connection.respond(503, "") if number == 2 else None

    with started(process_request=process_request) as server:
        delays: Any = itertools.repeat(0.0)
        for seen, client in enumerate(reconnect(url(server), reconnect_delays=lambda: delays)):
            client.send("hello")
            assert client.recv(DEADLINE) == "hello"
            if seen == 1:
                break
    assert number == 3
    assert "connect failed; reconnecting in 0.0 seconds: " in caplog.text
    with pytest.raises(InvalidHandshake), Raw(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as refusing:
        for _ in connect(refusing.url, legacy=False):
            raise AssertionError
