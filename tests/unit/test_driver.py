"""Who steps a loop that no thread runs: waiting, timers, what is called outside, and what the keeper is told."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fabric._sync.loop import SteppedLoop
from fabric.error import InvalidState, Timeout
from fabric_ext.driver import Driver
from support.threads import DEADLINE, Caller


class Keeper:
    """Counts how often it is woken, and how often it is to let go."""

    def __init__(self) -> None:
        self.woken = self.released = 0

    def wake(self, driver: Driver) -> None:
        self.woken += 1

    def release(self, driver: Driver) -> None:
        self.released += 1


@pytest.fixture
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture
def driver(keeper: Keeper) -> Iterator[Driver]:
    made = Driver()
    SteppedLoop(made, keeper)
    yield made
    made.close()
    assert made.is_closed


async def answer(value: Any, turns: int = 3) -> Any:
    for _ in range(turns):
        await asyncio.sleep(0)
    return value


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


def test_a_coroutine_runs_and_gives_its_result(driver: Driver) -> None:
    assert driver.run(answer(5)) == 5
    with pytest.raises(LookupError):
        driver.run(fail(LookupError()))


def test_timers_are_waited_for(driver: Driver) -> None:
    driver.run(asyncio.sleep(0.001))


def test_what_takes_too_long_is_cancelled(driver: Driver) -> None:
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            raise

    ended: list[bool] = []
    with pytest.raises(Timeout, match=r"the thing timed out after 0\.001 s"):
        driver.run(wait(), 0.001, "the thing")
    assert ended


@pytest.mark.parametrize("wrong", ["1", -1, float("nan")])
def test_a_wrong_timeout_begins_nothing(driver: Driver, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timeout"):
        driver.run(answer(5), wrong)


def test_several_threads_wait_at_once(driver: Driver) -> None:
    async def wait() -> int:
        await event.wait()
        return 5

    async def release() -> None:
        event.set()

    event = asyncio.Event()
    callers = [Caller(driver.run, wait()) for _ in range(5)]
    driver.run(release())
    assert [caller.result() for caller in callers] == [5] * 5


def test_a_thread_that_waits_is_told_of_what_another_does(driver: Driver) -> None:
    future = driver.loop.create_future()

    async def wait() -> Any:
        return await future

    caller = Caller(driver.run, wait())
    driver.soon(future.set_result, "done")
    assert caller.result() == "done"


def test_a_timer_of_another_thread_is_seen_in_time(driver: Driver) -> None:
    """The thread that waits would sleep past it."""
    future = driver.loop.create_future()

    async def wait() -> Any:
        return await future

    caller = Caller(driver.run, wait())
    driver.run(answer(None))
    driver.soon(driver.loop.call_later, 0.001, future.set_result, "rung")
    assert caller.result() == "rung"


def test_what_is_called_outside_may_wait_itself(driver: Driver) -> None:
    def outer(value: int) -> int:
        assert not driver.is_inside
        assert driver.calling == 1
        return driver.run(answer(value)) + 1

    assert driver.run(driver.call_outside(outer, 5)) == 6
    assert driver.calling == 0


def test_what_is_called_outside_may_raise(driver: Driver) -> None:
    def refuse() -> None:
        raise LookupError

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(LookupError):
        driver.run(driver.call_outside(refuse))
    with pytest.raises(KeyboardInterrupt):
        driver.run(driver.call_outside(stop))
    assert driver.run(answer(5)) == 5


def test_inside_a_step_nothing_waits(driver: Driver) -> None:
    async def nested() -> None:
        assert driver.is_inside
        with pytest.raises(InvalidState, match="would wait"):
            driver.run(answer(5))
        assert driver.soon(len, "abc") == 3

    driver.run(nested())


def test_the_running_loop_and_task_of_the_thread_stay_its_own(driver: Driver) -> None:
    async def inner() -> tuple[Any, Any]:
        await asyncio.sleep(0)
        return asyncio.get_running_loop(), asyncio.current_task()

    async def outer() -> None:
        mine = asyncio.get_running_loop(), asyncio.current_task()
        loop, task = driver.run(inner())
        assert loop is driver.loop
        assert task is not mine[1]
        assert (asyncio.get_running_loop(), asyncio.current_task()) == mine

    asyncio.run(outer())


def test_a_driver_that_is_closed_runs_only_what_does_not_wait() -> None:
    driver = Driver()
    SteppedLoop(driver, Keeper())
    driver.close()
    driver.close()
    assert driver.run(answer(5, turns=0)) == 5
    with pytest.raises(InvalidState, match="closed"):
        driver.run(answer(5))


def test_closing_cancels_what_runs() -> None:
    driver = Driver()
    SteppedLoop(driver, Keeper())
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    caller = Caller(driver.run, wait())
    assert begun.wait(DEADLINE)
    driver.close()
    with pytest.raises(InvalidState, match="closed meanwhile"):
        caller.result()


# What the keeper is told.


def test_the_keeper_leaves_a_driver_alone_that_is_in_use(driver: Driver, keeper: Keeper) -> None:
    for _ in range(2):
        driver.run(answer(5))
        watched, again = driver.attention()
        assert not watched
        assert again is not None
    assert driver.attention() == (True, None)
    driver.run(answer(5))
    assert not keeper.woken


def test_the_keeper_is_woken_by_a_thread_that_leaves_after_a_long_wait(driver: Driver, keeper: Keeper) -> None:
    event = asyncio.Event()
    waiting = threading.Event()

    async def wait() -> None:
        waiting.set()
        await event.wait()

    caller = Caller(driver.run, wait())
    assert waiting.wait(DEADLINE)
    while driver.attention() != (False, None):
        pass
    before = keeper.woken
    driver.soon(event.set)
    caller.result()
    assert keeper.woken > before


def test_the_keeper_is_told_of_timers(driver: Driver, keeper: Keeper) -> None:
    while driver.attention() != (True, None):
        pass
    handle = driver.soon(driver.loop.call_later, 1000, print)
    assert keeper.woken == 1
    assert driver.attention() == (True, int(handle.when() * 1e9))
    later = driver.soon(driver.loop.call_later, 2000, print)
    assert keeper.woken == 1, "it comes in time for the first"
    handle.cancel()
    later.cancel()


def test_the_keeper_is_told_of_a_timer_that_a_call_has_set_which_waited_itself(driver: Driver, keeper: Keeper) -> None:
    async def set_timer() -> None:
        handles.append(asyncio.get_running_loop().call_later(1000, print))

    handles: list[asyncio.TimerHandle] = []
    while driver.attention() != (True, None):
        pass
    driver.run(set_timer(), 500)
    assert keeper.woken == 1
    handles[0].cancel()


def test_the_keeper_lets_go_of_the_descriptor_before_it_is_closed(driver: Driver, keeper: Keeper) -> None:
    driver.close()
    assert keeper.released == 1


def test_the_keeper_does_what_is_due(driver: Driver) -> None:
    while driver.attention() != (True, None):
        pass
    done: list[int] = []
    driver.loop.call_soon_threadsafe(done.append, 1)
    assert not driver.keep()
    assert done == [1]


def test_the_keeper_has_a_thread_call_what_is_to_be_called_outside(driver: Driver) -> None:
    called: list[int] = []
    driver.soon(driver.loop.create_task, driver.call_outside(called.append, 1))
    assert driver.keep()
    assert not driver.keep(), "one thread is enough"
    driver.serve()
    assert called == [1]


def test_names_are_looked_up_in_a_thread(driver: Driver) -> None:
    found = driver.run(driver.loop.getaddrinfo("127.0.0.1", 80))
    assert found[0][4] == ("127.0.0.1", 80)
    with pytest.raises(socket.gaierror):
        driver.run(driver.loop.getaddrinfo("no such name.invalid", 80))


def test_a_driver_is_not_copied() -> None:
    with pytest.raises(TypeError, match="copy or pickle"):
        Driver().__reduce__()
