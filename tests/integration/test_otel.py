"""Spans of connections and calls, as an application's OpenTelemetry SDK gets them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import fabric.sync
from fabric import ConnectedClient, Router, WebSocketClient, WebSocketServer, otel
from fabric._connection import tracing
from fabric.config import ReconnectConfig
from fabric.error import AuthenticationFailed, Timeout
from fabric.rpc import Rpc, RpcError
from support.serving import echo, until

SECRET = "s3cret"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    """Those that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str, kind: SpanKind | None = None) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name and kind in (None, span.kind)]

    def one(self, name: str, kind: SpanKind | None = None) -> Any:
        (found,) = self.named(name, kind)
        return found


@pytest.fixture
def spans() -> Iterator[Spans]:
    found = Spans()
    otel.instrument(found.provider)
    yield found
    otel.uninstrument()
    found.provider.shutdown()


def is_child(span: Any, parent: Any) -> bool:
    return span.parent is not None and span.parent.span_id == parent.context.span_id


def server_session(spans: Spans) -> bool:
    return bool(spans.named("session", SpanKind.SERVER))


@contextlib.asynccontextmanager
async def serve(handler: Any) -> AsyncIterator[tuple[WebSocketServer, str]]:
    async with WebSocketServer.bind("127.0.0.1:0", handler) as server:
        yield server, f"ws://127.0.0.1:{server.port}/"


class Desk:
    def price(self, symbol: str) -> float:
        trace.get_current_span().set_attribute("seen", symbol)
        return 1.5

    async def later(self) -> None:
        await asyncio.sleep(0)
        trace.get_current_span().set_attribute("seen", "later")

    def refuse(self) -> None:
        raise RpcError(SECRET, code=7)

    async def wait(self) -> None:
        await asyncio.Event().wait()

    async def count(self, up_to: int) -> AsyncIterator[int]:
        for number in range(up_to):
            yield number


async def desk(client: ConnectedClient) -> None:
    await Rpc(client, Desk()).serve()


# Connections.


async def test_a_connection_is_one_trace_over_both_ends(spans: Spans) -> None:
    async def handler(client: ConnectedClient) -> None:
        with spans.tracer.start_as_current_span("work"):
            await client.send(await client.recv())

    router = Router()
    router.add("/rooms/{room}", lambda client, room: handler(client))
    async with WebSocketServer.bind("127.0.0.1:0", router) as server:
        with spans.tracer.start_as_current_span("program"):
            authority = f"127.0.0.1:{server.port}"
            url = f"ws://ada:{SECRET}@{authority}/rooms/7?token={SECRET}"
            async with WebSocketClient.connect(url, headers={"X-Secret": SECRET}) as client:
                await client.send(SECRET)
                await client.recv()
                await client.recv()
        await until(lambda: server_session(spans))
    program, connect, work, handled = map(spans.one, ("program", "connect", "work", "handler"))
    ours, theirs = spans.one("session", SpanKind.CLIENT), spans.one("session", SpanKind.SERVER)
    assert is_child(connect, program)
    assert is_child(ours, connect)
    assert is_child(theirs, connect)
    assert is_child(handled, theirs)
    assert is_child(work, handled)
    assert connect.kind is SpanKind.CLIENT
    assert connect.attributes["url.full"] == f"ws://{authority}/rooms/7"
    assert connect.attributes["http.response.status_code"] == 101
    assert theirs.attributes["url.path"] == "/rooms/7"
    assert theirs.attributes["http.route"] == handled.attributes["http.route"] == "/rooms/{room}"
    for span in (ours, theirs):
        assert span.attributes["fabric.messages_sent"] == span.attributes["fabric.messages_received"] == 1
        assert span.attributes["fabric.close_code"] == 1000
    assert {span.status.status_code for span in spans.all()} == {StatusCode.UNSET}
    assert SECRET not in "".join(span.to_json() for span in spans.all())


async def test_the_request_carries_the_context_of_its_attempt(spans: Spans) -> None:
    async with serve(echo) as (_, url):
        async with WebSocketClient.connect(url) as client:
            assert client.request is not None
            carried = client.request.headers["traceparent"]
    connect = spans.one("connect").context
    assert carried.startswith(f"00-{connect.trace_id:032x}-{connect.span_id:016x}-")


async def test_a_header_of_the_application_stays(spans: Spans) -> None:
    async with serve(echo) as (_, url):
        async with WebSocketClient.connect(url, headers={"traceparent": PARENT}):
            pass
        await until(lambda: server_session(spans))
    assert spans.one("session", SpanKind.SERVER).parent.span_id == 0xB7AD6B7169203331


