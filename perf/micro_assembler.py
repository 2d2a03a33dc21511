"""What one fragment costs to reassemble, beside PyPI.

    python perf/micro_assembler.py              pyperf's options apply

A message of 64 KiB in fragments of 64 B and of 4 KiB; the figure is for one fragment, its share of joining,
validating and decoding included. "join, decode" is the least a pure Python library can do: it knows no order,
no limit, no bad byte before the end. "incremental" also fails text at its first bad byte. `websockets` and
`wsproto` are measured from the parsed frame on, if installed. Last, text in one piece, per KiB.
"""

from __future__ import annotations

import asyncio
import codecs
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pyperf

from fabric_ext.assembler import Assembler

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT, BINARY, CONTINUATION = 1, 2, 0
SIZE = 64 * 1024
TEXTS = {
    "ASCII": '{"symbol":"EURUSD","bid":1.08341,"ask":1.08343,"at":1718000000123}',
    "latin": '{"name":"Müller","city":"Zürich","text":"déjà vu, señor"}',
    "CJK": "速く、正しく、美しく。通信は一瞬で終わる。",
}

Fragments = list[tuple[int, bool, bytes]]


def payload_of(text: str) -> bytes:
    """About SIZE bytes, whole characters only."""
    return (text * (SIZE // len(text.encode()))).encode()


def cut(payload: bytes, size: int, opcode: int) -> Fragments:
    starts = range(0, len(payload), size)
    return [
        (opcode if start == 0 else CONTINUATION, start + size >= len(payload), payload[start : start + size])
        for start in starts
    ]


# --- contenders: each takes the fragments of one message and returns it -------------------------------------


def ours(assembler: Assembler, fragments: Fragments) -> str | bytes:
    push = assembler.push
    for opcode, fin, data in fragments:
        push(opcode, fin, data)
    return assembler.take()


def join(fragments: Fragments) -> str | bytes:
    # A transport's buffer is reused, so whoever keeps a fragment copies it.
    whole = b"".join([bytes(memoryview(data)) for _, _, data in fragments])
    return whole.decode() if fragments[0][0] == TEXT else whole


def incremental(fragments: Fragments) -> str:
    decode = codecs.getincrementaldecoder("utf-8")().decode
    return "".join([decode(data, fin) for _, fin, data in fragments])


def websockets_contender(fragments: Fragments) -> Callable[[], object]:
    from websockets.asyncio.messages import Assembler as Theirs
    from websockets.frames import Frame, Opcode

    frames = [Frame(Opcode(opcode), data, fin) for opcode, fin, data in fragments]

    async def construct() -> Theirs:
        return Theirs()

    theirs = asyncio.run(construct())

    def run() -> object:
        for frame in frames:
            theirs.put(frame)
        try:
            theirs.get().send(None)  # all is there: it does not wait
        except StopIteration as done:
            return done.value
        raise AssertionError("the message is not finished")

    return run


def wsproto_contender(fragments: Fragments) -> Callable[[], object]:
    from wsproto.frame_protocol import Frame, MessageDecoder, Opcode

    frames = [Frame(Opcode(opcode), data, True, fin) for opcode, fin, data in fragments]
    empty: str | bytes = "" if fragments[0][0] == TEXT else b""

    def run() -> object:
        process = MessageDecoder().process_frame
        return empty.join([process(frame).payload for frame in frames])  # it leaves joining to its user

    return run


def main() -> None:
    runner = pyperf.Runner()

    def bench(name: str, fragments: Fragments, function: Callable[..., object], *args: object) -> None:
        runner.bench_func(name, function, *args, inner_loops=len(fragments))

    for name, opcode, payload, size in (
        ("ASCII", TEXT, payload_of(TEXTS["ASCII"]), 64),
        ("ASCII", TEXT, payload_of(TEXTS["ASCII"]), 4096),
        ("CJK", TEXT, payload_of(TEXTS["CJK"]), 4096),
        ("binary", BINARY, bytes(SIZE), 4096),
    ):
        fragments = cut(payload, size, opcode)
        case = f"{name} {size} B"
        assert ours(Assembler(SIZE), fragments) == join(fragments)
        bench(f"{case}: fabric", fragments, ours, Assembler(SIZE), fragments)
        bench(f"{case}: join, decode", fragments, join, fragments)
        if opcode == TEXT:
            bench(f"{case}: incremental", fragments, incremental, fragments)
        if find_spec("websockets"):
            bench(f"{case}: websockets", fragments, websockets_contender(fragments))
        if find_spec("wsproto"):
            bench(f"{case}: wsproto", fragments, wsproto_contender(fragments))
    for name, text in TEXTS.items():
        payload = payload_of(text)
        whole = [(TEXT, True, payload)]
        runner.bench_func(f"{name} KiB: fabric", ours, Assembler(SIZE), whole, inner_loops=SIZE // 1024)
        runner.bench_func(f"{name} KiB: bytes.decode", payload.decode, inner_loops=SIZE // 1024)


if __name__ == "__main__":
    main()
