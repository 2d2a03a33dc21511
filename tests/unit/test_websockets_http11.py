"""fabric.websockets.http11: heads and bodies in every cut, as `websockets` reads them; limits."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import websockets
import websockets.http11
from websockets.streams import StreamReader

from fabric.websockets import http11
from fabric.websockets.datastructures import Headers
from fabric.websockets.exceptions import SecurityError
from fabric.websockets.http11 import HeadReader, Request, Response, ResponseReader
from fabric.websockets.version import version

Outcome = tuple[Any, ...]


@pytest.fixture(autouse=True)
def same_release() -> None:
    if websockets.__version__ != version:
        pytest.skip(f"websockets {version} is not installed")


def theirs(data: bytes, *, is_request: bool, is_proxy: bool = False, eof: bool = True) -> Outcome:
    """What the parser of `websockets` makes of it, and what it leaves."""
    reader = StreamReader()
    parser: Any
    if is_request:
        parser = websockets.http11.Request.parse(reader.read_line)
    else:
        parser = websockets.http11.Response.parse(
            reader.read_line, reader.read_exact, reader.read_to_eof, proxy=is_proxy
        )
    reader.feed_data(data)
    try:
        next(parser)
        if not eof:
            return ("incomplete",)
        reader.feed_eof()
        next(parser)
    except StopIteration as stop:
        return *fields(stop.value), bytes(reader.buffer)
    except Exception as error:  # noqa: BLE001  (it is compared)
        return type(error).__name__, str(error)
    raise AssertionError("it goes on")


def fields(message: Any) -> Outcome:
    lines = list(message.headers.raw_items())
    if hasattr(message, "path"):
        return message.method, message.path, message.protocol, lines
    return message.status_code, message.reason_phrase, lines, bytes(message.body)


def ours(pieces: list[bytes], *, is_request: bool, is_proxy: bool = False) -> Outcome:
    reader: Any = HeadReader(is_request=True) if is_request else ResponseReader(is_proxy=is_proxy)
    rest = b""
    done = False
    try:
        for piece in pieces:
            if done:
                rest += piece
            else:
                done = reader.feed(piece)
        if not done:
            if is_request:
                raise reader.end()
            done = reader.feed_eof()
    except Exception as error:  # noqa: BLE001  (it is compared)
        return type(error).__name__, str(error)
    message = reader.request() if is_request else reader.response
    return *fields(message), reader.rest + rest


def cuts(data: bytes) -> list[list[bytes]]:
    return [[data], [data[i : i + 1] for i in range(len(data))], [data[: len(data) // 2], data[len(data) // 2 :]]]


HEAD = b"Host: x\r\nX-A:  b \t\r\nX-\xff: y\r\n"
REQUESTS = [
    b"GET /path?q HTTP/1.1\r\nHost: x\r\nA:\r\nB: \xe9\r\n\r\nrest",
    b"POST / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET / HTTP/2\r\n\r\n",
    b"HELO relay.invalid\r\n",
    b"GET /\xff HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nbad name: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n",
    b"",
    b"GET / HTTP",
    b"GET / HTTP/1.1\r\nHost: x",
    b"GET " + b"/" * 8190 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * 8190 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 128 + b"\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 129 + b"\r\n",
]
RESPONSES = [
    b"HTTP/1.1 101 Switching Protocols\r\nA: b\r\n\r\n\x81\x00",
    b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhellorest",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 204 OK\r\n\r\nrest",
    b"HTTP/1.1 304 OK\r\nContent-Length: 5\r\n\r\nrest",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\nrest",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nTrailer: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n",
    b"HTTP/1.1 2x0 OK\r\n\r\n",
    b"HTTP/1.1 600 OK\r\n\r\n",
    b"HTTP/1.1 200 \x00\r\n\r\n",
    b"HTTP/1.1\r\n",
    b"",
    b"HTTP/1.1 200 " + b"x" * 8190 + b"\r\n\r\n",
]
# The error is ours where a body is cut off: what is there of it is counted differently.
SHORT = {RESPONSES[2], RESPONSES[9]}


@pytest.mark.parametrize("data", REQUESTS, ids=lambda data: repr(data[:60]))
def test_a_request_is_read_the_same(data: bytes) -> None:
    expected = theirs(data, is_request=True)
    for pieces in cuts(data):
        found = ours(pieces, is_request=True)
        if expected[0].endswith("TooLong"):
            assert found[0] == expected[0]  # how much of the line had come depends on the cut
        else:
            assert found == expected


@pytest.mark.parametrize("is_proxy", [False, True])
@pytest.mark.parametrize("data", RESPONSES, ids=lambda data: repr(data[:60]))
def test_a_response_is_read_the_same(data: bytes, is_proxy: bool) -> None:
    expected = theirs(data, is_request=False, is_proxy=is_proxy)
    for pieces in cuts(data):
        found = ours(pieces, is_request=False, is_proxy=is_proxy)
        if data in SHORT or str(expected[0]).endswith("TooLong"):
            assert found[0] == expected[0]
        else:
            assert found == expected


def test_a_line_without_its_carriage_return_is_none() -> None:
    reader = HeadReader(is_request=True)
    with pytest.raises(EOFError, match="connection closed while reading HTTP request line"):
        reader.feed(b"GET / HTTP/1.1\n")


def test_a_body_is_bounded_while_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http11, "MAX_BODY_SIZE", 10)
    reader = ResponseReader()
    assert not reader.feed(b"HTTP/1.1 200 OK\r\n\r\n0123456789")
    with pytest.raises(SecurityError, match="read 11 bytes, expected no more than 10"):
        reader.feed(b"x")
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n01234567\r\n")
    with pytest.raises(SecurityError, match="chunk too large: 3 bytes after 8 bytes"):
        reader.feed(b"3\r\n")
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(SecurityError):
        reader.feed(b"1" * 9000)


def test_messages_are_written_the_same() -> None:
    headers = [("A", "b"), ("C", "é")]
    for name, arguments in (("Request", ("/p",)), ("Response", (200, "Ök"))):
        written = []
        for package in ("fabric.websockets", "websockets"):
            module = importlib.import_module(f"{package}.http11")
            made = importlib.import_module(f"{package}.datastructures").Headers(headers)
            written.append(getattr(module, name)(*arguments, made).serialize())
        assert written[0] == written[1]
    assert Response(200, "OK", Headers(), b"body").serialize().endswith(b"\r\n\r\nbody")
    assert Request("/", Headers()) == Request("/", Headers(), "GET", "HTTP/1.1")


@pytest.mark.parametrize(
    ("variable", "name", "value"),
    [
        ("WEBSOCKETS_USER_AGENT", "USER_AGENT", "me"),
        ("WEBSOCKETS_SERVER", "SERVER", "me"),
        ("WEBSOCKETS_MAX_NUM_HEADERS", "MAX_NUM_HEADERS", 5),
        ("WEBSOCKETS_MAX_LINE_LENGTH", "MAX_LINE_LENGTH", 5),
        ("WEBSOCKETS_MAX_BODY_SIZE", "MAX_BODY_SIZE", 5),
    ],
)
def test_the_environment_sets_limits(variable: str, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, str(value))
    spec = importlib.util.find_spec("fabric.websockets.http11")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)  # another one, so that the limits here stay
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "fabric.websockets.http11", module)
        spec.loader.exec_module(module)
    assert getattr(module, name) == value
