"""`mount_dashboard`: the page beside an application, of which it is no part."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import pytest

from fabric import AuthenticationFailed, ConnectedClient, HandshakeFailed, InvalidState, Router, basic_auth
from fabric._server.dashboard import Dashboard
from fabric.client import WebSocketClient
from fabric.server import WebSocketServer
from support.raw_peer import Answer, RawPeer
from support.serving import echo, until

Stack = contextlib.AsyncExitStack


async def serve(stack: Stack, handler: Any = None, *, path: str = "/dashboard", **options: Any) -> WebSocketServer:
    server = WebSocketServer.bind("127.0.0.1:0", handler, **options)
    server.mount_dashboard(path)
    return await stack.enter_async_context(server)


async def get(server: WebSocketServer, path: str, *lines: str) -> Answer:
    async with await RawPeer.connect(server.port) as peer:
        peer.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode())
        return await peer.read_answer()


async def watch(
    stack: Stack, server: WebSocketServer, path: str = "/dashboard/feed", **options: Any
) -> WebSocketClient:
    client = WebSocketClient.connect(f"ws://127.0.0.1:{server.port}{path}", auto_reconnect=False, **options)
    return await stack.enter_async_context(client)


async def test_the_page_and_its_feed(stack: Stack) -> None:
    server = await serve(stack, echo, path="/admin/live")
    for path in ("/admin/live", "/admin/live/", "/admin/live?x"):
        answer = await get(server, path)
        assert (answer.status, b"<title>" in answer.body) == (200, True)
    assert (await get(server, "/admin/live/feed")).status == 426
    assert (await get(server, "/dashboard")).status == 426
    viewer = await watch(stack, server, "/admin/live/feed")
    assert (message := await viewer.recv()) is not None
    assert "hello" in message.parse_json()
    assert (message := await viewer.recv()) is not None
    assert message.parse_json()["connections"] == 0


async def test_it_is_no_part_of_the_application(stack: Stack) -> None:
    called: list[str] = []
    server = await serve(
        stack,
        on_message=lambda client, message: client.send_nowait(message),
        on_connect=lambda _: called.append("connect"),
        on_disconnect=lambda _: called.append("disconnect"),
    )
    viewer = await watch(stack, server)
    await viewer.recv()
    assert (server.connection_count, server.clients(), server.metrics.total_connections) == (0, [], 0)
    client = await watch(stack, server, "/")
    assert await server.broadcast("to all") == 1
    await client.recv()
    await viewer.send("nobody reads this")
    await viewer.ping()
    assert server.metrics.messages_received == 0
    await viewer.close()
    await client.close()
    await until(lambda: called == ["connect", "disconnect"])
    assert (server.metrics.total_connections, server.metrics.closes) == (1, {1000: 1})


async def test_process_request_is_asked_first(stack: Stack) -> None:
    server = await serve(stack, echo, process_request=basic_auth("x", {"ada": "s3cret"}))
    assert (await get(server, "/dashboard")).status == 401
    assert (await get(server, "/dashboard", "Authorization: Basic YWRhOnMzY3JldA==")).status == 200
    with pytest.raises(AuthenticationFailed):
        await watch(stack, server)
    viewer = await watch(stack, server, headers={"Authorization": "Basic YWRhOnMzY3JldA=="})
    assert await viewer.recv() is not None


async def test_what_is_checked_of_the_applications_clients_is_not_of_its_pages(stack: Stack) -> None:
    checks = {"origins": ["https://example.org"], "required_headers": ["X-Key"], "require_subprotocol": True}
    server = await serve(stack, echo, subprotocols=["chat"], **checks)
    origin = f"http://127.0.0.1:{server.port}"
    viewer = await watch(stack, server, headers={"Origin": origin})
    assert await viewer.recv() is not None
    for path, foreign in (("/", origin), ("/dashboard/feed", "https://example.org")):
        with pytest.raises(HandshakeFailed) as refused:
            await watch(stack, server, path, headers={"Origin": foreign})
        assert refused.value.status == 403


async def test_it_counts_in_the_limit_of_connections(stack: Stack) -> None:
    server = await serve(stack, echo, max_connections=1)
    viewer = await watch(stack, server)
    with pytest.raises(HandshakeFailed) as refused:
        await watch(stack, server, "/")
    assert refused.value.status == 503
    await viewer.close()
    await until(lambda: not server._connections.viewers)
    await watch(stack, server, "/")


async def test_beside_a_router(stack: Stack) -> None:
    router = Router()

    @router.route("/{name}")
    async def handler(client: ConnectedClient, name: str) -> None:
        await client.send(name)

    server = await serve(stack, router)
    assert (await get(server, "/dashboard")).status == 200
    assert (await get(server, "/a/b")).status == 404
    assert await (await watch(stack, server)).recv() is not None
    assert (message := await (await watch(stack, server, "/ada")).recv()) is not None
    assert message.as_text() == "ada"


async def test_shutdown_says_goodbye_to_its_pages(stack: Stack) -> None:
    server = await serve(stack, echo)
    viewer = await watch(stack, server)
    await server.shutdown()
    await viewer.wait_closed()
    assert viewer.close_code == 1001
    assert server._sampling is not None
    assert server._sampling.cancelled()


async def test_it_is_mounted_once_and_in_time(stack: Stack) -> None:
    server = WebSocketServer.bind("127.0.0.1:0", echo)
    server.mount_dashboard()
    with pytest.raises(InvalidState):
        server.mount_dashboard("/other")
    started = await stack.enter_async_context(WebSocketServer.bind("127.0.0.1:0", echo))
    with pytest.raises(InvalidState):
        started.mount_dashboard()


async def test_a_fault_in_it_is_logged_and_harms_nobody(
    stack: Stack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Dashboard) -> dict[str, Any]:
        raise ZeroDivisionError

    monkeypatch.setattr(Dashboard, "sample", fail)
    server = await serve(stack, echo)
    await until(lambda: caplog.records)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, "the dashboard has stopped")
    ]
    client = await watch(stack, server, "/")
    await client.send("x")
    assert await client.recv() is not None
