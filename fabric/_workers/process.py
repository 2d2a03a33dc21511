"""One worker's process, as the parent sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from fabric._connection.events import log_event
from fabric._server.handover import Handover
from fabric._workers.channel import Channel
from fabric._workers.child import LAST_MOMENT, Goodbye

__all__ = ["WorkerProcess"]

# The worker is to import this `fabric`; the interpreter alone may find another one, or none. Afterwards its folder is
# the last of the path, after the standard library. `multiprocessing.spawn.prepare` sets the program's path later.
START = """\
import sys
path = [*filter(None, sys.path)]
sys.path[:] = [{folder!r}, *path]
from fabric._workers.child import main
sys.path[:] = [*path, {folder!r}]
main({descriptor})
"""

logger = logging.getLogger("fabric.workers")


class WorkerProcess:
    """A process, from its start to its end.

    Attributes:
        number: of the worker.
        pid, since: of the process, and `time.time()` at its start.
        handover: by which it gets connections, if the parent accepts them.
        is_ready: has it reported that its server listens?
        is_ending: has it been told to end?
        ended: set when it has ended, and all its messages have been read.
        report: its last report; empty at first.
        on_end: called with this process when it has ended.
    """

    def __init__(
        self, number: int, popen: subprocess.Popen[bytes], channel: Channel, handover: Handover | None
    ) -> None:
        self.number, self.pid, self.since = number, popen.pid, time.time()
        self.handover = handover
        self.is_ready = self.is_ending = False
        self.ended = asyncio.Event()
        self.report: dict[str, Any] = {}
        self.on_end: Callable[[WorkerProcess], None] | None = None
        self._popen = popen
        self._channel = channel
        self._cause: str | None = None
        self._came_up = asyncio.Event()  # ready, or ended
        self._exited = asyncio.Event()
        self._answers: list[asyncio.Future[None]] = []
        self._killing: asyncio.TimerHandle | None = None
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, number: int, order: bytes, passed: Sequence[socket.socket], handover: Handover | None) -> Self:
        """Start a process that does what `order` says, an `Order` pickled, and has the descriptors of `passed`.

        If that fails or is cancelled, neither a process nor a descriptor is left, and `handover` is closed.

        Raises:
            OSError: the system does not start it.
        """
        folder = str(Path(__file__).parents[2])
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        with contextlib.ExitStack() as undoing:
            if handover is not None:
                undoing.callback(handover.close)
            ours, theirs = socket.socketpair()
            undoing.callback(ours.close)
            with theirs:
                popen = subprocess.Popen(  # noqa: ASYNC220  (it waits for no more than the start)
                    [sys.executable, *flags, "-c", START.format(folder=folder, descriptor=theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *(sock.fileno() for sock in passed)],
                    process_group=0,  # Ctrl-C on a terminal is for the parent
                )
            undoing.callback(popen.wait)
            undoing.callback(popen.kill)
            if handover is not None:
                handover.take_other_end().close()
            channel = await Channel.open(ours)
            undoing.pop_all()
        channel.send_bytes(order)
        return cls(number, popen, channel, handover)

    @property
    def has_ended(self) -> bool:
        """Has it ended?"""
        return self.ended.is_set()

    @property
    def cause(self) -> str:
        """Why it has ended."""
        if self._cause is not None:
            return self._cause
        code = self._popen.returncode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit status {code}"

    async def becomes_ready(self) -> bool:
        """Wait until it is ready, or has ended."""
        await self._came_up.wait()
        return self.is_ready

    async def ask(self) -> None:
        """Ask for its numbers, and wait until they are in `report`."""
        answer = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._channel.send(event="report")
        await answer

    def end(self, goodbye: Goodbye, timeout: float) -> None:
        """Tell it to end; kill it if it has not ended within `timeout` seconds and LAST_MOMENT."""
        self.is_ending = True
        self._channel.send(event="end", goodbye=goodbye)
        self._kill_after(timeout + LAST_MOMENT)

    def fail(self, cause: str) -> None:
        """Kill it; `cause` is what is logged as the cause of its end."""
        self._cause = cause
        self._popen.kill()  # without effect on one that has ended

    def poll(self) -> None:
        """Notice whether it has ended."""
        if self._popen.poll() is not None:
            self._exited.set()

    def _kill_after(self, seconds: float) -> None:
        if self._killing is not None:
            self._killing.cancel()
        self._killing = asyncio.get_running_loop().call_later(seconds, self._kill)

    def _kill(self) -> None:
        log_event(logger, logging.ERROR, "worker %d (process %d) does not end, and is killed", self.number, self.pid)
        self._popen.kill()  # without effect on one that has ended

    async def _watch(self) -> None:
        reading = asyncio.create_task(self._read())
        await self._exited.wait()
        await asyncio.wait([reading], timeout=LAST_MOMENT)  # a child of its own may keep the channel open
        reading.cancel()
        await self._channel.close()
        if self._killing is not None:
            self._killing.cancel()
        for answer in self._answers:
            answer.cancel()
        self.ended.set()
        self._came_up.set()
        if self.on_end is not None:
            self.on_end(self)

    async def _read(self) -> None:
        while (message := await self._channel.receive()) is not None:
            match message.pop("event"):
                case "ready":
                    self.is_ready = True
                    self._came_up.set()
                case "failed":
                    self._cause = message["cause"]
                case "report":
                    self.report = message or self.report
                    answers, self._answers = self._answers, []
                    for answer in answers:
                        if not answer.done():
                            answer.set_result(None)
        self.is_ending = True
        if self._killing is None and not self._exited.is_set():
            self._kill_after(LAST_MOMENT)
