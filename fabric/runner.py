"""Runs a program until it ends or is told to: the event loop, SIGINT and SIGTERM.

Owns `run`, and the signal handlers while it runs. How a server ends is the server's: `WebSocketServer.shutdown`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar, overload

from fabric.server import WebSocketServer

__all__ = ["run"]

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 128 + signal.SIGINT  # the exit code of a program that SIGINT has ended, as shells have it


@overload
def run(main: WebSocketServer, *, debug: bool | None = None) -> None: ...
@overload
def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T | None: ...
def run(main: WebSocketServer | Coroutine[Any, Any, T], *, debug: bool | None = None) -> T | None:
    """Run a server, or a coroutine, on uvloop; SIGINT (Ctrl-C) and SIGTERM end it in good order.

        fabric.run(WebSocketServer.bind("127.0.0.1:8080", handler))

    The first signal cancels what runs: a server then closes each connection with 1001, as `shutdown` does, and so does
    `async with server` inside a coroutine. This returns None then, so that the program ends with exit code 0 and
    without a traceback. Another signal cancels again: connections that are still closing are aborted.

    A signal that the process ignores, as programs in the background of a shell ignore SIGINT, stays ignored.

    Args:
        main: the server, or what `async def main()` returns when it is called.
        debug: run the loop in debug mode; None = as Python is set up.

    Returns:
        What the coroutine returns; None for a server, and after a signal.

    Raises:
        TypeError: `main` is neither, a function that was not called, say.
        RuntimeError: an event loop is running in this thread already.
    """
    if isinstance(main, WebSocketServer):
        coroutine: Coroutine[Any, Any, Any] = main.serve_forever()
    elif asyncio.iscoroutine(main):
        coroutine = main
    else:
        hint = ": call it, run(main())" if callable(main) else ""
        raise TypeError(f"run() takes a WebSocketServer or a coroutine, not {type(main).__name__}{hint}")
    try:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("run() cannot be called where an event loop is running: await the coroutine there")
        with asyncio.Runner(debug=debug, loop_factory=best_loop()) as runner:
            result: T | None = runner.run(_until_told(coroutine))
    except KeyboardInterrupt:  # before the loop has begun, or after it has ended
        raise SystemExit(INTERRUPTED) from None
    finally:
        coroutine.close()  # without effect, unless it has never begun
    return result


def best_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, which is imported when a program runs; asyncio's own where it is not installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _until_told(coroutine: Coroutine[Any, Any, T]) -> T | None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(coroutine)
    is_told = False

    def stop() -> None:
        nonlocal is_told
        is_told = True
        task.cancel()

    with _handled(loop, stop):
        try:
            return await task
        except asyncio.CancelledError:
            if is_told and task.cancelled():
                return None
            raise


@contextlib.contextmanager
def _handled(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` for each signal; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ours = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    for number in ours:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in ours:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])
