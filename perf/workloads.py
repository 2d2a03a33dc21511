"""The workloads (a) to (p): which cases each has, and how one case is measured once for one peer.

A measurement is a flat dict of figures. `Case.start` starts a fresh server for one peer and yields what measures it
once; the suite has several in turn before they end. Figures that mean the same have the same name everywhere:

    per_second       messages (deliveries, connections) a second, by the wall clock
    cpu_ns           CPU time of the measured process per message, in ns
    publish_ns       likewise per message that it publishes through a broker
    back_s           seconds until a server has all its topics again
    p50 p95 p99 p999 round trip in ns
    load_share       CPU share of the load generator: near 1 would mean that it was the bottleneck
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import process
import tools
from peers import (
    ASGI_PEERS,
    ASYNC_CLIENTS,
    BLOCKING,
    BLOCKING_DROP_IN,
    BLOCKING_POLLING,
    BLOCKING_WEBSOCKETS,
    BROKER_CLIENTS,
    CHANNELS,
    CLIENT_PEERS,
    CLIENTS,
    FLOOR,
    NODES,
    ONE_BY_ONE,
    OVER_REDIS,
    POLLING,
    RAW_POLLING,
    SERVER_PEERS,
    SMALLEST,
    SOCKET_IO,
    UWS,
    WAYS,
    Peer,
    python,
)
from process import Failed, Server, Steps

Figures = dict[str, Any]

ALL = tuple(name for name in SERVER_PEERS if name not in (FLOOR, ONE_BY_ONE, SMALLEST, POLLING, RAW_POLLING))
PYTHON = tuple(name for name in ALL if name not in ("socketify", UWS, "ws (Node.js)", "Boost.Beast"))
FABRIC = ("fabric", "fabric callbacks")
DROP_IN = "fabric.websockets"
CLOSEST = ("fabric", "fabric callbacks", "picows core", "websockets", "aiohttp")

#: Options of the clients for one need.
CLIENT_FLAGS = {"": (), "tls": ("--tls", str(tools.CERTIFICATE)), "deflate": ("--deflate",)}


@dataclass(frozen=True)
class Effort:
    """How long and how often things are measured."""

    seconds: float
    warmup: float
    rounds: int  # fresh processes of each peer
    turns: int  # measurements of each process, in turn with the other peers'
    quick: bool = False

    @property
    def timing(self) -> tuple[str, ...]:
        """The load generator's options."""
        return "--seconds", str(self.seconds), "--warmup", str(self.warmup)


Turn = Callable[[Effort], Figures]


@dataclass(frozen=True)
class Case:
    """One line of a workload: measured in `rounds` times `turns` for each peer, interleaved."""

    workload: str
    name: str
    peers: tuple[str, ...]
    start: Callable[[str], AbstractContextManager[Turn]]
    rounds: int | None = None  # None: as often as the effort says
    turns: int | None = None
    facts: Figures = field(default_factory=dict)  # what a reader of the JSON needs to know


def once(
    workload: str, name: str, peers: tuple[str, ...], measure: Callable[[str, Effort], Figures], facts: Figures
) -> Case:
    """A case that takes long: `measure` starts and ends the peer itself, one time."""

    @contextlib.contextmanager
    def start(peer_name: str) -> Iterator[Turn]:
        yield lambda effort: measure(peer_name, effort)

    return Case(workload, name, peers, start, 1, 1, facts)


def peer_named(name: str, needs: str = "") -> Peer:
    """The peer, or `Failed` if it is absent or cannot do what the case needs, some words."""
    peer = (SERVER_PEERS | ASGI_PEERS)[name]
    if not peer.can.issuperset(needs.split()):
        raise Failed(f"{name} has no {needs} here")
    if not shutil.which(peer.command[0]):
        raise Failed(f"{peer.command[0]} is missing")
    return peer


