"""fabric.asgi under uvicorn's HTTP protocols, spoken to in bytes: the opening handshake, messages, the end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import socket
import sys
import zlib
from typing import Any

import pytest
import uvicorn

from fabric.client import WebSocketClient
from support.asgi import Notes, Receive, Script, Send, accepted, echo, serve
from support.frames import BINARY, CONTINUATION, PING, PONG, TEXT, close_frame, encode
from support.raw_peer import RawPeer, request
from support.serving import turns, until
from support.tls import client_context, server_context


@pytest.fixture(params=["h11", "httptools"])
def http(request: pytest.FixtureRequest) -> str:
    """Which of uvicorn's HTTP protocols."""
    if request.param == "httptools":
        pytest.importorskip("httptools")
    name: str = request.param
    return name


async def ask(port: int, *more: str, **fields: Any) -> RawPeer:
    """A request that will not be accepted; `peer.answer` is the response."""
    peer = await RawPeer.connect(port)
    async with peer:
        peer.send(request(*more, **fields))
        await peer.read_answer()
    return peer


# --- the opening handshake ---------------------------------------------------------------------------------


async def test_the_scope_is_what_the_client_asked_for(stack: contextlib.AsyncExitStack, http: str) -> None:
    notes = Notes()
    served = await serve(stack, notes, http=http, root_path="/api", state={"pool": 1})
    more = ("X-Double: one", "x-double: two", "Sec-WebSocket-Protocol: b", "X-Raw: caf\xe9")
    line = "GET /caf%C3%A9%2Fx?token=a%20b&c HTTP/1.1"
    async with await RawPeer.open(served.port, *more, line=line, Sec_WebSocket_Protocol="chat,  a") as peer:
        ours = peer.writer.get_extra_info("sockname")
    await notes.ended()
    scope = notes.scope
    headers = scope.pop("headers")
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "root_path": "/api",
        "path": "/api/café/x",
        "raw_path": b"/api/caf%C3%A9%2Fx",
        "query_string": b"token=a%20b&c",
        "subprotocols": ["chat", "a", "b"],
        "client": ours,
        "server": ("127.0.0.1", served.port),
        "state": {"pool": 1},
        "extensions": {"websocket.http.response": {}},
    }
    assert (b"host", b"localhost") in headers
    assert [value for name, value in headers if name == b"x-double"] == [b"one", b"two"]
    assert dict(headers)[b"x-raw"] == b"caf\xe9"


async def test_each_connection_has_a_copy_of_the_state(stack: contextlib.AsyncExitStack) -> None:
    seen: list[Any] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        seen.append(dict(scope["state"]))
        scope["state"]["own"] = True
        scope["state"]["shared"].append(1)
        await echo(scope, receive, send)

    served = await serve(stack, app, state={"shared": []})
    for _ in range(2):
        async with await RawPeer.open(served.port):
            pass
    assert seen == [{"shared": [1, 1]}, {"shared": [1, 1]}]


async def test_subprotocol_and_headers_of_the_answer(stack: contextlib.AsyncExitStack, http: str) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        headers = [(b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"server", b"other")]
        await accepted(receive, send, subprotocol="chat", headers=headers)

    served = await serve(stack, app, http=http)
    async with await RawPeer.open(served.port, Sec_WebSocket_Protocol="chat") as peer:
        assert peer.answer is not None
        assert peer.answer.headers["sec-websocket-protocol"] == "chat"
        assert [pair for pair in peer.answer.fields if pair[0] in ("server", "set-cookie")] == [
            ("server", "uvicorn"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("server", "other"),
        ]


async def test_no_subprotocol_unless_the_application_names_one(stack: contextlib.AsyncExitStack) -> None:
    for more in ({}, {"subprotocol": None, "headers": None}):

        async def app(scope: Any, receive: Receive, send: Send, more: Any = more) -> None:
            await accepted(receive, send, **more)

        served = await serve(stack, app)
        async with await RawPeer.open(served.port, Sec_WebSocket_Protocol="chat") as peer:
            assert peer.answer is not None
            assert "sec-websocket-protocol" not in peer.answer.headers


async def test_a_subprotocol_among_the_headers_is_taken(stack: contextlib.AsyncExitStack) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await accepted(receive, send, headers=[(b"Sec-WebSocket-Protocol", b"chat")])

    served = await serve(stack, app)
    async with await RawPeer.open(served.port, Sec_WebSocket_Protocol="chat") as peer:
        assert peer.answer is not None
        assert [value for name, value in peer.answer.fields if name == "sec-websocket-protocol"] == ["chat"]


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"headers": [(b"a", b"x\r\nb: y")]}, "the value of the header 'a' holds a control character"),
        ({"headers": [(b"a b", b"x")]}, "the name of a header must be a token, not b'a b'"),
        ({"headers": [("a", "x")]}, "names and values of headers are bytes in ASGI, not str and str"),
        ({"headers": [(b"Connection", b"close")]}, "the header 'connection' of an accepted WebSocket is the server's"),
        ({"subprotocol": "a b"}, r"the subprotocol 'a b' is not a token"),
    ],
)
async def test_what_cannot_be_sent_is_refused(
    stack: contextlib.AsyncExitStack, more: dict[str, Any], error: str
) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        with pytest.raises((TypeError, ValueError), match=error):
            await accepted(receive, send, **more)
        await send({"type": "websocket.accept"})

    served = await serve(stack, app)
    async with await RawPeer.open(served.port):
        pass


