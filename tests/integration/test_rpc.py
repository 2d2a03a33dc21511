"""Requests and replies over a connection, both ways."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric import ConnectedClient, WebSocketClient, WebSocketServer
from fabric.config import BackpressureConfig, ReconnectConfig
from fabric.error import ConnectionClosed, InvalidState, JsonError, Timeout
from fabric.rpc import Rpc, RpcError
from support.serving import serve, turns, until

Stack = contextlib.AsyncExitStack


@dataclasses.dataclass
class Quote:
    symbol: str
    price: float


class Desk:
    """What the server of these tests offers."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.notes: list[str] = []
        self.gate = asyncio.Event()
        self.begun = 0
        self.yielded = 0
        self.ended = 0

    def price(self, symbol: str) -> Quote:
        return Quote(symbol, 1.5)

    async def later(self, quote: Quote, factor: float = 2) -> Quote:
        await asyncio.sleep(0)
        return Quote(quote.symbol, quote.price * factor)

    async def wait(self, name: str) -> str:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        return name

    def note(self, text: str) -> None:
        self.notes.append(text)

    def refuse(self) -> None:
        raise RpcError("not today", code=7, data={"until": "tomorrow"})

    async def fail(self) -> None:
        raise KeyError("secret")

    async def not_json(self) -> object:
        return object()

    async def quotes(self, count: int) -> AsyncIterator[Quote]:
        try:
            for number in range(count):
                self.yielded = number + 1
                yield Quote("X", number)
        finally:
            self.ended += 1

    async def breaks(self) -> AsyncIterator[int]:
        yield 1
        raise RpcError("no more", code=8)

    _private = price


async def connected(
    stack: Stack, desk: object, methods: Any = None, *, options: dict[str, Any] | None = None, **rpc: Any
) -> tuple[Rpc, WebSocketClient, WebSocketServer]:
    async def handler(client: ConnectedClient) -> None:
        with contextlib.suppress(ConnectionClosed):
            await Rpc(client, desk, **rpc).serve()

    server = await serve(stack, handler)
    client = await stack.enter_async_context(WebSocketClient.connect(url_of(server), **(options or {})))
    return await stack.enter_async_context(Rpc(client, methods, **rpc)), client, server


def url_of(server: WebSocketServer) -> str:
    return f"ws://127.0.0.1:{server.port}"


# --- calls


async def test_a_call_returns_what_the_method_returns_in_the_type_asked_for(stack: Stack) -> None:
    peer, _, _ = await connected(stack, Desk())
    assert await peer.call("price", "EURUSD", type=Quote, timeout=10) == Quote("EURUSD", 1.5)
    assert await peer.call("price", symbol="EURUSD") == {"symbol": "EURUSD", "price": 1.5}
    assert await peer.call("later", Quote("A", 2), type=Quote) == Quote("A", 4)
    assert await peer.call("later", quote=Quote("A", 2), factor=3, type=Quote) == Quote("A", 6)
    assert await peer.call("note", "x", type=None) is None


async def test_both_ends_call_each_other(stack: Stack) -> None:
    async def ask_back(name: str) -> str:
        return f"{await server_end[0].call('who', type=str)} says {name}"

    async def handler(client: ConnectedClient) -> None:
        async with Rpc(client, {"ask_back": ask_back}) as peer:
            server_end.append(peer)
            await client.wait_closed()

    server_end: list[Rpc] = []
    server = await serve(stack, handler)
    async with WebSocketClient.connect(url_of(server)) as client, Rpc(client, {"who": lambda: "me"}) as peer:
        assert await peer.call("ask_back", "hello") == "me says hello"


async def test_answers_may_come_in_any_order(stack: Stack) -> None:
    desk = Desk()
    peer, _, _ = await connected(stack, desk)
    slow = [asyncio.create_task(peer.call("wait", name)) for name in "abc"]
    await until(lambda: desk.begun == 3)
    assert await peer.call("price", "X", type=Quote) == Quote("X", 1.5)
    desk.gate.set()
    assert await asyncio.gather(*slow) == ["a", "b", "c"]


