"""Where a broker is, and as whom to log in: what its URL says.

Errors, logs and reprs show `Address.where`. A password with a character in it that ends a part of a URL would get into
that, so a URL with more parts than these is refused, in words that repeat nothing of it.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

__all__ = ["Address", "parse_address"]


class Address(NamedTuple):
    """The parts of the URL of a broker.

    Attributes:
        scheme: in lower case.
        host: a name or an address, without brackets.
        port: of TCP.
        login: user and password, those of them that are given, decoded.
        where: the URL without them.
    """

    scheme: str
    host: str
    port: int
    login: tuple[str, ...]
    where: str


def parse_address(url: str, kind: str, schemes: tuple[str, str], port: int, path: str = "/") -> Address:
    """The parts of `url`.

    Args:
        url: `scheme://[user:password@]host[:port]`.
        kind: of the broker, for errors.
        schemes: the one without TLS, and the one with it.
        port: where the URL has none.
        path: may follow the port, and means nothing.

    Raises:
        ValueError: it has another form; the text has no part of it.
    """
    form = (
        f"the URL of a {kind} server is {schemes[0]}://[user:password@]host[:port], or {schemes[1]}://… with TLS, "
        "and percent-encodes special characters of a password"
    )
    try:
        parts = urlsplit(url)
        given = parts.port
    except ValueError:
        raise ValueError(f"{form}; this one is malformed, or its port is not from 1 to 65535") from None
    if given == 0:
        raise ValueError(f"{form}; this one has the port 0, allowed are 1 to 65535")
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(form)
    if parts.path not in ("", "/", path) or parts.query or parts.fragment:
        raise ValueError(f"{form}; this one has something after host and port")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    login = tuple(unquote(word) for word in (parts.username, parts.password) if word)
    return Address(parts.scheme, parts.hostname, given or port, login, f"{parts.scheme}://{host}:{given or port}")
