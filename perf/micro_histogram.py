"""What recording a latency costs: from C, from Python, in PyPI's `hdrhistogram`. Takes pyperf's options.

The values are a thousand latencies between 50 and 150 µs, so that more than one counter is touched.
The loop in C is `record_from_c.pyx`, compiled on first use into the temporary directory; it needs Cython.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pyperf

from fabric.metrics import MetricsCollector
from fabric_ext.histogram import Histogram

LOWEST, STEP, N = 50_000, 100, 1000
VALUES = list(range(LOWEST, LOWEST + STEP * N, STEP))
SECONDS = [value / 1e9 for value in VALUES]


def compiled(source: Path) -> ModuleType:
    """The extension module built from `source`, built again when the source or the interpreter changed."""
    stamp = f"{source.stat().st_mtime_ns}-{sys.implementation.cache_tag}"
    target = Path(tempfile.gettempdir()) / f"fabric-perf-{stamp}"
    if not list(target.glob(f"{source.stem}.*.so")):
        target.mkdir(exist_ok=True)
        copy = target / source.name
        copy.write_text(source.read_text())
        build = [sys.executable, "-m", "Cython.Build.Cythonize", "--inplace", "--quiet", "-3", str(copy)]
        subprocess.run(build, check=True, cwd=Path(__file__).parent.parent)
    (library,) = target.glob(f"{source.stem}.*.so")
    spec = importlib.util.spec_from_file_location(source.stem, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def repeat(call: object, values: object) -> None:
    for value in values:  # type: ignore[attr-defined]
        call(value)  # type: ignore[operator]


def main() -> None:
    runner = pyperf.Runner()
    record_range = compiled(Path(__file__).with_name("record_from_c.pyx")).record_range

    def from_c(loops: int) -> float:
        histogram = Histogram()
        start = time.perf_counter()
        record_range(histogram, loops * N, LOWEST, STEP, N)
        return time.perf_counter() - start

    def nothing(value: object) -> None: ...

    runner.bench_time_func("record from C", from_c, inner_loops=N)
    runner.bench_func("an empty Python function, for scale", repeat, nothing, VALUES, inner_loops=N)
    runner.bench_func("Histogram.record", repeat, Histogram().record, VALUES, inner_loops=N)
    record_latency = MetricsCollector().record_latency
    runner.bench_func("MetricsCollector.record_latency", repeat, record_latency, SECONDS, inner_loops=N)
    filled = Histogram()
    repeat(filled.record, VALUES)
    percentiles = [50, 95, 99, 99.9]
    runner.bench_func("four percentiles", filled.values_at_percentiles, percentiles)
    runner.bench_func("encode", filled.encode)

    if find_spec("hdrh"):
        from hdrh.histogram import HdrHistogram

        peer = HdrHistogram(1, filled.highest_trackable, 3)
        runner.bench_func("hdrhistogram record_value", repeat, peer.record_value, VALUES, inner_loops=N)
        runner.bench_func("hdrhistogram four percentiles", peer.get_percentile_to_value_dict, percentiles)
        runner.bench_func("hdrhistogram encode", peer.encode)


if __name__ == "__main__":
    main()
