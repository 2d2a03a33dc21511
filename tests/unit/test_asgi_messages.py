"""fabric._asgi.messages: scopes out of requests, responses out of events."""

from __future__ import annotations

from typing import Any

import pytest

from fabric._asgi.messages import Denial, header_lines, plain_response, scope_of
from fabric_ext.http_head import RequestHead
from support.raw_peer import request

DATE = [(b"date", b"today")]


def scope(line: str = "GET / HTTP/1.1", *more: str, root_path: str = "") -> dict[str, Any]:
    head = RequestHead()
    assert head.feed(request(*more, line=line))
    return scope_of(head, root_path)


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        ("/", "/", b"/", b""),
        ("/a%20b/c?d=e?f", "/a b/c", b"/a%20b/c", b"d=e?f"),
        ("/%C3%A9%2F", "/é/", b"/%C3%A9%2F", b""),
        ("/%FF", "/\N{REPLACEMENT CHARACTER}", b"/%FF", b""),
        ("//double", "//double", b"//double", b""),
        ("ws://host:80/path?q", "/path", b"/path", b"q"),
        ("http://host", "/", b"/", b""),
    ],
)
def test_paths(target: str, path: str, raw_path: bytes, query: bytes) -> None:
    found = scope(f"GET {target} HTTP/1.1")
    assert (found["path"], found["raw_path"], found["query_string"]) == (path, raw_path, query)
    found = scope(f"GET {target} HTTP/1.1", root_path="/api")
    assert (found["path"], found["raw_path"], found["root_path"]) == ("/api" + path, b"/api" + raw_path, "/api")


@pytest.mark.parametrize(
    ("lines", "offered"),
    [
        ((), []),
        (("Sec-WebSocket-Protocol: a",), ["a"]),
        (("Sec-WebSocket-Protocol: a , b,,", "sec-websocket-protocol: c"), ["a", "b", "c"]),
    ],
)
def test_subprotocols(lines: tuple[str, ...], offered: list[str]) -> None:
    assert scope("GET / HTTP/1.1", *lines)["subprotocols"] == offered


def test_headers_are_as_sent_but_for_case_and_blanks() -> None:
    headers = scope("GET / HTTP/1.1", "X-One:  a: b\t", "X-ONE: caf\xe9", "Empty:")["headers"]
    assert headers[-3:] == [(b"x-one", b"a: b"), (b"x-one", b"caf\xe9"), (b"empty", b"")]


def test_headers_of_events() -> None:
    assert header_lines([(b"X-A", b"\xe9\tb"), [b"b", b""]]) == [(b"x-a", b"\xe9\tb"), (b"b", b"")]  # type: ignore[list-item]
    for name, value in ((b"", b""), (b"a:", b""), (b"a", b"b\n"), (b"a", b"\0"), (b"a\r\nb", b"")):
        with pytest.raises(ValueError):
            header_lines([(name, value)])
    for pair in ((b"a", "b"), ("a", b"b"), (b"a", None)):
        with pytest.raises(TypeError):
            header_lines([pair])  # type: ignore[list-item]


def test_a_plain_response() -> None:
    assert plain_response(500, DATE) == (
        b"HTTP/1.1 500 Internal Server Error\r\ndate: today\r\ncontent-type: text/plain; charset=utf-8\r\n"
        b"content-length: 21\r\nconnection: close\r\n\r\nInternal Server Error"
    )


def denied(start: dict[str, Any], *bodies: dict[str, Any]) -> list[bytes]:
    denial = Denial(start, DATE)
    parts = [denial.body(event) for event in bodies]
    assert denial.is_complete is bool(bodies and not bodies[-1].get("more_body"))
    return [*parts, denial.cut_off()]


HEAD = b"HTTP/1.1 404 Not Found\r\ndate: today\r\n"


def test_the_only_part_of_a_body_gives_the_length() -> None:
    expected = HEAD + b"a: b\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc"
    assert denied({"status": 404, "headers": [(b"A", b"b")]}, {"body": b"abc"}) == [expected, b""]


def test_parts_without_a_length_are_chunks() -> None:
    head = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    more = {"body": b"", "more_body": True}
    assert denied({"status": 404}, more, {"body": b"x" * 16, "more_body": True}, {}) == [
        head,
        b"10\r\n" + b"x" * 16 + b"\r\n",
        b"0\r\n\r\n",
        b"",
    ]


def test_a_length_is_kept_and_other_framing_is_not() -> None:
    framing = [(b"content-length", b"3"), (b"transfer-encoding", b"chunked"), (b"connection", b"keep-alive")]
    head = HEAD + b"connection: close\r\ncontent-length: 3\r\n\r\n"
    start = {"status": 404, "headers": framing}
    assert denied(start, {"body": b"a", "more_body": True}, {"body": b"bc"}) == [head + b"a", b"bc", b""]
    assert denied(start) == [head]
    with pytest.raises(RuntimeError):
        denied(start, {"body": b"a", "more_body": True}, {"body": b"bcd"})


def test_a_response_that_is_cut_off_has_no_end() -> None:
    assert denied({"status": 404}) == [HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"]


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_without_a_body(status: int) -> None:
    (part, rest) = denied({"status": status}, {"body": b"ignored"})
    head, _, body = part.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert (b"content-length" in head) is (status == 304)
    assert body == rest == b""


@pytest.mark.parametrize("status", [0, 100, 101, 199, 600])
def test_a_status_that_denies_nothing(status: int) -> None:
    with pytest.raises(RuntimeError, match=f"Invalid HTTP status code '{status}'"):
        Denial({"status": status}, DATE)


def test_a_length_that_is_none() -> None:
    with pytest.raises(ValueError, match="not a number"):
        Denial({"status": 404, "headers": [(b"content-length", b"-1")]}, DATE)
