"""fabric_ext.http_head: heads of requests and responses, whole, in pieces, and against a reference in plain Python."""

from __future__ import annotations

import base64
import copy
import itertools
import pickle
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_ext.http_head import MAX_HEADERS, Fault, Head, RequestHead, ResponseHead
from support import http_reference as reference
from support.http_reference import END, check_request, check_response, in_pieces

KEY = "dGhlIHNhbXBsZSBub25jZQ=="

FIELDS = {
    "Host": "example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def request(*, line: str = "GET /chat HTTP/1.1", more: tuple[str, ...] = (), **changes: str | None) -> bytes:
    """The head of a good request with some fields changed (`_` stands for `-`), or left out (None)."""
    fields = dict(FIELDS)
    for name, value in changes.items():
        name = name.replace("_", "-")
        fields.pop(name, None)
        if value is not None:
            fields[name] = value
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in fields.items()), *more]).encode("latin-1")


def read(data: bytes) -> RequestHead:
    head = RequestHead()
    head.feed(data + END)
    return head


def judged(data: bytes) -> Fault | str:
    """The first fault of this request as an opening handshake, or its key."""
    head = read(data)
    return Fault(head.fault or head.check_upgrade()) or head.key


# --- requests ----------------------------------------------------------------------------------------------


def test_a_good_request() -> None:
    head = RequestHead()
    data = request(Origin="http://here")
    assert (head.data, head.fault, head.key, head.wrong) == (None, 0, None, None)
    assert head.feed(data + END + b"rest") == len(data) + 4
    assert head.data == data
    assert not head.is_head
    assert head.count == len(FIELDS) + 1
    assert head.check_upgrade() == Fault.NO_FAULT
    assert head.key == KEY
    assert head.get_all("origin") == head.get_all("ORIGIN") == ["http://here"]
    assert head.has("Origin")
    assert not head.has("Origi")
    assert not head.has("Origin:")
    assert head.get_all("") == head.get_all("é") == []


@pytest.mark.parametrize(
    "fields",
    [
        {"Connection": "upgrade"},
        {"Connection": "UPGRADE"},
        {"Connection": "keep-alive, Upgrade"},  # Firefox
        {"Connection": "Upgrade,keep-alive"},
        {"Connection": " , keep-alive ,, upgrade , "},
        {"Connection": 'x="a, \\" b", upgrade'},
        {"Upgrade": "WebSocket"},
        {"Upgrade": "WEBSOCKET"},
        {"Upgrade": "h2c, websocket"},
        {"Sec_WebSocket_Key": f"  {KEY}\t "},
        {"Host": "[::1]:80"},
        {"Host": "[fe80::1%25eth0]:80"},
        {"Host": ""},
        {"Content_Length": "0"},
        {"Content_Length": "000"},
    ],
)
def test_variants_that_are_good(fields: dict[str, Any]) -> None:
    assert judged(request(**fields)) == KEY


def test_list_headers_over_several_lines() -> None:
    assert judged(request(Connection="keep-alive", more=("Connection: Upgrade",))) == KEY
    assert judged(request(Connection=None, more=("connection: Upgrade", "CONNECTION: keep-alive"))) == KEY
    assert judged(request(Upgrade="h2c", more=("Upgrade: websocket",))) == KEY
    head = read(request(more=("X: a, b", "y: c", "x:  d ")))
    assert head.get_all("X") == ["a, b", "d"]


