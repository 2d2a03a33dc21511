"""The peers that Python can drive: of each library, a client that leads talks and a server that follows.

A client is a function of url, talks and whether to compress, and returns its reports. A server is a context:
its url, and a queue of reports, one for each connection.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import websockets
from aiohttp import WSMsgType, web

from fabric.client import WebSocketClient
from fabric.config import CompressionConfig
from fabric.error import ConnectionClosed
from fabric.server import ConnectedClient, WebSocketServer
from interop.talk import SUPPORTED, End, Report, Talk, follow, lead

Reports = asyncio.Queue[Report]
Client = Callable[[str, Sequence[Talk], bool], Awaitable[list[Report]]]
Server = Callable[[bool], AbstractAsyncContextManager[tuple[str, Reports]]]

NODE = Path(__file__).parent / "node"
LARGEST = 16 * 1024 * 1024  # bytes of a message


def holder(
    connect: Callable[[str, Talk, bool], AbstractAsyncContextManager[End]],
) -> Client:
    """A client that connects anew for each talk."""

    async def hold(url: str, talks: Sequence[Talk], compressed: bool) -> list[Report]:
        reports = []
        for talk in talks:
            async with connect(url, talk, compressed) as end:
                reports.append(await lead(end, talk))
        return reports

    return hold


# fabric


class FabricEnd:
    def __init__(self, connection: WebSocketClient | ConnectedClient, before: dict[str, Any] | None = None) -> None:
        """`before`: the metrics before it was connected. A message may have come before a server's handler begins."""
        self._connection = connection
        self._before = before or connection.metrics.as_dict()
        self.protocol = connection.subprotocol

    @property
    def extension(self) -> str:
        # Agreed on is not enough: both directions must have made use of it.
        now = self._connection.metrics.as_dict()
        since = {name: now[name] - self._before[name] for name in now}
        used = (
            since["decompression_bytes_in"] < since["decompression_bytes_out"]
            and since["compression_bytes_out"] < since["compression_bytes_in"]
        )
        return "permessage-deflate" if used else ""

    @property
    def code(self) -> int | None:
        return self._connection.close_code

    @property
    def reason(self) -> str | None:
        return self._connection.close_reason

    async def send(self, data: str | bytes) -> None:
        await self._connection.send(data)

    async def recv(self) -> str | bytes | None:
        try:
            message = await self._connection.recv()
        except ConnectionClosed:
            return None
        if message is None:
            return None
        return message.as_text() if message.is_text else message.as_bytes()

    async def ping(self, data: bytes) -> None:
        await self._connection.ping(data)

    async def close(self, code: int | None, reason: str) -> None:
        await self._connection.close(*() if code is None else (code, reason))


@asynccontextmanager
async def fabric_connection(url: str, talk: Talk, compressed: bool) -> AsyncIterator[End]:
    async with WebSocketClient.connect(
        url,
        subprotocols=talk.protocols,
        compression=CompressionConfig(enabled=compressed),
        auto_reconnect=False,
    ) as client:
        yield FabricEnd(client)


fabric_client = holder(fabric_connection)


@asynccontextmanager
async def fabric_server(compressed: bool) -> AsyncIterator[tuple[str, Reports]]:
    reports: Reports = asyncio.Queue()

    async def handle(client: ConnectedClient) -> None:
        nonlocal counted
        report = await follow(FabricEnd(client, counted))
        counted = server.metrics.as_dict()
        await reports.put(report)

    async with WebSocketServer.bind(
        "127.0.0.1:0", handle, subprotocols=SUPPORTED, compression=CompressionConfig(enabled=compressed)
    ) as server:
        counted = server.metrics.as_dict()
        yield f"ws://127.0.0.1:{server.port}/", reports


# websockets


class WebsocketsEnd:
    def __init__(self, connection: websockets.asyncio.connection.Connection) -> None:
        self._connection = connection
        self.protocol = connection.subprotocol
        self.extension = next((extension.name for extension in connection.protocol.extensions), "")

    @property
    def code(self) -> int | None:
        return self._connection.close_code

    @property
    def reason(self) -> str | None:
        return self._connection.close_reason

    async def send(self, data: str | bytes) -> None:
        await self._connection.send(data)

    async def recv(self) -> str | bytes | None:
        try:
            return await self._connection.recv()
        except websockets.ConnectionClosed:
            return None

    async def ping(self, data: bytes) -> None:
        await (await self._connection.ping(data))

    async def close(self, code: int | None, reason: str) -> None:
        await self._connection.close(*() if code is None else (code, reason))


@asynccontextmanager
async def websockets_connection(url: str, talk: Talk, compressed: bool) -> AsyncIterator[End]:
    async with websockets.connect(
        url,
        subprotocols=talk.protocols or None,  # type: ignore[arg-type]
        compression="deflate" if compressed else None,
        max_size=LARGEST,
        proxy=None,
    ) as connection:
        yield WebsocketsEnd(connection)