async def test_close_before_accept_is_403(
    stack: contextlib.AsyncExitStack, http: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Any] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        events.append(await receive())
        await send({"type": "websocket.close", "code": 4000})
        events.append(await receive())
        with pytest.raises((RuntimeError, OSError)):
            await send({"type": "websocket.accept"})

    served = await serve(stack, app, http=http)
    with caplog.at_level(logging.INFO, "uvicorn.error"):
        peer = await ask(served.port, line="GET /room?token=secret HTTP/1.1")
        await served.ended()
    assert peer.answer is not None
    assert (peer.answer.status, peer.answer.reason, peer.answer.body) == (403, "Forbidden", b"")
    assert peer.answer.headers["connection"] == "close"
    assert peer.answer.headers["content-length"] == "0"
    assert events == [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1006}]
    (line,) = [record.getMessage() for record in caplog.records if "WebSocket" in record.getMessage()]
    assert line.startswith("127.0.0.1:")
    assert line.endswith(' - "WebSocket /room" 403')


START, BODY = "websocket.http.response.start", "websocket.http.response.body"


def start(status: int, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": START, "status": status, "headers": list(headers)}


def body(data: bytes = b"", *, more: bool = False) -> dict[str, Any]:
    return {"type": BODY, "body": data, "more_body": more}


CHUNKED = ("transfer-encoding", "chunked")
EMPTY = ("content-length", "0")


@pytest.mark.parametrize(
    ("events", "status", "line", "text"),
    [
        ([start(400), body(b"goodbye")], 400, ("content-length", "7"), b"goodbye"),
        (
            [start(401, (b"content-length", b"4")), body(b"ab", more=True), body(b"cd")],
            401,
            ("content-length", "4"),
            b"abcd",
        ),
        ([start(404), body(b"\xff", more=True), body(b"xy")], 404, CHUNKED, b"1\r\n\xff\r\n2\r\nxy\r\n0\r\n\r\n"),
        ([start(404), body(b"x", more=True), body()], 404, CHUNKED, b"1\r\nx\r\n0\r\n\r\n"),
        ([start(302, (b"location", b"/x"), (b"connection", b"keep-alive")), body()], 302, ("location", "/x"), b""),
        ([start(404, (b"content-length", b"0"))], 404, EMPTY, b""),
        ([{"type": START, "status": 418}, {"type": BODY}], 418, EMPTY, b""),
    ],
)
async def test_denial_with_a_response(
    stack: contextlib.AsyncExitStack,
    http: str,
    events: list[dict[str, Any]],
    status: int,
    line: tuple[str, str],
    text: bytes,
) -> None:
    got: list[Any] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        assert await receive() == {"type": "websocket.connect"}
        for event in events:
            await send(event)
        if events[-1]["type"] == BODY:
            got.append(await receive())

    served = await serve(stack, app, http=http)
    peer = await ask(served.port)
    await served.ended()
    assert peer.answer is not None
    assert peer.answer.status == status
    assert line in peer.answer.fields
    assert ("connection", "close") in peer.answer.fields
    assert ("server", "uvicorn") in peer.answer.fields
    assert peer.answer.body == text
    assert got in ([], [{"type": "websocket.disconnect", "code": 1006}])


@pytest.mark.parametrize("wrong", [start(404), {"type": "websocket.accept"}, {"type": "websocket.close"}])
async def test_a_denial_is_gone_on_with(stack: contextlib.AsyncExitStack, wrong: dict[str, Any]) -> None:
    errors: list[str] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(start(404, (b"content-length", b"0")))
        with pytest.raises(RuntimeError) as caught:
            await send(wrong)
        errors.append(str(caught.value))
        await send(body())
        with pytest.raises((RuntimeError, OSError)):
            await send(body())

    served = await serve(stack, app)
    peer = await ask(served.port)
    assert peer.answer is not None
    assert peer.answer.status == 404
    await served.ended()
    assert errors == [f"Expected ASGI message 'websocket.http.response.body' but got '{wrong['type']}'."]


@pytest.mark.parametrize("status", [99, 101, 199, 600, 700])
async def test_a_status_that_ends_no_request(stack: contextlib.AsyncExitStack, status: int) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        with pytest.raises(RuntimeError, match=f"Invalid HTTP status code '{status}' in response."):
            await send(start(status))
        raise LookupError("then something else")

    served = await serve(stack, app)
    peer = await ask(served.port)
    assert peer.answer is not None
    assert (peer.answer.status, peer.answer.body) == (500, b"Internal Server Error")
    assert peer.answer.headers["content-length"] == "21"


async def test_a_body_longer_than_it_says(stack: contextlib.AsyncExitStack) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send(start(404, (b"content-length", b"2")))
        with pytest.raises(RuntimeError, match="longer than Content-Length"):
            await send(body(b"abc"))
        await send(body(b"ab"))

    served = await serve(stack, app)
    peer = await ask(served.port)
    assert peer.answer is not None
    assert peer.answer.body == b"ab"


async def test_a_large_denial_waits_for_its_client(stack: contextlib.AsyncExitStack) -> None:
    size, parts = 1 << 16, 200
    sent = 0

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        nonlocal sent
        await send(start(404))
        for _ in range(parts):
            await send(body(b"x" * size, more=True))
            sent += 1
        await send(body())

    served = await serve(stack, app)
    async with await RawPeer.connect(served.port, receive_buffer=4096) as peer:
        peer.send(request())
        await until(lambda: getattr(served.connection, "_is_blocked_early", False))
        await turns()
        assert sent < parts
        answer = await peer.read_answer()
    assert answer.body.count(b"x") == size * parts
    assert sent == parts


@pytest.mark.parametrize("fails", [True, False])
async def test_an_application_that_gives_no_answer(
    stack: contextlib.AsyncExitStack, http: str, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if fails:
            await send({"type": "websocket.send", "text": "too early"})

    served = await serve(stack, app, http=http)
    peer = await ask(served.port)
    assert peer.answer is not None
    assert (peer.answer.status, peer.answer.body) == (500, b"Internal Server Error")
    assert peer.answer.headers["connection"] == "close"
    await served.ended()
    said = caplog.text
    if fails:
        assert "Exception in ASGI application" in said
        assert "but got 'websocket.send'" in said
    else:
        assert "ASGI callable returned without completing handshake." in said


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Extensions": "permessage-deflate;;"}, 400),
        ({"line": "POST / HTTP/1.1"}, 405),
    ],
)
async def test_a_bad_request_does_not_reach_the_application(
    stack: contextlib.AsyncExitStack, http: str, fields: dict[str, Any], status: int
) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        raise AssertionError("called")

    served = await serve(stack, app, http=http)
    peer = await ask(served.port, **fields)
    assert peer.answer is not None
    assert peer.answer.status == status
    await served.ended()


