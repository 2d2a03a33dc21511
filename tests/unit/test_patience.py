"""fabric.broker.patience: how long a broker's answer is waited for."""

from __future__ import annotations

import asyncio
import time

import pytest

from fabric.broker.patience import LOOKS, answered, first_of


async def test_an_answer_that_comes_while_the_loop_is_busy_counts() -> None:
    """Each turn takes longer than the broker has; the answer takes some turns."""
    seconds = 0.01
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def busy(turns: int) -> None:
        time.sleep(2 * seconds)
        if turns:
            asyncio.get_running_loop().call_soon(busy, turns - 1)
        else:
            answer.set_result("here")

    busy(LOOKS // 4)
    assert await answered(answer, seconds) == "here"


async def test_one_that_does_not_come_is_cancelled() -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        await answered(answer, 0.01)
    assert answer.cancelled()


async def test_one_that_is_an_error() -> None:
    async def refused() -> None:
        raise ConnectionResetError("no")

    with pytest.raises(ConnectionResetError, match="no"):
        await answered(refused(), 1000)


async def test_a_task_that_is_cancelled_waits_no_more() -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(answered(answer, 1000))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert answer.cancelled()


async def test_the_first_of_several() -> None:
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[None]] = [loop.create_future() for _ in range(2)]
    await first_of(futures, 0.01)
    assert not any(future.done() for future in futures)
    loop.call_soon(futures[1].set_result, None)
    await first_of(futures, 1000)
    assert [future.done() for future in futures] == [False, True]
