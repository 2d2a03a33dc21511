"""The server: accepts, judges and keeps WebSocket connections, and runs the application's handler for each.

Owns the listening sockets, the set of connections and the tasks of their handlers.
"""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import logging
import re
import resource
import socket
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Self

import aiofastnet
from multidict import istr

from fabric._connection.base import BaseConnection, data_message
from fabric._handshake.server import ServerHandshake
from fabric._handshake.tls import TlsLoop
from fabric._handshake.upgrade import finish_server, frame_limit
from fabric._http.messages import Rejection, Request
from fabric.compression import HEADER as EXTENSIONS
from fabric.compression import Agreement, answer_offers
from fabric.config import ServerConfig
from fabric.error import (
    BufferFull,
    ConnectionClosed,
    Error,
    InvalidHeader,
    InvalidState,
    Io,
    SubprotocolNegotiationFailed,
)
from fabric.headers import HeaderMap
from fabric.heartbeat import HeartbeatManager
from fabric.message import Message
from fabric.metrics import MetricsCollector
from fabric.ratelimit import GlobalRateLimiter, connection_gate
from fabric.subprotocol import SubprotocolList, SubprotocolNegotiator
from fabric_ext.inbox import iterates_in_c
from fabric_ext.sender import Shared

__all__ = ["ConnectedClient", "WebSocketServer"]

logger = logging.getLogger("fabric.server")

SUBPROTOCOL = istr("Sec-WebSocket-Protocol")  # looked up in each handshake: its case is folded once

# Of the answer to an opening handshake, what is not the application's to write; and a 101 has no content.
OWN_FIELDS = frozenset(
    {
        "upgrade",
        "connection",
        "sec-websocket-accept",
        "sec-websocket-protocol",
        "sec-websocket-extensions",
        "content-type",
        "content-length",
    }
)

DEFAULT_SHUTDOWN_TIMEOUT = 10.0  # seconds

# Bytes of either TLS buffer of a connection: a record and some more. aiofastnet would take 263 KB each.
TLS_BUFFERS = {"ssl_incoming_bio_size": 20 * 1024, "ssl_outgoing_bio_size": 20 * 1024}
SPARE_DESCRIPTORS = 8  # file descriptors; with so few left, clients are about to be turned away
RETRY_AFTER = "5"  # seconds, told to clients that find the server full or closing

Handler = Callable[["ConnectedClient"], Awaitable[Any]]


@iterates_in_c
class ConnectedClient(BaseConnection):
    """A client's connection, as its server sees it."""

    __slots__ = ("_ip", "_request", "_server", "_task")

    def __init__(self, server: WebSocketServer, request: Request, ip: str | None) -> None:
        super().__init__(
            server._loop,
            server.config,
            masking=False,
            metrics=server.metrics,
            logger=logger,
            on_message=server._on_message if server._is_callback else None,
        )
        self._server = server
        self._request = request
        self._ip = ip
        self._task: asyncio.Task[Any] | None = None

    @property
    def id(self) -> uuid.UUID:
        """Identity of this connection; `server.get_client(id)` finds it while it is open."""
        known = self._id is not None
        own = super().id
        if not known and self in self._server._clients:
            self._server._by_id[own] = self
        return own

    @property
    def request(self) -> Request:
        """The request that opened this connection: path, query, headers."""
        return self._request

    def _opened(self, request: Any, response: Any) -> None:
        self._remote_addr = self.remote_addr  # a socket that was reset does not know it any more
        self._server._connected(self)

    def _handler_done(self, task: asyncio.Task[Any]) -> None:
        """The handler has returned or raised: close the connection if it has not."""
        self._server._tasks.discard(task)
        self._task = None
        code, reason = 1000, ""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ConnectionClosed):
            logger.error("the handler of connection %s raised", self.id, exc_info=error)
            code, reason = 1011, "internal error"
        if not self._is_open:
            return
        if self._outbox_size:
            self._server._spawn(self.close(code, reason))
        else:
            self._begin_closing(code, reason.encode())

    def _release_transport(self) -> None:
        self._local_addr = self.local_addr
        super()._release_transport()

    def _on_lost(self) -> None:
        super()._on_lost()
        self._server._disconnected(self)


