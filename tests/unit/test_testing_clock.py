"""`FakeTimeLoop`: time that passes by itself, and only where nothing else is left to do."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fabric import RateLimitConfig, RateLimiter, RateLimitType
from fabric.testing import FakeTimeLoop, fake_time


def loop() -> FakeTimeLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, FakeTimeLoop)
    return running


@fake_time
async def test_an_hour_takes_no_time() -> None:
    began = loop().time()
    await asyncio.sleep(3600)
    assert loop().time() - began == 3600


@fake_time
async def test_timers_come_in_their_order() -> None:
    came: list[float] = []
    for delay in (5, 1, 3):
        loop().call_later(delay, lambda: came.append(loop().time() - 1000))
    await asyncio.sleep(10)
    assert came == [1, 3, 5]


@fake_time
async def test_what_can_run_runs_before_time_passes() -> None:
    steps: list[int] = []

    async def work() -> None:
        for number in range(100):
            steps.append(number)
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.000_001)
    assert len(steps) == 100
    await task


@fake_time
async def test_a_timeout_passes() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await asyncio.Event().wait()
    assert loop().time() == 1030


@fake_time
async def test_time_stands_still_while_a_thread_works() -> None:
    go_on = threading.Event()
    overtaken = loop().call_later(1, go_on.set)
    timer = threading.Timer(0.01, go_on.set)
    timer.start()
    assert await asyncio.to_thread(go_on.wait)
    assert loop().time() == 1000
    overtaken.cancel()
    timer.join()


def test_a_program_that_would_hang_says_where() -> None:
    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match=r"nothing will wake one:\n  Task-\d+ at .*test_testing_clock\.py:\d+"):
        with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
            runner.run(hang())


@fake_time
async def test_it_is_a_clock_for_limits() -> None:
    limiter = RateLimiter(RateLimitConfig(messages_per_second=1), clock=loop().time_ns)
    assert limiter.try_acquire(RateLimitType.MESSAGES).allowed
    assert not limiter.try_acquire(RateLimitType.MESSAGES).allowed
    await asyncio.sleep(1)
    assert limiter.try_acquire(RateLimitType.MESSAGES).allowed


def test_the_decorator_keeps_name_arguments_and_result() -> None:
    @fake_time
    async def double(value: int) -> int:
        """Twice."""
        await asyncio.sleep(60)
        return 2 * value

    began = time.monotonic()
    assert double(value=21) == 42
    assert time.monotonic() - began < 60
    assert (double.__name__, double.__doc__) == ("double", "Twice.")