def flags_for(needs: str) -> tuple[str, ...]:
    """Server options for one need."""
    return {
        "": (),
        "tls": ("--tls", str(tools.CERTIFICATE), str(tools.KEY)),
        "deflate": ("--deflate",),
        "broadcast": ("--broadcast",),
        "twice": ("--twice",),
        "twice tls": ("--twice", "--tls", str(tools.CERTIFICATE), str(tools.KEY)),
        "fastapi": ("--fastapi",),
    }[needs]


def load_flags(needs: str) -> tuple[str, ...]:
    """Options of the load generator for one need."""
    twice = ("--replies", "2")
    return {
        "": (),
        "tls": ("--tls",),
        "deflate": ("--deflate",),
        "broadcast": (),
        "twice": twice,
        "twice tls": (*twice, "--tls"),
        "fastapi": (),
    }[needs]


def figures(result: dict[str, Any]) -> Figures:
    """The flat figures of one result of the load generator."""
    latency = result["latency"]
    found: Figures = {
        "per_second": result["per_second"],
        "cpu_ns": result.get("server_cpu_ns"),
        "server_share": result.get("server_cpu_seconds", 0) / result["seconds"],
        "load_share": result["load_cpu_share"],
        "messages": result["messages"],
    }
    found |= {key: latency[key] for key in ("p50", "p95", "p99", "p999", "max") if key in latency}
    if "percentiles" in latency:
        found["percentiles"] = latency["percentiles"]
    if result["raw_in"]:
        found["megabytes_per_second"] = result["raw_in"] / result["seconds"] / 1e6
        if result["deflate"]:
            found["saved"] = 1 - result["payload_in"] / result["raw_in"]
    return found


def served(
    workload: str,
    name: str,
    peers: tuple[str, ...],
    mode: str,
    *arguments: object,
    needs: str = "",
    same_core: bool = False,
    rounds: int | None = None,
    turns: int | None = None,
) -> Case:
    """A case of one server and one run of the load generator."""

    @contextlib.contextmanager
    def start(peer_name: str) -> Iterator[Turn]:
        def turn(effort: Effort) -> Figures:
            options = (*effort.timing, *load_flags(needs), *map(str, arguments))
            return figures(process.load(server, mode, options, core=0 if same_core else 1))

        with Server(peer_named(peer_name, needs).command, flags_for(needs)) as server:
            yield turn

    shown = [a.name if isinstance(a, Path) else str(a) for a in arguments]
    facts = {"mode": mode, "arguments": shown, "needs": needs, "cores": 1 if same_core else 2}
    return Case(workload, name, peers, start, rounds, turns, facts)


# ------------------------------------------------------------------ (a) ping-pong, (b) pipelined


def ping_pong(quick: bool) -> Iterator[Case]:
    peers = CLOSEST if quick else ALL
    native = (*CLOSEST, "Boost.Beast") if quick else ALL
    python = (*CLOSEST, "picows.websockets") if quick else ALL
    yield served("a", "same core, 1 × 32 B", native, "echo", same_core=True)
    yield served("a", "two cores, 1 × 32 B", peers, "echo")
    yield served("a", "two cores, 64 × 32 B", python, "echo", "--connections", 64, "--poll")
    if not quick:
        yield served("a", "same core, 1 × 1 KB", CLOSEST, "echo", "--size", 1024, same_core=True)
        yield served("a", "same core, 1 × 64 KB", CLOSEST, "echo", "--size", 65536, same_core=True)


def pipelined(quick: bool) -> Iterator[Case]:
    peers = (*CLOSEST, "socketify", UWS) if quick else ALL
    yield served("b", "1 × 32 B, depth 64", peers, "echo", "--depth", 64, "--poll")
    if not quick:
        yield served("b", "8 × 32 B, depth 64", peers, "echo", "--depth", 64, "--connections", 8, "--poll")
        yield served("b", "1 × 1 KB, depth 64", CLOSEST, "echo", "--depth", 64, "--size", 1024, "--poll")
        yield served("b", "1 × 64 KB, depth 64", CLOSEST, "echo", "--depth", 64, "--size", 65536, "--poll")


# ------------------------------------------------------------------ (c) open loop

