"""A clock for tests: an event loop whose time passes only when there is nothing else left to do.

Owns the loop's time. Timers, `asyncio.sleep`, `asyncio.timeout`, and everything in `fabric` that waits by them follow
it: backoff, heartbeats, close and connection timeouts, and the rate limits of connections. What reads the system's
clock does not: `time.monotonic`. A `RateLimiter` of your own takes a clock: `clock=loop.time_ns`.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

__all__ = ["FakeTimeLoop", "fake_time"]

P = ParamSpec("P")
T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Moves the loop's clock where it would have waited."""

    def __init__(self, loop: FakeTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._loop._in_threads:
            # The result of a thread comes in its own time, and wakes the loop; no timer may overtake it.
            return super().select(0 if timeout == 0 else None)
        found = super().select(0)
        if not found:
            if timeout is None:
                raise RuntimeError(f"every task waits, and nothing will wake one:\n{self._loop._waiting()}")
            self._loop.now += max(0.0, timeout)
        return found


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: when nothing is left to run, its clock goes on to the next timer.

        with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
            runner.run(main())  # an `asyncio.sleep(3600)` in it returns at once, an hour later

    It raises RuntimeError where a program would hang: every task waits, and there is no timer.

    It is for what happens inside this process: with `pair` and `ScriptedServer`, which need no sockets. What comes
    through a real socket takes time that this loop does not wait for.

    Attributes:
        now: the time, in seconds, as `time()` gives it. Begins at 1000.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self._in_threads = 0  # calls that run in an executor
        super().__init__(_Selector(self))

    def time(self) -> float:
        """The time, in seconds."""
        return self.now

    def time_ns(self) -> int:
        """The time, in nanoseconds: the clock of connections' rate limits, and one for `RateLimiter`."""
        return round(self.now * 1e9)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """As any loop does; time stands still until `func` has returned."""
        future = super().run_in_executor(executor, func, *args)
        self._in_threads += 1
        future.add_done_callback(self._thread_done)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        """As any loop does; its threads end in their own time."""
        self._in_threads += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self._in_threads -= 1

    def _thread_done(self, _: object) -> None:
        self._in_threads -= 1

    def _waiting(self) -> str:
        """Where each task waits, a line each."""
        lines = []
        for task in asyncio.all_tasks(self):
            frames = task.get_stack(limit=1)
            where = f"{frames[-1].f_code.co_filename}:{frames[-1].f_lineno}" if frames else "its end"
            lines.append(f"  {task.get_name()} at {where}")
        return "\n".join(lines)


def fake_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """A decorator: make a coroutine function a plain one that runs in a `FakeTimeLoop`.

        @fake_time
        async def test_patience():
            await asyncio.sleep(3600)  # returns at once

    The test needs no plugin for asynchronous tests then.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
            return runner.run(test(*args, **kwargs))

    return run