def test_names_in_any_case_and_values_without_the_space() -> None:
    lines = ["GET / HTTP/1.1", *(f"{name.swapcase()}:{value}" for name, value in FIELDS.items())]
    assert judged("\r\n".join(lines).encode()) == KEY


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.2", "HTTP/1.9"])
def test_versions_of_http_that_will_do(version: str) -> None:
    assert judged(request(line=f"GET / {version}")) == KEY


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("GET", Fault.BAD_START_LINE),
        ("GET /", Fault.BAD_START_LINE),
        ("GET  / HTTP/1.1", Fault.BAD_START_LINE),
        ("GET / HTTP/1.1 ", Fault.BAD_START_LINE),
        (" GET / HTTP/1.1", Fault.BAD_START_LINE),
        ("GET /\tx HTTP/1.1", Fault.BAD_START_LINE),
        ("GET /a b HTTP/1.1", Fault.BAD_START_LINE),
        ("GET / HTTP/11", Fault.BAD_START_LINE),
        ("GET / http/1.1", Fault.BAD_START_LINE),
        ("GET / HTTP/1.1\n", Fault.BAD_START_LINE),
        ("GET / HTTP/1.1\r", Fault.BAD_START_LINE),
        ("G(T / HTTP/1.1", Fault.BAD_START_LINE),
        ("M" * 33 + " / HTTP/1.1", Fault.BAD_START_LINE),
        ("M" * 32 + " / HTTP/1.1", Fault.BAD_METHOD),
        ("GET / HTTP/2.0", Fault.BAD_VERSION),
        ("GET / HTTP/0.9", Fault.BAD_VERSION),
        ("GET / HTTP/1.0", Fault.BAD_UPGRADE_REQUEST),
        ("HEAD / HTTP/1.1", Fault.BAD_UPGRADE_REQUEST),
        ("POST / HTTP/1.1", Fault.BAD_METHOD),
        ("CONNECT example.com:80 HTTP/1.1", Fault.BAD_METHOD),
        ("get / HTTP/1.1", Fault.BAD_METHOD),
        ("PRI * HTTP/2.0", Fault.BAD_METHOD),
    ],
)
def test_request_lines_that_are_refused(line: str, fault: Fault) -> None:
    assert judged(request(line=line)) == fault


def test_the_method_that_is_wrong() -> None:
    assert read(request(line="DELETE / HTTP/1.1")).wrong == b"DELETE"
    assert read(request(line="HEAD / HTTP/1.1")).is_head


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("no colon", b"no colon"),
        (": no name", b""),
        ("space before : colon", b"space before "),
        (" folded: line", b" folded"),
        ("\tfolded", b"\tfolded"),
        ("na(me: value", b"na(me"),
        ("ná: value", b"n\xe1"),
        ("X: \0", b"X"),
        ("X: \x0b", b"X"),
        ("X: a\nY: b", b"X"),
        ("X: a\rY: b", b"X"),
        ("X: \x7f", b"X"),
        ("x" * 100, b"x" * 60),
    ],
)
def test_header_lines_that_are_refused(line: str, wrong: bytes) -> None:
    head = read(request(more=(line,)))
    assert (head.fault, head.wrong) == (Fault.BAD_HEADER, wrong)


def test_values_may_hold_tabs_and_bytes_that_are_not_ascii() -> None:
    head = read(request(more=("X: a\tb", "Y: é")) + "\r\nZ: é".encode())
    assert head.check_upgrade() == Fault.NO_FAULT
    assert head.get_all("X") == ["a\tb"]
    assert head.get_all("Z") == ["é"]
    assert head.get_all("Y")[0].encode("utf-8", "surrogateescape") == b"\xe9"


def test_too_many_header_lines() -> None:
    few = tuple(f"X-{number}: y" for number in range(MAX_HEADERS - len(FIELDS)))
    assert judged(request(more=few)) == KEY
    assert judged(request(more=(*few, "X: y"))) == Fault.TOO_MANY_HEADERS


@pytest.mark.parametrize("hosts", [(), ("a", "b"), ("a", "a")])
def test_exactly_one_host(hosts: tuple[str, ...]) -> None:
    assert judged(request(Host=None, more=tuple(f"Host: {host}" for host in hosts))) == Fault.BAD_HOST
    assert read(b"GET /health HTTP/1.0").fault == Fault.NO_FAULT


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
    assert judged(request(more=fields)) == Fault.HAS_BODY


# --- the upgrade -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"Upgrade": None},
        {"Connection": None},
        {"Upgrade": "h2c"},
        {"Upgrade": "websocket2"},
        {"Upgrade": "WEBSOC\xe2\x84\xaaET"},  # the sign for Kelvin, of which the lower case is k
        {"Connection": "keep-alive"},
        {"Connection": "upgraded"},
        {"Connection": '"Upgrade'},
        {"Connection": '"Upgrade"'},
        {"Connection": 'upgrade, "'},
        {"Connection": 'upgrade, "\\'},
    ],
)
def test_no_upgrade(fields: dict[str, Any]) -> None:
    assert judged(request(**fields)) == Fault.NO_UPGRADE


@pytest.mark.parametrize("version", [None, "", "0", "7", "8", "12", "14", "013", "13, 8", "x"])
def test_versions_of_the_protocol_that_are_refused(version: str | None) -> None:
    assert judged(request(Sec_WebSocket_Version=version)) == Fault.BAD_WEBSOCKET_VERSION


