"""Whatever an `ssl.SSLContext` may carry works, on a server and on a client, also when it is set later.

PICOWS: aiofastnet's direct engine crashes the process where a context has an `sni_callback`, and ignores much else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.client import WebSocketClient
from fabric.config import ServerConfig
from fabric.message import Message
from fabric.server import WebSocketServer
from integration.proxies import HttpProxy
from support.serving import echo, serve, turns
from support.tls import authority, client_context, server_context, trusted_by_the_system, with_certificate
from support.tls_changes import (
    CHANGES,
    Proof,
    keylog_filename,
    msg_callback,
    set_servername_callback,
    sni_callback,
)

Stack = contextlib.AsyncExitStack

# Of a context: what only tells, is tested apart from the list of changes, or does nothing any more.
TOLD = {"cert_store_stats", "get_ca_certs", "get_ciphers", "get_groups", "protocol", "session_stats"}
APART = {"wrap_socket", "set_default_verify_paths"}
GONE = {"set_npn_protocols"}


def test_nothing_that_a_context_has_is_left_out() -> None:
    names = {name for name in dir(ssl.SSLContext) if not name.startswith("_")}
    tested = {change.__name__ for change in CHANGES}
    assert names - tested - TOLD - APART - GONE == set()


changed = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


async def check(url: str, **options: Any) -> None:
    async with WebSocketClient.connect(url, auto_reconnect=False, **options) as client:
        for data in (b"x", b"y" * 200_000):
            await client.send(data)
            assert await client.recv() == Message(data)


def wss(server: WebSocketServer, host: str = "localhost") -> str:
    return f"wss://{host}:{server.port}/"


@changed
async def test_a_servers_context(stack: Stack, tmp_path: Path, change: Callable[..., Proof]) -> None:
    context = server_context()
    before = set(vars(context))
    proof = change(context, tmp_path)
    mine = set(vars(context))
    server = await serve(stack, echo, ssl=context)
    await check(wss(server), ssl=with_certificate(client_context()))
    assert proof()
    assert set(vars(context)) == mine, "the context has been changed"
    assert before == set()


@changed
@pytest.mark.parametrize("way", ["direct", "proxy"])
async def test_a_clients_context(stack: Stack, tmp_path: Path, change: Callable[..., Proof], way: str) -> None:
    if change in (sni_callback, set_servername_callback):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with pytest.raises(ValueError, match="sni_callback"):
            change(context, tmp_path)
        return
    server = await serve(stack, echo, ssl=server_context())
    context = client_context()
    proof = change(context, tmp_path)
    mine = set(vars(context))
    proxy = await stack.enter_async_context(HttpProxy()) if way == "proxy" else None
    await check(wss(server), ssl=context, proxy=None if proxy is None else f"http://127.0.0.1:{proxy.port}")
    assert proof()
    assert set(vars(context)) == mine, "the context has been changed"


@pytest.mark.parametrize("change", [sni_callback, msg_callback, keylog_filename], ids=lambda change: change.__name__)
async def test_a_callback_that_is_set_while_the_server_runs(
    stack: Stack, tmp_path: Path, change: Callable[..., Proof]
) -> None:
    """On the connection that is in its handshake, and on the next one."""
    context = server_context()
    server = await serve(stack, echo, ssl=context)
    await check(wss(server), ssl=client_context())
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await turns()  # it is accepted
    proof = change(context, tmp_path)
    await writer.start_tls(client_context(), server_hostname="localhost")
    writer.close()
    await writer.wait_closed()
    await check(wss(server), ssl=client_context())
    assert proof()


async def test_a_callback_that_is_set_while_a_client_is_connected(stack: Stack, tmp_path: Path) -> None:
    server = await serve(stack, echo, ssl=server_context())
    context = client_context()
    async with WebSocketClient.connect(wss(server), ssl=context) as client:
        proof = keylog_filename(context, tmp_path)
        await client.send("x")
        assert await client.recv() == Message("x")
    await check(wss(server), ssl=context)
    assert proof()


async def test_a_server_chooses_the_certificate_by_name(stack: Stack) -> None:
    other = server_context("other.invalid")
    context = server_context("localhost")
    certificates = {"localhost": context, "other.invalid": other}

    def choose(connection: Any, name: str | None, _: object) -> None:
        connection.context = certificates[name or ""]

    context.sni_callback = choose  # type: ignore[assignment]
    server = await serve(stack, echo, ssl=context)
    proxy = await stack.enter_async_context(HttpProxy())  # which takes each name for 127.0.0.1
    for name in certificates:
        await check(wss(server, name), ssl=client_context(), proxy=f"http://127.0.0.1:{proxy.port}")


async def test_a_subclass_of_a_context(stack: Stack) -> None:
    """As the package truststore makes: the SSL_CTX inside is not what verifies."""
    wrapped = []

    class Own(ssl.SSLContext):
        def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
            wrapped.append(options["server_side"])
            return super().wrap_bio(*args, **options)

    served, used = Own(ssl.PROTOCOL_TLS_SERVER), Own(ssl.PROTOCOL_TLS_CLIENT)
    authority().issue_cert("localhost").configure_cert(served)
    authority().configure_trust(used)
    server = await serve(stack, echo, ssl=served)
    await check(wss(server), ssl=used)
    assert sorted(wrapped) == [False, True]


async def test_a_context_of_both_sides_with_a_name_callback(stack: Stack, tmp_path: Path) -> None:
    """`PROTOCOL_TLS` serves a client too, and OpenSSL asks the callback on both sides."""
    with pytest.warns(DeprecationWarning, match="PROTOCOL_TLS"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS)
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    proof = sni_callback(context, tmp_path)
    server = await serve(stack, echo, ssl=server_context())
    await check(wss(server), ssl=context)
    assert proof()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_a_client_with_a_certificate_resumes_its_session(stack: Stack, version: str) -> None:
    """OpenSSL fails such a handshake if the server has no session id context, which CPython may set per connection."""
    served, used = server_context(), with_certificate(client_context())
    authority().configure_trust(served)
    served.verify_mode = ssl.CERT_REQUIRED
    used.maximum_version = ssl.TLSVersion[version]
    server = await serve(stack, echo, ssl=served)

    def visit(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        with (
            socket.create_connection(("127.0.0.1", server.port)) as plain,
            used.wrap_socket(plain, server_hostname="localhost", session=session) as secure,
        ):
            secure.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert secure.recv(100).startswith(b"HTTP/1.1 4")  # with it comes the ticket
            return secure.session, secure.session_reused

    session, reused = await asyncio.to_thread(visit, None)
    assert (await asyncio.to_thread(visit, session))[1]
    assert not reused


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    with trusted_by_the_system(monkeypatch, tmp_path):
        yield monkeypatch


@pytest.mark.usefixtures("system")
async def test_a_client_without_a_context(stack: Stack, tmp_path: Path) -> None:
    server = await serve(stack, echo, ssl=server_context())
    await check(wss(server))
    proxy = await stack.enter_async_context(HttpProxy(ssl=server_context()))
    await check(wss(server), proxy=f"https://127.0.0.1:{proxy.port}")


async def test_the_environment_logs_the_keys_of_a_client(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with trusted_by_the_system(monkeypatch, tmp_path):
        server = await serve(stack, echo, ssl=server_context())
        await check(wss(server))
    assert b"CLIENT" in (tmp_path / "keys").read_bytes()


async def test_a_unix_server_and_client(stack: Stack, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    served, used = server_context(), client_context()
    proofs = sni_callback(served, tmp_path), keylog_filename(used, tmp_path)
    await stack.enter_async_context(WebSocketServer(ServerConfig(f"unix:{path}", ssl=served), echo))
    await check("wss://localhost/", ssl=used, unix_path=path)
    assert all(proof() for proof in proofs)


@pytest.mark.skipif(not hasattr(ssl.SSLContext, "set_psk_client_callback"), reason="from CPython 3.13 on")
async def test_a_key_that_both_sides_share(stack: Stack) -> None:
    served, used = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    used.check_hostname = False
    used.verify_mode = ssl.CERT_NONE
    for context in (served, used):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("PSK")
    seen = []

    def key(identity: str) -> bytes:
        seen.append(identity)
        return b"secret"

    served.set_psk_server_callback(key)  # type: ignore[attr-defined,unused-ignore]
    used.set_psk_client_callback(lambda hint: ("me", b"secret"))  # type: ignore[attr-defined,unused-ignore]
    server = await serve(stack, echo, ssl=served)
    await check(wss(server), ssl=used)
    assert seen == ["me"]
