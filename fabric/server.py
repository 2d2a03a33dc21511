"""The server: accepts, judges and keeps WebSocket connections, and runs the application's handler for each.

Owns the listening sockets, the set of connections and the tasks of their handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import logging
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Never, NoReturn, Self, Unpack

from fabric._config.validation import LONGEST, Duration
from fabric._connection import tracing
from fabric._connection.base import data_message
from fabric._connection.callbacks import check_callback, check_handler
from fabric._connection.events import log_event
from fabric._connection.fork import stays_with_parent
from fabric._handshake.descriptors import DescriptorWatch
from fabric._handshake.rules import Rejection, unavailable
from fabric._handshake.server import PendingHandshakes, ServerHandshake, too_many_from_one_address
from fabric._http.messages import Request, as_response
from fabric._server import listening
from fabric._server.broadcast import send_to_all
from fabric._server.connected_client import ConnectedClient
from fabric._server.connections import Connections
from fabric._server.negotiation import Negotiation
from fabric.broker import Broker, BrokerUnavailable, make_broker
from fabric.config import ServerConfig
from fabric.error import InvalidState, Io
from fabric.fleet import Fleet, Member
from fabric.headers import HeaderMap
from fabric.heartbeat import HeartbeatManager
from fabric.history import History, Position
from fabric.message import Message
from fabric.metrics import MetricsCollector, ServerMetrics, loop_metrics_of
from fabric.ratelimit import GlobalRateLimiter, connection_gate
from fabric.router import Router
from fabric.topics import LISTENER_LIMIT, Listener, Outcome, Topics
from fabric_ext.http_head import RequestHead
from fabric_ext.protocol import check_close

if TYPE_CHECKING:
    from fabric._config.options import ServerOptions
    from fabric._server.dashboard import Dashboard
    from fabric.centrifuge import Authorize, Methods
    from fabric.message import Sendable

__all__ = ["ConnectedClient", "WebSocketServer"]

logger = logging.getLogger("fabric.server")

Handler = Callable[[ConnectedClient], Awaitable[Any]]

DEFAULT_SHUTDOWN_TIMEOUT = 10.0  # seconds
CALL_TIMEOUT = 5.0  # seconds for another server to do something for one of its clients
LOOK = 0.01  # seconds between two looks whether opening handshakes are over
LAST_MOMENT = 0.1  # seconds that what was aborted and cancelled has to end
BROKER_MOMENT = 1.0  # seconds that the broker has to close, whatever is left of the deadline


class Phase(enum.Enum):
    """Where a server is in its life."""

    NEW = "not started"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "shutting down"
    STOPPED = "stopped"


class WebSocketServer:
    """A WebSocket server. A child that is forked lets go of its sockets: they stay the parent's.

        async def handler(client):
            async for message in client:
                await client.send(message)

        async with WebSocketServer.bind("127.0.0.1:8080", handler) as server:
            await server.serve_forever()

    Args:
        config: a `ServerConfig`, or the address to bind as "host:port".
        handler: `async def handler(client)`, one task per connection; the connection is closed when it returns. A
            `Router` has one for each path, and answers 404 to others.
        on_message: instead of `handler`, called with (client, message). A plain function runs right where the
            message arrives, without a task: the fastest path. A coroutine function handles the messages of one
            connection in order, in one task.
        on_connect, on_disconnect: called with the client; plain or coroutine functions.
        process_request: called with the `Request` before the upgrade. Returns a `Response`, or (status, headers,
            body), to answer plain HTTP; or None to go on; or one with status 101 to go on with more headers, of
            which `Sec-WebSocket-Protocol` chooses among the subprotocols offered. May be a coroutine function.
        broker: what carries messages of topics to other servers and back: a URL or a `fabric.broker.Broker`. The
            default is none: topics are those of this server.
        on_gap: called with a topic or pattern of this server's subscribers, and a time (as `time.time()`): what other
            servers have published to it since then may be lost, as the broker was away.
        on_request: called with (client, message) for `request` of this server or another, where the client with that
            name is this server's: asks the client, and returns the answer. A plain or a coroutine function.
        on_join, on_leave: called with a topic and a `fabric.fleet.Member`, of any server, that has joined this topic
            with presence, or left it. A plain or a coroutine function.
        protocol: what clients speak instead of the application's own messages: "centrifuge", the Centrifugal client
            protocol in JSON. There is no `handler` then. See `fabric.centrifuge`.
        authorize, methods: of that protocol: who may do what, and what clients can call.
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
        broker: str | Broker = "memory:",
        on_gap: Callable[[str, float], Any] | None = None,
        on_request: Callable[[ConnectedClient, Message], Any] | None = None,
        on_join: Callable[[str, Member], Any] | None = None,
        on_leave: Callable[[str, Member], Any] | None = None,
        protocol: Literal["centrifuge"] | None = None,
        authorize: Authorize | None = None,
        methods: Methods | None = None,
    ) -> None:
        if not isinstance(config, (str, ServerConfig)):
            kind = type(config).__name__
            raise TypeError(
                f"the first argument is a ServerConfig or an address, not {kind}: WebSocketServer(config, handler)"
            )
        self.config = ServerConfig(config) if isinstance(config, str) else config
        if handler is not None and on_message is not None:
            raise ValueError("give either handler or on_message: each message goes to one of them")
        if handler is not None:
            check_handler("handler", handler, ("client",), hint="; the path is client.request.path")
        for name, function, arguments in (
            ("on_message", on_message, ("client", "message")),
            ("on_connect", on_connect, ("client",)),
            ("on_disconnect", on_disconnect, ("client",)),
            ("process_request", process_request, ("request",)),
            ("on_request", on_request, ("client", "message")),
            ("on_join", on_join, ("topic", "member")),
            ("on_leave", on_leave, ("topic", "member")),
        ):
            if function is not None:
                check_callback(name, function, arguments)
        self._is_callback = on_message is not None and not inspect.iscoroutinefunction(on_message)
        self._handler = handler
        if on_message is not None and not self._is_callback:
            self._handler = self._handle_messages
        self._on_message = on_message
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._process_request = process_request
        self._router = handler if isinstance(handler, Router) else None
        self._metrics = ServerMetrics()
        self._dashboard: Dashboard | None = None
        self._sampling: asyncio.Task[None] | None = None  # of the dashboard
        self._viewer_metrics = MetricsCollector()
        self.topics = Topics(self.config, self._metrics, make_broker(broker))
        self.topics.on_gap = on_gap
        self._metrics.source = self.topics.measure
        self._fleet = Fleet(self.topics, self.config)
        self._fleet.on_request, self._fleet.on_join, self._fleet.on_leave = on_request, on_join, on_leave
        if protocol is not None:
            self._speak(protocol, authorize, methods)
        elif authorize is not None or methods is not None:
            raise ValueError("authorize and methods are of a protocol: give protocol='centrifuge' as well")
        self._heartbeat: HeartbeatManager | None = None
        self._global_limit = GlobalRateLimiter(self.config.global_rate_limit)
        own, common = self.config.rate_limit, self.config.global_rate_limit
        # Without a limit of its own, a connection asks the common one as if it were its own.
        self._on_exceed = (own if own.is_limited else common).on_exceed, common.on_exceed
        self._negotiation = Negotiation(self.config)
        self._connections = Connections()
        self._listener: listening.Listener | None = None
        self._phase = Phase.NEW
        self._descriptor_watch = DescriptorWatch(logger, self._count, self._turns_away)
        self._gone = asyncio.Event()  # shut down
        self._handshakes: PendingHandshakes | None = None

    @classmethod
    def bind(
        cls,
        address: str,
        handler: Handler | None = None,
        *wrong: Never,
        on_connect: Callable[[ConnectedClient], Any] | None = None,
        on_message: Callable[[ConnectedClient, Message], Any] | None = None,
        on_disconnect: Callable[[ConnectedClient], Any] | None = None,
        process_request: Callable[[Request], Any] | None = None,
        broker: str | Broker = "memory:",
        on_gap: Callable[[str, float], Any] | None = None,
        on_request: Callable[[ConnectedClient, Message], Any] | None = None,
        on_join: Callable[[str, Member], Any] | None = None,
        on_leave: Callable[[str, Member], Any] | None = None,
        protocol: Literal["centrifuge"] | None = None,
        authorize: Authorize | None = None,
        methods: Methods | None = None,
        **options: Unpack[ServerOptions],
    ) -> Self:
        """A server for `address`, "host:port"; `options` are fields of `ServerConfig`."""
        if isinstance(handler, int) or wrong:
            raise TypeError(f'the address is one argument: bind("{address}:{handler}", handler)')
        return cls(
            ServerConfig(address, **options),
            handler,
            on_connect=on_connect,
            on_message=on_message,
            on_disconnect=on_disconnect,
            process_request=process_request,
            broker=broker,
            on_gap=on_gap,
            on_request=on_request,
            on_join=on_join,
            on_leave=on_leave,
            protocol=protocol,
            authorize=authorize,
            methods=methods,
        )

    def _speak(self, protocol: str, authorize: Authorize | None, methods: Methods | None) -> None:
        """Have connections served by a protocol, instead of a handler."""
        if protocol != "centrifuge":
            raise ValueError(f"protocol is {protocol!r}, allowed are 'centrifuge' and None")
        if self._handler is not None or self._is_callback:
            raise ValueError("give either protocol or what takes the messages, handler or on_message")
        from fabric._centrifuge.wire import NAME_TAKEN  # few servers speak it
        from fabric.centrifuge import Centrifuge

        spoken = Centrifuge(self, authorize, methods)
        self._handler = spoken.serve
        self.topics.wrap = spoken.wrap
        self._fleet.watch, self._fleet.replaced = spoken.tell_presence, NAME_TAKEN

    # -- life

    async def start(self) -> None:
        """Listen; return once connections are accepted.

        Raises:
            Io: the address is in use, or not ours.
            BrokerUnavailable: the broker cannot be reached, or refuses us.
            InvalidState: the server was started before.
        """
        if self._phase is not Phase.NEW:
            raise InvalidState("a server starts once; make a new one", state=self._phase.value)
        self._phase = Phase.STARTING
        loop = self._loop = asyncio.get_running_loop()
        self._metrics.loop = loop_metrics_of(loop)
        self._handshakes = PendingHandshakes(
            loop,
            self.config,
            logger,
            self._metrics,
            self._process_request if self._router is None and self._dashboard is None else self._judge,
            self._upgrade,
            self._descriptor_watch,
        )
        try:
            await self.topics._start()
            self._fleet.start()
            listener = await listening.listen(loop, self.config, self._handshakes)
        except BaseException as error:
            await self._leave_broker(BROKER_MOMENT)
            if self._phase is Phase.STARTING:
                self._phase = Phase.NEW
            if isinstance(error, OSError) and not isinstance(error, BrokerUnavailable):
                why = error.strerror or error
                raise Io(f"cannot listen on {self._place}: {why}", errno=error.errno) from error
            raise
        if self._phase is not Phase.STARTING:
            await self._leave_broker(BROKER_MOMENT)
            listener.close()
            self._handshakes.close(unavailable("the server is shutting down"))
            raise InvalidState("the server was shut down while it started", state=self._phase.value)
        if self.config.heartbeat.enabled:
            self._heartbeat = HeartbeatManager(self.config.heartbeat, loop, on_late=self._metrics.loop.record_lateness)
        self._listener = listener
        stays_with_parent(self)
        if self._dashboard is not None:
            self._sampling = loop.create_task(self._dashboard.run())
            self._sampling.add_done_callback(_report_sampling)
        self._phase = Phase.RUNNING
        where = ", ".join(str(socket.getsockname()) for socket in self.sockets)
        log_event(logger, logging.INFO, "listening on %s", where)

    def _descriptors(self) -> list[int]:
        """The file descriptors of its sockets, those that listen and those of connections."""
        handshakes = [] if self._handshakes is None else self._handshakes.sockets()
        mine = [] if self._listener is None else self._listener.descriptors
        mine += [sock.fileno() for sock in handshakes if sock is not None]
        return mine + [number for client in self._connections.all() for number in client._descriptors()]

    async def serve_forever(self) -> None:
        """Serve until cancelled or shut down; starts the server when that has not been done."""
        if self._phase is Phase.NEW:
            await self.start()
        try:
            await self._gone.wait()
        except asyncio.CancelledError:
            await self.shutdown()
            raise

    async def __aenter__(self) -> Self:
        if self._phase is Phase.NEW:
            await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    def __enter__(self) -> NoReturn:
        raise TypeError("write `async with` instead of `with`")

    def __exit__(self, *exc: object) -> None: ...

    def stop_accepting(self) -> None:
        """Take no new connections; those that are open stay, and opening handshakes go on.

        Before a `shutdown`, for a load balancer to notice.
        """
        self.topics._check_here()
        if self._listener is not None and not self._loop.is_closed():
            self._listener.stop()

    async def _drain(self, timeout: float) -> None:
        """Take no new connections, and wait for opening handshakes to end; then `timeout` seconds for connections."""
        self.stop_accepting()
        assert self._listener is not None
        assert self._handshakes is not None
        await self._listener.wait_closed()
        while self._handshakes:  # noqa: ASYNC110  each within the handshake timeout
            await asyncio.sleep(LOOK)
        await self._connections.all_gone(timeout)

    async def shutdown(self, timeout: Duration = DEFAULT_SHUTDOWN_TIMEOUT, *, code: int = 1001) -> None:
        """Stop: refuse what comes (503), deliver what was sent, close each connection, then abort.

        Args:
            timeout: seconds, or a timedelta, until what is still open is aborted and handlers that still run are
                cancelled; those that do not end at once then are left behind, and logged.
            code: the close code for the clients: 1001 (going away), or 1012 (service restart), say.
        """
        check_close(code, "")
        timeout = _seconds(timeout)
        self.topics._check_here()
        if self._phase is Phase.STOPPING:
            await self._gone.wait()
        if self._phase is not Phase.RUNNING:
            self._phase = Phase.STOPPED
            self._gone.set()
            return
        self._phase = Phase.STOPPING
        deadline = time.monotonic() + timeout
        try:
            assert self._listener is not None
            assert self._handshakes is not None
            if not self._loop.is_closed():
                self._listener.close()
            self._handshakes.close(unavailable("the server is shutting down"))
            if self._sampling is not None:
                self._sampling.cancel()
            for client in self._connections.all():
                self._survive(client._close_when_sent, code, "server shutdown")
            await self._connections.all_gone(timeout)
            if self._connections or self._connections.other_tasks():
                log_event(
                    logger,
                    logging.WARNING,
                    "shutdown: %d connections aborted, %d handlers cancelled after %g seconds",
                    len(self._connections),
                    len(self._connections.other_tasks()),
                    timeout,
                )
            await self._handshakes.answers_taken(max(deadline - time.monotonic(), 0))
        finally:
            try:
                await self._abort_rest(deadline)
            finally:  # tasks that wait for the end are told, although this was cancelled
                self._phase = Phase.STOPPED
                self._gone.set()
        log_event(logger, logging.INFO, "stopped")

    def _survive(self, function: Callable[..., Any], *args: Any) -> None:
        """Whatever one connection does, the others are seen to."""
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001  (logged)
            log_event(logger, logging.ERROR, "shutdown: %s raised", function, exc_info=error)

    async def _abort_rest(self, deadline: float) -> None:
        self._descriptor_watch.stop()
        for client in self._connections.all():
            self._survive(client._abort)
        for task in self._connections.other_tasks():
            task.cancel()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        await self._connections.all_gone(LAST_MOMENT)
        if self._sampling is not None and not self._loop.is_closed():
            await asyncio.wait([self._sampling], timeout=LAST_MOMENT)
        for task in self._connections.other_tasks():
            log_event(logger, logging.WARNING, "shutdown: %r goes on although it was cancelled", task)
        await self._leave_broker(max(deadline - time.monotonic(), BROKER_MOMENT))
        assert self._listener is not None
        assert self._handshakes is not None
        if self._loop.is_closed():
            return
        closed = asyncio.ensure_future(self._listener.wait_closed())
        await asyncio.wait([closed], timeout=LAST_MOMENT)
        closed.cancel()
        self._handshakes.abort_answered()

    async def _leave_broker(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._fleet.close()
        await self.topics._close(timeout)

    def mount_dashboard(self, path: str = "/dashboard") -> None:
        """Serve a live page about this server at `path`: connections, rates, latencies, backpressure.

        The application's `process_request` is asked first, as for every request, so that it can refuse the page:
        `basic_auth` for instance. Without it everybody may see it. The page's own connections are none of the
        application's: it gets no callbacks for them, and they are in no broadcast and no count but that of
        `max_connections`.

        Raises:
            InvalidState: the server has been started, or has a dashboard.
            ValueError: `path` is none.
        """
        if self._phase is not Phase.NEW or self._dashboard is not None:
            raise InvalidState("a dashboard is mounted once, before the server starts", state=self._phase.value)
        from fabric._server.dashboard import Dashboard  # few servers have one

        self._dashboard = Dashboard(self, path)

    # -- what it is

    @property
    def is_running(self) -> bool:
        """Are connections accepted?"""
        return self._phase is Phase.RUNNING

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets."""
        return () if self._listener is None else self._listener.sockets

    @property
    def port(self) -> int:
        """The port listened on: of `config.bind`, or the free one that was found for port 0; 0 for a UNIX socket."""
        for sock in self.sockets:
            if sock.family != socket.AF_UNIX:
                port: int = sock.getsockname()[1]
                return port
        return self.config.port

    @property
    def _place(self) -> str:
        """Where it listens, for messages."""
        return self.config.bind if self.config.sock is None else "the sockets given"

    @property
    def connection_count(self) -> int:
        """Open connections."""
        return len(self._connections.clients)

    def clients(self) -> list[ConnectedClient]:
        """The open connections, as they are now."""
        return list(self._connections.clients)

    def get_client(self, id: uuid.UUID) -> ConnectedClient | None:  # noqa: A002  # the contract's name
        """The open connection with this `id`, or None."""
        return self._connections.by_id.get(id)

    @property
    def metrics(self) -> ServerMetrics:
        """Counters and latencies of all connections together, and the topics."""
        return self._metrics

    @property
    def heartbeat(self) -> HeartbeatManager | None:
        """What finds dead peers; None when `ping_interval` is None or the server has not started."""
        return self._heartbeat

    @property
    def backpressure(self) -> dict[uuid.UUID, float]:
        """How full the outbox of each connection is that has something waiting, 0 to 1, by id."""
        return {client.id: client.backpressure.level for client in self._connections.clients if client._outbox_size}

    def __repr__(self) -> str:
        state = "running" if self.is_running else "stopped"
        return f"<WebSocketServer {self._place} {state}, {self.connection_count} connections>"

    # -- the opening handshake, called by PendingHandshakes

    def _judge(self, request: Request) -> Any:
        """What the application's `process_request` says; where it lets a request pass, the dashboard or the router."""
        answer = None if self._process_request is None else self._process_request(request)
        return self._judge_later(answer, request) if inspect.isawaitable(answer) else self._judged(answer, request)

    async def _judge_later(self, answer: Awaitable[Any], request: Request) -> Any:
        return self._judged(await answer, request)

    def _judged(self, answer: Any, request: Request) -> Any:
        if answer is not None and as_response(answer).status != 101:
            return answer
        if self._dashboard is not None and (self._dashboard.is_page(request) or self._dashboard.is_feed(request)):
            return self._dashboard.respond(request) or answer
        return answer if self._router is None else self._router.respond(request) or answer

    def _count(self) -> int:
        """Connections, those in their opening handshake too."""
        return len(self._connections) + (0 if self._handshakes is None else len(self._handshakes))

    def _turns_away(self) -> bool:
        """Does the event loop turn clients away in silence where there is no file descriptor for them?"""
        return self._listener is not None and self._listener.turns_away

    def _upgrade(self, handshake: ServerHandshake, head: RequestHead, rest: bytes, more: HeaderMap | None) -> None:
        """Make a connection of a valid opening handshake, or raise Rejection; `more` goes into the answer."""
        self._check_capacity(handshake)
        is_viewer = self._dashboard is not None and self._dashboard.is_feed(handshake.request)
        if not is_viewer:
            self._negotiation.check(head)
        answer, subprotocol, agreement = self._negotiation.agree(head, more, with_subprotocol=not is_viewer)
        name = handshake.request.name
        if name is not None and self._fleet.is_taken(name):
            raise Rejection(409, f"the name {name!r} is taken", logged="name taken")
        client = ConnectedClient(self, handshake.request, handshake.ip, is_viewer=is_viewer)
        client._subprotocol = subprotocol
        client._remote_addr = handshake.remote_addr
        gate = connection_gate(self.config.rate_limit, self._global_limit)
        codec = None if agreement is None else agreement.codec(self.config.compression, "server")
        transport = handshake.take_transport()
        try:
            transport.write(answer)
            client._open_session(transport, codec, gate, self._on_exceed, rest)
        except BaseException:
            transport.abort()
            raise
        client._metrics.record_handshake(time.perf_counter() - handshake.began)

    def _check_capacity(self, handshake: ServerHandshake) -> None:
        if len(self._connections) >= self.config.max_connections:
            raise unavailable(f"the server has its {self.config.max_connections} connections")
        if handshake.ip is not None and self._connections.per_ip[handshake.ip] >= self.config.max_connections_per_ip:
            raise too_many_from_one_address(self.config.max_connections_per_ip)

    # -- connections come and go, called by ConnectedClient

    def _connected(self, client: ConnectedClient) -> None:
        self._connections.add(client)
        client._metrics.record_connection()
        client._begin_heartbeat(self._heartbeat)
        if client._request.name is not None:
            client.name = client._request.name
        handler = self._handler
        if client._is_viewer:
            assert self._dashboard is not None
            handler = self._dashboard.feed
        else:
            if self._dashboard is not None:
                self._dashboard.opened(client)
            if self._on_connect is not None:
                self._connections.call(self._on_connect, client)
        tracer = None if client._is_viewer else tracing.tracer
        if handler is not None and tracer is None:
            self._connections.handle(handler, client, self._loop)
        elif handler is not None and tracer is not None:
            with tracer.handling(client) as done:
                self._connections.handle(handler, client, self._loop).add_done_callback(done)

    def _disconnected(self, client: ConnectedClient) -> None:
        self._connections.remove(client)
        self._fleet.leave(client)
        if client._subscriber is not None:
            self.topics._leave(client._subscriber)
        client._metrics.record_disconnection(client.close_code)
        if self._dashboard is not None:
            self._dashboard.ended(client)
        if self._on_disconnect is not None and not client._is_viewer and not client._is_loop_closed:
            self._connections.call(self._on_disconnect, client)

    async def _handle_messages(self, client: ConnectedClient) -> None:
        assert self._on_message is not None
        async for message in client:
            await self._on_message(client, message)

    # -- topics

    @property
    def on_gap(self) -> Callable[[str, float], Any] | None:
        """What is called when messages of other servers may have been lost; see the argument of the same name."""
        return self.topics.on_gap

    @on_gap.setter
    def on_gap(self, function: Callable[[str, float], Any] | None) -> None:
        self.topics.on_gap = function

    @property
    def broker_healthy(self) -> bool:
        """Is the broker connected, and has it answered lately? Always true without one."""
        return self.topics.broker.is_healthy

    def publish(
        self,
        topic: str,
        message: Sendable,
        *,
        exclude: ConnectedClient | Iterable[ConnectedClient] | None = None,
        compress: bool | None = None,
    ) -> Outcome[int]:
        """Send a message to all that have subscribed to a topic; see `fabric.topics`.

        It acts at once, waits for no slow client (`Topics.configure`), and need not be awaited. Awaited, it returns how
        many connections of this server the message was sent to or is kept for, once the broker has it. What is
        published in one turn of the event loop leaves at its end, in order, by one system call for each connection.

        If the topic has a history, the `position` of what is returned is that of the message.

        Args:
            exclude: one connection, or several, that do not get it: the one it came from, say.
            compress: as in `send`.

        Raises:
            ValueError: the name is not that of a topic.
            BrokerUnavailable: where it is awaited: other servers do not get it, as the broker takes no more, or it is
                not known whether they do, as its connection was lost.
        """
        return self.topics._publish(topic, data_message(message), exclude, compress)

    def topic(self, pattern: str, *, limit: int = LISTENER_LIMIT) -> Listener:
        """Listen to a topic, or to those that fit a pattern: `async for message in server.topic("room.*")`.

        Args:
            limit: messages that wait; then the oldest is dropped.
        """
        return self.topics._listen(pattern, limit)

    async def history(
        self,
        topic: str,
        *,
        since: Position | Sequence[Any] | None = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> History:
        """What a topic with history has kept; see `fabric.history`.

        Args:
            since: `(epoch, offset)`: only what came after it.
            limit: so many messages at most, the oldest of them; 0 asks for the position alone.
            reverse: the newest first, and of `since` what came before it.

        Raises:
            InvalidState: the topic has no history, see `Topics.configure`.
            TypeError, ValueError: `since` is no position, or `limit` is negative.
            BrokerUnavailable: the broker does not answer.
        """
        if limit is not None and (type(limit) is not int or limit < 0):
            raise ValueError(f"limit is {limit!r}, allowed is a number of messages from 0, or None")
        position = None if since is None else Position.check(since)
        return await self.topics._read(topic, position, limit, reverse)

    # -- names, requests, presence

    @property
    def on_join(self) -> Callable[[str, Member], Any] | None:
        """What is called when a member of any server has joined a topic; see the argument of the same name."""
        return self._fleet.on_join

    @on_join.setter
    def on_join(self, function: Callable[[str, Member], Any] | None) -> None:
        self._fleet.on_join = function
        self._fleet.begin()

    @property
    def on_leave(self) -> Callable[[str, Member], Any] | None:
        """What is called when a member of any server has left a topic; see the argument of the same name."""
        return self._fleet.on_leave

    @on_leave.setter
    def on_leave(self, function: Callable[[str, Member], Any] | None) -> None:
        self._fleet.on_leave = function
        self._fleet.begin()

    async def send_to(self, name: str, message: Sendable, *, timeout: float = CALL_TIMEOUT) -> int:
        """Send a message to the client that has a name, on whichever server it is; see `fabric.fleet`.

        Returns once its server has sent the message or keeps it for the client: to how many, as several may have the
        name where `ServerConfig.duplicate_names` is "both".

        Args:
            timeout: seconds to wait for the other server.

        Raises:
            NobodyThere: no client has this name; raised at once.
            RequestFailed: the client takes no more, or its server has gone meanwhile.
            BrokerUnavailable: the other server cannot be reached, or the message is larger than the broker takes.
            Timeout: the other server does not answer; the message may have been sent.
        """
        return await self._fleet.send_to(name, message, timeout)

    async def request(self, name: str, message: Sendable, *, timeout: float = CALL_TIMEOUT) -> Message:
        """Ask the client that has a name, on whichever server it is, and return its answer; see `fabric.fleet`.

        Its server asks it by `on_request`. Where several have the name, the newest is asked.

        Args:
            timeout: seconds to wait for the answer.

        Raises:
            NobodyThere: no client has this name; raised at once.
            RequestFailed: `on_request` has raised, or there is none, or its server has gone meanwhile.
            BrokerUnavailable: the other server cannot be reached, or the message is larger than the broker takes.
            Timeout: no answer in time.
        """
        return await self._fleet.request(name, message, timeout)

    async def presence(self, topic: str) -> list[Member]:
        """The clients with names, on all servers, that have subscribed to exactly this topic; the newest name last.

        Raises:
            InvalidState: the topic has no presence, see `Topics.configure`.
        """
        return await self._fleet.presence(topic)

    async def disconnect(self, name: str, code: int = 1008, reason: str = "", *, timeout: float = CALL_TIMEOUT) -> int:
        """Close the connections of all clients that have a name, on all servers; return how many those were.

        Their names go at once. Raises as `send_to`, but for nobody, which is 0.
        """
        return await self._fleet.disconnect(name, code, reason, timeout)

    async def unsubscribe(self, name: str, topic: str, *, timeout: float = CALL_TIMEOUT) -> int:
        """End the subscription of all clients that have a name, on all servers; return how many had it.

        Raises as `send_to`, but for nobody, which is 0.
        """
        return await self._fleet.unsubscribe(name, topic, timeout)

    # -- broadcast

    async def broadcast(
        self,
        message: Sendable,
        *,
        to: Iterable[ConnectedClient] | str | None = None,
        exclude: ConnectedClient | Container[ConnectedClient] | None = None,
        compress: bool | None = None,
    ) -> int:
        """Send a message to every connection; return how many it was written to or is kept for.

        The frame is built once. A peer whose socket is full gets the message into its outbox; one whose outbox is
        full is treated as `config.slow_peer` says, and never delays the others.

        Args:
            to: only these connections, or those that get what is published to this topic; by default all.
            exclude: one connection, or several, that do not get it: the one it came from, say.
            compress: as in `send`.
        """
        if isinstance(to, str):
            peers = self.topics.clients(to)
        else:
            peers = list(self._connections.clients if to is None else to)
            for peer in peers if to is not None else ():
                if not isinstance(peer, ConnectedClient):  # a client's own end masks what it sends
                    kind = type(peer).__name__
                    raise TypeError(f"to holds a {kind}: a broadcast goes to connections of a server, ConnectedClient")
        if exclude is not None:
            left_out = (exclude,) if isinstance(exclude, ConnectedClient) else exclude
            peers = [peer for peer in peers if peer not in left_out]
        return await send_to_all(peers, data_message(message), compress, self.config, self._metrics)

    async def broadcast_text(self, text: str, *, compress: bool | None = None) -> int:
        """Send a text message to every connection; see `broadcast`."""
        return await self.broadcast(Message.text(text), compress=compress)

    async def broadcast_binary(self, data: bytes | bytearray | memoryview, *, compress: bool | None = None) -> int:
        """Send a binary message to every connection; see `broadcast`."""
        return await self.broadcast(Message.binary(data), compress=compress)

    async def broadcast_json(self, value: Any, *, compress: bool | None = None) -> int:
        """Send `value` as JSON to every connection; see `broadcast`."""
        return await self.broadcast(Message.json(value), compress=compress)


def _seconds(timeout: Duration) -> float:
    """A time limit as seconds; raises before anything has begun that would not end."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"timeout is seconds or a timedelta, not {type(timeout).__name__}")
    if not 0 <= seconds <= LONGEST:
        raise ValueError(f"timeout is {timeout}, allowed is a duration from 0 s to 10**9 s")
    return float(seconds)


def _report_sampling(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log_event(logger, logging.ERROR, "the dashboard has stopped", exc_info=error)
