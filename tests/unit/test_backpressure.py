"""fabric.backpressure: counts, marks, and the line of those who wait. No sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import sys
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fabric import backpressure
from fabric.backpressure import BackpressureController
from fabric.config import BackpressureConfig
from fabric.error import BackpressureTimeout, BufferFull, ConnectionClosed, InvalidState
from support.interruption import interrupted


def controller(messages: int = 10, size: int = 1000, **more: object) -> BackpressureController:
    config = BackpressureConfig(max_buffer_size=messages, max_buffer_bytes=size, **more)  # type: ignore[arg-type]
    return BackpressureController(config)


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def senders(
    buffer: BackpressureController, sizes: list[int], order: list[int] | None = None
) -> list[asyncio.Task[None]]:
    async def one(number: int, size: int) -> None:
        await buffer.acquire(size)
        if order is not None:
            order.append(number)

    tasks = [asyncio.create_task(one(number, size)) for number, size in enumerate(sizes)]
    await settle()
    return tasks


# What may end a wait: a task's cancellation, a coroutine that is closed or dropped, anything else thrown into it.
ENDS = [asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, ValueError]


def end(wait: Coroutine[Any, Any, object], exception: type[BaseException]) -> None:
    """Throw `exception` into a coroutine that waits."""
    with pytest.raises(exception):
        wait.throw(exception())


# Counting.


def test_defaults_are_those_of_the_config() -> None:
    buffer = BackpressureController()
    assert buffer.config == BackpressureConfig()
    assert (buffer.messages, buffer.bytes, buffer.level, buffer.waiting) == (0, 0, 0.0, 0)
    assert not buffer.is_active


def test_level_is_the_fuller_of_both() -> None:
    buffer = controller()
    assert buffer.try_acquire(100)
    assert buffer.level == 0.1
    assert buffer.try_acquire(400)
    assert buffer.level == 0.5
    assert (buffer.messages, buffer.bytes) == (2, 500)
    buffer.release(400)
    assert buffer.level == 0.1


def test_messages_alone_fill_it() -> None:
    buffer = controller()
    assert [buffer.try_acquire() for _ in range(11)] == [True] * 10 + [False]
    error = buffer.full_error()
    assert (error.size, error.limit, error.what) == (10, 10, "messages")


def test_bytes_alone_fill_it() -> None:
    buffer = controller()
    assert buffer.try_acquire(999)
    assert not buffer.try_acquire(2)
    error = buffer.full_error()
    assert (error.size, error.limit, error.what) == (999, 1000, "bytes")
    assert buffer.try_acquire(1)


def test_a_large_message_passes_when_it_is_alone() -> None:
    buffer = controller()
    assert buffer.try_acquire(5000)
    assert buffer.level == 5
    assert not buffer.try_acquire(0) or buffer.bytes == 5000
    buffer = controller()
    assert buffer.try_acquire(1)
    assert not buffer.try_acquire(5000)
    buffer.release(1)
    assert buffer.try_acquire(5000)


@pytest.mark.parametrize(("acquired", "released"), [(None, 0), (5, 6)])
def test_releasing_what_was_not_acquired(acquired: int | None, released: int) -> None:
    buffer = controller()
    if acquired is not None:
        buffer.try_acquire(acquired)
    with pytest.raises(InvalidState, match="release of 1 message of"):
        buffer.release(released)
    assert buffer.bytes == (acquired or 0)


def test_repr() -> None:
    buffer = controller()
    buffer.try_acquire(800)
    assert repr(buffer) == "<BackpressureController active: 1 messages, 800 bytes, 80%>"


# Hysteresis.


def test_begins_at_the_threshold_and_ends_at_recovery() -> None:
    buffer = controller()
    states = []
    for _ in range(10):
        buffer.try_acquire()
        states.append(buffer.is_active)
    for _ in range(10):
        buffer.release()
        states.append(buffer.is_active)
    assert states == [False] * 7 + [True] * 3 + [True] * 3 + [False] * 7


def test_both_counts_must_recover() -> None:
    buffer = controller()
    buffer.try_acquire(900)
    for _ in range(7):
        buffer.try_acquire()
    assert buffer.is_active
    buffer.release(900)
    assert buffer.is_active  # seven messages
    buffer.release()
    assert not buffer.is_active


@pytest.mark.parametrize("threshold", [1.0, 0.5, 0.01])
@pytest.mark.parametrize("recovery", [0.0, 0.01])
def test_extreme_thresholds(threshold: float, recovery: float) -> None:
    buffer = controller(2, backpressure_threshold=threshold, recovery_threshold=recovery)
    while not buffer.is_active:
        assert buffer.try_acquire()
    while buffer.is_active:
        buffer.release()
    assert buffer.messages == 0


def test_callbacks_hear_of_each_change_once() -> None:
    buffer = controller()
    heard: list[bool] = []
    others: list[bool] = []
    remove = buffer.on_state_change(heard.append)
    buffer.on_state_change(others.append)
    for _ in range(10):
        buffer.try_acquire()
    assert heard == [True]
    for _ in range(10):
        buffer.release()
    assert heard == [True, False]
    remove()
    for _ in range(10):
        buffer.try_acquire()
    assert heard == [True, False]
    assert others == [True, False, True]


def test_a_callback_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    buffer = controller()
    heard: list[bool] = []
    buffer.on_state_change(lambda _: 1 / 0)
    buffer.on_state_change(heard.append)
    with caplog.at_level(logging.ERROR, "fabric.backpressure"):
        buffer.try_acquire(800)
    assert heard == [True]
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_may_use_the_controller() -> None:
    buffer = controller()
    buffer.on_state_change(lambda active: buffer.release(800) if active else None)
    assert buffer.try_acquire(800)
    assert buffer.messages == 0
    assert not buffer.is_active


# Waiting.


async def test_acquire_does_not_wait_below_the_threshold() -> None:
    buffer = controller()
    for _ in range(8):
        await buffer.acquire(1)
    assert buffer.is_active


async def test_those_who_wait_go_on_after_recovery_in_order() -> None:
    buffer = controller()
    for _ in range(8):
        await buffer.acquire()
    order: list[int] = []
    tasks = await senders(buffer, [0] * 5, order)
    assert buffer.waiting == 5
    buffer.release()
    await settle()
    assert order == []  # 0.7 is not recovered
    buffer.release()
    await settle()
    assert order == [0, 1]  # until the threshold is reached again
    buffer.release()
    buffer.release()
    await settle()
    assert order == [0, 1, 2, 3]
    buffer.release()
    buffer.release()
    await settle()
    assert order == [0, 1, 2, 3, 4]
    await asyncio.gather(*tasks)
    assert buffer.messages == 7


async def test_a_small_message_does_not_overtake_a_large_one() -> None:
    buffer = controller(size=1000)
    await buffer.acquire(500)
    order: list[int] = []
    tasks = await senders(buffer, [600, 1], order)
    assert not buffer.is_active
    assert order == []
    assert buffer.waiting == 2
    buffer.release(500)
    await settle()
    assert order == [0, 1]
    await asyncio.gather(*tasks)


async def test_a_message_larger_than_the_buffer_waits_until_it_is_alone() -> None:
    buffer = controller()
    await buffer.acquire(1)
    tasks = await senders(buffer, [5000, 1])
    assert [task.done() for task in tasks] == [False, False]
    buffer.release(1)
    await settle()
    assert [task.done() for task in tasks] == [True, False]
    buffer.release(5000)
    await settle()
    assert tasks[1].done()


async def test_try_acquire_fills_up_to_the_limit_while_others_wait() -> None:
    buffer = controller()
    for _ in range(8):
        await buffer.acquire()
    tasks = await senders(buffer, [0])
    assert [buffer.try_acquire() for _ in range(3)] == [True, True, False]
    for _ in range(4):
        buffer.release()
    await asyncio.gather(*tasks)


async def test_disabled_runs_up_to_the_limits_and_raises() -> None:
    buffer = controller(enabled=False)
    for _ in range(10):
        await buffer.acquire()
    with pytest.raises(BufferFull, match="10 of 10 messages"):
        await buffer.acquire()


async def test_nobody_overtakes_who_was_let_in_and_does_not_run_yet() -> None:
    buffer = controller()
    await buffer.acquire(900)
    order: list[int] = []
    tasks = await senders(buffer, [1], order)

    async def late() -> None:
        await buffer.acquire(1)
        order.append(1)

    buffer.release(900)
    await late()
    assert order == [0, 1]
    await asyncio.gather(*tasks)


async def test_a_cancelled_wait_counts_nothing_and_lets_the_next_in() -> None:
    buffer = controller()
    await buffer.acquire(500)
    tasks = await senders(buffer, [600, 1, 600])
    tasks[0].cancel()
    await settle()
    assert [task.done() for task in tasks] == [True, True, False]
    tasks[2].cancel()
    await settle()
    assert (buffer.messages, buffer.bytes, buffer.waiting) == (2, 501, 0)


async def test_admitted_and_cancelled_at_once_gives_back() -> None:
    buffer = controller()
    await buffer.acquire(900)
    tasks = await senders(buffer, [700, 1])
    buffer.release(900)
    tasks[0].cancel()
    await settle()
    assert tasks[0].cancelled()
    assert tasks[1].done()
    assert (buffer.messages, buffer.bytes) == (1, 1)


@pytest.mark.parametrize("exception", ENDS)
async def test_whatever_ends_a_wait_counts_nothing_and_lets_the_next_in(exception: type[BaseException]) -> None:
    buffer = controller()
    await buffer.acquire(500)
    first = buffer.acquire(600)
    first.send(None)
    (second,) = await senders(buffer, [1])
    assert not second.done()
    end(first, exception)
    await settle()
    assert second.done()
    assert (buffer.messages, buffer.bytes, buffer.waiting, buffer.waking) == (2, 501, 0, 0)


@pytest.mark.parametrize("exception", ENDS)
async def test_whatever_ends_an_admitted_wait_gives_back(exception: type[BaseException]) -> None:
    buffer = controller()
    await buffer.acquire(900)
    first = buffer.acquire(700)
    first.send(None)
    (second,) = await senders(buffer, [400])
    buffer.release(900)
    end(first, exception)
    await settle()
    assert second.done()
    assert (buffer.messages, buffer.bytes, buffer.waiting, buffer.waking) == (1, 400, 0, 0)


@pytest.mark.parametrize("exception", ENDS)
async def test_whatever_ends_a_wait_stops_its_timer(exception: type[BaseException]) -> None:
    buffer = controller(timeout=60)
    await buffer.acquire(900)
    held = sys.getrefcount(buffer)
    wait = buffer.acquire(1)
    wait.send(None)
    end(wait, exception)
    del wait
    await settle()
    assert sys.getrefcount(buffer) == held  # a timer would refer to it


@pytest.mark.parametrize("exception", ENDS)
async def test_a_wait_may_end_after_it_was_aborted(exception: type[BaseException]) -> None:
    buffer = controller()
    await buffer.acquire(900)
    wait = buffer.acquire(1)
    wait.send(None)
    buffer.abort(lambda: ConnectionClosed(1006))
    end(wait, exception)
    assert (buffer.messages, buffer.bytes, buffer.waiting, buffer.waking) == (1, 900, 0, 0)


def test_a_wait_may_end_after_its_loop_is_closed(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    buffer = controller()
    buffer.try_acquire(900)
    waits = [buffer.acquire(500) for _ in range(3)]

    async def begin() -> None:
        for wait in waits:
            wait.send(None).add_done_callback(lambda _: None)  # as a task would
        buffer.release(900)  # two are admitted

    loop = loop_factory()
    loop.run_until_complete(begin())
    loop.close()
    for wait in waits:
        wait.close()
    assert (buffer.messages, buffer.bytes, buffer.waiting, buffer.waking) == (0, 0, 0, 0)


async def test_timeout() -> None:
    buffer = controller(timeout=0.001)
    await buffer.acquire(900)
    with pytest.raises(BackpressureTimeout) as caught:
        await buffer.acquire(1)
    assert (caught.value.timeout, caught.value.level) == (0.001, 0.9)
    assert (buffer.messages, buffer.waiting) == (1, 0)


async def test_a_timeout_lets_the_next_in() -> None:
    buffer = controller(timeout=0.001)
    await buffer.acquire(500)
    large = asyncio.create_task(buffer.acquire(600))
    await asyncio.sleep(0)
    small = asyncio.create_task(buffer.acquire(1))
    with pytest.raises(BackpressureTimeout):
        await large
    await small
    assert buffer.bytes == 501


async def test_no_timeout_after_being_admitted() -> None:
    buffer = controller(timeout=0.1)
    await buffer.acquire(900)
    task = asyncio.create_task(buffer.acquire(1))
    await settle()
    buffer.release(900)
    timed_out = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.11, timed_out.set_result, None)
    await task
    await timed_out
    assert buffer.bytes == 1


async def test_no_timer_is_left_when_the_wait_is_over() -> None:
    buffer = controller(timeout=60)
    await buffer.acquire(900)
    held = sys.getrefcount(buffer)
    tasks = await senders(buffer, [1, 1])
    tasks[1].cancel()
    buffer.release(900)
    await settle()
    assert [task.cancelled() for task in tasks] == [False, True]
    tasks.clear()
    await settle()
    assert sys.getrefcount(buffer) == held  # a timer would refer to it


async def test_abort_gives_each_its_own_error() -> None:
    buffer = controller()
    await buffer.acquire(900)
    tasks = await senders(buffer, [1, 1, 1])
    tasks[2].cancel()
    buffer.abort(lambda: ConnectionClosed(1006))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [
        ConnectionClosed,
        ConnectionClosed,
        asyncio.CancelledError,
    ]
    assert results[0] is not results[1]
    assert (buffer.messages, buffer.waiting) == (1, 0)
    buffer.release(900)
    await buffer.acquire(1)


async def test_abort_without_anybody_waiting() -> None:
    controller().abort(AssertionError)  # raises nothing


async def test_random_use_loses_no_count(rng: random.Random) -> None:
    """Senders come, go and are cancelled: what is counted is what got in and did not leave."""
    buffer = controller(20, 2000)
    inside: list[int] = []
    order: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def send(number: int, size: int) -> None:
        await buffer.acquire(size)
        inside.append(size)
        order.append(number)

    def leave() -> None:
        if inside:
            buffer.release(inside.pop(0))

    def arrive() -> None:
        tasks.append(asyncio.create_task(send(len(tasks), rng.choice((1, 50, 300, 2500)))))

    def cancel() -> None:
        if tasks:
            rng.choice(tasks[-10:]).cancel()

    actions: list[Callable[[], None]] = [arrive, arrive, leave, leave, cancel]
    for _ in range(3000):
        rng.choice(actions)()
        if rng.random() < 0.7:
            await settle()
            assert (buffer.messages, buffer.bytes) == (len(inside), sum(inside))
            assert buffer.messages <= 20
            assert buffer.bytes <= 2000 or len(inside) == 1
    while not all(task.done() for task in tasks) or inside:
        await settle()
        leave()
    assert order == sorted(order)
    assert (buffer.messages, buffer.bytes, buffer.level, buffer.waiting) == (0, 0, 0.0, 0)
    assert not buffer.is_active


# A signal handler that sends may come before any bytecode.


class Counted:
    """A controller of ten places, five of which are taken, and how many are taken by what the test knows."""

    def __init__(self) -> None:
        self.buffer = controller(timeout=100)
        self.told: list[bool] = []
        self.buffer.on_state_change(self.told.append)
        self.held = 0
        for _ in range(5):
            self.try_acquire()

    def try_acquire(self) -> None:
        if self.buffer.try_acquire(1):  # in this order: an interruption in it changes `held` too
            self.held += 1

    def acquire(self) -> None:
        waiting = self.buffer.acquire(1)
        try:
            waiting.send(None)
        except StopIteration:
            self.held += 1
        else:
            waiting.close()

    def release(self) -> None:
        self.buffer.release(1)
        self.held -= 1

    def restore(self) -> None:
        self.buffer.restore(1)
        self.held += 1

    def time_out(self) -> None:
        assert self.buffer._waiters is not None
        self.buffer._time_out(next(iter(self.buffer._waiters)), 1)


@pytest.mark.parametrize("call", ["try_acquire", "acquire", "release", "restore", "time_out"])
@pytest.mark.parametrize("held", [6, 7, 9])
async def test_an_interruption_anywhere_loses_no_count(call: str, held: int) -> None:
    at = 0
    going_on = True
    while going_on:
        at += 1
        counted = Counted()
        buffer = counted.buffer
        while counted.held < 9:
            counted.try_acquire()
        order: list[int] = []
        tasks = [] if call == "acquire" else await senders(buffer, [1] * 5, order)
        while counted.held > held:
            counted.release()
        if call == "time_out" and not buffer.waiting:
            return
        going_on = interrupted(getattr(counted, call), counted.try_acquire, at, backpressure)
        for _ in range(50):
            await settle()
            assert buffer.messages == buffer.bytes == counted.held + len(order), f"interrupted at {at}"
            if buffer.messages == 0:
                break
            counted.release()
        assert (buffer.waiting, buffer.waking, buffer.is_active) == (0, 0, False)
        assert order == sorted(order)
        assert len(order) == len(tasks) - (call == "time_out")
        assert counted.told == [True, False] * (len(counted.told) // 2)
        await asyncio.gather(*tasks, return_exceptions=True)
    assert at > 3


async def test_what_ends_a_wait_keeps_no_frames() -> None:
    class Loan:
        """Something that is given back when it is dropped."""

    loans: list[weakref.ref[Loan]] = []

    async def borrow(buffer: BackpressureController) -> None:
        loan = Loan()
        loans.append(weakref.ref(loan))
        await buffer.acquire(1)

    async def fail(buffer: BackpressureController, expected: type[Exception]) -> None:
        with contextlib.suppress(expected):
            await borrow(buffer)
            pytest.fail("nothing was raised")
        await asyncio.sleep(0)  # the turn that woke the task has its future

    timely, aborted = controller(timeout=0.001), controller()
    for buffer in (timely, aborted):
        for _ in range(10):
            buffer.try_acquire(1)
    gc.disable()
    try:
        await fail(timely, BackpressureTimeout)
        assert loans[-1]() is None
        asyncio.get_running_loop().call_soon(aborted.abort, lambda: ConnectionClosed(1006))
        await fail(aborted, ConnectionClosed)
        assert loans[-1]() is None
    finally:
        gc.enable()
