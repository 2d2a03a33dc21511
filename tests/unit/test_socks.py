"""`fabric._handshake.socks`: the bytes of SOCKS5. The exchange is tested in `integration/test_client_proxy.py`."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from fabric._handshake.socks import _encode, open_tunnel
from fabric._http.url import PROXY_SCHEMES, Url
from fabric.error import ConnectionFailed

GRANTED = b"\x05\x00\x00\x01" + bytes(6)


class Exchange:
    """Of an event loop what moves bytes: hands out `answers` a byte at a time, and keeps what was sent."""

    def __init__(self, answers: bytes) -> None:
        self.answers = answers
        self.sent = b""

    async def sock_sendall(self, sock: object, data: bytes) -> None:
        self.sent += data

    async def sock_recv(self, sock: object, size: int) -> bytes:
        assert size > 0
        part, self.answers = self.answers[:1], self.answers[1:]
        return part


def tunnel(monkeypatch: pytest.MonkeyPatch, proxy: str, answers: bytes, host: str = "h", port: int = 80) -> Exchange:
    """What was exchanged; what of the answers was not read is left in `answers`."""
    exchange = Exchange(answers)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: exchange)
    sock: Any = None
    coroutine = open_tunnel(sock, Url.parse(proxy, PROXY_SCHEMES), host, port)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    return exchange


@pytest.mark.parametrize(
    ("host", "encoded"),
    [
        ("example.org", b"\x03\x0bexample.org"),
        ("127.0.0.1", b"\x01\x7f\x00\x00\x01"),
        ("::1", b"\x04" + bytes(15) + b"\x01"),
        ("fe80::1%eth0", b"\x04" + socket.inet_pton(socket.AF_INET6, "fe80::1")),
        ("a" * 254, b"\x03\xfe" + b"a" * 254),
    ],
)
def test_addresses(host: str, encoded: bytes) -> None:
    assert _encode(host) == encoded


def test_without_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = tunnel(monkeypatch, "socks5h://p", b"\x05\x00" + GRANTED, "h", 0x1234)
    assert exchange.sent == b"\x05\x01\x00" + b"\x05\x01\x00\x03\x01h\x12\x34"


def test_with_a_login_that_is_wanted_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = b"\x05\x01\x00\x03\x01h\x00\x50"
    wanted = tunnel(monkeypatch, "socks5h://me:p%C3%A4@p", b"\x05\x02\x01\x00" + GRANTED)
    assert wanted.sent == b"\x05\x02\x00\x02" + b"\x01\x02me\x03p\xc3\xa4" + asked
    unwanted = tunnel(monkeypatch, "socks5h://me:x@p", b"\x05\x00" + GRANTED)
    assert unwanted.sent == b"\x05\x02\x00\x02" + asked
    no_password = tunnel(monkeypatch, "socks5h://me@p", b"\x05\x02\x01\x00" + GRANTED)
    assert no_password.sent == b"\x05\x02\x00\x02" + b"\x01\x02me\x00" + asked


@pytest.mark.parametrize("bound", [b"\x01" + bytes(4), b"\x04" + bytes(16), b"\x03\x03\xff\xfe\x00", b"\x03\x00"])
def test_not_a_byte_of_the_server_is_read(monkeypatch: pytest.MonkeyPatch, bound: bytes) -> None:
    exchange = tunnel(monkeypatch, "socks5h://p", b"\x05\x00\x05\x00\x00" + bound + b"\x00\x50" + b"HTTP/1.1")
    assert exchange.answers == b"HTTP/1.1"


@pytest.mark.parametrize("cut", range(12))
def test_a_proxy_that_hangs_up_anywhere(monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    exchange = Exchange((b"\x05\x00" + GRANTED)[:cut])
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: exchange)
    sock: Any = None
    with pytest.raises(ConnectionFailed, match="connection to h:80 through the proxy p failed: it hung up"):
        open_tunnel(sock, Url.parse("socks5h://p:1080", PROXY_SCHEMES), "h", 80).send(None)
