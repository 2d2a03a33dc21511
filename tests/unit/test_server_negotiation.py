"""fabric._server.negotiation: what a server takes and agrees to in an opening handshake, without a socket."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fabric._handshake.rules import Rejection, check_upgrade
from fabric._server.negotiation import Negotiation
from fabric.config import ServerConfig
from fabric.headers import HeaderMap
from fabric_ext.http_head import RequestHead
from support.raw_peer import request

DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"


def head_of(*lines: str) -> RequestHead:
    head = RequestHead()
    head.feed(request(*lines))
    check_upgrade(head)
    return head


def negotiation(**options: Any) -> Negotiation:
    return Negotiation(ServerConfig("127.0.0.1:0", **options))


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((), 403),
        (("Origin: https://a.example",), None),
        (("Origin: https://b.example",), None),
        (("Origin: https://b.example.org",), 403),  # a pattern fits as a whole
        (("Origin: https://a.example", "Origin: https://a.example"), 403),
    ],
)
def test_origins(lines: tuple[str, ...], status: int | None) -> None:
    rules = negotiation(origins=["https://a.example", re.compile(r"https://[bc]\.example")])
    if status is None:
        rules.check(head_of(*lines))
        return
    with pytest.raises(Rejection) as refused:
        rules.check(head_of(*lines))
    assert refused.value.response.status == status


def test_required_headers() -> None:
    rules = negotiation(required_headers=["X-Key", "Authorization"])
    for lines, status in (((), 400), (("X-Key: 1",), 401)):
        with pytest.raises(Rejection) as refused:
            rules.check(head_of(*lines))
        assert refused.value.response.status == status
    rules.check(head_of("X-Key: 1", "Authorization: Bearer x"))  # raises nothing


def test_what_is_agreed_on() -> None:
    rules = negotiation(subprotocols=["chat", "mqtt"], headers={"X-Own": "1"})
    head = head_of("Sec-WebSocket-Protocol: mqtt, chat", DEFLATE)
    answer, subprotocol, agreement = rules.agree(head, None, with_subprotocol=True)
    assert subprotocol == "mqtt"  # the client prefers it
    assert agreement is not None
    assert answer.startswith(b"HTTP/1.1 101 ")
    lines = answer.split(b"\r\n")
    assert b"Sec-WebSocket-Protocol: mqtt" in lines
    assert f"Sec-WebSocket-Extensions: {agreement}".encode() in lines
    assert b"X-Own: 1" in lines


def test_what_the_application_adds() -> None:
    rules = negotiation(compression=None)
    more = HeaderMap({"X-More": "2", "Content-Length": "3", "Sec-WebSocket-Protocol": "mqtt"})
    head = head_of("Sec-WebSocket-Protocol: chat, mqtt", DEFLATE)
    answer, subprotocol, agreement = rules.agree(head, more, with_subprotocol=True)
    assert (subprotocol, agreement) == ("mqtt", None)
    assert b"\r\nX-More: 2\r\n" in answer
    assert b"Content-Length" not in answer
    assert b"Extensions" not in answer
    with pytest.raises(ValueError, match="chose the subprotocol 'mqtt', which was not offered"):
        rules.agree(head_of("Sec-WebSocket-Protocol: chat"), more, with_subprotocol=True)


@pytest.mark.parametrize(
    ("lines", "logged"),
    [
        ((), "no subprotocol in common"),
        (("Sec-WebSocket-Protocol: secret",), "no subprotocol in common"),
        (("Sec-WebSocket-Protocol: se cret",), "malformed Sec-WebSocket-Protocol"),
    ],
)
def test_a_subprotocol_is_required(lines: tuple[str, ...], logged: str) -> None:
    rules = negotiation(subprotocols=["chat"], require_subprotocol=True)
    with pytest.raises(Rejection) as refused:
        rules.agree(head_of(*lines), None, with_subprotocol=True)
    assert refused.value.response.status == 400
    assert refused.value.logged == logged
    _, subprotocol, _ = rules.agree(head_of(*lines), None, with_subprotocol=False)
    assert subprotocol is None


def test_a_malformed_offer_of_extensions() -> None:
    with pytest.raises(Rejection) as refused:
        negotiation().agree(head_of("Sec-WebSocket-Extensions: ;"), None, with_subprotocol=False)
    assert refused.value.response.status == 400
