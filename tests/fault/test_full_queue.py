"""A receive queue that nobody empties hides nothing of the peer but messages: pings, its close, its end are noticed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric._handshake.rules import accept_key
from fabric.client import WebSocketClient
from fabric.error import ConnectionClosed
from support.frames import CLOSE, PING, PONG, TEXT, Wire, close_frame, decode, encode
from support.raw_peer import request
from support.serving import Held, serve, turns, until
from support.tls import client_context, server_context

SIDES = pytest.mark.parametrize("side", ["client", "server"])
SECURE = pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
PATIENCE = 20.0  # seconds for a system call of the raw end
LIMIT = 100  # messages
MESSAGES = [f"{number}:" + "." * 40 for number in range(LIMIT + 500)]


class RawEnd:
    """The other end: a blocking socket, with TLS or without, after the opening handshake."""

    def __init__(self, sock: Any, *, masks: bool) -> None:
        self.sock = sock
        self._masks = masks
        self._buffer = bytearray()

    def send(self, opcode: int, *payloads: str | bytes) -> None:
        self.sock.sendall(b"".join(encode(opcode, payload, mask=self._masks) for payload in payloads))

    async def frame(self) -> Wire:
        while (found := decode(self._buffer)) is None:
            data = await asyncio.to_thread(self.sock.recv, 65536)
            assert data, "the end"
            self._buffer += data
        wire, size = found
        del self._buffer[:size]
        return wire

    async def say_goodbye(self) -> None:
        """close_notify, and no FIN; then wait for the same from there."""
        with contextlib.suppress(OSError):
            self.sock = await asyncio.to_thread(self.sock.unwrap)


def connect_raw(port: int, *, secure: bool) -> RawEnd:
    sock: socket.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
    if secure:
        sock = client_context().wrap_socket(sock, server_hostname="127.0.0.1")
    sock.sendall(request())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return RawEnd(sock, masks=True)


def accept_raw(listening: socket.socket, *, secure: bool) -> RawEnd:
    sock: socket.socket = listening.accept()[0]
    sock.settimeout(PATIENCE)
    if secure:
        sock = server_context().wrap_socket(sock, server_side=True)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    key = re.search(rb"(?i)sec-websocket-key: (\S+)", head)
    assert key is not None
    lines = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept_key(key[1].decode())}")
    sock.sendall("\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode())
    return RawEnd(sock, masks=False)


@contextlib.asynccontextmanager
async def connected(stack: contextlib.AsyncExitStack, side: str, *, secure: bool) -> AsyncIterator[tuple[Any, RawEnd]]:
    """Our end, a server's or a client's, whose messages nobody takes; and the other one."""
    if side == "server":
        held = Held()
        options = {"ssl": server_context()} if secure else {}
        server = await serve(stack, held, buffer_size=LIMIT, close_timeout=1000, **options)
        raw = await asyncio.to_thread(connect_raw, server.port, secure=secure)
        with raw.sock:
            yield await held.next(), raw
        raw.sock.close()
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        accepting = asyncio.create_task(asyncio.to_thread(accept_raw, listening, secure=secure))
        trust: dict[str, ssl.SSLContext] = {"ssl": client_context()} if secure else {}
        url = f"{'wss' if secure else 'ws'}://127.0.0.1:{listening.getsockname()[1]}/"
        client = await WebSocketClient.connect(
            url, buffer_size=LIMIT, compression=None, auto_reconnect=False, heartbeat=None, close_timeout=1000, **trust
        )
        raw = await accepting
        with raw.sock:
            yield client, raw
        raw.sock.close()
        await client.close()


@SIDES
@SECURE
async def test_pings_are_answered(stack: contextlib.AsyncExitStack, side: str, *, secure: bool) -> None:
    async with connected(stack, side, secure=secure) as (end, raw):
        raw.send(TEXT, *MESSAGES)
        for number in range(3):
            raw.send(PING, str(number))
            assert await raw.frame() == Wire(PONG, str(number).encode(), masked=side == "client")
        assert end.queued == len(MESSAGES)
        assert not end.is_reading_paused


@SIDES
@SECURE
async def test_a_close_frame_is_answered(stack: contextlib.AsyncExitStack, side: str, *, secure: bool) -> None:
    async with connected(stack, side, secure=secure) as (end, raw):
        raw.send(TEXT, *MESSAGES)
        raw.sock.sendall(close_frame(4000, "enough", mask=side == "server"))
        wire = await raw.frame()
        assert (wire.opcode, wire.close_code, wire.close_reason) == (CLOSE, 4000, "enough")
        raw.sock.close()
        await end.wait_closed()
        assert end.close_code == 4000
        assert [(await end.recv()).as_text() for _ in MESSAGES] == MESSAGES
        with pytest.raises(ConnectionClosed):
            await end.recv()


@SIDES
@pytest.mark.parametrize("how", ["FIN", "close_notify"])
async def test_the_end_is_noticed(stack: contextlib.AsyncExitStack, side: str, how: str) -> None:
    async with connected(stack, side, secure=how == "close_notify") as (end, raw):
        raw.send(TEXT, *MESSAGES)
        if how == "FIN":
            raw.sock.shutdown(socket.SHUT_WR)
        else:
            await raw.say_goodbye()
        await end.wait_closed()
        assert end.close_code == 1006
        assert [(await end.recv()).as_text() for _ in MESSAGES] == MESSAGES


@SIDES
async def test_more_than_the_look_ahead_stops_the_reading(stack: contextlib.AsyncExitStack, side: str) -> None:
    """So the peer is held up by TCP, and a ping behind that is answered when the queue is half empty."""
    async with connected(stack, side, secure=False) as (end, raw):
        raw.send(TEXT, *MESSAGES[:LIMIT])
        await until(lambda: end.queued == LIMIT)
        while not end.is_reading_paused:
            before = end.queued
            raw.send(TEXT, "." * 1000)
            await until(lambda before=before: end.queued > before)
        assert end.queued == LIMIT + 62  # of 1,000 bytes each, and 64: as many as pass 64 KB
        raw.send(PING, "behind")
        await turns()
        for _ in range(LIMIT + 62 - LIMIT // 2):
            assert end.is_reading_paused
            await end.recv()
        assert not end.is_reading_paused
        assert await raw.frame() == Wire(PONG, b"behind", masked=side == "client")
