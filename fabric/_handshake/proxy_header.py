"""The header of the PROXY protocol, by which a proxy says whose connection it passes on.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, versions 1 and 2. Owns its form and its limits.
Knows no socket and never waits; whom to believe is not decided here.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

__all__ = ["MAX_HEADER", "BadProxyHeader", "ProxyHeader", "parse_proxy_header"]

MAX_LINE = 107  # bytes of a header of version 1, with its CR LF (§2.1)
MAX_HEADER = 4096  # bytes of one of version 2; it may say 65,551, of which real ones need a tenth of this

_PREFIX = b"PROXY "
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = 16  # bytes before the addresses of version 2
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")

# Of version 2: the second nibbles of the 13th and the 14th byte, and of the addresses their size.
_LOCAL, _PROXY = 0, 1
_UNSPEC, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_ADDRESSES = {_UNSPEC: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}

Address = tuple[str, int] | tuple[str, int, int, int]


class BadProxyHeader(ValueError):
    """What came is no header of the PROXY protocol, or one that is too long. The text quotes none of it."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header.

    Attributes:
        size: its bytes; what follows them is the client's.
        source: the client's address, as sockets give it. None where the proxy speaks for itself, as for a health check,
            or does not know it, or knows a UNIX-domain socket.
    """

    size: int
    source: Address | None


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """The header at the start of `data`, all that was received so far; None when it is not all there yet.

    Raises:
        BadProxyHeader: it cannot become one, as soon as that can be told.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _version_2(data) if len(data) >= _FIXED else None
    if data.startswith(_PREFIX[: len(data)]):
        return _version_1(data)
    raise BadProxyHeader("no PROXY protocol header")


def _version_1(data: bytes) -> ProxyHeader | None:
    """§2.1: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`, each word once, one space between them."""
    end = data.find(b"\r\n", 0, MAX_LINE)
    if end < 0:
        if len(data) >= MAX_LINE:
            raise BadProxyHeader(f"PROXY line over {MAX_LINE} bytes")
        line = data.removesuffix(b"\r")
    else:
        line = data[:end]
    if any(byte < 0x20 or byte > 0x7E for byte in line):
        raise BadProxyHeader("PROXY line with a byte that is not printable")
    if end < 0:
        return None
    size = end + 2
    words = line.split(b" ")
    if words[1] == b"UNKNOWN":  # whatever follows is to be ignored
        return ProxyHeader(size, None)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise BadProxyHeader("malformed PROXY line")
    make = ipaddress.IPv4Address if words[1] == b"TCP4" else ipaddress.IPv6Address
    try:
        source, _ = (make(word.decode("ascii")) for word in words[2:4])
    except ValueError:
        raise BadProxyHeader("PROXY line with an address that is none") from None
    ports = [int(word) for word in words[4:] if _PORT.fullmatch(word)]
    if len(ports) != 2 or max(ports) > 0xFFFF or b"%" in line:  # nor has an address of the network a zone
        raise BadProxyHeader("PROXY line with an address or port that is none")
    return ProxyHeader(size, _address(source, ports[0]))


def _version_2(data: bytes) -> ProxyHeader | None:
    """§2.2: the signature, version and command, family and transport, length, addresses, further values."""
    version, command, family = data[12] >> 4, data[12] & 0x0F, data[13]
    length = int.from_bytes(data[14:16], "big")
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise BadProxyHeader("PROXY header of an unknown version or command")
    if _FIXED + length > MAX_HEADER:
        raise BadProxyHeader(f"PROXY header over {MAX_HEADER} bytes")
    if command == _PROXY and family not in _ADDRESSES:
        raise BadProxyHeader("PROXY header of something else than a stream")
    own = _ADDRESSES.get(family, 0)
    if command == _PROXY and length < own:
        raise BadProxyHeader("PROXY header too short for its addresses")
    size = _FIXED + length
    if len(data) < size:
        return None
    if command == _LOCAL:  # the rest is to be ignored
        return ProxyHeader(size, None)
    _check_values(data[_FIXED + own : size])
    if family == _TCP4:
        return ProxyHeader(size, _address(ipaddress.IPv4Address(data[16:20]), int.from_bytes(data[24:26], "big")))
    if family == _TCP6:
        return ProxyHeader(size, _address(ipaddress.IPv6Address(data[16:32]), int.from_bytes(data[48:50], "big")))
    return ProxyHeader(size, None)


def _check_values(rest: bytes) -> None:
    """§2.2.7: each of a type, a length in two bytes, and as many bytes."""
    at = 0
    while at < len(rest):
        at += 3 + int.from_bytes(rest[at + 1 : at + 3], "big")
    if at != len(rest):
        raise BadProxyHeader("PROXY header whose values do not fill it")


def _address(source: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Address:
    return (str(source), port) if source.version == 4 else (str(source), port, 0, 0)