@pytest.mark.parametrize("more", [("X-Large: " + "x" * 300_000,), tuple(f"X-{n}: x" for n in range(1000))])
async def test_a_request_that_is_too_large(stack: contextlib.AsyncExitStack, more: tuple[str, ...]) -> None:
    """httptools has no limit of its own."""
    pytest.importorskip("httptools")
    served = await serve(stack, echo, http="httptools")
    peer = await ask(served.port, *more)
    assert peer.answer is not None
    assert peer.answer.status == 431


async def test_a_server_at_its_limit(stack: contextlib.AsyncExitStack, http: str) -> None:
    served = await serve(stack, echo, http=http, limit_concurrency=2)
    async with await RawPeer.open(served.port) as first:
        peer = await ask(served.port)
        assert peer.answer is not None
        assert peer.answer.status == 503
        assert "retry-after" in peer.answer.headers
        first.send_text("still here")
        assert await first.payload() == b"still here"
    await served.ended()
    async with await RawPeer.open(served.port):
        pass


async def test_what_comes_with_the_request_is_read(stack: contextlib.AsyncExitStack, http: str) -> None:
    served = await serve(stack, echo, http=http)
    cut = encode(TEXT, "c")
    async with await RawPeer.open(served.port, rest=encode(TEXT, "a") + encode(BINARY, b"b") + cut[:3]) as peer:
        assert [await peer.payload(), await peer.payload()] == [b"a", b"b"]
        peer.send(cut[3:])
        assert await peer.payload() == b"c"


async def test_a_request_in_pieces(stack: contextlib.AsyncExitStack, http: str) -> None:
    served = await serve(stack, echo, http=http)
    async with await RawPeer.connect(served.port) as peer:
        whole = request() + encode(TEXT, "behind")
        for at in range(0, len(whole), 40):
            peer.send(whole[at : at + 40])
            await turns(3)
        assert (await peer.read_answer()).status == 101
        assert await peer.payload() == b"behind"


async def test_a_client_that_does_not_wait_is_not_read_for_ever(stack: contextlib.AsyncExitStack) -> None:
    script = Script(accept=False)
    served = await serve(stack, script)
    async with await RawPeer.connect(served.port) as peer:
        peer.send(request())
        receive, send = await script.called()
        messages = [b"%06d" % number * 20 for number in range(3000)]
        peer.send(*[encode(BINARY, message) for message in messages])
        await until(lambda: served.connection._stopped_reading)
        assert not served.connection.transport.is_reading()
        await accepted(receive, send)
        assert (await peer.read_answer()).status == 101
        for message in messages:
            assert await receive() == {"type": "websocket.receive", "bytes": message}
    script.release()


