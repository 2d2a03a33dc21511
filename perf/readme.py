"""Puts the figures of one result file into README.md and docs/performance.md, between their two marks.

    python perf/readme.py                  the newest full result
    python perf/readme.py RESULT.json
    python perf/readme.py --check          changes nothing; fails when a page says something else

Nothing is computed here that is not in the file. What was not measured is shown as such, and a picture that
`pictures.py` has not drawn is left out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import POLLING
from pictures import HERE, Results, number

ROOT = HERE.parent
PICTURES = HERE / "results" / "pictures"
MARKS = re.compile(r"(<!-- figures:[^>]*-->\n).*?(<!-- end of figures -->)", re.S)
NONE_YET = (
    "No full run of the suite has been committed yet. `make bench` measures everything on your machine and "
    "writes a file to\n`perf/results`; `python perf/readme.py` puts its figures and pictures here.\n"
)

PEERS = ("fabric", "fabric callbacks", "picows core", "picows.websockets", "aiohttp", "websockets")

PIPE = "1 × 32 B, depth 64"
JSON = "JSON 1.2 KB, depth 16"
KB = 1 / 1024


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure of every peer."""

    text: str
    workload: str
    case: str
    figure: str
    scale: float = 1
    unit: str = ""
    ours: str = "fabric"  # the peer that stands in the column of `fabric`


ROWS = (
    Row("Server CPU per message, echo of 32 B, 64 in flight", "b", PIPE, "cpu_ns", 1e-3, " µs"),
    Row("Messages per second, the same, one connection", "b", PIPE, "per_second"),
    Row("Round trip of 32 B on one core, p50", "a", "same core, 1 × 32 B", "p50", 1e-3, " µs"),
    Row("Round trip of 32 B between two cores, p50", "a", "two cores, 1 × 32 B", "p50", 1e-3, " µs"),
    Row("the same, p95", "a", "two cores, 1 × 32 B", "p95", 1e-3, " µs"),
    Row(
        "Round trip between two cores, asyncio at both ends, p50",
        "l",
        "asyncio at both ends, 1 × 32 B",
        "p50",
        1e-3,
        " µs",
    ),
    Row(
        "the same with `busy_poll`, for a processor at each end",
        "l",
        "asyncio at both ends, 1 × 32 B",
        "p50",
        1e-3,
        " µs",
        ours=POLLING,
    ),
    Row("Client CPU per message, 64 in flight", "d", "pipelined, depth 64, 32 B", "cpu_ns", 1e-3, " µs"),
    Row("Deliveries per second, broadcast to 1,000", "e", "1000 × 128 B", "per_second"),
    Row("Server CPU per message over TLS", "f", "pipelined 1 × 32 B, depth 64", "cpu_ns", 1e-3, " µs"),
    Row("Server CPU per message, JSON of 1.2 KB compressed", "g", JSON, "cpu_ns", 1e-3, " µs"),
    Row("Bytes saved, the same", "g", JSON, "saved", 100, " %"),
    Row("Connections opened and closed per second", "h", "32 at a time", "per_second"),
    Row("Memory of an idle connection, 1,000 of them", "i", "plain, 1000", "bytes_per_connection", KB, " KB"),
    Row("the same, 9,000 of them", "i", "plain, 9000", "bytes_per_connection", KB, " KB"),
)

# File of pictures.py, and what it shows.
SHOWN = {
    "pipelined-cpu": "Server CPU time per message, echo of 32 B with 64 in flight",
    "pipelined-rate": "Messages per second on one connection",
    "ping-pong": "Round trips with both ends on one core",
    "latency": "Round trips between two cores, by percentile",
    "busy-polling": "Round trips between two cores, sleeping and polling",
    "blocking": "Round trips of clients whose calls block",
    "open-loop": "Latency under load, counted from when each message was due",
    "ping-pong-64": "Server CPU time per message, 64 connections in ping-pong",
    "client-cpu": "Client CPU time per message",
    "broadcast": "Broadcast to everybody",
    "growth": "Cost of a message as connections grow",
    "compression": "Compressed echo of JSON",
    "tls-cpu": "Echo over TLS",
    "connections": "Connections per second",
    "idle-memory": "Private memory per idle connection",
    "instructions": "User-space instructions per message",
}
FIRST = ("pipelined-cpu", "latency", "idle-memory")


