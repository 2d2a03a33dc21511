"""HTTP heads judged in plain Python, by regular expressions, and the comparison of `fabric_ext.http_head` with it.

Written to be read, not to be fast, and independent of the package but for the names of the faults.
"""

from __future__ import annotations

import binascii
import re

from fabric_ext.http_head import Fault, Head, RequestHead, ResponseHead

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 §5.6.2
VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]*"  # RFC 9110 §5.5
HEADER = re.compile(rb"(%b):(%b)" % (TOKEN, VALUE))  # and no obsolete folding: RFC 9112 §5.2
REQUEST_LINE = re.compile(rb"(%b) [\x21-\x7e\x80-\xff]+ HTTP/(\d)\.(\d)" % TOKEN)
STATUS_LINE = re.compile(rb"HTTP/1\.\d (\d{3})(?: %b)?" % VALUE)
ELEMENT = re.compile(rb'(?:[^",]|"(?:[^"\\]|\\.)*+")*+')  # RFC 9110 §5.6.1, §5.6.4

END = b"\r\n\r\n"
MAX_HEADERS = 128
MAX_METHOD = 32

Headers = list[tuple[bytes, bytes]]


def read_headers(lines: list[bytes]) -> tuple[Fault, Headers]:
    """The first fault of these header lines, and those that stand before it."""
    headers: Headers = []
    for line in lines:
        match = HEADER.fullmatch(line)
        if match is None:
            return Fault.BAD_HEADER, headers
        if len(headers) == MAX_HEADERS:
            return Fault.TOO_MANY_HEADERS, headers
        headers.append((match[1].lower(), match[2].strip(b" \t")))
    return Fault.NO_FAULT, headers


def values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for each, value in headers if each == name]


def has_token(headers: Headers, name: bytes, token: bytes) -> bool:
    """Is `token` in the list of all lines `name`? A list that is malformed holds nothing."""
    found = False
    for line in values(headers, name):
        at = 0
        while at <= len(line):
            match = ELEMENT.match(line, at)
            assert match is not None
            at = match.end() + 1
            if at <= len(line) and line[at - 1 : at] != b",":
                return False
            found = found or match[0].strip(b" \t").lower() == token
    return found


def read_request(head: bytes) -> tuple[Fault, Headers]:
    """The fault of the head of a request, without its empty line, and its headers."""
    first, *lines = head.split(b"\r\n")
    line = REQUEST_LINE.fullmatch(first)
    if line is None or len(line[1]) > MAX_METHOD:
        return Fault.BAD_START_LINE, []
    if line[1] not in (b"GET", b"HEAD"):
        return Fault.BAD_METHOD, []
    if line[2] != b"1":
        return Fault.BAD_VERSION, []
    fault, headers = read_headers(lines)
    if fault:
        return fault, headers
    if line[3] != b"0" and len(values(headers, b"host")) != 1:  # RFC 9112 §3.2
        return Fault.BAD_HOST, headers
    if values(headers, b"transfer-encoding") or any(n.strip(b"0") for n in values(headers, b"content-length")):
        return Fault.HAS_BODY, headers
    return Fault.NO_FAULT, headers


def check_upgrade(head: bytes, headers: Headers) -> tuple[Fault, str | None]:
    """Is a request without fault a valid opening handshake (RFC 6455 §4.2.1)? Its key, if it is."""
    if not has_token(headers, b"upgrade", b"websocket") or not has_token(headers, b"connection", b"upgrade"):
        return Fault.NO_UPGRADE, None
    method, _, version = head.partition(b"\r\n")[0].split(b" ")
    if version == b"HTTP/1.0" or method != b"GET":
        return Fault.BAD_UPGRADE_REQUEST, None
    if values(headers, b"sec-websocket-version") != [b"13"]:
        return Fault.BAD_WEBSOCKET_VERSION, None
    keys = values(headers, b"sec-websocket-key")
    if len(keys) != 1 or not is_key(keys[0]):
        return Fault.BAD_KEY, None
    return Fault.NO_FAULT, keys[0].decode("ascii")


def is_key(key: bytes) -> bool:
    try:
        return len(binascii.a2b_base64(key, strict_mode=True)) == 16
    except binascii.Error:
        return False


def read_response(head: bytes) -> tuple[Fault, int, Headers]:
    """The fault of the head of a response, its status and its headers."""
    first, *lines = head.split(b"\r\n")
    line = STATUS_LINE.fullmatch(first)
    if line is None:
        return Fault.BAD_START_LINE, 0, []
    fault, headers = read_headers(lines)
    return fault, int(line[1]), headers


# The comparison


def in_pieces(head: Head, data: bytes, cuts: list[int]) -> int:
    """Feed `data` up to each of `cuts` and then whole; the result of the last call, or of the first fault."""
    for cut in [*cuts, len(data)]:
        end = head.feed(data[:cut])
        if end or head.fault:
            return end
    return 0


def check_request(data: bytes) -> None:
    """The head of a request is what `read_request` says: whole, in every two pieces, and byte by byte."""
    data += END
    before = 0
    while data.startswith(b"\r\n", before):
        before += 2  # empty lines
    first = data[before:].partition(END)[0]
    whole = RequestHead()
    end = whole.feed(data)
    if before == len(data):
        assert (end, whole.fault, whole.data) == (0, 0, None)
    else:
        fault, headers = read_request(first)
        assert Fault(whole.fault) == fault
        assert end == (0 if fault else before + len(first) + 4)
    if end:
        assert whole.data == first
        for name in {name.decode("ascii") for name, _ in headers}:
            lines = [value.decode("utf-8", "surrogateescape") for value in values(headers, name.encode())]
            assert whole.get_all(name.swapcase()) == lines
            for element in ("upgrade", "websocket", "a"):
                assert whole.has_token(name, element) == has_token(headers, name.encode(), element.encode())
        assert (Fault(whole.check_upgrade()), whole.key) == check_upgrade(first, headers)
    check_pieces(RequestHead, data, end, whole)


def check_response(data: bytes) -> None:
    """The same for a response."""
    data += END
    whole = ResponseHead()
    end = whole.feed(data)
    fault, status, _ = read_response(data.partition(END)[0])
    assert (Fault(whole.fault), whole.status) == (fault, status)
    check_pieces(ResponseHead, data, end, whole)


def check_pieces(kind: type[Head], data: bytes, end: int, whole: Head) -> None:
    for cuts in ([cut] for cut in range(len(data))), [list(range(len(data)))]:
        for cut in cuts:
            head = kind()
            assert in_pieces(head, data, cut) == end
            assert (head.fault, head.data, head.count) == (whole.fault, whole.data, whole.count)