EQUAL_RATES = (20_000, 60_000, 120_000)  # messages a second: the same for all whose capacity allows it


def open_loop(quick: bool) -> Iterator[Case]:
    shares = (0.5, 0.9) if quick else (0.1, 0.5, 0.75, 0.9)

    def measure(peer_name: str, effort: Effort) -> Figures:
        connections, timing = ("--connections", "16"), effort.timing
        with Server(peer_named(peer_name).command) as server:
            capacity = process.load(server, "echo", (*connections, "--depth", "4", *timing))["per_second"]
            found: Figures = {"capacity": capacity}
            rates = {f"{share:.0%}": share * capacity for share in shares}
            rates |= {f"{rate // 1000} k/s": rate for rate in EQUAL_RATES if rate < 0.9 * capacity}
            for name, rate in rates.items():
                result = process.load(server, "open", (*connections, "--rate", f"{rate:.0f}", *timing))
                found |= {f"{key} at {name}": result["latency"][key] for key in ("p50", "p99", "p999")}
                found[f"achieved at {name}"] = result["per_second"]
                found[f"cpu_ns at {name}"] = result["server_cpu_ns"]
                found[f"p99 from send at {name}"] = result["from_send"]["p99"]
        return found

    peers = ("fabric", "websockets") if quick else (*PYTHON, "Boost.Beast", FLOOR)
    facts = {
        "shares of capacity": shares,
        "equal rates": EQUAL_RATES,
        "capacity": "closed loop, 16 connections, depth 4, 32 B",
    }
    yield once("c", "16 × 32 B", peers, measure, facts)


# ------------------------------------------------------------------ (d) the client side


def measured_client(peer_name: str, server: Server, effort: Effort, options: tuple[str, ...], *, core: int) -> Figures:
    """One run of a client, and what it measured."""
    timing = ("--seconds", str(effort.seconds), "--port", str(server.port))
    result = process.result([*CLIENT_PEERS[peer_name], *options, *timing], core)
    found: Figures = {"per_second": result["per_second"], "cpu_ns": result["client_cpu_ns"]} | result.get("latency", {})
    return found | ({"percentiles": result["percentiles"]} if "percentiles" in result else {})


def client_side(quick: bool) -> Iterator[Case]:
    def case(name: str, depth: int, *, needs: str = "", messages: Path | None = None, same_core: bool = False) -> Case:
        # TLS and compression are beyond server_raw.c; then our cheapest server stands in, the same for all.
        command = SERVER_PEERS["fabric callbacks"].command if needs else (str(tools.SERVER_RAW),)

        options = ("--depth", str(depth), *CLIENT_FLAGS[needs], *(("--messages", str(messages)) if messages else ()))

        @contextlib.contextmanager
        def start(peer_name: str) -> Iterator[Turn]:
            def turn(effort: Effort) -> Figures:
                return measured_client(peer_name, server, effort, options, core=1 if same_core else 0)

            with Server(command, flags_for(needs), core=1) as server:
                yield turn

        facts = {
            "measured": "the client's CPU time",
            "server": "fabric callbacks" if needs else "server_raw.c",
            "depth": depth,
            "needs": needs,
        }
        return Case("d", name, ASYNC_CLIENTS, start, facts=facts)

    yield case("pipelined, depth 64, 32 B", 64)
    yield case("same core, ping-pong, 32 B", 1, same_core=True)
    if not quick:
        yield case("TLS, pipelined, depth 64, 32 B", 64, needs="tls")
        yield case("compressed, JSON 1.2 KB, depth 16", 16, needs="deflate", messages=tools.json_file("1.2 KB"))


# ------------------------------------------------------------------ (e) broadcast, (f) TLS, (g) compression


