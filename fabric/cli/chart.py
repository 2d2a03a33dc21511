"""A latency distribution as text: bars over a logarithmic axis of time, with its percentiles marked.

Owns the drawing, as pure functions of a histogram of nanoseconds. The axis goes as far as the slowest but one
in a thousand, if that is not so far out that nothing else could be told apart; what is beyond is told in words.
A column with a single value in a million still shows a mark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabric.cli.units import format_count, format_duration

if TYPE_CHECKING:
    from fabric_ext.histogram import Histogram

__all__ = ["Axis", "distribution", "table"]

GUTTER = 9  # columns left of the bars, for the scale
PERCENTILES = (50.0, 95.0, 99.0, 99.9)
SHOWN = 99.9  # percentile up to which values are drawn, but no further than
TAIL = 10  # times the median
LEAST = 100  # nanoseconds; below, nothing is told apart
FACTOR = 5  # between the ends of an axis, at least


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters of a drawing; `levels` fill a cell from nearly empty to full."""

    levels: str
    side: str
    corner: str
    line: str
    tick: str
    mark: str
    beyond: str


UNICODE = Glyphs("▁▂▃▄▅▆▇█", "│", "└", "─", "┬", "▲", "▶")
ASCII = Glyphs(".:#", "|", "+", "-", "+", "^", ">")


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic axis from `low` to `high` nanoseconds over `columns` columns."""

    low: float
    high: float
    columns: int

    @classmethod
    def around(cls, least: int, most: int, columns: int) -> Axis:
        """The axis that holds all values, with ends of one digit, and is long enough to be read."""
        low, high = _round_down(max(least, LEAST)), _round_up(max(most, LEAST))
        while high < FACTOR * low:
            high = _round_up(high * 1.01)
            if high < FACTOR * low and low > LEAST:
                low = _round_down(low * 0.99)
        return cls(low, high, columns)

    def column(self, value: float) -> int:
        """The column in which `value` is drawn."""
        share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return min(self.columns - 1, int(share * self.columns))

    def bounds(self) -> list[int]:
        """The highest value of each column."""
        ratio = self.high / self.low
        return [int(self.low * ratio ** (index / self.columns)) for index in range(1, self.columns + 1)]

    def ticks(self) -> list[float]:
        """The powers of ten within, with 2 and 5 between them where they are few."""
        decades = math.log10(self.high / self.low)
        steps = (1, 2, 5) if decades <= 2.5 else (1,)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [value for value in values if self.low <= value * 1.000001 and value <= self.high * 1.000001]


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return math.floor(value / power + 1e-9) * power


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return math.ceil(value / power - 1e-9) * power


def distribution(histogram: Histogram, *, width: int = 78, height: int = 8, unicode: bool = True) -> list[str]:
    """Draw `histogram` as lines of at most `width` columns, the bars `height` lines high."""
    if not histogram.count:
        return ["(nothing was measured)"]
    glyphs = UNICODE if unicode else ASCII
    median, tail = histogram.values_at_percentiles((50.0, SHOWN))
    axis = Axis.around(histogram.min, min(tail, TAIL * median), width - GUTTER)
    reached = [0, *histogram.counts_up_to(axis.bounds())]
    counts = [after - before for before, after in itertools.pairwise(reached)]
    lines = _bars(counts, histogram.count, height, glyphs)
    lines += _scale(axis, glyphs)
    lines += _marks(axis, histogram, glyphs)
    if beyond := histogram.count - reached[-1]:
        slowest = format_duration(histogram.max * 1e-9)
        lines.append(f"{'':{GUTTER}}{format_count(beyond)} slower ones, up to {slowest}, are not drawn")
    return [line.rstrip() if unicode else line.rstrip().replace("µ", "u") for line in lines]


def _bars(counts: Sequence[int], total: int, height: int, glyphs: Glyphs) -> list[str]:
    levels = len(glyphs.levels)
    peak = max(counts)
    filled = [max(round(count / peak * height * levels), 1 if count else 0) for count in counts]
    lines = []
    for row in range(height, 0, -1):
        cells = (min(max(level - (row - 1) * levels, 0), levels) for level in filled)
        label = f"{100 * peak / total * row / height:.1f} %" if row in (height, height // 2) else ""
        bars = "".join(glyphs.levels[cell - 1] if cell else " " for cell in cells)
        lines.append(f"{label:>{GUTTER - 2}} {glyphs.side}{bars}")
    return lines


def _scale(axis: Axis, glyphs: Glyphs) -> list[str]:
    line = [glyphs.line] * axis.columns
    labels: list[tuple[int, str]] = []
    for value in axis.ticks():
        column = axis.column(value)
        line[column] = glyphs.tick
        labels.append((column, _tick(value)))
    rows = _place(labels, axis.columns)
    return [" " * (GUTTER - 1) + glyphs.corner + "".join(line), " " * GUTTER + rows[0]]


def _tick(nanoseconds: float) -> str:
    for scale, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if nanoseconds >= scale * 0.999:
            return f"{nanoseconds / scale:g} {unit}"
    return f"{nanoseconds:g} ns"


def _marks(axis: Axis, histogram: Histogram, glyphs: Glyphs) -> list[str]:
    line = [" "] * axis.columns
    labels = []
    for percentile, value in zip(PERCENTILES, histogram.values_at_percentiles(PERCENTILES), strict=True):
        column = axis.column(value)
        line[column] = glyphs.mark if value <= axis.high * 1.001 else glyphs.beyond
        labels.append((column, f"p{percentile:g}"))
    return [" " * GUTTER + text for text in ("".join(line), *_place(labels, axis.columns, spill=True))]


def _place(labels: Sequence[tuple[int, str]], columns: int, *, spill: bool = False) -> list[str]:
    """Centre each label at its column. One that meets its neighbour goes to a further row, or is left out."""
    rows: list[str] = [""]
    for column, text in labels:
        start = max(0, min(column - len(text) // 2, columns - len(text)))
        for index, row in enumerate(rows):
            if not row or len(row) + 1 < start + 1:
                rows[index] = row.ljust(start) + text
                break
        else:
            if spill:
                rows.append(" " * start + text)
    return rows


def table(rows: Sequence[tuple[str, Histogram]]) -> list[str]:
    """Percentiles in columns, one line for each named histogram."""
    heads = ("p50", "p95", "p99", "p99.9", "max")
    name_width = max((len(name) for name, _ in rows), default=0)
    lines = [" " * name_width + "".join(f"{head:>11}" for head in heads)]
    for name, histogram in rows:
        values = [*histogram.values_at_percentiles(PERCENTILES), histogram.max]
        cells = "".join(f"{format_duration(value * 1e-9):>11}" for value in values)
        lines.append(f"{name:<{name_width}}{cells}")
    return lines
