"""Which proxy leads to a server."""

from __future__ import annotations

import dataclasses
import urllib.parse
import urllib.request

from fabric.websockets.datastructures import Headers
from fabric.websockets.exceptions import InvalidProxy
from fabric.websockets.headers import build_authorization_basic, build_host
from fabric.websockets.http11 import USER_AGENT
from fabric.websockets.uri import WebSocketURI, user_info

__all__ = ["Proxy", "get_proxy", "parse_proxy"]

_SCHEMES = ("socks5h", "socks5", "socks4a", "socks4", "https", "http")


@dataclasses.dataclass
class Proxy:
    """The parts of a proxy's URL.

    Attributes:
        scheme: socks5h, socks5, socks4a, socks4, https or http.
        host: in lower case.
        port: 443 for https and 80 for the others where the URL has none.
        username, password: of the URL, decoded; both or neither.
    """

    scheme: str
    host: str
    port: int
    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)

    @property
    def user_info(self) -> tuple[str, str] | None:
        """User name and password, or None."""
        return None if self.username is None or self.password is None else (self.username, self.password)


def parse_proxy(proxy: str) -> Proxy:
    """Take a proxy's URL apart.

    Raises:
        InvalidProxy: it is none, or of a kind that is not known.
    """
    parsed = urllib.parse.urlparse(proxy)
    if parsed.scheme not in _SCHEMES:
        raise InvalidProxy(proxy, f"scheme {parsed.scheme} isn't supported")
    if parsed.hostname is None:
        raise InvalidProxy(proxy, "hostname isn't provided")
    for part, allowed in (("path", ("", "/")), ("query", ("",)), ("fragment", ("",))):
        if getattr(parsed, part) not in allowed:
            raise InvalidProxy(proxy, f"{part} is meaningless")
    if parsed.username is not None and parsed.password is None:
        raise InvalidProxy(proxy, "username provided without password")
    host = parsed.hostname if proxy.isascii() else parsed.hostname.encode("idna").decode()
    return Proxy(parsed.scheme, host, parsed.port or (443 if parsed.scheme == "https" else 80), *user_info(parsed))


def get_proxy(uri: WebSocketURI) -> str | None:
    """The URL of the proxy that the system's settings name for `uri`, or None."""
    if urllib.request.proxy_bypass(f"{uri.host}:{uri.port}"):
        return None
    known = urllib.request.getproxies()
    for scheme in ("wss", "socks", "https") if uri.secure else ("ws", "socks", "https", "http"):
        proxy = known.get(scheme)
        if proxy is not None:
            if scheme == "socks" and proxy.startswith("http://"):  # as the settings of macOS give it
                proxy = "socks5h://" + proxy.removeprefix("http://")
            return proxy
    return None


def prepare_connect_request(proxy: Proxy, ws_uri: WebSocketURI, user_agent_header: str | None = USER_AGENT) -> bytes:
    """The request that asks an HTTP proxy for a connection (RFC 9110 §9.3.6)."""
    headers = Headers()
    headers["Host"] = build_host(ws_uri.host, ws_uri.port, ws_uri.secure)
    if user_agent_header is not None:
        headers["User-Agent"] = user_agent_header
    if proxy.user_info is not None:
        headers["Proxy-Authorization"] = build_authorization_basic(*proxy.user_info)
    host = build_host(ws_uri.host, ws_uri.port, ws_uri.secure, always_include_port=True)
    return f"CONNECT {host} HTTP/1.1\r\n".encode() + headers.serialize()
