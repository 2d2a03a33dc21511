"""fabric._handshake.rules: what an opening handshake is refused with, and accepted with (RFC 6455 §4)."""

from __future__ import annotations

import itertools

import pytest

from fabric._handshake.rules import (
    Rejection,
    accept_key,
    check_response,
    check_upgrade,
    malformed_response,
    refusal,
    rejection_of,
    switching_protocols,
    unavailable,
)
from fabric.error import AuthenticationFailed, HandshakeFailed
from fabric.headers import HeaderMap
from fabric_ext.http_head import Fault, RequestHead, ResponseHead
from support.raw_peer import ACCEPT, KEY, request

# --- the server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (b"GET /\r\n\r\n", 400, "malformed request line"),
        (request(line="DELETE / HTTP/1.1"), 405, "method DELETE is not allowed, use GET"),
        (request(line="M{}THOD".replace("{}", "'") + " / HTTP/1.1"), 405, "method M'THOD is not allowed"),
        (request(line="GET / HTTP/2.0"), 505, "HTTP/1.1 is spoken here"),
        (request("{0}: é\0"), 400, "invalid header '{0}'"),
        (request("na me: secret"), 400, "invalid header 'na me': not a header line"),
        (request(*(f"X-{number}: y" for number in range(128))), 431, "more than 128 header lines"),
        (request(Host=None), 400, "exactly one Host header"),
        (request("Content-Length: 3"), 400, "a request with a body"),
    ],
)
def test_a_request_with_a_fault(data: bytes, status: int, text: str) -> None:
    head = RequestHead()
    head.feed(data)
    response = rejection_of(head.fault, head.wrong).response
    assert response.status == status
    assert text in response.body.decode()
    assert "secret" not in response.body.decode()
    assert ("Allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (request(Upgrade=None), 426, "an upgrade to websocket is required"),
        (request(line="GET / HTTP/1.0"), 400, "a GET of HTTP/1.1 or later"),
        (request(Sec_WebSocket_Version="8"), 426, "only version 13"),
        (request(Sec_WebSocket_Key="x"), 400, "16 bytes in base64"),
    ],
)
def test_a_request_that_is_no_upgrade(data: bytes, status: int, text: str) -> None:
    head = RequestHead()
    assert head.feed(data)
    with pytest.raises(Rejection, match=text) as caught:
        check_upgrade(head)
    response = caught.value.response
    assert response.status == status
    if status == 426:
        assert response.headers["Upgrade"] == "websocket"
        assert response.headers["Sec-WebSocket-Version"] == "13"
        assert b"Connection: Upgrade, close\r\n" in response.encode()


def test_every_fault_has_its_words() -> None:
    for fault in Fault:
        if fault != Fault.NO_FAULT:
            assert 400 <= rejection_of(fault, b"what").response.status < 600


def test_a_valid_opening_handshake() -> None:
    head = RequestHead()
    head.feed(request())
    check_upgrade(head)
    assert head.key == KEY


def test_a_server_that_is_full() -> None:
    response = unavailable("full").response
    assert (response.status, response.body) == (503, b"full\n")
    assert int(response.headers["Retry-After"]) > 0


def test_the_example_of_the_rfc() -> None:
    assert accept_key(KEY) == ACCEPT
    assert switching_protocols(KEY, b"", None, None).split(b"\r\n") == [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
        b"",
        b"",
    ]


def test_the_acceptance_with_all_that_it_may_have() -> None:
    lines = switching_protocols(KEY, b"X: y\r\nX: z\r\n", "chat", "permessage-deflate").split(b"\r\n")
    assert lines[4:] == [
        b"X: y",
        b"X: z",
        b"Sec-WebSocket-Protocol: chat",
        b"Sec-WebSocket-Extensions: permessage-deflate",
        b"",
        b"",
    ]


# --- the client --------------------------------------------------------------------------------------------

ANSWER = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")


def answered(*lines: str) -> ResponseHead:
    head = ResponseHead()
    head.feed("\r\n".join([*lines, "", ""]).encode())
    return head


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
    check_response(answered(*lines), KEY)  # raises nothing


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
    head = answered(*lines)
    with pytest.raises(HandshakeFailed, match=why) as caught:
        check_response(head, KEY)
    assert caught.value.status == head.status
    assert caught.value.headers is not None
    assert len(caught.value.headers) == len(lines) - 1


@pytest.mark.parametrize(
    ("lines", "status", "why"),
    [
        (("SSH-2.0-OpenSSH",), None, r"the proxy does not speak HTTP/1\.1: its answer begins with b'SSH-2\.0-OpenSSH'"),
        ((ANSWER[0], "no colon"), 101, "malformed response of the proxy: invalid header 'no colon'"),
        ((ANSWER[0], *["X: y"] * 129), 101, "the answer of the proxy has more than 128 header lines"),
    ],
)
def test_answers_that_are_malformed(lines: tuple[str, ...], status: int | None, why: str) -> None:
    with pytest.raises(HandshakeFailed, match=why) as caught:
        raise malformed_response(answered(*lines), "the proxy")
    assert caught.value.status == status


@pytest.mark.parametrize(("status", "name"), [(401, "WWW-Authenticate"), (403, None), (407, "Proxy-Authenticate")])
def test_refusals_for_want_of_credentials(status: int, name: str | None) -> None:
    error = refusal(status, HeaderMap([(name, "Basic realm=x")] if name else []), b"body")
    assert isinstance(error, AuthenticationFailed)
    assert (error.status, error.body, error.challenge) == (status, b"body", "Basic realm=x" if name else "")


@pytest.mark.parametrize(("status", "name"), [(401, "WWW-Authenticate"), (407, "Proxy-Authenticate")])
def test_a_refusal_tells_every_challenge(status: int, name: str) -> None:
    headers = HeaderMap([(name, "Negotiate"), ("X", "y"), (name.lower(), 'Basic realm="x"')])
    error = refusal(status, headers, b"")
    assert isinstance(error, AuthenticationFailed)
    assert error.challenge == 'Negotiate, Basic realm="x"'


@pytest.mark.parametrize("status", [100, 200, 301, 404, 503, 599, 999])
def test_other_refusals(status: int) -> None:
    headers = HeaderMap(X="y")
    error = refusal(status, headers, b"body")
    assert type(error) is HandshakeFailed
    assert (error.status, error.body, error.headers) == (status, b"body", headers)
    assert str(status) in str(error)
