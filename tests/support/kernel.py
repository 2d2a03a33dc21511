"""What takes the place of the kernel between a session and its peer: a pair of sockets in this process."""

from __future__ import annotations

import socket


class Kernel:
    """A pair of sockets: `near` is the connection's, the test reads from the far one."""

    def __init__(self, kind: socket.SocketKind, buffer: int) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, kind)
        for end in (self.near, self.far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)

    def take(self) -> list[bytes]:
        """What was sent since, one item for each system call (of a datagram pair)."""
        found = []
        while True:
            try:
                found.append(self.far.recv(1 << 20))
            except BlockingIOError:
                return found

    def fill(self) -> bytes:
        """Send until nothing more fits; what that was."""
        sent = b""
        while True:
            try:
                sent += b"x" * self.near.send(b"x" * 1000)
            except BlockingIOError:
                return sent
