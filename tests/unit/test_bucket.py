"""fabric_ext.bucket against a slow bucket of fractions, in time that the tests make up."""

from __future__ import annotations

import copy
import pickle
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_ext.bucket import NEVER, NO_MESSAGE, RateGate, TokenBucket

SECOND = 10**9


class SlowBucket:
    """The bucket of the textbook: a level that rises with time up to the burst, exact by fractions."""

    def __init__(self, rate: Fraction, burst: int, now: int) -> None:
        self.per_ns = rate / SECOND
        self.burst = burst
        self.level = Fraction(burst)
        self.now = now

    def advance(self, now: int) -> None:
        self.level = min(Fraction(self.burst), self.level + (now - self.now) * self.per_ns)
        self.now = now

    def take(self, n: int) -> bool:
        if n > self.level:
            return False
        self.level -= n
        return True

    def wait_ns(self, n: int) -> int:
        if n > self.burst:
            return NEVER
        return max(0, -((self.level - n) // self.per_ns))  # rounded up

    def reserve(self, n: int) -> int:
        wait = self.wait_ns(n)
        if wait != NEVER:
            self.level -= n
        return wait

    def give_back(self, n: int) -> None:
        self.level = min(Fraction(self.burst), self.level + n)

    def available(self) -> int:
        return max(0, int(self.level))


rates = st.one_of(
    st.integers(1, 10**12),
    st.sampled_from([3, 7, 10**7, 0.5, 0.1, 1 / 3, 33.3, 1e-3, 123456.789]),
    st.fractions(min_value=Fraction(1, 10**6), max_value=10**6, max_denominator=10**9),
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "reserve", "give_back", "look"]),
        st.integers(0, 120),
        st.one_of(st.integers(0, 3), st.integers(0, 10 * SECOND), st.integers(0, 10**17)),
    ),
    max_size=60,
)


@given(rate=rates, burst=st.integers(1, 100), start=st.integers(0, 2**60), steps=steps)
@settings(max_examples=300, deadline=None)
def test_agrees_with_the_slow_bucket(
    rate: float | Fraction, burst: int, start: int, steps: list[tuple[str, int, int]]
) -> None:
    now = start
    bucket = TokenBucket(rate, burst)
    slow = SlowBucket(bucket.rate, burst, now)
    for action, n, elapsed in steps:
        now += elapsed
        slow.advance(now)
        if action == "take":
            assert bucket.take(n, now) == slow.take(n)
        elif action == "reserve":
            assert bucket.reserve(n, now) == slow.reserve(n)
        elif action == "give_back":
            # More than the burst cannot have been taken by one caller.
            bucket.give_back(min(n, burst))
            slow.give_back(min(n, burst))
        assert bucket.available(now) == slow.available()
        assert bucket.wait_ns(n, now) == slow.wait_ns(n)


@given(rate=rates, burst=st.integers(1, 100), n=st.integers(1, 100), start=st.integers(0, 2**60))
def test_the_wait_is_exact_to_the_nanosecond(rate: float | Fraction, burst: int, n: int, start: int) -> None:
    n = min(n, burst)
    bucket = TokenBucket(rate, burst)
    assert bucket.take(burst, start)
    wait = bucket.wait_ns(n, start)
    assert not bucket.take(n, start + wait - 1)
    assert bucket.take(n, start + wait)


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(-(10**8), 10**9)), max_size=100))
def test_a_clock_that_goes_back_gives_no_extra_tokens(takes: list[tuple[int, int]]) -> None:
    bucket = TokenBucket(3, 10)
    now = 10**12
    admitted = 0
    times: list[int] = []  # the first is when the bucket is full
    for n, elapsed in takes:
        now += elapsed
        times.append(now)
        admitted += n * bucket.take(n, now)
        assert admitted <= 10 + 3 * Fraction(max(times) - times[0], SECOND)


@pytest.mark.parametrize("rate", [3, 7, Fraction(1, 3), 0.5, 10**7, 999_999_937])
def test_no_drift(rng: random.Random, rate: float | Fraction) -> None:
    """As many tokens as fit into the time, not one more or fewer, after many uneven steps of a greedy one."""
    bucket = TokenBucket(rate, 10**9)
    now = start = rng.randrange(2**40)
    assert bucket.take(10**9, now)  # begin empty
    taken = 0
    for _ in range(20_000):
        now += rng.randrange(1, 40_000_000)
        n = bucket.available(now)
        assert bucket.take(n, now)
        taken += n
    assert taken == int(bucket.rate * (now - start) / SECOND)


