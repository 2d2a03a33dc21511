"""Where a server listens: addresses, paths, sockets that it is given, and those that the process was started with.

Owns how the sockets are made. Accepting is the event loop's; for TLS, and on asyncio, `fabric._handshake.acceptor`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from fabric._config.addresses import INHERITED
from fabric._connection.nodelay import send_without_delay
from fabric._handshake.acceptor import Acceptor, start_accepting
from fabric._handshake.tls import TLS_BUFFERS, TlsLoop, tls_context
from fabric._server.handover import HandoverSocket

if TYPE_CHECKING:
    from fabric._handshake.server import PendingHandshakes
    from fabric.config import ServerConfig

__all__ = ["Listener", "bound_path", "free_port", "inherited_sockets", "listen"]

AT_ONCE = 64  # connections that are received in a row from a process that accepts them
A_TURN = 4  # connections that uvloop accepts on a socket in one turn; each more costs a lone one an accept(2) in vain
FIRST_PASSED = 3  # the descriptor of the first socket that systemd passes (sd_listen_fds(3))

_Accepting = asyncio.AbstractServer | Acceptor


class Listener:
    """All that accepts connections for one server.

    Args:
        accepting: of each socket, or of those of one name. `multiply` adds those of their duplicates.
        path, inode: of a UNIX-domain socket that is to be removed in the end, unless it is another one by then.
    """

    def __init__(self, accepting: list[_Accepting], *, path: str = "", inode: int | None = None) -> None:
        self._accepting = accepting
        self._duplicates: list[_Accepting] = []
        self._path = path
        self._inode = inode

    async def multiply(self, create: _Creator) -> None:
        """Have uvloop accept several connections in one turn, by more descriptors of each listening socket.

        On each descriptor libuv accepts one a turn. Turns of a busy server are long; and on an idle one, connections
        that are opened one by one cost more than those that share a turn.
        """
        for each in self._accepting:
            if not isinstance(each, Acceptor):
                for sock in each.sockets:  # type: ignore[attr-defined]
                    for _ in range(A_TURN - 1):
                        duplicate = sock.dup()
                        try:
                            self._duplicates.append(await create.on_socket(duplicate))
                        except BaseException:
                            duplicate.close()
                            raise

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets."""
        return tuple(sock for each in self._accepting for sock in each.sockets)  # type: ignore[union-attr]

    @property
    def descriptors(self) -> list[int]:
        """Of these sockets and their duplicates, and of connections that have no transport yet."""
        others = [sock for each in self._accepting if isinstance(each, Acceptor) for sock in each.unshown]
        others += [sock for each in self._duplicates for sock in each.sockets]  # type: ignore[union-attr]
        return [sock.fileno() for sock in (*self.sockets, *others)]

    @property
    def turns_away(self) -> bool:
        """Is it the event loop that accepts, and turns clients away in silence where there is no descriptor for them?

        So does uvloop (libuv). An Acceptor lets them wait, and says so.
        """
        return not all(isinstance(each, Acceptor) for each in self._accepting)

    def stop(self) -> None:
        """Accept no more; what was accepted goes on."""
        self._remove_path()
        for each in (*self._accepting, *self._duplicates):
            each.stop() if isinstance(each, Acceptor) else each.close()

    def close(self) -> None:
        """Accept no more, and drop connections that have no transport yet."""
        self._remove_path()
        for each in (*self._accepting, *self._duplicates):
            each.close()

    def _remove_path(self) -> None:
        if self._inode is not None:
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)
            self._inode = None

    async def wait_closed(self) -> None:
        """Wait until nothing that was accepted is on its way any more."""
        for each in (*self._accepting, *self._duplicates):
            await each.wait_closed()


async def listen(loop: asyncio.AbstractEventLoop, config: ServerConfig, handshakes: PendingHandshakes) -> Listener:
    """Accept connections for `handshakes` where `config` says.

    The loop's own transports are used for plain connections, aiofastnet's for TLS, where they are faster.

    Raises:
        OSError: the address is in use, or not ours; the sockets that are to be inherited are not there.
    """
    create = _Creator(loop, config, handshakes)
    listener = await _listen(create, config)
    try:
        await listener.multiply(create)
    except BaseException:
        listener.close()
        raise
    return listener


async def _listen(create: _Creator, config: ServerConfig) -> Listener:
    given = config.sock or inherited_sockets(config.bind)
    if given is not None:
        listener = Listener([])
        try:
            for sock in given:
                listener._accepting.append(await create.on_socket(sock))
        except BaseException:
            listener.close()
            raise
        return listener
    if config.unix_path is not None:
        bound, inode = bound_path(config.unix_path, config.unix_mode)
        return Listener([await create.on_socket(bound)], path=config.unix_path, inode=inode)
    # uvloop would look even an address up in threads, which then stay: system calls of a process that has several
    # cost more.
    literal = _bound(config.host, config.port, reuse_port=config.reuse_port) if config.host else None
    if literal is not None:
        return Listener([await create.on_socket(literal)])
    attempts = 1 if config.port else 10  # another process may be faster at a port that was free
    while True:
        attempts -= 1
        try:
            return Listener([await create.on_name(config.host, config.port or free_port())])
        except OSError:
            if not attempts:
                raise


