"""One URL, taken apart once: `ws://` and `wss://` addresses (RFC 6455 §3, RFC 3986), and those of proxies.

Owns: what a valid URL is, which credentials it carries, and which of them survive a redirect; and what an origin is.
Never shows a password or a query, which may hold a token: not in `str`, not in `repr`, not in the message of an error.
Never resolves a name.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Url", "basic_authorization", "normal_origin", "redact"]

WEBSOCKET_SCHEMES = ("ws", "wss")
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")

_DEFAULT_PORTS = {"ws": 80, "wss": 443, "http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

# What `urlsplit` would silently drop or keep, and what must never reach a request line.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\ud800-\udfff]")
_HOST_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.?")
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.\-]*)://(?P<host>\[[^\]/]+\]|[^/?#@:\[\]\s]+)(?::(?P<port>[0-9]{1,5}))?"
)
_MAX_HOST = 254  # characters, with a final dot
_MAX_SOCKS = 255  # bytes of a user name, and of a password (RFC 1929 §2)
PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))  # of ASCII, without the space


def redact(text: str) -> str:
    """`text` with everything that may be user name, password, query or fragment replaced by `***`."""
    text = re.sub(r"//.*@", "//***@", text, flags=re.DOTALL)
    return re.sub(r"([?#]).*", r"\1***", text, flags=re.DOTALL)


def normal_origin(text: str) -> str:
    """An origin as browsers send it (RFC 6454 §6.2): in lower case and ASCII, without the default port.

    Raises:
        ValueError: it is none; the text says what is.
    """
    if text == "null":
        return text
    if "*" in text:
        raise ValueError(
            r"no '*': a compiled pattern stands for several, as re.compile(r'https://[^/]+\.example\.com')"
        )
    match = _ORIGIN.fullmatch(text.lower())
    if match is None:  # browsers send neither a path nor a final slash, and a string with one would never match
        raise ValueError("'scheme://host' or 'scheme://host:port' each, or 'null'")
    scheme, host = match["scheme"], match["host"]
    own_port = _DEFAULT_PORTS.get(scheme, 0)
    port = int(match["port"] or own_port)
    try:
        if host.startswith("["):
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
        elif not host.isascii():
            host = host.encode("idna").decode("ascii")
        if (match["port"] and not 0 < port <= 65535) or not re.fullmatch(r"[a-z0-9._\-]+|\[.*\]", host):
            raise ValueError
    except ValueError:
        raise ValueError("a valid host name or address each, and a port from 1 to 65535") from None
    return f"{scheme}://{host}" if port == own_port else f"{scheme}://{host}:{port}"


def basic_authorization(username: str, password: str) -> str:
    """The value of an `Authorization` header for these credentials (RFC 7617).

    Raises:
        ValueError: the user name holds a colon, which this scheme cannot carry.
    """
    if ":" in username:
        raise ValueError("a user name with a colon cannot be sent with Basic authentication (RFC 7617 §2)")
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")


@dataclass(frozen=True, slots=True, repr=False)
class Url:
    """The parts of a URL; `str()` and `repr()` show it without credentials and query.

    Attributes:
        scheme: in lower case.
        host: name in ASCII (IDNA) or address, without brackets; an address with its zone, as in "fe80::1%eth0".
        port: given, or the scheme's own.
        resource: path and query, percent-encoded, never empty (the resource name of RFC 6455 §3).
        username, password: percent-decoded; None when the URL carries none.
    """

    scheme: str
    host: str
    port: int
    resource: str = "/"
    username: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, text: str, schemes: Iterable[str] = WEBSOCKET_SCHEMES) -> Url:
        """Take `text` apart.

        Raises:
            TypeError: `text` is not a str.
            ValueError: it is not an absolute URL with a host and one of `schemes`, has a fragment, or a user
                name or password that cannot be sent.
        """
        if not isinstance(text, str):
            raise TypeError(f"<{type(text).__name__}>: expected a URL as str")

        def invalid(why: str) -> ValueError:
            return ValueError(f"{redact(text)!r}: {why}")

        if _FORBIDDEN.search(text):
            raise invalid("a URL has no spaces or control characters, nor lone surrogates")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:  # its message may quote a password
            raise invalid("expected scheme://host:port/path with a port from 1 to 65535") from None
        if parts.scheme not in schemes:
            raise invalid(f"expected a URL that starts with {' or '.join(f'{s}://' for s in schemes)}")
        if "#" in text:
            raise invalid("a fragment is not allowed (RFC 6455 §3)")
        if not parts.hostname:
            raise invalid("there is no host in it")
        if port == 0:
            raise invalid("expected a port from 1 to 65535")
        try:
            host = _ascii_host(parts)
        except ValueError:
            limits = f"at most {_MAX_HOST} characters, 63 between dots"
            raise invalid(f"the host is neither a valid name ({limits}) nor an address") from None

        username = password = None
        if parts.username is not None:
            username, password = unquote(parts.username), unquote(parts.password or "")
            try:
                basic_authorization(username, password)
                if parts.scheme.startswith("socks5"):
                    _check_socks_login(username, password)
            except ValueError as error:
                raise invalid(str(error)) from None
        resource = parts.path or "/"
        if parts.query:
            resource += f"?{parts.query}"
        return cls(
            scheme=parts.scheme,
            host=host,
            port=_DEFAULT_PORTS[parts.scheme] if port is None else port,
            resource=quote(resource, safe=PRINTABLE),
            username=username,
            password=password,
        )

    @property
    def is_secure(self) -> bool:
        return self.scheme in ("wss", "https")

    @property
    def authority(self) -> str:
        """Host and, unless it is the scheme's own, port: what the `Host` header says (RFC 6455 §4.1).

        Without the zone of an address, which means something to this machine alone (RFC 6874 §1).
        """
        return self._authority(self.host.partition("%")[0])

    def _authority(self, host: str) -> str:
        bracketed = f"[{host}]" if ":" in host else host
        return bracketed if self.port == _DEFAULT_PORTS[self.scheme] else f"{bracketed}:{self.port}"

    @property
    def full(self) -> str:
        """The whole URL but for its credentials. Not to be shown: the query may hold a token."""
        return f"{self.scheme}://{self._authority(self.host.replace('%', '%25'))}{self.resource}"  # RFC 6874 §2

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: credentials given to one origin are not for another (RFC 6454)."""
        return self.scheme, self.host, self.port

    @property
    def authorization(self) -> str | None:
        """The header value that carries this URL's credentials, or None."""
        if self.username is None:
            return None
        return basic_authorization(self.username, self.password or "")

    def __str__(self) -> str:
        return redact(f"{self.scheme}://{self.authority}{self.resource}")

    def __repr__(self) -> str:
        return f"<Url {self}>"

    def join(self, location: str) -> Url:
        """The address a redirect leads to (RFC 9110 §10.2.2).

        `http` and `https` are read as `ws` and `wss`. Credentials are kept within the origin and dropped on
        the way to another; those in `location` are ignored.

        Raises:
            ValueError: `location` is not such an address, or leads from `wss` to an unencrypted one.
        """
        target, _, _fragment = urljoin(self.full, location).partition("#")
        scheme, colon, rest = target.partition(":")
        scheme = {"http": "ws", "https": "wss"}.get(scheme.lower(), scheme)
        found = Url.parse(scheme + colon + rest)
        if self.is_secure and not found.is_secure:
            raise ValueError(f"{str(found)!r}: a redirect must not lead from wss:// to ws://")
        same = found.origin == self.origin
        return replace(
            found,
            username=self.username if same else None,
            password=self.password if same else None,
        )


def _ascii_host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if ":" in host and host.isascii():
        if re.search("%25.", host):  # a zone, RFC 6874 §2; the bare "%eth0" is understood as well
            host = host.replace("%25", "%", 1)
        ipaddress.IPv6Address(host)
        return host
    if not host.isascii():
        host = host.encode("idna").decode("ascii").lower()
    if not _HOST_NAME.fullmatch(host) or len(host) > _MAX_HOST:
        raise ValueError("not a host name (RFC 1123 §2.1)")
    return host


def _check_socks_login(username: str, password: str) -> None:
    """Refuse what SOCKS5 has no room for (RFC 1929 §2)."""
    if max(len(username.encode()), len(password.encode())) > _MAX_SOCKS:
        raise ValueError(f"user name and password for SOCKS5 have at most {_MAX_SOCKS} bytes each (RFC 1929 §2)")
