"""Tests in a `FakeTimeLoop`, which never waits, and deadlines that pass when a test says so.

@in_fake_time
async def test_x():
    await asyncio.sleep(3600)  # returns at once, an hour later
"""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fabric.testing import FakeTimeLoop


def in_fake_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make an async test a plain one, which fails for tasks it leaves and for what its loop is told of."""

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        reports: list[dict[str, Any]] = []

        async def bounded() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: reports.append(context))
            await test(**arguments)
            await settle()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"left behind: {left}"

        try:
            with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
                runner.run(bounded())
                gc.collect(0)
        finally:
            assert not reports, reports

    return run


async def settle() -> None:
    """Let everything run that does not wait for time to pass."""
    for _ in range(10):
        await asyncio.sleep(0)


class Deadline:
    """An `asyncio.timeout` that passes when the test says so, and not before.

    Attributes:
        SECONDS: what the code under test has to be given as its limit.
    """

    SECONDS = 3600.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._limits: list[tuple[asyncio.Timeout, asyncio.AbstractEventLoop]] = []
        timeout = asyncio.timeout

        def noted(delay: float | None) -> asyncio.Timeout:
            limit = timeout(delay)
            if delay == self.SECONDS:
                self._limits.append((limit, asyncio.get_running_loop()))
            return limit

        monkeypatch.setattr(asyncio, "timeout", noted)

    def expire(self) -> None:
        """Let the latest one pass now."""
        limit, loop = self._limits.pop()
        loop.call_soon_threadsafe(limit.reschedule, loop.time())  # that of a `fabric.sync` client is not this one
