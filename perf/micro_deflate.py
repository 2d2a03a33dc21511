"""What compressing a message costs, and what it saves, beside zlib, zlib-ng and isal; pyperf's options apply.

Market-feed JSON of three sizes, context takeover, each message flushed to a byte: what permessage-deflate
does. The savings, and the memory of a connection's state, are printed by `--facts`, which measures no time.
"""

from __future__ import annotations

import gc
import json
import random
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyperf

from fabric_ext.deflate import Codec, DeflateCodec, ZstdCodec

SIZES = {"150 B": (150, 200), "1.2 KB": (1200, 100), "10 KB": (10_000, 20)}  # bytes and messages
LIMIT = 1 << 20
CONNECTIONS = 500

Call = Callable[[bytes], bytes]
Make = Callable[[], tuple[Any, Call, Call]]  # a connection's state, its compress, its decompress


def make_messages(size: int, count: int) -> list[bytes]:
    """Order-book updates: the same keys, changing figures."""
    chance = random.Random(size)
    made = []
    for sequence in range(count):
        changes: list[dict[str, str]] = []
        message = {
            "type": "update",
            "symbol": chance.choice(["BTC-USD", "ETH-USD", "SOL-USD"]),
            "sequence": 81_000_000 + sequence * 3,
            "time": f"2026-03-02T14:{chance.randrange(60):02}:{chance.uniform(0, 60):09.6f}Z",
            "changes": changes,
        }
        while len(json.dumps(message, separators=(",", ":"))) < size - 20:
            price, amount = chance.gauss(64_000, 40), chance.expovariate(2)
            side = chance.choice(["buy", "sell"])
            changes.append({"side": side, "price": f"{price:.2f}", "size": f"{amount:.4f}"})
        made.append(json.dumps(message, separators=(",", ":")).encode())
    return made


def own(make: type[DeflateCodec | ZstdCodec], bits: int, level: int) -> tuple[Any, Call, Call]:
    codec: Codec = make(own_window_bits=bits, peer_window_bits=bits, level=level)
    return codec, codec.encode, lambda data: codec.decode(data, limit=LIMIT)


def other(module: Any, bits: int, level: int, mem_level: int) -> tuple[Any, Call, Call]:
    sender = module.compressobj(level, module.DEFLATED, -bits, mem_level)
    receiver = module.decompressobj(-bits)

    def compress(data: bytes) -> bytes:
        return (sender.compress(data) + sender.flush(module.Z_SYNC_FLUSH))[:-4]  # type: ignore[no-any-return]

    def decompress(data: bytes) -> bytes:
        return receiver.decompress(data + b"\x00\x00\xff\xff", LIMIT)  # type: ignore[no-any-return]

    return (sender, receiver), compress, decompress


def contestants() -> dict[str, Make]:
    found: dict[str, Make] = {}
    for bits, level in ((12, 1), (12, 3), (12, 4), (12, 6), (15, 6), (15, 9)):
        found[f"fabric -{level}, {bits} bits"] = partial(own, DeflateCodec, bits, level)
    for bits in (12, 15):
        found[f"fabric zstd -3, {bits} bits"] = partial(own, ZstdCodec, bits, 3)
    modules = (
        ("zlib", "zlib", (1, 6)),
        ("zlib-ng", "zlib_ng.zlib_ng", (1, 4)),
        ("isal", "isal.isal_zlib", (1,)),
    )
    for name, path, levels in modules:
        if find_spec(path.partition(".")[0]):
            module = import_module(path)
            for level in levels:
                for bits, mem_level in ((12, 5), (15, 8)):
                    found[f"{name} -{level}, {bits} bits"] = partial(other, module, bits, level, mem_level)
    return found


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def describe(name: str) -> str:
    """One contestant's savings and memory; to be called in a fresh process."""
    make = contestants()[name]
    columns = []
    held = []
    for size, (length, count) in SIZES.items():
        messages = make_messages(length, count)
        _, compress, decompress = make()
        payloads = [compress(message) for message in messages]
        assert [decompress(payload) for payload in payloads] == messages
        columns.append(f"{size} {1 - sum(map(len, payloads)) / sum(map(len, messages)):6.1%}")
        gc.collect()
        before = resident()
        kept = []
        for _ in range(CONNECTIONS):
            state, compress, decompress = make()
            decompress(compress(messages[0]))
            kept.append(state)
        columns[-1] += f", {(resident() - before) / CONNECTIONS / 1024:4.0f} KB"
        held.append(kept)  # what is freed would hide what the next size takes
    return f"{name:22}   " + "   ".join(columns)


def print_facts() -> None:
    fresh = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as processes:
        for line in processes.map(describe, contestants()):
            print(line, flush=True)


def compress_all(make: Make, messages: list[bytes]) -> None:
    _, compress, _ = make()
    for message in messages:
        compress(message)


def decompress_all(make: Make, payloads: list[bytes]) -> None:
    _, _, decompress = make()
    for payload in payloads:
        decompress(payload)


def bench(runner: pyperf.Runner) -> None:
    for size, (length, count) in SIZES.items():
        messages = make_messages(length, count)
        for name, make in contestants().items():
            _, compress, _ = make()
            payloads = [compress(message) for message in messages]
            runner.bench_func(f"{name}: compress {size}", compress_all, make, messages, inner_loops=count)
            runner.bench_func(f"{name}: decompress {size}", decompress_all, make, payloads, inner_loops=count)


if __name__ == "__main__":
    if "--facts" in sys.argv:
        print_facts()
    else:
        bench(pyperf.Runner())
