"""What other servers have published, on its way to the subscribers of this one: in its order, and in slices.

A read of the broker's socket may bring a thousand messages, each for thousands of clients: seconds of work. It is done
only as far as the clients can be sent it together (see `fabric_ext.writer`), and goes on once they were: pings,
handlers and the rest of the event loop come in between. Meanwhile the broker is read on, so its answers are not late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fabric_ext.remote import Incoming

__all__ = ["Arrivals"]

MOST_WAITING = 1 << 23  # bytes; beyond them all is delivered at once, so that the system's buffers slow the broker down


class Arrivals:
    """What has come from the broker.

    Args:
        incoming: delivers what it can in compiled code.
        deliver_rest: called with what that leaves to do, an item of what `Incoming.deliver` returns.
    """

    def __init__(self, incoming: Incoming, deliver_rest: Callable[..., object]) -> None:
        self._incoming = incoming
        self._deliver_rest = deliver_rest
        self._messages: list[tuple[str, bytes]] = []
        self._taken = 0  # of them
        self._bytes = 0  # of those that wait for a later turn of the event loop
        self._is_delivering = self._is_scheduled = False

    def deliver(self, batch: list[tuple[str, bytes]]) -> None:
        """Deliver the messages of a read, behind what still waits of earlier ones."""
        if self._is_delivering or self._is_scheduled:
            self._messages += batch
            self._bytes += _size(batch)
            if self._is_delivering or self._bytes <= MOST_WAITING:
                return
        else:
            self._messages = batch
        self._go_on()

    def clear(self) -> None:
        """Forget what waits: the server has shut down."""
        self._messages, self._taken, self._bytes = [], 0, 0

    def _go_on(self) -> None:
        self._is_delivering = True
        try:
            while self._taken < len(self._messages):
                start = self._taken
                try:
                    left = self._incoming.deliver(self._messages, start, self._bytes > MOST_WAITING)
                finally:
                    self._taken = self._incoming.taken
                if self._taken == start:
                    break  # first the clients get what was delivered
                for each in left:
                    self._deliver_rest(*each)
        finally:
            self._is_delivering = False
            if self._taken:
                self._messages = self._messages[self._taken :]
                self._taken, self._bytes = 0, _size(self._messages)
            if self._messages and not self._is_scheduled:
                self._is_scheduled = True
                asyncio.get_running_loop().call_soon(self._in_a_later_turn)
            self._incoming.end_read()

    def _in_a_later_turn(self) -> None:
        self._is_scheduled = False
        if not self._is_delivering:
            self._go_on()


def _size(messages: list[tuple[str, bytes]]) -> int:
    return sum(len(data) for _, data in messages)
