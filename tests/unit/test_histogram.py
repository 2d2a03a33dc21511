"""`fabric_ext.histogram` against two oracles: what the PyPI package `hdrhistogram` once made of the same values, and
sorted lists of values."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import random
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_ext.histogram import Histogram

HOUR_NS = 3_600_000_000_000

# Written by tests/support/hdrhistogram_vectors.py, which tells what is in it.
VECTORS = json.loads((Path(__file__).parents[1] / "support" / "hdrhistogram_vectors.json").read_text())
PERCENTILES: list[float] = VECTORS["percentiles"]
CASES: dict[str, dict[str, Any]] = VECTORS["cases"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What was recorded, and what `hdrhistogram` made of it."""
    return CASES[request.param]


def record_all(layout: list[int], records: list[list[int]]) -> Histogram:
    """Of `[value, n]` and `[value, n, expected interval]`."""
    histogram = Histogram(*layout)
    for value, n, *interval in records:
        if interval:
            histogram.record_corrected(value, interval[0], n)
        elif n == 1:
            histogram.record(value)
        else:
            histogram.record_n(value, n)
    return histogram


def recorded(case: dict[str, Any]) -> Histogram:
    histogram = record_all(case["layout"], case["records"])
    if case["merged"]:
        histogram.add(record_all(**case["merged"]))
    return histogram


