import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, NoReturn, Protocol, TypeVar, type_check_only

from typing_extensions import disjoint_base

from fabric_ext.session_user import SessionUser

_T = TypeVar("_T")

@type_check_only
class _Keeper(Protocol):
    """Looks after loops on which no thread waits."""

    def wake(self, driver: Driver) -> object:
        """Look at `driver` again."""
    def release(self, driver: Driver) -> object:
        """Wait for its descriptor, and for the moment at which it wanted to be looked at, no more."""

def bind_errors(*, invalid_state: Callable[[str], Exception], timed_out: Callable[[str, Any], Exception]) -> None:
    """Set what is raised for a call that is not allowed now, made with a text, and for one that took too long."""

def say_nothing(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """An exception handler of an event loop."""

def forget(task: asyncio.Future[Any]) -> None:
    """Take the error of a task that nobody waits for any more."""

def finished(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine that waits for nothing, as those of a closed connection."""

@disjoint_base
class Driver:
    """Steps `loop` from the threads that use its connections."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    @property
    def is_closed(self) -> bool: ...
    @property
    def calling(self) -> int: ...
    @property
    def descriptor(self) -> int:
        """Readable when a descriptor of the loop is ready."""
    @property
    def is_forked(self) -> bool:
        """Does it belong to the parent of this process?"""
    @property
    def is_inside(self) -> bool:
        """Does this thread run inside the work of a connection, where it must not wait?"""
    def __reduce__(self) -> NoReturn: ...
    def begin(self, loop: asyncio.AbstractEventLoop, keeper: _Keeper, descriptor: int) -> None:
        """Have `loop` stepped, whose selector is `descriptor`.

        `keeper.wake(driver)` is called when nobody else is there to do it, `keeper.release(driver)` when a thread waits
        for a message, and before `descriptor` is closed.
        """
    def is_due(self) -> None:
        """Something is to be done in the next step."""
    def is_due_at(self, when: float) -> None:
        """Something is to be done at `when`, in seconds of the loop's clock."""
    def run(
        self,
        coroutine: Coroutine[Any, Any, _T],
        timeout: float | timedelta | None = None,
        what: str = "the call",
        tasks: set[asyncio.Task[Any]] | None = None,
    ) -> _T:
        """Run `coroutine` in the loop, and wait for its result.

        Args:
            timeout: seconds; then it is cancelled and `Timeout` raised. None: for ever.
            what: names the call in that error.
            tasks: a set that has the task in it while it runs; its members may be cancelled.
        """
    async def call_outside(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Have `function` called by a thread that waits, without the lock; return what it returns."""
    def soon(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call `function` with the lock held; it does not wait, and what Ctrl-C raises comes behind it."""
    def add(self, connection: SessionUser) -> None:
        """One more connection of the loop."""
    def remove(self, connection: SessionUser) -> None: ...
    def close(self) -> None:
        """Cancel what still runs, and close the loop, once no thread waits for descriptors."""
    def attention(self) -> tuple[bool, int | None]:
        """What the keeper has to do: (wait for the descriptor, the moment in ns at which it has to look again).

        None for the moment: not before it is woken, or the descriptor is ready.
        """
    def keep(self) -> bool:
        """Do what is due, unless a thread waits that does. Return whether something is to be called outside."""
    def serve(self) -> None:
        """Call what is due outside."""
    def abandon(self) -> None:
        """Drop the connections and close the loop, unless a thread waits: nobody will use them any more."""
    def fork(self) -> None:
        """This is a child: nothing of it can be used here."""

@disjoint_base
class Receiver:
    """A blocking connection, as its driver sees it: what it waits for, and where that is read."""

    _closing: bool
    @property
    def _driver(self) -> Driver: ...
    def __reduce__(self) -> NoReturn: ...
    def _bind(self, driver: Driver, connection: SessionUser, busy_poll: float) -> None: ...