def broadcast(quick: bool) -> Iterator[Case]:
    able = tuple(name for name in ALL if "broadcast" in SERVER_PEERS[name].can)
    for connections in (1000,) if quick else (100, 1000, 5000):
        peers = ("fabric", "websockets") if quick else able
        if connections == 5000:
            peers = ("fabric", "picows core", "websockets", "socketify", "ws (Node.js)")
        arguments = ("--connections", connections, "--size", 128, "--poll")
        yield served(
            "e", f"{connections} × 128 B", (*peers, FLOOR), "broadcast", *arguments, needs="broadcast", turns=2
        )


def tls(quick: bool) -> Iterator[Case]:
    able = tuple(name for name in ALL if "tls" in SERVER_PEERS[name].can)
    peers = ("fabric", "aiohttp") if quick else able
    yield served("f", "same core, ping-pong 1 × 32 B", peers, "echo", needs="tls", same_core=True)
    yield served("f", "pipelined 1 × 32 B, depth 64", peers, "echo", "--depth", 64, "--poll", needs="tls")


def compression(quick: bool) -> Iterator[Case]:
    able = ("fabric", SMALLEST, "picows.websockets", "websockets", "aiohttp", "ws (Node.js)")
    peers = ("fabric", "websockets", "aiohttp") if quick else able
    for size in ("1.2 KB",) if quick else tools.JSON_SIZES:
        arguments = ("--depth", 16, "--messages", tools.json_file(size), "--poll")
        yield served("g", f"JSON {size}, depth 16", peers, "echo", *arguments, needs="deflate")


# ------------------------------------------------------------------ (h) connections a second


def connections(quick: bool) -> Iterator[Case]:
    peers = ("fabric", "picows core", "websockets") if quick else ALL
    yield served("h", "32 at a time", peers, "connect", "--depth", 32)


# ------------------------------------------------------------------ (i) idle connections


def idle_memory(
    name: str, peers: tuple[str, ...], count: int, needs: str = "", touch: bool = False, workload: str = "i"
) -> Case:
    """Private memory per idle connection; with `touch` after each has exchanged one message."""

    def measure(peer_name: str, effort: Effort) -> Figures:
        peer = peer_named(peer_name, needs)
        flags = load_flags(needs)
        content = ("--messages", str(tools.json_file("1.2 KB"))) if touch else ()
        with Server(peer.command, flags_for(needs)) as server:
            warm = ("--connections", "20", "--seconds", "0.1", "--warmup", "0.1", *flags, *content)
            process.load(server, "echo", warm)
            time.sleep(0.3)
            before = server.private_bytes()
            steps = Steps(server, "idle", ("--connections", str(count), *flags, *content))
            try:
                steps.reached("ready", 150)
                if touch:
                    steps.say("touch")
                    steps.reached("touched", 60)
                time.sleep(0.7)
                grown = server.private_bytes() - before
            finally:
                steps.end()
        return {"bytes_per_connection": grown / count, "megabytes": grown / 1e6}

    return once(workload, name, peers, measure, {"connections": count, "needs": needs, "touched": touch})


def idle_cpu(count: int, seconds: float) -> Case:
    """CPU share of a server with `count` idle connections and default heartbeats, over one whole interval."""

    def measure(peer_name: str, effort: Effort) -> Figures:
        with Server(peer_named(peer_name).command) as server:
            steps = Steps(server, "idle", ("--connections", str(count)))
            try:
                steps.reached("ready", 150)
                time.sleep(1)
                cpu, wall = server.cpu_seconds(), time.monotonic()
                time.sleep(seconds)
                share = (server.cpu_seconds() - cpu) / (time.monotonic() - wall)
            finally:
                steps.end()
        return {"cpu_share": share}

    name = f"CPU of {count} idle, default heartbeats"
    return once("i", name, ("fabric", "websockets"), measure, {"seconds": seconds})