def random_values(rng: random.Random, highest: int, n: int) -> list[int]:
    """Log-uniform values, some of them repeated."""
    values = [min(highest, int(10 ** rng.uniform(0, math.log10(highest)))) for _ in range(n)]
    return [*values, *rng.choices(values, k=n // 4)]


# ---------------------------------------------------------------------- against hdrhistogram


def test_everything_read_equals_hdrhistogram(case: dict[str, Any]) -> None:
    histogram = recorded(case)
    assert (histogram.count, histogram.min, histogram.max) == (case["count"], case["min"], case["max"])
    assert histogram.mean == pytest.approx(case["mean"], rel=1e-12)
    assert histogram.stddev == pytest.approx(case["stddev"], rel=1e-9)
    assert histogram.values_at_percentiles(PERCENTILES) == case["values"]
    assert [list(slot) for slot in histogram.recorded()] == case["slots"]


def test_percentile_steps_equal_those_of_hdrhistogram(case: dict[str, Any]) -> None:
    for ticks, expected in case["steps"].items():
        steps = recorded(case).percentile_steps(int(ticks))
        assert [(step.value, step.total) for step in steps] == [(value, total) for value, _, total in expected]
        assert [step.percentile for step in steps] == pytest.approx([level for _, level, _ in expected], rel=1e-12)


def test_hgrm_text_equals_that_of_hdrhistogram(case: dict[str, Any]) -> None:
    assert recorded(case).percentile_distribution() == case["text"]


def test_recording_nothing_changes_nothing() -> None:
    histogram = Histogram()
    histogram.record_n(5, 0)
    histogram.record_corrected(5, 1, 0)
    assert histogram == Histogram()


def test_copy_corrected_corrects_every_slot() -> None:
    plain = Histogram(1, 1_000_000, 3)
    expected = Histogram(1, 1_000_000, 3)
    for value, n in ((10, 100), (7_000, 1), (100_000, 2)):
        plain.record_n(value, n)
    for slot in plain.recorded():
        expected.record_corrected(slot.highest, 1_000, slot.samples)
    plain.record(-1)
    expected.record(-1)
    corrected = plain.copy_corrected(1_000)
    assert corrected.count == 100 + 8 + 2 * 101 + 1  # the slots end at 7,003 and 100,031
    assert corrected.clamped_low == 1
    assert plain.count == 104
    assert corrected == expected


def test_correction_costs_no_more_than_the_slots() -> None:
    histogram = Histogram()
    histogram.record_corrected(HOUR_NS, 1)  # 3.6e12 omitted values
    assert histogram.count == HOUR_NS
    assert histogram.value_at_percentile(50) == pytest.approx(HOUR_NS / 2, rel=1e-3)


def test_hgrm_scale_applies_to_every_value() -> None:
    histogram = Histogram()
    for value in (1_000_000, 2_000_000, 4_000_000):
        histogram.record(value)
    text = histogram.percentile_distribution(scale=1e6)
    assert "       4.002 1.000000000000          3\n" in text
    assert f"StdDeviation   = {histogram.stddev / 1e6:12.3f}]" in text
    assert "#[Max     =        4.002, TotalCount     =        3.000]" in text
    assert "Clamped" not in text
    histogram.record(-7)
    assert histogram.percentile_distribution().endswith("#[ClampedLow = 1, ClampedHigh = 0, Unrecorded = 0]\n")


# ---------------------------------------------------------------------- encoding


def decode_slowly(plain: bytes) -> tuple[tuple[object, ...], list[int]]:
    """Header and counts of an uncompressed V2 encoding."""
    header, counts, number, shift = struct.unpack_from(">IIiiqqd", plain), [], 0, 0
    for byte in plain[40:]:
        last = byte < 0x80 or shift == 56  # the ninth byte holds eight bits
        number |= (byte if last else byte & 0x7F) << shift
        shift += 7
        if last:
            signed = (number >> 1) ^ -(number & 1)
            counts += [signed] if signed > 0 else [0] * (-signed or 1)
            number = shift = 0
    return header, counts


def test_encoding_holds_the_same_header_and_counts_as_that_of_hdrhistogram(case: dict[str, Any]) -> None:
    # Not the same bytes: one zero is a 0 for the Java and C libraries and us, a run of one for hdrhistogram.
    ours, theirs = recorded(case), base64.b64decode(case["encoded"])
    plain = ours.encode(compressed=False)
    assert decode_slowly(plain) == decode_slowly(zlib.decompress(theirs[8:]))
    assert zlib.decompress(ours.encode()[8:]) == plain


def test_zeros_are_encoded_as_by_the_java_library() -> None:
    histogram = Histogram(1, 1000, 1)
    for value in (3, 5, 8):
        histogram.record(value)
    #                         3 zeros, 1, a zero, 1, 2 zeros, 1; numbers doubled, negative ones odd
    assert histogram.encode(compressed=False)[40:] == bytes([5, 2, 0, 2, 3, 2])


def test_encodings_of_hdrhistogram_are_read(case: dict[str, Any]) -> None:
    assert Histogram.decode(case["encoded"]) == recorded(case)


@pytest.mark.parametrize("n", [1, 63, 64, 2**31, 2**55 - 1, 2**55, 2**61, 2**62, 2**63 - 1])
def test_counts_of_every_length_survive(n: int) -> None:
    histogram = Histogram(1, 1000, 1)
    histogram.record_n(3, n)
    assert Histogram.decode(histogram.encode()) == histogram


def test_decode_takes_every_form_and_keeps_the_configuration() -> None:
    histogram = Histogram(7, 12345, 2)
    histogram.record_n(100, 3)
    b64 = histogram.encode_base64()
    assert b64.startswith("HIST")
    plain, compressed = histogram.encode(compressed=False), histogram.encode()
    for form in (b64, b64.encode(), plain, compressed, bytearray(compressed), base64.b64encode(plain)):
        decoded = Histogram.decode(form)
        assert decoded == histogram
        assert (decoded.lowest_discernible, decoded.highest_trackable) == (7, 12345)
        assert decoded.significant_figures == 2


def test_empty_histogram_survives() -> None:
    empty = Histogram(1, 1000, 3)
    assert Histogram.decode(empty.encode()) == empty


def test_decode_refuses_damage_with_value_error_only(rng: random.Random) -> None:
    histogram = Histogram(1, 10**6, 2)
    for value in random_values(rng, 10**6, 50):
        histogram.record(value)
    for encoded in (histogram.encode(), histogram.encode(compressed=False)):
        for cut in range(len(encoded)):
            with pytest.raises(ValueError):
                Histogram.decode(encoded[:cut])
        with pytest.raises(ValueError):
            Histogram.decode(encoded + b"\0")
        for _ in range(2000):
            damaged = bytearray(encoded)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            with contextlib.suppress(ValueError):
                Histogram.decode(damaged)
    for text in ("", "HIST", "HIST!!!!", "HISTFAAA", "é"):
        with pytest.raises(ValueError):
            Histogram.decode(text)


def test_decode_takes_the_payload_length_of_the_c_library() -> None:
    histogram = Histogram(1, 1000, 1)
    histogram.record(3)
    plain = histogram.encode(compressed=False)
    (length,) = struct.unpack_from(">I", plain, 4)
    deflated = zlib.compress(plain[:4] + struct.pack(">I", 40 + length) + plain[8:])
    assert Histogram.decode(struct.pack(">II", 0x1C849314, len(deflated)) + deflated) == histogram


def v2(counts: bytes, length: int = -1, offset: int = 0, ratio: float = 1.0, figures: int = 1) -> bytes:
    length = len(counts) if length < 0 else length
    return struct.pack(">IIiiqqd", 0x1C849313, length, offset, figures, 1, 1000, ratio) + counts


@pytest.mark.parametrize(
    ("encoded", "complaint"),
    [
        (v2(b"\x02", length=2), "1 bytes of counts"),
        (v2(b"\x02", offset=1), "index offset 1"),
        (v2(b"\x02", ratio=0.5), "ratio 0.5"),
        (v2(b"\x02", figures=6), "significant_figures"),
        (v2(b"\x02" * 5000), "more counts than"),
        (v2(b"\xff\x7f\x02"), "more counts than"),
        (v2(b"\xff" * 9), "more counts than"),  # a run of 2^63 zeros
        (v2(b"\x02\x80"), "cut short"),
        (v2((b"\xfe" + b"\xff" * 8) * 2), "more than 2\\^63"),
        (b"\x1c\x84\x93\x02" + v2(b"")[4:], "not a V2"),
    ],
)
def test_decode_says_what_is_wrong(encoded: bytes, complaint: str) -> None:
    deflated = zlib.compress(encoded)
    for form in (encoded, struct.pack(">II", 0x1C849314, len(deflated)) + deflated):
        with pytest.raises(ValueError, match=complaint):
            Histogram.decode(form)


def test_decode_inflates_a_bomb_no_further_than_its_layout() -> None:
    deflated = zlib.compress(v2(b"", length=10**7) + bytes(10**7))
    bomb = struct.pack(">II", 0x1C849314, len(deflated)) + deflated
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more counts than"):
            Histogram.decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------- what anybody may have encoded

MOST_STEPS = 75  # for each tick in a halving of the distance to 100 %


def varint(number: int) -> bytes:
    """ZigZag LEB128: 7 bits a byte, low ones first, all 8 in the ninth."""
    rest, out = (number << 1 ^ number >> 63) & (2**64 - 1), bytearray()
    while rest > 0x7F and len(out) < 8:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*out, rest])


