"""Lines of standard input for an event loop, from a terminal, a pipe or a file alike.

Owns the reading. A thread reads, since files cannot be polled and a terminal that is set to non-blocking is
so for every process that shares it; it never holds a lock that the interpreter needs to exit. With prompt_toolkit
(the extra `cli`) a terminal gets a line editor with history, above which output scrolls.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator

__all__ = ["lines", "stdin_is_terminal"]

CHUNK = 64 * 1024  # bytes
PENDING = 64  # lines read and not yet taken


def stdin_is_terminal() -> bool:
    """Does somebody type?"""
    return sys.stdin is not None and sys.stdin.isatty()


async def lines(*, editor: bool = True) -> AsyncIterator[bytes]:
    """The lines of standard input without their ends, until there are no more.

    Without `editor` a terminal is read as it is; with it, raw bytes cannot be written to standard output.
    """
    if editor and stdin_is_terminal() and sys.stdout.isatty():
        try:
            from prompt_toolkit import PromptSession
            from prompt_toolkit.patch_stdout import patch_stdout
        except ImportError:
            pass
        else:
            session: PromptSession[str] = PromptSession()
            with patch_stdout(raw=True), contextlib.suppress(EOFError):
                while True:
                    yield (await session.prompt_async()).encode()
            return
    async for line in _plain_lines():
        yield line


async def _plain_lines() -> AsyncIterator[bytes]:
    if sys.stdin is None or sys.stdin.closed:
        return
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    room = threading.Semaphore(PENDING)  # a large file is read no faster than it can be sent
    descriptor = sys.stdin.fileno()

    def hand_over(line: bytes | None) -> None:
        room.acquire()
        loop.call_soon_threadsafe(queue.put_nowait, line)

    def read() -> None:
        rest = b""
        with contextlib.suppress(RuntimeError, OSError):  # the loop is closed, or the terminal is gone
            while chunk := os.read(descriptor, CHUNK):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    hand_over(line.removesuffix(b"\r"))
            if rest:
                hand_over(rest)
            hand_over(None)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while (line := await queue.get()) is not None:
        room.release()
        yield line
