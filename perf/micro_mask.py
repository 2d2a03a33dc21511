"""What masking one payload costs, beside memcpy and others.

    python perf/micro_mask.py               pyperf's options apply

From C, as a connection masks, and from Python, as each package offers it. Of picows only the vector loop can
be reached, on aligned data and without the scalar bytes that it begins with. Payloads are in the cache, as
those of a connection are. The loops in C, `mask_from_c.pyx`, are compiled on first use, as for
`micro_histogram.py`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pyperf

from fabric_ext.mask import mask, mask_inplace, random_key
from micro_histogram import compiled

SIZES = (32, 1024, 65_536)
LOOPS = 100
KEY = b"\x37\xfa\x21\x3d"
NUMBER = int.from_bytes(KEY, "little")


def picows_loop() -> int | None:
    """The address of picows' vector loop for this processor, where the platform's loader shows it."""
    import picows.picows

    library = ctypes.PyDLL(picows.picows.__file__)
    try:
        library.get_apply_mask_fast_fn.restype = ctypes.c_void_p
    except AttributeError:
        return None
    address: int | None = library.get_apply_mask_fast_fn()
    return address


def aligned(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer) + 63 & ~63


def from_c(runner: pyperf.Runner) -> None:
    module = compiled(Path(__file__).with_name("mask_from_c.pyx"))
    source, target = (ctypes.create_string_buffer(max(SIZES) + 128) for _ in range(2))
    src, dst = aligned(source), aligned(target)

    def bench(name: str, function: Callable[..., None], *arguments: int) -> None:
        def measure(loops: int) -> float:
            start = time.perf_counter()
            function(loops * LOOPS, *arguments)
            return time.perf_counter() - start

        runner.bench_time_func(name, measure, inner_loops=LOOPS)

    loop = picows_loop()
    for size in SIZES:
        bench(f"C memcpy {size}", module.repeat_copy, dst, src, size)
        bench(f"C fabric {size}", module.repeat_mask, dst, src, size, NUMBER)
        bench(f"C fabric unaligned {size}", module.repeat_mask, dst + 6, src + 33, size, NUMBER)
        bench(f"C fabric in place {size}", module.repeat_mask, dst, dst, size, NUMBER)
        if loop is not None and size >= 64:  # below, it leaves all to scalar code
            bench(f"C picows loop {size}", module.repeat_picows, loop, dst, src, size, NUMBER)
            bench(f"C picows loop in place {size}", module.repeat_picows, loop, dst, dst, size, NUMBER)


def from_python(runner: pyperf.Runner) -> None:
    for size in SIZES:
        payload, buffer = bytes(size), bytearray(size)
        runner.bench_func(f"bytes() {size}", bytes, buffer)
        runner.bench_func(f"fabric {size}", mask, payload, KEY)
        runner.bench_func(f"fabric in place {size}", mask_inplace, buffer, KEY)
        if find_spec("websockets"):
            from websockets.speedups import apply_mask

            runner.bench_func(f"websockets {size}", apply_mask, payload, KEY)
        if find_spec("aiohttp"):
            from aiohttp._websocket.helpers import websocket_mask

            runner.bench_func(f"aiohttp in place {size}", websocket_mask, KEY, buffer)
    runner.bench_func("random_key", random_key)


def main() -> None:
    runner = pyperf.Runner()
    from_c(runner)
    from_python(runner)


if __name__ == "__main__":
    main()
