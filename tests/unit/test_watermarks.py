"""fabric_ext.watermarks: two counts, and the marks at which waiting begins and ends."""

from __future__ import annotations

import random

import pytest

from fabric_ext.watermarks import BEGAN, COUNTED, FULL, Watermarks


def marks(messages: int = 10, size: int = 1000, high: float = 0.8, low: float = 0.6) -> Watermarks:
    return Watermarks(max_messages=messages, max_bytes=size, high=high, low=low)


def test_it_begins_at_the_high_mark_and_ends_at_the_low_one() -> None:
    level = marks()
    assert [level.add_if_room(0) for _ in range(11)] == [COUNTED] * 7 + [BEGAN] + [COUNTED] * 2 + [FULL]
    assert level.is_active
    assert [level.remove(0) for _ in range(10)] == [False] * 3 + [True] + [False] * 6
    assert (level.messages, level.bytes, level.is_active) == (0, 0, False)


def test_bytes_count_too() -> None:
    level = marks()
    assert level.add(799) is False
    assert level.add(1) is True
    assert level.level() == 0.8
    assert not level.fits(201)
    assert level.fits(200)


def test_while_it_is_active_only_some_are_counted() -> None:
    level = marks()
    level.add(800)
    assert level.add_if_room(1, True) == FULL
    assert level.add_if_room(1) == COUNTED


def test_a_large_one_fits_alone() -> None:
    level = marks()
    assert level.add_if_room(5000) == BEGAN
    assert level.add_if_room(0) == FULL
    assert level.level() == 5


def test_what_was_not_counted_cannot_leave() -> None:
    level = marks()
    with pytest.raises(ValueError, match="0 messages of 0 bytes"):
        level.remove(0)
    level.add(5)
    with pytest.raises(ValueError, match="1 messages of 5 bytes"):
        level.remove(6)
    assert (level.messages, level.bytes) == (1, 5)


def test_against_a_list(rng: random.Random) -> None:
    level = marks()
    sizes: list[int] = []
    active = False
    for _ in range(2000):
        size = rng.randrange(300)
        if sizes and rng.random() < 0.5:
            ended = level.remove(sizes.pop(rng.randrange(len(sizes))))
            assert ended == (active and max(len(sizes) / 10, sum(sizes) / 1000) <= 0.6)
            active = active and not ended
        elif level.add_if_room(size) != FULL:
            sizes.append(size)
            active = active or max(len(sizes) / 10, sum(sizes) / 1000) >= 0.8
        assert (level.messages, level.bytes, level.is_active) == (len(sizes), sum(sizes), active)
