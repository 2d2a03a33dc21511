"""A server behind a proxy that speaks the PROXY protocol knows the client's address, and believes only the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import ServerConfig
from fabric.server import ConnectedClient, WebSocketServer
from support.raw_peer import Answer, RawPeer, request
from support.serving import Held, serve, until
from support.tls import client_context, server_context

Stack = contextlib.AsyncExitStack

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
secure = pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])


def line(source: str, port: int = 56324) -> bytes:
    """A header of version 1."""
    version = ipaddress.ip_address(source).version
    target = "198.51.100.1" if version == 4 else "2001:db8::ffff"
    return f"PROXY TCP{version} {source} {target} {port} 443\r\n".encode()


def binary(source: str, port: int = 56324, *, values: bytes = b"") -> bytes:
    """A header of version 2."""
    address = ipaddress.ip_address(source)
    rest = address.packed * 2 + port.to_bytes(2, "big") + b"\x01\xbb" + values
    return SIGNATURE + bytes([0x21, 0x11 if address.version == 4 else 0x21]) + len(rest).to_bytes(2, "big") + rest


LOCAL = SIGNATURE + b"\x20\x00\x00\x00"

HEADERS: dict[str, tuple[bytes, Any]] = {
    "version 1": (line("192.0.2.7"), ("192.0.2.7", 56324)),
    "version 1, IPv6": (line("2001:db8::7"), ("2001:db8::7", 56324, 0, 0)),
    "version 2": (binary("192.0.2.7", values=b"\x04\x0f\x9f" + bytes(3999)), ("192.0.2.7", 56324)),
    "version 2, IPv6": (binary("2001:db8::7"), ("2001:db8::7", 56324, 0, 0)),
    "unknown": (b"PROXY UNKNOWN\r\n", None),
    "the proxy's own": (LOCAL, None),
}


class Proxied:
    """A client behind a proxy: a socket on which `header` goes before all that it sends."""

    def __init__(self, port: int, header: bytes) -> None:
        self._port = port
        self._header = header

    async def connect(self, *, secure: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._header)
        if secure:
            await writer.start_tls(client_context(), server_hostname="localhost")
        return reader, writer

    async def ask(self, data: bytes, *, secure: bool = False) -> Answer:
        reader, writer = await self.connect(secure=secure)
        peer = RawPeer(reader, writer)
        try:
            peer.send(data)
            return await peer.read_answer()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()


@secure
@pytest.mark.parametrize("case", HEADERS)
async def test_the_server_knows_the_client(stack: Stack, case: str, secure: bool) -> None:
    header, address = HEADERS[case]
    held = Held()
    seen: list[Any] = []
    server = await serve(
        stack,
        held,
        ssl=server_context() if secure else None,
        proxy_protocol=True,
        process_request=lambda request: seen.append(request.remote_addr),
    )
    reader, writer = await Proxied(server.port, header).connect(secure=secure)
    peer = await stack.enter_async_context(RawPeer(reader, writer))
    peer.send(request())
    assert (await peer.read_answer()).status == 101
    client = await held.next()
    expected = address or writer.get_extra_info("sockname")
    assert client.remote_addr == client.request.remote_addr == expected
    assert seen == [expected]
    await client.send("hello")
    assert await peer.payload() == b"hello"
    peer.send_close()
    await client.wait_closed()
    assert client.remote_addr == expected


@secure
@pytest.mark.parametrize("header", [line("192.0.2.7"), binary("192.0.2.7")], ids=["version 1", "version 2"])
async def test_a_header_may_come_byte_by_byte(stack: Stack, header: bytes, secure: bool) -> None:
    held = Held()
    server = await serve(stack, held, ssl=server_context() if secure else None, proxy_protocol=True)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    peer = await stack.enter_async_context(RawPeer(reader, writer))
    for byte in header:
        peer.send(bytes([byte]))
        await asyncio.sleep(0)
    if secure:
        await writer.start_tls(client_context(), server_hostname="localhost")
    peer.send(request())
    assert (await peer.read_answer()).status == 101
    assert (await held.next()).remote_addr == ("192.0.2.7", 56324)


@secure
async def test_the_first_flight_may_come_with_it(stack: Stack, secure: bool) -> None:
    """As much as the proxy has, in one segment; TLS as a client makes it, which knows of no header."""
    held = Held()
    context = server_context() if secure else None
    server = await serve(stack, held, ssl=context, proxy_protocol=True)
    if not secure:
        assert (await Proxied(server.port, b"").ask(line("192.0.2.7") + request())).status == 101
        assert (await held.next()).remote_addr[0] == "192.0.2.7"
        return

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A proxy of one connection."""
        there, back = await asyncio.open_connection("127.0.0.1", server.port)

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, first: bytes) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    target.write(first + data)
                    first = b""
            target.close()

        await asyncio.gather(pass_on(reader, back, binary("192.0.2.7")), pass_on(there, writer, b""))

    proxy = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with WebSocketClient.connect(f"wss://localhost:{port}/", ssl=client_context()) as client:
        await client.ping()
        assert (await held.next()).remote_addr == ("192.0.2.7", 56324)
    proxy.close()
    await until(lambda: not server.connection_count)


