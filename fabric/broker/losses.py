"""Which of this server's messages other servers may not have received, so that they can be told.

The answer to a round trip (`Broker.flush`) confirms all messages before it. If the connection is lost, the broker may
or may not have received what was published after that; it has not received what was refused because too much waits.
When the broker answers again, the other servers are told these topics and a time. They are told again if the connection
is lost before the broker has confirmed that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from fabric.broker import BrokerUnavailable, Node

__all__ = ["Losses", "Lost"]

EVERYTHING = ">"  # stands for too many topics to be told one by one
MOST = 10_000  # topics
AT_ONCE = 200  # topics in one message
LONGEST_AGO = 1e9  # seconds


class Lost(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What servers are told: messages of these topics may be lost.

    Attributes:
        topics: up to `AT_ONCE` of them.
        begins: how long ago the first of the messages was published, in seconds.
        ends: how long ago the last of them was published, in seconds.
    """

    topics: Annotated[list[Annotated[str, Meta(max_length=255)]], Meta(max_length=AT_ONCE)]
    begins: Annotated[float, Meta(ge=0, le=LONGEST_AGO)]
    ends: Annotated[float, Meta(ge=0, le=LONGEST_AGO)]


class Losses:
    """The topics of an adapter's messages that are not confirmed, and those of which some are lost.

    Args:
        clock: `time.time`.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._question = 0  # the number of the next one
        self._unconfirmed: deque[tuple[int, dict[str, None]]] = deque()  # a question, and what its answer confirms
        self._count = 0  # topics in it
        self._lost: dict[str, int | None] = {}  # topic -> the question that confirms that it was told; None: not told
        self._begins = self._ends = 0.0

    def refused(self, topic: str) -> None:
        """A message was not sent to the broker."""
        now = self._clock()
        self._lose((topic,), now, now)

    def disconnected(self, heard: float, published: dict[str, None]) -> None:
        """The connection is lost.

        Args:
            heard: when the broker answered last.
            published: the topics of messages that were sent to the broker since `asked`.
        """
        self.untold()
        self._await_answer(published)
        if self._unconfirmed:
            topics = dict.fromkeys(topic for _, each in self._unconfirmed for topic in each)
            self._forget()
            self._lose(topics, heard, self._clock())

    def untold(self) -> None:
        """What was told may not have arrived: tell it again."""
        self._lost = dict.fromkeys(self._lost)

    def _lose(self, topics: Iterable[str], begins: float, ends: float) -> None:
        if not self._lost:
            self._begins = begins
        self._begins, self._ends = min(self._begins, begins), ends
        self._lost.update(dict.fromkeys(topics))
        if len(self._lost) > MOST or EVERYTHING in self._lost:
            self._lost = {EVERYTHING: None}

    def asked(self, published: dict[str, None]) -> int:
        """A round trip begins, after all that was published and told; return its number.

        Args:
            published: the topics of messages that were sent to the broker since the last call.
        """
        self._await_answer(published)
        self._question += 1
        return self._question - 1

    def _await_answer(self, published: dict[str, None]) -> None:
        """The next question's answer confirms these topics."""
        if self._count + len(published) > MOST:
            self._forget()
            published = {EVERYTHING: None}
        if published:
            self._unconfirmed.append((self._question, published))
            self._count += len(published)

    def _forget(self) -> None:
        self._unconfirmed.clear()
        self._count = 0

    def confirmed(self, question: int) -> None:
        """The round trip of that number has ended."""
        while self._unconfirmed and self._unconfirmed[0][0] <= question:
            self._count -= len(self._unconfirmed.popleft()[1])
        if self._lost:
            self._lost = {topic: told for topic, told in self._lost.items() if told is None or told > question}

    def tell(self) -> list[bytes]:
        """What is to be told now: encoded `Lost` structs."""
        topics = [topic for topic, told in self._lost.items() if told is None]
        if not topics:
            return []
        self._lost.update(dict.fromkeys(topics, self._question))
        now = self._clock()
        begins, ends = (min(max(0.0, now - moment), LONGEST_AGO) for moment in (self._begins, self._ends))
        return [
            msgspec.msgpack.encode(Lost(topics[start : start + AT_ONCE], begins, ends))
            for start in range(0, len(topics), AT_ONCE)
        ]

    def report(self, node: Node | None) -> None:
        """Let the server tell the others what is to be told now; if it cannot, the next time."""
        told = self.tell()
        if told and node is not None:
            try:
                node.lost(told)
            except BrokerUnavailable:
                self.untold()
