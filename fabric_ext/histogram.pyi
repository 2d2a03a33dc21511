"""A High Dynamic Range histogram: integer values, bounded relative error, bounded memory."""

from collections.abc import Iterable
from typing import ClassVar, NamedTuple, final

from typing_extensions import Buffer

class Slot(NamedTuple):
    """The values `lowest` .. `highest` occurred `samples` times; `total` counts them and all below."""

    lowest: int
    highest: int
    samples: int
    total: int

class PercentileStep(NamedTuple):
    """`total` recorded values lie at or below `value`, at least `percentile` percent of all."""

    value: int
    percentile: float
    total: int

@final
class Histogram:
    """Counts of integer values between 0 and `highest_trackable`, each exact to `significant_figures` digits.

    lowest_discernible: the smallest difference worth telling apart, in the unit of the values; >= 1.
    highest_trackable: at least twice that. The layout rounds it up; values above the rounded one are recorded
        as that and counted in `clamped_high`, negative ones as 0 and counted in `clamped_low`.
    significant_figures: 1 to 5.

    The defaults suit latencies in nanoseconds: three digits from 1 µs to a day.
    Raises ValueError for a layout outside these limits or wider than 63 bits.
    """

    def __new__(
        cls,
        lowest_discernible: int = 1,
        highest_trackable: int = ...,
        significant_figures: int = 3,
    ) -> Histogram: ...
    @property
    def lowest_discernible(self) -> int: ...
    @property
    def highest_trackable(self) -> int: ...
    @property
    def significant_figures(self) -> int: ...
    @property
    def max_recordable(self) -> int:
        """The largest value that is not clamped: `highest_trackable`, rounded up by the layout."""

    @property
    def count(self) -> int:
        """How many values are recorded, clamped ones included."""

    @property
    def clamped_low(self) -> int:
        """How many of them were negative and count as 0."""

    @property
    def clamped_high(self) -> int:
        """How many of them were above `max_recordable` and count as that."""

    @property
    def unrecorded(self) -> int:
        """How many values were not recorded: memory was exhausted, or `count` had no room. In no other number."""

    def record(self, value: int) -> None:
        """Count one value; where there is no room for it, as `unrecorded`."""

    def record_n(self, value: int, n: int) -> None:
        """Count `value` n times. Raises ValueError if n is negative, OverflowError past 2^63 in all."""

    def record_scaled(self, value: float, scale: float, /) -> None:
        """Count `value * scale`, rounded. Raises ValueError unless that is finite; clamps as `record`."""

    def record_corrected(self, value: int, expected_interval: int, n: int = 1) -> None:
        """Count `value`, and with it the values that went unmeasured while it was waited for.

        Corrects for coordinated omission: a client that wants to send every `expected_interval` but waits
        `value` for one answer would also have seen value - interval, value - 2 * interval, … down to the last
        above 0. (The Java library leaves out the last one if it is below the interval; `hdrhistogram` counts
        it.) An interval <= 0 corrects nothing. Costs one step per slot, however many values that is.
        """

    def add(self, other: Histogram) -> None:
        """Add the counts of `other`. If its layout is another, its values count as the lowest of their slots.

        Values beyond this layout are clamped and counted as such. Raises OverflowError past 2^63 in all.
        """

    def copy(self) -> Histogram:
        """A histogram of the same layout and counts."""

    def copy_corrected(self, expected_interval: int) -> Histogram:
        """A copy with every recorded value corrected for coordinated omission: see `record_corrected`.

        For data that was not corrected when recorded; correcting twice counts twice. Costs up to one step for
        each slot in use and each slot below it, which is much for 5 significant figures and a short interval.
        """

    def reset(self) -> None:
        """Forget everything recorded. The memory is kept, so that recording again allocates nothing."""

    @property
    def min(self) -> int:
        """The lowest value of the first slot in use; 0 while empty."""

    @property
    def max(self) -> int:
        """The highest value of the last slot in use; 0 while empty."""

    @property
    def mean(self) -> float:
        """The arithmetic mean, each value taken as the middle of its slot; 0.0 while empty."""

    @property
    def sum(self) -> float:
        """The sum of all values, each taken as the middle of its slot."""

    @property
    def stddev(self) -> float:
        """The population's standard deviation, each value taken as the middle of its slot; 0.0 if empty."""

    def value_at_percentile(self, percentile: float) -> int:
        """The value that `percentile` (0 .. 100) percent of all values do not exceed; 0 while empty.

        It is the highest value of its slot, for percentile 0 the lowest. Raises ValueError outside 0 .. 100.
        """

    def values_at_percentiles(self, percentiles: Iterable[float]) -> list[int]:
        """The values at several percentiles (any order), in one pass: see `value_at_percentile`."""

    def count_at(self, value: int) -> int:
        """How many recorded values share the slot of `value`; 0 for a value outside the layout."""

    def counts_up_to(self, bounds: Iterable[int]) -> list[int]:
        """For each of the ascending `bounds`, how many values lie at or below it, its own slot included."""

    def recorded(self) -> list[Slot]:
        """The slots in use, lowest first."""

    def percentile_steps(self, ticks_per_half_distance: int = 5) -> list[PercentileStep]:
        """Percentiles in steps that shrink on the way to 100.

        There are `ticks_per_half_distance` of them in every halving of the distance to 100; 100 is the last.
        They are at most 75 times as many, since a double comes no nearer to 100.
        """

    def percentile_distribution(self, scale: float = 1.0, ticks_per_half_distance: int = 5) -> str:
        """The distribution as `.hgrm` text, which HdrHistogram's plotters read.

        scale: what the values are divided by; 1e6 shows nanoseconds as milliseconds.
        Clamped and unrecorded values, if any, are told in a last comment line.
        """

    def encode(self, compressed: bool = True) -> bytes:
        """The HdrHistogram V2 encoding, compressed with zlib or not. It does not tell what was clamped."""

    def encode_base64(self) -> str:
        """The compressed encoding in base64, as HdrHistogram's log files and tools exchange it."""

    @staticmethod
    def decode(data: str | Buffer) -> Histogram:
        """The histogram in a V2 encoding: plain or compressed bytes, or base64 of either (str or bytes).

        Safe for data from elsewhere: decoding takes at most 17 bytes for each slot of the layout, 1 MB with 3
        significant figures and 105 MB with 5. What is read from the histogram is bounded by its slots or by the
        steps that are asked for; only `copy_corrected` may take long.

        Raises:
            ValueError: it is not exactly one encoded histogram.
            TypeError: it is neither a str nor a bytes-like object.
        """

    def __eq__(self, other: object) -> bool:
        """Equal layouts and counts. Clamped values count as what they were clamped to."""

    __hash__: ClassVar[None]  # type: ignore[assignment]
