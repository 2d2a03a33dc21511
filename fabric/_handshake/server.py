"""The opening handshakes of a server: each connection from accept until it is a WebSocket, or is answered otherwise.

Owns the bytes of the request, its deadline, and the limits of how many connections may be at this stage. What a valid
request is, `fabric._handshake.rules` says; whom to let in, the application (`process_request`) and the server
(`upgrade`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fabric._connection.events import log_event
from fabric._handshake.descriptors import EARLY, DescriptorWatch
from fabric._handshake.proxy_header import BadProxyHeader, parse_proxy_header
from fabric._handshake.rules import HEAD_END, RETRY_AFTER, Rejection, check_upgrade, rejection_of, unavailable
from fabric._http.messages import Request, address_of, as_response
from fabric_ext.http_head import RequestHead
from fabric_ext.poller import read_now
from fabric_ext.receive_queue import fresh
from fabric_ext.session import stop_loop

if TYPE_CHECKING:
    from fabric._http.messages import Address, Response
    from fabric.config import ServerConfig
    from fabric.headers import HeaderMap
    from fabric.metrics import MetricsCollector

__all__ = ["PendingHandshakes", "ServerHandshake"]

LINGER = 1.0  # seconds that a client has to hang up once it was answered
MAX_LINGERING = 256  # connections that are given that time at once; others are closed without
SWEEPS = 50  # at most, in one handshake_timeout: a deadline may be missed by this part of it

Upgrade = Callable[["ServerHandshake", RequestHead, bytes, "HeaderMap | None"], None]


class PendingHandshakes:
    """The opening handshakes of one server that have not come to their end. `accept` is its protocol factory.

    Args:
        loop: the event loop of the server.
        config: limits and deadline: `handshake_timeout`, `max_header_size`; and `max_connections` and
            `max_connections_per_ip`, each of which bounds, besides the open connections, those in here.
        logger: for refusals, and for errors of the application.
        metrics: where refusals and deadlines that have passed are counted.
        process_request: called with the `Request`; what it may return, `WebSocketServer` says. None to ask nobody.
        upgrade: called with the handshake, the head of its valid request, the bytes that came after it, and the
            headers that `process_request` wants in the answer, or None. Takes the transport over
            (`ServerHandshake.take_transport`), or raises Rejection.
        watch: is told of the file descriptor of each new connection, and of a lack of them.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: ServerConfig,
        logger: logging.Logger,
        metrics: MetricsCollector,
        process_request: Callable[[Request], Any] | None,
        upgrade: Upgrade,
        watch: DescriptorWatch,
    ) -> None:
        self.loop = loop
        self.logger = logger
        self.metrics = metrics
        self.process_request = process_request
        self.upgrade = upgrade
        self.watch = watch
        self.timeout = config.handshake_timeout
        self.max_header_size = config.max_header_size
        self._max = config.max_connections
        self._max_per_ip = config.max_connections_per_ip
        self._proxies = (
            config.proxy_protocol
            if isinstance(config.proxy_protocol, bool)
            else tuple(ipaddress.ip_network(proxy) for proxy in config.proxy_protocol)
        )
        self._pending: set[ServerHandshake] = set()
        self._per_ip: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._closed: Rejection | None = None
        self.lingering: dict[ServerHandshake, asyncio.Transport] = {}  # answered; their clients have not hung up yet
        self._none_lingers = asyncio.Event()
        self._none_lingers.set()

    def accept(self) -> ServerHandshake:
        """The protocol for a connection that was accepted."""
        return ServerHandshake(self)

    def __len__(self) -> int:
        return len(self._pending)

    def close(self, rejection: Rejection) -> None:
        """Answer all with `rejection`, and all that come from now on."""
        self._closed = rejection
        for handshake in list(self._pending):
            try:
                handshake.refuse(rejection)
            except Exception as error:  # noqa: BLE001  (logged)
                log_event(self.logger, logging.ERROR, "an opening handshake could not be refused", exc_info=error)
        if self._timer is not None:  # none is left to be late
            self._timer.cancel()
            self._timer = None

    async def answers_taken(self, timeout: float) -> None:
        """After `close`: wait until the clients have hung up, for `timeout` seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._none_lingers.wait()

    def abort_answered(self) -> None:
        """Hang up on the clients that were answered: no transport may outlive the server."""
        for transport in list(self.lingering.values()):
            transport.abort()

    # -- for ServerHandshake

    def __contains__(self, handshake: ServerHandshake) -> bool:
        return handshake in self._pending

    def add(self, handshake: ServerHandshake, descriptor: int, peer: Any) -> None:
        """Begin the handshake of a connection.

        Args:
            handshake: made by `accept`.
            descriptor: of the socket.
            peer: the client's address, as sockets give it.

        Raises:
            Rejection: there are too many already, or the server is closed.
        """
        self.watch.note(descriptor)
        handshake.remote_addr = peer
        if self._closed is not None:
            raise fresh(self._closed)
        if len(self._pending) >= self._max:
            raise unavailable(f"{self._max} connections are in their opening handshake")
        if self._proxies and self._is_proxy(peer):
            handshake.awaits_proxy_header = True
        elif self._max_per_ip:
            self._count_address(handshake)
        self._pending.add(handshake)
        if self._timer is None:
            self._timer = self.loop.call_later(self.left(handshake), self._sweep)

    def identify(self, handshake: ServerHandshake, source: Address | None) -> None:
        """The proxy has said whose connection it is: of the client at `source`, or of its own if that is None.

        Raises:
            Rejection: the client has too many already.
        """
        handshake.awaits_proxy_header = False
        if source is not None:
            handshake.remote_addr = source
        self._count_address(handshake)

    def _is_proxy(self, peer: Address) -> bool:
        """Does a PROXY header come first on a connection from `peer`?"""
        if isinstance(self._proxies, bool) or not isinstance(peer, tuple):
            return self._proxies is True
        address = ipaddress.ip_address(peer[0].partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any((mapped or address) in proxy for proxy in self._proxies)

    def _count_address(self, handshake: ServerHandshake) -> None:
        peer = handshake.remote_addr
        if not self._max_per_ip or not isinstance(peer, tuple):  # UNIX-domain sockets have no addresses
            return
        ip = peer[0]
        if self._per_ip[ip] >= self._max_per_ip:
            raise too_many_from_one_address(self._max_per_ip)
        handshake.ip = ip
        self._per_ip[ip] += 1

    def dropped(self, peer: Any, rejection: Rejection) -> None:
        """A connection was closed without words: its answer would have to go through TLS, which has not begun."""
        self.note_answer(peer, rejection.response.status, rejection.logged)

    def tls_failed(self, handshake: ServerHandshake, error: OSError) -> None:
        """The TLS handshake of a connection has failed, or has taken too long."""
        if handshake not in self._pending:
            return  # closed here, which is known
        if self.left(handshake) <= EARLY:
            handshake.time_out()
        else:
            self.tell("the TLS handshake of %s failed: %s", handshake.remote_addr, error)

    def note_answer(self, peer: Any, status: int, why: str) -> None:
        """Count and log what the client at `peer` was answered instead of an upgrade."""
        if status >= 400:
            self.metrics.record_refusal(status)
        text = "the opening handshake of %s is answered %d" + (": %s" if why else "")
        self.tell(text, peer, status, *([why] if why else []), status=status, reason=why)

    def tell(self, text: str, peer: Any, *args: object, **extra: Any) -> None:
        """Write to the log, at DEBUG, what has become of the connection of the client at `peer`."""
        log_event(self.logger, logging.DEBUG, text, peer, *args, address=peer, **extra)

    def linger(self, handshake: ServerHandshake, transport: asyncio.Transport) -> None:
        """A connection was answered, and is open until its client hangs up."""
        self.lingering[handshake] = transport
        self._none_lingers.clear()

    def lost(self, handshake: ServerHandshake) -> None:
        """A connection has gone that may have been one of those."""
        if self.lingering.pop(handshake, None) is not None and not self.lingering:
            self._none_lingers.set()

    def sockets(self) -> list[Any]:
        """The sockets of connections that are in their handshake or have been answered, as transports give them."""
        transports = [*(handshake._transport for handshake in self._pending), *self.lingering.values()]
        return [transport.get_extra_info("socket") for transport in transports if transport is not None]

    def remove(self, handshake: ServerHandshake) -> None:
        """A handshake has come to its end; again has no effect."""
        if handshake in self._pending:
            self._pending.remove(handshake)
            if handshake.ip is not None:
                self._per_ip[handshake.ip] -= 1
                if not self._per_ip[handshake.ip]:
                    del self._per_ip[handshake.ip]

    def left(self, handshake: ServerHandshake) -> float:
        """Seconds that a handshake still has."""
        return max(handshake.began + self.timeout - time.perf_counter(), 0)

    def _sweep(self) -> None:
        """End those whose deadline has passed. One timer for all: nearly none of them is ever late."""
        for handshake in [handshake for handshake in self._pending if not self.left(handshake)]:
            handshake.time_out()
        self._timer = None
        if self._pending:
            delay = max(min(map(self.left, self._pending)), self.timeout / SWEEPS)
            self._timer = self.loop.call_later(delay, self._sweep)


class ServerHandshake(asyncio.Protocol):
    """The protocol of a transport during its opening handshake.

    Attributes:
        request: what the client asks for, once its head is there.
        ip: the client's address, if there is a limit for each.
        remote_addr: the client's address, as sockets give it, or as a proxy tells it.
        awaits_proxy_header: a proxy has connected, and has not said yet for whom.
        is_connected: it has, or had, a transport; with TLS from the end of the TLS handshake.
        began: `time.perf_counter()` when the connection was accepted.
    """

    __slots__ = (
        "_buffer",
        "_handshakes",
        "_head",
        "_lingering",
        "_task",
        "_transport",
        "awaits_proxy_header",
        "began",
        "ip",
        "is_connected",
        "remote_addr",
        "request",
    )

    def __init__(self, handshakes: PendingHandshakes) -> None:
        self._handshakes = handshakes
        self._transport: asyncio.Transport | None = None
        self._head = RequestHead()
        self._buffer = b""
        self._task: asyncio.Future[Any] | None = None
        self._lingering: asyncio.TimerHandle | None = None  # since it was answered
        self.request: Request = None  # type: ignore[assignment]
        self.ip: str | None = None
        self.remote_addr: Address | None = None  # kept: a socket that was reset does not know it any more
        self.awaits_proxy_header = False
        self.is_connected = False
        self.began = time.perf_counter()

    # -- called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.is_connected = True
        if self in self._handshakes:
            return  # since before its TLS handshake
        sock, peer = transport.get_extra_info("socket"), address_of(transport, "peername")
        if sock is None or peer is None:  # what the event loops say when it was reset
            self._end()
            transport.abort()  # type: ignore[attr-defined]
            return
        try:
            self._handshakes.add(self, sock.fileno(), peer)
        except Rejection as rejection:
            self.refuse(rejection)
            return
        # Most requests are there before their connection is accepted: then the loop need not watch the socket yet.
        if transport.get_extra_info("ssl_object") is None and (data := read_now(sock.fileno())) is not None:
            self.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return  # answered: what still comes is thrown away
        buffer = self._buffer + data if self._buffer else data
        if self.awaits_proxy_header:
            rest = self._read_proxy_header(buffer)
            if rest is None:
                return
            self._buffer = buffer = rest
        if self.request is not None:
            self._buffer = buffer  # of a client that does not wait for the answer: read no further
            self._transport.pause_reading()
            return
        head, limit = self._head, self._handshakes.max_header_size
        end = head.feed(buffer)
        if head.fault:
            self.refuse(rejection_of(head.fault, head.wrong))
        elif (end or len(buffer)) > limit + len(HEAD_END):
            self.refuse(Rejection(431, f"the request head is over {limit} bytes"))
        elif end:
            self._buffer = buffer[end:]
            self._judge()
        else:
            self._buffer = buffer

    def _read_proxy_header(self, buffer: bytes) -> bytes | None:
        """What follows the PROXY header; None when that is not all there yet, or the connection was refused for it."""
        try:
            header = parse_proxy_header(buffer)
            if header is None:
                self._buffer = buffer
                return None
            self._handshakes.identify(self, header.source)
        except BadProxyHeader as error:
            self.refuse(Rejection(400, str(error)))
            return None
        except Rejection as rejection:
            self.refuse(rejection)
            return None
        return buffer[header.size :]

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end() is not None:
            self._handshakes.tell("%s has left during its opening handshake", self.remote_addr)
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        self._handshakes.lost(self)
        if self._task is not None:
            self._task.cancel()

    # -- judging the request

    def _judge(self) -> None:
        self.request = Request(self._head.data)
        process = self._handshakes.process_request
        try:
            request = self.request
            request.remote_addr = self.remote_addr
            request.peer_certificate = self._peer_certificate()
            answer = None if process is None else process(request)
            if answer is not None and inspect.isawaitable(answer):
                # A task of the awaitable itself: cancelled before it began, it would leave one never awaited.
                self._task = asyncio.ensure_future(answer, loop=self._handshakes.loop)
                self._task.add_done_callback(self._judged)
            else:
                self._decide(answer)
        except BaseException as error:  # noqa: BLE001  (answered and logged; what is no Exception goes on)
            self._fail(error)

    def _peer_certificate(self) -> Any:
        """The client's, if it has shown one and it was verified."""
        tls = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        return None if tls is None else tls.getpeercert() or None

    def _judged(self, task: asyncio.Future[Any]) -> None:
        if self._transport is None:
            return  # lost, or answered meanwhile: this is why the task was cancelled
        try:
            self._decide(task.result())
        except BaseException as error:  # noqa: BLE001  (answered and logged; what is no Exception goes on)
            self._fail(error)

    def _decide(self, answer: Any) -> None:
        """Do what `process_request` says."""
        if self._transport is None or self._transport.is_closing():
            return
        more = None
        if answer is not None:
            response = as_response(answer)
            if response.status != 101:
                self.answer(response)
                return
            more = response.headers
        check_upgrade(self._head)
        rest, self._buffer = self._buffer, b""
        self._handshakes.upgrade(self, self._head, rest, more)

    def _fail(self, error: BaseException) -> None:
        """Answer what was raised while the request was judged."""
        if isinstance(error, Rejection):
            self.refuse(error)
            return
        # Also CancelledError, which is that of something the application waited for: nothing here cancels this task.
        log_event(self._handshakes.logger, logging.ERROR, "the opening handshake failed", exc_info=error)
        self.refuse(Rejection(500, "internal error"))
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            stop_loop(self._handshakes.loop, error)
        elif not isinstance(error, (Exception, asyncio.CancelledError)):
            raise error

    # -- its end

    def take_transport(self) -> asyncio.Transport:
        """End this handshake and hand its transport over."""
        transport = self._end()
        assert transport is not None
        if self._task is not None:
            transport.resume_reading()
        return transport

    def refuse(self, rejection: Rejection) -> None:
        """Answer with `rejection` and close."""
        self.answer(rejection.response, rejection.logged)

    def answer(self, response: Response, why: str = "") -> None:
        """Send `response` and close; the log says `why`."""
        transport = self._end()
        self._buffer = b""
        if transport is None or transport.is_closing():
            return
        self._handshakes.note_answer(self.remote_addr, response.status, why)
        transport.write(response.encode(with_body=not self._head.is_head))
        if len(self._handshakes.lingering) >= MAX_LINGERING:
            if transport.get_write_buffer_size():
                transport.abort()
            else:
                transport.close()
            return
        try:
            if (
                transport.can_write_eof()
            ):  # closing with bytes unread would reset the connection, and the answer with it
                transport.write_eof()
            else:  # over TLS
                transport.close()
        except OSError:  # the client has closed, and asyncio tells the system at once
            transport.abort()
            return
        self._handshakes.linger(self, transport)
        self._linger(transport)

    def _linger(self, transport: asyncio.Transport, unsent: int | None = None) -> None:
        """Wait for the client to hang up, and as long as it takes more of the answer."""
        left = transport.get_write_buffer_size()
        if unsent is None or 0 < left < unsent:
            self._lingering = self._handshakes.loop.call_later(LINGER, self._linger, transport, left)
        else:
            transport.abort()

    def time_out(self) -> None:
        """The deadline has passed."""
        self._handshakes.metrics.record_handshake_timeout()
        if not self.is_connected:
            self._end()  # its socket closes with its TLS handshake
            self._handshakes.tell("the TLS handshake of %s takes too long", self.remote_addr)
            return
        seconds = f"{self._handshakes.timeout:g} seconds"
        if self.request is None:
            self.refuse(Rejection(408, f"no request within {seconds}"))
        else:
            self.refuse(unavailable(f"the request was not judged within {seconds}"))
        if self._task is not None:
            self._task.cancel()

    def _end(self) -> asyncio.Transport | None:
        """This handshake is over: its transport, once, or None."""
        transport, self._transport = self._transport, None
        self._handshakes.remove(self)
        return transport


def too_many_from_one_address(limit: int) -> Rejection:
    """The answer to a client whose address has all the connections that it may have."""
    return Rejection(429, f"{limit} connections from one address are the limit", [RETRY_AFTER])
