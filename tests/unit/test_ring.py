"""fabric_ext.ring against collections.deque."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from typing import TYPE_CHECKING

import pytest

from fabric_ext.ring import Ring

if TYPE_CHECKING:
    import random


class Item:
    """Something that a weak reference can watch."""


def test_first_in_first_out() -> None:
    ring = Ring()
    for number in range(100):
        ring.append(number)
    assert len(ring) == 100
    assert [ring.popleft() for _ in range(100)] == list(range(100))
    assert len(ring) == 0


def test_pop_from_an_empty_ring() -> None:
    ring = Ring()
    with pytest.raises(IndexError):
        ring.popleft()
    ring.append(1)
    ring.popleft()
    with pytest.raises(IndexError):
        ring.popleft()
    assert len(ring) == 0


@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17, 1000])
@pytest.mark.parametrize("start", [0, 1, 5, 7])
def test_growing_while_the_contents_wrap_around(size: int, start: int) -> None:
    ring = Ring()
    for number in range(start):  # move the head away from the first slot
        ring.append(number)
    for _ in range(start):
        ring.popleft()
    for number in range(size):
        ring.append(number)
    assert [ring.popleft() for _ in range(size)] == list(range(size))


def test_random_operations_as_a_deque_does_them(rng: random.Random) -> None:
    ring, model = Ring(), deque[int]()
    number = 0
    for _ in range(200):
        for _ in range(rng.choice((1, 5, 20, 100))):
            ring.append(number)
            model.append(number)
            number += 1
        for _ in range(rng.choice((1, 5, 20, 100, len(model)))):
            if model:
                assert ring.popleft() == model.popleft()
        assert len(ring) == len(model)
    assert number > 2000
    while model:
        assert ring.popleft() == model.popleft()


def test_nothing_is_kept_alive_once_taken_and_everything_before() -> None:
    ring = Ring()
    watched = []
    for _ in range(50):
        item = Item()
        watched.append(weakref.ref(item))
        ring.append(item)
        del item
    assert all(reference() is not None for reference in watched)
    for _ in range(20):
        ring.popleft()
    assert [reference() is None for reference in watched] == [True] * 20 + [False] * 30
    del ring
    assert all(reference() is None for reference in watched)


def test_a_finaliser_that_uses_the_ring_while_it_is_cleared() -> None:
    ring = Ring()
    seen = []

    class Nosy:
        def __del__(self) -> None:
            seen.append(len(ring))

    ring.append(Nosy())
    ring.append(Nosy())
    ring.popleft()
    ring.popleft()
    assert seen == [1, 0]


def test_a_ring_in_a_cycle_is_not_lost_to_the_collector() -> None:
    ring = Ring()
    item = Item()
    item.ring = ring  # type: ignore[attr-defined]
    ring.append(item)
    watched = weakref.ref(item)
    ring.popleft()  # what breaks the cycle: a ring's slots are not searched by the collector
    del ring, item
    gc.collect()
    assert watched() is None