def slots_of(lowest: int, highest: int, figures: int) -> int:
    """How many slots a layout has, counted bucket by bucket; 0 if there is no such layout."""
    if not (1 <= figures <= 5 and 1 <= lowest <= highest // 2):
        return 0
    half = 2 ** ((2 * 10**figures - 1).bit_length() - 1)
    covered, slots = (2 * half) << (lowest.bit_length() - 1), 2 * half
    while covered <= highest:
        covered, slots = 2 * covered, slots + half
    return slots if covered <= 2**63 else 0


wild = st.sampled_from([-(2**63), -1, 0, 2**31 - 1, 2**53, 2**62, 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1)
counts = st.lists(
    st.integers(1, 1000)  # a slot's
    | st.sampled_from([2**52, 2**53, 2**60, 2**61, 2**62])
    | st.integers(-1000, 0),  # zeros
    max_size=12,
)


@st.composite
def encodings(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """A histogram in one of its encodings, or nearly so; and how many slots its header announces, if that is known."""
    damage = draw(st.sampled_from(["none", "none", "header", "length", "counts", "bytes"]))
    lowest = draw(st.integers(1, 5000))
    layout = [lowest, min(2 * lowest + draw(st.integers(0, 2**63 - 1)), 2**63 - 1), draw(st.integers(1, 5))]
    if damage == "header":
        field = draw(st.integers(0, 2))
        layout[field] = draw(wild if field < 2 else st.sampled_from([-(2**31), -1, 0, 6, 2**31 - 1]))
    numbers = draw(counts)
    if damage == "counts":
        numbers.insert(draw(st.integers(0, len(numbers))), draw(wild))
    body = b"".join(map(varint, numbers)) + varint(1) * draw(st.sampled_from([0, 0, 100, 60_000]))
    length = draw(st.integers(0, 2**32 - 1)) if damage == "length" else len(body)
    plain = struct.pack(">IIiiqqd", 0x1C849313, length, 0, layout[2], layout[0], layout[1], 1.0) + body
    if draw(st.booleans()):
        deflated = zlib.compress(plain)
        plain = struct.pack(">II", 0x1C849314, len(deflated)) + deflated
    encoded = bytearray(base64.b64encode(plain) if draw(st.booleans()) else plain)
    if damage != "bytes":
        return bytes(encoded), slots_of(*layout)
    encoded[draw(st.integers(0, len(encoded) - 1))] = draw(st.integers(0, 255))
    return bytes(encoded), None


def read_all(histogram: Histogram) -> int:
    """Everything that can be read is bounded by the slots, which are returned, or by the steps that are asked for."""
    slots = slots_of(histogram.lowest_discernible, histogram.highest_trackable, histogram.significant_figures)
    values = histogram.values_at_percentiles(PERCENTILES)
    assert values == sorted(values)
    used = histogram.recorded()
    assert len(used) <= slots
    assert sum(slot.samples for slot in used) == histogram.count < 2**63
    assert histogram.counts_up_to([0, 2**63 - 1])[1] == histogram.count
    for ticks in (1, 5, 20):
        steps = histogram.percentile_steps(ticks)
        assert len(steps) <= MOST_STEPS * ticks + 1
        levels = [step.percentile for step in steps]
        assert all(before < after for before, after in itertools.pairwise(levels[:-1]))
        assert levels[-1:] == [100] * bool(used)
    assert len(histogram.percentile_distribution().splitlines()) <= MOST_STEPS * 5 + 6
    assert math.isfinite(histogram.mean + histogram.stddev + histogram.sum)
    assert repr(histogram)
    assert Histogram.decode(histogram.encode()) == histogram.copy() == histogram
    return slots


def peak_of_decoding(encoded: bytes) -> tuple[Histogram | None, int]:
    histogram = None
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            histogram = Histogram.decode(encoded)
        return histogram, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@settings(deadline=None)
@given(encodings())
def test_any_encoding_is_read_within_bounds_or_refused(drawn: tuple[bytes, int | None]) -> None:
    encoded, slots = drawn
    histogram, peak = peak_of_decoding(encoded)
    if histogram is not None:
        slots = read_all(histogram)
    if slots is not None:
        assert peak <= 17 * slots + 6 * len(encoded) + 100_000


def test_an_encoding_of_every_slot_takes_no_more_than_its_layout() -> None:
    slots = slots_of(1, 2**63 - 1, 3)
    plain = struct.pack(">IIiiqqd", 0x1C849313, 7 * slots, 0, 3, 1, 2**63 - 1, 1.0) + varint(2**46) * slots
    deflated = zlib.compress(plain)
    histogram, peak = peak_of_decoding(struct.pack(">II", 0x1C849314, len(deflated)) + deflated)
    assert histogram is not None
    assert histogram.count == slots << 46
    assert read_all(histogram) == slots
    assert 15 * slots < peak <= 17 * slots + 50_000


def test_percentile_steps_end_where_a_double_cannot_tell_the_next_from_this() -> None:
    histogram = Histogram()
    histogram.record_n(5, 2**62)
    histogram.record(100)
    text = histogram.encode_base64()
    assert len(text) <= 76
    read_all(Histogram.decode(text))


@pytest.mark.parametrize("other", [10**12, None, [1, 2], 1.5])
def test_only_text_and_bytes_are_decoded(other: object) -> None:
    with pytest.raises(TypeError):
        Histogram.decode(other)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- against a sorted list


@pytest.mark.parametrize("figures", [1, 2, 3, 4, 5])
def test_relative_error_is_bounded_from_microseconds_to_hours(figures: int, rng: random.Random) -> None:
    # Bounded from 10^figures units up; below, values are exact.
    histogram = Histogram(significant_figures=figures)
    values = sorted(int(10 ** rng.uniform(0, math.log10(HOUR_NS))) for _ in range(2000))
    for value in values:
        histogram.record(value)
    for percentile in PERCENTILES[1:]:
        exact = values[max(int(percentile / 100 * len(values) + 0.5), 1) - 1]
        assert exact <= histogram.value_at_percentile(percentile) <= exact * (1 + 10**-figures)
    assert histogram.mean == pytest.approx(sum(values) / len(values), rel=10**-figures)
    assert histogram.min <= values[0]
    assert histogram.max >= values[-1]


def test_counts_up_to_bounds() -> None:
    histogram = Histogram()
    for value in (5, 10, 10, 500, 2**60):
        histogram.record(value)
    assert histogram.counts_up_to([0, 4, 5, 9, 10, 499, 500, 2**62]) == [0, 0, 1, 1, 3, 3, 4, 5]
    assert histogram.count_at(10) == 2
    assert histogram.count_at(11) == histogram.count_at(-1) == histogram.count_at(2**62) == 0
    with pytest.raises(ValueError, match="ascend"):
        histogram.counts_up_to([5, 4])
    assert Histogram().counts_up_to([1, 2]) == [0, 0]


# ---------------------------------------------------------------------- range and memory


def test_out_of_range_values_are_clamped_and_counted() -> None:
    histogram = Histogram(1, 1000, 3)
    assert histogram.max_recordable == 2047
    histogram.record(2047)
    assert histogram.clamped_high == 0
    histogram.record(2048)
    histogram.record_n(2**63 - 1, 2)
    histogram.record_n(-1, 4)
    histogram.record(-(2**63))
    assert (histogram.clamped_low, histogram.clamped_high, histogram.count) == (5, 3, 9)
    assert (histogram.min, histogram.max) == (0, 2047)
    assert "clamped_low=5, clamped_high=3" in repr(histogram)
    copied = histogram.copy()
    assert (copied.clamped_low, copied.clamped_high) == (5, 3)
    for beyond in (2**63, -(2**63) - 1):
        with pytest.raises(OverflowError):
            histogram.record(beyond)


@pytest.mark.parametrize(("highest", "recordable"), [(2046, 2047), (2047, 2047), (2048, 4095), (4096, 8191)])
def test_the_highest_trackable_value_is_recordable(highest: int, recordable: int) -> None:
    histogram = Histogram(1, highest, 3)
    histogram.record(highest)
    assert (histogram.max_recordable, histogram.clamped_high) == (recordable, 0)


def test_correction_beyond_the_range_is_counted_as_clamped() -> None:
    histogram = Histogram(1, 1000, 3)
    histogram.record_corrected(10_000, 1_000)
    assert histogram.count == 10
    assert histogram.clamped_high == 8  # 10,000 down to 3,000
    assert [(slot.lowest, slot.samples) for slot in histogram.recorded()] == [(1000, 1), (2000, 1), (2047, 8)]


def test_merge_into_a_smaller_range_is_counted_as_clamped() -> None:
    small, large = Histogram(1, 1000, 3), Histogram(1, 10**9, 3)
    large.record_n(10**8, 3)
    large.record(5)
    large.record(-5)
    small.add(large)
    assert (small.count, small.clamped_high, small.clamped_low, small.max) == (5, 3, 1, 2047)


@pytest.mark.parametrize("layout", [(1, 2**63 - 1, 5), (1, 2**63 - 1, 1), (2**57, 2**63 - 1, 1), (1, 2, 1), (4, 8, 5)])
def test_extreme_layouts(layout: tuple[int, int, int]) -> None:
    histogram = Histogram(*layout)
    for value in (0, 1, layout[1] // 2, layout[1]):
        histogram.record(value)
    assert (histogram.count, histogram.clamped_high) == (4, 0)
    assert histogram.max >= layout[1] == histogram.highest_trackable
    for slot in histogram.recorded():
        assert slot.lowest <= slot.highest <= histogram.max_recordable
    assert Histogram.decode(histogram.encode()) == histogram


@pytest.mark.parametrize(
    ("layout", "field"),
    [
        ((0, 100, 3), "lowest_discernible"),
        ((-1, 100, 3), "lowest_discernible"),
        ((10, 19, 3), "highest_trackable"),
        ((1, 100, 0), "significant_figures"),
        ((1, 100, 6), "significant_figures"),
        ((2**60, 2**63 - 1, 3), "63 bits"),
    ],
)
def test_bad_layouts_are_refused_by_name(layout: tuple[int, int, int], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Histogram(*layout)


def test_memory_follows_what_is_recorded_and_is_bounded(rng: random.Random) -> None:
    histogram = Histogram()
    assert sys.getsizeof(histogram) < 256
    for _ in range(100):
        histogram.record(rng.randrange(30_000_000, 31_000_000))  # heartbeats over a 30 ms line
    assert sys.getsizeof(histogram) < 4_000
    dense = 40 * 1024 * 8  # half-buckets, slots, bytes
    for magnitude in range(47):
        for slot in range(1024):
            histogram.record((1 << magnitude) + (slot << max(magnitude - 10, 0)))
    full = sys.getsizeof(histogram)
    assert full < dense
    for _ in range(10_000):
        histogram.record(rng.randrange(2**47))
    histogram.reset()
    histogram.record(12345)
    assert sys.getsizeof(histogram) == full


def test_values_that_find_no_memory_are_counted() -> None:
    testcapi = pytest.importorskip("_testcapi")
    histogram = Histogram()
    record = histogram.record
    testcapi.set_nomemory(0)
    try:
        record(5)
    finally:
        testcapi.remove_mem_hooks()
    assert (histogram.count, histogram.unrecorded) == (0, 1)
    record(5)
    assert (histogram.count, histogram.unrecorded) == (1, 1)
    assert "Unrecorded = 1" in histogram.percentile_distribution()
    assert histogram.copy().unrecorded == 1


def test_counts_do_not_overflow_unseen() -> None:
    histogram = Histogram()
    histogram.record_n(1, 2**63 - 2)
    histogram.record(2)
    assert histogram.count == 2**63 - 1
    assert histogram.value_at_percentile(100) == histogram.max == 2
    with pytest.raises(OverflowError):
        histogram.record_n(1, 1)
    with pytest.raises(OverflowError):
        histogram.record_corrected(10, 1)
    with pytest.raises(OverflowError):
        histogram.add(histogram.copy())
    with pytest.raises(ValueError, match="negative"):
        histogram.record_n(1, -1)
    assert histogram.count == 2**63 - 1


def test_a_full_histogram_tells_what_it_could_not_record() -> None:
    histogram = Histogram()
    histogram.record_n(1, 2**63 - 1)
    for value in (1, 2, -1, 2**63 - 1):
        histogram.record(value)
    histogram.record_scaled(3.0, 1.0)
    assert (histogram.count, histogram.unrecorded) == (2**63 - 1, 5)
    assert (histogram.clamped_low, histogram.clamped_high, histogram.max) == (0, 0, 1)
    assert [slot.samples for slot in histogram.recorded()] == [2**63 - 1]
    assert "Unrecorded = 5" in histogram.percentile_distribution()


# ---------------------------------------------------------------------- object


def test_empty_histogram_reads_as_zero() -> None:
    empty = Histogram()
    assert (empty.count, empty.min, empty.max, empty.mean, empty.stddev, empty.sum) == (0,) * 6
    assert empty.values_at_percentiles((0, 50, 100)) == [0, 0, 0]
    assert empty.recorded() == empty.percentile_steps() == []
    assert repr(empty) == "Histogram(count=0, min=0, p50=0, p99=0, max=0)"


def test_percentiles_in_any_order_and_only_within_0_and_100() -> None:
    histogram = Histogram()
    for value in range(1, 101):
        histogram.record(value)
    assert histogram.values_at_percentiles((99, 50, 0, 100, 50)) == [99, 50, 1, 100, 50]
    for bad in (-0.1, 100.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="percentile"):
            histogram.value_at_percentile(bad)
    with pytest.raises(ValueError, match="ticks"):
        histogram.percentile_steps(0)


def test_reset_starts_over() -> None:
    histogram = Histogram(1, 1000, 3)
    for value in (-5, 10, 5000):
        histogram.record(value)
    histogram.reset()
    assert histogram == Histogram(1, 1000, 3)
    assert (histogram.clamped_low, histogram.clamped_high, histogram.min, histogram.max) == (0, 0, 0, 0)
    histogram.record(77)
    assert (histogram.min, histogram.max, histogram.count) == (77, 77, 1)


def test_equality_compares_layout_and_counts() -> None:
    a, b = Histogram(1, 1000, 3), Histogram(1, 1000, 3)
    a.record(5)
    assert a != b
    b.record(6)
    assert a != b
    b.record(5)
    a.record(6)
    assert a == b
    assert a != Histogram(1, 1000, 2)
    assert a != 5
    with pytest.raises(TypeError):
        hash(a)


def test_merged_extremes_are_those_of_both() -> None:
    low, high = Histogram(), Histogram()
    low.record(3)
    high.record(1000)
    for a, b in ((low, high), (high, low)):
        total = a.copy()
        total.add(b)
        assert (total.min, total.max) == (3, 1000)


def test_adding_to_itself_doubles() -> None:
    histogram = Histogram()
    for value in (1, 1_000, 1_000_000):
        histogram.record(value)
    histogram.add(histogram)
    assert [slot.samples for slot in histogram.recorded()] == [2, 2, 2]


def test_scaled_values_are_rounded_clamped_and_finite() -> None:
    histogram = Histogram()
    for seconds in (1.4e-9, 1.6e-9, 2.0):
        histogram.record_scaled(seconds, 1e9)
    assert [slot.lowest for slot in histogram.recorded()] == [1, 2, 1_999_634_432]
    for value in (-1e300, -1.0, 1e300, 2.0**63):
        histogram.record_scaled(value, 1.0)
    assert (histogram.count, histogram.clamped_low, histogram.clamped_high) == (7, 2, 2)
    for value in (math.nan, math.inf, -math.inf, 1e300):
        with pytest.raises(ValueError, match="finite"):
            histogram.record_scaled(value, 1e9)
    assert histogram.count == 7


@pytest.mark.parametrize("value", [1.5, "1", None])
def test_only_integers_are_recorded(value: object) -> None:
    with pytest.raises(TypeError):
        Histogram().record(value)  # type: ignore[arg-type]
