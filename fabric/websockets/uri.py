"""The URI of a WebSocket server."""

from __future__ import annotations

import dataclasses
import urllib.parse
from typing import Any

from fabric.websockets.exceptions import InvalidURI

__all__ = ["WebSocketURI", "parse_uri"]

# What stays as it is where an IRI becomes a URI: gen-delims and sub-delims (RFC 3987 §2.2).
_DELIMITERS = ":/?#[]@!$&'()*+,;="


@dataclasses.dataclass
class WebSocketURI:
    """The parts of a WebSocket URI.

    Attributes:
        secure: the scheme is wss.
        host: in lower case.
        port: the scheme's own where the URI has none.
        path, query: may be empty.
        username, password: of the URI, decoded; both or neither.
    """

    secure: bool
    host: str
    port: int
    path: str
    query: str
    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)

    @property
    def resource_name(self) -> str:
        """What to ask the server for."""
        return (self.path or "/") + (f"?{self.query}" if self.query else "")

    @property
    def user_info(self) -> tuple[str, str] | None:
        """User name and password, or None."""
        return None if self.username is None or self.password is None else (self.username, self.password)


def parse_uri(uri: str) -> WebSocketURI:
    """Take a WebSocket URI apart.

    Raises:
        InvalidURI: it is none.
    """
    parsed = urllib.parse.urlparse(uri)
    if parsed.scheme not in ("ws", "wss"):
        raise InvalidURI(uri, "scheme isn't ws or wss")
    if parsed.hostname is None:
        raise InvalidURI(uri, "hostname isn't provided")
    if parsed.fragment:
        raise InvalidURI(uri, "fragment identifier is meaningless")
    secure = parsed.scheme == "wss"
    host, path, query = parsed.hostname, parsed.path, parsed.query
    if parsed.username is not None and parsed.password is None:
        raise InvalidURI(uri, "username provided without password")
    username, password = user_info(parsed)
    if not uri.isascii():
        host = host.encode("idna").decode()
        path = urllib.parse.quote(path, safe=_DELIMITERS)
        query = urllib.parse.quote(query, safe=_DELIMITERS)
    return WebSocketURI(secure, host, parsed.port or (443 if secure else 80), path, query, username, password)


def user_info(parsed: Any) -> tuple[str | None, str | None]:
    """User name and password of a parsed URL, decoded."""
    if parsed.username is None:
        return None, None
    unquote = urllib.parse.unquote
    return unquote(parsed.username, errors="strict"), unquote(parsed.password, errors="strict")
