"""The forms that an address to listen on, a host and a path have in a config."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re

from fabric._http.url import Url

__all__ = ["INHERITED", "is_bind_address", "is_socket_path", "split_host"]

# Forms of an address to listen on that name sockets which this process has been given: a descriptor, or those that
# systemd has passed, all of them or those with one name.
INHERITED = re.compile(r"fd:(?P<descriptor>\d{1,7})|systemd:(?P<name>[^:\x00-\x1f]*)")


def is_socket_path(path: str) -> bool:
    """Whether `path` can name a UNIX-domain socket. A NUL at its start is an abstract one of Linux (unix(7))."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return bool(path) and (path.startswith("\0") or "\0" not in path)


def is_bind_address(text: str) -> bool:
    """Whether `text` is "host:port", "[address]:port" or ":port", with a name that a resolver takes."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    # A colon outside brackets is an address whose last group would be taken for the port.
    if not colon or (":" in host and not bracketed) or re.search(r"[\s\x00-\x1f\x7f/@]", host):
        return False
    try:
        host.encode("idna")  # as the resolver does
    except UnicodeError:
        return False
    return port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535


def split_host(text: str) -> tuple[str, int | None]:
    """Name or address, and port if there is one.

    Raises:
        ValueError: it is neither.
    """
    with contextlib.suppress(ValueError):
        return str(ipaddress.IPv6Address(text)), None  # whose last group is no port
    if re.search(r"[/?#@\\]|:$", text):
        raise ValueError("not a host")
    url = Url.parse(f"ws://{text}/")
    return url.host, url.port if re.search(r":\d+$", text) else None