def origin(results: Results) -> str:
    """What was measured, where and when."""
    whole, machine, effort = (results.everything, *(results.everything[name] for name in ("machine", "effort")))
    versions = whole["versions"]
    names = {"picows": "picows", "aiohttp": "aiohttp", "websockets": "websockets", "uvloop": "uvloop"}
    beside = ", ".join(f"{name} {versions[key]}" for key, name in names.items() if versions.get(key))
    tree = " with changes" if whole.get("dirty") else ""
    where = f"{machine['processor']}, {machine['cores']} {'virtual ' if machine.get('virtual') else ''}cores"
    return (
        f"Measured {whole['began'][:10]} at commit {whole['commit'][:10]}{tree}: {where}, over loopback;\n"
        f"Python {versions['python']}, {beside}.\n"
        f"Medians; peers took turns, {effort['rounds'] * effort['turns']} times each"
        f" in {effort['rounds']} processes of their own.\n"
    )


def table(results: Results) -> Iterator[str]:
    """The figures of all peers that have any."""
    peers = [peer for peer in PEERS if any(peer in results.peers(row.workload, row.case) for row in ROWS)]
    yield f"| | {' | '.join(peers)} |"
    yield f"| --- {'| ---: ' * len(peers)}|"
    for row in ROWS:
        found = results.peers(row.workload, row.case)
        if found:
            yield f"| {row.text} | {' | '.join(cell(found, peer, row) for peer in peers)} |"


def cell(found: dict[str, Any], peer: str, row: Row) -> str:
    if row.ours != "fabric":
        if peer != "fabric":
            return "—"
        peer = row.ours
    value = found.get(peer, {}).get("median", {}).get(row.figure)
    return "—" if value is None else f"{number(value * row.scale)}{row.unit}"


def bars(results: Results) -> Iterator[str]:
    """The bars of the suite and whether they are met."""
    yield "| bar | figure | limit | |"
    yield "| --- | ---: | ---: | --- |"
    for bar in results.everything["bars"]:
        sign = "≤" if bar["sense"] == "at most" else "≥"
        value = "—" if bar["value"] is None else number(bar["value"])
        if "by_cpu" in bar:
            value += f" ({number(bar['by_cpu'])} by CPU time)"
        if "floor" in bar:
            value += f" (raw C: {number(bar['floor'])})"
        limit = f"{sign} {number(bar['limit'])} {bar['unit']}".strip()
        yield f"| ({bar['workload']}) {bar['bar']} | {value} | {limit} | {bar['verdict']} |"


def pictures(names: tuple[str, ...], folder: str) -> Iterator[str]:
    for name in names:
        if (PICTURES / f"{name}.svg").exists():
            yield f"![{SHOWN[name]}]({folder}/{name}.svg)\n"


def in_readme(results: Results) -> str:
    """A table and the first pictures."""
    return "\n".join([origin(results), *table(results), "", *pictures(FIRST, "perf/results/pictures")])


def in_docs(results: Results) -> str:
    """All of it."""
    return "\n".join(
        [
            origin(results),
            *table(results),
            "",
            *pictures(tuple(SHOWN), "../perf/results/pictures"),
            "## Bars\n",
            "What the project asks of itself, as ratios within one run wherever they can be.\n",
            *bars(results),
            "",
        ]
    )


PAGES = {ROOT / "README.md": in_readme, ROOT / "docs" / "performance.md": in_docs}


def main() -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("result", nargs="?", type=Path, help="result file (default: the newest full one)")
    parser.add_argument("--check", action="store_true", help="only say whether the pages are up to date")
    chosen = parser.parse_args()
    newest = chosen.result or max((HERE / "results").glob("*-full.json"), default=None)
    results = None if newest is None else Results(newest)
    stale = []
    for page, write in PAGES.items():
        before = page.read_text()
        text = NONE_YET if results is None else write(results)
        after = MARKS.sub(lambda match, text=text: f"{match[1]}{text}{match[2]}", before)  # type: ignore[misc]
        if after == before:
            continue
        stale.append(str(page.relative_to(ROOT)))
        if not chosen.check:
            page.write_text(after)
    if chosen.check and stale:
        print(f"not up to date with {newest}: {', '.join(stale)}; run python perf/readme.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