websockets_client = holder(websockets_connection)


@asynccontextmanager
async def websockets_server(compressed: bool) -> AsyncIterator[tuple[str, Reports]]:
    reports: Reports = asyncio.Queue()

    async def handle(connection: websockets.ServerConnection) -> None:
        await reports.put(await follow(WebsocketsEnd(connection)))

    def choose(_: websockets.ServerConnection, offered: Sequence[str]) -> str | None:
        # Left alone, websockets answers 400 where there is none in common.
        return next((name for name in offered if name in SUPPORTED), None)

    async with websockets.serve(
        handle,
        "127.0.0.1",
        0,
        select_subprotocol=choose,  # type: ignore[arg-type]
        compression="deflate" if compressed else None,
        max_size=LARGEST,
    ) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/", reports


# aiohttp


class AiohttpEnd:
    """Answers pings itself: aiohttp hides the pongs from whoever lets it do that."""

    code: int | None = None
    reason: str | None = None

    def __init__(self, socket: aiohttp.ClientWebSocketResponse | web.WebSocketResponse) -> None:
        self._socket = socket
        self.protocol = socket.ws_protocol if isinstance(socket, web.WebSocketResponse) else socket.protocol
        self.extension = "permessage-deflate" if socket.compress else ""

    async def send(self, data: str | bytes) -> None:
        await (self._socket.send_str(data) if isinstance(data, str) else self._socket.send_bytes(data))

    async def recv(self) -> str | bytes | None:
        while (message := await self._socket.receive()).type is WSMsgType.PING:
            await self._socket.pong(message.data)
        if message.type is WSMsgType.CLOSE:
            self.code, self.reason = message.data or 1005, message.extra or ""
            return None
        if message.type is WSMsgType.CLOSED:  # by ourselves
            return None
        assert message.type in {WSMsgType.TEXT, WSMsgType.BINARY}, message
        data: str | bytes = message.data
        return data

    async def ping(self, data: bytes) -> None:
        await self._socket.ping(data)
        message = await self._socket.receive()
        assert (message.type, bytes(message.data)) == (WSMsgType.PONG, data)

    async def close(self, code: int | None, reason: str) -> None:
        await self._socket.close(**{} if code is None else {"code": code, "message": reason.encode()})
        self.code = self._socket.close_code


@asynccontextmanager
async def aiohttp_connection(url: str, talk: Talk, compressed: bool) -> AsyncIterator[End]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            url,
            protocols=talk.protocols,
            compress=15 if compressed else 0,
            max_msg_size=LARGEST,
            autoping=False,
        ) as socket,
    ):
        yield AiohttpEnd(socket)


aiohttp_client = holder(aiohttp_connection)


@asynccontextmanager
async def aiohttp_server(compressed: bool) -> AsyncIterator[tuple[str, Reports]]:
    reports: Reports = asyncio.Queue()

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=SUPPORTED, compress=compressed, max_msg_size=LARGEST, autoping=False)
        await socket.prepare(request)
        await reports.put(await follow(AiohttpEnd(socket)))
        return socket

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}/", reports
    finally:
        await runner.cleanup()


# Node's ws


def missing_ws() -> str:
    """What keeps Node's `ws` from being tried; nothing if it is there."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (NODE / "node_modules" / "ws").is_dir():
        return "ws is not installed: npm install in tests/interop/node"
    return ""


async def ws_client(url: str, talks: Sequence[Talk], compressed: bool) -> list[Report]:
    process = await asyncio.create_subprocess_exec("node", NODE / "client.js", stdin=PIPE, stdout=PIPE)
    plan = {"url": url, "talks": [asdict(talk) for talk in talks], "compressed": compressed}
    try:
        output, _ = await process.communicate(json.dumps(plan).encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    return checked(json.loads(output))


@asynccontextmanager
async def ws_server(compressed: bool) -> AsyncIterator[tuple[str, Reports]]:
    process = await asyncio.create_subprocess_exec(
        "node", NODE / "server.js", json.dumps([compressed, SUPPORTED]), stdout=PIPE
    )
    assert process.stdout is not None
    reports: Reports = asyncio.Queue()

    async def read(lines: asyncio.StreamReader) -> None:
        async for line in lines:
            await reports.put(json.loads(line))

    reading = None
    try:
        port = int(await process.stdout.readline())
        reading = asyncio.create_task(read(process.stdout))
        yield f"ws://127.0.0.1:{port}/", reports
    finally:
        process.kill()
        await process.wait()
        if reading is not None:
            await reading


def checked(reports: Any) -> list[Report]:
    """What a script reports: a list, or the text of an error."""
    assert isinstance(reports, list), reports
    return reports