async def test_a_notification_is_not_answered(stack: Stack) -> None:
    desk = Desk()
    peer, _, _ = await connected(stack, desk)
    await peer.notify("note", "a")
    await peer.notify("nothing", "b")
    await peer.notify("note", 5)
    await peer.notify("note", text="c")
    assert await peer.call("price", "X", type=Quote) == Quote("X", 1.5)
    assert desk.notes == ["a", "c"]


@pytest.mark.parametrize(
    ("call", "code", "text"),
    [
        (("nothing",), -32601, "there is no method 'nothing'"),
        (("_private", "X"), -32601, "there is no method '_private'"),
        (("price",), -32602, "price: missing a required argument: 'symbol'"),
        (("price", 5), -32602, "price: symbol: Expected `str`, got `int`"),
        (("later", {"symbol": "A"}), -32602, "price"),
        (("refuse",), 7, "not today"),
        (("fail",), -32603, "internal error"),
        (("not_json",), -32603, "internal error"),
        (("quotes", 3), -32600, "quotes yields: ask for it by stream()"),
        (("$/stream", "price", ["X"], 1), -32600, "price does not yield"),
        (("$/stream", 5), -32602, "$/stream"),
    ],
)
async def test_an_error_is_raised_as_it_was_answered(
    stack: Stack, call: tuple[Any, ...], code: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    peer, _, _ = await connected(stack, Desk())
    with pytest.raises(RpcError) as caught:
        await peer.call(*call)
    assert caught.value.code == code
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.data == ({"until": "tomorrow"} if code == 7 else None)
    logged = [record.name for record in caplog.records if record.levelname == "ERROR"]
    assert logged == (["fabric.rpc"] if code == -32603 else [])


async def test_a_result_of_another_type_tells_where(stack: Stack) -> None:
    peer, _, _ = await connected(stack, Desk())
    with pytest.raises(JsonError) as caught:
        await peer.call("price", "X", type=list[int])
    assert caught.value.path == "$"
    with pytest.raises(TypeError, match="positional or named arguments, not both"):
        await peer.call("price", "X", symbol="X")


async def test_a_timeout_and_a_cancellation_reach_the_method(stack: Stack) -> None:
    desk = Desk()
    peer, _, _ = await connected(stack, desk)
    with pytest.raises(Timeout, match=r"the call of wait timed out after 0\.01 s"):
        await peer.call("wait", "late", timeout=0.01)
    await until(lambda: desk.cancelled == ["late"])
    call = asyncio.create_task(peer.call("wait", "given up"))
    await until(lambda: desk.begun == 2)
    call.cancel()
    await until(lambda: desk.cancelled == ["late", "given up"])
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await peer.call("price", "X", type=Quote) == Quote("X", 1.5)


async def test_methods_that_run_at_once_are_bounded(stack: Stack) -> None:
    desk = Desk()
    peer, _, _ = await connected(stack, desk, max_running=3)
    calls = [asyncio.create_task(peer.call("wait", str(number))) for number in range(5)]
    await until(lambda: sum(call.done() for call in calls) == 2)
    for call in [call for call in calls if call.done()]:
        with pytest.raises(RpcError, match="3 methods are running already") as caught:
            await call
        assert caught.value.code == -32002
    desk.gate.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, str)] == [*"012"]


async def test_calls_that_wait_for_an_answer_are_bounded(stack: Stack) -> None:
    desk = Desk()
    peer, client, _ = await connected(stack, desk, max_calls=5)
    calls = [asyncio.create_task(peer.call("wait", str(number))) for number in range(8)]
    await until(lambda: desk.begun == 5)
    assert client.metrics.messages_sent == 5
    desk.gate.set()
    assert await asyncio.gather(*calls) == [*"01234567"]


# --- streams


async def test_a_stream_is_iterated(stack: Stack) -> None:
    desk = Desk()
    peer, _, _ = await connected(stack, desk)
    assert [quote async for quote in peer.stream("quotes", 200, type=Quote)] == [Quote("X", n) for n in range(200)]
    assert [quote["price"] async for quote in peer.stream("quotes", count=2)] == [0, 1]
    assert desk.ended == 2


