"""A client that speaks bytes: half a request, a wrong frame, silence, a reset."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any, Self

from support.frames import BINARY, CLOSE, TEXT, Wire, close_frame, decode, encode

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

FIELDS = {
    "Host": "localhost",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def request(*more: str, line: str = "GET / HTTP/1.1", **changes: str | None) -> bytes:
    """An opening handshake with fields changed (`_` stands for `-`), left out (None), or added as lines."""
    fields = dict(FIELDS)
    for name, value in changes.items():
        name = name.replace("_", "-")
        fields.pop(name, None)
        if value is not None:
            fields[name] = value
    lines = [line, *(f"{name}: {value}" for name, value in fields.items()), *more]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Answer:
    """An HTTP response."""

    def __init__(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        self.version, self.status, self.reason = first.split(" ", 2)[0], int(first.split(" ")[1]), first[13:]
        self.fields = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines)]
        self.headers = dict(self.fields)
        self.body = b""


class RawPeer:
    """One TCP connection to the server under test: `async with await RawPeer.open(port)`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.answer: Answer | None = None
        self._buffer = bytearray()

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int | None = None) -> Self:
        """Only the TCP connection.

        Args:
            receive_buffer: bytes that the system keeps for us when we do not read.
        """
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        # A small limit: what is not asked for stays in the system's buffers.
        return cls(*await asyncio.open_connection(sock=sock, limit=4096))

    @classmethod
    async def open(
        cls, port: int, *more: str, rest: bytes = b"", receive_buffer: int | None = None, **fields: Any
    ) -> Self:
        """A WebSocket connection; `rest` is sent right behind the request."""
        peer = await cls.connect(port, receive_buffer=receive_buffer)
        try:
            peer.send(request(*more, **fields) + rest)
            answer = await peer.read_answer()
            assert answer.status == 101, answer.status
            assert answer.headers["sec-websocket-accept"] == ACCEPT
        except BaseException:
            peer.writer.close()
            raise
        return peer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    # -- sending

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    def send_frame(self, opcode: int, payload: bytes | str = b"", **options: Any) -> None:
        self.send(encode(opcode, payload, **options))

    def send_text(self, text: str) -> None:
        self.send_frame(TEXT, text)

    def send_binary(self, data: bytes) -> None:
        self.send_frame(BINARY, data)

    def send_close(self, code: int | None = 1000, reason: bytes | str = b"") -> None:
        self.send(close_frame(code, reason))

    def reset(self) -> None:
        """End the connection as a crash does: RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    # -- receiving

    async def read_answer(self) -> Answer:
        """The answer to a request; its body, unless it is an upgrade."""
        self.answer = Answer(await self.reader.readuntil(b"\r\n\r\n"))
        if self.answer.status != 101:
            self.answer.body = await self.reader.read(-1)
        return self.answer

    async def frame(self) -> Wire:
        """The next frame; `EOFError` at the end."""
        while (found := decode(self._buffer)) is None:
            data = await self.reader.read(65536)
            if not data:
                raise EOFError(f"{len(self._buffer)} bytes left")
            self._buffer += data
        wire, size = found
        del self._buffer[:size]
        assert not wire.masked, "RFC 6455 §5.1: a server MUST NOT mask"
        return wire

    async def payload(self) -> bytes:
        """The payload of the next frame, which must be an unfragmented message."""
        wire = await self.frame()
        assert wire.opcode in (TEXT, BINARY), wire
        assert wire.fin
        return wire.payload

    async def close_seen(self) -> tuple[int | None, str]:
        """Read up to a close frame; its code and reason."""
        while (wire := await self.frame()).opcode != CLOSE:
            pass
        return wire.close_code, wire.close_reason

    async def rest(self) -> list[Wire]:
        """All frames until the end of the connection."""
        frames = []
        with contextlib.suppress(EOFError):
            while True:
                frames.append(await self.frame())
        assert not self._buffer, "the connection ends within a frame"
        return frames

    async def closed(self) -> None:
        """Wait for the end, which must come without anything before it."""
        data = await self.reader.read(1)
        assert not (bytes(self._buffer) + data), f"not the end, but {bytes(self._buffer) + data!r}"
