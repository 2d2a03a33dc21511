"""fabric.ratelimit in a time that the tests move by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fabric.config import RateLimitConfig
from fabric.error import RateLimitExceeded
from fabric.ratelimit import (
    GlobalRateLimiter,
    RateLimiter,
    RateLimitStatus,
    RateLimitType,
    connection_gate,
)

MESSAGES, BYTES, OPERATIONS = RateLimitType
SECOND = 10**9


class Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeTime:
    """A clock that stands still, and the timers that ring when it is moved."""

    def __init__(self) -> None:
        self.ns = 5 * SECOND
        self.timers: list[tuple[int, int, Timer]] = []
        self.count = itertools.count()

    def clock(self) -> int:
        return self.ns

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Timer:
        timer = Timer(lambda: callback(*args))
        heapq.heappush(self.timers, (self.ns + math.ceil(round(delay * 1e9, 3)), next(self.count), timer))
        return timer

    @property
    def pending(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self.timers)

    async def advance(self, seconds: float) -> None:
        end = self.ns + round(seconds * 1e9)
        while self.timers and self.timers[0][0] <= end:
            self.ns, _, timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                timer.callback()
            await settle()
        self.ns = end
        await settle()


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


# What may end a wait: a task's cancellation, a coroutine that is closed or dropped, anything else thrown into it.
ENDS = [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, ValueError]


def end(wait: Coroutine[Any, Any, object], exception: type[BaseException]) -> None:
    """Throw `exception` into a coroutine that waits."""
    with pytest.raises(exception):
        wait.throw(exception())


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def limiter(time: FakeTime, config: RateLimitConfig, kind: type[RateLimiter] = RateLimiter) -> RateLimiter:
    return kind(config, clock=time.clock, call_later=time.call_later)


def ten_per_second(burst: int = 10) -> RateLimitConfig:
    return RateLimitConfig().with_messages(10, burst)


# Without waiting.


def test_off_by_default(time: FakeTime) -> None:
    free = limiter(time, RateLimitConfig())
    for kind in RateLimitType:
        assert free.try_acquire(kind, 10**12) == free.check(kind) == RateLimitStatus(True, None, 0.0)
    assert RateLimiter().try_acquire(MESSAGES)
    assert RateLimiter().gate is None
    assert repr(free) == "RateLimiter(no limits)"


def test_a_burst_then_the_rate(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    assert [limit.try_acquire(MESSAGES).remaining for _ in range(10)] == list(range(9, -1, -1))
    assert limit.try_acquire(MESSAGES) == RateLimitStatus(False, 0, 0.1)
    time.ns += SECOND // 10 - 1
    assert limit.try_acquire(MESSAGES) == RateLimitStatus(False, 0, 1e-9)
    time.ns += 1
    assert limit.try_acquire(MESSAGES) == RateLimitStatus(True, 0, 0.0)


@pytest.mark.parametrize("rate", [3, 7, 0.5, 1 / 3, 1234.5, 10**6])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_retry_after_is_right_to_the_nanosecond(time: FakeTime, rate: float, n: int) -> None:
    limit = limiter(time, RateLimitConfig().with_bytes(rate, 5))
    assert limit.try_acquire(BYTES, 5)
    after = limit.check(BYTES, n).retry_after
    assert after == pytest.approx(n / rate, abs=2e-9)
    time.ns += round(after * 1e9) - 1
    assert not limit.try_acquire(BYTES, n)
    time.ns += 1
    assert limit.try_acquire(BYTES, n)


def test_types_are_limited_apart(time: FakeTime) -> None:
    config = RateLimitConfig().with_messages(1, 1).with_bytes(1, 100).with_operations(1, 2)
    limit = limiter(time, config)
    assert limit.try_acquire(MESSAGES)
    assert not limit.try_acquire(MESSAGES)
    assert limit.try_acquire(BYTES, 100)
    assert not limit.try_acquire(BYTES)
    assert limit.try_acquire(OPERATIONS, 2)
    assert not limit.try_acquire(OPERATIONS)


def test_check_takes_nothing(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second(1))
    for _ in range(3):
        assert limit.check(MESSAGES) == RateLimitStatus(True, 1, 0.0)
    assert limit.try_acquire(MESSAGES)
    assert limit.check(MESSAGES) == RateLimitStatus(False, 0, 0.1)


def test_more_than_the_burst_is_refused_for_ever(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    assert limit.try_acquire(MESSAGES, 11) == RateLimitStatus(False, 10, math.inf)
    assert limit.check(MESSAGES, 11).retry_after == math.inf
    assert limit.try_acquire(MESSAGES, 10)


@pytest.mark.parametrize("kind", [-1, 3])
def test_unknown_types(time: FakeTime, kind: int) -> None:
    limit = limiter(time, ten_per_second())
    for call in (limit.try_acquire, limit.check):
        with pytest.raises(ValueError, match="MESSAGES, BYTES, OPERATIONS"):
            call(kind)


@pytest.mark.parametrize("n", [0, -1])
def test_amounts_below_one(time: FakeTime, n: int) -> None:
    for limit in (limiter(time, ten_per_second()), limiter(time, RateLimitConfig())):
        for call in (limit.try_acquire, limit.check):
            with pytest.raises(ValueError, match="n must be at least 1"):
                call(MESSAGES, n)


def test_reset_fills(time: FakeTime) -> None:
    limit = limiter(time, RateLimitConfig().with_messages(1, 5).with_bytes(1, 5))
    limit.try_acquire(MESSAGES, 5)
    limit.try_acquire(BYTES, 5)
    limit.reset(MESSAGES)
    assert limit.check(MESSAGES).remaining == 5
    assert limit.check(BYTES).remaining == 0
    limit.reset()
    assert limit.check(BYTES).remaining == 5


def test_the_default_clock_runs() -> None:
    limit = RateLimiter(RateLimitConfig().with_messages(10**9, 1))
    assert limit.try_acquire(MESSAGES)
    while not limit.try_acquire(MESSAGES):  # a nanosecond
        pass


def test_repr(time: FakeTime) -> None:
    assert repr(limiter(time, ten_per_second())) == "RateLimiter(messages=TokenBucket(10/s, burst=10))"
    status = RateLimitStatus(False, 0, 0.1)
    assert repr(status) == "RateLimitStatus(allowed=False, remaining=0, retry_after=0.1)"


def test_status_is_a_value() -> None:
    one, same, other = (RateLimitStatus(True, left, 0.0) for left in (1, 1, 2))
    assert one == same != other
    assert len({one, same, other}) == 2
    assert one != (True, 1, 0.0)


# Waiting.


async def test_acquire_takes_at_once_what_is_there(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    assert await limit.acquire(MESSAGES, 4) == RateLimitStatus(True, 6, 0.0)
    assert time.pending == 0


async def test_acquire_waits_exactly(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second(1))
    await limit.acquire(MESSAGES)
    task = asyncio.create_task(limit.acquire(MESSAGES))
    await time.advance(0.1 - 1e-9)
    assert not task.done()
    await time.advance(1e-9)
    assert task.result() == RateLimitStatus(True, 0, 0.0)
    assert time.pending == 0


async def test_first_come_first_served(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    order: list[int] = []

    async def one(number: int, n: int) -> None:
        await limit.acquire(MESSAGES, n)
        order.append(number)

    amounts = [10, 1, 5, 1]  # the small ones must not overtake the large
    tasks = [asyncio.create_task(one(number, n)) for number, n in enumerate(amounts)]
    await settle()
    assert not limit.try_acquire(MESSAGES)
    seen = []
    for _ in range(17):
        await time.advance(0.1)
        seen.append(len(order))
    assert order == [0, 1, 2, 3]
    assert seen == [0] * 9 + [1, 2, 2, 2, 2, 2, 3, 4]
    await asyncio.gather(*tasks)


async def test_nobody_overtakes_those_who_wait(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    task = asyncio.create_task(limit.acquire(MESSAGES, 5))
    await time.advance(0.4)
    # Four tokens are there, but they are spoken for: one more comes with the sixth.
    assert limit.try_acquire(MESSAGES) == RateLimitStatus(False, 4, 0.2)
    assert limit.check(MESSAGES, 10) == RateLimitStatus(False, 4, 1.1)
    await time.advance(0.1)
    assert task.done()
    await time.advance(0.1)
    assert limit.try_acquire(MESSAGES)


async def test_a_served_wait_returns_before_a_later_call_does(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    order: list[str] = []

    async def one(name: str) -> None:
        await limit.acquire(MESSAGES, 5)
        order.append(name)

    task = asyncio.create_task(one("first"))
    await settle()
    time.ns += SECOND
    time.timers[0][2].callback()  # the timer rings: five tokens for `first`, which runs in the next turn
    await one("second")  # five more are left
    assert order == ["first", "second"]
    await task
    assert limit.check(MESSAGES) == RateLimitStatus(False, 0, 0.1)


async def test_arguments_are_checked_while_a_served_wait_has_not_returned(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    task = asyncio.create_task(limit.acquire(MESSAGES))
    await settle()
    time.ns += SECOND
    time.timers[0][2].callback()
    with pytest.raises(RateLimitExceeded):
        await limit.acquire(MESSAGES, 11)
    with pytest.raises(ValueError, match="n must be at least 1"):
        await limit.acquire(MESSAGES, 0)
    assert await task == RateLimitStatus(True, 9, 0.0)


async def test_more_than_the_burst_does_not_wait(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    with pytest.raises(RateLimitExceeded, match="messages") as caught:
        await limit.acquire(MESSAGES, 11)
    assert caught.value.retry_after == math.inf


async def test_a_cancelled_wait_takes_nothing_and_lets_the_next_go(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    first = asyncio.create_task(limit.acquire(MESSAGES, 10))
    second = asyncio.create_task(limit.acquire(MESSAGES, 2))
    await time.advance(0.2)
    assert not second.done()
    first.cancel()
    await settle()
    assert second.done()  # the two tokens were there
    assert limit.check(MESSAGES).retry_after == 0.1
    assert time.pending == 0


async def test_cancelled_behind_the_first(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second(1))
    await limit.acquire(MESSAGES)
    tasks = [asyncio.create_task(limit.acquire(MESSAGES)) for _ in range(3)]
    await settle()
    assert limit.check(MESSAGES).retry_after == 0.4
    tasks[1].cancel()
    await settle()
    assert limit.check(MESSAGES).retry_after == 0.3
    await time.advance(0.2)
    assert [task.done() for task in tasks] == [True] * 3
    assert not tasks[2].cancelled()


async def test_served_and_cancelled_at_once_gives_back(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    task = asyncio.create_task(limit.acquire(MESSAGES, 5))
    await settle()
    time.ns += SECOND // 2
    time.timers[0][2].callback()  # the timer rings, and before the task can run
    task.cancel()
    await settle()
    assert task.cancelled()
    assert limit.check(MESSAGES) == RateLimitStatus(True, 5, 0.0)


async def test_what_is_given_back_serves_the_next(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    first = asyncio.create_task(limit.acquire(MESSAGES, 5))
    second = asyncio.create_task(limit.acquire(MESSAGES, 5))
    await settle()
    time.ns += SECOND // 2
    time.timers[0][2].callback()
    first.cancel()
    await settle()
    assert second.done()
    assert not second.cancelled()


async def test_cancelled_while_the_line_is_served(time: FakeTime) -> None:
    """A turn that is cancelled, whose task has not run yet when the timer rings, gets and gives nothing."""
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    first = asyncio.create_task(limit.acquire(MESSAGES, 5))
    await settle()
    time.ns += SECOND // 2
    first.cancel()
    time.timers[0][2].callback()
    await settle()
    assert limit.check(MESSAGES) == RateLimitStatus(True, 5, 0.0)


@pytest.mark.parametrize("exception", ENDS)
async def test_whatever_ends_a_wait_takes_nothing_and_lets_the_next_go(
    time: FakeTime, exception: type[BaseException]
) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    first = limit.acquire(MESSAGES, 10)
    first.send(None)
    second = asyncio.create_task(limit.acquire(MESSAGES, 2))
    await time.advance(0.2)
    assert not second.done()
    end(first, exception)
    await settle()
    assert second.done()  # the two tokens were there
    assert limit.check(MESSAGES).retry_after == 0.1
    assert time.pending == 0


@pytest.mark.parametrize("exception", ENDS)
async def test_whatever_ends_a_served_wait_gives_back(time: FakeTime, exception: type[BaseException]) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    first = limit.acquire(MESSAGES, 5)
    first.send(None)
    second = asyncio.create_task(limit.acquire(MESSAGES, 5))
    await settle()
    time.ns += SECOND // 2
    time.timers[0][2].callback()
    end(first, exception)
    await settle()
    assert second.done()
    assert limit.check(MESSAGES).retry_after == 0.1
    assert time.pending == 0
    time.ns += SECOND // 2
    assert await limit.acquire(MESSAGES, 5) == RateLimitStatus(True, 0, 0.0)  # and nothing is waited for


@pytest.mark.parametrize("exception", ENDS)
async def test_whatever_ends_the_last_wait_leaves_no_timer(time: FakeTime, exception: type[BaseException]) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    wait = limit.acquire(MESSAGES)
    wait.send(None)
    assert time.pending == 1
    end(wait, exception)
    assert time.pending == 0


async def test_a_timer_that_cannot_be_set_leaves_nobody_in_line(time: FakeTime) -> None:
    def fail(*_: object) -> Timer:
        raise RuntimeError("no timer")

    limit = RateLimiter(ten_per_second(), clock=time.clock, call_later=fail)
    await limit.acquire(MESSAGES, 10)
    with pytest.raises(RuntimeError, match="no timer"):
        await limit.acquire(MESSAGES, 5)
    assert limit.check(MESSAGES).retry_after == 0.1
    time.ns += SECOND
    assert limit.try_acquire(MESSAGES, 10)


def test_a_wait_may_end_after_its_loop_is_closed(
    time: FakeTime, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    limit = RateLimiter(ten_per_second(), clock=time.clock)
    limit.try_acquire(MESSAGES, 10)
    waits = [limit.acquire(MESSAGES, 10) for _ in range(3)]

    async def begin() -> None:
        for wait in waits:
            wait.send(None)
        limit.reset()  # the first is served

    loop = loop_factory()
    loop.run_until_complete(begin())
    loop.close()
    for wait in waits:
        wait.close()
    assert limit.check(MESSAGES, 10) == RateLimitStatus(True, 10, 0.0)


async def test_reset_serves_those_who_wait(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second())
    await limit.acquire(MESSAGES, 10)
    tasks = [asyncio.create_task(limit.acquire(MESSAGES, 6)) for _ in range(2)]
    await settle()
    limit.reset()
    await settle()
    assert [task.done() for task in tasks] == [True, False]
    await time.advance(0.2)
    assert tasks[1].done()


async def test_timers_of_the_running_loop() -> None:
    limit = RateLimiter(RateLimitConfig().with_messages(1000, 1))
    for _ in range(5):
        assert await limit.acquire(MESSAGES)


async def test_a_timer_that_rings_early_is_set_again(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second(1))
    await limit.acquire(MESSAGES)
    task = asyncio.create_task(limit.acquire(MESSAGES))
    await settle()
    _, _, timer = heapq.heappop(time.timers)
    time.ns += SECOND // 20
    timer.callback()
    await settle()
    assert not task.done()
    await time.advance(0.05)
    assert task.done()


class Line:
    """What `acquire` promises, in plain integers: one line, whose first is served as soon as its tokens are there."""

    TOKEN = SECOND // 100
    """Nanoseconds in which one token grows."""

    def __init__(self, burst: int) -> None:
        self.full = self.level = burst * self.TOKEN
        self.waiting: dict[int, int] = {}
        self.served: dict[int, int] = {}

    def join(self, number: int, n: int) -> None:
        self.waiting[number] = n * self.TOKEN
        self.pass_time(0)

    def leave(self, number: int) -> None:
        """Cancelled before it returned: what it was served, it gives back."""
        if self.waiting.pop(number, None) is None:
            self.level += self.served.pop(number)
        self.pass_time(0)

    def pass_time(self, ns: int) -> None:
        while self.waiting:
            number, cost = next(iter(self.waiting.items()))
            wait = max(0, cost - self.level)
            if wait > ns:
                break
            ns -= wait
            self.level += wait - cost
            self.served[number] = self.waiting.pop(number)
        self.level = min(self.full, self.level + ns)


async def test_random_arrivals_and_cancellations_lose_no_token(time: FakeTime, rng: random.Random) -> None:
    """Who returns, in which order and at which nanosecond, and what is left, is what the plain line says."""
    limit, line = limiter(time, RateLimitConfig().with_messages(100, 20)), Line(20)
    tasks: list[asyncio.Task[None]] = []
    order: list[int] = []

    async def one(number: int, n: int) -> None:
        await limit.acquire(MESSAGES, n)
        order.append(number)

    async def pass_time(seconds: float) -> None:
        await settle()
        before = time.ns
        await time.advance(seconds)
        line.pass_time(time.ns - before)
        assert order == list(line.served)
        assert limit.check(MESSAGES).remaining == line.level // line.TOKEN

    for _ in range(400):
        action = rng.random()
        if action < 0.5:
            number, n = len(tasks), rng.choice((1, rng.randint(1, 20)))
            tasks.append(asyncio.create_task(one(number, n)))
            line.join(number, n)
        elif action < 0.75:
            running = [number for number, task in enumerate(tasks) if not (task.done() or task.cancelling())]
            if running:
                number = rng.choice(running)
                tasks[number].cancel()
                line.leave(number)
        elif action < 0.9:
            await asyncio.sleep(0)
        else:
            await pass_time(rng.random() * 0.3)
    await pass_time(400 * 20 / 100)
    assert all(task.done() for task in tasks)
    assert not line.waiting
    assert order == sorted(order)
    assert time.pending == 0
    assert limit.check(MESSAGES) == RateLimitStatus(True, 20, 0.0)


# Shared.


async def test_a_global_limit_is_shared_fairly(time: FakeTime) -> None:
    limit = limiter(time, ten_per_second(1), GlobalRateLimiter)
    served = {"a": 0, "b": 0}

    async def connection(name: str) -> None:
        for _ in range(10):
            await limit.acquire(MESSAGES)
            served[name] += 1

    tasks = [asyncio.create_task(connection(name)) for name in served]
    for _ in range(20):
        await time.advance(0.1)
        assert abs(served["a"] - served["b"]) <= 2  # the first token came before anybody stood in line
    await asyncio.gather(*tasks)


def test_gates() -> None:
    free, limited = RateLimitConfig(), RateLimitConfig().with_messages(1, 2).with_bytes(10, 10)
    assert connection_gate(free) is None
    assert connection_gate(free, GlobalRateLimiter(free)) is None
    own = connection_gate(limited)
    assert own is not None
    assert [own.admit(5, 0) for _ in range(3)] == [0, 0, SECOND]
    total = GlobalRateLimiter(RateLimitConfig().with_messages(1, 3))
    assert connection_gate(free, total) is total.gate
    gates = [connection_gate(limited, total) for _ in range(2)]
    assert gates[0] is not None
    assert gates[1] is not None
    now = 10 * SECOND
    assert [gates[0].admit(1, now), gates[0].admit(1, now), gates[0].admit(1, now)] == [0, 0, SECOND]
    assert [gates[1].admit(1, now), gates[1].admit(1, now)] == [0, SECOND]