async def test_a_client_that_leaves_before_the_answer(stack: contextlib.AsyncExitStack, http: str) -> None:
    script = Script(accept=False)
    served = await serve(stack, script, http=http)
    async with await RawPeer.connect(served.port) as peer:
        peer.send(request())
        receive, send = await script.called()
    assert await receive() == {"type": "websocket.connect"}
    assert await receive() == {"type": "websocket.disconnect", "code": 1006}
    for event in ({"type": "websocket.accept"}, {"type": "websocket.close"}, start(404)):
        with pytest.raises(OSError):
            await send(event)
    script.release()
    await served.ended()


async def test_a_log_line_for_what_is_accepted(
    stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    served = await serve(stack, echo)
    with caplog.at_level(logging.INFO, "uvicorn.error"):
        async with await RawPeer.open(served.port, line="GET /a%20b?token=secret HTTP/1.1"):
            pass
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(' - "WebSocket /a%20b" [accepted]')


async def test_begin_and_end_are_traced(stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(5, "uvicorn.error"):
        served = await serve(stack, echo)
        async with await RawPeer.open(served.port):
            pass
        await served.ended()
    said = [record.getMessage().rpartition(" - ")[2] for record in caplog.records]
    traced = [line for line in said if line.startswith("WebSocket connection")]
    assert traced == ["WebSocket connection made", "WebSocket connection lost"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True)
async def test_eager_tasks(stack: contextlib.AsyncExitStack, http: str) -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    try:
        served = await serve(stack, echo, http=http)
        async with await RawPeer.open(served.port, rest=encode(TEXT, "behind")) as peer:
            assert await peer.payload() == b"behind"
            peer.send_text("more")
            assert await peer.payload() == b"more"
    finally:
        asyncio.get_running_loop().set_task_factory(None)


@pytest.mark.parametrize("resets", [False, True])
async def test_context_of_the_application(stack: contextlib.AsyncExitStack, resets: bool) -> None:
    if "reset_contextvars" not in inspect.signature(uvicorn.Config).parameters:
        pytest.skip("this uvicorn has no reset_contextvars")
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.append(variable.get())
        await echo(scope, receive, send)

    variable.set("of the server")
    served = await serve(stack, app, **({"reset_contextvars": True} if resets else {}))
    async with await RawPeer.open(served.port):
        pass
    assert seen == ["unset" if resets else "of the server"]


async def test_tls(stack: contextlib.AsyncExitStack, http: str) -> None:
    notes = Notes()
    served = await serve(stack, notes, http=http, tls=server_context())
    url = f"wss://localhost:{served.port}/"
    async with WebSocketClient.connect(url, ssl=client_context(), auto_reconnect=False) as client:
        await client.send("secret")
    await notes.ended()
    assert notes.scope["scheme"] == "wss"
    assert notes.events[0] == {"type": "websocket.receive", "text": "secret"}


# --- messages ----------------------------------------------------------------------------------------------


async def test_messages_both_ways(stack: contextlib.AsyncExitStack, http: str) -> None:
    served = await serve(stack, echo, http=http)
    async with await RawPeer.open(served.port) as peer:
        for data in (b"", "é".encode(), bytes(range(256)), b"x" * 70_000):
            peer.send_binary(data)
            wire = await peer.frame()
            assert (wire.opcode, wire.payload, wire.fin) == (BINARY, data, True)
        for text in ("", "é", "x" * 70_000):
            peer.send_text(text)
            wire = await peer.frame()
            assert (wire.opcode, wire.payload, wire.fin) == (TEXT, text.encode(), True)
        many = [f"{number}" for number in range(500)]
        peer.send(*[encode(TEXT, text) for text in many])
        assert [await peer.payload() for _ in many] == [text.encode() for text in many]


async def test_a_message_in_frames(stack: contextlib.AsyncExitStack) -> None:
    notes = Notes()
    served = await serve(stack, notes)
    async with await RawPeer.open(served.port) as peer:
        peer.send_frame(TEXT, "é".encode()[:1], fin=False)
        peer.send_frame(PING, b"between")
        peer.send_frame(CONTINUATION, b"", fin=False)
        peer.send_frame(CONTINUATION, "é".encode()[1:] + b"!")
        assert (await peer.frame()).opcode == PONG
        peer.send_close()
        assert await peer.close_seen() == (1000, "")
    await notes.ended()
    assert notes.events[0] == {"type": "websocket.receive", "text": "é!"}


async def test_what_send_takes(stack: contextlib.AsyncExitStack) -> None:
    script = Script()
    served = await serve(stack, script)
    async with await RawPeer.open(served.port) as peer:
        _, send = await script.called()
        for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"memoryview")):
            await send({"type": "websocket.send", "bytes": data})
            wire = await peer.frame()
            assert (wire.opcode, wire.payload) == (BINARY, bytes(data))
        await send({"type": "websocket.send", "bytes": None, "text": "text"})
        await send({"type": "websocket.send", "bytes": b"both", "text": "text"})
        assert [await peer.payload(), await peer.payload()] == [b"text", b"both"]

        class Mapped(dict[str, Any]):
            pass

        await send(Mapped(type="websocket.send", text="a mapping"))
        assert await peer.payload() == b"a mapping"
        for wrong in ({}, {"text": None, "bytes": None}, {"text": b"x"}, {"bytes": "x"}, {"bytes": 5}):
            with pytest.raises(TypeError, match=r"'websocket.send' wants"):
                await send({"type": "websocket.send", **wrong})
        with pytest.raises(UnicodeEncodeError):
            await send({"type": "websocket.send", "text": "\ud800"})
        for kind in ("websocket.accept", "websocket.http.response.start", "http.response.body"):
            with pytest.raises(RuntimeError, match=f"but got '{kind}'"):
                await send({"type": kind})
        await send({"type": "websocket.send", "text": "still open"})
        assert await peer.payload() == b"still open"
    script.release()