def test_two_versions() -> None:
    assert judged(request(more=("Sec-WebSocket-Version: 13",))) == Fault.BAD_WEBSOCKET_VERSION


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
        base64.b64encode(bytes(18)).decode(),
        f"{KEY}, {KEY}",
        KEY[:8] + " " + KEY[8:],
    ],
)
def test_keys_that_are_refused(key: str | None) -> None:
    assert judged(request(Sec_WebSocket_Key=key)) == Fault.BAD_KEY


def test_two_keys() -> None:
    assert judged(request(more=(f"Sec-WebSocket-Key: {KEY}",))) == Fault.BAD_KEY


# --- responses ---------------------------------------------------------------------------------------------

SWITCHING = "HTTP/1.1 101 Switching Protocols"


def answered(*lines: str) -> ResponseHead:
    head = ResponseHead()
    head.feed("\r\n".join(lines).encode() + END)
    return head


@pytest.mark.parametrize("line", [SWITCHING, "HTTP/1.1 101 ", "HTTP/1.1 101", "HTTP/1.0 101 a\tb é"])
def test_a_response(line: str) -> None:
    head = answered(line, "upgrade: WebSocket", "connection: x, UPGRADE", "X:  y  ")
    assert (head.fault, head.status) == (Fault.NO_FAULT, 101)
    assert head.has_token("Upgrade", "websocket")
    assert head.has_token("CONNECTION", "Upgrade")
    assert not head.has_token("Connection", "y")
    assert not head.has_token("Missing", "y")
    assert head.get_all("X") == ["y"]


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH",
        b"HTTP/1.1",
        b"HTTP/1.1 OK",
        b"HTTP/1.1 1010",
        b"HTTP/1.1  101",
        b"HTTP/1.10 101",
        b"HTTP/2 101",
        b"HTTP/1.1 101 a\nb",
        b"HTTP/1.1 101 \0",
        b"\x15\x03\x01",
        b"<p>",
    ],
)
def test_what_is_no_response(data: bytes) -> None:
    head = ResponseHead()
    assert head.feed(data + END) == 0
    assert (head.fault, head.status) == (Fault.BAD_START_LINE, 0)
    assert head.wrong == data.partition(b"\n")[0]


def test_a_malformed_response() -> None:
    head = answered(SWITCHING, "no colon")
    assert (head.fault, head.status, head.wrong) == (Fault.BAD_HEADER, 101, b"no colon")


# --- in pieces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [b"", b"\r\n", b"\r\n\r\n\r\n"])
def test_a_head_that_comes_byte_by_byte(before: bytes) -> None:
    data = before + request(more=("X: a", "Y:", "Z: \t ")) + END
    head = RequestHead()
    for size in range(len(data)):
        assert (head.feed(data[:size]), head.fault, head.data) == (0, 0, None)
    assert head.feed(data + b"r") == len(data)
    assert head.data == data[len(before) : -4]
    assert head.check_upgrade() == Fault.NO_FAULT
    assert (head.get_all("X"), head.get_all("Y"), head.get_all("Z")) == (["a"], [""], [""])
    assert head.feed(data + b"rest") == 0  # it is read


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00",  # the hello of TLS
        b"\n",
        b"\r\n\n",
        b"\rG",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\rH",
        b"GET / HTTP/1.1\r\n\rH",
        b"GET / HTTP/1.1\r\nHost: x\n",
        b"GET /\r",
        b"GET / X",
        b"GET / HTTP/x",
        b"GET / HTTP/1.1\r\n ",
        b"GET / HTTP/1.1\r\nHost ",
        b"GET / HTTP/1.1\r\nHost: \0",
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"\r\n\r\n\0\r\nQUIT\n",  # the PROXY protocol, version 2
        b"*1\r\n$4\r\nPING\r\n",
        b"EHLO example.com\r\n",
        b"x" * 33,
    ],
)
def test_what_cannot_become_a_request_is_told_at_once(data: bytes) -> None:
    head = RequestHead()
    assert in_pieces(head, data, [*range(len(data))]) == 0
    assert head.fault in (Fault.BAD_START_LINE, Fault.BAD_HEADER)
    assert head.feed(data + END) == 0  # and for good


def test_a_shorter_buffer_than_before_is_not_read() -> None:
    head = RequestHead()
    data = request()
    assert head.feed(data) == 0
    assert head.feed(b"GET") == head.feed(b"") == 0
    assert head.feed(data + END) == len(data) + 4


# --- against the reference ---------------------------------------------------------------------------------

