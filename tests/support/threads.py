"""Servers in a thread of their own, for tests that block; and what such tests may leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

DEADLINE = 30.0
"""Seconds that anything in here may take."""


class Elsewhere:
    """An event loop in another thread: `elsewhere(coroutine)` runs a coroutine there and waits for its result."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.stack = contextlib.AsyncExitStack()

    def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(DEADLINE)

    def enter(self, context: contextlib.AbstractAsyncContextManager[T]) -> T:
        """Enter an asynchronous context there, until the test ends."""
        return self(self.stack.enter_async_context(context))


@contextlib.contextmanager
def another_loop() -> Iterator[Elsewhere]:
    """A thread that runs an event loop, until the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    there = Elsewhere(loop)
    try:
        yield there
    finally:
        try:
            there(there.stack.aclose())
            there(loop.shutdown_default_executor())
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(DEADLINE)
            loop.close()


class Caller(threading.Thread):
    """A thread that makes one call; `result` waits for what it returns, or raises what it raises."""

    def __init__(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        super().__init__(daemon=True)
        self._call = function, args, options
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        function, args, options = self._call
        try:
            self._result = function(*args, **options)
        except BaseException as error:  # noqa: BLE001  (raised by `result`)
            self._error = error

    def result(self) -> Any:
        self.join(DEADLINE)
        assert not self.is_alive(), "the call does not return"
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result
