"""What subscribers may have missed while the broker was away, from this server or another one; `on_gap` is told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

import msgspec

from fabric._connection.events import log_event
from fabric._topics.settings import fits
from fabric.broker import is_pattern
from fabric.broker.losses import EVERYTHING, Lost

if TYPE_CHECKING:
    from fabric_ext.topics import Index

__all__ = ["Gaps"]

ON_ITS_WAY = 1.0  # seconds for which a message may have been under way when the broker was last heard

logger = logging.getLogger("fabric.topics")


class Gaps:
    """Reports gaps of the topics and patterns that have subscribers.

    Args:
        index: which client has subscribed to what.

    Attributes:
        on_gap: see `Topics.on_gap`.
        recovered: topics of which nothing is missed, as their history is read once the broker is back.
    """

    def __init__(self, index: Index) -> None:
        self.on_gap: Callable[[str, float], Any] | None = None
        self.recovered: Container[str] = ()
        self._index = index
        self._reported = 0.0, 0.0  # begin and end of the latest gap of this server's own connection

    def was_away(self, since: float) -> None:
        """The broker was away from this server since then, as `time.time()`, and is back."""
        self._reported = since - ON_ITS_WAY, time.time()
        for topic in self._index.names():
            if topic not in self.recovered:
                self.report(topic, since)

    def hear(self, told: bytes) -> None:
        """What another server has published may be lost; `told` is its `Lost`, as MessagePack."""
        try:
            lost = msgspec.msgpack.decode(told, type=Lost)
        except msgspec.MsgspecError:
            log_event(logger, logging.DEBUG, "another server said something malformed")
            return
        now = time.time()
        begin, end = now - lost.begins, now - lost.ends
        if self._reported[0] <= begin and end <= self._reported[1]:
            return  # the broker was away from all, and that is reported already
        topics = set(lost.topics)
        for name in self._index.names():
            if name in self.recovered:
                continue
            if (
                name in topics
                or EVERYTHING in topics
                or (is_pattern(name) and any(fits(name, topic) for topic in topics))
            ):
                self.report(name, begin)

    def report(self, topic: str, heard: float) -> None:
        """Call `on_gap`, with a time before which all was `heard`; what it raises is logged."""
        if self.on_gap is None:
            return
        try:
            self.on_gap(topic, heard - ON_ITS_WAY)
        except (Exception, asyncio.CancelledError, GeneratorExit) as error:  # noqa: BLE001  (none may end the broker's life)
            log_event(logger, logging.ERROR, "on_gap raised", exc_info=error)
