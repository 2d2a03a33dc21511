import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, NoReturn, Self, TypeVar

from typing_extensions import disjoint_base

from fabric_ext.message import Message
from fabric_ext.session_user import SessionUser

_T = TypeVar("_T")

TICK: float

def bind_errors(*, invalid_state: Callable[[str], Exception], timed_out: Callable[[str, Any], Exception]) -> None:
    """Set what is raised for a call that is not allowed now, made with a text, and for one that took too long."""

def uninterrupted(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call `function`, which does not wait; what Ctrl-C raises comes behind it."""

def guarded(function: Callable[[], _T], end: Callable[[], object]) -> _T:
    """Call `function`, and then, however that ended, `end()`, which Ctrl-C does not interrupt; return what it returned.

    A `finally` in Python code can itself be interrupted before it has done anything.
    """

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
    def _begin(self, loop: asyncio.AbstractEventLoop, wake_keeper: Callable[[], object], descriptor: int) -> None:
        """Have `loop` stepped, whose selector is `descriptor`; `wake_keeper()` when nobody else is there to do it."""
    def _is_due(self) -> None:
        """Something is to be done in the next step."""
    def _is_due_at(self, when: float) -> None:
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
    def _add(self, connection: SessionUser) -> None:
        """One more connection of the loop."""
    def _remove(self, connection: SessionUser) -> None: ...
    def _close(self) -> None:
        """Cancel what still runs, and close the loop, once no thread waits for descriptors."""
    def _attention(self) -> tuple[bool, float | None]:
        """What the keeper has to do: (wait for the descriptor, seconds until it has to look again)."""
    def _keep(self) -> bool:
        """Do what is due, unless a thread waits that does. Return whether something is to be called outside."""
    def _serve(self) -> None:
        """Call what is due outside."""
    def _is_late(self) -> bool:
        """Is there something to do now that no descriptor tells of?"""
    def _abandon(self) -> None:
        """Drop the connections and close the loop, unless a thread waits: nobody will use them any more."""
    def _fork(self) -> None:
        """This is a child: nothing of it can be used here."""

@disjoint_base
class Receiver:
    """A blocking connection, as its driver sees it: what it waits for, and where that is read."""

    _closing: bool
    @property
    def _driver(self) -> Driver: ...
    def __reduce__(self) -> NoReturn: ...
    def _bind(self, driver: Driver, connection: SessionUser, busy_poll: float) -> None: ...

@disjoint_base
class Blocking(Receiver):
    """The part of a blocking connection that sends and receives, over an asyncio one."""

    @property
    def _connection(self) -> Any: ...
    def _bind(self, driver: Driver, connection: SessionUser, busy_poll: float) -> None: ...
    def recv(self, timeout: float | timedelta | None = None) -> Message | None:
        """Receive the next message; None after a normal close.

        Args:
            timeout: seconds to wait, a float or timedelta; 0 takes only what is there; None waits for ever.

        Raises:
            Timeout: nothing came within `timeout`; nothing is lost.
            ConnectionClosed: the connection ended otherwise than normally, and is not replaced.
            ReconnectTimeout: it was lost and could not be replaced.
            InvalidState: another thread is in `recv`.
        """
    def recv_many(self, limit: int = 1000, timeout: float | timedelta | None = None) -> list[Message]:
        """Receive the next message, and those that are there already: 1 to `limit`; [] after a normal close.

        Raises what `recv` raises.
        """
    @property
    def _is_awaited(self) -> bool:
        """Does a thread wait for a message?"""
    def __iter__(self) -> Self: ...
    def __next__(self) -> Message: ...
    def _receive_by(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run `coroutine`, which receives, in the loop."""
    def _end_waits(self) -> None:
        """The connection is being closed here: a thread in recv() need not wait any more."""
    def send(self, message: Any, *, compress: bool | None = None) -> None:
        """Send a message; any thread may.

        A str goes out as text, bytes-like objects as binary; an iterator as one message, each item as a part of it.
        When it returns, the message has been given to the system, or is kept until the peer takes it: then it waits
        while too much is kept (see `BackpressureConfig`).

        `compress`: True or False for this message alone; None as configured.

        Raises TypeError for anything else, ConnectionClosed after the end, BackpressureTimeout when room took too long,
        BufferFull when an outage has used it up.
        """
    def send_nowait(self, message: Any, *, compress: bool | None = None) -> None:
        """Send a message without waiting: `BufferFull` when too much is kept; `InvalidState` when not connected."""
    def cork(self) -> AbstractContextManager[None]:
        """Gather what is sent inside the `with`, up to 64 KB at a time; what was sent before leaves first."""
    def send_many(self, messages: Iterable[Any]) -> None:
        """Send several messages, gathered into as few system calls as possible."""
    def _send_later(self, message: Any, compress: bool | None) -> None:
        """What send() does when the message could not be written at once."""
