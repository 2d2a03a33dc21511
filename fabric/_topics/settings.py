"""What holds for a topic: what `Topics.configure` was told for patterns, and which topics fit a pattern."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

from fabric.error import NotSupported
from fabric_ext.topics import check_topic

if TYPE_CHECKING:
    from fabric.broker import Broker

__all__ = ["OnFull", "Order", "Settings", "SettingsByPattern", "fits"]

OnFull = Literal["drop", "close", "latest"]
Order = Literal["local", "broker"]

KNOWN_SETTINGS = 1024  # topics whose settings are remembered
MOST_KEPT = 100_000  # messages of a history
LONGEST_TTL = 30 * 86400  # seconds


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for a topic."""

    on_full: OnFull = "drop"
    presence: bool = False
    history: int = 0
    ttl: float = 300.0
    order: Order = "local"


class SettingsByPattern:
    """The settings of all topics of a server.

    Args:
        default: of topics for which nothing was configured.
        broker: of the server; some keep no histories.
    """

    def __init__(self, default: Settings, broker: Broker) -> None:
        self._default = default
        self._broker = broker
        self._configured: list[tuple[str, dict[str, Any]]] = []
        self._known: dict[str, Settings] = {}

    def configure(
        self,
        pattern: str,
        *,
        on_full: OnFull | None,
        presence: bool | None,
        history: int | None,
        ttl: float | timedelta | None,
        order: Order | None,
    ) -> None:
        """See `Topics.configure`."""
        check_topic(pattern, pattern=True)
        if on_full is not None and on_full not in get_args(OnFull):
            raise ValueError(f"on_full is {on_full!r}, allowed are: {', '.join(map(repr, get_args(OnFull)))}")
        if presence is not None and not isinstance(presence, bool):
            raise TypeError(f"presence is {presence!r}, allowed are True and False")
        if history is not None:
            if type(history) is not int or not 0 <= history <= MOST_KEPT:
                raise ValueError(f"history is {history!r}, allowed are 0 to {MOST_KEPT} messages")
            if history and not self._broker.keeps_histories:
                raise NotSupported(f"history={history}: the broker {self._broker!r} keeps no histories")
        if ttl is not None:
            ttl = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
            if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl <= LONGEST_TTL:
                raise ValueError(f"ttl is {ttl!r}, allowed is a duration above 0 and up to {LONGEST_TTL} seconds")
        if order is not None:
            if order not in get_args(Order):
                raise ValueError(f"order is {order!r}, allowed are: {', '.join(map(repr, get_args(Order)))}")
            if order == "broker" and not self._broker.keeps_histories:
                raise NotSupported(f"order='broker': the broker {self._broker!r} keeps no histories")
            if order == "local" and history:
                raise ValueError(f"order is 'local', but with history={history} it is that of the offsets: 'broker'")
        given = {"on_full": on_full, "presence": presence, "history": history, "ttl": ttl, "order": order}
        self._configured.append((pattern, {name: value for name, value in given.items() if value is not None}))
        self._known.clear()

    def of(self, topic: str) -> Settings:
        """What holds for a topic."""
        known = self._known.get(topic)
        if known is None:
            fitting: dict[str, Any] = {}
            for pattern, given in self._configured:
                if fits(pattern, topic):
                    fitting |= given
            if fitting.get("history"):
                fitting.setdefault("on_full", "close")
                fitting["order"] = "broker"
            elif fitting.get("order") == "broker":  # the history is what numbers messages for all servers
                fitting["history"] = 1
            known = replace(self._default, **fitting)
            if len(self._known) >= KNOWN_SETTINGS:
                self._known.clear()
            self._known[topic] = known
        return known

    def has_history(self, topic: str) -> bool:
        """Are messages of this topic kept? False for what is no name of a topic, which is checked elsewhere."""
        return bool(self._configured) and isinstance(topic, str) and self.of(topic).history > 0

    def history_limits(self, topic: str) -> tuple[int, float]:
        """How many messages of a topic are kept, and for how many seconds."""
        settings = self.of(topic)
        return settings.history, settings.ttl


def fits(pattern: str, topic: str) -> bool:
    """Does a topic fit a pattern?"""
    wanted, tokens = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(a in ("*", b) for a, b in zip(wanted, tokens, strict=True))
