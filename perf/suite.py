"""The performance suite: measures `fabric` and its peers in turns and says where it stands.

    python perf/suite.py                        everything, under 20 minutes
    python perf/suite.py --quick                the figures that matter most, under 2 minutes
    python perf/suite.py -w ab -p fabric,picows\\ core -r 5

For every case the peers take turns (A B C A B C …), the server bound to core 0 and the load to core 1; in each round
in fresh processes. What is reported is the median of all turns with its quartiles, and the ratio to `fabric`, turn by
turn: what the machine's mood does to one it does to the other. Results go to perf/results/ as JSON;
`pictures.py` draws them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bars
import machine
import process
import tools
from process import Failed
from workloads import WORKLOADS, Case, Effort

FULL = Effort(seconds=0.25, warmup=0.1, rounds=2, turns=4)
QUICK = Effort(seconds=0.2, warmup=0.1, rounds=1, turns=4, quick=True)
MICRO_SECONDS = 270  # for all micro-benchmarks together; alone, each takes the time that pyperf wants
RESULTS = tools.HERE / "results"

#: Figure -> (heading, divisor, format): what the table on the terminal shows, in this order.
COLUMNS = {
    "cpu_ns": ("CPU µs/msg", 1e3, "{:,.2f}"),
    "publish_ns": ("publish µs", 1e3, "{:,.2f}"),
    "back_s": ("back s", 1, "{:,.2f}"),
    "per_second": ("per second", 1, "{:,.0f}"),
    "p50": ("p50 µs", 1e3, "{:,.1f}"),
    "p99": ("p99 µs", 1e3, "{:,.1f}"),
    "p999": ("p99.9 µs", 1e3, "{:,.1f}"),
    "megabytes_per_second": ("MB/s", 1, "{:,.1f}"),
    "saved": ("saved %", 0.01, "{:.1f}"),
    "bytes_per_connection": ("KB/conn", 1024, "{:,.2f}"),
    "megabytes": ("MB", 1, "{:,.1f}"),
    "cpu_share": ("CPU %", 0.01, "{:.2f}"),
    "instructions": ("instr/msg", 1, "{:,.0f}"),
    "capacity": ("capacity/s", 1, "{:,.0f}"),
    "p50 at 20 k/s": ("p50@20k/s", 1e3, "{:,.1f}"),
    "p99 at 20 k/s": ("p99@20k/s", 1e3, "{:,.1f}"),
    "p50 at 60 k/s": ("p50@60k/s", 1e3, "{:,.1f}"),
    "p99 at 60 k/s": ("p99@60k/s", 1e3, "{:,.1f}"),
    "p50 at 50%": ("p50@50%", 1e3, "{:,.1f}"),
    "p99 at 50%": ("p99@50%", 1e3, "{:,.1f}"),
    "p50 at 90%": ("p50@90%", 1e3, "{:,.1f}"),
    "p99 at 90%": ("p99@90%", 1e3, "{:,.1f}"),
}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and quartiles of every figure over the rounds; curves are kept from the run in the middle."""
    names = [name for name, value in runs[0].items() if isinstance(value, int | float)]
    found: dict[str, Any] = {"median": {}, "quartiles": {}}
    for name in names:
        values = sorted(run[name] for run in runs if run.get(name) is not None)
        if not values:
            continue
        found["median"][name] = statistics.median(values)
        if len(values) > 1:
            quarters = statistics.quantiles(values, n=4, method="inclusive")
            found["quartiles"][name] = [quarters[0], quarters[2]]
    curves = sorted((run for run in runs if "percentiles" in run), key=lambda run: run["p50"])
    if curves:
        found["percentiles"] = curves[len(curves) // 2]["percentiles"]
    found["runs"] = [{name: run.get(name) for name in names} for run in runs]
    return found


def measure(case: Case, peers: list[str], effort: Effort) -> dict[str, Any]:
    """All turns of one case. A peer that fails is left out, with its reason."""
    runs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    failed: dict[str, str] = {}
    for _ in range(case.rounds or effort.rounds):
        with contextlib.ExitStack() as started:
            turns = {}
            for peer in peers:
                try:
                    turns[peer] = started.enter_context(case.start(peer))
                except Failed as error:
                    failed[peer] = str(error)
            for _ in range(case.turns or effort.turns):
                for peer, turn in turns.items():
                    if peer not in failed:
                        try:
                            runs[peer].append(turn(effort))
                        except Failed as error:
                            failed[peer] = str(error)
    results = {peer: summary(done) for peer, done in runs.items() if done and peer not in failed}
    return {
        "workload": case.workload,
        "case": case.name,
        "facts": case.facts,
        "peers": results,
        "failed": failed,
        "ratios": {
            peer: {name: ratio for name in result["median"] if (ratio := bars.ratio(result, results["fabric"], name))}
            for peer, result in results.items()
            if "fabric" in results
        },
    }


def show(result: dict[str, Any]) -> None:
    """Prints one case as a table."""
    print(f"\n({result['workload']}) {result['case']}")
    peers = result["peers"]
    columns = [name for name in COLUMNS if any(name in peer["median"] for peer in peers.values())]
    if peers:
        print(" " * 20 + "".join(f"{COLUMNS[name][0]:>13}" for name in columns) + f"{'× fabric':>11}")
    for peer, found in peers.items():
        cells = []
        for name in columns:
            _, divisor, layout = COLUMNS[name]
            value = found["median"].get(name)
            cells.append(f"{'' if value is None else layout.format(value / divisor):>13}")
        ratio = result["ratios"].get(peer, {}).get(columns[0]) if columns else None
        print(f"  {peer:<18}" + "".join(cells) + (f"{ratio:>11.2f}" if ratio else ""))
    for peer, found in peers.items():
        share = found["median"].get("load_share", 0)
        if share > 0.9:
            print(f"  note: the load generator was {share:.0%} busy against {peer}")
    for peer, reason in result["failed"].items():
        print(f"  {peer:<18} not measured: {reason[:120]}")
    sys.stdout.flush()


def run_micro(quick: bool) -> dict[str, Any]:
    """Runs every perf/micro_*.py with pyperf and collects their means (ns per operation)."""
    found: dict[str, Any] = {}
    end = time.monotonic() + MICRO_SECONDS
    for script in sorted(tools.HERE.glob("micro_*.py")):
        out = tools.BUILD / f"{script.stem}.json"
        out.unlink(missing_ok=True)
        command = [sys.executable, str(script), "-o", str(out), "--quiet"]
        command += ["-p", "2", "-n", "3", "-w", "1", "--min-time", "0.01" if quick else "0.02"]
        print(f"\n{script.name}", flush=True)
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=max(1, end - time.monotonic()),
                cwd=tools.HERE,
                env=process.environment(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            print("  no time left for it; run it alone")
            continue
        if done.returncode or not out.exists():
            print("  failed: " + (done.stderr.strip().splitlines() or ["no result"])[-1])
            continue
        import pyperf  # type: ignore[import-untyped]  # only here: the rest of the suite needs no packages

        benchmarks = pyperf.BenchmarkSuite.load(str(out)).get_benchmarks()
        means = {bench.get_name(): bench.mean() * 1e9 for bench in benchmarks}
        for name, mean in means.items():
            print(f"  {name:<60}{mean:>14,.1f} ns")
        found[script.stem] = means
    return found


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    letters = "".join(WORKLOADS)
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("-q", "--quick", action="store_true", help="few cases, few peers, short runs")
    parser.add_argument("-w", "--workloads", default=letters, help=f"out of {letters} (n: instructions)")
    parser.add_argument("-c", "--case", default="", help="only cases whose name contains this")
    parser.add_argument("-p", "--peers", default="", help="comma-separated; default: all that a case has")
    parser.add_argument("-r", "--rounds", type=int, help="fresh processes of each peer, per case")
    parser.add_argument("-t", "--turns", type=int, help="measurements of each process")
    parser.add_argument("-s", "--seconds", type=float, help="measured seconds per turn")
    parser.add_argument("-m", "--micro", action=argparse.BooleanOptionalAction, default=None,
                        help="the pyperf micro-benchmarks too (default: in a full run)")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, help="result file (default: perf/results/TIME.json)")
    parser.add_argument("-n", "--no-output", action="store_true", help="write no file")
    chosen = parser.parse_args()
    unknown = set(chosen.workloads) - set(letters)
    if unknown:
        parser.error(f"unknown workloads: {''.join(sorted(unknown))}")
    return chosen


def main() -> int:
    chosen = arguments()
    base = QUICK if chosen.quick else FULL
    effort = replace(
        base,
        seconds=chosen.seconds or base.seconds,
        rounds=chosen.rounds or base.rounds,
        turns=chosen.turns or base.turns,
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = time.time()
    missing = tools.prepare()
    for what, why in missing.items():
        print(f"missing: {what}: {why}")
    if os.getloadavg()[0] > 0.5:
        print(f"note: load average {os.getloadavg()[0]:.1f}; trust CPU per message and ratios, not rates")

    results = []
    wanted = [name.strip() for name in chosen.peers.split(",") if name.strip()]
    for letter, (title, cases) in WORKLOADS.items():
        if letter not in chosen.workloads:
            continue
        print(f"\n=== ({letter}) {title}")
        for case in cases(chosen.quick):
            if chosen.case not in case.name:
                continue
            peers = [peer for peer in case.peers if not wanted or peer in wanted]
            result = measure(case, peers, effort)
            results.append(result)
            show(result)

    everything = set(chosen.workloads) == set(WORKLOADS) and not chosen.quick
    micro = run_micro(chosen.quick) if (everything if chosen.micro is None else chosen.micro) else {}

    rows = bars.evaluate(bars.Measured(results), chosen.workloads)
    narrowed = chosen.case or chosen.peers or chosen.quick
    shown = [row for row in rows if row["value"] is not None or not narrowed]
    if shown:
        print("\n=== bars\n" + bars.table(shown))
    print(f"\n{time.time() - began:.0f} s")

    if not chosen.no_output:
        RESULTS.mkdir(exist_ok=True)
        name = "quick" if chosen.quick else "full"
        path = chosen.output or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(began))}-{name}.json"
        document = {
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
            "took_seconds": round(time.time() - began, 1),
            **machine.commit(),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "effort": asdict(effort),
            "missing": missing,
            "bars": rows,
            "results": results,
            "micro": micro,
        }
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
