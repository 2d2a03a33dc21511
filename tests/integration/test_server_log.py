"""What a server leaves in its log and in its metrics of connections: refused, too slow, begun, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import Any

import pytest

from fabric import ConnectedClient, Request, Response, WebSocketServer
from fabric.client import WebSocketClient
from fabric.config import HeartbeatConfig
from fabric.error import ConnectionClosed
from support.frames import TEXT, encode
from support.raw_peer import RawPeer, request
from support.serving import Held, Recorder, echo, serve, until
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack

SECRETS = ("s3cret", "t0ken")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "fabric")
    return caplog


def lines(log: pytest.LogCaptureFixture, what: str) -> list[logging.LogRecord]:
    """The lines of the server that say `what`."""
    return [record for record in log.records if record.name == "fabric.server" and what in record.getMessage()]


def extra(record: logging.LogRecord, *names: str) -> list[Any]:
    return [getattr(record, name) for name in names]


async def ask(server: WebSocketServer, data: bytes) -> int:
    async with await RawPeer.connect(server.port) as peer:
        peer.send(data)
        return (await peer.read_answer()).status


REFUSED = {
    "origin": (403, request(Origin="https://s3cret.invalid"), "this origin is not allowed"),
    "version": (426, request(Sec_WebSocket_Version="8"), "only version 13 of the WebSocket protocol is spoken"),
    "head too large": (431, request("X: " + "s3cret" * 20_000), "the request head is over 16384 bytes"),
    "header": (400, request("s3cret t0ken"), "not a header line, or a control character in its value"),
    "method": (405, request(line="S3CRET / HTTP/1.1"), "method of the request is not allowed, use GET"),
    "no subprotocol": (400, request(Sec_WebSocket_Protocol="s3cret"), "no subprotocol in common"),
    "malformed subprotocol": (400, request(Sec_WebSocket_Protocol="s3cret,,{"), "malformed Sec-WebSocket-Protocol"),
    "header required": (401, request(Sec_WebSocket_Protocol="chat"), "authorization is required"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_is_logged_and_counted(stack: Stack, log: pytest.LogCaptureFixture, case: str) -> None:
    status, data, reason = REFUSED[case]
    options: dict[str, Any] = {"subprotocols": ["chat"], "require_subprotocol": True}
    if case == "origin":
        options = {"origins": ["https://example.org"]}
    elif case == "header required":
        options |= {"required_headers": ["Authorization"]}
    server = await serve(stack, echo, **options)
    data = data.replace(b"GET / ", b"GET /?token=t0ken ")
    assert await ask(server, data) == status
    (record,) = lines(log, "is answered")
    assert record.levelname == "DEBUG"
    assert extra(record, "status", "reason") == [status, reason]
    assert record.address[0] == "127.0.0.1"  # type: ignore[attr-defined]
    assert server.metrics.refusals == {status: 1}
    assert not any(secret in log.text.lower() for secret in SECRETS)


async def test_an_answer_that_is_no_refusal_is_logged_and_not_counted(
    stack: Stack, log: pytest.LogCaptureFixture
) -> None:
    def process_request(request: Request) -> Response:
        return Response(200 if request.path == "/health" else 503, body="s3cret")

    server = await serve(stack, echo, process_request=process_request)
    assert await ask(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") == 200
    assert await ask(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == 503
    assert [record.status for record in lines(log, "is answered")] == [200, 503]  # type: ignore[attr-defined]
    assert server.metrics.refusals == {503: 1}


async def test_a_choice_of_the_application_that_fails_tells_no_offers(
    stack: Stack, log: pytest.LogCaptureFixture
) -> None:
    server = await serve(stack, echo, process_request=lambda _: (101, {"Sec-WebSocket-Protocol": "chat"}, ""))
    assert await ask(server, request(Sec_WebSocket_Protocol="s3cret")) == 500
    assert "which was not offered" in log.text
    assert "s3cret" not in log.text


async def test_a_request_that_does_not_come_is_a_timeout(stack: Stack, log: pytest.LogCaptureFixture) -> None:
    server = await serve(stack, echo, handshake_timeout=0.1)
    assert await ask(server, b"GET") == 408
    (record,) = lines(log, "is answered 408")
    assert record.reason == "no request within 0.1 seconds"  # type: ignore[attr-defined]
    assert (server.metrics.handshake_timeouts, server.metrics.refusals) == (1, {408: 1})


async def test_a_judgement_that_does_not_come_is_a_timeout(stack: Stack, log: pytest.LogCaptureFixture) -> None:
    judging = asyncio.Event()

    async def endless(_: Request) -> None:
        judging.set()
        await asyncio.Event().wait()

    server = await serve(stack, echo, process_request=endless, handshake_timeout=60)
    asked = asyncio.create_task(ask(server, request()))
    await judging.wait()
    assert server._handshakes is not None
    (handshake,) = server._handshakes._pending
    handshake.time_out()  # what the deadline does: a short one might pass before the request is there
    assert await asked == 503
    assert lines(log, "is answered 503")
    assert (server.metrics.handshake_timeouts, server.metrics.refusals) == (1, {503: 1})


async def test_tls_that_does_not_come_is_a_timeout(stack: Stack, log: pytest.LogCaptureFixture) -> None:
    server = await serve(stack, echo, ssl=server_context(), handshake_timeout=0.1)
    async with await RawPeer.connect(server.port) as peer:
        await peer.closed()
        await until(lambda: server.metrics.handshake_timeouts)
    (record,) = lines(log, "takes too long")
    assert record.address[0] == "127.0.0.1"  # type: ignore[attr-defined]
    assert (server.metrics.handshake_timeouts, server.metrics.refusals) == (1, {})


async def test_what_is_no_tls_is_logged(stack: Stack, log: pytest.LogCaptureFixture) -> None:
    server = await serve(stack, echo, ssl=server_context(), handshake_timeout=60)
    async with await RawPeer.connect(server.port) as peer:
        peer.send(request())
        with contextlib.suppress(ConnectionError):
            await peer.reader.read()
        await until(lambda: lines(log, "the TLS handshake"))
    assert server.metrics.handshake_timeouts == 0


async def test_a_refusal_before_tls_is_logged_and_counted(stack: Stack, log: pytest.LogCaptureFixture) -> None:
    server = await serve(stack, echo, ssl=server_context(), handshake_timeout=60, max_connections_per_ip=1)
    first = await stack.enter_async_context(await RawPeer.connect(server.port))
    await until(lambda: len(server._handshakes) == 1)
    async with await RawPeer.connect(server.port) as peer:
        with contextlib.suppress(ConnectionError):
            await peer.closed()
        await until(lambda: server.metrics.refusals)
    assert server.metrics.refusals == {429: 1}
    assert lines(log, "is answered 429")
    first.writer.close()


async def test_a_client_that_leaves_early_is_logged(stack: Stack, log: pytest.LogCaptureFixture) -> None:
    server = await serve(stack, echo)
    async with await RawPeer.connect(server.port) as peer:
        peer.send(b"GET")
    await until(lambda: lines(log, "has left during its opening handshake"))
    assert (server.metrics.refusals, server.metrics.handshake_timeouts) == ({}, 0)


async def test_begin_and_end_are_logged_and_counted(stack: Stack, log: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    server = await serve(stack, recorder)
    async with await RawPeer.open(server.port, line="GET /?token=t0ken HTTP/1.1", Cookie="s3cret") as peer:
        address = peer.writer.get_extra_info("sockname")
        peer.send_close(4001, "had\nenough")
        await recorder.ended()
    (begin,), (end,) = lines(log, "is open"), lines(log, "has ended")
    identity = [str(recorder.client.id), address]
    assert extra(begin, "connection_id", "address") == identity
    assert extra(end, "connection_id", "address", "code", "reason") == [*identity, 4001, "had\nenough"]
    assert {begin.levelname, end.levelname} == {"DEBUG"}
    assert "\n" not in end.getMessage()
    assert not any(secret in log.text for secret in SECRETS)
    assert (server.metrics.total_connections, server.metrics.closes) == (1, {4001: 1})


async def test_each_end_is_counted_by_its_code(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, close_timeout=0.1)
    for end in ("close", "nothing", "reset", "fault", "server"):
        async with await RawPeer.open(server.port) as peer:
            client = await held.next()
            if end == "close":
                peer.send_close(1000)
            elif end == "nothing":
                peer.writer.write_eof()
            elif end == "reset":
                peer.reset()
            elif end == "fault":
                peer.send(encode(TEXT, b"\xff"))
            else:
                closing = asyncio.create_task(client.close(4000))
                assert await peer.close_seen() == (4000, "")
                peer.send_close(4000)
                await closing
            await client.wait_closed()
    assert server.metrics.closes == {1000: 1, 1006: 2, 1007: 1, 4000: 1}


async def test_a_line_for_each_frame(stack: Stack, log: pytest.LogCaptureFixture) -> None:
    async def handler(client: ConnectedClient) -> None:
        async for message in client:
            await client.send(message)
            await client.send_parts([b"a", b"b"])
            await client.send(bytes(100_000))

    server = await serve(stack, handler)
    async with WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", compression=None) as client:
        await client.send("hello")
        for _ in range(3):
            await client.recv()
        await client.ping()

    def told(name: str) -> list[list[Any]]:
        records = [record for record in log.records if record.name == name]
        assert all(record.levelname == "DEBUG" for record in records)
        return [extra(record, "direction", "opcode", "size", "final") for record in records]

    there = [["TEXT", 5, True], ["PING", 8, True], ["CLOSE", 2, True]]
    back = [
        ["TEXT", 5, True],
        ["BINARY", 1, False],
        ["CONTINUATION", 1, True],
        ["BINARY", 100_000, True],
        ["PONG", 8, True],
        ["CLOSE", 2, True],
    ]
    await until(lambda: ["sent", *back[-1]] in told("fabric.server.frames"))
    for name, sent, received in (("fabric.client.frames", there, back), ("fabric.server.frames", back, there)):
        assert [line for line in told(name) if line[0] == "sent"] == [["sent", *frame] for frame in sent]
        assert [line for line in told(name) if line[0] == "received"] == [["received", *frame] for frame in received]
    assert "hello" not in log.text


async def test_frames_of_a_broadcast_and_over_tls(stack: Stack, log: pytest.LogCaptureFixture) -> None:
    held = Held()
    server = await serve(stack, held, ssl=server_context())
    url, context = f"wss://127.0.0.1:{server.port}/", client_context()
    assert isinstance(context, ssl.SSLContext)
    async with WebSocketClient.connect(url, ssl=context, compression=None) as client:
        await held.next()
        await server.broadcast("to all")
        await client.recv()
    frames = [record for record in log.records if record.name == "fabric.server.frames"]
    assert ["sent", "TEXT", 6] in [extra(record, "direction", "opcode", "size") for record in frames]


# --- a log whose handlers raise


def url(server: WebSocketServer) -> str:
    return f"ws://127.0.0.1:{server.port}/"


@pytest.mark.usefixtures("broken_log")
async def test_a_log_that_raises_is_no_fault_of_the_connection(stack: Stack) -> None:
    server = await serve(stack, echo, handshake_timeout=60)
    assert await ask(server, b"POST / HTTP/1.1\r\n") == 405
    async with WebSocketClient.connect(url(server)) as client:
        await client.send("hello")
        assert (await client.recv()) is not None
    await until(lambda: not server.connection_count)
    assert server.metrics.closes == {1000: 1}


@pytest.mark.usefixtures("broken_log")
@pytest.mark.parametrize("kind", ["handler", "on_message"])
async def test_a_handler_that_raises_ends_its_connection_although_the_log_raises(stack: Stack, kind: str) -> None:
    async def handler(client: ConnectedClient) -> None:
        await client.recv()
        raise LookupError

    def on_message(client: ConnectedClient, message: object) -> None:
        raise LookupError

    server = await serve(stack, **({"handler": handler} if kind == "handler" else {"on_message": on_message}))
    async with WebSocketClient.connect(url(server), auto_reconnect=False) as client:
        await client.send("x")
        await client.wait_closed()
        assert client.close_code == 1011
    await until(lambda: not server.connection_count)


@pytest.mark.usefixtures("broken_log")
async def test_callbacks_and_requests_that_raise_although_the_log_raises(stack: Stack) -> None:
    def wrong(_: object) -> None:
        raise LookupError

    server = await serve(stack, echo, on_connect=wrong, on_disconnect=wrong)
    async with WebSocketClient.connect(url(server)) as client:
        await client.send("hello")
        assert (await client.recv()) is not None
    await until(lambda: not server.connection_count)
    server = await serve(stack, echo, process_request=wrong, handshake_timeout=1000)
    assert await ask(server, request()) == 500


@pytest.mark.usefixtures("broken_log")
async def test_a_peer_that_takes_nothing_is_left_although_the_log_raises(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, close_timeout=0.1)
    async with await RawPeer.open(server.port, receive_buffer=4096):
        client = await held.next()
        while client.backpressure.messages < 10:
            client.send_nowait(bytes(100_000))
        await client.close()
        assert client.undelivered
        assert not server.connection_count


@pytest.mark.usefixtures("broken_log")
async def test_dead_peers_are_found_although_the_log_raises(stack: Stack) -> None:
    async def deaf(client: ConnectedClient) -> None:
        client._session_now.io.pause_reading()  # type: ignore[union-attr]
        await client.wait_closed()

    server = await serve(stack, deaf)
    beat = HeartbeatConfig(ping_interval=0.02, ping_timeout=0.02)
    options: dict[str, Any] = {"auto_reconnect": False, "heartbeat": beat}
    clients = [await WebSocketClient.connect(url(server), **options) for _ in range(3)]
    for client in clients:
        with pytest.raises(ConnectionClosed):
            await client.recv()
    for each in server.clients():
        each._abort()
