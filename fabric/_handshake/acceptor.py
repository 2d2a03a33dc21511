"""Accepts connections where the event loop's own listener would not do.

For TLS: aiofastnet's listener reports no connection before its TLS handshake is over. Clients that never begin
it would not be counted, and a server that stops would wait for them. On asyncio: its listener reports a shortage of
file descriptors thousands of times a second. So the sockets are listened on here, and asyncio or aiofastnet makes the
transport of a connection that may stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

from fabric._connection.nodelay import send_without_delay
from fabric._handshake.descriptors import SHORTAGE
from fabric._handshake.proxy_header import MAX_HEADER, BadProxyHeader, ProxyHeader, parse_proxy_header
from fabric._handshake.rules import Rejection
from fabric._handshake.tls import AlertingContext

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fabric._handshake.server import PendingHandshakes, ServerHandshake

__all__ = ["Acceptor", "start_accepting"]

LEAST = 0.001  # seconds for a TLS handshake whose time is over
LINGER = 1.0  # seconds that a client has to hang up once it was told why its TLS handshake has failed
RETRY = 1.0  # seconds until connections are accepted again after descriptors or memory have run out


async def start_accepting(
    create: Callable[..., Awaitable[asyncio.AbstractServer]],
    *,
    loop: Any,
    handshakes: PendingHandshakes,
    backlog: int,
    tls: dict[str, Any] | None,
    **where: Any,
) -> Acceptor:
    """Accept connections for `handshakes`.

    Args:
        create: `create_server` or `create_unix_server` of the loop or of aiofastnet, which binds the sockets.
        loop: the event loop, as aiofastnet is to see it.
        backlog: connections that the system holds until they are accepted.
        tls: arguments of aiofastnet for TLS; None for plain connections.
        where: arguments of `create` that say where to listen.
    """
    bound = await create(handshakes.accept, start_serving=False, **where)
    listening = [sock.dup() for sock in bound.sockets]  # type: ignore[attr-defined]
    for sock in listening:
        sock.setblocking(False)
        sock.listen(backlog)
    return Acceptor(loop, listening, handshakes, backlog, tls, bound)


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


async def _until_it_hangs_up(loop: Any, sock: socket.socket, seconds: float) -> None:
    """Throw away what still comes. Closing with bytes unread would reset the connection, and what was sent be lost."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            sock.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(sock, 4096):
                pass


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Acceptor:
    """What `start_accepting` returns.

    Args:
        listening: sockets on which connections are accepted, until one raises EOFError; they are closed here.
        at_once: connections that are accepted in a row.
        bound: what has bound these sockets, if it is not they themselves.
    """

    def __init__(
        self,
        loop: Any,
        listening: list[socket.socket],
        handshakes: PendingHandshakes,
        at_once: int,
        tls: dict[str, Any] | None,
        bound: asyncio.AbstractServer | None = None,
    ) -> None:
        self._loop = loop
        self._bound = bound
        self._handshakes = handshakes
        self._at_once = at_once
        self._tls = tls
        self._opening: dict[asyncio.Task[None], socket.socket] = {}  # connections that have no transport yet
        self._listening = listening
        for sock in listening:
            loop.add_reader(sock.fileno(), self._accept, sock)

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The listening sockets."""
        return tuple(self._listening if self._bound is None else self._bound.sockets)  # type: ignore[attr-defined]

    @property
    def unshown(self) -> list[socket.socket]:
        """Sockets that nobody else knows: by which connections are accepted, and of those without a transport.

        The former are duplicates, where the event loop has bound them.
        """
        return [*self._listening, *self._opening.values()]

    def stop(self) -> None:
        """Accept no more. Connections that have no transport yet, as their TLS handshake is not over, go on."""
        for sock in self._listening:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._listening.clear()
        if self._bound is not None:
            self._bound.close()

    def close(self) -> None:
        """Accept no more, and drop the connections that have no transport yet."""
        self.stop()
        for task in self._opening:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until those connections are gone."""
        if self._opening:
            await asyncio.wait(self._opening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(self._at_once):
            try:
                sock, peer = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except EOFError:
                self._loop.remove_reader(listening.fileno())
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in SHORTAGE:
                    raise
                # The system would report again at once that a connection waits.
                self._loop.remove_reader(listening.fileno())
                self._loop.call_later(RETRY, self._go_on, listening)
                self._handshakes.watch.ran_out(error)
                return
            self._handshakes.watch.accepted()
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                sock.close()  # it was reset already
                continue
            handshake = self._handshakes.accept()
            if self._tls is not None:
                try:
                    self._handshakes.add(handshake, sock.fileno(), peer)
                except Rejection as rejection:
                    sock.close()
                    self._handshakes.dropped(peer, rejection)
                    continue
            sock.setblocking(False)
            send_without_delay(sock)
            opening = self._open(sock, handshake) if self._tls is None else self._secure(sock, handshake, self._tls)
            task = self._loop.create_task(opening)
            self._opening[task] = sock
            task.add_done_callback(self._opening.pop)

    def _go_on(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    async def _open(self, sock: socket.socket, handshake: ServerHandshake) -> None:
        """Have the loop make a transport, of which it tells `handshake`."""
        try:
            await self._loop.connect_accepted_socket(lambda: handshake, sock)
        finally:
            if not handshake.is_connected:
                sock.close()

    async def _secure(self, sock: socket.socket, handshake: ServerHandshake, tls: dict[str, Any]) -> None:
        """Do the TLS handshake; when it succeeds, aiofastnet tells `handshake` of its transport."""
        import aiofastnet  # what listens for TLS has imported it

        context = AlertingContext(tls["ssl"], sock)
        tls = tls | {"ssl": context}
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
            if context.told is not None:
                # Half of what it has left: it is not late, and is counted meanwhile.
                await _until_it_hangs_up(self._loop, context.told, min(LINGER, self._handshakes.left(handshake) / 2))
        finally:
            if context.told is not None:
                context.told.close()
            if not handshake.is_connected:
                self._handshakes.remove(handshake)
                sock.close()
