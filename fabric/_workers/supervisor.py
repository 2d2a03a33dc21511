"""The parent of the workers: it starts them, replaces them, and ends with them.

It owns the listening sockets, the broker that the workers share, and the page about them. It serves no connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from fabric._connection.events import log_event
from fabric._server.handover import Handover
from fabric._workers.addresses import Addresses
from fabric._workers.balance import Balancer
from fabric._workers.child import LAST_MOMENT, Goodbye, Order
from fabric._workers.page import Page, State, WorkerState
from fabric._workers.process import WorkerProcess
from fabric._workers.report import Totals, unpacked
from fabric.config import ReconnectConfig
from fabric.error import Error, Io
from fabric.metrics import ServerMetrics
from fabric.reconnect import ReconnectState

__all__ = ["Settings", "Supervisor", "WorkersFailed"]

ANSWER = 1.0  # seconds for workers to report their numbers; of a slower one the last report counts
HANDSHAKES = 30.0  # seconds more for a worker that is replaced: opening handshakes end first
SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger("fabric.workers")


class WorkersFailed(Error, RuntimeError):
    """A worker could not be started, several times in a row.

    Attributes:
        number: which worker.
        failures: how often.
        cause: why the last one ended, in a sentence.
    """

    def __init__(self, number: int, failures: int, cause: str) -> None:
        self.number, self.failures, self.cause = number, failures, cause
        super().__init__(f"worker {number} failed to start, {failures} times in a row: {cause}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.number, self.failures, self.cause)


class StartFailed(Exception):
    """A worker did not become ready; the text says why.

    Attributes:
        process: the process that was started for it, in words.
    """

    def __init__(self, cause: str, process: str) -> None:
        super().__init__(cause)
        self.process = process


@dataclass(frozen=True)
class Settings:
    """What `fabric.workers.run` is given, see there; `program` and `loop` as in `Order`."""

    main: bytes
    program: dict[str, Any]
    count: int
    bind: str
    balance: str
    broker: str = field(repr=False)
    metrics: str | None
    drain: float
    start_timeout: float
    shutdown_timeout: float
    restart: ReconnectConfig
    max_failures: int
    loop: str = "auto"


class Slot:
    """The place of the worker with one number: one process after another runs in it."""

    def __init__(self, number: int, restart: ReconnectConfig) -> None:
        self.number = number
        self.worker: WorkerProcess | None = None
        self.changed = asyncio.Event()  # its worker has been replaced, or one of its processes has ended
        self.schedule = ReconnectState(restart)
        self.filled = asyncio.Event()  # once a worker has been ready
        self.hurry = asyncio.Event()  # wait no longer until the next start
        self.lock = asyncio.Lock()  # held while a process is being started


class Supervisor:
    """Keeps the workers until a signal says that it is to end.

    Args:
        on_ready: called once, when all workers are ready.
    """

    def __init__(self, settings: Settings, on_ready: Callable[[Supervisor], None] | None = None) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._processes: dict[WorkerProcess, None] = {}
        self._slots: list[Slot] = []
        self._told: asyncio.Future[signal.Signals] = asyncio.Future()
        self._again = asyncio.Event()  # a second signal: end at once
        self._roll = asyncio.Event()
        self._restarts = 0
        self._totals = Totals(asyncio.get_running_loop())
        self._looking: asyncio.Task[State] | None = None
        self._balancer: Balancer | None = None
        self._broker: Any = None
        self._page: Page | None = None
        self._addresses: Addresses

    @property
    def addresses(self) -> list[Any]:
        """Where the workers listen, as sockets have it."""
        return self._addresses.names

    @property
    def page_port(self) -> int | None:
        """Where the page is, if there is one."""
        return None if self._page is None else self._page.server.port

    async def run(self) -> signal.Signals:
        """Keep the workers; return the signal that ended it.

        Raises:
            Io: the address cannot be listened on.
            BrokerUnavailable: the broker does not start.
            WorkersFailed: a worker could not be started.
        """
        settings = self._settings
        tasks: list[asyncio.Task[Any]] = []
        try:
            shares = settings.count if settings.balance == "hash" else 1
            self._addresses = Addresses(settings.bind, shares)
        except OSError as error:
            raise Io(f"cannot listen on {settings.bind}: {error.strerror or error}", errno=error.errno) from error
        self._slots = [Slot(number, settings.restart) for number in range(settings.count)]
        with self._signals():
            try:
                if settings.balance == "least":
                    self._balancer = Balancer(self._addresses.all())
                if settings.broker == "nats:embedded":
                    await self._start_broker()
                    tasks.append(asyncio.create_task(self._broker.keep_running()))
                if settings.metrics is not None:
                    self._page = Page(settings.metrics, self.look)
                    await self._page.server.start()
                tasks += [asyncio.create_task(self._keep(slot)) for slot in self._slots]
                tasks.append(asyncio.create_task(self._welcome()))
                tasks.append(asyncio.create_task(self._replace_all()))
                await self._first_failure(tasks)
                return self._told.result()
            finally:
                for task in tasks:
                    task.cancel()
                if tasks:
                    await asyncio.wait(tasks)
                await self._end_all()

    async def _first_failure(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Wait until there is a signal, or one of the tasks raises."""
        waiting: set[asyncio.Future[Any]] = {self._told, *tasks}
        while not self._told.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                future.result()

    # -- signals

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers: dict[signal.Signals, Callable[[], None]] = {signal.SIGHUP: self._roll.set, signal.SIGCHLD: self._reap}
        handlers |= {number: lambda number=number: self.stop(number) for number in SIGNALS}  # type: ignore[misc]
        before = {number: signal.getsignal(number) for number in handlers}
        ours = [number for number in handlers if number is signal.SIGCHLD or before[number] is not signal.SIG_IGN]
        for number in ours:
            loop.add_signal_handler(number, handlers[number])
        try:
            yield
        finally:
            for number in ours:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])

    def stop(self, number: signal.Signals) -> None:
        """End, as at this signal; a second time, at once."""
        if self._told.done():
            self._again.set()
        else:
            self._told.set_result(number)

    def _reap(self) -> None:
        for process in list(self._processes):
            process.poll()

    # -- workers come

    async def _spawn(self, slot: Slot) -> WorkerProcess:
        """Start a process for this slot."""
        settings = self._settings
        handover = None if self._balancer is None else Handover()
        listening = [] if handover is not None else self._addresses.shares[slot.number]
        order = Order(
            program=settings.program,
            main=settings.main,
            number=slot.number,
            broker=settings.broker,
            sockets=tuple(sock.fileno() for sock in listening),
            handover=None,
            embedded=None if self._broker is None else self._broker.url,
            loop=settings.loop,
            goodbye=Goodbye(1001, settings.shutdown_timeout),
        )
        passed = [*listening]
        if handover is not None:
            other, first = handover.take_other_end(), self._addresses.all()[0]
            order = replace(order, handover=(other.fileno(), first.getsockname(), first.family))
            passed.append(other)
        process = await WorkerProcess.start(slot.number, pickle.dumps(order), passed, handover)
        self._processes[process] = None
        process.on_end = self._ended
        process.poll()  # it may have ended meanwhile
        return process

    async def _launch(self, slot: Slot) -> WorkerProcess:
        """Start a process for this slot, and return it once it is ready.

        Raises:
            StartFailed: it does not become ready, or not in time; or the system does not start it.
        """
        try:
            process = await self._spawn(slot)
        except OSError as error:  # no descriptors, processes or memory are left; or the interpreter is being updated
            raise StartFailed(f"the system starts no process: {error.strerror or error}", "no process") from error
        try:
            async with asyncio.timeout(self._settings.start_timeout):
                is_ready = await process.becomes_ready()
        except TimeoutError:
            process.fail(f"not ready within {self._settings.start_timeout:g} s")
            await process.ended.wait()
            is_ready = False
        if not is_ready:
            raise StartFailed(process.cause, f"process {process.pid}")
        return process

    async def _keep(self, slot: Slot) -> None:
        """Keep a worker running in this slot, until cancelled."""
        while True:
            async with slot.lock:
                if slot.worker is None or slot.worker.has_ended:
                    await self._start(slot)
            while (worker := slot.worker) is not None and not worker.has_ended:
                slot.changed.clear()
                await slot.changed.wait()
            assert worker is not None
            self._restarts += 1
            slot.schedule.disconnected(time.monotonic())
            log_event(
                logger, logging.ERROR, "worker %d (process %d) has ended: %s", slot.number, worker.pid, worker.cause
            )

    async def _start(self, slot: Slot) -> None:
        """Start a worker, again and again, until one is ready."""
        failures = 0
        if slot.worker is not None:
            await self._wait(slot)
        while True:
            try:
                slot.worker = await self._launch(slot)
                break
            except StartFailed as error:
                failures += 1
                most = self._settings.max_failures
                text = "worker %d (%s) failed to start (%d of %d): %s"
                log_event(logger, logging.ERROR, text, slot.number, error.process, failures, most, error)
                if failures >= most:
                    raise WorkersFailed(slot.number, failures, str(error)) from None
            await self._wait(slot)
        slot.schedule.connected(time.monotonic())
        self._admit(slot.worker)
        slot.filled.set()

    async def _wait(self, slot: Slot) -> None:
        slot.hurry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(slot.schedule.next_delay()):
                await slot.hurry.wait()

    def _admit(self, worker: WorkerProcess) -> None:
        """A worker is ready: give it connections."""
        log_event(logger, logging.INFO, "worker %d (process %d) is ready", worker.number, worker.pid)
        if self._balancer is not None and worker.handover is not None and not worker.has_ended:
            self._balancer.add(worker.handover)

    async def _welcome(self) -> None:
        for slot in self._slots:
            await slot.filled.wait()
        log_event(
            logger, logging.INFO, "%d workers listen on %s", len(self._slots), ", ".join(map(str, self.addresses))
        )
        if self._on_ready is not None:
            self._on_ready(self)

    # -- workers are replaced, and end

    async def _replace_all(self) -> None:
        """At each SIGHUP replace all processes by new ones, one after the other."""
        while True:
            await self._roll.wait()
            self._roll.clear()
            log_event(logger, logging.INFO, "all workers are replaced")
            for slot in self._slots:
                slot.hurry.set()
            for slot in self._slots:
                if not await self._replace(slot):
                    break
            else:
                log_event(logger, logging.INFO, "all workers have been replaced")

    async def _replace(self, slot: Slot) -> bool:
        """Start a new process, and end the old one once the new one is ready; False if that fails to start."""
        async with slot.lock:
            old = slot.worker
            try:
                new = await self._launch(slot)
            except StartFailed as error:
                text = "worker %d is not replaced, nor are those behind it: the new process failed to start: %s"
                log_event(logger, logging.ERROR, text, slot.number, error)
                return False
            slot.worker = new
            slot.changed.set()
            slot.schedule.connected(time.monotonic())
            self._admit(new)
            if old is not None and not old.has_ended:
                if self._balancer is not None and old.handover is not None:
                    self._balancer.retire(old.handover)
                drain, timeout = self._settings.drain, self._settings.shutdown_timeout
                old.end(Goodbye(1012, timeout, drain), drain + timeout + HANDSHAKES)
        return True

    def _ended(self, process: WorkerProcess) -> None:
        """A process has ended."""
        if process.is_ready and process.is_ending:
            log_event(logger, logging.INFO, "worker %d (process %d) has ended", process.number, process.pid)
        del self._processes[process]
        self._slots[process.number].changed.set()
        if process.handover is not None:
            if self._balancer is not None:
                self._balancer.remove(process.handover)
            for connection in process.handover.close():
                connection.close()
        if process.report:
            self._totals.keep(self._unpacked(process))

    async def _end_all(self) -> None:
        """End every process, and close what the parent itself has opened."""
        if self._balancer is not None:
            self._balancer.close()
        self._addresses.close()
        timeout = self._settings.shutdown_timeout
        for process in self._processes:
            process.end(Goodbye(1001, timeout), timeout)
        again = asyncio.create_task(self._again.wait())
        ended = asyncio.create_task(self._all_ended())
        await asyncio.wait([again, ended], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            for process in self._processes:
                process.end(Goodbye(1001, 0.0), 0.0)
            await asyncio.wait([ended])
        again.cancel()
        if self._looking is not None:
            self._looking.cancel()
        if self._page is not None:
            await self._page.server.shutdown(LAST_MOMENT)
        if self._broker is not None:
            await self._broker.stop()

    async def _all_ended(self) -> None:
        while self._processes:
            await next(iter(self._processes)).ended.wait()

    # -- what there is to show

    async def look(self) -> State:
        """Ask all workers for their numbers. Calls at the same time share one answer."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> State:
        asked = [asyncio.ensure_future(process.ask()) for process in self._processes if process.is_ready]
        if asked:
            _, late = await asyncio.wait(asked, timeout=ANSWER)
            for each in late:
                each.cancel()
        return State(
            wanted=len(self._slots),
            restarts=self._restarts,
            workers=[_state_of(process) for process in self._processes],
            metrics=self._totals.of(self._unpacked(process) for process in self._processes if process.report),
        )

    def _unpacked(self, process: WorkerProcess) -> ServerMetrics:
        return unpacked(process.report["metrics"], asyncio.get_running_loop())

    # -- the broker that the workers share

    async def _start_broker(self) -> None:
        from fabric.broker.embedded import EmbeddedNats  # few need it

        self._broker = EmbeddedNats()
        await self._broker.start()


def _state_of(process: WorkerProcess) -> WorkerState:
    state = "ending" if process.is_ending else "ready" if process.is_ready else "starting"
    connections = process.report.get("connections", 0)
    return WorkerState(process.number, process.pid, state, process.since, connections, process.report)
