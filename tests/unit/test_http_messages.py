"""fabric._http.messages: requests and responses as bytes, valid and not (RFC 6455 §4, RFC 9112)."""

from __future__ import annotations

import base64
import contextlib
import itertools
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric._http.messages import (
    MAX_HEADERS,
    Rejection,
    Request,
    Response,
    accept_key,
    as_response,
    check_response,
    check_upgrade,
    parse_request,
    parse_response,
    refusal,
)
from fabric.error import AuthenticationFailed, HandshakeFailed, InvalidHeader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fabric.headers import HeaderMap

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

FIELDS = {
    "Host": "example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def head(*, line: str = "GET /chat HTTP/1.1", more: tuple[str, ...] = (), **changes: str | None) -> bytes:
    """The head of a good request with some fields changed (`_` stands for `-`), or left out (None)."""
    fields = dict(FIELDS)
    for name, value in changes.items():
        name = name.replace("_", "-")
        fields.pop(name, None)
        if value is not None:
            fields[name] = value
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in fields.items()), *more]).encode("latin-1")


def judged(request: bytes) -> int | str:
    """The status that answers this request, or the key with which it is upgraded."""
    try:
        return check_upgrade(*parse_request(request))
    except Rejection as rejection:
        return rejection.response.status


@contextlib.contextmanager
def rejected(status: int, text: str = "") -> Iterator[Any]:
    with pytest.raises(Rejection) as caught:
        yield caught
    assert caught.value.response.status == status
    assert text in caught.value.response.body.decode()


# --- the request -------------------------------------------------------------------------------------------


def test_a_good_request() -> None:
    request, headers = parse_request(head(line="GET /a%20b/%C3%A9?x=1&y=&x=2 HTTP/1.1", Origin="http://here"))
    assert check_upgrade(request, headers) == KEY
    assert request.method == "GET"
    assert request.target == "/a%20b/%C3%A9?x=1&y=&x=2"
    assert request.path == "/a b/é"
    assert request.query == {"x": "2", "y": ""}
    assert headers["origin"] == request.headers["ORIGIN"] == "http://here"


@pytest.mark.parametrize(
    "fields",
    [
        {"Connection": "upgrade"},
        {"Connection": "UPGRADE"},
        {"Connection": "keep-alive, Upgrade"},  # Firefox
        {"Connection": "Upgrade,keep-alive"},
        {"Connection": " , keep-alive ,, upgrade , "},
        {"Upgrade": "WebSocket"},
        {"Upgrade": "WEBSOCKET"},
        {"Upgrade": "h2c, websocket"},
        {"Sec-WebSocket-Key": f"  {KEY}  "},
        {"Host": "[::1]:80"},
        {"Content-Length": "0"},
    ],
)
def test_variants_that_are_good(fields: dict[str, str]) -> None:
    changed = {name.replace("-", "_"): value for name, value in fields.items()}
    assert judged(head(**changed)) == KEY  # type: ignore[arg-type]


def test_list_headers_over_several_lines() -> None:
    assert judged(head(Connection="keep-alive", more=("Connection: Upgrade",))) == KEY
    assert judged(head(Connection=None, more=("connection: Upgrade", "CONNECTION: keep-alive"))) == KEY
    assert judged(head(Upgrade="h2c", more=("Upgrade: websocket",))) == KEY


def test_names_in_any_case_and_values_without_the_space() -> None:
    lines = ["GET / HTTP/1.1", *(f"{name.swapcase()}:{value}" for name, value in FIELDS.items())]
    assert judged("\r\n".join(lines).encode()) == KEY


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.2", "HTTP/1.9"])
def test_versions_of_http_that_will_do(version: str) -> None:
    assert judged(head(line=f"GET / {version}")) == KEY


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("", 400),
        ("GET", 400),
        ("GET /", 400),
        ("GET  / HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        (" GET / HTTP/1.1", 400),
        ("GET /\tx HTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 400),
        ("GET / HTTP/11", 400),
        ("GET / http/1.1", 400),
        ("GET / HTTP/1.1\n", 400),
        ("G(T / HTTP/1.1", 400),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/0.9", 505),
        ("GET / HTTP/1.0", 400),
        ("HEAD / HTTP/1.1", 400),
        ("POST / HTTP/1.1", 405),
        ("CONNECT example.com:80 HTTP/1.1", 405),
        ("get / HTTP/1.1", 405),
        ("PRI * HTTP/2.0", 405),
    ],
)
def test_request_lines_that_are_refused(line: str, status: int) -> None:
    assert judged(head(line=line)) == status


def test_what_a_405_says() -> None:
    with rejected(405) as caught:
        parse_request(head(line="DELETE / HTTP/1.1"))
    assert caught.value.response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "line",
    [
        "no colon",
        ": no name",
        "space before : colon",
        " folded: line",
        "\tfolded",
        "na(me: value",
        "ná: value",
        "X: \0",
        "X: \x0b",
        "X: a\nY: b",
        "X: a\rY: b",
        "X: \x7f",
    ],
)
def test_header_lines_that_are_refused(line: str) -> None:
    assert judged(head(more=(line,))) == 400