def idle(quick: bool) -> Iterator[Case]:
    if quick:
        yield idle_memory("plain, 1000", ("fabric", "fabric callbacks", "websockets"), 1000)
        return
    yield idle_memory("plain, 1000", (*PYTHON, "ws (Node.js)", "Boost.Beast"), 1000)
    yield idle_memory("plain, 9000", ("fabric", "fabric callbacks", "picows core", "websockets"), 9000)
    yield idle_memory("TLS, 1000", PYTHON, 1000, "tls")
    yield idle_memory("TLS, 9000", ("fabric",), 9000, "tls")
    yield idle_memory("plain after one message, 1000", (*FABRIC, "websockets"), 1000, touch=True)
    able = ("fabric", "picows.websockets", "websockets", "aiohttp")
    yield idle_memory("compressed after one message, 1000", able, 1000, "deflate", touch=True)
    yield idle_memory("compressed after one message, 9000", ("fabric",), 9000, "deflate", touch=True)
    yield idle_cpu(9000, 31)


# ------------------------------------------------------------------ (j) growth


def growth(quick: bool) -> Iterator[Case]:
    if quick:
        return
    for count in (8, 64, 512, 4096):
        arguments = ("--connections", count, "--depth", 8, "--poll")
        yield served("j", f"{count} connections × depth 8, 32 B", FABRIC, "echo", *arguments, rounds=1)
    for size in (32, 256, 4096, 65536, 1 << 20):
        yield served("j", f"{size} B, depth 16", FABRIC, "echo", "--depth", 16, "--size", size, "--poll", rounds=1)


# ------------------------------------------------------------------ instructions, by callgrind


def instructions(quick: bool) -> Iterator[Case]:
    """User-space instructions, per echoed message and per connection: exact where time is noisy."""

    def case(name: str, depth: int, size: int, peers: tuple[str, ...], count: int, needs: str = "") -> Case:
        def measure(peer_name: str, effort: Effort) -> Figures:
            peer, flags = peer_named(peer_name, needs), flags_for(needs)
            slowed = depth > 1 and peer_name.startswith("fabric")
            arguments = ("--depth", depth, "--size", size)
            return {"instructions": count_instructions(peer, flags, count, "echo", arguments, slowed=slowed)}

        return once("n", name, peers, measure, {"depth": depth, "tool": "callgrind"})

    def connections(count: int) -> Case:
        def measure(peer_name: str, effort: Effort) -> Figures:
            return {"instructions": count_instructions(peer_named(peer_name), (), count, "connect", ("--depth", 32))}

        facts = {"at a time": 32, "tool": "callgrind"}
        return once("n", "connections, 32 at a time", (*FABRIC, "picows core"), measure, facts)

    peers = (*FABRIC, DROP_IN)
    yield case("pipelined 1 × 32 B, depth 64", 64, 32, peers if quick else (*peers, "picows core"), 20_000)
    if not quick:
        yield case("ping-pong 1 × 32 B", 1, 32, (*peers, "picows core"), 4_000)
        yield connections(1_000)
        yield case("ASGI, bare, 1 × 32 B, depth 64", 64, 32, tuple(ASGI_PEERS), 6_000)
        yield case("ASGI, FastAPI, 1 × 32 B, depth 64", 64, 32, tuple(ASGI_PEERS), 6_000, "fastapi")


SLOWED_DOWN = 1000
"""More than a process is slowed down by callgrind: where messages come closely, time must not part them."""


def count_instructions(
    peer: Peer, flags: tuple[str, ...], count: int, mode: str, arguments: tuple[object, ...], *, slowed: bool = False
) -> float:
    """Runs `peer` under callgrind and returns instructions per message or connection, start-up excluded.

    Args:
        flags: of the server.
        count: of messages or connections.
        mode, arguments: of the load generator.
        slowed: tell the server that it is slowed down.
    """
    for tool in ("valgrind", "callgrind_control"):
        if not shutil.which(tool):
            raise Failed(f"{tool} is not installed")
    out = tools.BUILD / f"callgrind.{os.getpid()}.out"
    valgrind = ("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}")
    try:
        more = ("--slowed-down", str(SLOWED_DOWN)) if slowed else ()
        with Server((*valgrind, *peer.command, *more), flags, wait=60) as server:
            steps = Steps(server, mode, ("--count", str(count), *map(str, arguments)))
            try:
                for phase, switch in (("warm", "on"), ("counted", "off")):
                    steps.reached(phase, 120)
                    command = ["callgrind_control", "-i", switch, str(server.pid)]
                    subprocess.run(command, capture_output=True, timeout=60, check=True)
                    if switch == "on":
                        steps.say()
            finally:
                steps.end()
        totals = [line for line in out.read_text().splitlines() if line.startswith(("totals:", "summary:"))]
        return int(totals[-1].split()[1]) / count
    except (OSError, IndexError, subprocess.SubprocessError) as error:
        raise Failed(f"callgrind: {error}") from None
    finally:
        for left in tools.BUILD.glob(f"{out.name}*"):
            left.unlink()


