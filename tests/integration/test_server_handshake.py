"""The opening handshake as the server sees it, byte by byte: what is upgraded, what is answered, and when.

At the end, what a client's handshake leaves to us besides what test_client_connect.py shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import struct
import time
import tracemalloc
from typing import Any

import pytest

from fabric import Request, Response
from fabric.client import WebSocketClient
from fabric.error import Timeout, Tls
from support.frames import TEXT, encode
from support.raw_peer import ACCEPT, Answer, RawPeer, request
from support.serving import Held, echo, serve, until
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack


async def ask(port: int, data: bytes) -> Answer:
    """Send `data` on a new connection; the answer, after which the server must have hung up."""
    async with await RawPeer.connect(port) as peer:
        peer.send(data)
        return await peer.read_answer()


# --- what is upgraded --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        request(),
        request(Connection="keep-alive, Upgrade"),  # Firefox
        request("Connection: keep-alive"),
        request("Connection: x", "connection: UPGRADE", "UPGRADE:WebSocket", Connection=None, Upgrade=None),
        request("Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: b, c", "Sec-WebSocket-Extensions: x"),
        request("Cookie: " + "c" * 8000),
        b"\r\n" + request(),
        b"\r\n\r\n\r\n" + request(),  # RFC 9112 §2.2
        request(line="GET /?q HTTP/1.1"),
        request(line="GET http://localhost/ HTTP/1.1"),
    ],
    ids=lambda data: "",
)  # fmt: skip
async def test_it_is_upgraded(stack: Stack, data: bytes) -> None:
    """picows (Handshake): only `Connection: upgrade` exactly will do, on one line."""
    server = await serve(stack, echo)
    async with await RawPeer.connect(server.port) as peer:
        peer.send(data)
        answer = await peer.read_answer()
        assert (answer.version, answer.status) == ("HTTP/1.1", 101)
        assert answer.headers["upgrade"].lower() == "websocket"
        assert answer.headers["connection"].lower() == "upgrade"
        assert answer.headers["sec-websocket-accept"] == ACCEPT
        assert not {"sec-websocket-protocol", "sec-websocket-extensions", "content-length"} & answer.headers.keys()
        peer.send_text("hello")
        assert await peer.payload() == b"hello"


async def test_a_request_that_comes_byte_by_byte(stack: Stack) -> None:
    server = await serve(stack, echo)
    async with await RawPeer.connect(server.port) as peer:
        peer.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request() + encode(TEXT, "hello"):
            peer.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await peer.read_answer()).status == 101
        assert await peer.payload() == b"hello"


@pytest.mark.parametrize("cut", [0, 1, 40, None])
@pytest.mark.parametrize("size", [10, 60_000])
async def test_a_request_that_is_there_before_its_connection_is_accepted(
    stack: Stack, cut: int | None, size: int
) -> None:
    """All of it and frames behind it, or its first `cut` bytes."""
    server = await serve(stack, echo)
    sent = request() + encode(TEXT, "x" * size)
    sock = socket.create_connection(("127.0.0.1", server.port))  # the loop does not run meanwhile
    sock.sendall(sent[:cut])
    async with RawPeer(*await asyncio.open_connection(sock=sock, limit=4096)) as peer:
        if cut is not None:
            peer.send(sent[cut:])
        assert (await peer.read_answer()).status == 101
        peer.send_text("later")
        assert [len(await peer.payload()), await peer.payload()] == [size, b"later"]


async def test_a_client_that_has_sent_its_request_and_left_before_it_was_accepted(stack: Stack) -> None:
    ended: list[int | None] = []
    server = await serve(stack, echo, on_disconnect=lambda client: ended.append(client.close_code))
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(request())
    await until(lambda: ended == [1006])


@pytest.mark.parametrize("size", [1, 100, 5_000, 100_000])
@pytest.mark.parametrize("judge", ["at once", "later"])
async def test_frames_right_behind_the_request(stack: Stack, size: int, judge: str) -> None:
    async def later(_: Request) -> None:
        await asyncio.sleep(0.02)

    server = await serve(stack, echo, process_request=later if judge == "later" else None)
    messages = ["x" * size, "y", "z" * size]
    rest = b"".join(encode(TEXT, message) for message in messages)
    async with await RawPeer.open(server.port, rest=rest) as peer:
        assert [(await peer.payload()).decode() for _ in messages] == messages
        peer.send_text("later")
        assert await peer.payload() == b"later"


async def test_what_the_handler_learns_of_the_request(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held)
    async with await RawPeer.open(server.port, "X-Thing: one", "x-thing: two", line="GET /a%20b?c=d HTTP/1.1"):
        client = await held.next()
        assert client.request.path == "/a b"
        assert client.request.query == {"c": "d"}
        assert client.request.headers.getall("X-Thing") == ["one", "two"]
        assert client.request.headers["Host"] == "localhost"


async def test_response_headers_of_the_config(stack: Stack) -> None:
    server = await serve(stack, echo, headers=[("X-Served-By", "fabric"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    async with await RawPeer.open(server.port) as peer:
        assert peer.answer is not None
        assert ("x-served-by", "fabric") in peer.answer.fields
        assert [value for name, value in peer.answer.fields if name == "set-cookie"] == ["a=1", "b=2"]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["chat"], "chat"),
        (["x, chat"], "chat"),
        (["x", "superchat, chat"], "superchat"),
        (["x"], None),
        ([], None),
    ],
)
async def test_subprotocols(stack: Stack, offered: list[str], chosen: str | None) -> None:
    held = Held()
    server = await serve(stack, held, subprotocols=["chat", "superchat"])
    async with await RawPeer.open(server.port, *(f"Sec-WebSocket-Protocol: {line}" for line in offered)) as peer:
        assert peer.answer is not None
        assert peer.answer.headers.get("sec-websocket-protocol") == chosen
        assert (await held.next()).subprotocol == chosen


@pytest.mark.parametrize(
    ("lines", "status"),
    [(["chat"], 101), (["x"], 400), ([], 400), (["bad name"], 400), (['"'], 400), (["chat, chat"], 400)],
)
async def test_a_required_subprotocol(stack: Stack, lines: list[str], status: int) -> None:
    server = await serve(stack, echo, subprotocols=["chat"], require_subprotocol=True)
    async with await RawPeer.connect(server.port) as peer:
        peer.send(request(*(f"Sec-WebSocket-Protocol: {line}" for line in lines)))
        assert (await peer.read_answer()).status == status


# --- what is not -------------------------------------------------------------------------------------------

REFUSED = {
    "HTTP/1.0": (request(line="GET / HTTP/1.0"), 400),
    "HEAD": (request(line="HEAD / HTTP/1.1"), 400),
    "POST": (request(line="POST / HTTP/1.1"), 405),
    "HTTP/2": (request(line="GET / HTTP/2.0"), 505),
    "no Host": (request(Host=None), 400),
    "two Hosts": (request("Host: other"), 400),
    "no Upgrade": (request(Upgrade=None), 426),
    "no Connection": (request(Connection=None), 426),
    "Connection: close": (request(Connection="close"), 426),
    "no version": (request(Sec_WebSocket_Version=None), 426),
    "version 7": (request(Sec_WebSocket_Version="7"), 426),
    "version 8": (request(Sec_WebSocket_Version="8"), 426),
    "version 12": (request(Sec_WebSocket_Version="12"), 426),
    "no key": (request(Sec_WebSocket_Key=None), 400),
    "short key": (request(Sec_WebSocket_Key="c2hvcnQ="), 400),
    "key that is not base64": (request(Sec_WebSocket_Key="?" * 24), 400),
    "two keys": (request("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400),
    "a body": (request("Content-Length: 3") + b"abc", 400),
    "chunks": (request("Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "HEAD of nothing": (request(line="HEAD / HTTP/1.1", Upgrade=None), 426),
    "only line feeds in a header": (request("X: a\nY: b"), 400),
    "a folded header": (request("X: a", " b"), 400),
    "many headers": (request(*(f"X-{number}: y" for number in range(200))), 431),
    "a long header": (request("X: " + "y" * 20_000), 431),
    "a long line": (request(line=f"GET /{'x' * 20_000} HTTP/1.1"), 431),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_it_is_refused(stack: Stack, case: str) -> None:
    """picows (Handshake): a missing `Host` and the versions 7 and 8 are accepted."""
    data, status = REFUSED[case]
    server = await serve(stack, echo)
    answer = await ask(server.port, data)
    assert answer.status == status
    assert "close" in answer.headers["connection"]
    assert answer.headers["content-type"].startswith("text/plain")
    assert int(answer.headers["content-length"]) > 5
    assert len(answer.body) == (0 if case.startswith("HEAD") else int(answer.headers["content-length"]))
    if status == 426:
        assert answer.headers["upgrade"] == "websocket"
        assert answer.headers["sec-websocket-version"] == "13"
        assert "upgrade" in answer.headers["connection"].lower()
    assert server.connection_count == 0
    assert not server._handshakes


HOPELESS = {
    "the hello of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "the banner of SSH": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "PROXY": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    "bare LF": b"GET / HTTP/1.1\nHost: x\n\n",
    "bare LF in a header": request("X: a\nY: b")[:-2],
    "bare CR": b"GET / HTTP/1.1\rHost: x",
    "HTTP/0.9": b"GET /\r\n",
    "half a line that is not HTTP": b"GET / FTP",
    "a word that is no method": b"x" * 40,
    "a header without a colon": b"GET / HTTP/1.1\r\nHost x",
    "a folded header": b"GET / HTTP/1.1\r\nX: a\r\n ",
}


@pytest.mark.parametrize("case", HOPELESS)
async def test_what_cannot_become_a_request_is_refused_at_once(stack: Stack, case: str) -> None:
    server = await serve(stack, echo, handshake_timeout=60)
    async with asyncio.timeout(20):
        answer = await ask(server.port, HOPELESS[case])
    assert answer.status == 400
    assert not server._handshakes


async def test_a_method_that_is_not_allowed_is_told_at_once(stack: Stack) -> None:
    server = await serve(stack, echo, handshake_timeout=60)
    async with asyncio.timeout(20):
        assert (await ask(server.port, b"POST / HTTP/1.1\r\n")).status == 405


async def test_a_client_that_begins_tls_on_a_plain_port_need_not_wait(stack: Stack) -> None:
    server = await serve(stack, echo, handshake_timeout=60)
    async with asyncio.timeout(20):
        with pytest.raises(Tls):
            await WebSocketClient.connect(f"wss://127.0.0.1:{server.port}/", connection_timeout=60)


async def test_a_larger_head_where_it_is_allowed(stack: Stack) -> None:
    server = await serve(stack, echo, max_header_size=200_000)
    async with await RawPeer.open(server.port, *(f"X-{number}: {'y' * 1500}" for number in range(100))) as peer:
        peer.send_text("hello")
        assert await peer.payload() == b"hello"
    assert (await ask(server.port, request("X: " + "y" * 200_000))).status == 431


async def test_a_megabyte_of_headers_costs_no_memory(stack: Stack) -> None:
    server = await serve(stack, echo)
    async with await RawPeer.connect(server.port) as peer:
        await asyncio.sleep(0)
        tracemalloc.start()
        try:
            block = b"X: " + b"y" * 65_000
            with contextlib.suppress(ConnectionError):
                peer.send(b"GET / HTTP/1.1\r\n")
                for _ in range(64):
                    peer.send(block)
                    await peer.writer.drain()
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert (await peer.read_answer()).status == 431
    assert most < 1_000_000, f"{most} bytes held of a request that was refused"


@pytest.mark.parametrize("data", [b"", b"GET", request()[:-2], request()[:40]], ids=["nothing", "3", "almost", "40"])
async def test_half_a_request_and_then_nothing(stack: Stack, data: bytes) -> None:
    server = await serve(stack, echo, handshake_timeout=0.1)
    begun = time.monotonic()
    answer = await ask(server.port, data)
    assert answer.status == 408
    assert time.monotonic() - begun > 0.05
    assert not server._handshakes


async def test_a_request_that_trickles_does_not_move_the_deadline(stack: Stack) -> None:
    server = await serve(stack, echo, handshake_timeout=0.2)
    async with await RawPeer.connect(server.port) as peer:
        answer = asyncio.ensure_future(peer.read_answer())
        for byte in request():
            if answer.done():
                break
            peer.send(bytes([byte]))
            await asyncio.sleep(0.01)
        assert (await answer).status == 408


async def test_a_client_that_leaves_before_it_is_answered(stack: Stack) -> None:
    server = await serve(stack, echo)
    for data in (b"", b"GET / HT", request()[:-2]):
        async with await RawPeer.connect(server.port) as peer:
            peer.send(data)
        async with await RawPeer.connect(server.port) as peer:
            peer.send(data)
            await asyncio.sleep(0.01)
            peer.reset()
    await until(lambda: not server._handshakes)


# --- process_request ---------------------------------------------------------------------------------------


def judges(answer: Any) -> dict[str, Any]:
    """The same answer by a plain and by a coroutine function."""

    def plain(_: Request) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def coroutine(request: Request) -> Any:
        await asyncio.sleep(0)
        return plain(request)

    return {"plain": plain, "coroutine": coroutine}


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_process_request_answers_plain_http(stack: Stack, kind: str) -> None:
    """picows (Handshake): HEAD and HTTP/1.0 get 400, before anybody is asked."""
    server = await serve(stack, echo, process_request=judges(Response(200, {"X": "y"}, "fine\n"))[kind])
    for line in ("GET /health HTTP/1.1", "GET /health HTTP/1.0"):
        answer = await ask(server.port, f"{line}\r\nHost: x\r\n\r\n".encode())
        assert (answer.status, answer.body, answer.headers["x"]) == (200, b"fine\n", "y")
        assert answer.headers["connection"] == "close"
    head = await ask(server.port, b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "5")
    assert (await ask(server.port, request())).status == 200  # an upgrade too is answered so


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_process_request_returns_a_tuple(stack: Stack, kind: str) -> None:
    server = await serve(stack, echo, process_request=judges((401, {"WWW-Authenticate": "Basic"}, b"no"))[kind])
    answer = await ask(server.port, request())
    assert (answer.status, answer.body, answer.headers["www-authenticate"]) == (401, b"no", "Basic")


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
@pytest.mark.parametrize("wrong", [LookupError("secret"), "text", 404], ids=["raises", "str", "int"])
async def test_a_process_request_that_fails(
    stack: Stack, kind: str, wrong: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """picows (Handshake): an exception is sent to the peer as the body of a 500, and not logged."""
    server = await serve(stack, echo, process_request=judges(wrong)[kind])
    with caplog.at_level(logging.ERROR, "fabric.server"):
        answer = await ask(server.port, request())
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert [record.exc_info is not None for record in caplog.records] == [True]


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_process_request_that_lets_pass(stack: Stack, kind: str) -> None:
    server = await serve(stack, echo, process_request=judges(None)[kind])
    async with await RawPeer.open(server.port) as peer:
        peer.send_text("x")
        assert await peer.payload() == b"x"
    assert (await ask(server.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).status == 426


async def test_a_process_request_that_takes_too_long(stack: Stack) -> None:
    cancelled = asyncio.Event()

    async def endless(_: Request) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    server = await serve(stack, echo, process_request=endless, handshake_timeout=1)
    answer = await ask(server.port, request())
    assert (answer.status, answer.body) == (503, b"the request was not judged within 1 seconds\n")
    assert int(answer.headers["retry-after"]) > 0
    await cancelled.wait()


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_process_request_that_is_cancelled(stack: Stack, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """By a task of its own that was, not by this server, which has to answer all the same."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()

    def plain(_: Request) -> Any:
        return future.result()

    async def coroutine(_: Request) -> Any:
        return await future

    server = await serve(stack, echo, process_request=plain if kind == "plain" else coroutine)
    with caplog.at_level(logging.ERROR, "fabric.server"):
        assert (await ask(server.port, request())).status == 500
    assert len(caplog.records) == 1
    assert not server._handshakes


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_an_interim_response_is_no_answer(stack: Stack, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    server = await serve(stack, echo, process_request=judges((100, {}, b""))[kind])
    with caplog.at_level(logging.ERROR, "fabric.server"):
        assert (await ask(server.port, request())).status == 500
    assert "HTTP status is 100, which is interim" in caplog.text


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_body_is_sent_as_it_is(stack: Stack, kind: str) -> None:
    for given, status in ((b"text", 200), (None, 204), ("text", 304)):
        answer = Response(status, {"Transfer-Encoding": "chunked", "Content-Length": "99"}, given)
        server = await serve(stack, echo, process_request=judges(answer)[kind])
        found = await ask(server.port, request())
        assert (found.status, found.body) == (status, b"text" if status == 200 else b"")
        assert "transfer-encoding" not in found.headers
        assert found.headers.get("content-length") == {200: "4", 204: None, 304: "4"}[status]


async def test_a_path_in_utf_8_that_was_not_encoded(stack: Stack) -> None:
    paths: list[str] = []
    server = await serve(stack, echo, process_request=lambda request: paths.append(request.path))
    for path in ("/café".encode(), b"/caf%C3%A9"):
        assert (await ask(server.port, b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)).status == 426
    assert paths == ["/café", "/café"]


async def test_a_host_with_a_zone(stack: Stack) -> None:
    server = await serve(stack, echo)
    for host in ("[fe80::1%25lo]:80", "[fe80::1%lo]"):
        async with await RawPeer.open(server.port, Host=host):  # raises unless the answer is 101
            pass


@pytest.mark.parametrize("judged", ["at once", "later"])
@pytest.mark.parametrize("limit", [0, 100])
async def test_a_client_that_has_hung_up_is_no_fault(
    stack: Stack, judged: str, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Before its request, with it, or while it is judged, by FIN or by RST: as health checks and port scanners do."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def later(request: Request) -> Response:
        if request.path == "/last":
            begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await go.wait()
        return Response(200, {}, b"x" * 100_000)

    process = later if judged == "later" else judges(Response(200, {}, b"x" * 100_000))["plain"]
    server = await serve(stack, echo, process_request=process, max_connections_per_ip=limit)
    with caplog.at_level(logging.WARNING):
        for data in (b"", b"GET / HT", request(), b"not HTTP\n"):
            for reset in (True, False) * 5:
                with socket.create_connection(("127.0.0.1", server.port)) as sock:
                    sock.sendall(data)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
        async with await RawPeer.connect(server.port) as peer:
            peer.send(request(line="GET /last HTTP/1.1"))
            if judged == "later":
                await begun.wait()
            peer.reset()
        await until(lambda: not server._handshakes)
        go.set()
    assert caplog.records == []


async def test_a_client_that_leaves_while_its_request_is_judged(stack: Stack) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(_: Request) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    server = await serve(stack, echo, process_request=endless)
    async with await RawPeer.connect(server.port) as peer:
        peer.send(request())
        await begun.wait()
        peer.reset()
        await cancelled.wait()
    assert not server._handshakes


async def test_a_client_that_floods_while_its_request_is_judged(stack: Stack) -> None:
    go = asyncio.Event()

    async def slow(_: Request) -> None:
        await go.wait()

    server = await serve(stack, echo, process_request=slow)
    async with await RawPeer.connect(server.port) as peer:
        tracemalloc.start()
        try:
            block = encode(TEXT, "x" * 60_000)
            peer.send(request())
            sent = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while sent < 500:
                        peer.send(block)
                        sent += 1
                        await peer.writer.drain()
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert sent < 500, "the server has read it all"
        assert most < 2_000_000
        go.set()
        assert (await peer.read_answer()).status == 101
        for _ in range(sent):
            assert await peer.payload() == b"x" * 60_000


# --- who may come ------------------------------------------------------------------------------------------

ORIGINS = ["https://a.example", re.compile(r"https://[a-z]+\.b\.example"), None]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([], 101),
        (["Origin: https://a.example"], 101),
        (["Origin: https://x.b.example"], 101),
        (["Origin: https://x.b.example.evil"], 403),
        (["Origin: https://b.example"], 403),
        (["Origin: http://a.example"], 403),
        (["Origin: https://a.example:444"], 403),
        (["Origin: https://A.example"], 403),
        (["Origin: null"], 403),
        (["Origin: "], 403),
        (["Origin: https://a.example", "Origin: https://evil"], 403),
    ],
)
async def test_origins(stack: Stack, lines: list[str], status: int) -> None:
    server = await serve(stack, echo, origins=ORIGINS)
    async with await RawPeer.connect(server.port) as peer:
        peer.send(request(*lines))
        assert (await peer.read_answer()).status == status