def test_a_billion_tokens_end_on_the_exact_nanosecond() -> None:
    bucket = TokenBucket(3, 10_000)
    waits = [bucket.reserve(10_000, 0) for _ in range(100_000)]
    wait = waits[-1]
    assert wait == -(-(10**9 - 10_000) * SECOND // 3)
    assert not bucket.take(0, wait - 1)
    assert bucket.take(0, wait)


def test_starts_full_and_reset_fills_it() -> None:
    bucket = TokenBucket(1, 5)
    assert bucket.take(5, 0)
    assert not bucket.take(1, 0)
    bucket.reset()
    assert bucket.available(0) == 5


def test_more_than_the_burst_is_never_admitted() -> None:
    bucket = TokenBucket(10, 5)
    assert not bucket.take(6, 10**18)
    assert bucket.wait_ns(6, 0) == bucket.reserve(6, 0) == NEVER
    assert bucket.available(0) == 5


def test_negative_amounts_are_refused() -> None:
    bucket = TokenBucket(10, 5)
    assert not bucket.take(-1, 0)
    assert bucket.wait_ns(-1, 0) == bucket.reserve(-1, 0) == NEVER
    bucket.take(3, 0)
    bucket.give_back(-2)
    assert bucket.available(0) == 2


def test_giving_back_never_overfills() -> None:
    bucket = TokenBucket(1, 5)
    bucket.take(2, 0)
    for _ in range(1000):
        bucket.give_back(2**62)
    assert bucket.available(0) == 5
    assert bucket.take(5, 0)
    assert not bucket.take(1, 0)


def test_reservations_queue_up_in_order_and_can_be_cancelled() -> None:
    bucket = TokenBucket(10, 1)
    assert [bucket.reserve(1, 0) for _ in range(4)] == [0, 10**8, 2 * 10**8, 3 * 10**8]
    bucket.give_back(1)
    assert bucket.reserve(1, 0) == 3 * 10**8


@pytest.mark.parametrize("rate", [10**18, 1, 1e-9])
@pytest.mark.parametrize("burst", [2**63 - 1, 1])
def test_the_largest_numbers_do_not_wrap(rate: float, burst: int) -> None:
    for now in (0, 2**63 - 1, -(2**63)):
        bucket = TokenBucket(rate, burst)
        assert bucket.available(now) == burst
        assert bucket.take(burst, now)
        assert bucket.available(now) == 0
        assert 0 < bucket.wait_ns(burst, now) <= 2**62
        for _ in range(100):
            bucket.reserve(burst, now)
        assert bucket.available(now) == 0
        assert not bucket.take(1, now)


@pytest.mark.parametrize(
    ("rate", "exact"),
    [
        (3, Fraction(3)),
        (0.1, Fraction(1, 10)),
        (1e7, Fraction(10**7)),
        (100 / 3, Fraction(100, 3)),
        (Fraction(2, 7), Fraction(2, 7)),
    ],
)
def test_rates_are_taken_as_written(rate: float | Fraction, exact: Fraction) -> None:
    assert TokenBucket(rate, 1).rate == exact


@pytest.mark.parametrize("rate", [0, -1, 0.0, float("nan"), float("inf"), 1e-10, 10**18 + 1])
def test_impossible_rates(rate: float) -> None:
    with pytest.raises(ValueError, match="rate_per_second"):
        TokenBucket(rate, 1)


@pytest.mark.parametrize("burst", [0, -1, 2**63])
def test_impossible_bursts(burst: int) -> None:
    with pytest.raises(ValueError, match="burst"):
        TokenBucket(1, burst)


def test_wrong_types() -> None:
    for rate in ("1", None, True, 1j):
        with pytest.raises(TypeError, match="rate_per_second"):
            TokenBucket(rate, 1)  # type: ignore[arg-type]
    for burst in (1.5, "1", None, True):
        with pytest.raises(TypeError, match="burst"):
            TokenBucket(1, burst)  # type: ignore[arg-type]


def test_tokens_cannot_be_copied() -> None:
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="TokenBucket"):
            duplicate(TokenBucket(1, 1))


def test_repr() -> None:
    assert repr(TokenBucket(0.5, 3)) == "TokenBucket(1/2/s, burst=3)"


# RateGate ---------------------------------------------------------------------------------------------------


