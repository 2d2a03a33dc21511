"""Which TLS engine serves a context, and which of its reports reach the event loop's exception handler.

aiofastnet 1.2 has two engines. The direct one calls OpenSSL on the SSL_CTX inside an `ssl.SSLContext`, the standard
one calls the module `ssl`. The direct one takes a sixth less CPU time for a small message, but CPython's callbacks find
none of the Python objects that they expect:

- `sni_callback`, `keylog_filename` and `_msg_callback` crash the process. The first two do so even when they are set
  while a handshake is under way, so that looking at the context before each handshake is not enough.
- PSK callbacks and the session id context that resumption with client certificates needs (both CPython 3.13),
  `post_handshake_auth`, `sslobject_class` and the methods of a subclass are ignored. Whether there are PSK callbacks
  cannot be asked.

Neither serves a loop whose transports are used by several threads, as those of `fabric.sync` are: aiofastnet refuses
that. There asyncio's own TLS does.

So the direct engine serves the one context that is made here and that nobody else can change; every context that is
given to us is served by the standard engine.
"""

from __future__ import annotations

import _ssl
import asyncio
import contextlib
import functools
import socket
import ssl
import weakref
from collections.abc import Callable
from typing import Any

from fabric.error import Tls

__all__ = [
    "TLS_BUFFERS",
    "AlertingContext",
    "TlsLoop",
    "default_context",
    "has_own_tls",
    "tls_context",
    "tls_failure",
    "without_buffers",
]

# Bytes of either TLS buffer of a connection: one record, which is 16 KB and a bit, and some more. The default
# of aiofastnet is 263 KB each.
TLS_BUFFERS = {"ssl_incoming_bio_size": 20 * 1024, "ssl_outgoing_bio_size": 20 * 1024}

# OpenSSL's reasons where the peer speaks something else, such as plain HTTP.
_NOT_TLS = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "PACKET_LENGTH_TOO_LONG", "WRONG_VERSION_NUMBER"})


def has_own_tls(loop: asyncio.AbstractEventLoop) -> bool:
    """Is TLS on this loop asyncio's own, rather than aiofastnet's?"""
    return getattr(loop, "changes_threads", False)


def without_buffers(options: dict[str, Any]) -> dict[str, Any]:
    """Options for aiofastnet as those for asyncio's own TLS, which decides on its buffers itself."""
    return {name: value for name, value in options.items() if name not in TLS_BUFFERS}


@functools.cache
def default_context() -> ssl.SSLContext:
    """What a client uses when it is given no context: the system's certificates.

    Made once: reading the certificates takes 10 ms and half a megabyte. Nobody but `tls_context` may hand it on.
    """
    return ssl.create_default_context()


def tls_context(context: ssl.SSLContext | None) -> Any:
    """What to give to aiofastnet as `ssl`, so that the right engine serves `context`; None is for the default one."""
    if context is not None:
        return _StandardEngine(context)
    made = default_context()
    return made if _is_plain(made) else _StandardEngine(made)


def _is_plain(context: ssl.SSLContext) -> bool:
    """Whether the SSL_CTX is all there is to `context`.

    SSLKEYLOGFILE in the environment sets `keylog_filename`; packages that replace `ssl.SSLContext` make subclasses, and
    programs that look into TLS replace `ssl.create_default_context` by a function that sets more.
    """
    is_original = type(context).__base__ is _ssl._SSLContext and not vars(context)
    has_callback = context.keylog_filename is not None or context._msg_callback is not None
    return is_original and not has_callback and not context.post_handshake_auth


def tls_failure(what: str, error: ssl.SSLError) -> Tls:
    """The error for `what`, as in "TLS handshake with example.org", that failed with `error`."""
    reason = getattr(error, "reason", None) or ""  # the class has the attribute only where OpenSSL gave one
    rejected = isinstance(error, ssl.SSLCertVerificationError)
    why = reason or str(error)
    if rejected:
        why = f"certificate not accepted, {getattr(error, 'verify_message', None) or why}"
    elif reason in _NOT_TLS:
        why = f"the answer is not TLS ({reason})"
    return Tls(f"{what} failed: {why}", reason=reason, certificate_rejected=rejected)


class _StandardEngine:
    """An `ssl.SSLContext` as aiofastnet is to see it. The context itself is not changed."""

    __slots__ = ("_context",)

    _aiofastnet_force_fallback_ssl = True

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """`aiofastnet.start_tls` asks whether it is an `ssl.SSLContext`."""
        return type(self._context)


