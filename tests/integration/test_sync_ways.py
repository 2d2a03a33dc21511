"""A client without an event loop over TLS, proxies, redirects, UNIX-domain sockets; and how it polls."""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric.config import CompressionConfig, RateLimitConfig
from fabric.error import AuthenticationFailed, ConnectionClosed, HandshakeFailed, Timeout, Tls
from fabric.sync import SyncClient, connect
from fabric_ext.protocol import State
from integration.proxies import HttpProxy, SocksProxy
from integration.raw import RawServer
from integration.test_client_redirect import Chain
from integration.test_sync import start, there, until, url
from support.serving import Held, serve
from support.threads import DEADLINE, Caller, Elsewhere
from support.tls import client_context, server_context

__all__ = ["there"]


def exchange(client: SyncClient) -> None:
    """Messages, large and small, in both directions, and a ping."""
    with client:
        for size in (0, 5, 70_000, 1_000_000):
            client.send(bytes(size))
            assert client.recv(DEADLINE) == bytes(size)
        with pytest.raises(Timeout):
            client.recv(0)
        client.ping(timeout=DEADLINE)
        client.send_many(str(number) for number in range(300))
        assert [client.recv(DEADLINE) for _ in range(300)] == [str(number) for number in range(300)]
    assert client.close_code == 1000


@pytest.fixture(params=["a context of its own", "the default"])
def context(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """For either TLS engine."""
    if request.param == "the default":
        from fabric._handshake import tls

        made = client_context()
        monkeypatch.setattr(tls, "default_context", lambda: made)
        yield None
    else:
        yield client_context()


@pytest.mark.parametrize("busy_poll", [0, 0.01, math.inf])
def test_tls(there: Elsewhere, context: Any, busy_poll: float) -> None:
    server = start(there, ssl=server_context())
    exchange(connect(url(server, "wss"), ssl=context, busy_poll=busy_poll))


def test_tls_while_nobody_receives(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held, ssl=server_context())
    with connect(url(server, "wss"), ssl=client_context) as client:
        peer = there(held.next())
        assert there(peer.ping()) > 0
        there(peer.close())
        until(lambda: client.state is State.CLOSED)


def test_a_certificate_that_is_not_accepted(there: Elsewhere) -> None:
    server = start(there, ssl=server_context())
    with pytest.raises(Tls, match="certificate"):
        connect(url(server, "wss"), ssl=ssl.create_default_context())


@pytest.mark.parametrize("busy_poll", [0, 0.001, math.inf])
def test_compressed_messages(there: Elsewhere, busy_poll: float) -> None:
    server = start(there, compression=CompressionConfig(threshold=1))
    client = connect(url(server), compression=CompressionConfig(threshold=1), busy_poll=busy_poll)
    assert client.extensions
    exchange(client)


def test_a_rate_limit(there: Elsewhere) -> None:
    server = start(there)
    limit = RateLimitConfig(messages_per_second=2000, messages_burst=100)
    with connect(url(server), rate_limit=limit) as client:
        client.send_many(str(number) for number in range(400))
        assert [client.recv(DEADLINE) for _ in range(400)] == [str(number) for number in range(400)]


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("kind", ["http", "socks5", "socks5h"])
def test_a_proxy(there: Elsewhere, kind: str, secure: bool) -> None:
    server = start(there, **({"ssl": server_context()} if secure else {}))
    proxy = there.enter(HttpProxy(password="p") if kind == "http" else SocksProxy(password="p"))
    address = f"{'wss' if secure else 'ws'}://localhost:{server.port}/"
    exchange(connect(address, proxy=f"{kind}://me:p@127.0.0.1:{proxy.port}", ssl=client_context() if secure else None))
    assert proxy.users == ["me"]


def test_a_proxy_that_refuses(there: Elsewhere) -> None:
    proxy = there.enter(HttpProxy(password="p"))
    with pytest.raises(AuthenticationFailed):
        connect("ws://127.0.0.1:1/", proxy=f"http://me:wrong@127.0.0.1:{proxy.port}")


def test_redirects(there: Elsewhere) -> None:
    chain = Chain({"/": (302, "/next"), "/next": (307, "/end")})
    server = there.enter(RawServer(chain))
    with connect(server.url) as client:
        assert client.request is not None
        assert client.request.target == "/end"
    with pytest.raises(HandshakeFailed, match="redirects"):
        connect(server.url, max_redirects=1)


def test_a_unix_socket_and_a_socket_that_was_given(there: Elsewhere, tmp_path: Path) -> None:
    from fabric.server import WebSocketServer
    from support.serving import echo

    path = str(tmp_path / "s")
    there.enter(WebSocketServer.bind(f"unix:{path}", echo))
    exchange(connect("ws://localhost/", unix_path=path))
    server = start(there)
    exchange(connect(url(server), sock=socket.create_connection(("127.0.0.1", server.port))))


# Busy polling.


@pytest.mark.parametrize("busy_poll", [0.001, math.inf])
def test_polling_exchanges_the_same(there: Elsewhere, busy_poll: float) -> None:
    exchange(connect(url(start(there)), busy_poll=busy_poll))


def test_a_poll_ends_at_the_timeout(there: Elsewhere) -> None:
    with connect(url(start(there)), busy_poll=math.inf) as client:
        for timeout in (0, 0.001, 0.01):
            with pytest.raises(Timeout):
                client.recv(timeout)
        client.send("x")
        assert client.recv(DEADLINE) == "x"


def test_timers_and_other_threads_have_their_turn_while_it_polls(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    with connect(url(server), busy_poll=math.inf, auto_reconnect=False) as client:
        peer = there(held.next())
        waiting = Caller(client.recv)
        assert there(peer.ping()) > 0
        assert client.ping(timeout=DEADLINE) > 0
        with pytest.raises(Timeout):
            client.wait_closed(0.01)
        there.loop.call_soon_threadsafe(peer._abort)
        with pytest.raises(ConnectionClosed):
            waiting.result()


def test_close_ends_a_poll(there: Elsewhere) -> None:
    client = connect(url(start(there)), busy_poll=math.inf)
    waiting = Caller(client.recv)
    client.ping(timeout=DEADLINE)
    client.close()
    assert waiting.result() is None


def test_many_clients_poll_at_once(there: Elsewhere) -> None:
    server = there(serve(there.stack, _greet))

    def talk() -> None:
        with connect(url(server), busy_poll=math.inf) as client:
            for number in range(50):
                client.send(str(number))
                assert client.recv(DEADLINE) == str(number)

    with contextlib.ExitStack():
        for caller in [Caller(talk) for _ in range(4)]:
            caller.result()


async def _greet(client: Any) -> None:
    async for message in client:
        await client.send(message)