class WebSocketServer:
    """A WebSocket server.

        async def handler(client):
            async for message in client:
                await client.send(message)

        async with WebSocketServer.bind("127.0.0.1:8080", handler) as server:
            await server.serve_forever()

    Args:
        config: a `ServerConfig`, or the address to bind as "host:port".
        handler: `async def handler(client)`, one task per connection; the connection is closed when it returns.
        on_message: instead of `handler`, called with (client, message). A plain function runs right where the
            message arrives, without a task: the fastest path. A coroutine function handles the messages of one
            connection in order, in one task.
        on_connect, on_disconnect: called with the client; plain or coroutine functions.
        process_request: called with the `Request` before the upgrade. Returns a `Response`, or (status, headers,
            body), to answer plain HTTP; or None to go on; or one with status 101 to go on with more headers, of
            which `Sec-WebSocket-Protocol` chooses among the subprotocols offered. May be a coroutine function.
    """

    def __init__(
        self,
        config: ServerConfig | str,
        handler: Handler | None = None,
        *,
        on_connect: Callable[[ConnectedClient], Any] | None = None,
        on_message: Callable[[ConnectedClient, Message], Any] | None = None,
        on_disconnect: Callable[[ConnectedClient], Any] | None = None,
        process_request: Callable[[Request], Any] | None = None,
    ) -> None:
        self.config = ServerConfig(config) if isinstance(config, str) else config
        if handler is not None and on_message is not None:
            raise ValueError("give either handler or on_message: each message goes to one of them")
        for name, function in (
            ("handler", handler),
            ("on_message", on_message),
            ("on_connect", on_connect),
            ("on_disconnect", on_disconnect),
            ("process_request", process_request),
        ):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable, not {type(function).__name__}")
        self._is_callback = on_message is not None and not inspect.iscoroutinefunction(on_message)
        self._handler = handler
        if on_message is not None and not self._is_callback:
            self._handler = self._handle_messages
        self._on_message = on_message
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._process_request = process_request
        self._metrics = MetricsCollector()
        self._heartbeat: HeartbeatManager | None = None
        self._global_limit = GlobalRateLimiter(self.config.global_rate_limit)
        own, common = self.config.rate_limit, self.config.global_rate_limit
        # Without a limit of its own, a connection asks the common one as if it were its own.
        self._on_exceed = (own if own.is_limited else common).on_exceed, common.on_exceed
        self._negotiator = SubprotocolNegotiator(self.config.subprotocols, required=self.config.require_subprotocol)
        self._clients: dict[ConnectedClient, None] = {}  # in order of arrival, as their memory and sockets are
        self._by_id: dict[uuid.UUID, ConnectedClient] = {}
        self._per_ip: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listener: asyncio.AbstractServer | None = None
        self._shutting_down = False
        self._is_short = False  # of file descriptors, and has said so
        self._gone: asyncio.Event | None = None
        # for ServerHandshake
        self.pending: set[ServerHandshake] = set()
        self.handshake_timeout = self.config.handshake_timeout
        self.max_header_size = self.config.max_header_size
        self.logger = logger

    @classmethod
    def bind(cls, address: str, handler: Handler | None = None, **options: Any) -> Self:
        """A server for `address`, "host:port"; `options` are fields of `ServerConfig` or arguments of this class."""
        own = {"on_connect", "on_message", "on_disconnect", "process_request"}
        config = {name: value for name, value in options.items() if name not in own}
        rest = {name: value for name, value in options.items() if name in own}
        return cls(ServerConfig(address, **config), handler, **rest)

    # -- life

    async def start(self) -> None:
        """Listen; return once connections are accepted.

        Raises:
            Io: the address is in use, or not ours.
            InvalidState: the server was started before.
        """
        if self._listener is not None or self._shutting_down:
            raise InvalidState("a server starts once; make a new one", state="started")
        loop = self._loop = asyncio.get_running_loop()
        if self.config.heartbeat.enabled:
            self._heartbeat = HeartbeatManager(self.config.heartbeat, loop)
        try:
            self._listener = await self._listen(loop)
        except OSError as error:
            raise Io(f"cannot listen on {self.config.bind}: {error.strerror or error}", errno=error.errno) from error
        self._gone = asyncio.Event()
        logger.info("listening on %s", ", ".join(str(socket.getsockname()) for socket in self.sockets))

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractServer:
        """The loop's own transports for plain connections; aiofastnet's for TLS, where they are faster."""
        config = self.config
        tls_loop: Any = TlsLoop(loop)
        options: dict[str, Any] = {"backlog": config.backlog}
        if config.ssl is not None:
            options |= {"ssl": config.ssl, "ssl_handshake_timeout": config.handshake_timeout} | TLS_BUFFERS
        if config.unix_path is not None:
            if config.ssl is not None:
                return await aiofastnet.create_unix_server(tls_loop, self._accept, config.unix_path, **options)
            return await loop.create_unix_server(self._accept, config.unix_path, **options)
        # uvloop would look even an address up in threads, which then stay: system calls of a process that has several
        # cost more.
        if config.host and (bound := _bound(config.host, config.port, reuse_port=config.reuse_port)) is not None:
            options["sock"] = bound
        else:
            options |= {"host": config.host, "port": config.port, "reuse_port": config.reuse_port or None}
        if config.ssl is not None:
            return await aiofastnet.create_server(tls_loop, self._accept, **options)
        return await loop.create_server(self._accept, **options)

    def _accept(self) -> ServerHandshake:
        return ServerHandshake(self)

    async def serve_forever(self) -> None:
        """Serve until cancelled or shut down; starts the server when that has not been done."""
        if self._listener is None:
            await self.start()
        assert self._gone is not None
        try:
            await self._gone.wait()
        except asyncio.CancelledError:
            await self.shutdown()
            raise

    async def __aenter__(self) -> Self:
        if self._listener is None:
            await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    async def shutdown(self, timeout: float = DEFAULT_SHUTDOWN_TIMEOUT) -> None:
        """Stop: refuse what comes (503), deliver what was sent, close each connection with 1001, then abort.

        Args:
            timeout: seconds until what is still open is aborted and handlers that still run are cancelled.
        """
        if self._listener is None or self._gone is None:
            self._shutting_down = True
            return
        if self._shutting_down:
            await self._gone.wait()
            return
        self._shutting_down = True
        self._listener.close()
        for acceptance in list(self.pending):
            acceptance.answer(_unavailable("the server is shutting down").response)
        for client in list(self._clients):
            if client._outbox_size:
                self._spawn(client.close(1001, "server shutdown"))
            elif client.is_connected:
                client._begin_closing(1001, b"server shutdown")
        try:
            async with asyncio.timeout(timeout):
                await self._all_gone()
        except TimeoutError:
            logger.warning("shutdown: %d connections aborted after %g seconds", len(self._clients), timeout)
        finally:
            await self._abort_rest()
            self._gone.set()
        logger.info("stopped")

    async def _all_gone(self) -> None:
        while self._clients or self._other_tasks():
            waiting: list[Awaitable[Any]] = [client.wait_closed() for client in self._clients]
            waiting += [asyncio.shield(task) for task in self._other_tasks()]
            await asyncio.gather(*waiting, return_exceptions=True)
            await asyncio.sleep(0)  # gather of what is done already does not let its callbacks run

    def _other_tasks(self) -> set[asyncio.Task[Any]]:
        """All but the one that is in shutdown(), which may be a handler's."""
        return {task for task in self._tasks if task is not asyncio.current_task()}

    async def _abort_rest(self) -> None:
        for client in list(self._clients):
            client._abort()
        tasks = self._other_tasks()
        for task in tasks:
            task.cancel()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        await asyncio.gather(*(client.wait_closed() for client in list(self._clients)))
        if tasks:
            await asyncio.wait(tasks)
        assert self._listener is not None
        await self._listener.wait_closed()

    # -- what it is

    @property
    def is_running(self) -> bool:
        """Are connections accepted?"""
        return self._listener is not None and not self._shutting_down

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets."""
        return tuple(self._listener.sockets) if self._listener is not None else ()  # type: ignore[attr-defined]

    @property
    def port(self) -> int:
        """The port listened on: of `config.bind`, or the free one that was found for port 0; 0 for a UNIX socket."""
        sockets = self.sockets
        return sockets[0].getsockname()[1] if sockets and not self.config.unix_path else self.config.port

    @property
    def connection_count(self) -> int:
        """Open connections."""
        return len(self._clients)

    def clients(self) -> list[ConnectedClient]:
        """The open connections, as they are now."""
        return list(self._clients)

    def get_client(self, id: uuid.UUID) -> ConnectedClient | None:  # noqa: A002  # the contract's name
        """The open connection with this `id`, or None."""
        return self._by_id.get(id)

    @property
    def metrics(self) -> MetricsCollector:
        """Counters and latencies of all connections together."""
        return self._metrics

    @property
    def heartbeat(self) -> HeartbeatManager | None:
        """What finds dead peers; None when `ping_interval` is None or the server has not started."""
        return self._heartbeat

    @property
    def backpressure(self) -> dict[uuid.UUID, float]:
        """How full the outbox of each connection is that has something waiting, 0 to 1, by id."""
        return {client.id: client.backpressure.level for client in self._clients if client._outbox_size}

    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        return f"<WebSocketServer {self.config.bind} {state}, {self.connection_count} connections>"

    # -- the opening handshake, called by ServerHandshake

    def accepted(self, descriptor: int) -> None:
        """Say when file descriptors run out: uvloop would turn clients away in silence."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # A new one is the lowest that was free.
        if limit == resource.RLIM_INFINITY or descriptor < limit - 4 * SPARE_DESCRIPTORS:
            self._is_short = False
        elif descriptor >= limit - SPARE_DESCRIPTORS and not self._is_short:
            self._is_short = True
            logger.error(
                "file descriptors run short: %d connections, and hardly one of %d left; then clients are turned away",
                len(self._clients) + len(self.pending),
                limit,
            )

    def process_request(self, request: Request) -> Any:
        """The application's answer to a plain HTTP request, None, or an awaitable of either."""
        return None if self._process_request is None else self._process_request(request)

    def upgrade(
        self,
        acceptance: ServerHandshake,
        request: Request,
        headers: HeaderMap,
        key: str,
        rest: bytes,
        more: HeaderMap | None,
    ) -> None:
        """Make a connection of a valid opening handshake, or raise Rejection; `more` goes into the answer."""
        ip = self._check_capacity(acceptance)
        self._check_origin(headers)
        self._check_required(headers)
        answer = list(self.config.headers.items())
        chosen = None
        if more is not None:
            chosen = more.get(SUBPROTOCOL)
            answer += ((name, value) for name, value in more.items() if name.lower() not in OWN_FIELDS)
        subprotocol = self._select_subprotocol(headers, chosen)
        if subprotocol is not None:
            answer.append((SUBPROTOCOL, subprotocol))
        agreement = self._agree_on_compression(headers)
        if agreement is not None:
            answer.append((EXTENSIONS, str(agreement)))
        client = ConnectedClient(self, request, ip)
        client._subprotocol = subprotocol
        gate = connection_gate(self.config.rate_limit, self._global_limit)
        if gate is not None:
            client._limit_rate(gate, *self._on_exceed)
        if agreement is not None:
            client._set_codec(agreement.codec(self.config.compression, "server"))
        link = client._new_link()
        transport = acceptance.take_transport()
        limit = frame_limit(self.config.max_message_size, compressed=agreement is not None)
        try:
            finish_server(transport, link, key, answer, rest, limit)
        except BaseException:
            transport.abort()  # nobody else knows of it any more
            raise
        self._metrics.record_handshake(time.perf_counter() - acceptance.began)

    def _check_capacity(self, acceptance: ServerHandshake) -> str | None:
        if self._shutting_down:
            raise _unavailable("the server is shutting down")
        if len(self._clients) >= self.config.max_connections:
            raise _unavailable(f"the server has its {self.config.max_connections} connections")
        if not self.config.max_connections_per_ip or self.config.unix_path:
            return None
        assert acceptance.transport is not None
        ip = str(acceptance.transport.get_extra_info("peername")[0])
        if self._per_ip[ip] >= self.config.max_connections_per_ip:
            limit = self.config.max_connections_per_ip
            raise Rejection(429, f"{limit} connections from one address are the limit", [("Retry-After", RETRY_AFTER)])
        return ip

    def _check_origin(self, headers: HeaderMap) -> None:
        """RFC 6455 §10.2: browsers say which site's script connects."""
        allowed = self.config.origins
        if allowed is None:
            return
        origins = headers.getall("Origin", [])
        if len(origins) > 1:
            raise Rejection(403, "more than one Origin header")
        origin = origins[0] if origins else None
        for pattern in allowed:
            if isinstance(pattern, re.Pattern):
                if origin is not None and pattern.fullmatch(origin):
                    return
            elif origin == pattern:
                return
        raise Rejection(403, "this origin is not allowed")

    def _check_required(self, headers: HeaderMap) -> None:
        for name in self.config.required_headers:
            if name not in headers:
                if name.lower() == "authorization":
                    raise Rejection(401, "authorization is required", [("WWW-Authenticate", "Bearer")])
                raise Rejection(400, f"the {name} header is required")

    def _select_subprotocol(self, headers: HeaderMap, chosen: str | None) -> str | None:
        lines = headers.getall(SUBPROTOCOL, ())
        if not lines and chosen is None and not self._negotiator.required:
            return None
        try:
            offered = SubprotocolList.parse(lines)
            if chosen is None:
                return self._negotiator.select(offered)
            if chosen not in offered:
                raise ValueError(f"process_request chose the subprotocol {chosen!r}, offered are: {offered}")
            return chosen
        except SubprotocolNegotiationFailed as error:
            raise Rejection(400, str(error)) from None
        except Error as error:
            raise Rejection(400, f"malformed Sec-WebSocket-Protocol: {error}") from None

    def _agree_on_compression(self, headers: HeaderMap) -> Agreement | None:
        try:
            return answer_offers(headers.getall(EXTENSIONS, ()), self.config.compression)
        except InvalidHeader as error:
            raise Rejection(400, str(error)) from None

    # -- connections come and go, called by ConnectedClient

    def _connected(self, client: ConnectedClient) -> None:
        self._clients[client] = None
        if client._ip is not None:
            self._per_ip[client._ip] += 1
        self._metrics.record_connection()
        client._begin_heartbeat(self._heartbeat)
        if self._on_connect is not None:
            self._call(self._on_connect, client)
        if self._handler is not None:
            task = client._task = asyncio.ensure_future(self._handler(client), loop=self._loop)
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(client._handler_done)

    def _disconnected(self, client: ConnectedClient) -> None:
        self._clients.pop(client, None)
        if client._id is not None:
            self._by_id.pop(client._id, None)
        if client._ip is not None:
            self._per_ip[client._ip] -= 1
            if not self._per_ip[client._ip]:
                del self._per_ip[client._ip]
        self._metrics.record_disconnection()
        if self._on_disconnect is not None:
            self._call(self._on_disconnect, client)

    def _call(self, function: Callable[[ConnectedClient], Any], client: ConnectedClient) -> None:
        """Call a plain or a coroutine function of the application."""
        try:
            result = function(client)
        except Exception as error:
            logger.error("%s raised for connection %s", function, client.id, exc_info=error)
            return
        if inspect.isawaitable(result):
            self._spawn(result)

    def _spawn(self, awaitable: Awaitable[Any]) -> None:
        """Run something whose end only shutdown() waits for."""
        task: asyncio.Task[Any] = asyncio.ensure_future(awaitable)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    def _spawned_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a callback raised", exc_info=task.exception())

    async def _handle_messages(self, client: ConnectedClient) -> None:
        assert self._on_message is not None
        async for message in client:
            await self._on_message(client, message)

    # -- broadcast

    async def broadcast(
        self, message: str | bytes | bytearray | memoryview | Message, *, compress: bool | None = None
    ) -> int:
        """Send a message to every connection; return how many it was written to or is kept for.

        The frame is built once. A peer whose socket is full gets the message into its outbox; one whose outbox is
        full is treated as `config.slow_peer` says, and never delays the others.

        Args:
            compress: as in `send`.
        """
        data = data_message(message)
        shared = Shared(data, compress, self.config.fragment_size or 0)
        reached, later = shared.send_to(list(self._clients))
        waiting = []
        for client in later:
            try:
                client.send_nowait(data, compress=compress)
                reached += 1
            except BufferFull:
                if self.config.slow_peer == "wait":
                    waiting.append(client.send(data, compress=compress))
                    continue
                self._metrics.record_slow_peer_drop()
                if self.config.slow_peer == "close":
                    client._begin_closing(1008, b"too slow")
            except (ConnectionClosed, InvalidState):
                pass
        if waiting:
            results = await asyncio.gather(*waiting, return_exceptions=True)
            sent = sum(result is None for result in results)
            self._metrics.record_slow_peer_drop(len(results) - sent)
            reached += sent
        return reached

    async def broadcast_text(self, text: str, *, compress: bool | None = None) -> int:
        """Send a text message to every connection; see `broadcast`."""
        return await self.broadcast(Message.text(text), compress=compress)

    async def broadcast_binary(self, data: bytes | bytearray | memoryview, *, compress: bool | None = None) -> int:
        """Send a binary message to every connection; see `broadcast`."""
        return await self.broadcast(Message.binary(data), compress=compress)

    async def broadcast_json(self, value: Any, *, compress: bool | None = None) -> int:
        """Send `value` as JSON to every connection; see `broadcast`."""
        return await self.broadcast(Message.json(value), compress=compress)


def _bound(host: str, port: int, *, reuse_port: bool) -> socket.socket | None:
    """A socket at a literal address; None for a name, which stands for any number of addresses."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    return socket.create_server((host, port), family=family, reuse_port=reuse_port)


def _unavailable(why: str) -> Rejection:
    return Rejection(503, why, [("Retry-After", RETRY_AFTER)])
