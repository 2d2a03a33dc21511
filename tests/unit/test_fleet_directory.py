"""fabric._fleet.directory: who is where, and what goes with a server."""

from __future__ import annotations

import math
import random

import pytest

from fabric._fleet import directory as module
from fabric._fleet.directory import Directory, Member
from fabric._fleet.wire import Changes, Entered, Exited, Left, Named

OWN, FAR, THIRD = b"own-----", b"far-----", b"third---"


class Told:
    """What a directory has reported: topics and names that joined, and left."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.members: dict[str, set[Member]] = {}

    def __call__(self, has_joined: bool, topic: str, member: Member) -> None:
        self.events.append(("+" if has_joined else "-", topic, member.name))
        if has_joined:
            assert member not in self.members.setdefault(topic, set())
            self.members[topic].add(member)
        else:
            self.members[topic].remove(member)

    def take(self) -> list[tuple[str, str, str]]:
        events, self.events = self.events, []
        return events


def key(number: int) -> bytes:
    return number.to_bytes(16)


def named(number: int, name: str, *topics: str, since: float = 0.0) -> Named:
    return Named(key(number), name, since, list(topics))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def directory(told: Told) -> Directory:
    directory = Directory(OWN, told)
    directory.meet(FAR, 0.0)
    return directory


def names(members: list[Member]) -> list[str]:
    return [member.name for member in members]


def test_holders_are_in_order_of_their_names(directory: Directory) -> None:
    directory.put(FAR, named(1, "a", since=2.0))
    directory.put(OWN, named(2, "a", since=1.0))
    directory.put(OWN, named(3, "a", since=2.0))
    assert [member.id.int for member in directory.holders("a")] == [2, 1, 3]  # FAR.hex() is less than OWN.hex()
    assert directory.holders("b") == []
    assert [member.node for member in directory.holders("a")] == [OWN.hex(), FAR.hex(), OWN.hex()]


def test_joining_and_leaving(directory: Directory, told: Told) -> None:
    directory.put(FAR, named(1, "a", "t", "u"))
    directory.enter(FAR, key(1), "v")
    directory.enter(FAR, key(1), "v")
    directory.exit(FAR, key(1), "u")
    directory.exit(FAR, key(1), "u")
    directory.enter(FAR, key(9), "t")
    directory.exit(FAR, key(9), "t")
    directory.drop(FAR, key(9))
    assert told.take() == [("+", "t", "a"), ("+", "u", "a"), ("+", "v", "a"), ("-", "u", "a")]
    assert names(directory.members("t")) == ["a"]
    assert directory.members("u") == []
    directory.drop(FAR, key(1))
    assert told.take() == [("-", "t", "a"), ("-", "v", "a")]
    assert directory.members("t") == []
    assert directory.holders("a") == []
    assert not directory._names
    assert not directory._topics


def test_another_name(directory: Directory, told: Told) -> None:
    directory.put(FAR, named(1, "a", "t"))
    directory.put(FAR, named(1, "b", "t", since=1.0))
    assert told.take() == [("+", "t", "a"), ("-", "t", "a"), ("+", "t", "b")]
    assert directory.holders("a") == []
    assert names(directory.members("t")) == ["b"]


def test_the_same_again_reports_the_difference(directory: Directory, told: Told) -> None:
    directory.put(FAR, named(1, "a", "t", "u"))
    told.take()
    directory.put(FAR, named(1, "a", "u", "v"))
    assert told.take() == [("-", "t", "a"), ("+", "v", "a")]


def test_a_server_goes_with_its_members(directory: Directory, told: Told) -> None:
    directory.put(FAR, named(1, "a", "t"))
    directory.put(OWN, named(2, "b", "t"))
    directory.forget(FAR)
    assert told.take() == [("+", "t", "a"), ("+", "t", "b"), ("-", "t", "a")]
    assert names(directory.members("t")) == ["b"]
    assert directory.silent(math.inf, 0) == [OWN]


def test_silence(directory: Directory) -> None:
    assert directory.silent(4.4, 4.5) == []
    assert directory.silent(4.5, 4.5) == [FAR]
    directory.meet(FAR, 5.0)
    directory.meet(THIRD, 4.0)
    assert directory.first_heard() == 4.0
    assert directory.silent(9.0, 4.5) == [THIRD]
    directory.postpone(1.0)
    assert directory.silent(9.0, 4.5) == []
    assert directory.first_heard() == 5.0


def test_a_timer_set_by_the_first_heard_finds_it_silent(directory: Directory, rng: random.Random) -> None:
    """Once it did not, by the last bit of a float, and the timer was set again for the same time, for ever."""
    for _ in range(1000):
        directory.meet(FAR, rng.uniform(1000, 2000))
        assert directory.silent(directory.first_heard() + 6.0, 6.0) == [FAR]


def test_the_own_server_is_never_silent() -> None:
    directory = Directory(OWN, Told())
    directory.meet(OWN, 0.0)
    directory.postpone(1.0)
    assert directory.silent(1e9, 1.0) == []


def test_changes_and_whole_states(directory: Directory, told: Told) -> None:
    said = Changes(7, [named(1, "a"), Entered(key(1), "t"), named(2, "b", "t"), Exited(key(1), "t"), Left(key(2))])
    assert directory.change(FAR, said) == ["a", "b"]
    assert directory.nodes[FAR].version == 7
    assert told.take() == [("+", "t", "a"), ("+", "t", "b"), ("-", "t", "a"), ("-", "t", "b")]
    assert directory.replace(FAR, 9, [named(2, "b", "t"), named(3, "c")]) == ["b", "c"]
    assert directory.nodes[FAR].version == 9
    assert told.take() == [("+", "t", "b")]
    assert directory.holders("a") == []
    assert names(directory.holders("c")) == ["c"]


def test_bounds(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NODES", 2)
    monkeypatch.setattr(module, "MOST_MEMBERS", 3)
    assert directory.meet(THIRD, 0.0) is not None
    assert directory.meet(b"fourth--", 0.0) is None
    assert directory.meet(THIRD, 1.0) is not None
    for number in range(5):
        directory.put(FAR, named(number, f"far-{number}", "t"))
        assert directory.put(OWN, named(number, f"own-{number}"))
    assert names(directory.members("t")) == ["far-0", "far-1", "far-2"]
    directory.drop(FAR, key(0))
    directory.put(THIRD, named(7, "third", "t"))
    assert len(directory.members("t")) == 3
    directory.forget(FAR)
    directory.forget(THIRD)
    assert directory._foreign == 0


def test_whatever_happens_it_agrees_with_what_it_has_reported(rng: random.Random, told: Told) -> None:
    """A model: for each server and identity the name and the topics."""
    directory = Directory(OWN, told)
    nodes = (OWN, FAR, THIRD)
    model: dict[bytes, dict[bytes, tuple[str, set[str]]]] = {node: {} for node in nodes}
    for step in range(500):
        node = rng.choice(nodes)
        directory.meet(node, float(step))
        who, topic, name = key(rng.randrange(5)), rng.choice("tuv"), rng.choice("abc")
        action = rng.randrange(100)
        if action < 30:
            topics = set(rng.sample("tuv", rng.randrange(4)))
            directory.put(node, Named(who, name, 1.0, sorted(topics)))
            model[node][who] = name, topics
        elif action < 45:
            directory.drop(node, who)
            model[node].pop(who, None)
        elif action < 95:
            (directory.enter if action < 70 else directory.exit)(node, who, topic)
            if who in model[node]:
                (set.add if action < 70 else set.discard)(model[node][who][1], topic)
        elif node != OWN:
            directory.forget(node)
            model[node] = {}
        for letter in "tuv":
            expected = {(n.hex(), w) for n in nodes for w, (_, topics) in model[n].items() if letter in topics}
            assert {(m.node, m.id.bytes) for m in directory.members(letter)} == expected
            assert set(directory.members(letter)) == told.members.get(letter, set())
        for letter in "abc":
            expected = {(n.hex(), w) for n in nodes for w, (known, _) in model[n].items() if known == letter}
            assert {(m.node, m.id.bytes) for m in directory.holders(letter)} == expected