async def test_a_cancelled_receive_loses_nothing(stack: contextlib.AsyncExitStack) -> None:
    script = Script()
    served = await serve(stack, script)
    async with await RawPeer.open(served.port) as peer:
        receive, _ = await script.called()
        for number in range(3):
            waiting = asyncio.ensure_future(receive())
            await turns(2)
            waiting.cancel()
            peer.send_text(f"{number}")
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await receive() == {"type": "websocket.receive", "text": f"{number}"}
    script.release()


async def test_one_receives_at_a_time(stack: contextlib.AsyncExitStack) -> None:
    script = Script()
    served = await serve(stack, script)
    async with await RawPeer.open(served.port) as peer:
        receive, _ = await script.called()
        first = asyncio.ensure_future(receive())
        await turns(2)
        with pytest.raises(RuntimeError, match="another task is already waiting"):
            await receive()
        peer.send_text("for the first")
        assert (await first)["text"] == "for the first"
    script.release()


@pytest.mark.parametrize("fragments", [1, 5])
async def test_a_message_over_the_limit(stack: contextlib.AsyncExitStack, fragments: int) -> None:
    notes = Notes()
    served = await serve(stack, notes, ws_max_size=100)
    async with await RawPeer.open(served.port) as peer:
        peer.send_binary(b"x" * 100)
        size = 101 // fragments + 1
        for number in range(fragments):
            peer.send_frame(CONTINUATION if number else BINARY, b"x" * size, fin=number == fragments - 1)
        code, _ = await peer.close_seen()
        assert code == 1009
    await notes.ended()
    assert notes.events[0] == {"type": "websocket.receive", "bytes": b"x" * 100}
    assert notes.events[1]["type"] == "websocket.disconnect"
    assert notes.events[1]["code"] == 1009


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (encode(TEXT, b"\xff"), 1007),
        (encode(3, b""), 1002),
        (encode(TEXT, "x", mask=False), 1002),
        (encode(CONTINUATION, "x"), 1002),
        (encode(TEXT, "x", rsv=4), 1002),
    ],
)
async def test_a_fault_of_the_client(stack: contextlib.AsyncExitStack, frame: bytes, code: int) -> None:
    notes = Notes()
    served = await serve(stack, notes)
    async with await RawPeer.open(served.port) as peer:
        peer.send(frame)
        told, reason = await peer.close_seen()
        assert told == code
    await notes.ended()
    assert notes.events == [{"type": "websocket.disconnect", "code": code, "reason": reason}]


@pytest.mark.parametrize("size", [10, 40_000])
async def test_a_full_queue_stops_reading(stack: contextlib.AsyncExitStack, size: int) -> None:
    """By messages, and by bytes."""
    script = Script()
    served = await serve(stack, script, ws_max_queue=8, ws_max_size=100_000)
    async with await RawPeer.open(served.port) as peer:
        receive, _ = await script.called()
        messages = [b"%d" % number + b"x" * size for number in range(50)]
        peer.send(*[encode(BINARY, message) for message in messages])
        await until(lambda: served.connection.is_reading_paused)
        for message in messages:
            assert await receive() == {"type": "websocket.receive", "bytes": message}
        assert not served.connection.is_reading_paused
    script.release()


async def test_no_limit_of_messages(stack: contextlib.AsyncExitStack) -> None:
    script = Script()
    served = await serve(stack, script, ws_max_queue=0)
    async with await RawPeer.open(served.port) as peer:
        receive, _ = await script.called()
        peer.send(*[encode(TEXT, "x")] * 1000)
        await until(lambda: served.connection.queued == 1000)
        assert not served.connection.is_reading_paused
        for _ in range(1000):
            await receive()
    script.release()


@pytest.mark.parametrize("enabled", [True, False])
async def test_compression(stack: contextlib.AsyncExitStack, enabled: bool) -> None:
    served = await serve(stack, echo, ws_per_message_deflate=enabled)
    offer = "permessage-deflate; server_no_context_takeover"
    async with await RawPeer.open(served.port, Sec_WebSocket_Extensions=offer) as peer:
        assert peer.answer is not None
        answered = peer.answer.headers.get("sec-websocket-extensions", "")
        assert answered.startswith("permessage-deflate") is enabled
        peer.send_text("x" * 1000)
        wire = await peer.frame()
        if enabled:
            assert wire.rsv == 4
            assert zlib.decompressobj(-15).decompress(wire.payload + b"\0\0\xff\xff") == b"x" * 1000
        else:
            assert wire.payload == b"x" * 1000


