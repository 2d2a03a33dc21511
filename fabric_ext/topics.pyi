from collections.abc import Iterable
from typing import Any, TypeVar, final

from fabric_ext.broadcast import Shared

_T = TypeVar("_T")

def check_topic(name: object, pattern: bool = False) -> None:
    """Is `name` the name of a topic, or, with `pattern`, one or a pattern?

    Raises:
        TypeError: it is no str.
        ValueError: it is empty or longer than 255 bytes, has an empty token, more than 32, white space, control
            characters or a wildcard where none may be, or begins with `$`.
    """

def exact(name: _T) -> _T:
    """The same text as a str and nothing more, of what may be a subclass, such as a member of an enumeration."""

@final
class Topic:
    """A name or a pattern, and its subscribers."""

    @property
    def name(self) -> str: ...

@final
class Subscriber:
    """A connection, or something else, that has subscriptions.

    Args:
        target: a `Connection`, or any object, which `Index.publish` returns.
    """

    waiting: dict[str, Any] | None
    def __init__(self, target: object) -> None: ...
    def __len__(self) -> int: ...
    @property
    def target(self) -> Any: ...
    @property
    def topics(self) -> list[str]:
        """Names and patterns, in no order."""

@final
class Branch:
    """The patterns that begin with the same tokens."""

@final
class Index:
    """The topics of one event loop and their subscribers."""

    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...
    @property
    def subscriptions(self) -> int: ...
    def names(self) -> list[str]:
        """The topics and patterns that have subscribers."""
    def count(self, name: str) -> int:
        """The subscribers of exactly this topic or pattern."""
    def subscribe(self, subscriber: Subscriber, name: str) -> bool | None:
        """Return True if it is the first subscriber of this topic or pattern, None if it has subscribed already.

        Raises:
            ValueError, TypeError: see `check_topic`.
        """
    def unsubscribe(self, subscriber: Subscriber, name: str) -> bool | None:
        """Return True if it was the last subscriber of this topic or pattern, None if it was none."""
    def leave(self, subscriber: Subscriber) -> list[str]:
        """End all its subscriptions; return the topics and patterns that have no subscriber any more."""
    def subscribers(self, name: str) -> list[Any]:
        """The targets of all that a message published to `name` goes to, each once."""
    def has_subscribers(self, name: str) -> bool:
        """Does a message published to `name` go to any?"""
    def publish(self, name: str, shared: Shared, exclude: Iterable[Subscriber] = ()) -> tuple[int, list[Any]]:
        """Send a message to those connections that take it now; return their number, and the targets that do not.

        Those are open connections that cannot be written to now or gather nothing, and whatever is no connection.

        Args:
            exclude: subscribers that do not get it.
        """
