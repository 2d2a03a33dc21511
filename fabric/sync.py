"""A client for code without an event loop: scripts, threads, notebooks, and the lowest latency.

    with fabric.sync.connect("ws://localhost:8080") as client:
        client.send("hello")
        print(client.recv(timeout=5))
        for message in client:
            ...

It is the same client as `WebSocketClient`, with the same options and the same life over reconnections. What `recv`
waits for is read in the thread that waits, straight from the socket. Any thread may send; one at a time receives.

Owns how the calls of `WebSocketClient` block. Who works on the connection, and when, is `fabric_ext.driver`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import warnings
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Never, Self, Unpack

from fabric._connection.callbacks import check_callback
from fabric._connection.fork import stays_with_parent
from fabric._sync.keeper import keeper
from fabric._sync.loop import SteppedLoop
from fabric.client import CALLED_WITH, WAITS_FOR_ITSELF, WebSocketClient
from fabric.config import ClientConfig
from fabric.error import ConnectionClosed, InvalidState, ReconnectTimeout, Timeout
from fabric.message import Message
from fabric_ext.blocking import Blocking
from fabric_ext.driver import Driver, bind_errors, forget
from fabric_ext.interrupts import guarded, uninterrupted
from fabric_ext.protocol import State, check_close

if TYPE_CHECKING:
    import uuid

    from fabric._config.options import ClientOptions
    from fabric._http.messages import Address, Request, Response
    from fabric.backpressure import BackpressureController
    from fabric.heartbeat import HeartbeatManager
    from fabric.message import Sendable
    from fabric.metrics import MetricsCollector
    from fabric.reconnect import ReconnectState

__all__ = ["SyncClient", "connect"]

bind_errors(invalid_state=InvalidState, timed_out=Timeout)

_END = object()  # of the parts of a message


def connect(
    url: str | Callable[[], str] | ClientConfig,
    *wrong: Never,
    on_session: Callable[[SyncClient], object] | None = None,
    on_connect: Callable[[SyncClient], object] | None = None,
    on_disconnect: Callable[[SyncClient, ConnectionClosed | ReconnectTimeout], object] | None = None,
    on_reconnect: Callable[[SyncClient], object] | None = None,
    **options: Unpack[ClientOptions],
) -> SyncClient:
    """Connect to a server, and return the client: the context of a `with`, which closes it.

    Callbacks are plain functions, and may wait. They are called as those of `WebSocketClient.connect`, by whichever
    thread waits on the client at that time, or else by one of their own. There is no `on_message`: iterate over the
    client.

    Args:
        url: the address, or a whole `ClientConfig`.
        on_session: called after each opening handshake, with a client of its own for this session.
        on_connect: called with the client before it is returned.
        on_disconnect: called with the client and an error when a connection has ended.
        on_reconnect: called with the client when there is a connection again.
        options: fields of `ClientConfig`. A function for `url`, `headers` or `ssl` is a plain one, and may wait.

    Raises:
        what `WebSocketClient.connect` raises.
    """
    if wrong:
        raise TypeError(f'the address is one argument, connect("ws://{url}:{wrong[0]}"); all others have names')
    if "on_message" in options:
        raise TypeError("fabric.sync has no on_message: there is no event loop to call it; iterate over the client")
    callbacks: dict[str, Any] = {
        "on_session": on_session,
        "on_connect": on_connect,
        "on_disconnect": on_disconnect,
        "on_reconnect": on_reconnect,
    }
    for name, function in callbacks.items():
        if function is not None:
            check_callback(name, function, CALLED_WITH[name])
            _check_plain(name, function)
    if isinstance(url, ClientConfig):
        config = replace(url, **options) if options else url
    else:
        config = ClientConfig(url, **options)
    for name in ("url", "headers", "ssl"):
        _check_plain(f"ClientConfig.{name}", getattr(config, name))
    client = SyncClient.__new__(SyncClient)
    client._connect(config, callbacks)
    return client


def _check_plain(name: str, function: Any) -> None:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        raise TypeError(f"{name} is a coroutine function: without an event loop it must be a plain one, and may wait")


class _Client(WebSocketClient):
    """The client inside: the same, but that its callbacks run outside of its loop."""

    __slots__ = ()

    def _check_here(self) -> None:
        """It belongs to whichever thread holds the driver's lock, and no other calls."""

    async def _callbacks_done(self, timeout: float | None = None) -> None:
        if self._is_loop_closed:
            return
        loop: Any = asyncio.get_running_loop()
        if not loop.driver.calling:  # else it would wait for the very callback that closes it
            await super()._callbacks_done(timeout)


