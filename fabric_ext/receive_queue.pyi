import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn, Self, TypeVar, final

from typing_extensions import disjoint_base

def bind_errors(*, concurrent_recv: Callable[[str], Exception]) -> None:
    """Set what is raised in a second task that calls `recv()` while another one waits: a class, called with a text."""

_C = TypeVar("_C", bound=type)
_E = TypeVar("_E", bound=BaseException)

def fresh(error: _E) -> _E:
    """A copy to raise: one that was raised keeps a traceback, and with it the frames it went through."""

def inherits_in_c(cls: _C) -> _C:
    """Class decorator: let Python code call what a class inherits from a compiled one as if it were compiled itself."""

@disjoint_base
class ReceiveQueue:
    """A queue with at most one waiting receiver."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None: ...
    def __reduce__(self) -> NoReturn: ...
    def recv(self) -> Coroutine[Any, Any, Any]:
        """Return an awaitable for the next item; it gives `None` after a normal end and raises after another one."""
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Coroutine[Any, Any, Any]: ...
    def _put(self, item: Any) -> None:
        """Queue `item` and resume the waiting receiver, if there is one."""
    def _finish(self, error: BaseException | None = None) -> None:
        """No more items come: receivers get what is queued, then `None` (or `error`, raised)."""
    @property
    def queued(self) -> int:
        """Items received and not yet taken."""

@final
class Recv(Coroutine[Any, Any, Any]):
    """One pending `recv()`: awaitable, and a coroutine for `create_task`, `wait_for`, `shield`, `gather`."""

    def __next__(self) -> Any: ...
    def __await__(self) -> Generator[Any, None, Any]: ...
    def send(self, value: Any) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any: ...
    def close(self) -> None: ...
