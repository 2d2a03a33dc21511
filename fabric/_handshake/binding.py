"""Sockets for a server to listen on: at a literal address, at a path, at a port that is free everywhere."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat

__all__ = ["bind_address", "bind_path", "file_at", "free_port"]


def bind_address(host: str, port: int, *, reuse_port: bool) -> socket.socket | None:
    """A socket at a literal address; None for a name, which stands for any number of addresses."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    bound = socket.create_server((host, port), family=family, reuse_port=reuse_port)
    # Accepted sockets inherit it. Its protocol number is 0, and the event loops set the option only where it is TCP's.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def free_port() -> int:
    """A port that is free on every address: the event loops would choose one for each address that they listen on."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as probe:
        port: int = probe.getsockname()[1]
    return port


def bind_path(path: str, mode: int | None) -> socket.socket:
    """A UNIX-domain socket at `path`, with the permissions `mode`; what a server that is gone has left is replaced.

    Raises:
        OSError: another server listens there, or there is something that is no socket.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not path.startswith("\0"):
            _make_way(path)
        bound.bind(path)
        if mode is not None and not path.startswith("\0"):
            os.chmod(path, mode)  # nobody can connect before: it does not listen yet
    except BaseException:
        bound.close()
        raise
    return bound


def file_at(path: str | None) -> tuple[int, int] | None:
    """What tells the file at `path` from a later one; None where there is none."""
    try:
        found = os.stat(path or "")
    except (OSError, ValueError):  # an abstract name is no file
        return None
    return found.st_dev, found.st_ino


def _make_way(path: str) -> None:
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OSError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)  # its server is gone
            return
        except FileNotFoundError:
            return
        except OSError:  # its backlog is full, or it is not for us
            pass
    raise OSError(errno.EADDRINUSE, "another server listens there")
