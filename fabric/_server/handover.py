"""Connections that one process accepts and another one serves: descriptors over a UNIX-domain socket (unix(7)).

A `Handover` is the end in the process that accepts. It keeps each connection until the other end reports that it has
been received, so that none is lost if the other process ends. A `HandoverSocket` is the other end; a server gets it as
its `sock`. One byte is sent with each descriptor, and one byte comes back for each connection that was received,
refused or closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

__all__ = ["HandedConnection", "Handover", "HandoverSocket"]

ONE = b"\0"  # sent with each descriptor: a message needs some data
RECEIVED, REFUSED, CLOSED = b"+", b"!", b"-"
AT_ONCE = 4096  # bytes that are read at a time
AGAIN = 0.05  # seconds until bytes for which the socket's buffer had no room are sent again
CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Handover:
    """Hands connections over.

    Attributes:
        count: connections handed over that have not been closed.
    """

    def __init__(self) -> None:
        self._sock, self._other = socket.socketpair()
        self._sock.setblocking(False)
        self._unreceived: deque[socket.socket] = deque()
        self.count = 0

    def fileno(self) -> int:
        """The descriptor to wait on for reports of the other end."""
        return self._sock.fileno()

    def take_other_end(self) -> socket.socket:
        """The end for the other process; close it here once that process has it."""
        return self._other

    @property
    def unreceived(self) -> int:
        """Connections that the other process has not received yet."""
        return len(self._unreceived)

    def hand(self, connection: socket.socket) -> bool:
        """Hand a connection over, and keep it until it is received; False if the other process takes no more."""
        try:
            socket.send_fds(self._sock, [ONE], [connection.fileno()])
        except OSError:
            return False
        self._unreceived.append(connection)
        self.count += 1
        return True

    def read(self) -> list[socket.socket]:
        """Read the other end's reports; return the connections that it had no free descriptors for.

        Raises:
            EOFError: the other process takes no more.
        """
        try:
            return self._read()
        except BlockingIOError:
            return []

    def _read(self) -> list[socket.socket]:
        """As `read`; raises BlockingIOError if there is no report."""
        try:
            data = self._sock.recv(AT_ONCE)
        except BlockingIOError:
            raise
        except OSError:
            data = b""
        if not data:
            raise EOFError("the other process takes no more connections")
        refused = []
        for said in data:
            if said == ord(CLOSED):
                self.count -= 1
            elif self._unreceived:
                connection = self._unreceived.popleft()
                if said == ord(REFUSED):
                    self.count -= 1
                    refused.append(connection)
                else:
                    connection.close()
        return refused

    def finish(self) -> None:
        """Hand over no more. The other end still receives what is on its way, and then reads the end of the stream."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> list[socket.socket]:
        """Close this end; return the connections that the other process has not received."""
        left = []
        with contextlib.suppress(EOFError, BlockingIOError):
            while True:
                left += self._read()
        self._sock.close()
        self._other.close()
        left += self._unreceived
        self._unreceived.clear()
        self.count = 0
        return left


class HandoverSocket(socket.socket):
    """Stands for the sockets that another process listens on: `accept` receives a connection from it.

    Args:
        fileno: the descriptor of `Handover.take_other_end`.
        address, listening_family: of the socket listened on; `getsockname` and `family` return them.
    """

    def __init__(self, fileno: int, address: Any, listening_family: int) -> None:
        super().__init__(fileno=fileno)
        self.setblocking(False)
        self.set_inheritable(False)
        self._address = address
        self._listening_family = socket.AddressFamily(listening_family)
        self._unsaid = b""
        self._is_waiting = False  # until AGAIN is over
        self.on_end: Callable[[], None] | None = None

    @property
    def family(self) -> socket.AddressFamily:
        """The family of the socket listened on."""
        return self._listening_family

    def getsockname(self) -> Any:
        """The address listened on."""
        return self._address

    def accept(self) -> tuple[socket.socket, Any]:
        """Receive a connection, and return it with the client's address.

        Raises:
            BlockingIOError: there is none.
            ConnectionAbortedError: the client has gone.
            EOFError: the other process hands over no more.
            OSError: no descriptor is free (EMFILE); the connection goes back to the other process.
        """
        data, descriptors, _, _ = socket.recv_fds(self, 1, 1, CLOSE_ON_EXEC)
        if not data:
            if self.on_end is not None:
                self.on_end()
            raise EOFError("no connections are handed over any more")
        if not descriptors:
            self._say(REFUSED)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        connection = HandedConnection(fileno=descriptors[0])
        connection.set_inheritable(False)
        connection.on_close = self._say_closed
        self._say(RECEIVED)
        try:
            return connection, connection.getpeername()
        except OSError as error:
            connection.close()
            raise ConnectionAbortedError(errno.ECONNABORTED, "the client has gone") from error

    def _say_closed(self) -> None:
        self._say(CLOSED)

    def _say(self, what: bytes) -> None:
        self._unsaid += what
        if not self._is_waiting:
            self._say_all()

    def _say_all(self) -> None:
        self._is_waiting = False
        try:
            self._unsaid = self._unsaid[self.send(self._unsaid) :]
        except BlockingIOError:
            pass  # the buffer is full
        except OSError:
            self._unsaid = b""  # the other process has gone, or this socket is closed
        loop = asyncio._get_running_loop()
        if self._unsaid and loop is not None:
            self._is_waiting = True
            loop.call_later(AGAIN, self._say_all)


class HandedConnection(socket.socket):
    """A connection that was received. `on_close` is called when its descriptor is closed, or detached, as by uvloop."""

    __slots__ = ("on_close",)

    on_close: Callable[[], None] | None

    def close(self) -> None:
        """Close it."""
        super().close()
        if self.fileno() < 0:
            self._tell()

    def detach(self) -> int:
        """Detach the descriptor, and return it."""
        descriptor = super().detach()
        self._tell()
        return descriptor

    def _tell(self) -> None:
        told, self.on_close = getattr(self, "on_close", None), None
        if told is not None:
            told()