def test_values_may_hold_tabs_and_bytes_that_are_not_ascii() -> None:
    request, headers = parse_request(head(more=("X: a\tb", "Y: é")) + "\r\nZ: é".encode())
    assert check_upgrade(request, headers) == KEY
    assert headers["X"] == "a\tb"
    assert headers["Z"] == "é"
    assert headers["Y"].encode("utf-8", "surrogateescape") == b"\xe9"


def test_too_many_header_lines() -> None:
    few = tuple(f"X-{number}: y" for number in range(MAX_HEADERS - len(FIELDS)))
    assert judged(head(more=few)) == KEY
    assert judged(head(more=(*few, "X: y"))) == 431


@pytest.mark.parametrize("hosts", [(), ("a", "b"), ("a", "a")])
def test_exactly_one_host(hosts: tuple[str, ...]) -> None:
    assert judged(head(Host=None, more=tuple(f"Host: {host}" for host in hosts))) == 400


def test_http_1_0_needs_no_host_for_plain_http() -> None:
    request, _ = parse_request(b"GET /health HTTP/1.0")
    assert request.path == "/health"


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Length: 5",),
        ("Content-Length: 00001",),
        ("Content-Length: 0", "Content-Length: 5"),
        ("Content-Length: 0, 5",),
        ("Content-Length: x",),
        ("Transfer-Encoding: chunked",),
        ("Transfer-Encoding: identity",),
    ],
)
def test_a_request_with_a_body_is_refused(fields: tuple[str, ...]) -> None:
    with rejected(400, "body"):
        parse_request(head(more=fields))


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
    ],
)
def test_targets(target: str, path: str, query: dict[str, str]) -> None:
    request, _ = parse_request(head(line=f"GET {target} HTTP/1.1"))
    assert (request.target, request.path, request.query) == (target, path, query)
    repr(request)


def test_a_repr_does_not_tell_the_query() -> None:
    assert "secret" not in repr(Request(b"GET /x?token=secret HTTP/1.1"))


def test_a_request_is_taken_apart_anew_each_time() -> None:
    request, _ = parse_request(head())
    request.headers.add("X", "y")
    assert "X" not in request.headers


# --- the upgrade -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"Upgrade": None},
        {"Connection": None},
        {"Upgrade": "h2c"},
        {"Upgrade": "websocket2"},
        {"Connection": "keep-alive"},
        {"Connection": "upgraded"},
        {"Connection": '"Upgrade'},
        {"Sec_WebSocket_Version": None},
        *({"Sec_WebSocket_Version": version} for version in ("", "0", "7", "8", "12", "14", "013", "13, 8", "x")),
    ],
)
def test_what_is_answered_426(fields: dict[str, Any]) -> None:
    with rejected(426) as caught:
        check_upgrade(*parse_request(head(**fields)))
    assert caught.value.response.headers["Upgrade"] == "websocket"
    assert caught.value.response.headers["Sec-WebSocket-Version"] == "13"
    encoded = caught.value.response.encode()
    assert b"Connection: Upgrade, close\r\n" in encoded


def test_two_versions() -> None:
    assert judged(head(more=("Sec-WebSocket-Version: 13",))) == 426


@pytest.mark.parametrize(
    "key",
    [
        None,
        "",
        "x",
        KEY[:-1],
        KEY[:-2],
        KEY + "=",
        KEY.replace("=", "-"),
        "é" + KEY[1:],
        base64.b64encode(bytes(15)).decode(),
        base64.b64encode(bytes(17)).decode(),
        f"{KEY}, {KEY}",
        KEY[:8] + " " + KEY[8:],
    ],
)
def test_keys_that_are_refused(key: str | None) -> None:
    assert judged(head(Sec_WebSocket_Key=key)) == 400


def test_two_keys() -> None:
    assert judged(head(more=(f"Sec-WebSocket-Key: {KEY}",))) == 400


def test_the_example_of_the_rfc() -> None:
    assert accept_key(KEY) == ACCEPT


@given(st.binary(max_size=300))
def test_any_bytes_are_judged(data: bytes) -> None:
    judged(data)


@given(st.lists(st.sampled_from([b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"Host: x", b":", b",", b"\0", b" ", b"\xff"])))
def test_any_pieces_are_judged(pieces: list[bytes]) -> None:
    judged(b"".join(pieces))


# --- responses of a server ---------------------------------------------------------------------------------


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


def test_several_headers_of_one_name() -> None:
    encoded = Response(200, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]).encode()
    assert b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n" in encoded


@pytest.mark.parametrize("status", [0, 99, 600, "200", 200.0, None])
def test_a_status_that_is_none(status: Any) -> None:
    with pytest.raises(ValueError, match="HTTP status"):
        Response(status)


