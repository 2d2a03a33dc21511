"""How much may wait to be sent, and the tasks that wait until there is room.

Owns the line of senders that wait: first come, first served. The counts, and the two marks between which senders
wait, are `fabric_ext.watermarks`. Never touches what it counts: the keeper of the messages calls `acquire` before and
`release` after. Knows no socket; time is only in the timeout of `acquire`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from fabric._config.policies import BackpressureConfig
from fabric._connection.events import log_event
from fabric.error import BackpressureTimeout, BufferFull, InvalidState
from fabric_ext.watermarks import BEGAN, FULL, Watermarks

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BackpressureController"]

logger = logging.getLogger(__name__)


class BackpressureController:
    """Bounds a buffer of messages, with hysteresis.

    Backpressure begins when either count reaches `backpressure_threshold` of its limit, and ends when both
    have fallen to `recovery_threshold`. In between `acquire` waits. `try_acquire` does not: it may fill the
    buffer up to its limits, waiting senders or not. A message larger than `max_buffer_bytes` passes when it
    is alone.

    An object serves one event loop.

    Args:
        config: limits, thresholds and the timeout.
    """

    __slots__ = ("_config", "_listeners", "_marks", "_waiters", "_woken")

    def __init__(self, config: BackpressureConfig | None = None) -> None:
        self._config = config = config or BackpressureConfig()
        self._marks = Watermarks(
            max_messages=config.max_buffer_size,
            max_bytes=config.max_buffer_bytes,
            high=config.backpressure_threshold,
            low=config.recovery_threshold,
        )
        # Each with the size that it waits for, oldest first; None until there is one.
        self._waiters: OrderedDict[asyncio.Future[None], int] | None = None
        # Those that were admitted and do not run again yet: later ones do not overtake them.
        self._woken: set[asyncio.Future[None]] = set()
        self._listeners: tuple[Callable[[bool], object], ...] = ()

    @property
    def config(self) -> BackpressureConfig:
        """Limits, thresholds and the timeout."""
        return self._config

    @property
    def messages(self) -> int:
        """Messages acquired and not released."""
        return self._marks.messages

    @property
    def bytes(self) -> int:
        """Bytes acquired and not released."""
        return self._marks.bytes

    @property
    def level(self) -> float:
        """How full the buffer is: the higher of both counts over its limit. One large message may pass 1."""
        return self._marks.level()

    @property
    def is_active(self) -> bool:
        """Whether senders wait: past the threshold, and not yet recovered."""
        return self._marks.is_active

    @property
    def waiting(self) -> int:
        """Senders that wait."""
        return len(self._waiters) if self._waiters else 0

    @property
    def waking(self) -> int:
        """Senders that were let in and do not run yet."""
        return len(self._woken)

    def on_state_change(self, callback: Callable[[bool], object]) -> Callable[[], None]:
        """Have `callback(is_active)` called whenever backpressure begins or ends; return what undoes this.

        What it raises is logged.
        """
        self._listeners += (callback,)

        def remove() -> None:
            self._listeners = tuple(each for each in self._listeners if each is not callback)

        return remove

    def try_acquire(self, size: int = 0) -> bool:
        """Count one message of `size` bytes if the limits allow it; never waits."""
        return self._counted(self._marks.add_if_room(size))

    async def acquire(self, size: int = 0) -> None:
        """Count one message of `size` bytes, waiting in line while backpressure is active.

        A wait that is ended, by its cancellation or any other exception, counts nothing.

        Raises:
            BackpressureTimeout: `config.timeout` has passed.
            BufferFull: the limits are reached and `config.enabled` is false, so there is no waiting.
        """
        if not self._config.enabled:
            if not self.try_acquire(size):
                raise self.full_error()
        elif self._waiters or self._woken or not self._counted(self._marks.add_if_room(size, True)):
            await self._wait(size)

    def release(self, size: int = 0) -> None:
        """One message of `size` bytes has left the buffer; waiters that now fit may go on.

        Raises:
            InvalidState: more is released than was acquired.
        """
        try:
            ends = self._marks.remove(size)
        except ValueError as error:
            raise InvalidState(str(error)) from None
        if ends:
            self._tell(False)
        self._admit()

    def restore(self, size: int = 0) -> None:
        """Count a message of `size` bytes that was thought to have left, whatever the limits say."""
        if self._marks.add(size):
            self._tell(True)

    def let_in(self) -> None:
        """Admit waiters that fit the limits, in their order, although backpressure has not ended."""
        self._admit(unless_active=False)

    def abort(self, make_error: Callable[[], Exception]) -> None:
        """Let each waiter raise an error of its own: there will be no room any more."""
        waiters, self._waiters = self._waiters, None
        while waiters:
            waiter, _ = waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(make_error())

    def full_error(self) -> BufferFull:
        """The error that says which limit is reached."""
        config = self._config
        if self.messages >= config.max_buffer_size:
            return BufferFull(self.messages, config.max_buffer_size)
        return BufferFull(self.bytes, config.max_buffer_bytes, "bytes")

    def _counted(self, answer: int) -> bool:
        """Has `add_if_room`, with this `answer`, counted a message? Tells the callbacks if backpressure began."""
        if answer == BEGAN:
            self._tell(True)
        return answer != FULL

    async def _wait(self, size: int) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timeout = self._config.timeout
        timer = None if timeout is None else loop.call_later(timeout, self._time_out, waiter, timeout)
        if self._waiters is None:
            self._waiters = OrderedDict()
        self._waiters[waiter] = size
        try:
            await waiter
        except BaseException:  # GeneratorExit too, where the coroutine is closed
            if waiter in self._woken:
                self._woken.discard(waiter)  # let in, and ended before it could know
                self.release(size)
            else:
                self._leave(waiter)
                if waiter.done() and not waiter.cancelled():
                    waiter.exception()  # it is known, even where something else ended the wait
            raise
        else:
            self._woken.discard(waiter)
            self._admit()  # waiters that came meanwhile
        finally:
            if timer is not None:
                timer.cancel()
            del waiter  # with an exception in it, it would keep this frame, which keeps it

    def _time_out(self, waiter: asyncio.Future[None], timeout: float) -> None:
        if not waiter.done():
            waiter.set_exception(BackpressureTimeout(timeout, self.level))
            self._leave(waiter)

    def _leave(self, waiter: asyncio.Future[None]) -> None:
        """A waiter goes; the one behind it may be small enough to be next."""
        if self._waiters is not None and self._waiters.pop(waiter, None) is not None:
            self._admit()

    def _admit(self, *, unless_active: bool = True) -> None:
        """Admit waiters that now fit, in their order.

        A signal handler that sends may do the same in the midst of it: each waiter is let in by the one that takes it
        out of the line.
        """
        while self._waiters:
            try:
                waiter, size = next(iter(self._waiters.items()))
            except (RuntimeError, StopIteration):  # the line has just changed
                continue
            if waiter.done() or waiter.get_loop().is_closed():
                self._waiters.pop(waiter, None)
                continue
            answer = self._marks.add_if_room(size, unless_active)
            if answer == FULL:
                return
            if self._waiters is None or self._waiters.pop(waiter, None) is None:
                self.release(size)  # it was let in by another
                continue
            self._woken.add(waiter)
            waiter.set_result(None)
            self._counted(answer)

    def _tell(self, active: bool) -> None:
        for callback in self._listeners:
            try:
                callback(active)
            except Exception as error:  # noqa: BLE001  (logged)
                log_event(logger, logging.ERROR, "a backpressure callback raised", exc_info=error)

    def __repr__(self) -> str:
        state = "active" if self.is_active else "inactive"
        counts = f"{self.messages} messages, {self.bytes} bytes"
        return f"<BackpressureController {state}: {counts}, {self.level:.0%}>"