# ------------------------------------------------------------------ (k) two sends a request


def two_sends(quick: bool) -> Iterator[Case]:
    """A request that is answered by two sends, as by a confirmation and a result: the client waits for both.

    With Nagle's algorithm the second would wait for the acknowledgement of the first, 40 ms on Linux.
    """
    peers = tuple(name for name in (CLOSEST if quick else ALL) if "twice" in SERVER_PEERS[name].can)
    yield served("k", "same core, 1 × 32 B", peers, "echo", needs="twice", same_core=True)
    if not quick:
        yield served("k", "two cores, 1 × 32 B", peers, "echo", needs="twice")
        yield served("k", "TLS, same core, 1 × 32 B", peers, "echo", needs="twice tls", same_core=True)


# ------------------------------------------------------------------ (l) the lowest latency: busy polling


def busy_polling(quick: bool) -> Iterator[Case]:
    """What it brings that a process looks for its next message instead of sleeping, each on a core of its own.

    Its CPU time says nothing: it uses all that there is.
    """
    yield served("l", "server, polled by C, 1 × 32 B", ("fabric", POLLING), "echo", "--poll")
    yield both_ends("asyncio at both ends, 1 × 32 B", {name: name for name in ("fabric", POLLING, "websockets")})
    yield served(
        "l", "server, 32 × 32 B, 10,000 messages/s", ("fabric", POLLING), "open", "--connections", 32, "--rate", 10_000
    )

    blocking = {
        BLOCKING: "fabric",
        BLOCKING_POLLING: POLLING,
        BLOCKING_WEBSOCKETS: "websockets",
        RAW_POLLING: RAW_POLLING,
    }
    yield both_ends("blocking client, asyncio server, 1 × 32 B", blocking)
    same = dict.fromkeys((BLOCKING, BLOCKING_DROP_IN, BLOCKING_WEBSOCKETS), "fabric callbacks")
    yield both_ends("blocking clients, the same server, 1 × 32 B", same)
    yield both_ends("blocking clients, the same server, depth 64", same, depth=64)


def both_ends(name: str, pairs: dict[str, str], depth: int = 1) -> Case:
    """A client and a server on two cores, `depth` messages in flight; `pairs` are CLIENT_PEERS with their servers."""

    @contextlib.contextmanager
    def start(peer_name: str) -> Iterator[Turn]:
        with Server(peer_named(pairs[peer_name]).command) as server:
            yield lambda effort: measured_client(peer_name, server, effort, ("--depth", str(depth)), core=1)

    facts = {"measured": "the client's round trips", "cores": 2, "servers": pairs}
    return Case("l", name, tuple(pairs), start, facts=facts)


# ------------------------------------------------------------------ (m) ASGI applications


def asgi(quick: bool) -> Iterator[Case]:
    """One echo, under uvicorn with different implementations of WebSockets."""
    peers = tuple(ASGI_PEERS)
    yield served("m", "bare, 1 × 32 B, depth 64", peers, "echo", "--depth", 64, "--poll")
    yield served("m", "FastAPI, 1 × 32 B, depth 64", peers, "echo", "--depth", 64, "--poll", needs="fastapi")
    if not quick:
        yield served("m", "bare, same core, 1 × 32 B", peers, "echo", same_core=True)
        yield idle_memory("bare, 1000 idle", peers, 1000, workload="m")