def test_a_status_without_a_name() -> None:
    assert Response(299).reason == "Unknown"
    assert Response(HTTPStatus.IM_A_TEAPOT, body=b"x").encode().startswith(b"HTTP/1.1 418 ")


@pytest.mark.parametrize("value", ["a\r\nb", "a\nb", "a\0"])
def test_a_header_cannot_smuggle_another(value: str) -> None:
    with pytest.raises(InvalidHeader):
        Response(200, {"X": value})


def test_what_process_request_may_return() -> None:
    assert as_response((200, {"X": "y"}, b"body")) == Response(200, {"X": "y"}, b"body")
    response = Response(204)
    assert as_response(response) is response
    for wrong in (200, "text", (200,), (200, {}), [200, {}, b""], True):
        with pytest.raises(TypeError):
            as_response(wrong)


# --- the response to a client ------------------------------------------------------------------------------

ANSWER = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")


def answered(*lines: str) -> tuple[int, HeaderMap]:
    return parse_response("\r\n".join(lines).encode())


@pytest.mark.parametrize(
    "lines",
    [
        (*ANSWER, f"Sec-WebSocket-Accept: {ACCEPT}"),
        ("HTTP/1.1 101 ", "upgrade: WebSocket", "connection: x, UPGRADE", f"sec-websocket-accept:{ACCEPT}"),
        ("HTTP/1.1 101", "Upgrade: websocket", "Connection: a", "Connection: upgrade",
         f"Sec-WebSocket-Accept:  {ACCEPT}  "),
    ],
)  # fmt: skip
def test_answers_that_are_good(lines: tuple[str, ...]) -> None:
    status, headers = answered(*lines)
    check_response(status, headers, KEY)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (("HTTP/1.1 200 OK",), "200 instead of 101"),
        (ANSWER, "does not belong to our key"),
        ((*ANSWER, "Sec-WebSocket-Accept: x"), "does not belong to our key"),
        ((*ANSWER, f"Sec-WebSocket-Accept: {ACCEPT.swapcase()}"), "does not belong to our key"),
        ((*ANSWER, *itertools.repeat(f"Sec-WebSocket-Accept: {ACCEPT}", 2)), "does not belong to our key"),
        ((ANSWER[0], ANSWER[1], f"Sec-WebSocket-Accept: {ACCEPT}"), "no upgrade"),
        ((ANSWER[0], ANSWER[2], f"Sec-WebSocket-Accept: {ACCEPT}"), "upgrades to 'nothing'"),
        ((ANSWER[0], "Upgrade: h2c", ANSWER[2], f"Sec-WebSocket-Accept: {ACCEPT}"), "upgrades to 'h2c'"),
    ],
)
def test_answers_that_are_refused(lines: tuple[str, ...], why: str) -> None:
    status, headers = answered(*lines)
    with pytest.raises(HandshakeFailed, match=why) as caught:
        check_response(status, headers, KEY)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SSH-2.0-OpenSSH",
        b"HTTP/1.1",
        b"HTTP/1.1 OK",
        b"HTTP/1.1 1010",
        b"HTTP/2 101",
        b"\x15\x03\x01",
        b"<p>",
    ],
)
def test_what_is_not_http(data: bytes) -> None:
    with pytest.raises(HandshakeFailed, match=r"does not speak HTTP/1\.1"):
        parse_response(data)


def test_a_malformed_response() -> None:
    with pytest.raises(HandshakeFailed, match="malformed response") as caught:
        parse_response(b"HTTP/1.1 101 Switching Protocols\r\nno colon")
    assert caught.value.status == 101


@pytest.mark.parametrize(("status", "name"), [(401, "WWW-Authenticate"), (403, None), (407, "Proxy-Authenticate")])
def test_refusals_for_want_of_credentials(status: int, name: str | None) -> None:
    _, headers = answered(f"HTTP/1.1 {status} No", *([f"{name}: Basic realm=x"] if name else []))
    error = refusal(status, headers, b"body")
    assert isinstance(error, AuthenticationFailed)
    assert (error.status, error.body, error.challenge) == (status, b"body", "Basic realm=x" if name else "")


@pytest.mark.parametrize(("status", "name"), [(401, "WWW-Authenticate"), (407, "Proxy-Authenticate")])
def test_a_refusal_tells_every_challenge(status: int, name: str) -> None:
    _, headers = answered(f"HTTP/1.1 {status} No", f"{name}: Negotiate", "X: y", f'{name.lower()}: Basic realm="x"')
    error = refusal(status, headers, b"")
    assert isinstance(error, AuthenticationFailed)
    assert error.challenge == 'Negotiate, Basic realm="x"'


@pytest.mark.parametrize("status", [100, 200, 301, 404, 503, 599, 999])
def test_other_refusals(status: int) -> None:
    _, headers = answered(f"HTTP/1.1 {status} Why")
    error = refusal(status, headers, b"body")
    assert type(error) is HandshakeFailed
    assert (error.status, error.body, error.headers) == (status, b"body", headers)
    assert str(status) in str(error)
