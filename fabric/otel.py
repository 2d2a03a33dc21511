"""Spans for OpenTelemetry. Needs the extra `otel`: `pip install 'websocket-fabric[otel]'`.

    from fabric import otel

    otel.instrument()  # once, before anything connects

Owns the names and attributes of the spans, and those that have not ended. Where they go, and which are kept, is the
business of the application's OpenTelemetry SDK. Nothing is done for a message, whether this is on or off.

| span | kind | from, to | parent |
| --- | --- | --- | --- |
| `connect` | client | one attempt of a client to connect, `on_session` included | the span that is current |
| `session` | client or server | the opening handshake is done, the transport is gone | the client's `connect` |
| `handler` | internal | a server's handler; current in it | the server's `session` |
| the method | client | `call`, `notify` or `stream` of `fabric.rpc` | the span that is current, else the `session` |
| the method | server | it runs; current in it | the caller's span, with a link to the `session` |

The request of the opening handshake carries the trace context as a header, by the propagators that are set up
(`traceparent` by default, https://www.w3.org/TR/trace-context/); a header of this name that the application has set
stays. A request of `fabric.rpc` carries `traceparent` and `tracestate` as members beside `method`. JSON-RPC 2.0 has no
place for them; an end that does not know these members ignores them, and then its spans are children of its `session`.

Attributes follow the semantic conventions of OpenTelemetry. None holds a query, credentials, other headers, arguments,
results or messages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fabric._connection import tracing
from fabric._connection.base import NORMAL_CLOSURE
from fabric._version import VERSION
from fabric.client import WebSocketClient
from fabric.error import ConnectionClosed, HandshakeFailed
from fabric.router import Router
from fabric.rpc import RpcError

try:
    from opentelemetry import propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "fabric.otel needs opentelemetry-api: pip install 'websocket-fabric[otel]'", name=error.name
    ) from None

if TYPE_CHECKING:
    import asyncio

    from fabric._server.connected_client import ConnectedClient
    from fabric.headers import HeaderMap
    from fabric_ext.session import Session

__all__ = ["instrument", "uninstrument"]

_in_requests = TraceContextTextMapPropagator()


def instrument(tracer_provider: TracerProvider | None = None) -> None:
    """Make spans from now on, for all clients, servers and `Rpc` of this process.

    Args:
        tracer_provider: what makes the spans; by default that which is set for the process.

    Raises:
        RuntimeError: this has been called before.
    """
    if tracing.tracer is not None:
        raise RuntimeError("spans are made already; call uninstrument() first")
    tracing.tracer = _Spans(trace.get_tracer("fabric", VERSION, tracer_provider))


def uninstrument() -> None:
    """Make no more spans, and end those of sessions that are open; nothing happens where none are made."""
    spans, tracing.tracer = tracing.tracer, None
    if isinstance(spans, _Spans):
        spans.end()


class _Spans:
    """The spans of this process: a `fabric._connection.tracing.Tracer`."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        # Of each session its span, and how many messages its connection had sent and received before.
        self._sessions: dict[Session, tuple[Span, int, int]] = {}

    def end(self) -> None:
        """End the spans of all sessions."""
        while self._sessions:
            self._sessions.popitem()[1][0].end()

    # -- connections

    @contextlib.contextmanager
    def connecting(self, client: WebSocketClient) -> Iterator[None]:
        attributes: dict[str, Any] = {"http.request.method": "GET"}
        if not callable(client.config.url):
            address = client.config.address
            path = address.resource.partition("?")[0]
            attributes |= {
                "server.address": address.host,
                "server.port": address.port,
                "url.full": f"{address.scheme}://{address.authority}{path}",
            }
        with self._current(self._tracer.start_span("connect", kind=SpanKind.CLIENT, attributes=attributes)) as span:
            yield
            span.set_attribute("http.response.status_code", 101)

    def add_context(self, headers: HeaderMap) -> None:
        carried: dict[str, str] = {}
        propagate.inject(carried)
        for name, value in carried.items():
            headers.setdefault(name, value)

    def session_began(self, session: Session, connection: Any) -> None:
        if session in self._sessions or getattr(connection, "_is_viewer", False):
            return
        request = connection.request
        headers = {} if request is None else {name.lower(): value for name, value in request.headers.items()}
        # A client's request has carried the span of its attempt, so both ends find the parent in the same place.
        span = self._tracer.start_span(
            "session",
            context=propagate.extract(headers),
            kind=SpanKind.CLIENT if isinstance(connection, WebSocketClient) else SpanKind.SERVER,
            attributes=_told(connection) | {"fabric.connection_id": str(connection.id)},
        )
        self._sessions[session] = span, connection.messages_sent, connection.messages_received

    def session_ended(self, session: Session, connection: Any, loss: ConnectionClosed) -> None:
        span, sent, received = self._sessions.pop(session, (None, 0, 0))
        if span is None:
            return
        span.set_attribute("fabric.messages_sent", connection.messages_sent - sent)
        span.set_attribute("fabric.messages_received", connection.messages_received - received)
        span.set_attribute("fabric.close_code", loss.code)
        if loss.code not in NORMAL_CLOSURE:
            _failed(span, str(loss.code))
        span.end()

    @contextlib.contextmanager
    def handling(self, client: ConnectedClient) -> Iterator[Callable[[asyncio.Future[Any]], None]]:
        span = self._tracer.start_span("handler", context=self._within(client), attributes=_route(client))

        def done(task: asyncio.Future[Any]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, ConnectionClosed):
                _raised(span, error)
            span.end()

        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield done
        except BaseException as error:
            _raised(span, error)
            span.end()
            raise

    # -- requests and replies

    @contextlib.contextmanager
    def calling(self, connection: Any, method: str) -> Iterator[Mapping[str, str]]:
        has_parent = trace.get_current_span().get_span_context().is_valid
        span = self._tracer.start_span(
            method,
            context=None if has_parent else self._within(connection),
            kind=SpanKind.CLIENT,
            attributes=_of_method(method),
        )
        carried: dict[str, str] = {}
        _in_requests.inject(carried, context=trace.set_span_in_context(span))
        try:
            yield carried
        except GeneratorExit:  # a stream of which no more is wanted
            raise
        except BaseException as error:
            _raised(span, error)
            raise
        finally:
            span.end()

    @contextlib.contextmanager
    def serving(self, connection: Any, method: str, carried: Mapping[str, Any]) -> Iterator[None]:
        within = self._within(connection)
        session = trace.get_current_span(within).get_span_context()
        texts = {name: value for name, value in carried.items() if isinstance(value, str)}
        parent = _in_requests.extract(texts, context=Context())
        has_parent = trace.get_current_span(parent).get_span_context().is_valid
        span = self._tracer.start_span(
            method,
            context=parent if has_parent else within,
            kind=SpanKind.SERVER,
            attributes=_of_method(method),
            links=[Link(session)] if has_parent and session.is_valid else None,
        )
        with self._current(span):
            yield

    # -- parts of these

    def _within(self, connection: Any) -> Context:
        """The context of a connection's session."""
        found = self._sessions.get(connection._session_now)
        return Context() if found is None else trace.set_span_in_context(found[0], Context())

    @contextlib.contextmanager
    def _current(self, span: Span) -> Iterator[Span]:
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield span
        except BaseException as error:
            _raised(span, error)
            raise
        finally:
            span.end()


