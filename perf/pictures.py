"""Draws the figures of one result file as SVG: light and dark in one file, no packages needed.

    python perf/pictures.py                          the newest full result, into perf/results/pictures/
    python perf/pictures.py RESULT.json -o docs/img

Nothing is computed here that is not in the file; a picture whose figures were not measured is not drawn.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

WIDTH = 760
LIGHT = {
    "ink": "#1f2328",
    "soft": "#59636e",
    "rule": "#d1d9e0",
    "paper": "#ffffff",
    "bar": "#a8b3be",
    "series": ("#0969da", "#1a7f37", "#bc4c00", "#8250df", "#bf3989", "#7d6200", "#57606a"),
}
DARK = {
    "ink": "#f0f6fc",
    "soft": "#9198a1",
    "rule": "#3d444d",
    "paper": "#0d1117",
    "bar": "#57606a",
    "series": ("#4493f8", "#3fb950", "#f0883e", "#ab7df8", "#db61a2", "#d29922", "#9198a1"),
}
SHAPES = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; }
.title { font-size: 16px; font-weight: 600; } .soft { font-size: 12px; } .value { font-weight: 600; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; } .whisker { stroke-width: 1.5; }
"""


def colours(palette: dict[str, Any]) -> str:
    """The rules that depend on the scheme. Plain rules, not variables: more renderers know them."""
    rules = [
        f"text {{ fill: {palette['ink']}; }}",
        f"text.soft {{ fill: {palette['soft']}; }}",
        f".paper {{ fill: {palette['paper']}; }}",
        f".rule {{ stroke: {palette['rule']}; }}",
        f".bar {{ fill: {palette['bar']}; }}",
        f".ours {{ fill: {palette['series'][0]}; }}",
        f".whisker {{ stroke: {palette['ink']}; }}",
    ]
    for i, colour in enumerate(palette["series"]):
        rules.append(f"polyline.s{i} {{ stroke: {colour}; }} circle.s{i}, text.s{i} {{ fill: {colour}; }}")
    return "\n".join(rules)


