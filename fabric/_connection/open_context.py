"""What a call returns that opens something: awaitable for it, and the context of an `async with` that gives it up.

Owns nothing but the coroutine, which begins when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

__all__ = ["OpenContext"]

T = TypeVar("T")


class OpenContext(Coroutine[Any, Any, T], Generic[T]):
    """A coroutine for `create_task` and `wait_for` too. A subclass says in `__aexit__` how `_result` is given up."""

    __slots__ = ("_begin", "_coroutine", "_result")

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._begin = begin
        self._coroutine: Coroutine[Any, Any, T] | None = None
        self._result: T | None = None

    def _begun(self) -> Coroutine[Any, Any, T]:
        if self._coroutine is None:
            self._coroutine = self._begin()
        return self._coroutine

    def __await__(self) -> Generator[Any, None, T]:
        return self._begun().__await__()

    def send(self, value: Any) -> Any:
        return self._begun().send(value)

    def throw(self, *args: Any) -> Any:
        return self._begun().throw(*args)

    def close(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()

    async def __aenter__(self) -> T:
        self._result = await self
        return self._result
