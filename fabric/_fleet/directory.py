"""Who is where: the members of all servers, each entry owned by the server that has the client.

Time is passed in, nothing is sent: see `fabric.fleet`. An entry goes with its server, so that none is left of one that
was killed.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fabric._fleet.wire import Changes, Entered, Exited, Left, Named

__all__ = ["Directory", "Entry", "Member", "Node"]

MOST_NODES = 1000  # other servers
MOST_MEMBERS = 1_000_000  # of other servers together


@dataclass(frozen=True, slots=True)
class Member:
    """A client with a name, on this server or another.

    Attributes:
        name: its name.
        id: identity of its connection, as `ConnectedClient.id`.
        node: the server that it is connected to; each start of a server is another one.
        since: when it got the name, as `time.time()`.
    """

    name: str
    id: uuid.UUID
    node: str
    since: float


@dataclass(slots=True, eq=False)
class Entry:
    """A member, and those of its topics that have presence."""

    member: Member
    topics: set[str]


@dataclass(slots=True, eq=False)
class Node:
    """Another server.

    Attributes:
        heard: when it said something last, on the loop's clock.
        version: of what is known of its members; -1: nothing yet.
        asked: when it was asked for its members last.
        entries: by the identities of connections.
        parts: of its state, while that arrives in parts: the version, the number of the next one, and what has come.
    """

    heard: float
    version: int = -1
    asked: float = -math.inf
    entries: dict[bytes, Entry] = field(default_factory=dict)
    parts: tuple[int, int, list[Named]] | None = None


class Directory:
    """The members of all servers, by name and by topic.

    Args:
        own: the server that keeps it.
        on_change: called with True, a topic and a member that has joined it, or False and one that has left.
    """

    def __init__(self, own: bytes, on_change: Callable[[bool, str, Member], None]) -> None:
        self.own = own
        self.nodes: dict[bytes, Node] = {own: Node(math.inf, 0)}
        self._on_change = on_change
        self._names: dict[str, dict[Member, Entry]] = {}
        self._topics: dict[str, dict[Member, Entry]] = {}
        self._foreign = 0  # members of other servers

    def holders(self, name: str) -> list[Member]:
        """Those that have the name, the newest last; every server finds the same order."""
        return sorted(self._names.get(name, ()), key=lambda member: (member.since, member.node, member.id))

    def members(self, topic: str) -> list[Member]:
        """Those that are in a topic with presence, the newest last."""
        return sorted(self._topics.get(topic, ()), key=lambda member: (member.since, member.node, member.id))

    # -- servers

    def meet(self, node: bytes, now: float) -> Node | None:
        """The server that has just said something; None when there are too many to know another one."""
        known = self.nodes.get(node)
        if known is None:
            if len(self.nodes) > MOST_NODES:
                return None
            known = self.nodes[node] = Node(now)
        if node != self.own:
            known.heard = now
        return known

    def forget(self, node: bytes) -> None:
        """A server has gone, and its members with it."""
        for key in list(self.nodes[node].entries):
            self.drop(node, key)
        del self.nodes[node]

    def silent(self, now: float, seconds: float) -> list[bytes]:
        """The servers that have said nothing for so long."""
        # The sum that a timer is set by: `now - seconds` may differ in the last bit, and find nobody at that time.
        return [node for node, known in self.nodes.items() if known.heard + seconds <= now]

    def first_heard(self) -> float:
        """When the server was heard that has been silent for longest; infinity if there is no other."""
        return min(known.heard for known in self.nodes.values())

    def postpone(self, seconds: float) -> None:
        """This server stood still for so many seconds, and could hear no other: move all their deadlines."""
        for known in self.nodes.values():
            known.heard += seconds

    # -- members

    def put(self, node: bytes, named: Named) -> Entry | None:
        """A client has a name; None if there are too many members."""
        known = self.nodes[node]
        old = known.entries.get(named.id)
        member = Member(named.name, uuid.UUID(bytes=named.id), node.hex(), named.since)
        if old is not None and old.member == member:
            for topic in old.topics - set(named.topics):
                self.exit(node, named.id, topic)
            entry = old
        else:
            if old is not None:
                self.drop(node, named.id)
            if node != self.own:
                if self._foreign >= MOST_MEMBERS:
                    return None
                self._foreign += 1
            entry = known.entries[named.id] = Entry(member, set())
            self._names.setdefault(member.name, {})[member] = entry
        for topic in named.topics:
            self.enter(node, named.id, topic)
        return entry

    def drop(self, node: bytes, key: bytes) -> None:
        """A client has ended, or has no name any more."""
        entry = self.nodes[node].entries.get(key)
        if entry is None:
            return
        for topic in sorted(entry.topics):
            self.exit(node, key, topic)
        del self.nodes[node].entries[key]
        _remove(self._names, entry.member.name, entry.member)
        if node != self.own:
            self._foreign -= 1

    def enter(self, node: bytes, key: bytes, topic: str) -> None:
        """A member has joined a topic."""
        entry = self.nodes[node].entries.get(key)
        if entry is None or topic in entry.topics:
            return
        entry.topics.add(topic)
        self._topics.setdefault(topic, {})[entry.member] = entry
        self._on_change(True, topic, entry.member)

    def exit(self, node: bytes, key: bytes, topic: str) -> None:
        """A member has left a topic."""
        entry = self.nodes[node].entries.get(key)
        if entry is None or topic not in entry.topics:
            return
        entry.topics.remove(topic)
        _remove(self._topics, topic, entry.member)
        self._on_change(False, topic, entry.member)

    def change(self, node: bytes, said: Changes) -> list[str]:
        """Do what another server says has changed; return the names that clients have got."""
        names = []
        for one in said.changes:
            if isinstance(one, Named):
                self.put(node, one)
                names.append(one.name)
            elif isinstance(one, Left):
                self.drop(node, one.id)
            elif isinstance(one, Entered):
                self.enter(node, one.id, one.topic)
            elif isinstance(one, Exited):
                self.exit(node, one.id, one.topic)
        self.nodes[node].version = said.version
        return names

    def replace(self, node: bytes, version: int, members: Iterable[Named]) -> list[str]:
        """These are all members of another server; return their names."""
        by_id = {named.id: named for named in members}
        known = self.nodes[node]
        for key in known.entries.keys() - by_id.keys():
            self.drop(node, key)
        for named in by_id.values():
            self.put(node, named)
        known.version = version
        return [named.name for named in by_id.values()]

    def own_members(self) -> list[Named]:
        """The members of this server, as others are told of them."""
        return [
            Named(key, entry.member.name, entry.member.since, sorted(entry.topics))
            for key, entry in self.nodes[self.own].entries.items()
        ]


def _remove(index: dict[str, dict[Member, Entry]], key: str, member: Member) -> None:
    found = index[key]
    del found[member]
    if not found:
        del index[key]
