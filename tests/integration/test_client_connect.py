"""Connecting: what works, and what each kind of bad server, address and option is answered with."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from fabric import _version
from fabric._handshake.rules import accept_key
from fabric.client import WebSocketClient
from fabric.config import ClientConfig, ServerConfig
from fabric.error import (
    AuthenticationFailed,
    ConnectionClosed,
    ConnectionFailed,
    HandshakeFailed,
    InvalidHeader,
    Io,
    SubprotocolNegotiationFailed,
    Timeout,
    Tls,
)
from fabric.message import Frame, Message
from fabric.server import ConnectedClient, WebSocketServer
from integration.raw import SWITCHING, UPGRADE, RawServer, Visit
from support.fake_time import Deadline
from support.frames import encode
from support.serving import turns


async def echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


def serve(**options: Any) -> WebSocketServer:
    return WebSocketServer(ServerConfig("127.0.0.1:0", **options), echo)


def url(server: WebSocketServer, path: str = "/") -> str:
    return f"ws://127.0.0.1:{server.port}{path}"


def frame(text: str) -> bytes:
    return Frame(opcode=1, payload=text.encode()).encode()


# What works.


async def test_await_and_async_with_give_the_same_client() -> None:
    async with serve() as server:
        client = await WebSocketClient.connect(url(server))
        assert client.is_connected
        await client.send("one")
        assert (await client.recv()) == Message("one")
        await client.close()
        async with WebSocketClient.connect(url(server)) as client:
            await client.send(b"two")
            assert (await client.recv()) == Message(b"two")
        assert client.state.name == "CLOSED"
        assert client.close_code == 1000
        async with client as again:
            assert again is client


async def test_connect_is_a_coroutine_to_asyncio() -> None:
    async with serve() as server:
        for client in (
            await asyncio.create_task(WebSocketClient.connect(url(server))),
            await asyncio.wait_for(WebSocketClient.connect(url(server)), 20),
            *await asyncio.gather(WebSocketClient.connect(url(server))),
        ):
            assert client.is_connected
            await client.close()
    WebSocketClient.connect("ws://127.0.0.1:1/").close()  # nothing has begun


async def test_properties_tell_of_the_handshake() -> None:
    async with serve(subprotocols=["chat", "news"], headers={"X-Server": "yes"}) as server:
        address = url(server, "/room?n=1").replace("//", "//user:secret@")
        async with WebSocketClient.connect(address, subprotocols=["news"], headers={"X-One": "1"}) as client:
            assert client.url == url(server, "/room?n=1")
            assert "secret" not in repr(client) + repr(client.request) + repr(client.config)
            assert client.subprotocol == "news"
            assert client.request is not None
            assert client.request.target == "/room?n=1"
            sent = client.request.headers
            assert sent["User-Agent"] == f"websocket-fabric/{_version.VERSION}"
            assert sent["Authorization"].startswith("Basic ")
            assert sent["X-One"] == "1"
            assert sent["Host"] == f"127.0.0.1:{server.port}"
            seen = server.clients()[0].request
            assert seen.headers == sent
            assert client.response is not None
            assert client.response.status == 101
            assert client.response.headers["X-Server"] == "yes"
            assert client.extensions[0].startswith("permessage-deflate")
            assert client.remote_addr[1] == server.port
            assert client.local_addr[0] == "127.0.0.1"
            assert client.heartbeat is not None
            assert client.latency is None
            assert await client.ping() == client.latency
            assert client.metrics.total_connections == client.metrics.active_connections == 1
            assert client.metrics.handshake_percentiles().count == 1
        assert client.remote_addr[1] == server.port
        assert client.metrics.active_connections == 0


async def test_options_go_before_those_of_the_config() -> None:
    async with serve() as server:
        config = ClientConfig(url(server), fragment_size=10).with_user_agent("mine/1")
        async with WebSocketClient.connect(config, fragment_size=None, compression=None) as client:
            assert client.config.fragment_size is None
            assert client.extensions == ()
            assert client.request is not None
            assert client.request.headers["User-Agent"] == "mine/1"


async def test_clients_with_the_same_heartbeat_share_it() -> None:
    async with serve() as server:
        async with WebSocketClient.connect(url(server)) as one, WebSocketClient.connect(url(server)) as two:
            assert one.heartbeat is two.heartbeat is not None
        async with WebSocketClient.connect(url(server), heartbeat=None) as client:
            assert client.heartbeat is None


async def test_on_message_is_called_right_where_a_message_arrives() -> None:
    got: list[str] = []
    async with serve() as server:
        done = asyncio.Event()

        def on_message(client: WebSocketClient, message: Message) -> None:
            got.append(message.as_text())
            if len(got) == 3:
                done.set()

        async with WebSocketClient.connect(url(server), on_message=on_message) as client:
            for text in ("a", "b", "c"):
                await client.send(text)
            await done.wait()
    assert got == ["a", "b", "c"]


async def test_on_connect_is_awaited_first_and_its_error_ends_the_client() -> None:
    seen: list[bool] = []

    async def on_connect(client: WebSocketClient) -> None:
        await asyncio.sleep(0)
        seen.append(client.is_connected)
        if len(seen) == 2:
            raise KeyError("no")

    async with serve() as server:
        async with WebSocketClient.connect(url(server), on_connect=on_connect):
            assert seen == [True]
        with pytest.raises(KeyError):
            await WebSocketClient.connect(url(server), on_connect=on_connect)


async def test_a_connected_socket_is_used() -> None:
    async with serve() as server:
        sock = socket.create_connection(("127.0.0.1", server.port))
        local = sock.getsockname()
        async with WebSocketClient.connect("ws://example.invalid/", sock=sock) as client:
            assert client.local_addr == local
            await client.send("hello")
            assert (await client.recv()) == Message("hello")
            server.clients()[0]._abort()
            assert not client.is_connected or (await client.wait_closed()) is None
            assert client.state.name == "CLOSED"  # it cannot be replaced


async def test_a_host_with_several_addresses_is_reached_by_the_one_that_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve() as server:
        here = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))
        refuses = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))
        # Packets to this network, reserved for documentation, are lost or refused: both will do.
        silent = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 9))

        for infos in ([refuses, here], [silent, here], [silent, refuses, here], [here, silent]):

            async def resolve(address: object, progress: object, infos: Any = infos) -> Any:
                return infos

            monkeypatch.setattr("fabric._handshake.dial._resolve", resolve)
            async with WebSocketClient.connect(f"ws://many.invalid:{server.port}/") as client:
                assert client.remote_addr == here[4]

        async def all_refuse(address: object, progress: object) -> Any:
            return [refuses, refuses]

        monkeypatch.setattr("fabric._handshake.dial._resolve", all_refuse)
        with pytest.raises(ConnectionFailed, match="refused"):
            await WebSocketClient.connect("ws://many.invalid/")


async def test_a_name_is_looked_up() -> None:
    async with serve() as server, WebSocketClient.connect(f"ws://localhost:{server.port}/") as client:
        assert client.request is not None
        assert client.request.headers["Host"] == f"localhost:{server.port}"


# Bad addresses and options.


@pytest.mark.parametrize("bad", ["", "localhost", "http://localhost", "ws://", "ws://a b/", "ws://h:0/", "ws://h/#x"])
def test_a_bad_url_is_a_value_error_at_the_call(bad: str) -> None:
    with pytest.raises(ValueError, match="url"):
        WebSocketClient.connect(bad)


def test_a_socket_for_datagrams_is_refused_at_the_call_and_left_alone() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match=r"sock = .*stream socket"):
            WebSocketClient.connect("ws://h/", sock=sock)
        assert sock.fileno() >= 0


def test_bad_options_are_errors_at_the_call() -> None:
    with pytest.raises(TypeError, match="no_such"):
        WebSocketClient.connect("ws://h/", no_such=1)
    with pytest.raises(ValueError, match="connection_timeout"):
        WebSocketClient.connect("ws://h/", connection_timeout=0)
    with pytest.raises(TypeError, match="on_reconnect"):
        WebSocketClient.connect("ws://h/", on_reconnect=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidHeader):
        WebSocketClient.connect("ws://h/", headers={"Sec-WebSocket-Key": "mine"})

    async def handle(client: WebSocketClient, message: Message) -> None: ...

    with pytest.raises(TypeError, match="plain function"):
        WebSocketClient.connect("ws://h/", on_message=handle)


async def test_unix_sockets_work(tmp_path: Path, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """picows (Handshake): an AF_UNIX listener crashes the interpreter, and a client hangs."""
    for secure in (False, True):
        path = str(tmp_path / f"secure={secure}")
        async with WebSocketServer(ServerConfig(f"unix:{path}", ssl=server_tls if secure else None), echo):
            address = f"{'wss' if secure else 'ws'}://localhost/"
            options: dict[str, Any] = {"ssl": client_tls} if secure else {}
            async with WebSocketClient.connect(address, unix_path=path, **options) as client:
                await client.send("x" * 100_000)
                assert await client.recv() == Message("x" * 100_000)
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(path)
            async with WebSocketClient.connect(address, sock=sock, **options) as client:
                await client.send(b"y")
                assert await client.recv() == Message(b"y")
    async with WebSocketServer(ServerConfig("unix:\0fabric-test"), echo):  # Linux: no file
        async with WebSocketClient.connect("ws://localhost/", unix_path="\0fabric-test") as client:
            assert client.is_connected
    with pytest.raises(ConnectionFailed, match="connection to /nowhere/at/all failed: No such file"):
        await WebSocketClient.connect("ws://localhost/", unix_path="/nowhere/at/all")


async def test_a_refused_connection_and_an_unknown_name_fail_by_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        port = taken.getsockname()[1]
        what = rf"TCP connection to 127\.0\.0\.1:{port} failed: Connection refused"
        with pytest.raises(ConnectionFailed, match=what) as info:
            await WebSocketClient.connect(f"ws://user:secret@127.0.0.1:{port}/")
    assert info.value.url == f"ws://127.0.0.1:{port}/"
    assert isinstance(info.value.__cause__, ConnectionRefusedError)
    with pytest.raises((ConnectionFailed, Timeout), match=r"name lookup of nothing\.invalid"):
        await WebSocketClient.connect("ws://nothing.invalid/")


async def test_a_timeout_names_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """picows (Handshake): its time limit does not cover TCP."""

    async def never(*args: object) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr("fabric._handshake.dial._connect_one", never)
    with pytest.raises(Timeout, match=r"^TCP connection to 127\.0\.0\.1:9 timed out after 0\.05 s"):
        await WebSocketClient.connect("ws://127.0.0.1:9/", connection_timeout=0.05)


async def test_no_more_descriptors_is_an_error_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*args: object) -> socket.socket:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr("fabric._handshake.dial._connect_one", full)
    with pytest.raises(Io, match="Too many open files") as info:
        await WebSocketClient.connect("ws://127.0.0.1:9/")
    assert info.value.errno == errno.EMFILE


# Bad answers.

ACCEPT = "Sec-WebSocket-Accept: KEY"
CHUNKED = "Transfer-Encoding: chunked"
EXTENSIONS = "Sec-WebSocket-Extensions"


async def connect_to(handle: Any, **options: Any) -> WebSocketClient:
    """Connect to a server that answers as `handle` does; the client is closed before the server is."""
    async with RawServer(handle) as server, WebSocketClient.connect(server.url, **options) as client:
        return client


async def test_a_server_that_says_nothing_times_out_naming_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(monkeypatch)

    async def handle(visit: Visit) -> None:
        await visit.request()
        deadline.expire()
        await visit.until_closed()

    with pytest.raises(Timeout, match=r"opening handshake with 127\.0\.0\.1:.* timed out after 3600 s"):
        await connect_to(handle, connection_timeout=deadline.SECONDS)


async def test_a_server_that_closes_at_once_fails_by_name() -> None:
    """picows (Handshake): to be closed upon before the answer is no error, but a connection that is None."""

    async def close(visit: Visit) -> None:
        pass

    async def read_and_close(visit: Visit) -> None:
        await visit.request()

    async def reset(visit: Visit) -> None:
        await visit.request()
        visit.writer.transport.abort()

    async def half(visit: Visit) -> None:
        await visit.request()
        visit.writer.write(b"HTTP/1.1 101 Swi")

    for handle in (close, read_and_close, reset, half):
        with pytest.raises(ConnectionFailed, match=r"closed the connection before it answered"):
            await connect_to(handle)


@pytest.mark.parametrize(
    ("lines", "body", "kept"),
    [
        (("HTTP/1.1 200 OK", "Content-Length: 5"), b"hello and more", b"hello"),
        (("HTTP/1.1 301 Moved Permanently", "Content-Length: 4"), b"gone", b"gone"),
        (("HTTP/1.1 503 Service Unavailable", "Retry-After: 7"), b"later", b"later"),
        (("HTTP/1.0 500 Oops",), b"", b""),
        (("HTTP/1.1 204 No Content",), b"", b""),
        (("HTTP/1.1 404 No", CHUNKED), b"3;x=y\r\nnot\r\n5\r\n here\r\n0\r\n\r\n", b"not here"),
        (("HTTP/1.1 404 No", CHUNKED), b"zz\r\n", b""),
        (("HTTP/1.1 500 Oops", "Content-Length: 100"), b"cut short", b"cut short"),
        (("HTTP/1.1 500 Oops", f"Content-Length: {'9' * 5000}"), b"x", b"x"),
        (("HTTP/1.1 500 Oops",), b"x" * 200_000, b"x" * 65536),
        (("HTTP/1.1 599 Odd",), b"odd", b"odd"),
        (("HTTP/1.1 799 Odder",), b"odd", b"odd"),
    ],
    ids=lambda value: value[0][9:12] if isinstance(value, tuple) else "",
)
async def test_another_answer_than_101_comes_with_status_headers_and_body(
    lines: tuple[str, ...], body: bytes, kept: bytes
) -> None:
    async def handle(visit: Visit) -> None:
        await visit.request()
        visit.send(*lines, body=body)

    with pytest.raises(HandshakeFailed) as info:
        await connect_to(handle)
    assert info.value.status == int(lines[0].split()[1])
    assert info.value.body == kept
    assert info.value.headers is not None
    for line in lines[1:]:
        name, value = line.split(": ")
        assert info.value.headers[name] == value


@pytest.mark.parametrize("status", [401, 403])
async def test_authentication_failures_have_their_challenge(status: int) -> None:
    async def handle(visit: Visit) -> None:
        await visit.request()
        challenges = ("WWW-Authenticate: Negotiate", 'WWW-Authenticate: Basic realm="x"')
        visit.send(f"HTTP/1.1 {status} No", *challenges, "Content-Length: 2", body=b"no")
        await visit.until_closed()

    with pytest.raises(AuthenticationFailed) as info:
        await connect_to(handle)
    assert (info.value.status, info.value.body, info.value.challenge) == (status, b"no", 'Negotiate, Basic realm="x"')


async def test_a_refusal_whose_body_does_not_end_is_still_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(monkeypatch)

    async def handle(visit: Visit) -> None:
        await visit.request()
        visit.send("HTTP/1.1 503 Busy", body=b"because")
        await turns()
        deadline.expire()
        await visit.until_closed()

    with pytest.raises(HandshakeFailed) as info:
        await connect_to(handle, connection_timeout=deadline.SECONDS)
    assert (info.value.status, info.value.body) == (503, b"because")


async def test_bytes_that_are_not_http_fail_at_once() -> None:
    async def handle(visit: Visit) -> None:
        visit.writer.write(b"SSH-2.0-OpenSSH")
        await visit.until_closed()

    with pytest.raises(HandshakeFailed, match=r"SSH-2\.0"):
        await connect_to(handle)


@pytest.mark.parametrize(
    "flood",
    [b"HTTP/1.1 101 x\r\nX: " + b"y" * 1_000_000, b"HTTP/1.1 101 x\r\n" + b"X: y\r\n" * 1000 + b"\r\n"],
    ids=["long line", "many lines"],
)
async def test_a_flood_of_headers_is_cut_off(flood: bytes) -> None:
    async def handle(visit: Visit) -> None:
        await visit.request()
        visit.writer.write(flood)
        await visit.until_closed()

    with pytest.raises(HandshakeFailed, match=r"over 16384 bytes|header lines"):
        await connect_to(handle)


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ((SWITCHING, *UPGRADE), "Sec-WebSocket-Accept"),
        ((SWITCHING, *UPGRADE, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "Sec-WebSocket-Accept"),
        ((SWITCHING, "Connection: Upgrade", ACCEPT), "instead of websocket"),
        ((SWITCHING, "Upgrade: h2c", "Connection: Upgrade", ACCEPT), "h2c"),
        ((SWITCHING, "Upgrade: websocket", "Connection: close", ACCEPT), "Connection"),
        ((SWITCHING, *UPGRADE, ACCEPT, ACCEPT), "Sec-WebSocket-Accept"),
        ((SWITCHING, *UPGRADE, ACCEPT, "Bad Header: x"), "malformed"),
        ((SWITCHING, *UPGRADE, ACCEPT, "no colon"), "malformed"),
        (("HTTP/1.1 1o1 x",), "HTTP"),
        (
            (SWITCHING, *UPGRADE, ACCEPT, f"{EXTENSIONS}: x-unknown"),
            "x-unknown",
        ),
        (
            (SWITCHING, *UPGRADE, ACCEPT, f"{EXTENSIONS}: permessage-deflate; a=b"),
            "Extensions",
        ),
        (
            (SWITCHING, *UPGRADE, ACCEPT, *["Sec-WebSocket-Protocol: chat"] * 2),
            "more than one subprotocol",
        ),
    ],
)
async def test_an_invalid_upgrade_is_refused(lines: tuple[str, ...], what: str) -> None:
    async def handle(visit: Visit) -> None:
        headers = await visit.request()
        key = accept_key(headers["sec-websocket-key"])
        visit.send(*(line.replace("KEY", key) for line in lines))
        await visit.until_closed()

    with pytest.raises(HandshakeFailed, match=what):
        await connect_to(handle, subprotocols=["chat"])


async def test_a_subprotocol_that_was_not_offered_is_refused() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept("Sec-WebSocket-Protocol: news")
        await visit.until_closed()

    for offered in ([], ["chat"]):
        with pytest.raises(SubprotocolNegotiationFailed):
            await connect_to(handle, subprotocols=offered)


async def test_an_extension_is_refused_when_compression_is_off() -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept("Sec-WebSocket-Extensions: permessage-deflate")
        await visit.until_closed()

    with pytest.raises(HandshakeFailed, match="not offered"):
        await connect_to(handle, compression=None)


async def talk(visit: Visit) -> None:
    """What a good server does after the handshake of the tests below."""
    assert (await visit.frame()).opcode == 8
    visit.writer.write(Frame(opcode=8, payload=b"\x03\xe8").encode())


async def test_list_headers_may_be_split_and_mixed() -> None:
    """picows (Handshake): the client is as strict about `Connection` as the server."""
    for lines in (
        ("Upgrade: WebSocket", "Connection: keep-alive, Upgrade"),
        ("Upgrade: foo", "Upgrade: websocket", "Connection: keep-alive", "Connection: UPGRADE"),
    ):

        async def handle(visit: Visit, lines: tuple[str, ...] = lines) -> None:
            headers = await visit.request()
            visit.send(SWITCHING, *lines, f"sec-websocket-accept:{accept_key(headers['sec-websocket-key'])}")
            await talk(visit)

        assert (await connect_to(handle)).close_code == 1000


async def test_an_answer_in_single_bytes_behind_interim_ones_with_frames_after_it() -> None:
    async def handle(visit: Visit) -> None:
        headers = await visit.request()
        visit.send("HTTP/1.1 103 Early Hints", "Link: </x>")
        accept = f"Sec-WebSocket-Accept: {accept_key(headers['sec-websocket-key'])}"
        whole = "\r\n".join([SWITCHING, *UPGRADE, accept, "", ""]).encode() + frame("first") + frame("second")
        for at in range(len(whole)):
            visit.writer.write(whole[at : at + 1])
            await visit.writer.drain()
            await asyncio.sleep(0)
        visit.writer.write(frame("third"))
        await talk(visit)

    async with RawServer(handle) as server, WebSocketClient.connect(server.url) as client:
        for text in ("first", "second", "third"):
            assert await client.recv() == Message(text)


async def test_frames_in_the_same_segment_as_the_head_are_received() -> None:
    text = "x" * 50_000

    async def handle(visit: Visit) -> None:
        await visit.accept(body=frame("first") + frame(text) + frame("last"))
        await talk(visit)

    async with RawServer(handle) as server, WebSocketClient.connect(server.url) as client:
        for expected in ("first", text, "last"):
            assert await client.recv() == Message(expected)


@pytest.mark.parametrize("by_callback", [False, True])
async def test_what_came_with_the_head_is_answered_before_a_fault_behind_it_is_seen(by_callback: bool) -> None:
    answers: asyncio.Future[list[Frame]] = asyncio.get_running_loop().create_future()

    async def handle(visit: Visit) -> None:
        await visit.accept(body=frame("a") + frame("b") + encode(3, mask=False))
        answers.set_result([await visit.frame() for _ in range(3)])
        await visit.until_closed()

    async with RawServer(handle) as server:
        config = ClientConfig(server.url, auto_reconnect=False)
        on_message = WebSocketClient.send_nowait if by_callback else None
        async with WebSocketClient.connect(config, on_message=on_message) as client:
            if not by_callback:
                with pytest.raises(ConnectionClosed):
                    while (message := await client.recv()) is not None:
                        await client.send(message)
            *echoes, close = await answers
    assert [echo.payload for echo in echoes] == [b"a", b"b"]
    assert close.payload[:2] == (1002).to_bytes(2, "big")


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls_echoes(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async with serve(ssl=server_tls) as server:
        address = url(server).replace("ws:", "wss:")
        async with WebSocketClient.connect(address, ssl=client_tls) as client:
            for data in (b"", b"x", b"y" * 200_000):
                await client.send(data)
                assert await client.recv() == Message(data)
        assert client.close_code == 1000


async def test_a_certificate_that_is_not_trusted_is_refused(server_tls: ssl.SSLContext) -> None:
    async def handle(visit: Visit) -> None:
        await visit.until_closed()

    async with RawServer(handle, ssl=server_tls) as server:
        with pytest.raises(Tls, match="certificate"):
            await WebSocketClient.connect(server.url)


async def test_a_certificate_for_another_host_is_refused(authority: trustme.CA, client_tls: ssl.SSLContext) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("example.org").configure_cert(context)

    async def handle(visit: Visit) -> None:
        await visit.until_closed()

    async with RawServer(handle, ssl=context) as server:
        with pytest.raises(Tls, match="certificate"):
            await WebSocketClient.connect(server.url, ssl=client_tls)


async def test_tls_to_a_plain_server_and_plain_to_a_tls_server(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async def plain(visit: Visit) -> None:
        await visit.reader.read(100)
        visit.send("HTTP/1.1 400 Bad Request")

    async with RawServer(plain) as server:
        with pytest.raises(Tls, match=r"TLS handshake with 127\.0\.0\.1 failed: the answer is not TLS"):
            await WebSocketClient.connect(server.url.replace("ws:", "wss:"), ssl=client_tls)

    async def handle(visit: Visit) -> None:
        await visit.until_closed()

    async with RawServer(handle, ssl=server_tls) as secure:
        with pytest.raises((HandshakeFailed, ConnectionFailed)):
            await WebSocketClient.connect(secure.url.replace("wss:", "ws:"))


async def test_a_server_silent_in_the_tls_handshake_times_out(
    client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """picows (Handshake): its time limit does not cover TLS."""
    deadline = Deadline(monkeypatch)

    async def handle(visit: Visit) -> None:
        await visit.reader.read(1)
        deadline.expire()
        await visit.until_closed()

    async with RawServer(handle) as server:
        url = server.url.replace("ws:", "wss:")
        with pytest.raises(Timeout, match=r"TLS handshake with 127\.0\.0\.1"):
            await WebSocketClient.connect(url, ssl=client_tls, connection_timeout=deadline.SECONDS)


# Cancelling.


async def test_connect_can_be_cancelled_at_any_moment(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    async def slow(visit: Visit) -> None:
        await visit.accept()
        await visit.until_closed()

    for secure in (False, True):
        async with RawServer(slow, ssl=server_tls if secure else None) as server:
            turns = 0
            while True:
                task = asyncio.create_task(
                    WebSocketClient.connect(server.url, ssl=client_tls if secure else None, close_timeout=0.1)
                )
                for _ in range(turns):
                    await asyncio.sleep(0)
                if task.done():
                    client = await task
                    client._abort()
                    await client.close()
                    break
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                turns += 1
            assert turns > 3