@pytest.mark.parametrize("given", ["https://a.example:443", "HTTPS://A.Example"])
async def test_origins_are_held_as_browsers_send_them(stack: Stack, given: str) -> None:
    server = await serve(stack, echo, origins=[given])
    async with await RawPeer.open(server.port, "Origin: https://a.example"):
        pass
    assert (await ask(server.port, request("Origin: https://a.example:444"))).status == 403


@pytest.mark.parametrize("origin", ["http://[::1", "://", "http://", "[", "\xff", "null", "http://[::1]:x"])
async def test_an_origin_that_is_none(stack: Stack, origin: str) -> None:
    server = await serve(stack, echo, origins=["https://a.example", re.compile("https://.*")])
    assert (await ask(server.port, request(f"Origin: {origin}"))).status == 403


async def test_an_origin_is_asked_for(stack: Stack) -> None:
    server = await serve(stack, echo, origins=["https://a.example"])
    assert (await ask(server.port, request())).status == 403


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([], 401),
        (["X-Api-Key: k"], 401),
        (["Authorization: Bearer t"], 400),
        (["authorization: Bearer t", "x-api-key: k"], 101),
    ],
)
async def test_required_headers(stack: Stack, lines: list[str], status: int) -> None:
    server = await serve(stack, echo, required_headers=["Authorization", "X-API-Key"])
    async with await RawPeer.connect(server.port) as peer:
        peer.send(request(*lines))
        answer = await peer.read_answer()
        assert answer.status == status
        assert ("www-authenticate" in answer.headers) == (status == 401)