class _Creator:
    """Makes the event loop accept connections on sockets of each kind, with TLS or without."""

    def __init__(self, loop: asyncio.AbstractEventLoop, config: ServerConfig, handshakes: PendingHandshakes) -> None:
        self._loop: Any = loop
        self._handshakes = handshakes
        self._tls: dict[str, Any] | None = None
        self._reuse_port = config.reuse_port or None
        self._options: dict[str, Any] = {"backlog": config.backlog}
        self._create: Callable[..., Awaitable[_Accepting]]
        self._create_unix: Callable[..., Awaitable[_Accepting]]
        self._create = functools.partial(loop.create_server, handshakes.accept)
        self._create_unix = functools.partial(loop.create_unix_server, handshakes.accept)
        if config.ssl is not None:
            import aiofastnet  # not for plain connections: it takes its time

            tls_loop: Any = TlsLoop(loop)
            self._loop = tls_loop
            context, timeout = tls_context(config.ssl), config.handshake_timeout
            self._tls = {"ssl": context, "ssl_handshake_timeout": timeout} | TLS_BUFFERS
            accepting: dict[str, Any] = {"loop": tls_loop, "handshakes": handshakes, "tls": self._tls}
            create: Any = functools.partial(aiofastnet.create_server, tls_loop)
            create_unix: Any = functools.partial(aiofastnet.create_unix_server, tls_loop)
        elif isinstance(loop, asyncio.SelectorEventLoop):
            accepting = {"loop": loop, "handshakes": handshakes, "tls": None}
            create, create_unix = loop.create_server, loop.create_unix_server
        else:
            return
        self._create = functools.partial(start_accepting, create, **accepting)
        self._create_unix = functools.partial(start_accepting, create_unix, **accepting)

    async def on_socket(self, sock: socket.socket) -> _Accepting:
        """On a socket that is bound, or on one by which another process hands connections over."""
        if isinstance(sock, HandoverSocket):
            return Acceptor(self._loop, [sock], self._handshakes, AT_ONCE, self._tls)
        if sock.family == socket.AF_UNIX:
            try:
                # The path of a socket that was given stays: systemd's, say. From Python 3.13 on it would be removed.
                return await self._create_unix(sock=sock, cleanup_socket=False, **self._options)
            except TypeError:  # a loop that removes none, and does not know the option
                return await self._create_unix(sock=sock, **self._options)
        send_without_delay(sock)  # accepted sockets inherit it
        return await self._create(sock=sock, **self._options)

    async def on_name(self, host: str | None, port: int) -> _Accepting:
        """On each address of `host`, or on all."""
        return await self._create(host=host, port=port, reuse_port=self._reuse_port, **self._options)


def inherited_sockets(bind: str, environ: Mapping[str, str] = os.environ) -> tuple[socket.socket, ...] | None:
    """The sockets that `bind` names as given to this process; None when it names an address or a path.

    systemd says in LISTEN_PID to which process it has passed LISTEN_FDS sockets, and in LISTEN_FDNAMES their names
    (sd_listen_fds(3)).

    Raises:
        OSError: they are not there, or no stream sockets.
    """
    form = INHERITED.fullmatch(bind)
    if form is None:
        return None
    if form["descriptor"] is not None:
        return (_inherited(int(form["descriptor"])),)
    passed, count = environ.get("LISTEN_PID", ""), environ.get("LISTEN_FDS", "")
    if passed != str(os.getpid()) or not count.isdecimal():
        raise OSError(errno.ENOENT, "systemd has passed no sockets to this process (LISTEN_PID, LISTEN_FDS)")
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    numbers = range(FIRST_PASSED, FIRST_PASSED + int(count))
    wanted = [
        number
        for index, number in enumerate(numbers)
        if not form["name"] or (index < len(names) and names[index] == form["name"])
    ]
    if not wanted:
        raise OSError(errno.ENOENT, "systemd has passed no socket of this name (LISTEN_FDNAMES)")
    return tuple(map(_inherited, wanted))


def _inherited(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise OSError(error.errno, f"descriptor {descriptor} is no socket: {os.strerror(error.errno or 0)}") from error
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise OSError(errno.EPROTOTYPE, f"descriptor {descriptor} is no stream socket")
    sock.setblocking(False)
    sock.set_inheritable(False)
    return sock


def bound_path(path: str, mode: int | None) -> tuple[socket.socket, int | None]:
    """A socket at a path, and its inode, which an abstract one has not; instead of one that is listened on no more.

    Raises:
        OSError: another server listens there, or there is another kind of file.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        is_abstract = path.startswith("\0")
        if not is_abstract:
            _remove_stale(path)
        sock.bind(path)
        if is_abstract:
            return sock, None
        if mode is not None:
            os.chmod(path, mode)  # nobody can connect before listen(2)
        return sock, os.stat(path).st_ino
    except BaseException:
        sock.close()
        raise


def _remove_stale(path: str) -> None:
    """Remove the socket of a server that has gone without doing so itself."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # bind(2) says that it is in use
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # somebody listens, and is busy; or bind(2) says what is wrong


def _bound(host: str, port: int, *, reuse_port: bool) -> socket.socket | None:
    """A socket at a literal address; None for a name, which stands for any number of addresses."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    return socket.create_server((host, port), family=family, reuse_port=reuse_port)


def free_port() -> int:
    """A port that is free on every address: the event loops would choose one for each address that they listen on."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as probe:
        port: int = probe.getsockname()[1]
    return port