@pytest.mark.parametrize("header", ["x", "", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "é" * 1000])
async def test_a_header_that_is_none_begins_a_trace(header: str, spans: Spans) -> None:
    async with serve(echo) as (_, url):
        async with WebSocketClient.connect(url, headers={"traceparent": header}):
            pass
        await until(lambda: server_session(spans))
    assert spans.one("session", SpanKind.SERVER).parent is None


async def test_an_attempt_that_is_refused_is_an_error(spans: Spans) -> None:
    async with WebSocketServer.bind("127.0.0.1:0", echo, process_request=lambda _: (401, {}, SECRET)) as server:
        with pytest.raises(AuthenticationFailed):
            await WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/?token={SECRET}")
    connect = spans.one("connect")
    assert connect.status.status_code is StatusCode.ERROR
    assert connect.attributes["error.type"] == "401"
    assert connect.attributes["http.response.status_code"] == 401
    assert SECRET not in connect.to_json()
    assert not spans.named("session")


async def test_each_attempt_and_each_session_has_a_span(spans: Spans) -> None:
    back = asyncio.Event()
    async with serve(echo) as (server, url):
        options: Any = {"reconnect": ReconnectConfig(initial_delay=0.001), "on_reconnect": lambda _: back.set()}
        async with WebSocketClient.connect(url, **options) as client:
            server.clients()[0]._abort()
            await back.wait()
            await client.send("x")
            await client.recv()
    assert len(spans.named("connect")) == 2
    lost, closed = spans.named("session", SpanKind.CLIENT)
    assert lost.attributes["fabric.close_code"] == 1006
    assert lost.attributes["error.type"] == "1006"
    assert (lost.attributes["fabric.messages_sent"], closed.attributes["fabric.messages_sent"]) == (0, 1)


async def test_a_session_that_is_introduced_is_one_span(spans: Spans) -> None:
    async def log_in(client: WebSocketClient) -> None:
        await client.send("login")
        await client.recv()

    async with serve(echo) as (_, url), WebSocketClient.connect(url, on_session=log_in) as client:
        await client.send("x")
        await client.recv()
    assert spans.one("session", SpanKind.CLIENT).attributes["fabric.close_code"] == 1000
    assert len(spans.named("connect")) == 1