async def test_a_stream_goes_on_only_as_it_is_taken_and_ends_with_its_loop(stack: Stack) -> None:
    desk = Desk()
    peer, _, _ = await connected(stack, desk, window=4)
    stream = peer.stream("quotes", 1000)
    async with contextlib.aclosing(stream):  # type: ignore[type-var]
        async for _ in stream:
            await peer.call("price", "X")  # whatever could come has come
            assert desk.yielded <= 6
            break
    await until(lambda: desk.ended == 1)


async def test_a_stream_that_fails(stack: Stack) -> None:
    peer, _, _ = await connected(stack, Desk())
    taken = []
    with pytest.raises(RpcError, match="no more") as caught:
        async for item in peer.stream("breaks", type=int):
            taken.append(item)
    assert (taken, caught.value.code) == ([1], 8)
    with pytest.raises(RpcError, match="price does not yield"):
        async for _ in peer.stream("price", "X"):
            pass


async def test_items_beyond_the_window_end_the_stream(stack: Stack) -> None:
    async def handler(client: ConnectedClient) -> None:
        request = (await client.recv()).json()  # type: ignore[union-attr]
        for number in range(20):
            await client.send_json({"jsonrpc": "2.0", "method": "$/item", "params": [request["id"], number]})
        await client.wait_closed()

    server = await serve(stack, handler)
    async with WebSocketClient.connect(url_of(server)) as client, Rpc(client, window=4) as peer:
        with pytest.raises(RpcError, match="more than the 4 items"):
            async for _ in peer.stream("all"):
                await turns(200)


# --- losses


async def test_calls_are_failed_by_a_loss_and_repeated_where_that_does_no_harm(stack: Stack) -> None:
    desk = Desk()
    quick = {"reconnect": ReconnectConfig(initial_delay=0.01, max_delay=0.02, jitter=0)}
    peer, client, server = await connected(stack, desk, options=quick)
    once = asyncio.create_task(peer.call("wait", "once"))
    again = asyncio.create_task(peer.call("wait", "again", idempotent=True))
    stream = peer.stream("quotes", 1000)
    assert (await anext(stream))["price"] == 0
    await until(lambda: desk.begun == 2)
    server.clients()[0]._abort()
    with pytest.raises(ConnectionClosed):
        await once
    with pytest.raises(ConnectionClosed):
        while True:
            await anext(stream)
    await until(lambda: desk.begun == 3)
    assert sorted(desk.cancelled) == ["again", "once"]
    desk.gate.set()
    assert await again == "again"
    assert client.metrics.reconnections == 1


async def test_after_the_end_a_call_raises_at_once(stack: Stack) -> None:
    peer, client, _ = await connected(stack, Desk())
    call = asyncio.create_task(peer.call("wait", "x"))
    await turns()
    await client.close()
    for after in (call, peer.call("price", "X"), peer.notify("note", "x")):
        with pytest.raises(ConnectionClosed):
            await after


async def test_an_rpc_that_has_not_begun_or_is_the_second_says_so(stack: Stack) -> None:
    peer, client, _ = await connected(stack, Desk())
    with pytest.raises(InvalidState, match="has an Rpc already"):
        await Rpc(client).serve()
    other = Rpc(client)
    with pytest.raises(InvalidState, match="has not begun"):
        await other.call("price", "X")
    assert await peer.call("price", "X", type=Quote) == Quote("X", 1.5)


async def test_the_connection_outlives_it(stack: Stack) -> None:
    desk = Desk()
    server = await serve(stack, lambda client: Rpc(client, desk).serve())
    async with WebSocketClient.connect(url_of(server)) as client:
        async with Rpc(client) as peer:
            await peer.call("price", "A")
        async with Rpc(client) as peer:
            assert await peer.call("price", "B", type=Quote) == Quote("B", 1.5)