# ------------------------------------------------------------------ (o) topics


def topics(quick: bool) -> Iterator[Case]:
    """What one turn of the loop publishes, for each message that a subscriber gets."""
    for times in (1, 10, 32):
        yield fanned_out(f"1000 subscribers, {times} a turn", times, ("--fan-out", str(times)))
    if not quick:
        yield fanned_out("1000 topics × 10 subscribers", 10, ("--spread",))


def per_delivery(found: Figures, replies: int) -> Figures:
    """The figures of messages that everybody gets `replies` times, for each time."""
    if not found["messages"]:
        raise Failed("nothing has come back in the measured time")
    return found | {"per_second": found["per_second"] * replies, "cpu_ns": found["cpu_ns"] / replies}


def fanned_out(name: str, replies: int, flags: tuple[str, ...]) -> Case:
    """A message of 128 B to 1,000 connections, of which each gets it `replies` times in one turn."""

    @contextlib.contextmanager
    def start(peer_name: str) -> Iterator[Turn]:
        def turn(effort: Effort) -> Figures:
            options = ("--connections", "1000", "--size", "128", "--poll", "--replies", str(replies))
            return per_delivery(figures(process.load(server, "broadcast", (*effort.timing, *options))), replies)

        with Server(peer_named(peer_name, "fan-out").command, flags) as server:
            yield turn

    peers = ("fabric", "socketify") if "--spread" in flags else ("fabric", ONE_BY_ONE, "socketify")
    return Case("o", name, peers, start, facts={"deliveries of a message": 1000 * replies, "size": 128})


# ------------------------------------------------------------------ (p) brokers


def brokers(quick: bool) -> Iterator[Case]:
    """What a server costs that hears from another, for each message that one of its clients gets."""
    yield from_another("1000 clients, 32 a read", 1000, 32, ("fabric", OVER_REDIS))
    yield from_another("200 clients, one at a time", 200, 1, ("fabric", FLOOR) if quick else (*NODES, FLOOR))
    if not quick:
        yield from_another("200 clients, 32 a read", 200, 32, tuple(NODES))
    yield one_way(tuple(WAYS)[:2] if quick else tuple(WAYS))
    for a_turn in (32, 128) if quick else (1, 32, 128, 1000):
        yield broker_clients(a_turn, 30_000 if quick or a_turn == 1 else 100_000)
    if not quick:
        yield broker_return(100_000)


ONE_WAY = "one way to a client of another server"
SOCKET_IO_PATH = "/?EIO=4&transport=websocket"


def from_another(name: str, connections: int, times: int, peers: tuple[str, ...]) -> Case:
    """A client's message goes over the broker to another server, which publishes it `times` times to all clients.

    Some take most of a second for one message: beside them there are fewer turns, and longer ones. `FLOOR` hears from
    no broker: it sends on what one of its own clients sends.
    """
    has_slow = not {CHANNELS, SOCKET_IO}.isdisjoint(peers)

    @contextlib.contextmanager
    def start(peer_name: str) -> Iterator[Turn]:
        def turn(effort: Effort) -> Figures:
            timing = replace(effort, seconds=max(effort.seconds, 2 * has_slow)).timing
            options = ("--connections", str(connections), *messages, "--replies", str(times))
            return per_delivery(figures(process.load(node, "broadcast", (*timing, *options))), times)

        if peer_name == FLOOR:
            messages: tuple[str, ...] = ("--size", "128")
            with Server((str(tools.SERVER_RAW),), flags_for("broadcast")) as node:
                yield turn
            return
        layer, scheme = NODES[peer_name]
        messages = ("--size", "128", "--hello", "ready")
        if layer == "socketio":
            messages = ("--path", SOCKET_IO_PATH, "--hello", "40", "--messages", str(tools.EVENTS))
        with process.broker(scheme) as url:
            command = python("broker_node", "--layer", layer, "--broker", url)
            with Server(command) as node, Server((*command, "--times", str(times)), core=1):
                yield turn

    facts = {"deliveries of a message": connections * times, "size": 128}
    return Case("p", name, peers, start, *((1, 3) if has_slow else ()), facts=facts)


