"""Writes hdrhistogram_vectors.json: what the PyPI package `hdrhistogram` makes of values, for test_histogram.py.

    pip install hdrhistogram==0.10.8
    python tests/support/hdrhistogram_vectors.py

The package is an oracle that was asked once: it does not install on every Python that `fabric` supports.
"""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram  # type: ignore[import-not-found]

SEED = 20261126
TICKS = (1, 10)  # those of the text are 5
PERCENTILES = (0, 0.001, 1, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100)

Layout = tuple[int, int, int]
"""Lowest discernible value, highest trackable one, significant figures."""


def make_layouts(chance: random.Random, count: int) -> list[Layout]:
    layouts = []
    for _ in range(count):
        lowest = chance.choice((1, 1, 2, 3, 10, 1000, chance.randrange(1, 5000)))
        highest = max(2 * lowest, int(10 ** chance.uniform(2, 9)))
        layouts.append((lowest, highest, chance.choice((1, 2, 3, 3))))
    return layouts


def make_values(chance: random.Random, highest: int, count: int) -> list[int]:
    """Log-uniform values, some of them repeated, and every other time the edges."""
    values = [min(highest, int(10 ** chance.uniform(0, math.log10(highest)))) for _ in range(count)]
    edges = chance.choice(((), (0, 1, highest)))
    return [*values, *chance.choices(values, k=count // 4), *edges]


def apply(histogram: HdrHistogram, record: list[int]) -> None:
    """Records `[value, n]` or `[value, n, expected interval]`."""
    value, n, *interval = record
    if interval:
        histogram.record_corrected_value(value, interval[0], n)
    else:
        assert histogram.record_value(value, n)


def describe(histogram: HdrHistogram) -> dict[str, Any]:
    values = histogram.get_percentile_to_value_dict(list(PERCENTILES))  # empty like the histogram
    text = io.BytesIO()
    histogram.output_percentile_distribution(text, 1.0, 5)
    return {
        "count": histogram.get_total_count(),
        "min": histogram.get_min_value(),
        "max": histogram.get_max_value(),
        "mean": histogram.get_mean_value(),
        "stddev": histogram.get_stddev(),
        "values": [values.get(percentile, 0) for percentile in PERCENTILES],
        "slots": [
            (
                histogram.get_lowest_equivalent_value(slot.value_iterated_to),
                slot.value_iterated_to,
                slot.count_added_in_this_iter_step,
                slot.total_count_to_this_value,
            )
            for slot in histogram.get_recorded_iterator()
        ],
        "steps": {
            ticks: [
                (step.value_iterated_to, step.percentile_level_iterated_to, step.total_count_to_this_value)
                for step in histogram.get_percentile_iterator(ticks)
            ]
            for ticks in TICKS
        },
        "text": text.getvalue().decode(),
        "encoded": histogram.encode().decode(),
    }


def case(layout: Layout, records: list[list[int]], merged: dict[str, Any] | None = None) -> dict[str, Any]:
    histogram = HdrHistogram(*layout)
    for record in records:
        apply(histogram, record)
    if merged is not None:
        other = HdrHistogram(*merged["layout"])
        for record in merged["records"]:
            apply(other, record)
        histogram.add(other)
    return {"layout": layout, "records": records, "merged": merged, **describe(histogram)}


def make_cases() -> dict[str, dict[str, Any]]:
    chance = random.Random(SEED)
    cases = {"empty": case((1, 1000, 3), [])}
    for number, layout in enumerate(make_layouts(chance, 6)):
        values = make_values(chance, layout[1], (1, 3, 10, 40, 40, 150)[number])
        cases[f"recorded {number}"] = case(layout, [[value, 1] for value in values])
    many = [[value, chance.randrange(1, 10**9)] for value in make_values(chance, 10**6, 30)]
    cases["recorded many times"] = case((1, 10**6, 2), many)
    for number, layout in enumerate(make_layouts(chance, 3)):
        corrected = []
        for value in make_values(chance, layout[1], 8):
            part = value // chance.randrange(2, 40)
            interval = chance.choice((0, -1, value, value + 1, part, part, part))
            corrected.append([value, chance.randrange(1, 4), interval])
        cases[f"corrected {number}"] = case(layout, corrected)
    for number, layout in enumerate(make_layouts(chance, 2)):
        first, second = ([[value, 1] for value in make_values(chance, layout[1], 25)] for _ in range(2))
        cases[f"merged {number}"] = case(layout, first, {"layout": layout, "records": second})
        wider = (layout[0] * 3, layout[1] * 4, 2)
        cases[f"merged with another layout {number}"] = case(wider, first, {"layout": layout, "records": second})
    for bits in (6, 31, 54, 55, 61):  # above, hdrhistogram loses bits
        cases[f"2^{bits} times"] = case((1, 1000, 1), [[3, 2**bits]])
    return cases


if __name__ == "__main__":
    made = {"made by": f"tests/support/{Path(__file__).name}, with hdrhistogram 0.10.8", "percentiles": PERCENTILES}
    lines = [f"{json.dumps(name)}: {json.dumps(each, separators=(',', ':'))}" for name, each in make_cases().items()]
    head = json.dumps(made)[:-1]
    text = f'{head}, "cases": {{\n' + ",\n".join(lines) + "\n}}\n"
    Path(__file__).with_suffix(".json").write_text(text)
