"""Requests and replies over one connection, both ways: JSON-RPC 2.0 with types.

Owns the calls that are under way, ours and the other end's, and what becomes of them at a timeout, a cancellation and
a loss. What is said is `fabric._rpc.wire`'s, the methods that are offered `fabric._rpc.methods`'.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import msgspec

from fabric._connection import tracing
from fabric._connection.base import BaseConnection
from fabric._connection.events import log_event
from fabric._rpc import wire
from fabric._rpc.methods import Method, methods_of
from fabric._rpc.wire import Incoming, RpcError
from fabric.client import WebSocketClient
from fabric.error import BackpressureTimeout, BufferFull, ConnectionClosed, InvalidState, Timeout
from fabric.message import Message
from fabric_ext.protocol import State
from fabric_ext.receive_queue import fresh

if TYPE_CHECKING:
    from typing_extensions import TypeForm

__all__ = ["Rpc", "RpcError"]

logger = logging.getLogger("fabric.rpc")

T = TypeVar("T")

_ids = itertools.count(1)  # of all: a late answer to a call of an Rpc that was left must not be taken for another's

MOST_IN_BATCH = 1000  # requests: a few bytes each ask for an answer of a hundred

# What msgspec raises for text of the other end: a deep nest of brackets is the sender's doing too.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Rpc:
    """One end of a connection on which both ends call each other's methods.

        async with WebSocketClient.connect(url) as client, Rpc(client) as peer:
            quote = await peer.call("price", "EURUSD", type=Quote, timeout=1)

        async def handler(client):
            await Rpc(client, {"price": price}).serve()

    It reads all messages of the connection. The connection stays open when it ends.

    When a connection is lost, calls that wait for an answer raise `ConnectionClosed`: whether the other end has run
    them cannot be known. One that is called `idempotent` is repeated on the client's next connection.

    Args:
        connection: a `WebSocketClient` or a `ConnectedClient`.
        methods: what the other end may call: names and functions, or an object whose public methods are meant. Plain
            functions run where the request is read and must not block; coroutine functions run as tasks; async
            generator functions are streams. Arguments are converted to the types that are declared. A method raises
            `RpcError` to answer with an error; what else it raises is logged, and answered as an internal error.
        max_calls: calls of ours that wait for an answer; more wait for their turn.
        max_running: methods of ours that run for the other end at once; more are answered with the code -32002.
        window: items of a stream that may be on their way, or wait here.

    Raises:
        TypeError, ValueError: something that cannot be a method.
    """

    def __init__(
        self,
        connection: BaseConnection,
        methods: Mapping[str, Callable[..., Any]] | object | None = None,
        *,
        max_calls: int = 1000,
        max_running: int = 100,
        window: int = 64,
    ) -> None:
        for name, value in (("max_calls", max_calls), ("max_running", max_running), ("window", window)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, allowed are integers from 1")
        self.connection = connection
        self._methods = methods_of(methods)
        self._max_running = max_running
        self._window = window
        self._room = asyncio.Semaphore(max_calls)
        self._calls: dict[Any, asyncio.Future[bytes]] = {}
        self._streams: dict[Any, _Items] = {}
        self._running: dict[Any, _Running] = {}  # by the other end's id; notifications by themselves
        self._sending: set[asyncio.Task[None]] = set()  # answers that wait until there is room to send them
        self._reader: asyncio.Task[None] | None = None
        self._end: Exception | None = None

    # -- life

    async def __aenter__(self) -> Self:
        self._begin()
        self._reader = asyncio.get_running_loop().create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._reader is not None
        self._reader.cancel()
        await asyncio.wait([self._reader])
        if not self._reader.cancelled() and error is None:
            self._reader.result()

    async def serve(self) -> None:
        """Answer the other end's calls until the connection is closed.

        Raises:
            ConnectionClosed: it was not closed in good order.
        """
        self._begin()
        await self._read()

    def _begin(self) -> None:
        if self.connection._on_loss is not None:
            raise InvalidState("this connection has an Rpc already", state=self.connection.state.name)
        if self._end is not None:
            raise InvalidState("an Rpc serves once; make a new one", state="closed")
        self.connection._on_loss = self._lost

    async def _read(self) -> None:
        try:
            async for message in self.connection:
                self._take(message)
        finally:
            self.connection._on_loss = None
            self._end = self._end_error()
            for id in (*self._calls, *self._streams):  # noqa: A001
                self._say(wire.request(wire.CANCEL, (id,), {}))
            self._lost(self._end)
            tasks = [*self._sending, *(running.task for running in self._running.values())]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _end_error(self) -> Exception:
        """What calls raise from now on."""
        state = self.connection.state
        if state is State.CLOSED:
            return ConnectionClosed(self.connection.close_code or 1006, self.connection.close_reason or "")
        return InvalidState("this Rpc has ended, and its connection has not: make a new one", state=state.name)

    def _lost(self, error: Exception) -> None:
        """The transport is gone, or this has ended: no answer will come to what was asked."""
        for call in self._calls.values():
            if not call.done():
                call.set_exception(fresh(error))
                call.exception()  # known, even where the caller has gone
        for stream in self._streams.values():
            stream.finish(fresh(error))
        for running in self._running.values():
            running.task.cancel()

    # -- calling

    @overload
    async def call(
        self,
        method: str,
        /,
        *args: Any,
        type: type[T],
        timeout: float | timedelta | None = None,
        idempotent: bool = False,
        **kwargs: Any,
    ) -> T: ...
    @overload
    async def call(
        self,
        method: str,
        /,
        *args: Any,
        type: TypeForm[T],
        timeout: float | timedelta | None = None,
        idempotent: bool = False,
        **kwargs: Any,
    ) -> T: ...
    @overload
    async def call(
        self,
        method: str,
        /,
        *args: Any,
        type: Any = ...,
        timeout: float | timedelta | None = None,
        idempotent: bool = False,
        **kwargs: Any,
    ) -> Any: ...
    async def call(
        self,
        method: str,
        /,
        *args: Any,
        type: Any = Any,  # noqa: A002  # the contract's name
        timeout: float | timedelta | None = None,  # reaches the other end
        idempotent: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Call a method of the other end and return its result, decoded into `type`.

        When the call is cancelled, or `timeout` seconds have passed, the other end is told to cancel the method.

        Args:
            method: its name.
            args, kwargs: its arguments, positional or named, not both.
            type: what the result is decoded into: anything that msgspec knows.
            timeout: seconds for all of it; None = as long as it takes.
            idempotent: repeat the call when the connection is lost and the client has another one.

        Raises:
            RpcError: what the other end answered instead of a result.
            JsonError: the result is not of this type.
            Timeout: `timeout` has passed.
            ConnectionClosed: the connection was lost before the answer came.
            InvalidState: this has not begun, or was left before the answer came.
        """
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        try:
            async with asyncio.timeout(seconds):
                with self._traced(method) as context:
                    ask = self._ask_again if idempotent else self._ask
                    result = await ask(method, args, kwargs, context)
        except TimeoutError as error:
            if isinstance(error, Timeout) or seconds is None:
                raise
            raise Timeout(f"the call of {method}", seconds) from None
        return Message(result).parse_json(type)

    def _traced(self, method: str) -> AbstractContextManager[Mapping[str, str] | None]:
        """Around a call of ours; gives what its request carries for the trace."""
        if tracing.tracer is None:
            return contextlib.nullcontext()
        return tracing.tracer.calling(self.connection, method)

    async def _ask_again(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], context: Mapping[str, str] | None
    ) -> bytes:
        """Ask, and ask again on the next connection, until there is an answer or no other connection."""
        while True:
            try:
                return await self._ask(method, args, kwargs, context)
            except ConnectionClosed:
                if self._end is not None or not isinstance(self.connection, WebSocketClient):
                    raise
                await self.connection.wait_connected()

    async def _ask(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], context: Mapping[str, str] | None
    ) -> bytes:
        async with self._room:
            self._check_open()
            id = next(_ids)  # noqa: A001
            text = wire.request(method, args, kwargs, id, context)
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._calls[id] = answer
            try:
                await self.connection.send(text)
                return await answer
            except asyncio.CancelledError:
                self._say(wire.request(wire.CANCEL, (id,), {}))
                raise
            finally:
                del self._calls[id]

    async def notify(self, method: str, /, *args: Any, **kwargs: Any) -> None:
        """Call a method of the other end without an answer; it cannot be known what becomes of it."""
        self._check_open()
        with self._traced(method) as context:
            await self.connection.send(wire.request(method, args, kwargs, more=context))

    @overload
    def stream(self, method: str, /, *args: Any, type: type[T], **kwargs: Any) -> AsyncIterator[T]: ...
    @overload
    def stream(self, method: str, /, *args: Any, type: TypeForm[T], **kwargs: Any) -> AsyncIterator[T]: ...
    @overload
    def stream(self, method: str, /, *args: Any, type: Any = ..., **kwargs: Any) -> AsyncIterator[Any]: ...
    async def stream(
        self,
        method: str,
        /,
        *args: Any,
        type: Any = Any,  # noqa: A002  # the contract's name
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """Iterate over what a method of the other end yields, each item decoded into `type`.

        The other end goes on as items are taken, `window` of them ahead at most. Leaving the loop ends the method.

        Raises:
            RpcError, JsonError, ConnectionClosed, InvalidState: as `call`.
        """
        self._check_open()
        if args and kwargs:
            raise TypeError(f"{method}: JSON-RPC takes positional or named arguments, not both")
        id = next(_ids)  # noqa: A001
        items = self._streams[id] = _Items(self._window)
        try:
            with self._traced(method) as context:
                asked = (method, args or kwargs, self._window)
                await self.connection.send(wire.request(wire.STREAM, asked, {}, id, context))
                taken = 0
                async for item in items:
                    yield Message(item).parse_json(type)
                    taken += 1
                    if 2 * taken >= self._window:
                        self._say(wire.request(wire.MORE, (id, taken), {}))
                        taken = 0
        finally:
            del self._streams[id]
            if not items.is_finished:
                self._say(wire.request(wire.CANCEL, (id,), {}))

    def _check_open(self) -> None:
        if self._end is not None:
            raise fresh(self._end)
        if self.connection._on_loss != self._lost:
            raise InvalidState("this Rpc has not begun: use `async with`, or serve()", state="new")

    def _say(self, text: str) -> None:
        """Send without waiting; what finds no room waits in a task."""
        try:
            self.connection.send_nowait(text)
        except (ConnectionClosed, InvalidState):  # the other end has gone
            pass
        except BufferFull:
            if len(self._sending) > self._max_running:
                return  # it is being closed
            if len(self._sending) == self._max_running:
                # It asks and takes no answers (RFC 6455 §7.4.1: policy violation).
                work = self.connection.close(1008, "answers are not taken")
            else:
                work = self.connection.send(text)
            task = asyncio.get_running_loop().create_task(_quietly(work))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    # -- what the other end says

    def _take(self, message: Message) -> None:
        try:
            batch = wire.items_of(message.data)
        except UNREADABLE as error:
            self._say(wire.error_answer(None, RpcError(str(error), code=wire.PARSE_ERROR)))
            return
        if batch is None:
            self._take_one(message.data)
        elif not 1 <= len(batch) <= MOST_IN_BATCH:
            what = f"a batch has 1 to {MOST_IN_BATCH} requests, not {len(batch)}"
            self._say(wire.error_answer(None, RpcError(what, code=wire.INVALID_REQUEST)))
        else:
            answers = _Batch(len(batch), self._say)
            for item in batch:
                self._take_one(item, answers)

    def _take_one(self, text: str | bytes | msgspec.Raw, batch: _Batch | None = None) -> None:
        say = self._say if batch is None else batch.add
        try:
            incoming = wire.read(text)
        except msgspec.ValidationError as error:
            say(wire.error_answer(None, RpcError(str(error), code=wire.INVALID_REQUEST)))
            return
        except UNREADABLE as error:
            say(wire.error_answer(None, RpcError(str(error), code=wire.PARSE_ERROR)))
            return
        if incoming.is_answer:
            self._answered(incoming)
        elif incoming.id is msgspec.UNSET:
            self._notified(incoming)
        else:
            self._asked(incoming, say)
            return
        if batch is not None:
            batch.add(None)

    def _answered(self, incoming: Incoming) -> None:
        """An answer; one to a call that nobody waits for any more is dropped."""
        failure = incoming.failure()
        call = self._calls.get(incoming.id)
        stream = self._streams.get(incoming.id)
        if call is not None and not call.done():
            if failure is None:
                call.set_result(bytes(incoming.result))
            else:
                call.set_exception(failure)
        elif stream is not None:
            stream.finish(failure)

    def _notified(self, incoming: Incoming) -> None:
        try:
            if incoming.method == wire.CANCEL:
                (id,) = msgspec.json.decode(incoming.params, type=tuple[int | str | float])  # noqa: A001
                if id in self._running:
                    self._running[id].task.cancel()
            elif incoming.method == wire.ITEM:
                id, item = msgspec.json.decode(incoming.params, type=tuple[int, msgspec.Raw])  # noqa: A001
                if id in self._streams:
                    self._streams[id].put(bytes(item))
            elif incoming.method == wire.MORE:
                id, count = msgspec.json.decode(incoming.params, type=tuple[int | str | float, int])  # noqa: A001
                if id in self._running:
                    self._running[id].allow(count)
            else:
                self._run(incoming, None)
        except (*UNREADABLE, RpcError) as error:
            log_event(
                logger, logging.INFO, "connection %s: a notification that cannot be: %s", self.connection.id, error
            )

    def _asked(self, incoming: Incoming, say: Callable[[str], None]) -> None:
        try:
            self._run(incoming, say)
        except RpcError as error:
            say(wire.error_answer(incoming.id, error))

    def _run(self, incoming: Incoming, say: Callable[[str], None] | None) -> None:
        """Run a method for the other end; without `say` for a notification."""
        name, params, window = incoming.method, bytes(incoming.params), 0
        if name == wire.STREAM:
            try:
                name, raw, window = msgspec.json.decode(params, type=tuple[str, msgspec.Raw, int])
            except UNREADABLE as error:
                raise RpcError(f"{wire.STREAM}: {error}", code=wire.INVALID_PARAMS) from None
            params = bytes(raw)
        method = self._methods.get(name or "")
        if method is None:
            raise RpcError(f"there is no method {name!r}", code=wire.METHOD_NOT_FOUND)
        if method.is_stream != (window > 0) or (method.is_stream and say is None):
            how = "yields: ask for it by stream()" if method.is_stream else "does not yield: ask for it by call()"
            raise RpcError(f"{name} {how}", code=wire.INVALID_REQUEST)
        if incoming.id in self._running:
            raise RpcError(f"the request {incoming.id!r} has not been answered yet", code=wire.INVALID_REQUEST)
        if len(self._running) >= self._max_running:
            raise RpcError(f"{self._max_running} methods are running already", code=wire.BUSY)
        bound = method.bind(params)
        if method.is_stream or inspect.iscoroutinefunction(method.function):
            running = _Running(window)
            key = incoming.id if say is not None else running
            self._running[key] = running
            work = self._run_task(method, bound, running, key, say, incoming)
            running.task = asyncio.get_running_loop().create_task(work)
            return
        result = self._guarded(method, functools.partial(self._run_now, method, bound, incoming))
        if say is not None:
            say(self._encoded(method, incoming.id, result))

    def _serving(self, method: Method, incoming: Incoming) -> AbstractContextManager[None]:
        """Around a method that runs for the other end."""
        if tracing.tracer is None:
            return contextlib.nullcontext()
        carried = {"traceparent": incoming.traceparent, "tracestate": incoming.tracestate}
        return tracing.tracer.serving(self.connection, method.name, carried)

    def _run_now(self, method: Method, bound: inspect.BoundArguments, incoming: Incoming) -> Any:
        with self._serving(method, incoming):
            return method.function(*bound.args, **bound.kwargs)

    async def _run_task(
        self,
        method: Method,
        bound: inspect.BoundArguments,
        running: _Running,
        key: Any,
        say: Callable[[str], None] | None,
        incoming: Incoming,
    ) -> None:
        try:
            with self._serving(method, incoming):
                called = method.function(*bound.args, **bound.kwargs)
                result = await (self._run_stream(method, called, running, key) if method.is_stream else called)
            answer = self._encoded(method, key, result) if say is not None else ""
        except asyncio.CancelledError:
            answer = wire.error_answer(key, RpcError("cancelled", code=wire.CANCELLED)) if say is not None else ""
        except BaseException as error:
            failure = self._failure(method, error)
            answer = wire.error_answer(key, failure) if say is not None else ""
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise  # the other end is told before
        finally:
            self._running.pop(key, None)
            if say is not None:
                say(answer)

    async def _run_stream(self, method: Method, items: Any, running: _Running, key: Any) -> None:
        async with contextlib.aclosing(items):
            async for item in items:
                await running.turn()
                try:
                    text = wire.request(wire.ITEM, (key, item), {})
                except TypeError as error:
                    raise RpcError(f"{method.name} yielded what JSON cannot express: {error}") from None
                await self.connection.send(text)

    def _guarded(self, method: Method, function: Callable[[], T]) -> T:
        """What `function` returns. Raises RpcError for whatever it raises."""
        try:
            return function()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  (logged)
            raise self._failure(method, error) from None

    def _encoded(self, method: Method, id: Any, result: Any) -> str:  # noqa: A002
        return self._guarded(method, lambda: wire.answer(id, result))

    def _failure(self, method: Method, error: BaseException) -> RpcError:
        """What the other end is told of an exception: nothing but that there was one, unless it is an RpcError."""
        if isinstance(error, RpcError):
            return error
        text = "connection %s: the method %s raised"
        log_event(logger, logging.ERROR, text, self.connection.id, method.name, exc_info=error)
        return RpcError("internal error", code=wire.INTERNAL_ERROR)


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(ConnectionClosed, BackpressureTimeout):
        await work


class _Items:
    """What a stream has yielded and its reader has not taken."""

    def __init__(self, limit: int) -> None:
        self.is_finished = False
        self._limit = limit
        self._items: deque[bytes] = deque()
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: bytes) -> None:
        if self.is_finished:
            return
        if len(self._items) >= self._limit:
            self.finish(RpcError(f"the other end sent more than the {self._limit} items that it may"))
            return
        self._items.append(item)
        self._wake()

    def finish(self, error: Exception | None) -> None:
        if not self.is_finished:
            self.is_finished = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._items:
            if self._error is not None:
                raise fresh(self._error)
            if self.is_finished:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._items.popleft()


class _Running:
    """A method that runs for the other end; of a stream, how many items it may send."""

    def __init__(self, window: int) -> None:
        self.task: asyncio.Task[None]
        self._allowed = window
        self._more = asyncio.Event()

    def allow(self, count: int) -> None:
        if count > 0:
            self._allowed += count
            self._more.set()

    async def turn(self) -> None:
        """Wait until one item more may be sent."""
        while self._allowed < 1:
            self._more.clear()
            await self._more.wait()
        self._allowed -= 1


class _Batch:
    """The answers to a batch, which are said together when there are all."""

    def __init__(self, count: int, say: Callable[[str], None]) -> None:
        self._left = count
        self._answers: list[str] = []
        self._say = say

    def add(self, answer: str | None) -> None:
        """One request of the batch is answered; None where it needs no answer."""
        if answer is not None:
            self._answers.append(answer)
        self._left -= 1
        if not self._left and self._answers:
            self._say(f"[{','.join(self._answers)}]")
