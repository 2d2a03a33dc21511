"""What a call returns that opens something: awaitable for it, and the context of an `async with` that gives it up.

Owns nothing but the coroutine, which begins when it is first needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, NoReturn, TypeVar

__all__ = ["OpenContext"]

T = TypeVar("T")


class OpenContext(Coroutine[Any, Any, T], Generic[T]):
    """A coroutine for `create_task` and `wait_for` too. A subclass says in `__aexit__` how `_result` is given up."""

    __slots__ = ("_begin", "_call", "_coroutine", "_result")

    def __init__(self, call: str, begin: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """`call` is what the user has written, for the warning if it is never awaited."""
        self._call = call
        self._begin: Callable[[], Coroutine[Any, Any, T]] | None = begin
        self._coroutine: Coroutine[Any, Any, T] | None = None
        self._result: T | None = None

    def _begun(self) -> Coroutine[Any, Any, T]:
        if self._coroutine is None:
            if self._begin is None:
                raise RuntimeError(f"this {self._call} was closed")
            self._coroutine = self._begin()
        return self._coroutine

    def __await__(self) -> Generator[Any, None, T]:
        return self._begun().__await__()

    def send(self, value: Any) -> Any:
        if value is not None and self._coroutine is None:  # no coroutine begins with a value: a message was meant
            self._misused()
        return self._begun().send(value)

    def throw(self, *args: Any) -> Any:
        return self._begun().throw(*args)

    def close(self) -> None:
        self._begin = None
        if self._coroutine is not None:
            self._coroutine.close()

    def __del__(self) -> None:
        if self._coroutine is None and self._begin is not None:
            warnings.warn(f"{self._call} was never awaited", RuntimeWarning, stacklevel=2, source=self)

    def _misused(self, *_: object) -> NoReturn:
        self.close()
        raise TypeError(f"write `await {self._call}`, or `async with {self._call} as ...`")

    __enter__ = __exit__ = __aiter__ = _misused

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        self.close()
        raise AttributeError(f"there is no {name!r} before `await {self._call}`")

    async def __aenter__(self) -> T:
        self._result = await self
        return self._result
