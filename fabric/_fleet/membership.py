"""Keeps a server's directory of members in step with the other servers': what it tells them of its own, and hears.

Owns the timer of beats, the versions and parts of states, and the time in which others answer a server that comes.
Knows nothing of this server's clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fabric._connection.events import log_event
from fabric._fleet.directory import MOST_MEMBERS, Directory, Member, Node
from fabric._fleet.wire import Ask, Beat, Bye, Changes, Entered, Exited, Left, Named, Spoken, State, encode
from fabric.broker import BrokerUnavailable

if TYPE_CHECKING:
    from fabric.topics import Topics

__all__ = ["EVERYBODY", "Membership", "inbox"]

BEAT = 2.0  # seconds
SILENCE = 6.0  # seconds after which a server is forgotten
SETTLING = 0.5  # seconds in which the others answer one that comes, or comes back
LATE = 0.5  # seconds; a timer that is later says that this server stood still
ASKED = 1.0  # seconds until a server that has not told its state is asked again
AT_ONCE = 1000  # changes in one message
PART = 64 << 10  # bytes of names and topics in one part of a state

EVERYBODY = "$fleet"

logger = logging.getLogger("fabric.fleet")


class Membership:
    """What one server knows of the members of all, and how it comes to know it.

    Args:
        topics: those of the server, whose broker it uses.
        on_change: called with True, a topic and a member that has joined it, or False and one that has left.
        on_named: called with a name that a client of another server has got.
        on_gone: called with a server that has gone.

    Attributes:
        directory: the members.
        loop: the event loop, from start to stop; None otherwise.
    """

    def __init__(
        self,
        topics: Topics,
        on_change: Callable[[bool, str, Member], None],
        on_named: Callable[[str], None],
        on_gone: Callable[[bytes], None],
    ) -> None:
        self.directory = Directory(topics._node, on_change)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._topics = topics
        self._on_named = on_named
        self._on_gone = on_gone
        self._has_begun = False
        self._version = 0
        self._changes: list[Named | Left | Entered | Exited] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = self._next_beat = 0.0
        self._settled_at = 0.0  # on the loop's clock
        self._news = asyncio.Event()

    # -- life

    @property
    def is_running(self) -> bool:
        """Does it tell the other servers of its members, and hear of theirs?"""
        return self._has_begun and self.loop is not None

    def begin(self) -> None:
        """Tell the others that this server is there, and ask who they have; from `loop` on, and once."""
        if self._has_begun or self.loop is None:
            return
        self._has_begun = True
        if not self._topics._is_shared:
            return
        self._topics.broker.subscribe((EVERYBODY, inbox(self.directory.own)))
        self._greet()
        self._next_beat = self.loop.time() + BEAT
        self._set_timer()

    def stop(self) -> None:
        """The server shuts down: hear and tell nothing more of members."""
        self.loop = None
        if self._timer is not None:
            self._timer.cancel()

    def say_bye(self) -> None:
        """Tell the others that this server has shut down."""
        if self._has_begun and self._topics._is_shared:
            self.say(EVERYBODY, Bye())

    def _greet(self) -> None:
        """Say that this server is there, and give the others a moment to say who they have."""
        assert self.loop is not None
        self.tell_changes()
        self.say(EVERYBODY, Beat(self._version, hello=True))
        self._settled_at = self.loop.time() + SETTLING

    def broker_is_back(self) -> None:
        """What others have said meanwhile may be lost."""
        if self.is_running:
            self._greet()

    def _set_timer(self) -> None:
        assert self.loop is not None
        self._due = min(self._next_beat, self.directory.first_heard() + SILENCE)
        self._timer = self.loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        assert self.loop is not None
        now = max(self.loop.time(), self._due)  # a timer may come early, by the clock's resolution
        if now - self._due > LATE:
            self.directory.postpone(now - self._due)
        if now >= self._next_beat:
            self._next_beat = now + BEAT
            self.tell_changes()
            self.say(EVERYBODY, Beat(self._version, hello=False))
        for node in self.directory.silent(now, SILENCE):
            log_event(
                logger,
                logging.WARNING,
                "server %s has been silent for %g seconds: its members are gone",
                node.hex(),
                SILENCE,
            )
            self._forget(node)
        self._set_timer()

    def _forget(self, node: bytes) -> None:
        self.directory.forget(node)
        self._on_gone(node)

    # -- until the others have said who they have

    async def settle(self) -> None:
        """Wait until the other servers have had time to say who they have."""
        if self.loop is not None and (left := self._settled_at - self.loop.time()) > 0:
            await asyncio.sleep(left)

    async def news(self) -> bool:
        """Wait until another server has said who it has; False where all have had time to."""
        if self.loop is None or self.loop.time() >= self._settled_at:
            return False
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._settled_at):
                await self._news.wait()
        return True

    # -- what this server tells

    def say(self, topic: str, said: Spoken, *, must: bool = False) -> None:
        """Tell other servers. What is lost is noticed by the number of the next thing that they hear.

        Raises:
            BrokerUnavailable: the broker does not take it, and it must be said.
        """
        try:
            self._topics._tell(topic, encode(said))
        except BrokerUnavailable:
            if must:
                raise

    def announce(self, change: Named | Left | Entered | Exited) -> None:
        """Tell the other servers at the end of the turn."""
        if not self._topics._is_shared or self.loop is None:
            return
        if not self._changes:
            self.loop.call_soon(self.tell_changes)
        self._changes.append(change)

    def tell_changes(self) -> None:
        """Tell the other servers now what is to be announced."""
        if self.loop is None:
            return
        changes, self._changes = self._changes, []
        for start in range(0, len(changes), AT_ONCE):
            self._version += 1
            self.say(EVERYBODY, Changes(self._version, changes[start : start + AT_ONCE]))

    def tell_state(self, node: bytes) -> None:
        """Tell another server who is here."""
        self.tell_changes()
        parts: list[list[Named]] = [[]]
        size = 0
        for named in self.directory.own_members():
            weight = 32 + len(named.name) + sum(map(len, named.topics))
            if size + weight > PART and parts[-1]:
                parts.append([])
                size = 0
            parts[-1].append(named)
            size += weight
        for number, members in enumerate(parts):
            self.say(inbox(node), State(self._version, number, number == len(parts) - 1, members))

    # -- what it hears

    def meet(self, node: bytes) -> bool:
        """Another server has said something; False if there are too many to know this one."""
        assert self.loop is not None
        return self.directory.meet(node, self.loop.time()) is not None

    def hear(self, node: bytes, said: Beat | Changes | State | Ask) -> None:
        """A server that was met has said something about members."""
        known = self.directory.nodes[node]
        if isinstance(said, Beat):
            if said.hello:
                self.tell_state(node)
            if said.version != known.version:
                self._ask(node, known, said.version)
        elif isinstance(said, Changes):
            if said.version == known.version + 1 and known.version >= 0:
                self._heard_names(self.directory.change(node, said))
            elif said.version > known.version:
                self._ask(node, known, said.version)
        elif isinstance(said, State):
            self._hear_state(node, known, said)
        else:
            self.tell_state(node)

    def hear_bye(self, node: bytes) -> None:
        """Another server has shut down."""
        if node in self.directory.nodes:
            self._forget(node)

    def _ask(self, node: bytes, known: Node, version: int) -> None:
        """What is known of a server is not what it has; ask it, once for all that arrives until it answers."""
        assert self.loop is not None
        now = self.loop.time()
        if version == 0:
            known.version = 0  # it has had no members
        elif now - known.asked >= ASKED:
            known.asked = now
            self.say(inbox(node), Ask())

    def _hear_state(self, node: bytes, known: Node, said: State) -> None:
        parts, known.parts = known.parts, None
        if said.part == 0:
            parts = said.version, 0, []
        if parts is None or parts[:2] != (said.version, said.part):
            return  # a part is lost; it is asked again after the next beat
        members = parts[2]
        members += said.members
        if not said.is_last and len(members) < MOST_MEMBERS:
            known.parts = said.version, said.part + 1, members
        else:
            known.asked = -math.inf
            self._heard_names(self.directory.replace(node, said.version, members))

    def _heard_names(self, names: Iterable[str]) -> None:
        for name in names:
            self._on_named(name)
        self._news.set()


def inbox(node: bytes) -> str:
    """What a server alone hears."""
    return f"{EVERYBODY}.{node.hex()}"