NAMES = [*FIELDS, "Origin", "Content-Length", "Transfer-Encoding", "Sec-WebSocket-Protocol", "X", "Hos", "Hostt", ""]
VALUES = [
    *FIELDS.values(), "keep-alive, Upgrade", "0", "00", "5", "h2c", "upgrade", '"a, upgrade", b', '"', "\\", ",", "13 ",
    "", " ", "\t", "é", "\0", "\n", "\r", "\x7f", KEY[:22], KEY[:21] + "R==", KEY[:21] + "*==", "a" * 24,
]  # fmt: skip
LINES = [
    "GET / HTTP/1.1", "GET / HTTP/1.0", "HEAD /x?y HTTP/1.1", "POST / HTTP/1.1", "GET /é HTTP/1.7", "GET / HTTP/2.0",
    "GET  HTTP/1.1", "", "GET / HTTP/1.1 ", "\tGET", "HTTP/1.1 101 OK", "HTTP/1.1 200", "HTTP/1.1 20", "HTTP/1.1 200é",
]  # fmt: skip

words = st.sampled_from(VALUES)
header_lines = st.tuples(
    st.sampled_from(NAMES) | st.text(max_size=3),
    st.sampled_from([":", ": ", ":\t ", " : ", ""]),
    st.lists(words | st.text(max_size=3), max_size=3).map("".join),
).map("".join)
good_lines = st.permutations([f"{name}: {value}" for name, value in FIELDS.items()])
heads = st.builds(
    lambda first, good, more, at: "\r\n".join([first, *good[:at], *more, *good[at:]]).encode("utf-8", "replace"),
    st.sampled_from(LINES) | st.just(LINES[0]),
    good_lines | st.just([]),
    st.lists(header_lines, max_size=4),
    st.integers(0, 5),
)
pieces = st.lists(
    st.sampled_from([b"GET ", b"/", b" HTTP/1.1", b"\r\n", b"Host: x", b":", b",", b"\0", b" ", b"\xff", b"\n", b"\r"])
).map(b"".join)
anything = heads | pieces | st.binary(max_size=300)


@given(anything)
def test_requests_as_the_reference_reads_them(data: bytes) -> None:
    check_request(data)


@given(anything)
def test_responses_as_the_reference_reads_them(data: bytes) -> None:
    check_response(data)


def test_good_requests_with_one_byte_changed(seed: int) -> None:
    """What no list of words has thought of: every byte of a request replaced by some others."""
    random.seed(seed)
    good = request(line="GET /a?b HTTP/1.1", Connection="keep-alive, Upgrade", more=("Origin: http://x",))
    for at in range(len(good)):
        for byte in random.sample(range(256), 4):
            data = good[:at] + bytes([byte]) + good[at + 1 :]
            fault, headers = reference.read_request(data.partition(END)[0])
            head = read(data)
            assert Fault(head.fault) == fault, data
            if not fault:
                assert (Fault(head.check_upgrade()), head.key) == reference.check_upgrade(data, headers), data


# --- what Python can do to it ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RequestHead, ResponseHead])
def test_an_empty_head(kind: type[Head]) -> None:
    head = kind()
    assert (head.get_all("x"), head.has("x"), head.has_token("x", "y"), head.count) == ([], False, False, 0)
    if isinstance(head, RequestHead):
        assert head.check_upgrade() == Fault.NO_UPGRADE
    for wrong in (None, "text", bytearray(b"GET"), 3):
        with pytest.raises(TypeError):
            head.feed(wrong)  # type: ignore[arg-type]
    for wrong in (None, b"x", 3):
        with pytest.raises(TypeError):
            head.get_all(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            head.has_token(wrong, wrong)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        head.has("\udc80")


@pytest.mark.parametrize("kind", [Head, RequestHead, ResponseHead])
def test_a_head_is_neither_copied_nor_pickled(kind: type[Head]) -> None:
    for function in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            function(kind())


def test_a_head_of_no_kind() -> None:
    with pytest.raises(NotImplementedError):
        Head().feed(b"GET")


def test_a_long_line_that_trickles() -> None:
    """It is looked at again with each piece, but what is read of other lines is not."""
    lines = b"GET / HTTP/1.1\r\n" + b"".join(b"X: %b\r\n" % (b"y" * 1000) for _ in range(100))
    head = RequestHead()
    for size in itertools.chain(range(0, len(lines), 7), [len(lines)]):
        assert head.feed(lines[:size]) == head.fault == 0
    assert head.count == 100