def test_a_gate_without_buckets_admits_everything() -> None:
    gate = RateGate()
    assert gate.admit(2**62, 0) == gate.admit(NO_MESSAGE, 0) == 0
    assert gate.wait_ns(2**62, 0) == gate.reserve(1, 0) == 0


def test_a_gate_takes_from_both_or_from_none() -> None:
    gate = RateGate(TokenBucket(1, 2), TokenBucket(100, 100))
    messages, sizes = gate.messages, gate.bytes
    assert messages is not None
    assert sizes is not None
    assert gate.admit(80, 0) == 0
    assert gate.admit(80, 0) == 6 * 10**8  # 60 bytes short at 100/s
    assert (messages.available(0), sizes.available(0)) == (1, 20)
    assert gate.admit(20, 0) == 0
    assert gate.admit(0, 0) == 10**9  # now it is the messages
    assert (messages.available(0), sizes.available(0)) == (0, 0)


def test_a_gate_waits_for_the_slowest_bucket() -> None:
    gate = RateGate(TokenBucket(1, 1), TokenBucket(10, 10), shared=RateGate(TokenBucket(Fraction(1, 4), 1)))
    assert gate.admit(10, 0) == 0
    assert gate.wait_ns(10, 0) == 4 * SECOND
    assert gate.admit(10, 4 * SECOND - 1) == 1
    assert gate.admit(10, 4 * SECOND) == 0


def test_a_message_above_the_burst_never_passes() -> None:
    gate = RateGate(TokenBucket(1, 1), TokenBucket(10, 10))
    assert gate.admit(11, 0) == gate.reserve(11, 0) == gate.wait_ns(11, 10**18) == NEVER
    assert gate.admit(10, 0) == 0  # nothing was taken
    assert gate.admit(11, 0) == NEVER  # however long the other bucket waits


def test_a_shared_gate_is_taken_from_only_if_ours_agrees() -> None:
    total = TokenBucket(1, 3)
    shared = RateGate(total)
    one, two = (RateGate(TokenBucket(1, 2), shared=shared) for _ in range(2))
    assert [one.admit(0, 0) for _ in range(3)] == [0, 0, SECOND]
    assert total.available(0) == 1
    assert [two.admit(0, 0) for _ in range(2)] == [0, SECOND]
    assert two.messages is not None
    assert two.messages.available(0) == 1


def test_reservations_through_a_shared_gate_are_in_order() -> None:
    shared = RateGate(TokenBucket(1, 1))
    one, two = (RateGate(shared=shared) for _ in range(2))
    assert [gate.reserve(0, 0) for gate in (one, two, one, two)] == [0, SECOND, 2 * SECOND, 3 * SECOND]


def test_a_message_is_an_operation_but_other_operations_are_no_messages() -> None:
    gate = RateGate(TokenBucket(1, 1), None, TokenBucket(2, 2), RateGate(operations=TokenBucket(1, 3)))
    assert gate.admit(0, 0) == 0
    assert gate.admit(NO_MESSAGE, 0) == 0
    assert gate.admit(NO_MESSAGE, 0) == gate.wait_ns(NO_MESSAGE, 0) == SECOND // 2
    assert gate.wait_ns(0, SECOND // 2) == SECOND // 2  # for the message; an operation may pass
    assert gate.admit(NO_MESSAGE, SECOND // 2) == 0
    assert gate.reserve(NO_MESSAGE, SECOND // 2) == SECOND // 2
    assert (gate.own_wait_ns(NO_MESSAGE, SECOND), gate.wait_ns(NO_MESSAGE, SECOND)) == (SECOND // 2, SECOND)


def test_bytes_that_are_owed_hold_up_messages_and_nothing_else() -> None:
    gate = RateGate(None, TokenBucket(10, 10), TokenBucket(10, 10))
    assert gate.reserve_bytes(20, 0) == 0
    assert gate.wait_ns(0, 0) == SECOND
    assert gate.wait_ns(NO_MESSAGE, 0) == 0


def test_bytes_of_a_message_in_parts_may_be_owed() -> None:
    gate = RateGate(None, TokenBucket(10, 10), None, RateGate(None, TokenBucket(5, 10)))
    assert gate.reserve_bytes(10, 0) == 0
    assert gate.reserve_bytes(25, 0) == 2 * SECOND  # what is more than the burst, too
    assert gate.own_wait_ns(0, 0) == 25 * SECOND // 10
    assert gate.wait_ns(0, 0) == 5 * SECOND
    assert RateGate().reserve_bytes(1, 0) == 0