async def test_the_client_may_send_the_request_with_its_header(stack: Stack) -> None:
    server = await serve(stack, Held(), proxy_protocol=True)
    answer = await Proxied(server.port, b"").ask(line("192.0.2.7") + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.status == 426


BAD = {
    "none": request(),
    "malformed": b"PROXY TCP4 192.0.2.7\r\n" + request(),
    "too long": b"PROXY UNKNOWN " + b"x" * 100,
    "wrong version": SIGNATURE + b"\x31\x11\x00\x00",
    "too large": SIGNATURE + b"\x21\x11\xff\xff",
}


@pytest.mark.parametrize("case", BAD)
async def test_what_is_no_header_is_refused_at_once(stack: Stack, case: str) -> None:
    server = await serve(stack, Held(), proxy_protocol=True, handshake_timeout=60)
    answer = await Proxied(server.port, b"").ask(BAD[case])
    assert (answer.status, b"PROXY" in answer.body) == (400, True)
    assert server.metrics.refusals == {400: 1}
    await until(lambda: not len(server._handshakes))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", BAD)
async def test_before_tls_it_is_closed_without_words(stack: Stack, case: str) -> None:
    server = await serve(stack, Held(), proxy_protocol=True, handshake_timeout=60, ssl=server_context())
    async with await RawPeer.connect(server.port) as peer:
        peer.send(BAD[case])
        with contextlib.suppress(ConnectionError):
            await peer.closed()
    await until(lambda: server.metrics.refusals == {400: 1})


@secure
async def test_a_header_that_does_not_come_is_waited_for_as_a_handshake_is(stack: Stack, secure: bool) -> None:
    options: dict[str, Any] = {"ssl": server_context()} if secure else {}
    server = await serve(stack, Held(), proxy_protocol=True, handshake_timeout=0.1, **options)
    async with await RawPeer.connect(server.port) as peer:
        peer.send(line("192.0.2.7")[:10])
        with contextlib.suppress(ConnectionError):
            await peer.reader.read()
        await until(lambda: server.metrics.handshake_timeouts == 1)
    await until(lambda: not len(server._handshakes))  # type: ignore[arg-type]


async def test_a_timer_that_is_early_is_the_deadline_all_the_same(stack: Stack) -> None:
    """A loop may call it a millisecond before the clock by which handshakes are measured says so."""
    server = await serve(stack, Held(), handshake_timeout=60, ssl=server_context())
    pending = server._handshakes
    assert pending is not None
    handshake = pending.accept()
    pending.add(handshake, 0, ("192.0.2.7", 1))
    handshake.began = time.perf_counter() - 60 + 0.002
    pending.tls_failed(handshake, TimeoutError())
    pending.remove(handshake)
    assert server.metrics.handshake_timeouts == 1


@secure
async def test_a_proxy_that_leaves_before_it_is_forgotten(stack: Stack, secure: bool) -> None:
    options: dict[str, Any] = {"ssl": server_context()} if secure else {}
    server = await serve(stack, Held(), proxy_protocol=True, handshake_timeout=60, **options)
    for data in (b"", b"PROXY"):
        async with await RawPeer.connect(server.port) as peer:
            peer.send(data)
            await until(lambda: len(server._handshakes) == 1)  # type: ignore[arg-type]
        await until(lambda: not len(server._handshakes))  # type: ignore[arg-type]
    async with await RawPeer.connect(server.port) as peer:
        await until(lambda: len(server._handshakes) == 1)  # type: ignore[arg-type]
        peer.reset()
        await until(lambda: not len(server._handshakes))  # type: ignore[arg-type]


@secure
async def test_the_limit_for_each_address_is_the_clients(stack: Stack, secure: bool) -> None:
    held = Held()
    options: dict[str, Any] = {"ssl": server_context()} if secure else {}
    options |= {"handshake_timeout": 60, "close_timeout": 0.1}  # nobody here answers a close frame
    server = await serve(stack, held, proxy_protocol=True, max_connections_per_ip=1, **options)

    async def come(source: str) -> int:
        reader, writer = await Proxied(server.port, binary(source)).connect(secure=secure)
        peer = await stack.enter_async_context(RawPeer(reader, writer))
        peer.send(request())
        return (await peer.read_answer()).status

    assert await come("192.0.2.1") == 101
    client = await held.next()
    assert await come("192.0.2.2") == 101
    assert await come("192.0.2.1") == 429  # its one is open
    await client.close()
    assert await come("192.0.2.1") == 101


async def test_the_limit_holds_during_the_handshake(stack: Stack) -> None:
    server = await serve(stack, Held(), proxy_protocol=True, max_connections_per_ip=1, handshake_timeout=60)
    first = await stack.enter_async_context(await RawPeer.connect(server.port))
    first.send(line("192.0.2.1"))
    second = Proxied(server.port, line("192.0.2.1"))
    await until(lambda: server._handshakes and server._handshakes._per_ip)
    assert (await second.ask(request())).status == 429
    assert (await Proxied(server.port, line("192.0.2.2")).ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")).status == 426
    first.writer.close()
    await until(lambda: not len(server._handshakes))  # type: ignore[arg-type]
    assert (await second.ask(request())).status == 101


@secure
async def test_only_the_proxy_is_believed(stack: Stack, secure: bool) -> None:
    """From elsewhere there is no header; one that comes is no request."""
    held = Held()
    options: dict[str, Any] = {"ssl": server_context()} if secure else {}
    server = await serve(stack, held, proxy_protocol=["192.0.2.0/24", "2001:db8::1"], **options)
    scheme, more = ("wss", {"ssl": client_context()}) if secure else ("ws", {})
    async with WebSocketClient.connect(f"{scheme}://127.0.0.1:{server.port}/", **more):
        assert (await held.next()).remote_addr[0] == "127.0.0.1"
    if not secure:
        assert (await Proxied(server.port, line("192.0.2.7")).ask(request())).status == 400


async def test_the_proxys_network_is_believed(stack: Stack) -> None:
    held = Held()
    server = await serve(stack, held, proxy_protocol=["192.0.2.0/24", "127.0.0.0/8"])
    assert (await Proxied(server.port, line("192.0.2.7")).ask(request())).status == 101
    assert (await held.next()).remote_addr[0] == "192.0.2.7"
    assert (await Proxied(server.port, b"").ask(request())).status == 400


async def test_through_a_unix_socket(stack: Stack, tmp_path: Path) -> None:
    held = Held()
    config = ServerConfig(f"unix:{tmp_path}/s", proxy_protocol=True, max_connections_per_ip=1)
    server = await stack.enter_async_context(WebSocketServer(config, held))
    stack.callback(held.release)

    async def come(source: str) -> int:
        peer = RawPeer(*await asyncio.open_unix_connection(str(tmp_path / "s")))
        await stack.enter_async_context(peer)
        peer.send(line(source), request())
        return (await peer.read_answer()).status

    assert await come("192.0.2.7") == 101
    assert (await held.next()).remote_addr == ("192.0.2.7", 56324)
    assert await come("192.0.2.7") == 429
    assert server.port == 0


async def test_without_it_a_header_is_no_request(stack: Stack) -> None:
    server = await serve(stack, Held())
    assert (await Proxied(server.port, line("192.0.2.7")).ask(request())).status == 400


async def test_the_handler_sees_it_while_the_connection_lives(stack: Stack) -> None:
    async def tell(client: ConnectedClient) -> None:
        await client.send_json(client.remote_addr)

    server = await serve(stack, tell, proxy_protocol=True)
    reader, writer = await Proxied(server.port, line("2001:db8::7", 1)).connect(secure=False)
    peer = await stack.enter_async_context(RawPeer(reader, writer))
    peer.send(request())
    await peer.read_answer()
    assert await peer.payload() == b'["2001:db8::7",1,0,0]'
