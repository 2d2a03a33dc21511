"""Waiting for a broker's answer without blaming the broker for a process that is busy itself.

Where thousands of clients come back at once, the event loop may take seconds for one turn. An answer that has come
meanwhile would count as missing, the broker as silent, and its connection would be made anew when it helps least.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection
from typing import Any, TypeVar

__all__ = ["answered", "first_of"]

T = TypeVar("T")

LOOKS = 20  # that an answer has at least; between two of them the loop reads what has come


async def answered(answer: Awaitable[T], seconds: float) -> T:
    """The answer, for which the broker has so many seconds, and this event loop as many turns as it takes it.

    Raises:
        TimeoutError: it has not come; it is cancelled.
    """
    waiting = asyncio.ensure_future(answer)
    try:
        await first_of([waiting], seconds)
        if waiting.done():
            return waiting.result()
    finally:
        waiting.cancel()  # without effect on one that is done
    raise TimeoutError


async def first_of(futures: Collection[asyncio.Future[Any]], seconds: float) -> None:
    """Wait until one of them is done, for so long as `answered` does."""
    for _ in range(LOOKS):
        if (await asyncio.wait(futures, timeout=seconds / LOOKS, return_when=asyncio.FIRST_COMPLETED))[0]:
            return