def one_way(peers: tuple[str, ...]) -> Case:
    """From a server's publication to a client of another server, beside the broker's own way without a library."""

    @contextlib.contextmanager
    def start(peer_name: str) -> Iterator[Turn]:
        layer, scheme = WAYS[peer_name]
        with process.broker(scheme) as url, contextlib.ExitStack() as ended:
            command = [sys.executable, str(CLIENTS / "one_way.py"), "--broker", url]
            if layer:
                node = python("broker_node", "--layer", layer, "--broker", url)
                command += ["--port", str(ended.enter_context(Server(node, core=1)).port)]

            def turn(effort: Effort) -> Figures:
                return process.result([*command, "--seconds", str(effort.seconds)])

            yield turn

    return Case("p", ONE_WAY, peers, start, facts={"size": 128, "in flight": 1})


def broker_clients(a_turn: int, count: int) -> Case:
    """What a message costs one that publishes `a_turn` of them in a turn, and one that hears it, up to the fan-out.

    A turn has costs of its own, its round of the event loop and its system call, whatever is published in it.
    """
    script = str(CLIENTS / "broker_cost.py")

    def measure(peer_name: str, effort: Effort) -> Figures:
        client, scheme = BROKER_CLIENTS[peer_name]
        with process.broker(scheme) as url:
            options = ("--client", client, "--broker", url, "--count", str(count), "--a-turn", str(a_turn))
            hear = [sys.executable, script, "hear", *options]
            with process.started(hear, 20, f"{peer_name} does not hear") as hearing:
                spoken = process.result([sys.executable, script, "speak", *options], core=1)
                heard = process.read_line(hearing, 60)
            if not heard:
                raise Failed(f"{peer_name} has not heard all")
            found: Figures = json.loads(heard) | spoken
        return found

    return once("p", f"a message of 128 B, {a_turn} a turn", tuple(BROKER_CLIENTS), measure, {"messages": count})


def broker_return(count: int) -> Case:
    """How long a broker that was killed has listened again when a server has subscribed to all its topics."""
    script = str(CLIENTS / "broker_return.py")

    def measure(peer_name: str, effort: Effort) -> Figures:
        _, scheme = BROKER_CLIENTS[peer_name]
        with contextlib.ExitStack() as ended:
            with process.broker(scheme) as url:
                command = [sys.executable, script, "--broker", url, "--count", str(count)]
                said = ended.enter_context(process.started(command, 30, f"{peer_name} does not subscribe"))
            if process.read_line(said, 20) != "gone\n":
                raise Failed(f"{peer_name} does not notice that its broker is gone")
            with process.broker(scheme, port=url.rpartition(":")[2]):
                begun = time.monotonic()
                back = process.read_line(said, 60)
            if not back:
                raise Failed(f"{peer_name} has not subscribed again")
        return {"back_s": float(back) - begun}

    return once(
        "p", f"{count} topics after a restart of the broker", ("fabric", OVER_REDIS), measure, {"topics": count}
    )


#: Letter -> what it is, and its cases.
WORKLOADS: dict[str, tuple[str, Callable[[bool], Iterator[Case]]]] = {
    "a": ("ping-pong", ping_pong),
    "b": ("pipelined", pipelined),
    "c": ("open loop at fixed rates", open_loop),
    "d": ("the client side", client_side),
    "e": ("broadcast", broadcast),
    "f": ("TLS", tls),
    "g": ("compression", compression),
    "h": ("connections per second", connections),
    "i": ("idle connections", idle),
    "j": ("growth", growth),
    "k": ("two sends a request", two_sends),
    "l": ("the lowest latency: busy polling", busy_polling),
    "m": ("ASGI applications under uvicorn", asgi),
    "n": ("instructions per message, and per connection", instructions),
    "o": ("topics", topics),
    "p": ("topics of several servers", brokers),
}
