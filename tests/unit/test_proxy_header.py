"""The PROXY protocol's header: each form of both versions, in every cut, and everything that is none."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric._handshake.proxy_header import MAX_HEADER, BadProxyHeader, ProxyHeader, parse_proxy_header

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
TCP4 = bytes([192, 0, 2, 1, 198, 51, 100, 1]) + (56324).to_bytes(2, "big") + (443).to_bytes(2, "big")
TCP6 = ipaddress.ip_address("2001:db8::1").packed + ipaddress.ip_address("::1").packed + TCP4[8:]
SOURCE_4, SOURCE_6 = ("192.0.2.1", 56324), ("2001:db8::1", 56324, 0, 0)


def header(rest: bytes, *, command: int = 0x21, family: int = 0x11, length: int | None = None) -> bytes:
    """One of version 2."""
    size = len(rest) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2, "big") + rest


GOOD: dict[bytes, object] = {
    b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n": SOURCE_4,
    b"PROXY TCP6 2001:db8::1 ::1 56324 443\r\n": SOURCE_6,
    b"PROXY TCP6 2001:0db8:0000:0000:0000:0000:0000:0001 ::1 56324 0\r\n": SOURCE_6,
    b"PROXY TCP6 " + b" ".join([b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] * 2) + b" 65535 65535\r\n": (
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        65535,
        0,
        0,
    ),  # the longest that there is
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n": None,  # 107 bytes
    header(TCP4): SOURCE_4,
    header(TCP6, family=0x21): SOURCE_6,
    header(TCP4 + b"\x01\x00\x02h2" + b"\x04\x00\x00"): SOURCE_4,  # ALPN, and nothing
    header(TCP4 + b"\x04" + (4000).to_bytes(2, "big") + bytes(4000)): SOURCE_4,
    header(b"", family=0x00): None,
    header(b"\x03\x00\x04abcd", family=0x00): None,
    header(bytes(216), family=0x31): None,
    header(b"", command=0x20, family=0x00): None,  # a health check of the proxy's own
    header(TCP4, command=0x20): None,
    header(b"\xff" * 50, command=0x20, family=0xFF): None,
}

BAD = {
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "lower case": b"proxy TCP4 192.0.2.1 198.51.100.1 56324 443\r\n",
    "two spaces": b"PROXY  TCP4 192.0.2.1 198.51.100.1 56324 443\r\n",
    "space at the end": b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 \r\n",
    "no family": b"PROXY \r\n",
    "other family": b"PROXY UDP4 192.0.2.1 198.51.100.1 56324 443\r\n",
    "word missing": b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
    "word too many": b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 1\r\n",
    "no address": b"PROXY TCP4 192.0.2 198.51.100.1 56324 443\r\n",
    "name": b"PROXY TCP4 localhost 198.51.100.1 56324 443\r\n",
    "no second address": b"PROXY TCP4 192.0.2.1 x 56324 443\r\n",
    "leading zero": b"PROXY TCP4 192.0.2.01 198.51.100.1 56324 443\r\n",
    "address of the other family": b"PROXY TCP4 ::1 ::1 56324 443\r\n",
    "address of the other family, 6": b"PROXY TCP6 192.0.2.1 192.0.2.1 56324 443\r\n",
    "zone": b"PROXY TCP6 fe80::1%lo ::1 56324 443\r\n",
    "port too large": b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
    "port with zero": b"PROXY TCP4 192.0.2.1 198.51.100.1 056 443\r\n",
    "port with sign": b"PROXY TCP4 192.0.2.1 198.51.100.1 +56 443\r\n",
    "port with underscore": b"PROXY TCP4 192.0.2.1 198.51.100.1 5_6 443\r\n",
    "port of other digits": "PROXY TCP4 192.0.2.1 198.51.100.1 ٥٦ 443\r\n".encode(),
    "bare LF": b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
    "bare CR": b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\rX",
    "NUL": b"PROXY UNKNOWN \x00\r\n",
    "too long": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "too long, no end": b"PROXY UNKNOWN " + b"x" * 93,
    "signature": SIGNATURE[:-1] + b"\r" + bytes(4),
    "version 1 in binary": header(TCP4, command=0x11),
    "version 3": header(TCP4, command=0x31),
    "unknown command": header(TCP4, command=0x22),
    "datagrams": header(TCP4, family=0x12),
    "unknown family": header(TCP4, family=0x41),
    "no transport": header(TCP4, family=0x10),
    "too short": header(TCP4[:-1]),
    "too short, 6": header(TCP6[:-1], family=0x21),
    "too short, UNIX": header(bytes(215), family=0x31),
    "too large": header(b"", length=MAX_HEADER - 15),
    "as large as can be": header(b"", length=0xFFFF),
    "value cut off": header(TCP4 + b"\x01\x00"),
    "value too long": header(TCP4 + b"\x01\x00\x03h2"),
}


@pytest.mark.parametrize("data", GOOD, ids=lambda data: repr(data[:40]))
def test_good_ones_in_every_cut(data: bytes) -> None:
    for end in range(len(data)):
        assert parse_proxy_header(data[:end]) is None
    expected = ProxyHeader(len(data), GOOD[data])  # type: ignore[arg-type]
    assert parse_proxy_header(data) == expected
    assert parse_proxy_header(data + b"GET / HTTP/1.1\r\n\r\n") == expected
    assert parse_proxy_header(data + data) == expected


@pytest.mark.parametrize("case", BAD)
def test_bad_ones_in_every_cut(case: str) -> None:
    """Whatever comes of it first, it is never taken for a header, and told as bad at its end at the latest."""
    data = BAD[case]
    refused = 0
    for end in range(1, len(data) + 1):
        try:
            assert parse_proxy_header(data[:end]) is None
        except BadProxyHeader:
            refused += 1
        else:
            assert not refused, "it was bad, and is not any more"
    assert refused


def test_what_cannot_become_one_is_told_at_its_first_byte() -> None:
    for byte in range(256):
        if byte in b"P\r":
            assert parse_proxy_header(bytes([byte])) is None
        else:
            with pytest.raises(BadProxyHeader):
                parse_proxy_header(bytes([byte]))


def test_an_error_quotes_nothing() -> None:
    for data in BAD.values():
        with pytest.raises(BadProxyHeader) as raised:
            parse_proxy_header(data)
        assert b"192.0.2" not in str(raised.value).encode()


PIECES = st.sampled_from(
    [b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"192.0.2.1 ", b"::1 ", b"443", b" ", b"\r\n", SIGNATURE, b"\x21\x11"]
)


@given(st.lists(PIECES | st.binary(max_size=20), max_size=12).map(b"".join))
def test_nothing_else_is_raised_and_no_more_is_taken(data: bytes) -> None:
    try:
        found = parse_proxy_header(data)
    except BadProxyHeader:
        return
    if found is None:
        assert len(data) < MAX_HEADER
    else:
        assert 0 < found.size <= min(len(data), MAX_HEADER)
        assert parse_proxy_header(data[: found.size]) == found


@given(st.ip_addresses(), st.ip_addresses(v=4), st.integers(0, 65535), st.binary(max_size=300))
def test_whatever_address_is_written_is_read(source: object, other: object, port: int, value: bytes) -> None:
    assert isinstance(source, (ipaddress.IPv4Address, ipaddress.IPv6Address))
    version = source.version
    target = other if version == 4 else ipaddress.ip_address(f"::{other}")
    expected = (str(source), port) if version == 4 else (str(source), port, 0, 0)
    line = f"PROXY TCP{version} {source} {target} {port} 1\r\n".encode()
    assert parse_proxy_header(line) == ProxyHeader(len(line), expected)  # type: ignore[arg-type]
    packed = source.packed + target.packed + port.to_bytes(2, "big") + b"\x00\x01"  # type: ignore[attr-defined]
    binary = header(packed + b"\x05" + len(value).to_bytes(2, "big") + value, family=0x11 if version == 4 else 0x21)
    assert parse_proxy_header(binary) == ProxyHeader(len(binary), expected)  # type: ignore[arg-type]


def test_bytes_that_were_changed(rng: random.Random) -> None:
    for _ in range(3000):
        data = bytearray(rng.choice(list(GOOD)))
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            found = parse_proxy_header(bytes(data))
        except BadProxyHeader:
            continue
        assert found is None or found.size <= len(data)