class SyncClient(Blocking):
    """A connection to a WebSocket server for code without an event loop, made by `connect`.

    As `WebSocketClient`: when it is lost it is replaced, unless `ClientConfig.auto_reconnect` says otherwise, and what
    is sent meanwhile is kept up to the backpressure limits.

    Any thread may call any method. One at a time receives, by `recv`, iteration or `recv_stream`: `InvalidState` for
    another one. `close` ends what other threads wait for. While no thread receives, a thread that all such clients of
    the process share answers pings and notices the end. After KeyboardInterrupt in a call the client is usable, or
    closed. A child that is forked has none of it: the connection stays the parent's.
    """

    _connection: _Client
    _config: ClientConfig
    _sends: set[asyncio.Task[Any]]  # that threads wait for, and close() ends
    _feeders: set[int]  # threads that send a message in parts
    _teller: int  # thread that is in on_disconnect
    _is_session: bool  # for on_session: the driver is another's

    def __init__(self, *_: object) -> None:
        raise TypeError("a client is made by fabric.sync.connect()")

    # -- its making

    def _connect(self, config: ClientConfig, callbacks: dict[str, Any]) -> None:
        driver = Driver()
        this = weakref.ref(self)  # the client is to be collected while its driver lives on

        def whole(client: _Client) -> SyncClient | None:
            found = this()
            if found is not None and found._connection is None:
                found._attach(driver, client, config)
            return found

        def session(client: _Client) -> SyncClient:
            inner = SyncClient.__new__(SyncClient)
            inner._attach(driver, client, config, is_session=True)
            return inner

        def outside(function: Any, of: Callable[[_Client], SyncClient | None]) -> Any:
            async def call(client: _Client, *args: Any) -> None:
                found = of(client)
                if found is not None:
                    await driver.call_outside(function, found, *args)

            return None if function is None else call

        def telling(function: Any) -> Any:
            def tell(client: SyncClient, error: Any) -> None:
                client._teller = threading.get_ident()
                try:
                    function(client, error)
                finally:
                    client._teller = 0

            return None if function is None else tell

        def asked(function: Any) -> Any:
            async def ask() -> Any:
                return await driver.call_outside(function)

            return ask if callable(function) else function

        callbacks = callbacks | {"on_disconnect": telling(callbacks["on_disconnect"])}
        wrapped = {name: outside(each, session if name == "on_session" else whole) for name, each in callbacks.items()}
        sources = {name: asked(getattr(config, name)) for name in ("url", "headers", "ssl")}
        changed: dict[str, Any] = {name: each for name, each in sources.items() if each is not getattr(config, name)}
        if config.busy_poll:
            changed["busy_poll"] = 0.0  # of the loop: the thread that waits looks itself

        async def connected() -> None:
            client = await _Client.connect(replace(config, **changed) if changed else config, **wrapped)
            if self._connection is None:
                self._attach(driver, client, config)

        def connect() -> None:
            stays_with_parent(uninterrupted(SteppedLoop, driver, keeper))
            try:
                driver.run(connected())
            except InvalidState:
                if self._connection is None or not self._closing:
                    raise
                # It was closed by on_connect, or by another thread meanwhile: the caller gets a client that is closed.
            uninterrupted(keeper.add, driver)
            opened.append(True)

        def end() -> None:
            if not opened:
                driver.abandon()
                keeper.remove(driver)

        opened: list[bool] = []
        guarded(connect, end)

    def _attach(self, driver: Driver, client: _Client, config: ClientConfig, *, is_session: bool = False) -> None:
        self._config = config
        self._sends = set()
        self._feeders = set()
        self._teller = 0
        self._is_session = is_session
        driver.add(client)
        self._bind(driver, client, config.busy_poll)

    def __del__(self) -> None:
        driver = self._driver
        if driver is None:
            return
        if self._is_session:
            driver.remove(self._connection)
        elif not driver.is_closed:
            unclosed = not self._connection._is_closed
            uninterrupted(keeper.give_up, driver)  # first: a warning may be an error
            if unclosed:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- what is known of it

    @property
    def config(self) -> ClientConfig:
        """What it was made with."""
        return self._config

    @property
    def id(self) -> uuid.UUID:
        """Identity of this object, the same over all reconnections."""
        return self._connection.id

    @property
    def state(self) -> State:
        """CONNECTING, OPEN, CLOSING, RECONNECTING or CLOSED."""
        return self._connection.state

    @property
    def is_connected(self) -> bool:
        """Can messages be exchanged right now, as far as is known?"""
        return self._connection.is_connected

    @property
    def url(self) -> str:
        """The address, without credentials: the latest one that was connected to, where a function gives it."""
        return self._connection.url

    @property
    def request(self) -> Request | None:
        """The request of the latest opening handshake."""
        return self._connection.request

    @property
    def response(self) -> Response | None:
        """The server's answer to `request`."""
        return self._connection.response

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on, or None."""
        return self._connection.subprotocol

    @property
    def extensions(self) -> tuple[str, ...]:
        """The extensions agreed on, with their parameters."""
        return self._connection.extensions

    @property
    def local_addr(self) -> Address | None:
        """Address of this end: `(host, port)`, or longer for IPv6; None before the first connection."""
        return self._connection.local_addr

    @property
    def remote_addr(self) -> Address | None:
        """Address of the other end: `(host, port)`, or longer for IPv6; None before the first connection."""
        return self._connection.remote_addr

    @property
    def close_code(self) -> int | None:
        """How the connection ended (RFC 6455 §7.1.5); None until the end. See `WebSocketClient.close_code`."""
        return self._connection.close_code

    @property
    def close_reason(self) -> str | None:
        """The reason that came with `close_code`; None until the end."""
        return self._connection.close_reason

    @property
    def latency(self) -> float | None:
        """The latest round trip of a ping, in seconds; None before the first."""
        return self._connection.latency

    @property
    def undelivered(self) -> tuple[Message, ...]:
        """After the end: the messages that were accepted and cannot have arrived, oldest first."""
        return self._connection.undelivered

    @property
    def metrics(self) -> MetricsCollector:
        """The live counters and latencies that this connection adds to."""
        return self._connection.metrics

    @property
    def heartbeat(self) -> HeartbeatManager | None:
        """What finds out that the server is gone; None when off."""
        return self._connection.heartbeat

    @property
    def backpressure(self) -> BackpressureController:
        """What bounds the messages accepted and not yet written."""
        return self._connection.backpressure

    @property
    def reconnect_state(self) -> ReconnectState:
        """The schedule of attempts to reconnect."""
        return self._connection.reconnect_state

    @property
    def queued(self) -> int:
        """Messages received and not yet taken."""
        return self._connection.queued

    def __repr__(self) -> str:
        client = self._connection
        if client is None:
            return "<SyncClient not connected>"
        return f"<SyncClient {client.id} {client.state.name} {client.remote_addr}>"

    # -- sending

    def send_text(self, text: str, *, compress: bool | None = None) -> None:
        """Send a text message."""
        if not isinstance(text, str):
            raise TypeError(f"text must be str, not {type(text).__name__}")
        self.send(text, compress=compress)

    def send_binary(self, data: bytes | bytearray | memoryview, *, compress: bool | None = None) -> None:
        """Send a binary message."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data must be bytes-like, not {type(data).__name__}")
        self.send(data, compress=compress)

    def send_json(self, value: Any, *, compress: bool | None = None) -> None:
        """Send `value` as JSON in a text message."""
        self.send(Message.json(value), compress=compress)

    def send_parts(self, parts: Iterable[Sendable], *, compress: bool | None = None) -> None:
        """Send the items of `parts`, all text or all binary, as one message: each goes out as it comes.

        Raises:
            TypeError: an item is neither text nor binary, or they are mixed; the connection is closed with 1011 if
                some have been sent.
            ConnectionClosed: the connection ended before the last one was sent.
            InvalidState: it is called by the iterable of another message in parts.
        """
        if isinstance(parts, AsyncIterable):
            raise TypeError("without an event loop the parts of a message must be a plain iterable")
        me = threading.get_ident()
        if me in self._feeders:
            raise InvalidState("a part of a message cannot be a message of its own", state=self.state.name)
        self._check_waiting()
        queue: asyncio.Queue[Any] = asyncio.Queue(1)
        sending = self._connection.send_parts(_Parts(queue), compress=compress)
        tasks: list[asyncio.Task[None]] = []

        def feed() -> None:
            self._feeders.add(me)
            uninterrupted(self._start, sending, tasks)
            for part in parts:
                self._run_send(_put(queue, part, tasks[0]))
                if tasks[0].done():
                    break
            else:
                self._run_send(_put(queue, _END, tasks[0]))
            self._run_send(_result_of(tasks[0]))

        def end() -> None:
            self._feeders.discard(me)
            for task in tasks:
                if not task.done():
                    self._driver.soon(task.cancel)
            tasks.clear()  # here: asyncio is told of a task's end by a weak reference, in which Ctrl-C would be lost

        guarded(feed, end)

    def _start(self, coroutine: Any, tasks: list[asyncio.Task[None]]) -> None:
        """Have `coroutine` run in a task, which becomes one of `tasks`; ConnectionClosed if the client is closed."""

        def start() -> None:
            if self._driver.is_closed:
                raise self._connection._closed_error()
            task = self._driver.loop.create_task(coroutine)
            tasks.append(task)
            task.add_done_callback(forget)
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)

        try:
            self._driver.soon(start)
        finally:
            if not tasks:
                coroutine.close()

    def _send_later(self, message: Any, compress: bool | None) -> None:
        if isinstance(message, AsyncIterable):
            raise TypeError("without an event loop send() takes plain iterators, not async ones")
        if self._config.outage == "wait":
            self._check_waiting()
        is_data = isinstance(message, (str, bytes, bytearray, memoryview, Message))
        if is_data or isinstance(message, (list, tuple, set, frozenset, dict)) or not isinstance(message, Iterable):
            self._run_send(self._connection._send_later(message, compress))
        else:
            self.send_parts(message, compress=compress)

    def _run_send(self, coroutine: Any) -> None:
        """Run what sends, until it is done or `close` is called."""
        try:
            self._driver.run(coroutine, tasks=self._sends)
        except InvalidState:
            if not self._closing:
                raise
            error = self._connection._closed_error()
            raise error if isinstance(error, ConnectionClosed) else ConnectionClosed(1000, by="local") from None

    def flush(self) -> None:
        """Give the system now what has been gathered."""
        self._driver.soon(self._connection.flush)

    def clear_queue(self) -> tuple[Message, ...]:
        """Take back the messages that were accepted and not yet written, oldest first: they will not be sent."""
        taken: tuple[Message, ...] = self._driver.soon(self._connection.clear_queue)
        return taken

    # -- receiving

    def recv_stream(self) -> Iterator[str | bytes]:
        """Iterate over the next message as it arrives; nothing is yielded after a normal close.

        An item is a frame, or as much of a large one as has come. Receiving anything else before the end gives up the
        rest of this message.

        Raises:
            ConnectionClosed: the connection ended inside the message.
            InvalidState: the message was given up, or another thread receives.
        """
        stream = [self._connection.recv_stream()]  # so that it goes where Ctrl-C has to wait
        try:
            while (part := self._receive_by(_next_of(stream[0]))) is not None:
                yield part
        finally:
            if not self._driver.is_closed:
                self._driver.soon(_end_stream, self._driver.loop, stream)

    def ping(self, data: str | bytes | None = None, *, timeout: float | None = None) -> float:
        """Send a ping and wait for its pong; return the round trip in seconds.

        Args:
            data: at most 125 bytes, by default unique ones.
            timeout: seconds to wait.

        Raises:
            Timeout: no pong came within `timeout`.
            InvalidState: a ping with the same data has not been answered yet.
            ConnectionClosed: the connection is or was closed.
        """
        seconds: float = self._driver.run(self._connection.ping(data), timeout, "ping")
        return seconds

    # -- its life

    def wait_connected(self, timeout: float | None = None) -> None:
        """Wait until there is a connection; return at once while there is one.

        Raises:
            Timeout: there was none within `timeout` seconds.
            ConnectionClosed: the client is closed for good; its cause says why.
            InvalidState: `on_disconnect` asks, and only when it has returned is a connection looked for.
        """
        self._check_waiting()
        self._driver.run(self._connection.wait_connected(), timeout, "waiting for a connection")

    def reconnect(self) -> None:
        """Replace the connection by a fresh one, and wait until there is one; see `WebSocketClient.reconnect`."""
        self._check_waiting()
        self._driver.run(self._connection.reconnect())

    def _check_waiting(self) -> None:
        """Raise where `on_disconnect` would wait for the connection that is looked for once it has returned."""
        if self._teller == threading.get_ident() and self._connection._is_reconnecting:
            raise InvalidState(WAITS_FOR_ITSELF, state=self._connection.state.name)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close for good, and wait until it is done; a search for another connection ends at once.

        What was sent before is delivered first, as far as there is a connection: see `undelivered`. A thread that waits
        in `recv` gets None, one that waits in `send` ConnectionClosed. The close handshake goes on as long as the peer
        takes bytes within each `close_timeout`. An exception that comes in between, such as KeyboardInterrupt, drops
        the connection. Called by a signal handler or a finalizer inside the client's own work, it only begins.

        Args:
            code: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
            reason: at most 123 bytes of UTF-8.
        """
        check_close(code, reason)
        driver, client = self._driver, self._connection
        if driver.is_forked or (driver.is_closed and not self._is_session):
            return
        if self._is_session:
            driver.run(client.close(code, reason))
            return
        if driver.is_inside:
            self._end_waits()
            self._start(client.close(code, reason), [])
            return
        threads: list[threading.Thread | None] = []

        def close() -> None:
            self._end_waits()
            driver.soon(self._end_sends)
            with contextlib.suppress(InvalidState):  # another thread's close() was done first
                driver.run(client.close(code, reason))

        def end() -> None:
            if not client._is_closed:  # interrupted, or it failed
                driver.soon(client._abort)
            driver.close()
            threads.append(keeper.remove(driver))

        guarded(close, end)
        for thread in threads:
            if thread is not None:
                thread.join()

    def _end_sends(self) -> None:
        for task in list(self._sends):
            task.cancel()

    def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until the client is closed for good.

        Raises:
            Timeout: it was not within `timeout` seconds.
            ReconnectTimeout: the connection was lost, and not replaced.
        """
        self._driver.run(self._connection.wait_closed(), timeout, "waiting for the end")


# What runs in the loop.


class _Parts:
    """The parts that another thread puts into a queue, up to _END."""

    def __init__(self, queue: asyncio.Queue[Any]) -> None:
        self._queue = queue

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        part = await self._queue.get()
        if part is _END:
            raise StopAsyncIteration
        return part


async def _put(queue: asyncio.Queue[Any], part: Any, task: asyncio.Task[None]) -> None:
    """Give `task` a part to send, unless it ends before."""
    if task.done():
        return
    putting = asyncio.ensure_future(queue.put(part))
    try:
        await asyncio.wait([putting, task], return_when=asyncio.FIRST_COMPLETED)
    finally:
        putting.cancel()


async def _result_of(task: asyncio.Task[None]) -> None:
    try:
        if task.cancelled():
            raise InvalidState("the connection was closed meanwhile")
        await task
    finally:
        del task  # with an exception in it, it would keep this frame, which keeps it


async def _next_of(stream: AsyncIterator[str | bytes]) -> str | bytes | None:
    return await anext(stream, None)


def _end_stream(loop: asyncio.AbstractEventLoop, stream: list[Any]) -> None:
    loop.create_task(stream.pop().aclose()).add_done_callback(forget)
