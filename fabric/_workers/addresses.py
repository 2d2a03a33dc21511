"""The sockets on which workers listen. The parent has them too, so that no connection is lost while workers change."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import Any

from fabric._server.listening import bound_path, free_port, inherited_sockets
from fabric.config import ServerConfig

__all__ = ["Addresses"]

SPREADS = sys.platform == "linux"  # does the kernel spread connections over sockets that share a port?
BACKLOG = 1024


class Addresses:
    """Listens on an address.

    Args:
        address: as `ServerConfig.bind`.
        shares: how many workers get sockets of their own, for the kernel to spread connections over them. One, or where
            the kernel does not spread them, all workers share the same sockets.

    Raises:
        OSError: the address is in use, or not ours; sockets that are to be inherited are not there.
    """

    def __init__(self, address: str, shares: int) -> None:
        config = ServerConfig(address)
        self._path, self._inode = config.unix_path, None
        self.shares: list[list[socket.socket]] = [[] for _ in range(shares)]
        given = inherited_sockets(config.bind)
        try:
            if given is not None:
                self._share(list(given))
            elif config.unix_path is not None:
                sock, self._inode = bound_path(config.unix_path, config.unix_mode)
                self._share([sock])
            else:
                self._bind(config.host, config.port)
            for sock in self.all():
                sock.setblocking(False)
                sock.listen(BACKLOG)
        except BaseException:
            self.close()
            raise

    def all(self) -> list[socket.socket]:
        """Each socket once."""
        return list({id(sock): sock for share in self.shares for sock in share}.values())

    @property
    def names(self) -> list[Any]:
        """The addresses that are listened on."""
        return list(dict.fromkeys(sock.getsockname() for sock in self.all()))

    def _share(self, sockets: list[socket.socket]) -> None:
        for share in self.shares:
            share.extend(sockets)

    def _bind(self, host: str | None, port: int) -> None:
        many = SPREADS and len(self.shares) > 1
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        places = dict.fromkeys((family, address) for family, _, _, _, address in found)
        if not port and len(places) > 1:
            port = free_port()  # the same on each address
            places = dict.fromkeys((family, (address[0], port, *address[2:])) for family, address in places)
        for family, address in places:
            if many and port:  # a socket without SO_REUSEPORT is refused if another program has the port
                _bound(family, address, reuse_port=False).close()
            first = _bound(family, address, reuse_port=many)
            if not many:
                self._share([first])
                continue
            self.shares[0].append(first)
            for share in self.shares[1:]:
                share.append(_bound(family, first.getsockname(), reuse_port=True))

    def close(self) -> None:
        """Listen no more."""
        if self._inode is not None and self._path is not None:
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)
        for sock in self.all():
            sock.close()


def _bound(family: int, address: Any, *, reuse_port: bool) -> socket.socket:
    return socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=reuse_port)