def _raised(span: Span, error: BaseException) -> None:
    """An exception has ended what a span is about; of those that come from the other end the text is not told."""
    if isinstance(error, RpcError):
        span.set_attribute("rpc.response.status_code", str(error.code))
        _failed(span, str(error.code))
    elif isinstance(error, HandshakeFailed) and error.status is not None:
        span.set_attribute("http.response.status_code", error.status)
        _failed(span, str(error.status))
    else:
        span.record_exception(error)
        _failed(span, type(error).__qualname__)


def _failed(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _of_method(method: str) -> dict[str, str]:
    return {"rpc.system.name": "jsonrpc", "rpc.method": method, "jsonrpc.protocol.version": "2.0"}


def _told(connection: Any) -> dict[str, Any]:
    """What a session's span says of its two ends and its request."""
    found: dict[str, Any] = {"network.protocol.name": "websocket"}
    if isinstance(connection, WebSocketClient):
        ends = {"server": connection.remote_addr}
    else:
        ends = {"client": connection.remote_addr, "server": connection.local_addr}
    for end, address in ends.items():
        names = f"{end}.address", f"{end}.port"
        if isinstance(address, tuple):
            found |= dict(zip(names, address, strict=False))
        elif address:
            found[names[0]] = str(address)
    if connection.request is not None:
        found["url.path"] = connection.request.raw_path
    if not isinstance(connection, WebSocketClient):
        found |= _route(connection)
    if connection.subprotocol is not None:
        found["fabric.subprotocol"] = connection.subprotocol
    return found


def _route(client: ConnectedClient) -> dict[str, str]:
    router = client.server._handler
    route = router.route_of(client.request.raw_path) if isinstance(router, Router) else None
    return {} if route is None else {"http.route": route}