async def test_after_it_was_left_a_call_says_so(stack: Stack) -> None:
    desk = Desk()
    server = await serve(stack, lambda client: Rpc(client, desk).serve())
    async with WebSocketClient.connect(url_of(server)) as client:
        async with Rpc(client) as peer:
            waiting = [asyncio.create_task(peer.call("wait", "x", idempotent=again)) for again in (False, True)]
            stream = peer.stream("quotes", 1000, type=Quote)
            await anext(stream)
            await until(lambda: desk.begun == 2)
        for later in (*waiting, peer.call("price", "X"), peer.notify("note", "x"), anext(peer.stream("quotes", 1))):
            with pytest.raises(InvalidState, match="this Rpc has ended, and its connection has not"):
                await later
        with pytest.raises(InvalidState, match="this Rpc has ended"):
            async for _ in stream:
                pass
        with pytest.raises(InvalidState, match="serves once"):
            await peer.serve()
        await until(lambda: desk.cancelled == ["x", "x"] and desk.ended == 1)
        await client.close()
        with pytest.raises(InvalidState, match="this Rpc has ended"):
            await peer.call("price", "X")


async def test_a_late_answer_is_not_taken_for_that_to_a_call_of_another_rpc(stack: Stack) -> None:
    desk = Desk()
    server = await serve(stack, lambda client: Rpc(client, desk).serve())
    async with WebSocketClient.connect(url_of(server)) as client:
        async with Rpc(client) as first:
            left = asyncio.create_task(first.call("wait", "x"))
            await until(lambda: desk.begun == 1)
        async with Rpc(client) as second:
            assert await second.call("price", "X", type=Quote) == Quote("X", 1.5)
        with pytest.raises(InvalidState):
            await left


class Odd(BaseException):
    """Of no class that anybody expects."""


@pytest.mark.parametrize("kind", ["plain", "coroutine", "stream"])
@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, StopIteration, RecursionError, Odd])
async def test_a_method_may_raise_whatever_there_is(
    stack: Stack, caplog: pytest.LogCaptureFixture, kind: str, error: type[BaseException]
) -> None:
    def plain() -> None:
        raise error

    async def coroutine() -> None:
        raise error

    async def stream() -> AsyncIterator[int]:
        yield 1
        raise error

    peer, _, _ = await connected(stack, {"plain": plain, "coroutine": coroutine, "stream": stream, "after": lambda: 1})
    with pytest.raises(RpcError) as caught:
        if kind == "stream":
            async for _ in peer.stream("stream"):
                pass
        else:
            await peer.call(kind)
    cancelled = error is asyncio.CancelledError and kind != "plain"
    assert caught.value.code == (-32001 if cancelled else -32603)
    assert bool(caplog.records) != cancelled
    assert await peer.call("after") == 1


async def test_a_batch_is_bounded(stack: Stack) -> None:
    server = await serve(stack, lambda client: Rpc(client, Desk()).serve())
    async with WebSocketClient.connect(url_of(server)) as client:
        await client.send("[" + ",".join(["1"] * 1001) + "]")
        answer = (await client.recv()).json()  # type: ignore[union-attr]
        assert (answer["id"], answer["error"]["code"]) == (None, -32600)
        await client.send("[" + ",".join(["1"] * 1000) + "]")
        assert len((await client.recv()).json()) == 1000  # type: ignore[union-attr]


async def test_methods_are_cancelled_at_the_end(stack: Stack) -> None:
    desk = Desk()
    peer, client, _ = await connected(stack, desk)
    call = asyncio.create_task(peer.call("wait", "x"))
    await until(lambda: desk.begun == 1)
    await client.close()
    await until(lambda: desk.cancelled == ["x"])
    with pytest.raises(ConnectionClosed):
        await call


# --- what others say