class AlertingContext(_StandardEngine):
    """A server's context for one connection: a TLS handshake that fails ends in an alert (RFC 8446 §6.2).

    aiofastnet 1.2 closes the socket as soon as OpenSSL has refused the client, and never sends the alert that OpenSSL
    has made. The client would only see that the server hung up.

    Args:
        context: a `_StandardEngine`.
        sock: the connection, not blocking.

    Attributes:
        told: a duplicate of `sock` by which an alert was sent; the caller closes it.
    """

    __slots__ = ("_sock", "told")

    def __init__(self, context: Any, sock: socket.socket) -> None:
        super().__init__(context)
        self._sock = sock
        self.told: socket.socket | None = None

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, **options: Any) -> ssl.SSLObject:
        """As `ssl.SSLContext.wrap_bio`. The `do_handshake` of what it returns is ours until the handshake is over."""
        tls: ssl.SSLObject = self._context.wrap_bio(incoming, outgoing, **options)
        # A weak reference: one that never comes to its end would keep itself.
        self._replace(tls, functools.partial(self._do_handshake, weakref.ref(tls), outgoing))
        return tls

    def _replace(self, tls: ssl.SSLObject, method: Callable[[], None]) -> None:
        tls.do_handshake = method  # type: ignore[method-assign]

    def _do_handshake(self, reference: weakref.ref[ssl.SSLObject], outgoing: ssl.MemoryBIO) -> None:
        tls = reference()
        assert tls is not None
        mine = vars(tls).pop("do_handshake")
        try:
            tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._replace(tls, mine)
            raise
        except ssl.SSLError:
            self._tell(outgoing.read())
            raise

    def _tell(self, alert: bytes) -> None:
        with contextlib.suppress(OSError):  # the client has gone, or there is no file descriptor
            if alert and self._sock.send(alert) == len(alert):
                self.told = self._sock.dup()


class TlsLoop:
    """Stands for `loop` in what aiofastnet 1.2 does not do well, with it or instead of it."""

    __slots__ = ("_loop", "_readers")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # By descriptor: the method that the loop calls when there is something to read. asyncio's loops forget none.
        self._readers: dict[int, weakref.ref[Any]] | None = None if isinstance(loop, asyncio.SelectorEventLoop) else {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """aiofastnet asks which kind of loop it is: it does something else with those of Windows."""
        return type(self._loop)

    def add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        """Have `callback` called when there is something to read; a transport's own until it is removed.

        When a connection is reset, uvloop calls it once more and lets go of it (libuv reports the error as "bad file
        descriptor"). A transport that reads the bytes before the reset then would never learn of the reset itself. So
        when the loop lets go of its method unasked, it is added again.
        """
        if self._readers is None or getattr(callback, "__name__", "") != "_read_ready":
            self._loop.add_reader(fd, callback, *args)
            return
        transport = callback.__self__  # type: ignore[attr-defined]
        # Before the loop is told: it lets go of the one that it had.
        self._readers[fd] = weakref.ref(callback, functools.partial(self._let_go, fd, transport))
        try:
            self._loop.add_reader(fd, callback)
        except BaseException:
            self._readers.pop(fd, None)
            raise

    def remove_reader(self, fd: int) -> bool:
        """Have nothing called any more."""
        if self._readers is not None:
            self._readers.pop(fd, None)
        return self._loop.remove_reader(fd)

    def _let_go(self, fd: int, transport: Any, reader: weakref.ref[Any]) -> None:
        if self._readers is not None and self._readers.get(fd) is reader and not self._loop.is_closed():
            self._loop.call_soon(self._add_again, fd, transport, reader)  # not amid what it is doing

    def _add_again(self, fd: int, transport: Any, reader: weakref.ref[Any]) -> None:
        if self._readers is None or self._readers.get(fd) is not reader:
            return  # it was removed, or another was added
        self.remove_reader(fd)  # uvloop keeps what is left of the old one
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.fileno() == fd:
            self.add_reader(fd, transport._read_ready)

    def call_soon(self, callback: Callable[..., object], *args: Any, **options: Any) -> asyncio.Handle:
        """Schedule `callback`, but where aiofastnet's own would go wrong.

        When a transport is to go on reading, it schedules `buffer_updated(0)`, which its standard engine does not
        implement: it would raise, and what has been decrypted would wait until more comes, which may be never. It is
        delivered instead. And a transport that is closed before it has begun to read must not begin then: its
        descriptor would stay with the loop, which breaks the next connection that gets the number.
        """
        name = getattr(callback, "__name__", "")
        if name == "buffer_updated" and args == (0,):
            return self._loop.call_soon(callback.__self__._retry_ssl_read, **options)  # type: ignore[attr-defined]
        if name == "add_reader":
            return self._loop.call_soon(self._begin_reading, *args, **options)
        return self._loop.call_soon(callback, *args, **options)

    def _begin_reading(self, fd: int, callback: Callable[..., object]) -> None:
        if not callback.__self__.is_closing():  # type: ignore[attr-defined]
            self.add_reader(fd, callback)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Pass on every report but that a peer hung up in the TLS handshake.

        aiofastnet reports that as a fault, as asyncio's own TLS does, and gives the class ConnectionResetError where an
        error belongs, over which logging stumbles. A client's `connect` raises the error anyway; on a server every
        health check and port scan leaves like that. An error that is an instance, of whatever kind, is another.
        """
        if context.get("exception") is not ConnectionResetError:
            self._loop.call_exception_handler(context)