async def test_send_waits_for_a_slow_client(stack: contextlib.AsyncExitStack) -> None:
    script = Script()
    served = await serve(stack, script)
    async with await RawPeer.open(served.port, receive_buffer=4096) as peer:
        _, send = await script.called()
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for _ in range(200):
                await send({"type": "websocket.send", "bytes": b"x" * 65536})
                sent += 1

        sending = asyncio.ensure_future(send_all())
        await until(lambda: served.connection._drained is not None)
        await turns()
        assert sent < 200
        for _ in range(200):
            assert len(await peer.payload()) == 65536
        await sending
    script.release()


async def test_a_slow_client_that_goes_ends_the_wait(stack: contextlib.AsyncExitStack) -> None:
    script = Script()
    served = await serve(stack, script)
    async with await RawPeer.open(served.port, receive_buffer=4096) as peer:
        _, send = await script.called()

        async def send_for_ever() -> None:
            while True:
                await send({"type": "websocket.send", "bytes": b"x" * 65536})

        sending = [asyncio.ensure_future(send_for_ever()) for _ in range(2)]
        await until(lambda: served.connection._drained is not None)
        peer.reset()
        for task in sending:
            with pytest.raises(OSError):
                await task
    script.release()


# --- the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "told"), [((1001, "custom"), (1001, "custom")), ((None, ""), (1005, "")), ((4321, ""), (4321, ""))]
)
async def test_the_client_closes(stack: contextlib.AsyncExitStack, http: str, sent: Any, told: Any) -> None:
    notes = Notes()
    served = await serve(stack, notes, http=http)
    async with await RawPeer.open(served.port) as peer:
        peer.send_text("last")
        peer.send_close(*sent)
        assert await peer.close_seen() == (sent[0], sent[1])
        await peer.closed()
    await notes.ended()
    assert notes.events == [
        {"type": "websocket.receive", "text": "last"},
        {"type": "websocket.disconnect", "code": told[0], "reason": told[1]},
    ]
    await served.ended()


@pytest.mark.parametrize("resets", [True, False])
async def test_a_client_that_is_lost(stack: contextlib.AsyncExitStack, resets: bool) -> None:
    notes = Notes()
    served = await serve(stack, notes)
    async with await RawPeer.open(served.port) as peer:
        if resets:
            peer.reset()
    await notes.ended()
    assert notes.events == [{"type": "websocket.disconnect", "code": 1006}]


async def test_messages_before_the_end_are_received(stack: contextlib.AsyncExitStack) -> None:
    script = Script()
    served = await serve(stack, script)
    async with await RawPeer.open(served.port) as peer:
        receive, send = await script.called()
        for _ in range(3):
            peer.send_binary(b"abc")
        peer.send_close()
        await peer.close_seen()
    await until(lambda: not served.state.connections)
    for _ in range(3):
        assert await receive() == {"type": "websocket.receive", "bytes": b"abc"}
    assert await receive() == {"type": "websocket.disconnect", "code": 1000, "reason": ""}
    for _ in range(2):
        with pytest.raises(OSError):
            await receive()
        for event in ({"type": "websocket.send", "text": "x"}, {"type": "websocket.close"}):
            with pytest.raises(OSError):
                await send(event)
    script.release()


@pytest.mark.parametrize(
    ("event", "code", "reason"),
    [
        ({}, 1000, ""),
        ({"code": 1001, "reason": None}, 1001, ""),
        ({"code": 4000, "reason": "enough"}, 4000, "enough"),
        ({"code": None, "reason": "é" * 100}, 1000, "é" * 61),
    ],
)
async def test_the_application_closes(
    stack: contextlib.AsyncExitStack, event: dict[str, Any], code: int, reason: str
) -> None:
    script = Script()
    served = await serve(stack, script)
    async with await RawPeer.open(served.port) as peer:
        receive, send = await script.called()
        await send({"type": "websocket.send", "text": "last"})
        await send({"type": "websocket.close", **event})
        assert await receive() == {"type": "websocket.disconnect", "code": code, "reason": reason}
        with pytest.raises(RuntimeError, match=r"'websocket.send', after sending 'websocket.close'"):
            await send({"type": "websocket.send", "text": "more"})
        with pytest.raises(RuntimeError, match=r"'websocket.close', after sending 'websocket.close'"):
            await send({"type": "websocket.close"})
        assert await peer.payload() == b"last"
        peer.send_text("crossing")
        assert await peer.close_seen() == (code, reason)
        peer.send_close(code)
        await peer.closed()
    script.release()


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, "1000"])
async def test_a_code_that_may_not_be_sent(stack: contextlib.AsyncExitStack, code: Any) -> None:
    script = Script()
    served = await serve(stack, script)
    async with await RawPeer.open(served.port) as peer:
        _, send = await script.called()
        with pytest.raises(ValueError, match="close code is"):
            await send({"type": "websocket.close", "code": code})
        await send({"type": "websocket.close"})
        assert await peer.close_seen() == (1000, "")
    script.release()