async def test_a_handler_that_raises_is_an_error(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(client: ConnectedClient) -> None:
        raise KeyError("x")

    async with serve(handler) as (_, url), WebSocketClient.connect(url, auto_reconnect=False) as client:
        with contextlib.suppress(fabric.ConnectionClosed):
            await client.recv()
        await until(lambda: spans.named("handler"))
    assert spans.one("handler").attributes["error.type"] == "KeyError"
    assert "raised" in caplog.text


async def test_a_handler_that_cannot_be_awaited_ends_its_span(spans: Spans, caplog: pytest.LogCaptureFixture) -> None:
    handler: Any = lambda client: 5  # noqa: E731
    async with serve(handler) as (_, url), WebSocketClient.connect(url, auto_reconnect=False) as client:
        with contextlib.suppress(fabric.ConnectionClosed):
            await client.recv()
    assert spans.one("handler").attributes["error.type"] == "TypeError"
    assert "cannot be awaited" in caplog.text


def test_a_client_without_an_event_loop_has_them_too(spans: Spans) -> None:
    with spans.tracer.start_as_current_span("program"), asyncio.Runner() as runner:
        server = WebSocketServer.bind("127.0.0.1:0", echo)
        runner.run(server.start())

        def talk() -> None:
            with fabric.sync.connect(f"ws://127.0.0.1:{server.port}") as client:
                client.send("x")
                client.recv()

        runner.run(asyncio.to_thread(talk))
        runner.run(server.shutdown())
    assert is_child(spans.one("connect"), spans.one("program"))
    assert is_child(spans.one("session", SpanKind.CLIENT), spans.one("connect"))


# Requests and replies.


async def test_a_call_is_the_parent_of_what_it_runs(spans: Spans) -> None:
    async with serve(desk) as (_, url), WebSocketClient.connect(url) as client, Rpc(client) as peer:
        with spans.tracer.start_as_current_span("program"):
            assert await peer.call("price", "EURUSD") == 1.5
            await peer.call("later")
            assert [number async for number in peer.stream("count", 3)] == [0, 1, 2]
            await peer.notify("price", "GBPUSD")
        await peer.call("later")
        await until(lambda: len(spans.named("price", SpanKind.SERVER)) == 2)
    program = spans.one("program")
    for name, count in (("price", 2), ("later", 1), ("count", 1)):
        calls = spans.named(name, SpanKind.CLIENT)
        for call, run in zip(calls[:count], spans.named(name, SpanKind.SERVER), strict=False):
            assert is_child(call, program)
            assert is_child(run, call)
            assert run.attributes["rpc.method"] == call.attributes["rpc.method"] == name
            assert run.attributes["rpc.system.name"] == "jsonrpc"
            assert run.links[0].context.span_id == spans.one("session", SpanKind.SERVER).context.span_id
    assert [span.attributes.get("seen") for span in spans.named("price", SpanKind.SERVER)] == ["EURUSD", "GBPUSD"]
    assert {span.attributes.get("seen") for span in spans.named("later", SpanKind.SERVER)} == {"later"}
    assert is_child(spans.named("later", SpanKind.CLIENT)[1], spans.one("session", SpanKind.CLIENT))
    assert "EURUSD" not in "".join(span.to_json() for span in spans.named("price", SpanKind.CLIENT))


async def test_calls_that_fail_are_errors(spans: Spans) -> None:
    async with serve(desk) as (_, url), WebSocketClient.connect(url) as client, Rpc(client) as peer:
        with pytest.raises(RpcError):
            await peer.call("refuse")
        with pytest.raises(RpcError):
            await peer.call("nothing")
        with pytest.raises(Timeout):
            await peer.call("wait", timeout=0.01)
        await until(lambda: spans.named("wait", SpanKind.SERVER))
    for kind in (SpanKind.CLIENT, SpanKind.SERVER):
        refused = spans.one("refuse", kind)
        assert refused.attributes["error.type"] == refused.attributes["rpc.response.status_code"] == "7"
        assert spans.one("wait", kind).attributes["error.type"] == "CancelledError"
    assert not spans.named("nothing", SpanKind.SERVER)
    assert SECRET not in "".join(span.to_json() for span in spans.all())


@pytest.mark.parametrize("carried", [5, ["x"], None, "nonsense", {"a": 1}])
async def test_a_request_may_carry_anything(carried: Any, spans: Spans) -> None:
    asked = {"jsonrpc": "2.0", "id": 1, "method": "price", "params": ["x"], "traceparent": carried}
    async with serve(desk) as (_, url), WebSocketClient.connect(url) as client:
        await client.send(json.dumps(asked))
        answer = await client.recv()
        assert answer is not None
        assert answer.json()["result"] == 1.5
        await client.close()
        await until(lambda: server_session(spans))
    assert is_child(spans.one("price"), spans.one("session", SpanKind.SERVER))


async def test_a_stream_that_is_left_is_no_error_and_not_the_current_span(spans: Spans) -> None:
    async with serve(desk) as (_, url), WebSocketClient.connect(url) as client, Rpc(client) as peer:
        async with contextlib.aclosing(peer.stream("count", 1000)) as items:
            async for _ in items:
                assert not trace.get_current_span().get_span_context().is_valid
                break
    assert spans.one("count", SpanKind.CLIENT).status.status_code is StatusCode.UNSET


# On and off.


async def test_nothing_is_told_when_it_is_off() -> None:
    assert tracing.tracer is None
    async with serve(desk) as (_, url), WebSocketClient.connect(url) as client, Rpc(client) as peer:
        assert await peer.call("price", "x") == 1.5
        assert client.request is not None
        assert "traceparent" not in client.request.headers


async def test_switching_off_ends_what_is_open_and_harms_nothing(spans: Spans) -> None:
    async with serve(echo) as (_, url), WebSocketClient.connect(url) as client:
        otel.uninstrument()
        otel.uninstrument()
        assert len(spans.named("session")) == 2
        await client.send("x")
        await client.recv()
        otel.instrument(spans.provider)
        await client.close()
    assert len(spans.named("session")) == 2


def test_it_is_switched_on_once(spans: Spans) -> None:
    with pytest.raises(RuntimeError, match="uninstrument"):
        otel.instrument()


async def test_the_dashboards_own_page_has_none(spans: Spans) -> None:
    server = WebSocketServer.bind("127.0.0.1:0", echo)
    server.mount_dashboard()
    async with server, WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/dashboard/feed") as client:
        await client.recv()
    assert not spans.named("session", SpanKind.SERVER)
    assert not spans.named("handler")


async def test_without_an_sdk_nothing_happens(stack: contextlib.AsyncExitStack) -> None:
    otel.instrument()
    stack.callback(otel.uninstrument)
    async with serve(desk) as (_, url), WebSocketClient.connect(url) as client, Rpc(client) as peer:
        assert await peer.call("price", "x") == 1.5
