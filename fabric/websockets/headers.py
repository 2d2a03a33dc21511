"""The grammar of the headers that an opening handshake has (RFC 9110 §5.6, RFC 6455 §9.1).

Each `parse_` function raises InvalidHeaderFormat for what does not match, naming the place.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from fabric.websockets.exceptions import InvalidHeaderFormat, InvalidHeaderValue
from fabric.websockets.typing import (
    ConnectionOption,
    ExtensionHeader,
    ExtensionName,
    ExtensionParameter,
    Subprotocol,
    UpgradeProtocol,
)

__all__ = [
    "build_authorization_basic",
    "build_extension",
    "build_host",
    "build_subprotocol",
    "build_www_authenticate_basic",
    "parse_authorization_basic",
    "parse_connection",
    "parse_extension",
    "parse_subprotocol",
    "parse_upgrade",
    "validate_subprotocols",
]

T = TypeVar("T")

_TCHAR = r"[-!#$%&'*+.^_`|~0-9a-zA-Z]"
_SPACE = re.compile(r"[\t ]*")
_TOKEN = re.compile(rf"{_TCHAR}+")
_PROTOCOL = re.compile(rf"{_TCHAR}+(?:/{_TCHAR}+)?")
_QUOTED = re.compile(r'"(?:[\x09\x20-\x21\x23-\x5b\x5d-\x7e]|\\[\x09\x20-\x7e\x80-\xff])*"')
_UNQUOTE = re.compile(r"\\([\x09\x20-\x7e\x80-\xff])")
_QUOTABLE = re.compile(r"[\x09\x20-\x7e\x80-\xff]*")
_TOKEN68 = re.compile(r"[A-Za-z0-9-._~+/]+=*")


class _Reader:
    """A place in the value of a header."""

    def __init__(self, header: str, name: str) -> None:
        self.header = header
        self.name = name
        self.at = 0

    def fail(self, error: str, at: int | None = None) -> InvalidHeaderFormat:
        return InvalidHeaderFormat(self.name, error, self.header, self.at if at is None else at)

    def take(self, pattern: re.Pattern[str], expected: str) -> str:
        match = pattern.match(self.header, self.at)
        if match is None:
            raise self.fail(f"expected {expected}")
        self.at = match.end()
        return match.group()

    def space(self) -> None:
        self.take(_SPACE, "")

    def follows(self, character: str) -> bool:
        """Take `character`, and space behind it, if it is next."""
        if self.header[self.at : self.at + 1] != character:
            return False
        self.at += 1
        self.space()
        return True

    @property
    def is_done(self) -> bool:
        return self.at == len(self.header)

    def items(self, item: Callable[[_Reader], T]) -> list[T]:
        """A list with commas between the items; empty ones are passed over (RFC 9110 §5.6.1.2)."""
        while self.follows(","):
            pass
        found = [item(self)]
        while True:
            self.space()
            if self.is_done:
                return found
            if not self.follows(","):
                raise self.fail("expected comma")
            while self.follows(","):
                pass
            if self.is_done:
                return found
            found.append(item(self))


def _token(reader: _Reader) -> str:
    return reader.take(_TOKEN, "token")


def _parameter(reader: _Reader) -> ExtensionParameter:
    name, value = _token(reader), None
    reader.space()
    if reader.follows("="):
        if reader.header[reader.at : reader.at + 1] == '"':
            before = reader.at
            value = _UNQUOTE.sub(r"\1", reader.take(_QUOTED, "quoted string")[1:-1])
            if _TOKEN.fullmatch(value) is None:  # RFC 6455 §9.1
                raise reader.fail("invalid quoted header content", before)
        else:
            value = _token(reader)
        reader.space()
    return name, value


def _extension(reader: _Reader) -> ExtensionHeader:
    name = ExtensionName(_token(reader))
    reader.space()
    parameters = []
    while reader.follows(";"):
        parameters.append(_parameter(reader))
    return name, parameters


def parse_connection(header: str) -> list[ConnectionOption]:
    """The options of a Connection header."""
    return cast("list[ConnectionOption]", _Reader(header, "Connection").items(_token))


def parse_upgrade(header: str) -> list[UpgradeProtocol]:
    """The protocols of an Upgrade header."""
    found = _Reader(header, "Upgrade").items(lambda reader: reader.take(_PROTOCOL, "protocol"))
    return cast("list[UpgradeProtocol]", found)


def parse_extension(header: str) -> list[ExtensionHeader]:
    """The extensions of a Sec-WebSocket-Extensions header: name, and pairs of parameter and value."""
    return _Reader(header, "Sec-WebSocket-Extensions").items(_extension)


def build_extension(extensions: Sequence[ExtensionHeader]) -> str:
    """The Sec-WebSocket-Extensions header for what `parse_extension` gives."""
    return ", ".join(
        "; ".join([name, *(key if value is None else f"{key}={value}" for key, value in parameters)])
        for name, parameters in extensions
    )


def parse_subprotocol(header: str) -> list[Subprotocol]:
    """The names of a Sec-WebSocket-Protocol header."""
    return cast("list[Subprotocol]", _Reader(header, "Sec-WebSocket-Protocol").items(_token))


def build_subprotocol(subprotocols: Sequence[Subprotocol]) -> str:
    """The Sec-WebSocket-Protocol header for these names."""
    return ", ".join(subprotocols)


def validate_subprotocols(subprotocols: Sequence[Subprotocol]) -> None:
    """Raise TypeError or ValueError unless it is a list of names that can stand in a header."""
    if not isinstance(subprotocols, Sequence):
        raise TypeError("subprotocols must be a list")
    if isinstance(subprotocols, str):
        raise TypeError("subprotocols must be a list, not a str")
    for name in subprotocols:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"invalid subprotocol: {name}")


def build_host(host: str, port: int, secure: bool, *, always_include_port: bool = False) -> str:
    """The Host header: an IPv6 address in brackets, the port unless it is the scheme's own."""
    try:
        if ipaddress.ip_address(host).version == 6:
            host = f"[{host}]"
    except ValueError:
        pass  # a name
    return f"{host}:{port}" if always_include_port or port != (443 if secure else 80) else host