@pytest.mark.parametrize(
    ("said", "answers"),
    [
        ("{", [(None, -32700)]),
        ("5", [(None, -32600)]),
        ("[]", [(None, -32600)]),
        pytest.param('"' + "[" * 100_000 + '"', [(None, -32600)], id="a text of brackets"),
        pytest.param("[" * 100_000, [(None, -32700)], id="brackets"),
        ('{"jsonrpc": "1.0", "id": 1, "method": "price"}', [(None, -32600)]),
        ('{"jsonrpc": "2.0", "id": 1, "method": "price", "params": 5}', [(None, -32600)]),
        ('{"jsonrpc": "2.0", "id": [1], "method": "price"}', [(None, -32600)]),
        ('{"jsonrpc": "2.0", "id": 1, "result": 1, "error": {"code": 1, "message": ""}}', [(None, -32600)]),
        ('{"jsonrpc": "2.0", "id": "a", "method": "price", "params": ["X"]}', [("a", None)]),
        ('{"jsonrpc": "2.0", "id": null, "method": "price", "params": ["X"]}', [(None, None)]),
        ('{"jsonrpc": "2.0", "id": 1.5, "method": "nothing"}', [(1.5, -32601)]),
    ],
)
async def test_what_is_no_json_rpc_is_answered_as_the_specification_says(
    stack: Stack, said: str, answers: list[tuple[Any, int | None]]
) -> None:
    server = await serve(stack, lambda client: Rpc(client, Desk()).serve())
    async with WebSocketClient.connect(url_of(server)) as client:
        await client.send(said)
        for id_, code in answers:
            answer = (await client.recv()).json()  # type: ignore[union-attr]
            assert answer["jsonrpc"] == "2.0"
            assert answer["id"] == id_
            assert answer.get("error", {}).get("code") == code


async def test_a_batch_is_answered_by_a_batch(stack: Stack) -> None:
    server = await serve(stack, lambda client: Rpc(client, Desk()).serve())
    async with WebSocketClient.connect(url_of(server)) as client:
        await client.send_json(
            [
                {"jsonrpc": "2.0", "id": 1, "method": "price", "params": ["X"]},
                {"jsonrpc": "2.0", "method": "note", "params": ["x"]},
                {"jsonrpc": "2.0", "id": 2, "method": "later", "params": [{"symbol": "A", "price": 1}]},
                5,
                {"jsonrpc": "2.0", "id": 77, "result": None},
            ]
        )
        answers = (await client.recv()).json()  # type: ignore[union-attr]
        assert {answer["id"]: answer.get("error", {}).get("code") for answer in answers} == {
            1: None,
            2: None,
            None: -32600,
        }
        await client.send_json([{"jsonrpc": "2.0", "method": "note", "params": ["x"]}])
        await client.send_json({"jsonrpc": "2.0", "id": 3, "method": "price", "params": ["X"]})
        assert (await client.recv()).json()["id"] == 3  # type: ignore[union-attr]


async def test_a_peer_that_asks_and_takes_no_answers_is_closed(stack: Stack) -> None:
    ended: list[Rpc] = []

    async def handler(client: ConnectedClient) -> None:
        peer = Rpc(client, {"big": lambda: "x" * 100_000}, max_running=5)
        try:
            await peer.serve()
        finally:
            ended.append(peer)

    options = {"backpressure": BackpressureConfig(max_buffer_bytes=300_000), "close_timeout": 0.2}
    server = await serve(stack, handler, **options)
    async with WebSocketClient.connect(url_of(server), buffer_size=1, auto_reconnect=False) as client:
        request = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "big"})
        with contextlib.suppress(ConnectionClosed):
            for _ in range(2000):
                await client.send(request)
        await until(lambda: ended)
        assert not ended[0]._sending


async def test_wrong_methods_are_refused_before() -> None:
    client: Any = object()
    with pytest.raises(TypeError, match="the method 'x' must be callable, not int"):
        Rpc(client, {"x": 5})
    with pytest.raises(ValueError, match=r"'rpc\.x' cannot be a method's name"):
        Rpc(client, {"rpc.x": print})
    with pytest.raises(ValueError, match="max_calls is 0"):
        Rpc(client, max_calls=0)

    def unknown(x: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    with pytest.raises(TypeError, match="annotation that cannot be found"):
        Rpc(client, {"unknown": unknown})