async def test_max_connections(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, max_connections=2)
    async with await RawPeer.open(server.port) as first, await RawPeer.open(server.port):
        for _ in range(3):
            answer = await ask(server.port, request())
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) > 0
        client = await held.next()
        first.send_close()
        await first.close_seen()
        await client.wait_closed()
        async with await RawPeer.open(server.port):
            assert server.connection_count == 2


async def test_max_connections_while_requests_are_judged(stack: Stack) -> None:
    """The limit holds at the moment of the upgrade, however many were let in before."""
    go = asyncio.Event()

    async def wait(request: Request) -> None:
        if request.path != "/now":
            await go.wait()

    server = await serve(stack, Held(), max_connections=2, process_request=wait)
    async with await RawPeer.open(server.port, line="GET /now HTTP/1.1"):
        peers = [await stack.enter_async_context(await RawPeer.connect(server.port)) for _ in range(2)]
        for peer in peers:
            peer.send(request())
        await until(lambda: len(server._handshakes) == 2)
        go.set()
        assert sorted([(await peer.read_answer()).status for peer in peers]) == [101, 503]


@pytest.mark.parametrize(("option", "status"), [("max_connections_per_ip", 429), ("max_connections", 503)])
async def test_idle_connections_before_the_handshake_are_limited(stack: Stack, option: str, status: int) -> None:
    server = await serve(stack, echo, handshake_timeout=60, **{option: 5})
    idle = [await stack.enter_async_context(await RawPeer.connect(server.port)) for _ in range(5)]
    await until(lambda: len(server._handshakes) == 5)
    for _ in range(50):
        async with await RawPeer.connect(server.port) as peer:
            answer = await peer.read_answer()  # nothing was asked
            assert (answer.status, int(answer.headers["retry-after"]) > 0) == (status, True)
    assert len(server._handshakes) == 5
    for peer in idle[:3]:
        peer.writer.close()
    await until(lambda: len(server._handshakes) == 2)
    for _ in range(3):
        await stack.enter_async_context(await RawPeer.open(server.port))
    idle[4].send(request())
    assert (await idle[4].read_answer()).status == 101
    await until(lambda: server.connection_count == 4)


