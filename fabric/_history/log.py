"""The latest messages of one topic, with their offsets. Time is passed in."""

from __future__ import annotations

import collections

from fabric.history import History, Position, Publication
from fabric.message import Message

__all__ = ["Log"]


class Log:
    """A window of the messages of a topic.

    Args:
        epoch: of the topic.
        top: the offset of its newest message, 0 before the first.

    Attributes:
        floor: the largest offset that is not kept any more; all messages after it are kept.
        touched: when the newest message came.
    """

    __slots__ = ("_entries", "epoch", "floor", "top", "touched")

    def __init__(self, epoch: str, top: int = 0) -> None:
        self.epoch = epoch
        self.top = self.floor = top
        self.touched = 0.0
        self._entries: collections.deque[tuple[float, Publication]] = collections.deque()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def position(self) -> Position:
        """The position of the newest message."""
        return Position(self.epoch, self.top)

    def add(self, message: Message, now: float, offset: int | None = None) -> None:
        """Add a message, with the offset that follows unless another is given."""
        self.top = self.top + 1 if offset is None else offset
        self.touched = now
        self._entries.append((now, Publication(self.top, message)))

    def trim(self, size: int, oldest: float) -> None:
        """Keep `size` messages, and none from before `oldest`."""
        entries = self._entries
        while entries and (len(entries) > size or entries[0][0] < oldest):
            self.floor = entries.popleft()[1].offset

    def read(self, since: Position | None, limit: int | None = None, *, reverse: bool = False) -> History:
        """What comes after `since` (with `reverse`: before it, the newest first), `limit` messages at most."""
        recovered = since is not None and since.epoch == self.epoch and self.floor <= since.offset <= self.top
        found: list[Publication] = []
        if limit != 0 and (since is None or since.epoch == self.epoch):
            start = since.offset if since is not None else None
            for _, publication in reversed(self._entries):
                if reverse:
                    if start is None or publication.offset < start:
                        found.append(publication)
                        if len(found) == limit:
                            break
                elif start is not None and publication.offset <= start:
                    break
                else:
                    found.append(publication)
            if not reverse:
                found.reverse()
                if limit is not None:
                    del found[limit:]
        return History(self.position, recovered, tuple(found))
