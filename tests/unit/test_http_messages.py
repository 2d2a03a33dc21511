"""fabric._http.messages: what a request tells, and responses as bytes (RFC 9110, RFC 9112)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric import Request, Response
from fabric._http.messages import as_response, encode_headers, headers_of, response_of
from fabric.error import InvalidHeader
from fabric.headers import HeaderMap

# --- requests ----------------------------------------------------------------------------------------------


def test_a_request() -> None:
    request = Request(b"GET /a%20b/%C3%A9?x=1&y=&x=2 HTTP/1.1\r\nHost: here\r\nX: a, b\r\nx:\t c \r\nY: \xff")
    assert request.method == "GET"
    assert request.target == "/a%20b/%C3%A9?x=1&y=&x=2"
    assert request.path == "/a b/é"
    assert request.query == {"x": "2", "y": ""}
    assert request.headers["HOST"] == "here"
    assert request.headers.getall("X") == ["a, b", "c"]
    assert request.headers["Y"].encode("utf-8", "surrogateescape") == b"\xff"


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", {}),
        ("/?", "/", {}),
        ("/?a", "/", {"a": ""}),
        ("/x?a=b?c", "/x", {"a": "b?c"}),
        ("//host/path", "//host/path", {}),  # no authority: a path of a request begins with a slash
        ("//[", "//[", {}),
        ("/a;b", "/a;b", {}),
        ("/http://x/y", "/http://x/y", {}),
        ("http://example.com/path?a=b", "/path", {"a": "b"}),  # absolute form, RFC 9112 §3.2.2
        ("http://example.com", "", {}),
        ("*", "*", {}),
        ("/%2e%2e/%00", "/../\0", {}),
        ("/%ff", "/\ufffd", {}),
        ("/100%", "/100%", {}),
    ],
)
def test_targets(target: str, path: str, query: dict[str, str]) -> None:
    request = Request(f"GET {target} HTTP/1.1".encode())
    assert (request.target, request.path, request.query) == (target, path, query)
    repr(request)


@pytest.mark.parametrize("text", ["/café?name=é", "/caf%C3%A9?name=%C3%A9"])
def test_a_path_is_utf_8_whether_it_was_encoded_or_not(text: str) -> None:
    request = Request(f"GET {text} HTTP/1.1".encode())
    assert (request.path, request.query) == ("/café", {"name": "é"})
    assert request.target == "/caf%C3%A9?name=%C3%A9"
    assert "café" not in repr(request)  # a log may take nothing but ASCII


@given(st.binary().map(lambda data: bytes(byte for byte in data if byte > 32 and byte != 127)))
def test_any_target_can_be_asked_for(data: bytes) -> None:
    request = Request(b"GET /%b HTTP/1.1" % data)
    assert request.target.isascii()
    assert request.path.encode()  # no lone surrogates
    assert isinstance(request.query, dict)
    assert repr(request).isascii()


def test_a_repr_does_not_tell_the_query() -> None:
    assert "secret" not in repr(Request(b"GET /x?token=secret HTTP/1.1"))


def test_a_request_is_taken_apart_anew_each_time() -> None:
    request = Request(b"GET / HTTP/1.1\r\nHost: x")
    request.headers.add("X", "y")
    assert "X" not in request.headers


def test_headers_of_a_head_without_any() -> None:
    assert headers_of(b"GET / HTTP/1.0") == HeaderMap()


# --- responses ---------------------------------------------------------------------------------------------


def test_a_response_on_the_wire() -> None:
    response = Response(404, {"X-Why": "gone"}, "not hère\n")
    lines, _, body = response.encode().partition(b"\r\n\r\n")
    assert body == "not hère\n".encode()
    assert lines.split(b"\r\n")[0] == b"HTTP/1.1 404 Not Found"
    assert set(lines.split(b"\r\n")[1:]) == {
        b"X-Why: gone",
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Length: 10",
        b"Connection: close",
    }
    assert response.encode(with_body=False) == lines + b"\r\n\r\n"


def test_a_response_may_say_its_own_type_but_not_its_length() -> None:
    encoded = Response(200, [("content-type", "text/html"), ("content-length", "99")], "x").encode()
    assert b"content-type: text/html\r\n" in encoded
    assert b"charset" not in encoded
    assert b"99" not in encoded
    assert encoded.lower().count(b"content-length:") == 1


@pytest.mark.parametrize("name", ["Transfer-Encoding", "transfer-encoding"])
def test_a_body_is_not_announced_in_chunks_that_it_is_not_in(name: str) -> None:
    encoded = Response(200, {name: "chunked"}, b"x").encode()
    assert b"chunked" not in encoded
    assert encoded.endswith(b"\r\n\r\nx")
    assert b"Content-Length: 1\r\n" in encoded


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("body", [b"", b"text", None])
def test_statuses_without_a_body(status: int, body: bytes | None) -> None:
    encoded = Response(status, {}, body).encode()
    assert encoded.endswith(b"\r\n\r\n")
    assert (b"Content-Length" in encoded) == (status == 304)  # RFC 9110 §8.6


def test_a_response_without_a_body() -> None:
    assert Response(200, {}, None).encode() == Response(200).encode() == Response(200, None, None).encode()
    assert Response(200, {}, None).body == b""


@pytest.mark.parametrize("body", [b"x", bytearray(b"x"), memoryview(b"x"), "x"])
def test_bodies(body: Any) -> None:
    assert Response(200, {}, body).body == b"x"


@pytest.mark.parametrize("body", [5, 1.5, ["x"], {}, object()])
def test_what_is_no_body(body: Any) -> None:
    with pytest.raises(TypeError, match="body of a response"):
        Response(200, {}, body)


def test_several_headers_of_one_name() -> None:
    encoded = Response(200, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]).encode()
    assert b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n" in encoded


@pytest.mark.parametrize("status", [0, 99, 600, "200", 200.0, None, True])
def test_a_status_that_is_none(status: Any) -> None:
    with pytest.raises(ValueError, match="HTTP status"):
        Response(status)


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_an_interim_status_is_no_answer(status: int) -> None:
    with pytest.raises(ValueError, match=rf"HTTP status is {status}, which is interim: expected 200 to 599, or 101"):
        Response(status)
    assert Response(101).status == 101  # lets a request pass


def test_a_status_without_a_name() -> None:
    assert Response(299).reason == "Unknown"
    assert Response(HTTPStatus.IM_A_TEAPOT, body=b"x").encode().startswith(b"HTTP/1.1 418 ")
    assert repr(Response(404, {}, b"abc")) == "<Response 404 Not Found, 3 bytes>"


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\0"])
def test_a_header_cannot_smuggle_another(value: str) -> None:
    with pytest.raises(InvalidHeader):
        Response(200, {"X": value})


def test_what_process_request_may_return() -> None:
    assert as_response((200, {"X": "y"}, b"body")) == Response(200, {"X": "y"}, b"body")
    assert as_response((200, None, None)) == Response(200)
    response = Response(204)
    assert as_response(response) is response
    for wrong in (200, "text", (200,), (200, {}), [200, {}, b""], True):
        with pytest.raises(TypeError):
            as_response(wrong)


def test_a_response_from_the_head_that_was_received() -> None:
    response = response_of(b"HTTP/1.1 101 Whatever\r\nUpgrade: websocket\r\nX: a\r\nx: b")
    assert (response.status, response.body) == (101, b"")
    assert response.headers["upgrade"] == "websocket"
    assert response.headers.getall("X") == ["a", "b"]


def test_header_lines_on_the_wire() -> None:
    assert encode_headers([("A", "b"), ("C", "é")]) == "A: b\r\nC: é\r\n".encode()
    assert encode_headers(()) == b""
