"""An HTTP proxy (CONNECT) and a SOCKS5 proxy (RFC 1928, 1929) that connect, and note what they were asked."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from base64 import b64decode
from typing import Any

from integration.raw import RawServer, Visit


class Proxy(RawServer):
    """What the two have in common: `seen` holds (host, port) of each request, `users` the names shown.

    `headers` are those of the latest request of HTTP.
    """

    def __init__(self, *, password: str | None = None, ssl: Any = None) -> None:
        super().__init__(self.serve, ssl=ssl)
        self.password = password
        self.seen: list[tuple[str, int]] = []
        self.users: list[str] = []
        self.headers: dict[str, str] = {}

    async def serve(self, visit: Visit) -> None:
        raise NotImplementedError

    async def relay(self, visit: Visit, host: str, port: int) -> None:
        """Carry bytes both ways until either side ends."""
        reader, writer = await asyncio.open_connection(host, port)
        ways = [
            asyncio.create_task(_pump(visit.reader, writer)),
            asyncio.create_task(_pump(reader, visit.writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            writer.close()  # before anything that can be cancelled
            await asyncio.wait(ways)
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class HttpProxy(Proxy):
    """CONNECT; with a `password`, for anybody who knows it."""

    async def serve(self, visit: Visit) -> None:
        headers = self.headers = await visit.request()
        method, target, version = headers[""].split(" ")
        assert (method, version, headers["host"]) == ("CONNECT", "HTTP/1.1", target)
        host, _, port = target.rpartition(":")
        self.seen.append((host, int(port)))
        if self.password is not None:
            kind, _, value = headers.get("proxy-authorization", "").partition(" ")
            user, _, password = b64decode(value).decode().partition(":")
            if (kind, password) != ("Basic", self.password):
                challenge = 'Proxy-Authenticate: Basic realm="p"'
                visit.send("HTTP/1.1 407 No", challenge, "Content-Length: 4", body=b"who?")
                return
            self.users.append(user)
        visit.send("HTTP/1.1 200 Connection established")
        await self.relay(visit, "127.0.0.1", int(port))


class SocksProxy(Proxy):
    """SOCKS5 with and without user name."""

    async def serve(self, visit: Visit) -> None:
        read = visit.reader.readexactly
        version, count = await read(2)
        methods = await read(count)
        assert version == 5
        method = 2 if self.password is not None else 0
        if method not in methods:
            visit.writer.write(b"\x05\xff")
            return
        visit.writer.write(bytes([5, method]))
        if method == 2 and not await self._login(visit):
            return
        assert await read(3) == b"\x05\x01\x00"
        kind = (await read(1))[0]
        if kind == 3:
            host = (await read((await read(1))[0])).decode()
        else:
            host = str(ipaddress.ip_address(await read(4 if kind == 1 else 16)))
        port = int.from_bytes(await read(2), "big")
        self.seen.append((host, port))
        if host == "refused.invalid":
            visit.writer.write(b"\x05\x05\x00\x01" + bytes(6))
            return
        visit.writer.write(b"\x05\x00\x00\x01" + bytes(6))
        await self.relay(visit, "127.0.0.1", port)

    async def _login(self, visit: Visit) -> bool:
        read = visit.reader.readexactly
        assert await read(1) == b"\x01"
        user = (await read((await read(1))[0])).decode()
        password = (await read((await read(1))[0])).decode()
        good = password == self.password
        visit.writer.write(b"\x01\x00" if good else b"\x01\x01")
        if good:
            self.users.append(user)
        return good