async def test_a_full_server_still_answers_plain_http(stack: Stack) -> None:
    """Or whoever watches over it would take it for dead."""
    health = judges(Response(200))["plain"]
    server = await serve(
        stack, Held(), max_connections=1, max_connections_per_ip=1,
        process_request=lambda request: health(request) if request.path == "/health" else None,
    )  # fmt: skip
    async with await RawPeer.open(server.port):
        assert (await ask(server.port, request(line="GET /health HTTP/1.1"))).status == 200
        assert (await ask(server.port, request())).status == 503


async def test_answered_clients_that_do_not_hang_up_are_limited(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric._handshake.server.MAX_LINGERING", 3)
    monkeypatch.setattr("fabric._handshake.server.LINGER", 60)
    server = await serve(stack, echo)
    peers = [await stack.enter_async_context(await RawPeer.connect(server.port)) for _ in range(6)]
    for peer in peers:
        peer.send(b"not HTTP\n")
        assert (await peer.read_answer()).status == 400
    before = {int(name) for name in os.listdir("/dev/fd")}
    for peer in peers:
        peer.writer.close()
    await until(lambda: not server._handshakes.lingering)
    after = {int(name) for name in os.listdir("/dev/fd")}
    assert len(before - after) == 6 + 3  # at our end, and at the server's


async def test_max_connections_per_ip(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, max_connections_per_ip=1)
    async with await RawPeer.open(server.port) as peer:
        client = await held.next()
        answer = await ask(server.port, request())
        assert answer.status == 429
        assert "retry-after" in answer.headers
        peer.reset()
        await client.wait_closed()
    async with await RawPeer.open(server.port):
        pass


# --- shutting down -----------------------------------------------------------------------------------------


async def test_stragglers_are_told(stack: Stack) -> None:
    server = await serve(stack, echo)
    async with await RawPeer.connect(server.port) as peer:
        peer.send(request()[:-2])
        await until(lambda: server._handshakes)
        port = server.port
        stopping = asyncio.create_task(server.shutdown())
        answer = await peer.read_answer()
        assert answer.status == 503
        assert "retry-after" in answer.headers
        await stopping
    with pytest.raises(ConnectionRefusedError):
        await RawPeer.connect(port)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_no_straggler_outlives_the_server(stack: Stack, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """Some never ask and never hang up, as browsers connect in advance: a loop with open transports may not close."""
    monkeypatch.setattr("fabric._handshake.server.LINGER", 60)
    server = await serve(stack, echo, **({"ssl": server_context()} if scheme == "wss" else {}))
    tls = client_context() if scheme == "wss" else None
    peers: list[socket.socket] = []
    for _ in range(2):
        peer = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", server.port))
        if tls is not None:
            peer = await asyncio.to_thread(tls.wrap_socket, peer, server_hostname="localhost")
        peers.append(stack.enter_context(contextlib.closing(peer)))
    peers[1].sendall(request()[:-2])
    await until(lambda: sum(each.is_connected + bool(each._buffer) for each in server._handshakes._pending) == 3)
    theirs = [sock.fileno() for sock in server._handshakes.sockets()]
    await server.shutdown(timeout=0.1)
    assert server._handshakes._timer is None
    await until(lambda: not any(is_open(number) for number in theirs))
    for peer in peers:
        assert (await asyncio.to_thread(peer.recv, 4096)).startswith(b"HTTP/1.1 503 ")


async def test_a_straggler_whose_request_is_being_judged(stack: Stack) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(_: Request) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    server = await serve(stack, echo, process_request=endless)
    async with await RawPeer.connect(server.port) as peer:
        peer.send(request())
        await begun.wait()
        stopping = asyncio.create_task(server.shutdown(timeout=1))
        assert (await peer.read_answer()).status == 503
        await stopping
        await cancelled.wait()


# --- the client's side -------------------------------------------------------------------------------------


async def test_a_name_lookup_that_never_answers_is_inside_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """picows (Handshake): its time limit does not cover DNS."""

    async def never(*args: Any, **options: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    with pytest.raises(Timeout, match=r"^name lookup of silent\.invalid timed out after 0\.05 s"):
        await WebSocketClient.connect("ws://silent.invalid/", connection_timeout=0.05)


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_a_type_error_of_the_application_calls_nothing_twice(stack: Stack, kind: str) -> None:
    """picows (Handshake): a TypeError inside a two-argument client factory makes it call that again with none."""
    called: list[Any] = []

    def plain(*args: Any) -> None:
        called.append(args)
        raise TypeError("of the application")

    async def coroutine(*args: Any) -> None:
        plain(*args)

    held = Held()
    server = await serve(stack, held)
    on_connect = plain if kind == "plain" else coroutine
    with pytest.raises(TypeError, match="of the application"):
        await WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", on_connect=on_connect)
    assert [len(args) for args in called] == [1]
    await (await held.next()).wait_closed()
    assert server.metrics.total_connections == 1
