"""Histories of topics: the latest messages are numbered and kept, so that a client that comes back gets what it missed.

    server.topics.configure("room.>", history=100, ttl=300)

    async def handler(client):
        since = ...                                           # the position that the client has said it has, or None
        history = await client.subscribe("room.7", since=since)
        if not history.recovered:
            ...                                               # it is to load everything anew

Each message of such a topic has an offset, which grows, and each topic an epoch: another epoch says that the offsets
have begun anew, as the data were lost. Both together are a `Position`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from fabric.message import Message

__all__ = ["History", "Position", "Publication"]

LONGEST_EPOCH = 64  # characters
LARGEST_OFFSET = 2**53 - 1  # what JSON and Lua take as a whole number


class Position(NamedTuple):
    """A place in the history of a topic: that of a message, or what a client has up to here.

    As JSON it is a list of two, and as text `epoch:offset`. Where a position is taken, any sequence of the two will do.

    Attributes:
        epoch: of the topic: another one after its data were lost.
        offset: of the message, 0 before the first one. It grows from message to message, not always by one.
    """

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A position from its text.

        Raises:
            ValueError: it is none.
        """
        epoch, colon, offset = text.rpartition(":")
        if not colon or not epoch or len(offset) > 16 or not (offset.isascii() and offset.isdecimal()):
            raise ValueError("a position is epoch:offset")
        return cls(epoch, int(offset))

    @classmethod
    def check(cls, position: Any) -> Self:
        """`position` as a Position.

        Raises:
            TypeError: it is not a sequence of a str and an int.
            ValueError: the epoch has more than 64 characters, or the offset is negative or larger than 2**53 - 1.
        """
        try:
            epoch, offset = position
        except (TypeError, ValueError):
            raise TypeError(f"a position is (epoch, offset), not {type(position).__name__}") from None
        if isinstance(position, str) or not isinstance(epoch, str) or type(offset) is not int:
            raise TypeError("a position is (epoch, offset): a str and an int")
        if len(epoch) > LONGEST_EPOCH or not 0 <= offset <= LARGEST_OFFSET:
            raise ValueError(f"an epoch has {LONGEST_EPOCH} characters at most, an offset is 0 to {LARGEST_OFFSET}")
        return cls(epoch, offset)


class Publication(NamedTuple):
    """A message in the history of a topic."""

    offset: int
    message: Message


@dataclass(frozen=True, slots=True)
class History:
    """What a topic has kept.

    Attributes:
        position: of the newest message that the topic has had, whether it is among `publications` or not; what
            `client.subscribe` returns, of the newest that the client need not expect any more.
        recovered: `since` was given, and nothing that came after it is missing. If not, the epoch is another one, or
            messages after it are kept no more.
        publications: messages after `since` in the order of their offsets; without it, all that are kept. What
            `client.subscribe` returns, those that the client was sent by it: after `since`, or the latest `recent`.
    """

    position: Position
    recovered: bool
    publications: tuple[Publication, ...] = ()
