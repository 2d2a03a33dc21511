"""A program for `test_tls_resets`: peers that reset their TLS connection together with their last bytes.

    python -m fault.resets server|client|tunnel asyncio|uvloop FOLDER SEED COUNT

The last bytes and the reset are sent without a turn of the loop between them, so they come as one event. What is
connected has no timer that could notice it: each reset must be heard of from the event loop. FOLDER holds the
certificates `authority.pem` and `server.pem`. In the end it prints "noticed" and the number of resets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import struct
import sys
from pathlib import Path
from typing import Any

import uvloop

from fabric import ClientConfig, Error, WebSocketClient, WebSocketServer
from fabric._handshake.rules import accept_key
from support.frames import TEXT, encode
from support.raw_peer import request
from support.serving import echo, turns, until

TOGETHER = 5  # resets at a time, so that descriptors are used again while others are still open
HEADER = b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n"
UPGRADE = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n"
)


class Secured:
    """One end of a TLS connection over a socket that does not block; what it writes is sent by `send`."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, is_server: bool) -> None:
        self.sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if is_server else "127.0.0.1"
        self._tls = context.wrap_bio(self._in, self._out, server_side=is_server, server_hostname=name)

    async def _until(self, step: Any) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self._send(self._out.read())
                data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
                if not data:
                    raise EOFError from None
                self._in.write(data)

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def handshake(self) -> None:
        await self._until(self._tls.do_handshake)
        await self._send(self._out.read())

    def hello(self) -> bytes:
        """The first bytes of a client."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._out.read()

    async def head(self) -> bytes:
        """What comes up to an empty line."""
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += await self._until(lambda: self._tls.read(1))
        return data

    async def say(self, data: bytes) -> None:
        await self._send(self.sealed(data))

    def sealed(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._out.read()


def reset(sock: socket.socket, last: bytes) -> None:
    """Send `last` and RST, before anyone can read the one without the other."""
    with contextlib.suppress(BlockingIOError):
        sock.send(last)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def cut(rng: random.Random, data: bytes) -> bytes:
    """All of it, or only its beginning."""
    return data if rng.random() < 0.5 else data[: rng.randrange(1, len(data))]


class Contexts:
    def __init__(self, folder: Path) -> None:
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(folder / "server.pem")
        self.client = ssl.create_default_context(cafile=str(folder / "authority.pem"))


# The server is reset by its clients.


async def visit(port: int, contexts: Contexts, rng: random.Random, *, header: bytes) -> None:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    end = Secured(sock, contexts.client, is_server=False)
    moment = rng.choice(["header", "hello", "request", "message"])
    await turns(rng.choice([0, 1, 5]))
    if moment == "header" and header:
        return reset(sock, cut(rng, header))
    if moment in ("header", "hello"):
        return reset(sock, header + cut(rng, end.hello()))
    if header:
        await asyncio.get_running_loop().sock_sendall(sock, header)
    try:
        await end.handshake()
        if moment == "request":
            return reset(sock, cut(rng, end.sealed(request())))
        await end.say(request())
        await end.head()
        return reset(sock, cut(rng, b"".join(end.sealed(encode(TEXT, f"{n} last words")) for n in range(3))))
    except BaseException:
        sock.close()
        raise


async def reset_the_server(contexts: Contexts, rng: random.Random, count: int) -> None:
    options: dict[str, Any] = {"handshake_timeout": 1000, "ping_interval": None, "compression": None}
    async with (
        WebSocketServer.bind("127.0.0.1:0", echo, ssl=contexts.server, **options) as bare,
        WebSocketServer.bind("127.0.0.1:0", echo, ssl=contexts.server, proxy_protocol=True, **options) as behind,
        WebSocketServer.bind("127.0.0.1:0", echo, **options) as plain,
    ):
        for _ in range(count // TOGETHER):
            server = rng.choice([bare, behind])
            header = HEADER if server is behind else b""
            await asyncio.gather(*(visit(server.port, contexts, rng, header=header) for _ in range(TOGETHER)))
            await until(lambda server=server: not server._handshakes and not server.connection_count)
            # The numbers of their descriptors are free again.
            await talk(f"wss://127.0.0.1:{bare.port}/", ssl=contexts.client)
            await talk(f"ws://127.0.0.1:{plain.port}/")


async def talk(url: str, **options: Any) -> None:
    async with WebSocketClient.connect(url, **options) as client:
        await client.send("hello")
        message = await client.recv()
        assert message == "hello"


# Clients are reset by their server, perhaps through a proxy.


async def receive(sock: socket.socket, contexts: Contexts, rng: random.Random, *, is_proxy: bool) -> None:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    end = Secured(sock, contexts.server, is_server=True)
    moment = rng.choice(["hello", "head", "message"])
    try:
        if is_proxy:
            asked = b""
            while not asked.endswith(b"\r\n\r\n"):
                asked += await loop.sock_recv(sock, 1)
            await loop.sock_sendall(sock, b"HTTP/1.1 200 OK\r\n\r\n")
        if moment == "hello":
            while (await loop.sock_recv(sock, 65536))[:1] != b"\x16":
                pass
            return reset(sock, b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76"[: rng.randrange(1, 10)])
        await end.handshake()
        key = (await end.head()).partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0].decode()
        answer = UPGRADE.format(accept_key(key)).encode()
        if moment == "head":
            return reset(sock, cut(rng, end.sealed(answer)))
        await end.say(answer)
        await turns(rng.choice([0, 1, 20]))
        return reset(
            sock, cut(rng, b"".join(end.sealed(encode(TEXT, f"{n} last words", mask=False)) for n in range(3)))
        )
    except BaseException:
        sock.close()
        raise


async def connect_and_listen(config: ClientConfig) -> None:
    try:
        async with WebSocketClient.connect(config) as client:
            async for message in client:
                assert str(message.text).endswith("last words")
    except Error:
        return
    raise AssertionError("a reset is not an orderly end")


async def reset_clients(contexts: Contexts, rng: random.Random, count: int, *, is_proxy: bool) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    async with WebSocketServer.bind("127.0.0.1:0", echo, compression=None) as plain:
        for _ in range(count // TOGETHER):
            visits = []
            for _ in range(TOGETHER):
                config = ClientConfig(
                    "wss://127.0.0.1:443/" if is_proxy else f"wss://{address}/",
                    proxy=f"http://{address}" if is_proxy else None,
                    ssl=rng.choice([None, contexts.client]),  # aiofastnet serves the two by different engines
                    auto_reconnect=False,
                    heartbeat=None,
                    connection_timeout=1000,
                )
                visits.append(asyncio.create_task(connect_and_listen(config)))
            for _ in range(TOGETHER):
                sock, _ = await asyncio.get_running_loop().sock_accept(listening)
                visits.append(asyncio.create_task(receive(sock, contexts, rng, is_proxy=is_proxy)))
            await asyncio.gather(*visits)
            await talk(f"ws://127.0.0.1:{plain.port}/")
    listening.close()


async def main(side: str, folder: Path, seed: int, count: int) -> None:
    logging.getLogger("fabric").setLevel(logging.ERROR)  # that each client loses its connection is a warning
    contexts = Contexts(folder)
    rng = random.Random(seed)
    if side == "server":
        await reset_the_server(contexts, rng, count)
    else:
        await reset_clients(contexts, rng, count, is_proxy=side == "tunnel")
    print("noticed", count)


if __name__ == "__main__":
    side, loop, folder, seed, count = sys.argv[1:]
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(side, Path(folder), int(seed), int(count)))
