"""fabric.pool: loans that are collected by the garbage collector and were never released."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from support.fake_time import in_fake_time, settle
from support.pools import URL, in_turn, make


@in_fake_time
async def test_a_loan_that_is_collected_comes_back_with_a_warning() -> None:
    pool, servers = make(max_connections=1)
    async with pool:
        client = await pool.get(URL)
        loans = [client]
        del client
        with pytest.warns(ResourceWarning, match="PooledClient of ws://server/> was never released"):
            loans.clear()
        await settle()
        assert pool.stats().idle == 1
        async with pool.get(URL) as client:
            assert client.inner is servers.clients[0]


@in_fake_time
async def test_a_loan_that_is_collected_comes_back_though_warnings_are_errors() -> None:
    pool, _ = make(max_connections=1)
    async with pool:
        client = await pool.get(URL)
        waiter = in_turn(pool, 1)[0]
        await settle()
        loans = [client]
        del client
        assert [type(error) for error in collect_with_errors(loans)] == [ResourceWarning]
        (await waiter).release()


def collect_with_errors(loans: list[Any]) -> list[BaseException | None]:
    """Collect them while warnings are errors; what was raised meanwhile."""
    caught: list[BaseException | None] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: caught.append(unraisable.exc_value)
    try:
        with warnings.catch_warnings(action="error"):
            loans.clear()
            gc.collect(0)
    finally:
        sys.unraisablehook = hook
    return caught


def run_on_a_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@in_fake_time
async def test_a_loan_that_is_collected_on_another_thread_comes_back() -> None:
    pool, _ = make(max_connections=1)
    async with pool:
        loans = [await pool.get(URL)]
        waiter = in_turn(pool, 1)[0]
        await settle()
        with pytest.warns(ResourceWarning):
            run_on_a_thread(loans.clear)
        (await waiter).release()


@in_fake_time
async def test_no_warning_for_a_loan_that_is_over() -> None:
    pool, _ = make()
    released, closed, lent = await pool.get(URL), await pool.get("ws://a/"), await pool.get("ws://b/")
    released.release()
    await closed.close()
    await pool.close_all()
    with warnings.catch_warnings(action="error"):
        del released, closed, lent
        gc.collect(0)


def test_a_loan_that_outlives_its_loop_is_collected_in_silence() -> None:
    loans = []

    @in_fake_time
    async def run() -> None:
        pool, _ = make()
        loans.append(await pool.get(URL))

    run()
    assert collect_with_errors(loans) == []
