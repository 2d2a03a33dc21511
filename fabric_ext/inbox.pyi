import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

def bind_errors(*, concurrent_recv: Callable[[str], Exception]) -> None:
    """Set what is raised in a second task that calls `recv()` while another one waits: a class, called with a text."""

class Inbox(Generic[T]):
    """A queue with at most one waiting receiver."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None: ...
    def recv(self) -> Awaitable[T | None]:
        """Return an awaitable for the next item; it gives `None` after a normal end and raises after another one."""
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[T]: ...
    def put_item(self, item: T) -> None:
        """Queue `item` and resume the waiting receiver, if there is one."""
    def end(self, error: BaseException | None = None) -> None:
        """No more items come: receivers get what is queued, then `None` (or `error`, raised)."""
    @property
    def queued(self) -> int:
        """Items received and not yet taken."""
