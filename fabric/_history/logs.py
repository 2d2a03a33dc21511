"""The histories of a server without a broker: they are kept in its memory, and lost when it ends."""

from __future__ import annotations

import hashlib
import heapq
import os
import time
from collections.abc import Callable, Iterable

from fabric._history.log import Log
from fabric.history import History, Position
from fabric.message import Message

__all__ = ["Logs"]

QUIET = 3600.0  # seconds for which a topic is remembered that has nothing to keep any more


class Logs:
    """The windows of all topics with history that have had a message or have a subscriber.

    A topic that has no subscribers, and has been quiet for its `ttl` and an hour, is forgotten: its epoch ends. One
    without any message is forgotten with its last subscriber, else clients could have as many as they can think of.

    Args:
        has_subscribers: has a topic subscribers?
        limits: says how many messages of a topic are kept, and for how many seconds.
        clock: seconds.
    """

    def __init__(
        self,
        has_subscribers: Callable[[str], bool],
        limits: Callable[[str], tuple[int, float]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._has_subscribers = has_subscribers
        self._limits = limits
        self._clock = clock
        self._seed = os.urandom(16)  # of epochs; another one after a topic was forgotten
        self._logs: dict[str, Log] = {}
        self._due: list[tuple[float, str]] = []  # a heap: when to see whether a topic may be forgotten

    def __len__(self) -> int:
        return len(self._logs)

    def add(self, topic: str, message: Message) -> Position:
        """Number a message, and keep it."""
        log = self._current(topic)
        is_first = not log.top
        log.add(message, self._clock())
        if is_first:
            heapq.heappush(self._due, (self._end(topic, log), topic))
        self._trim(topic, log)
        return log.position

    def read(self, topic: str, since: Position | None) -> History:
        """What comes after `since`, for a subscriber: the topic begins if it has not."""
        log = self._current(topic)
        self._trim(topic, log)
        return log.read(since)

    def peek(self, topic: str, since: Position | None, limit: int | None, *, reverse: bool) -> History:
        """See `Log.read`: no topic begins by that."""
        self._forget_old()
        log = self._logs.get(topic)
        if log is None:
            log = Log(self._epoch(topic))
        else:
            self._trim(topic, log)
        return log.read(since, limit, reverse=reverse)

    def catch_up(self, topic: str, since: Position | None, recent: int) -> History:
        """See `Log.catch_up`."""
        log = self._current(topic)
        self._trim(topic, log)
        return log.catch_up(since, recent)

    def _epoch(self, topic: str) -> str:
        """The epoch that a topic has when it begins."""
        return hashlib.blake2b(topic.encode(), digest_size=8, key=self._seed).hexdigest()

    def _current(self, topic: str) -> Log:
        self._forget_old()
        log = self._logs.get(topic)
        if log is None:
            log = self._logs[topic] = Log(self._epoch(topic))
        return log

    def unheard(self, topics: Iterable[str]) -> None:
        """These topics and patterns have no subscribers any more."""
        for topic in topics:
            log = self._logs.get(topic)
            if log is not None and not log.top and not self._has_subscribers(topic):
                del self._logs[topic]

    def _trim(self, topic: str, log: Log) -> None:
        size, ttl = self._limits(topic)
        log.trim(size, self._clock() - ttl)

    def _end(self, topic: str, log: Log) -> float:
        return log.touched + self._limits(topic)[1] + QUIET

    def _forget_old(self) -> None:
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            topic = self._due[0][1]
            log = self._logs[topic]
            end = self._end(topic, log)
            if self._has_subscribers(topic):
                end = max(end, now + QUIET)
            if end > now:
                self._trim(topic, log)
                heapq.heapreplace(self._due, (end, topic))
            else:
                heapq.heappop(self._due)
                del self._logs[topic]
                self._seed = os.urandom(16)
