"""fabric._fleet.wire: what servers tell each other."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies

from fabric._fleet import wire

ID = bytes(range(16))
NAMED = wire.Named(ID, "agent-7", 1.5, ["room.7"])

SAID = [
    wire.Beat(3, hello=True),
    wire.Changes(4, [NAMED, wire.Left(ID), wire.Entered(ID, "a.b"), wire.Exited(ID, "a.b")]),
    wire.Bye(),
    wire.Ask(),
    wire.State(4, part=0, is_last=False, members=[NAMED]),
    wire.Send(1, [ID, ID], 1, b"text"),
    wire.Request(2, ID, 2, b"\x00", 1.5),
    wire.Disconnect(3, [ID], 1008, "why"),
    wire.Unsubscribe(4, [ID], "room.*"),
    wire.Reply(5, wire.Status.FAILED, 0, 2, b"why"),
]


@pytest.mark.parametrize("said", SAID, ids=lambda said: type(said).__name__)
def test_what_is_said_is_heard(said: wire.Spoken) -> None:
    assert wire.decode(wire.encode(said)) == said


@pytest.mark.parametrize(
    "wrong",
    [
        [99],
        [],
        {},
        "beat",
        [10],
        [10, -1, True],
        [10, 1 << 63, True],
        [10, 1.5, True],
        [10, 1, True, "more"],
        [11, 1, [[2, b"short"]]],
        [11, 1, [[2, ID]] * (wire.MOST + 1)],
        [11, 1, [[1, ID, "", 1.5, []]]],
        [11, 1, [[1, ID, "two words", 1.5, []]]],
        [11, 1, [[1, ID, "é" * 128, 1.5, []]]],
        [11, 1, [[1, ID, "name", float("nan"), []]]],
        [11, 1, [[1, ID, "name", -1.0, []]]],
        [11, 1, [[1, ID, "name", 1.5, ["room.*"]]]],
        [11, 1, [[1, ID, "name", 1.5, ["$fleet"]]]],
        [11, 1, [[3, ID, "a..b"]]],
        [21, 1, 0, True, [[1, ID, "a\nb", 1.5, []]]],
        [30, 1, [ID], 8, b""],
        [31, 1, ID, 1, b"", 0.0],
        [32, 1, [ID], 999, ""],
        [40, 1, 7, 0, 1, b""],
    ],
    ids=repr,
)
def test_what_is_malformed(wrong: Any) -> None:
    with pytest.raises(wire.Malformed):
        wire.decode(msgspec.msgpack.encode(wrong))


@hypothesis.given(strategies.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    try:
        said = wire.decode(data)
    except wire.Malformed:
        return
    assert wire.decode(wire.encode(said)) == said


@hypothesis.given(strategies.sampled_from(SAID), strategies.data())
def test_damaged_messages(said: wire.Spoken, draw: strategies.DataObject) -> None:
    data = bytearray(wire.encode(said))
    data[draw.draw(strategies.integers(0, len(data) - 1))] = draw.draw(strategies.integers(0, 255))
    del data[draw.draw(strategies.integers(1, len(data))) :]
    with contextlib.suppress(wire.Malformed):
        wire.decode(bytes(data))


def test_deep_nests() -> None:
    with pytest.raises(wire.Malformed):
        wire.decode(b"\x91" * 100_000)


@pytest.mark.parametrize("name", ["a", "agent-7", "user@example.com", "日本", "é" * 127, "$x", "a.*", "x" * 255])
def test_names(name: str) -> None:
    wire.check_name(name)  # raises nothing


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a b", "white space"),
        (" ", "white space"),
        ("a\n", "white space"),
        ("a\x00", "printed"),
        ("\u2028", "white space"),
        ("\ud800", "printed"),
        ("x" * 256, "255 bytes at most, not 256"),
        ("é" * 128, "255 bytes at most, not 256"),
    ],
)
def test_wrong_names(name: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        wire.check_name(name)


@pytest.mark.parametrize("wrong", [None, 7, b"name", ["name"]])
def test_what_is_no_name(wrong: Any) -> None:
    with pytest.raises(TypeError, match="a name is a str"):
        wire.check_name(wrong)
