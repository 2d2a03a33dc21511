"""What runs in a worker: it imports the program, makes its server, and serves until the parent ends it or has ended.

The parent starts `main` in a new interpreter, with the descriptor of a `Channel` over which it sends an `Order`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import pickle
import signal
import socket
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing import spawn
from typing import Any, NamedTuple, NoReturn

from fabric._connection.events import log_event
from fabric._server.dashboard import Process, pressure
from fabric._server.handover import HandoverSocket
from fabric._workers.channel import Channel, receive_first, send_last
from fabric._workers.report import packed
from fabric.broker import BrokerUnavailable
from fabric.runner import best_loop
from fabric.server import WebSocketServer

__all__ = ["Goodbye", "Order", "Worker", "is_worker", "main"]

LAST_MOMENT = 5.0  # seconds for a process to end, after everything that has a timeout of its own
LONGEST = 1000  # characters of a cause

logger = logging.getLogger("fabric.workers")


@dataclass(frozen=True)
class Worker:
    """What a worker's `main` is told.

    Attributes:
        number: of this worker, 0 to n - 1. The one that replaces it has the same.
        sockets: where its server listens: `ServerConfig(sock=worker.sockets)`.
        broker: the argument of `run` of this name, for `WebSocketServer(..., broker=worker.broker)`. It may have a
            password in it.
    """

    number: int
    sockets: tuple[socket.socket, ...]
    broker: str = field(repr=False)


@dataclass(frozen=True)
class Order:
    """The parent's first message: what the worker is to run.

    Attributes:
        program: what `multiprocessing.spawn.prepare` needs, so that the worker imports the same modules as the parent.
        main: the function, pickled, that is its module and name.
        number, broker: see `Worker`.
        sockets: descriptors to listen on.
        handover: instead of them, the arguments of a `HandoverSocket`.
        embedded: the URL of the parent's own NATS server.
        loop: "asyncio" for asyncio's own, or "auto".
        goodbye: what to do when the parent has ended.
    """

    program: dict[str, Any]
    main: bytes
    number: int
    broker: str = field(repr=False)
    sockets: tuple[int, ...]
    handover: tuple[int, Any, int] | None
    embedded: str | None = field(repr=False)
    loop: str
    goodbye: Goodbye


class Goodbye(NamedTuple):
    """How to end.

    Attributes:
        code: the close code for the clients.
        timeout: seconds for `WebSocketServer.shutdown`.
        drain: seconds for which connections may go on before that; None also cuts off opening handshakes.
    """

    code: int
    timeout: float
    drain: float | None = None


_is_worker = False


def is_worker() -> bool:
    """Is this process a worker?"""
    return _is_worker


def main(descriptor: int) -> NoReturn:
    """Run the `Order` that the parent sends over `descriptor`, and end the process."""
    global _is_worker
    _is_worker = True
    for number in (signal.SIGINT, signal.SIGHUP):  # the parent gets them as well, and ends or replaces its workers
        signal.signal(number, _nothing)  # not SIG_IGN, which children of the application would inherit
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    try:
        order: Order = pickle.loads(receive_first(channel))  # it comes from the parent
    except EOFError:
        sys.exit(1)
    if order.embedded is not None:
        from fabric.broker import embedded  # few need it

        embedded.inherited = order.embedded  # not the environment, which the application's own children would inherit
    try:
        spawn.prepare(order.program)
        function = pickle.loads(order.main)
    except BaseException as error:  # noqa: BLE001  (logged)
        log_event(logger, logging.ERROR, "worker %d: main cannot be imported", order.number, exc_info=error)
        send_last(channel, event="failed", cause=f"main cannot be imported: {_told(error)}")
        sys.exit(1)
    factory = asyncio.SelectorEventLoop if order.loop == "asyncio" else best_loop()
    with asyncio.Runner(loop_factory=factory) as runner:
        code = runner.run(_live(order, function, channel))
    sys.exit(code)


async def _live(order: Order, function: Any, sock: socket.socket) -> int:
    return await _Life(order, function).run(sock)


def _nothing(*_: object) -> None:
    pass


def _told(error: BaseException) -> str:
    text = str(error)
    return (type(error).__name__ + (f": {text}" if text else ""))[:LONGEST]


class _Life:
    """From the start of the event loop to its end."""

    def __init__(self, order: Order, function: Any) -> None:
        self._order = order
        self._function = function
        self._server: WebSocketServer | None = None  # once it runs
        self._told: asyncio.Future[None] = asyncio.Future()  # to end
        self._goodbye = order.goodbye  # how: the newest that came
        self._draining: asyncio.Future[None] | None = None
        self._all_received = asyncio.Event()  # of what is handed over
        self._process = Process()

    async def run(self, sock: socket.socket) -> int:
        """Serve; return the exit code."""
        self._channel = await Channel.open(sock)
        self._serving = asyncio.ensure_future(self._serve())
        hearing = asyncio.ensure_future(self._hear())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end, self._order.goodbye)
        await asyncio.wait([self._serving])
        error = None if self._serving.cancelled() else self._serving.exception()
        if error is not None:
            number = self._order.number
            what = "its server failed" if self._server else "main failed"
            if self._server or not isinstance(error, BrokerUnavailable):  # the parent logs the cause, which says it all
                log_event(logger, logging.ERROR, "worker %d: %s", number, what, exc_info=error)
            self._channel.send(event="failed", cause=_told(error))
        if self._server is not None:
            self._channel.send(event="report", **self._report(self._server))
        hearing.cancel()
        await asyncio.wait([hearing])
        await self._channel.close()
        return 0 if error is None else 1

    async def _serve(self) -> None:
        order = self._order
        sockets: list[socket.socket] = [socket.socket(fileno=number) for number in order.sockets]
        for sock in sockets:
            sock.set_inheritable(False)
        if order.handover is not None:
            handed = HandoverSocket(*order.handover)
            handed.on_end = self._all_received.set
            sockets.append(handed)
        else:
            self._all_received.set()
        try:
            made = self._function(Worker(order.number, tuple(sockets), order.broker))
            if inspect.isawaitable(made):
                made = await made
            if not hasattr(made, "__aenter__"):
                raise TypeError(f"main(worker) returned {type(made).__name__}, not a WebSocketServer")
            async with made as server:
                if not isinstance(server, WebSocketServer):
                    raise TypeError(f"main(worker) yielded {type(server).__name__}, not a WebSocketServer")
                if not server.is_running:
                    await server.start()
                await self._keep_running(server)
        finally:
            for sock in sockets:
                sock.close()

    async def _keep_running(self, server: WebSocketServer) -> None:
        self._server = server
        self._channel.send(event="ready")
        gone = asyncio.ensure_future(server._gone.wait())  # where the application shuts it down
        try:
            ends: list[asyncio.Future[Any]] = [gone, self._told]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return
            if self._goodbye.drain is not None:
                self._draining = asyncio.ensure_future(self._drain(server, self._goodbye.drain))
                await asyncio.wait([self._draining])
            await server.shutdown(self._goodbye.timeout, code=self._goodbye.code)
        except asyncio.CancelledError:  # told once more
            await server.shutdown(0)
            raise
        finally:
            gone.cancel()
            if self._draining is not None:
                self._draining.cancel()

    async def _drain(self, server: WebSocketServer, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_received.wait(), server.config.handshake_timeout)
        await server._drain(seconds)

    async def _hear(self) -> None:
        """Handle the parent's messages, until it has ended."""
        while (message := await self._channel.receive()) is not None:
            if message["event"] == "end":
                self._end(Goodbye(*message["goodbye"]))
            elif message["event"] == "report":
                told = {} if self._server is None else self._report(self._server)
                self._channel.send(event="report", **told)
        if not self._serving.done():
            log_event(logger, logging.ERROR, "worker %d ends, as its parent has ended", self._order.number)
            self._end(self._order.goodbye)
            # A thread that goes on would keep the process alive for ever.
            late = threading.Timer(self._order.goodbye.timeout + LAST_MOMENT, os._exit, (1,))
            late.daemon = True
            late.start()

    def _end(self, goodbye: Goodbye) -> None:
        """End as `goodbye` says, at once if the server does not run yet. A timeout of 0 aborts a shutdown under way."""
        self._goodbye = goodbye
        if self._server is None:
            self._serving.cancel()
        elif not self._told.done():
            self._told.set_result(None)
        elif self._draining is not None and not self._draining.done():
            self._draining.cancel()
        elif not goodbye.timeout:
            self._serving.cancel()

    def _report(self, server: WebSocketServer) -> dict[str, Any]:
        clients = server.clients()
        return {
            "metrics": packed(server.metrics),
            "connections": len(clients),
            "process": self._process.take(),
            "pressure": pressure(clients),
        }