@pytest.mark.parametrize("how", ["returns", "raises", "returns something"])
async def test_an_application_that_ends_without_closing(
    stack: contextlib.AsyncExitStack, http: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What it sent arrives, and then the connection ends without a close frame, as with uvicorn's own."""

    async def app(scope: Any, receive: Receive, send: Send) -> Any:
        await accepted(receive, send)
        await send({"type": "websocket.send", "text": "a"})
        await send({"type": "websocket.send", "bytes": b"b" * 100_000})
        if how == "raises":
            raise LookupError("mine")
        return {"token": "secret"} if how == "returns something" else None

    served = await serve(stack, app, http=http)
    async with await RawPeer.open(served.port) as peer:
        assert [len(wire.payload) for wire in await peer.rest()] == [1, 100_000]
    await served.ended()
    assert ("LookupError: mine" in caplog.text) is (how == "raises")
    assert ("ASGI callable should return None, but returned dict." in caplog.text) is (how == "returns something")
    assert "secret" not in caplog.text


@pytest.mark.parametrize("broken_log", ["uvicorn.error"], indirect=True)
@pytest.mark.parametrize("how", ["at once", "accepted", "refused"])
async def test_connections_end_although_the_log_raises(
    stack: contextlib.AsyncExitStack, http: str, how: str, broken_log: list[str]
) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> Any:
        if how == "accepted":
            await accepted(receive, send)
        raise LookupError("mine")

    served = await serve(stack, app, http=http)
    async with await RawPeer.connect(served.port) as peer:
        peer.send(request(Sec_WebSocket_Version="7" if how == "refused" else "13"))
        assert (await peer.reader.read(-1)).startswith(b"HTTP/1.1 ")
    await served.ended()
    assert broken_log


@pytest.mark.parametrize("how", ["returns", "raises", "closes"])
async def test_an_application_that_ends_in_the_midst_of_a_read(stack: contextlib.AsyncExitStack, how: str) -> None:
    received = 0

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        nonlocal received
        await accepted(receive, send)
        for _ in range(3):
            await receive()
            received += 1
        if how == "raises":
            raise LookupError("mine")
        if how == "closes":
            await send({"type": "websocket.close"})

    served = await serve(stack, app)
    async with await RawPeer.open(served.port) as peer:
        peer.send(*[encode(TEXT, "x")] * 40)
        frames = [wire.close_code for wire in await peer.rest()] if how != "closes" else [(await peer.close_seen())[0]]
        assert frames == ([1000] if how == "closes" else [])
    assert received == 3
    await served.ended()


async def test_a_task_that_outlives_its_application(stack: contextlib.AsyncExitStack) -> None:
    kept: list[Any] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await accepted(receive, send)
        kept.extend([receive, send])

    served = await serve(stack, app)
    async with await RawPeer.open(served.port) as peer:
        await peer.closed()
    await served.ended()
    receive, send = kept
    assert (await receive())["type"] == "websocket.disconnect"
    for event in ({"type": "websocket.send", "text": "x"}, {"type": "websocket.close"}):
        with pytest.raises(OSError):
            await send(event)


async def test_a_client_that_does_not_answer_the_close(
    stack: contextlib.AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.asgi.DEFAULT_CLOSE_TIMEOUT", 0.05)
    script = Script()
    served = await serve(stack, script)
    async with await RawPeer.open(served.port) as peer:
        _, send = await script.called()
        await send({"type": "websocket.close"})
        await peer.close_seen()
        await until(lambda: not served.state.connections)
    script.release()


async def tls_peer(stack: contextlib.AsyncExitStack, port: int, said: bytes) -> socket.socket:
    """A client that has said this over TLS, and hangs up at the end of `stack` only, whatever it is told."""
    peer = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port))
    secure = await asyncio.to_thread(client_context().wrap_socket, peer, server_hostname="localhost")
    await asyncio.to_thread(secure.sendall, said)
    return stack.enter_context(contextlib.closing(secure))


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(request() + encode(0x3), id="a fault"),
        pytest.param(request() + close_frame(1000), id="a close"),
        pytest.param(request(Sec_WebSocket_Key=None), id="no upgrade"),
    ],
)
async def test_a_client_that_does_not_end_tls(
    stack: contextlib.AsyncExitStack, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("fabric.asgi.DEFAULT_CLOSE_TIMEOUT", 0.05)
    served = await serve(stack, Notes(), tls=server_context())
    peer = await tls_peer(stack, served.port, said)
    assert await asyncio.to_thread(peer.recv, 9) == b"HTTP/1.1 "
    await until(lambda: not served.state.connections)


# --- uvicorn shuts down ------------------------------------------------------------------------------------


async def test_shutdown_closes_with_1012(stack: contextlib.AsyncExitStack, http: str) -> None:
    notes = Notes()
    served = await serve(stack, notes, http=http)
    async with await RawPeer.open(served.port) as peer:
        served.shut_down()
        assert await peer.close_seen() == (1012, "")
        peer.send_close(1012)
        await notes.ended()
        await served.ended()
    assert notes.events == [{"type": "websocket.disconnect", "code": 1012}]


async def test_shutdown_before_the_answer(stack: contextlib.AsyncExitStack, http: str) -> None:
    script = Script(accept=False)
    served = await serve(stack, script, http=http)
    async with await RawPeer.connect(served.port) as peer:
        peer.send(request())
        receive, send = await script.called()
        served.shut_down()
        assert (await peer.read_answer()).status == 500
    assert await receive() == {"type": "websocket.connect"}
    assert await receive() == {"type": "websocket.disconnect", "code": 1006}
    with pytest.raises(OSError):
        await send({"type": "websocket.accept"})
    script.release()
    await served.ended()


async def test_shutdown_in_the_middle_of_a_denial(stack: contextlib.AsyncExitStack) -> None:
    script = Script(accept=False)
    served = await serve(stack, script)
    async with await RawPeer.connect(served.port) as peer:
        peer.send(request())
        _, send = await script.called()
        await send(start(404))
        await send(body(b"x", more=True))
        served.shut_down()
        answer = await peer.read_answer()
        assert (answer.status, answer.body) == (404, b"1\r\nx\r\n")
    script.release()
    await served.ended()


async def test_shutdown_cancels_what_takes_too_long(
    stack: contextlib.AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """As uvicorn does after `timeout_graceful_shutdown`."""
    script = Script()
    served = await serve(stack, script)
    async with await RawPeer.open(served.port) as peer:
        await script.called()
        for task in served.state.tasks:
            task.cancel(msg="Task cancelled, timeout graceful shutdown exceeded")
        assert await peer.rest() == []
        await served.ended()
    assert "timeout graceful shutdown exceeded" in caplog.text


@pytest.mark.parametrize(
    "said", [pytest.param(encode(0x3), id="a fault"), pytest.param(close_frame(1000), id="a close")]
)
async def test_shutdown_where_a_client_does_not_end_tls(
    stack: contextlib.AsyncExitStack, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """The connection is being closed when uvicorn closes it: a transport of asyncio's TLS bears that once."""
    monkeypatch.setattr("fabric.asgi.DEFAULT_CLOSE_TIMEOUT", 0.3)
    served = await serve(stack, Notes(), tls=server_context())
    peer = await tls_peer(stack, served.port, request() + said)
    assert await asyncio.to_thread(peer.recv, 9) == b"HTTP/1.1 "
    await until(lambda: not served.connection.is_connected)
    served.shut_down()
    await served.ended()


@pytest.mark.parametrize("accept", [False, True])
async def test_no_connection_outlives_the_graceful_timeout(
    stack: contextlib.AsyncExitStack, monkeypatch: pytest.MonkeyPatch, accept: bool
) -> None:
    """A loop with open transports may not close."""
    monkeypatch.setattr("fabric.asgi.DEFAULT_CLOSE_TIMEOUT", 60)
    script = Script(accept=accept)
    served = await serve(stack, script, timeout_graceful_shutdown=0.05)
    peer = await RawPeer.connect(served.port)
    stack.callback(peer.writer.close)
    peer.send(request())
    await script.called()
    served.shut_down()
    script.release()
    await served.ended()


# --- keepalive ---------------------------------------------------------------------------------------------


async def test_pings_are_sent_and_their_pongs_are_heard(stack: contextlib.AsyncExitStack) -> None:
    served = await serve(stack, echo, ws_ping_interval=0.05, ws_ping_timeout=60)
    async with await RawPeer.open(served.port) as peer:
        payloads = set()
        for _ in range(3):
            wire = await peer.frame()
            assert wire.opcode == PING
            payloads.add(wire.payload)
            peer.send_frame(PONG, wire.payload)
        assert len(payloads) == 3
        peer.send_text("open")
        while (wire := await peer.frame()).opcode == PING:
            pass
        assert wire.payload == b"open"


async def test_no_pong_is_the_end(stack: contextlib.AsyncExitStack) -> None:
    notes = Notes()
    served = await serve(stack, notes, ws_ping_interval=0.05, ws_ping_timeout=0.05)
    async with await RawPeer.open(served.port) as peer:
        assert await peer.close_seen() == (1011, "keepalive ping timeout")
    await notes.ended()
    assert notes.events == [{"type": "websocket.disconnect", "code": 1011, "reason": "keepalive ping timeout"}]


@pytest.mark.parametrize("timeout", [None, 0.0])
async def test_without_a_timeout_no_pong_is_waited_for(stack: contextlib.AsyncExitStack, timeout: float | None) -> None:
    served = await serve(stack, echo, ws_ping_interval=0.05, ws_ping_timeout=timeout)
    async with await RawPeer.open(served.port) as peer:
        for _ in range(4):
            assert (await peer.frame()).opcode == PING


@pytest.mark.parametrize("interval", [None, 0.0, -1.0])
async def test_no_keepalive(stack: contextlib.AsyncExitStack, interval: float | None) -> None:
    served = await serve(stack, echo, ws_ping_interval=interval, ws_ping_timeout=0.01)
    async with await RawPeer.open(served.port) as peer:
        assert served.connection._liveness is None
        peer.send_text("open")
        assert await peer.payload() == b"open"