STYLE = f"{SHAPES}{colours(LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{colours(DARK)}\n}}\n"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """One line of text."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} class="{kind}">{html.escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "rule") -> str:
    """One straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def number(value: float) -> str:
    """A figure as short as it can be said: 0.19, 12.4, 840, 16 k, 1.2 M."""
    for limit, divisor, letter in ((1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if value >= limit:
            return f"{value / divisor:.3g}{letter}"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def document(title: str, subtitle: str, height: float, parts: Iterable[str]) -> str:
    """The whole file around the parts of a picture."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{html.escape(title)}">\n<style>{STYLE}</style>\n'
        f'<rect class="paper" width="{WIDTH}" height="{height:.0f}" rx="6"/>\n'
        f"{text(24, 32, title, 'title')}\n{text(24, 52, subtitle, 'soft')}\n{body}\n</svg>\n"
    )


def bars(title: str, subtitle: str, rows: Sequence[tuple[str, float, float | None]], unit: str) -> str:
    """Horizontal bars from zero: name, value, and where a thin mark goes (a high percentile), or None."""
    left, right, top, step = 160, 110, 74, 30
    most = max(max(value, mark or 0) for _, value, mark in rows)
    scale = (WIDTH - left - right) / most
    parts = []
    for i, (name, value, mark) in enumerate(rows):
        y = top + i * step
        kind = "ours" if name.startswith("fabric") else "bar"
        parts.append(text(left - 10, y + 15, name, "value" if kind == "ours" else "", "end"))
        end = value * scale
        size = f'width="{max(end, 1):.1f}" height="20"'
        parts.append(f'<rect x="{left}" y="{y}" {size} rx="3" class="{kind}"/>')
        if mark is not None:
            parts.append(line(left + end, y + 10, left + mark * scale, y + 10, "whisker"))
            parts.append(line(left + mark * scale, y + 4, left + mark * scale, y + 16, "whisker"))
            end = max(end, mark * scale)
        parts.append(text(left + end + 8, y + 15, f"{number(value)} {unit}", "value" if kind == "ours" else ""))
    parts.append(line(left, top - 6, left, top + len(rows) * step - 4))
    return document(title, subtitle, top + len(rows) * step + 18, parts)


@dataclass(frozen=True)
class Axis:
    """A scale: what it says, where its ticks are, and how a value becomes a share of its length."""

    label: str
    ticks: Sequence[tuple[float, str]]
    place: Callable[[float], float]


def logarithmic(label: str, values: Sequence[float], steps: Sequence[int] = (1, 2, 5)) -> Axis:
    """A logarithmic axis whose ticks are 1, 2, 5, 10, …"""
    low, high = min(values), max(values)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [step * 10.0**exponent for exponent in exponents for step in steps]
    first = max((mark for mark in marks if mark <= low * 1.0001), default=low)
    last = min((mark for mark in marks if mark >= high * 0.9999), default=high)
    if first == last:
        last = first * 10
    span = math.log(last / first)
    ticks = [(mark, number(mark)) for mark in marks if first <= mark <= last]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if f"{tick[0]:e}".startswith("1.0")]
    return Axis(label, ticks, lambda value: math.log(value / first) / span)


def linear_from_zero(label: str, values: Sequence[float]) -> Axis:
    """A linear axis that starts at zero."""
    high = max(values)
    step = 10.0 ** math.floor(math.log10(high))
    step = next(s for s in (step / 5, step / 2, step, step * 2) if high / s <= 6)
    top = math.ceil(high / step) * step
    ticks = [(i * step, number(i * step) if i else "0") for i in range(round(top / step) + 1)]
    return Axis(label, ticks, lambda value: value / top)


def percentile_axis() -> Axis:
    """Nines at equal distances: 0, 90, 99, 99.9, 99.99 %."""
    shown = [
        (0.0, "0 %"),
        (50.0, "50 %"),
        (90.0, "90 %"),
        (99.0, "99 %"),
        (99.9, "99.9 %"),
        (99.99, "99.99 %"),
    ]
    return Axis("percentile", shown, lambda value: -math.log10(1 - min(value, 99.99) / 100) / 4)


Points = Sequence[tuple[float, float]]


def lines(title: str, subtitle: str, series: dict[str, Points], across: Axis, up: Axis, dots: bool = True) -> str:
    """Lines with their names at their ends."""
    left, right, top, height = 74, 160, 90, 300
    width = WIDTH - left - right
    parts = []
    for value, name in up.ticks:
        y = top + height * (1 - up.place(value))
        parts += [line(left, y, left + width, y), text(left - 8, y + 4, name, "soft", "end")]
    for value, name in across.ticks:
        x = left + width * across.place(value)
        parts += [
            line(x, top + height, x, top + height + 5),
            text(x, top + height + 20, name, "soft", "middle"),
        ]
    parts.append(text(left + width / 2, top + height + 42, across.label, "soft", "middle"))
    parts.append(text(24, top - 12, up.label, "soft"))
    ends: list[tuple[float, int, str]] = []
    for i, (name, points) in enumerate(series.items()):
        placed = [(left + width * across.place(x), top + height * (1 - up.place(y))) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" class="s{i}"/>')
        if dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="s{i}"/>' for x, y in placed]
        ends.append((placed[-1][1], i, name))
    free = 0.0  # names keep 17 px between them
    for y, i, name in sorted(ends):
        free = max(y, free)
        parts.append(text(left + width + 12, free + 4, name, f"value s{i}"))
        free += 17
    return document(title, subtitle, top + height + 60, parts)


# ------------------------------------------------------------------ what is drawn


class Results:
    """A result file, asked by workload and case."""

    def __init__(self, path: Path) -> None:
        self.everything: dict[str, Any] = json.loads(path.read_text())
        self.cases = {(r["workload"], r["case"]): r["peers"] for r in self.everything["results"]}

    def peers(self, workload: str, case: str) -> dict[str, Any]:
        """Peer -> what was measured; empty when the case did not run."""
        found: dict[str, Any] = self.cases.get((workload, case), {})
        return found

    def rows(
        self,
        workload: str,
        case: str,
        figure: str,
        scale: float = 1,
        mark: str = "",
        most_first: bool = False,
    ) -> list[tuple[str, float, float | None]]:
        """Bars of one figure, best first."""
        rows = [
            (name, peer["median"][figure] * scale, peer["median"][mark] * scale if mark else None)
            for name, peer in self.peers(workload, case).items()
            if figure in peer["median"]
        ]
        return sorted(rows, key=lambda row: row[1], reverse=most_first)

    def note(self) -> str:
        """Where and when, for the line below a title."""
        machine, versions = self.everything["machine"], self.everything["versions"]
        return f"{machine['processor']}, {machine['cores']} cores, Python {versions['python']}, loopback"


def draw_bars(results: Results) -> Iterable[tuple[str, str]]:
    """Name and content of every bar chart the file has figures for."""
    note = results.note()
    pipe = "1 × 32 B, depth 64"
    wanted = (
        # file, title, workload, case, figure, scale, unit, figure of the mark, biggest first
        ("pipelined-cpu", "Server CPU time per message, echo of 32 B, 64 in flight",
         "b", pipe, "cpu_ns", 1e-3, "µs", "", False),
        ("pipelined-rate", "Messages per second on one connection, echo of 32 B, 64 in flight",
         "b", pipe, "per_second", 1, "/s", "", True),
        ("ping-pong", "Round trip of 32 B, both ends on one core (mark: 95th percentile)",
         "a", "same core, 1 × 32 B", "p50", 1e-3, "µs", "p95", False),
        ("ping-pong-64", "Server CPU time per message, 64 connections in ping-pong, 32 B",
         "a", "two cores, 64 × 32 B", "cpu_ns", 1e-3, "µs", "", False),
        ("client-cpu", "Client CPU time per message, 32 B, 64 in flight",
         "d", "pipelined, depth 64, 32 B", "cpu_ns", 1e-3, "µs", "", False),
        ("tls-cpu", "Server CPU time per message over TLS, echo of 32 B, 64 in flight",
         "f", "pipelined 1 × 32 B, depth 64", "cpu_ns", 1e-3, "µs", "", False),
        ("compression", "Compressed echo of 1.2 KB JSON: server CPU time per message",
         "g", "JSON 1.2 KB, depth 16", "cpu_ns", 1e-3, "µs", "", False),
        ("connections", "Connections per second: TCP, upgrade, close handshake",
         "h", "32 at a time", "per_second", 1, "/s", "", True),
        ("idle-memory", "Private memory per idle connection, 1,000 connections",
         "i", "plain, 1000", "bytes_per_connection", 1 / 1024, "KB", "", False),
        ("instructions", "User-space instructions per echoed message of 32 B, 64 in flight (callgrind)",
         "n", pipe, "instructions", 1, "", "", False),
    )  # fmt: skip
    for name, title, workload, case, figure, scale, unit, mark, most_first in wanted:
        rows = results.rows(workload, case, figure, scale, mark, most_first)
        if rows:
            yield name, bars(title, note, rows, unit)


def draw_lines(results: Results) -> Iterable[tuple[str, str]]:
    """Name and content of every line chart the file has figures for."""
    note = results.note()
    curves: dict[str, Points] = {
        name: [(share, value / 1e3) for share, value in peer["percentiles"] if share <= 99.99]
        for name, peer in results.peers("a", "two cores, 1 × 32 B").items()
        if "percentiles" in peer
    }
    if curves:
        up = logarithmic("µs", [y for points in curves.values() for _, y in points])
        title = "Round trip of 32 B between two cores, one message in flight"
        yield "latency", lines(title, note, dict(list(curves.items())[:7]), percentile_axis(), up, dots=False)

    for picture, case, what in (
        ("busy-polling", "asyncio at both ends, 1 × 32 B", "sleeping and polling"),
        ("blocking", "blocking client, asyncio server, 1 × 32 B", "clients whose calls block"),
    ):
        polled: dict[str, Points] = {
            name: [(share, value / 1e3) for share, value in peer["percentiles"]]
            for name, peer in results.peers("l", case).items()
            if "percentiles" in peer
        }
        if polled:
            up = logarithmic("µs", [y for points in polled.values() for _, y in points])
            title = f"Round trip of 32 B between two cores: {what}"
            yield picture, lines(title, note, polled, percentile_axis(), up, dots=False)

    rates = open_loop_series(results)
    if rates:
        across = logarithmic("messages per second, sent at a fixed rate (10 to 90 % of each one's capacity)",
                             [x for points in rates.values() for x, _ in points])  # fmt: skip
        up = logarithmic("99th percentile, µs", [y for points in rates.values() for _, y in points])
        title = "Latency under load, counted from when each message was due"
        yield "open-loop", lines(title, note, rates, across, up)

    sizes = (100, 1000, 5000)
    spread: dict[str, Points] = {}
    for count in sizes:
        for name, peer in results.peers("e", f"{count} × 128 B").items():
            spread[name] = [*spread.get(name, ()), (count, peer["median"]["per_second"])]
    spread = {name: points for name, points in spread.items() if len(points) == len(sizes)}
    if spread:
        across = logarithmic("connections", [float(count) for count in sizes])
        up = linear_from_zero("deliveries per second", [y for points in spread.values() for _, y in points])
        yield (
            "broadcast",
            lines("Broadcast of 128 B to everybody", note, dict(list(spread.items())[:7]), across, up),
        )

    growth: dict[str, Points] = {}
    for count in (8, 64, 512, 4096):
        for name, peer in results.peers("j", f"{count} connections × depth 8, 32 B").items():
            growth[name] = [*growth.get(name, ()), (count, peer["median"]["cpu_ns"] / 1e3)]
    if growth:
        across = logarithmic("connections", [8, 4096])
        up = linear_from_zero("server CPU µs per message", [y for points in growth.values() for _, y in points])
        title = "Cost of a message as connections grow (32 B, 8 in flight on each)"
        yield "growth", lines(title, note, growth, across, up)


def open_loop_series(results: Results) -> dict[str, Points]:
    """Peer -> (rate, p99 in µs) at each rate that was tried."""
    series: dict[str, Points] = {}
    for name, peer in results.peers("c", "16 × 32 B").items():
        median = peer["median"]
        shares = [key.removeprefix("p99 at ") for key in median if key.startswith("p99 at ")]
        series[name] = sorted((median[f"achieved at {share}"], median[f"p99 at {share}"] / 1e3) for share in shares)
    return {name: points for name, points in series.items() if points}


def newest_full() -> Path:
    """The last full result there is."""
    found = sorted((HERE / "results").glob("*-full.json"))
    if not found:
        sys.exit("no full result in perf/results: run python perf/suite.py first, or name a file")
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", nargs="?", type=Path, help="result file (default: the newest full one)")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "pictures", help="folder")
    chosen = parser.parse_args()
    results = Results(chosen.result or newest_full())
    chosen.output.mkdir(parents=True, exist_ok=True)
    for draw in (draw_bars, draw_lines):
        for name, content in draw(results):
            (chosen.output / f"{name}.svg").write_text(content)
            print(chosen.output / f"{name}.svg")


if __name__ == "__main__":
    main()