# HTTP Basic Authentication (RFC 7617)


def _quoted(value: str) -> str:
    if _QUOTABLE.fullmatch(value) is None:
        raise ValueError("invalid characters for quoted-string encoding")
    return '"' + re.sub(r"([\x22\x5c])", r"\\\1", value) + '"'


def build_www_authenticate_basic(realm: str) -> str:
    """The WWW-Authenticate header that asks for a user name and a password."""
    return f'Basic realm={_quoted(realm)}, charset="UTF-8"'


def build_authorization_basic(username: str, password: str) -> str:
    """The Authorization header for a user name and a password."""
    assert ":" not in username
    return "Basic " + base64.b64encode(f"{username}:{password}".encode(errors="surrogateescape")).decode()


def parse_authorization_basic(header: str) -> tuple[str, str]:
    """User name and password of an Authorization header.

    Raises:
        InvalidHeaderFormat: it is malformed.
        InvalidHeaderValue: it is of another scheme, or does not hold a user name and a password.
    """
    reader = _Reader(header, "Authorization")
    scheme = _token(reader)
    if scheme.lower() != "basic":
        raise InvalidHeaderValue("Authorization", f"unsupported scheme: {scheme}")
    if header[reader.at : reader.at + 1] != " ":
        raise reader.fail("expected space after scheme")
    reader.at += 1
    credentials = reader.take(_TOKEN68, "token68")
    if not reader.is_done:
        raise reader.fail("trailing data")
    try:
        decoded = base64.b64decode(credentials.encode()).decode(errors="surrogateescape")
    except binascii.Error:
        raise InvalidHeaderValue("Authorization", "expected base64-encoded credentials") from None
    username, colon, password = decoded.partition(":")
    if not colon:
        raise InvalidHeaderValue("Authorization", "expected username:password credentials")
    return username, password
