"""The event loop of a blocking client, which no thread runs: `fabric_ext.driver.Driver` steps it.

Owns what makes asyncio's loop fit for that: it says when it has something to do, and looks names up without a pool of
threads that the end of the process would wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric_ext.driver import Driver, _Keeper

__all__ = ["SteppedLoop"]


class SteppedLoop(asyncio.SelectorEventLoop):
    """asyncio's loop, which tells `driver` of what is due."""

    changes_threads = True  # transports are used by one thread after the other

    def __init__(self, driver: Driver, keeper: _Keeper) -> None:
        self.driver = driver
        selector = selectors.DefaultSelector()
        super().__init__(selector)
        self.descriptor: int = selector.fileno()  # epoll's or kqueue's
        driver.begin(self, keeper, self.descriptor)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        self.driver.is_due()
        return super().call_soon(callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:  # type: ignore[override]
        handle = super().call_at(when, callback, *args, context=context)
        self.driver.is_due_at(when)
        return handle

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """As `socket.getaddrinfo`, in a thread that ends with the process, however long a name server takes."""
        answer = self.create_future()

        def settle(addresses: Any, error: Exception | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(addresses)
            else:
                answer.set_exception(error)

        def look_up() -> None:
            addresses, failure = None, None
            try:
                addresses = socket.getaddrinfo(host, port, **options)
            except Exception as error:  # noqa: BLE001  (it is raised in the task that awaits)
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self.call_soon_threadsafe(settle, addresses, failure)

        threading.Thread(target=look_up, name="fabric.sync name lookup", daemon=True).start()
        return await answer

    def _descriptors(self) -> list[int]:
        """Those that the loop has for itself, which a forked child lets go of."""
        if self.is_closed():
            return []  # the numbers are those of other files by now
        own = [self._ssock, self._csock]  # type: ignore[attr-defined]
        return [self.descriptor, *(sock.fileno() for sock in own if sock is not None)]
