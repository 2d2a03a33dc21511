"""Accepts connections that begin with TLS, and lets the limits of opening handshakes hold from the first moment.

aiofastnet's own listener tells nobody of a connection before its TLS handshake is over: clients that never begin it
would not be counted, and a server that stops would wait for them. So its sockets are listened on here, and aiofastnet
makes the transport of a connection that may stay.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING, Any

import aiofastnet

from fabric._handshake.proxy_header import MAX_HEADER, BadProxyHeader, ProxyHeader, parse_proxy_header
from fabric._handshake.rules import Rejection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fabric._handshake.server import PendingHandshakes, ServerHandshake

__all__ = ["TlsListener", "listen_tls"]

LEAST = 0.001  # seconds for a TLS handshake whose time is over
RETRY = 1.0  # seconds until connections are accepted again after descriptors or memory have run out
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


async def listen_tls(
    create: Callable[..., Awaitable[asyncio.AbstractServer]],
    loop: Any,
    handshakes: PendingHandshakes,
    *where: str,
    backlog: int,
    tls: dict[str, Any],
    **options: Any,
) -> TlsListener:
    """Accept connections for `handshakes`.

    Args:
        create: `aiofastnet.create_server` or `create_unix_server`, which binds the sockets.
        loop: the event loop, as aiofastnet is to see it.
        where, options: arguments of `create` that say where to listen.
        backlog: connections that the system holds until they are accepted.
        tls: arguments of aiofastnet for TLS.
    """
    bound = await create(loop, handshakes.accept, *where, start_serving=False, **options)
    return TlsListener(loop, bound, handshakes, backlog, tls)


async def _read_proxy_header(loop: Any, sock: socket.socket) -> ProxyHeader:
    """The PROXY header that comes before TLS. Nothing behind it is taken from the socket.

    Raises:
        BadProxyHeader: what came is none.
        ConnectionError: the proxy has left.
    """
    buffer = b""
    while True:
        await _readable(loop, sock)
        try:
            seen = sock.recv(MAX_HEADER - len(buffer), socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            continue
        if not seen:
            raise ConnectionResetError("the proxy has left before its header was over")
        header = parse_proxy_header(buffer + seen)
        # What is not a whole header yet is a part of it.
        buffer += sock.recv(len(seen) if header is None else header.size - len(buffer))
        if header is not None:
            return header


async def _readable(loop: Any, sock: socket.socket) -> None:
    """Wait until there is something to read, or the end."""
    waiter = loop.create_future()
    loop.add_reader(sock.fileno(), _finish, waiter)
    try:
        await waiter
    finally:
        loop.remove_reader(sock.fileno())


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class TlsListener:
    """What `listen_tls` returns."""

    def __init__(
        self,
        loop: Any,
        bound: asyncio.AbstractServer,
        handshakes: PendingHandshakes,
        backlog: int,
        tls: dict[str, Any],
    ) -> None:
        self._loop = loop
        self._bound = bound
        self._handshakes = handshakes
        self._backlog = backlog
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()  # TLS handshakes under way
        self._listening: list[socket.socket] = [sock.dup() for sock in self.sockets]
        for sock in self._listening:
            sock.setblocking(False)
            sock.listen(backlog)
            loop.add_reader(sock.fileno(), self._accept, sock)

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The listening sockets."""
        return tuple(self._bound.sockets)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Accept no more, and drop the connections whose TLS handshake is not over."""
        for sock in self._listening:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._listening.clear()
        self._bound.close()
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until those connections are gone."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(self._backlog):
            try:
                sock, peer = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in _SHORTAGE:
                    raise
                # The system would tell again at once that somebody waits.
                self._loop.remove_reader(listening.fileno())
                self._loop.call_later(RETRY, self._go_on, listening)
                return
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                sock.close()  # it was reset, which uvloop would tell aiofastnet but once, with what came before it
                continue
            handshake = self._handshakes.accept()
            try:
                self._handshakes.add(handshake, sock.fileno(), peer)
            except Rejection as rejection:
                sock.close()
                self._handshakes.dropped(peer, rejection)
                continue
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = self._loop.create_task(self._secure(sock, handshake))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _go_on(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    async def _secure(self, sock: socket.socket, handshake: ServerHandshake) -> None:
        """Do the TLS handshake; when it succeeds, aiofastnet tells `handshake` of its transport."""
        tls = self._tls
        try:
            if handshake.awaits_proxy_header:
                async with asyncio.timeout(self._handshakes.left(handshake)):
                    header = await _read_proxy_header(self._loop, sock)
                if handshake not in self._handshakes:
                    return  # it took too long, or the server is closed
                self._handshakes.identify(handshake, header.source)
                tls = tls | {"ssl_handshake_timeout": self._handshakes.left(handshake) or LEAST}
            await aiofastnet.connect_accepted_socket(self._loop, lambda: handshake, sock, **tls)
        except BadProxyHeader as error:
            self._handshakes.dropped(handshake.remote_addr, Rejection(400, str(error)))
        except Rejection as rejection:
            self._handshakes.dropped(handshake.remote_addr, rejection)
        except OSError as error:  # the client is gone, speaks no TLS, or takes too long: as health checks do
            self._handshakes.tls_failed(handshake, error)
        finally:
            if not handshake.is_connected:
                self._handshakes.remove(handshake)
                sock.close()
