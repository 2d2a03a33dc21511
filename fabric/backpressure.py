"""How much may wait to be sent, and the tasks that wait until there is room.

Owns two counts (messages and bytes), the two marks between which senders wait, and their line: first come,
first served. Never touches what it counts: the keeper of the messages calls `acquire` before and `release`
after. Knows no socket; time is only in the timeout of `acquire`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING

from fabric.config import BackpressureConfig
from fabric.error import BackpressureTimeout, BufferFull, InvalidState

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

    __slots__ = ("_active", "_bytes", "_config", "_listeners", "_messages", "_waiters", "_waking")

    def __init__(self, config: BackpressureConfig | None = None) -> None:
        self._config = config or BackpressureConfig()
        self._messages = 0
        self._bytes = 0
        self._active = False
        # Each with the size it waits for, oldest first; None until somebody waits.
        self._waiters: OrderedDict[asyncio.Future[None], int] | None = None
        self._waking = 0  # let in, and not yet running again: nobody overtakes these either
        self._listeners: tuple[Callable[[bool], object], ...] = ()

    @property
    def config(self) -> BackpressureConfig:
        """Limits, thresholds and the timeout."""
        return self._config

    @property
    def messages(self) -> int:
        """Messages acquired and not released."""
        return self._messages

    @property
    def bytes(self) -> int:
        """Bytes acquired and not released."""
        return self._bytes

    @property
    def level(self) -> float:
        """How full the buffer is: the higher of both counts over its limit. One large message may pass 1."""
        config = self._config
        return max(self._messages / config.max_buffer_size, self._bytes / config.max_buffer_bytes)

    @property
    def is_active(self) -> bool:
        """Whether senders wait: past the threshold, and not yet recovered."""
        return self._active

    @property
    def waiting(self) -> int:
        """Senders that wait."""
        return len(self._waiters) if self._waiters else 0

    @property
    def waking(self) -> int:
        """Senders that were let in and do not run yet."""
        return self._waking

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
        if not self._fits(size):
            return False
        self._take(size)
        return True

    async def acquire(self, size: int = 0) -> None:
        """Count one message of `size` bytes, waiting in line while backpressure is active.

        A wait that is ended, by its cancellation or any other exception, counts nothing.

        Raises:
            BackpressureTimeout: `config.timeout` has passed.
            BufferFull: the limits are reached and `config.enabled` is false, so nobody waits.
        """
        if not self._config.enabled:
            if not self.try_acquire(size):
                raise self.full_error()
        elif not self._waiters and not self._waking and self._admits(size):
            self._take(size)
        else:
            await self._wait(size)

    def release(self, size: int = 0) -> None:
        """One message of `size` bytes has left the buffer; waiters that now fit may go on.

        Raises:
            InvalidState: more is released than was acquired.
        """
        if self._messages < 1 or self._bytes < size:
            raise InvalidState(
                f"release of 1 message of {size} bytes where {self._messages} messages"
                f" of {self._bytes} bytes are acquired"
            )
        self._messages -= 1
        self._bytes -= size
        self._settle()

    def restore(self, size: int = 0) -> None:
        """Count a message of `size` bytes that was thought to have left, whatever the limits say."""
        self._take(size)

    def let_in(self) -> None:
        """Admit waiters that fit the limits, in their order, although backpressure has not ended."""
        self._admit(self._fits)

    def abort(self, make_error: Callable[[], Exception]) -> None:
        """Let each waiter raise an error of its own: there will be no room any more."""
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_exception(make_error())

    def full_error(self) -> BufferFull:
        """The error that says which limit is reached."""
        config = self._config
        if self._messages >= config.max_buffer_size:
            return BufferFull(self._messages, config.max_buffer_size)
        return BufferFull(self._bytes, config.max_buffer_bytes, "bytes")

    def _fits(self, size: int) -> bool:
        """Is there room within the limits?"""
        config = self._config
        if self._messages >= config.max_buffer_size:
            return False
        return size <= config.max_buffer_bytes - self._bytes or not self._messages

    def _admits(self, size: int) -> bool:
        return not self._active and self._fits(size)

    def _take(self, size: int) -> None:
        self._messages += 1
        self._bytes += size
        if not self._active and self.level >= self._config.backpressure_threshold:
            self._change(True)

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
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._waking -= 1  # let in, and ended before it could know
                self.release(size)
            else:
                self._leave(waiter)
            raise
        else:
            self._waking -= 1
            self._admit()  # waiters that came meanwhile
        finally:
            if timer is not None:
                timer.cancel()

    def _time_out(self, waiter: asyncio.Future[None], timeout: float) -> None:
        if not waiter.done():
            waiter.set_exception(BackpressureTimeout(timeout, self.level))
            self._leave(waiter)

    def _leave(self, waiter: asyncio.Future[None]) -> None:
        """A waiter goes; the one behind it may be small enough to be next."""
        if self._waiters is not None and self._waiters.pop(waiter, None) is not None:
            self._admit()

    def _settle(self) -> None:
        """Something has left: end backpressure if that is enough, and admit waiters that now fit."""
        if self._active and self.level <= self._config.recovery_threshold:
            self._change(False)
        self._admit()

    def _admit(self, admits: Callable[[int], bool] | None = None) -> None:
        admits = admits or self._admits
        while self._waiters:
            waiter, size = next(iter(self._waiters.items()))
            if waiter.done() or waiter.get_loop().is_closed():
                del self._waiters[waiter]
                continue
            if not admits(size):
                return
            waiter.set_result(None)
            self._waking += 1
            del self._waiters[waiter]
            self._take(size)

    def _change(self, active: bool) -> None:
        self._active = active
        for callback in self._listeners:
            try:
                callback(active)
            except Exception:
                logger.exception("a backpressure callback raised")

    def __repr__(self) -> str:
        state = "active" if self._active else "inactive"
        counts = f"{self._messages} messages, {self._bytes} bytes"
        return f"<BackpressureController {state}: {counts}, {self.level:.0%}>"
