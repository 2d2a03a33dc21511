"""Builds what the suite runs besides Python: load generator, native peers, Node's modules, a certificate.

Everything lands in perf/build and is rebuilt only when its source is newer. What cannot be built is reported
as missing, with the reason; the suite goes on without it.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import random
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"

LOAD = BUILD / "load"
SERVER_RAW = BUILD / "server_raw"
POLL_RAW = BUILD / "poll_raw"
SERVER_NATIVE = BUILD / "server_native"
SERVER_UWS = BUILD / "server_uws"
CERTIFICATE = BUILD / "certificate.pem"
KEY = BUILD / "key.pem"
EVENTS = BUILD / "events.txt"

#: Sizes of the JSON messages of the compression workload: name -> bytes wanted.
JSON_SIZES = {"150 B": 150, "1.2 KB": 1200, "10 KB": 10_000}


class Missing(Exception):
    """A tool or a peer is not to be had here; the text says why."""


def run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; raises `Missing` with the last line it complained."""
    if shutil.which(command[0]) is None:
        raise Missing(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"{command[0]} failed: {complaint[-1] if complaint else done.returncode}")
    return done


def stale(target: Path, source: Path) -> bool:
    """True when `target` must be (re)built from `source`."""
    return not target.exists() or target.stat().st_mtime < source.stat().st_mtime


def build_load() -> None:
    """Compiles the load generator, with TLS and deflate if their headers are there."""
    source = HERE / "load.c"
    if not stale(LOAD, source):
        return
    base = ["cc", "-O2", "-std=gnu11", "-o", str(LOAD), str(source)]
    tls = ["-DWITH_TLS", "-lssl", "-lcrypto"]
    deflate = ["-DWITH_DEFLATE", "-lz"]
    complaint = None
    for extra in (tls + deflate, deflate, tls, []):
        try:
            run(base + extra)
        except Missing as error:
            complaint = complaint or error
        else:
            if complaint:
                print(f"load generator built with {' '.join(extra) or 'neither'}: {complaint}", file=sys.stderr)
            return
    raise complaint or Missing("no C compiler")


def build_native() -> None:
    """Compiles the two native servers: the raw one always, Boost.Beast where its headers are."""
    if stale(SERVER_RAW, HERE / "server_raw.c"):
        run(["cc", "-O2", "-std=gnu11", "-o", str(SERVER_RAW), str(HERE / "server_raw.c")])
    if stale(POLL_RAW, HERE / "poll_raw.c"):
        run(["cc", "-O2", "-std=gnu11", "-o", str(POLL_RAW), str(HERE / "poll_raw.c")])
    if stale(SERVER_NATIVE, HERE / "server_native.cpp"):
        run(
            [
                "c++",
                "-O2",
                "-DNDEBUG",
                "-std=c++17",
                "-o",
                str(SERVER_NATIVE),
                str(HERE / "server_native.cpp"),
                "-pthread",
            ]
        )


def build_uws() -> None:
    """Compiles the server on uWebSockets, whose library comes with socketify."""
    if not uws_library():
        raise Missing("socketify is not installed")
    if stale(SERVER_UWS, HERE / "server_uws.c"):
        run(["cc", "-O2", "-std=gnu11", "-o", str(SERVER_UWS), str(HERE / "server_uws.c"), "-ldl"])


def uws_library() -> str:
    """The shared library in the wheel of socketify; "" where there is none."""
    package = importlib.util.find_spec("socketify")
    if package is None or package.origin is None:
        return ""
    system = "darwin" if sys.platform == "darwin" else "linux"
    machine = "arm64" if platform.machine() in ("arm64", "aarch64") else "amd64"
    path = Path(package.origin).with_name(f"libsocketify_{system}_{machine}.so")
    return str(path) if path.exists() else ""


def install_node_modules() -> None:
    """Fetches `ws` and `bufferutil` with npm."""
    if not (HERE / "node_modules" / "ws").exists():
        run(["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"], cwd=HERE)


def make_certificate() -> None:
    """Signs a P-256 certificate for localhost with itself."""
    if not CERTIFICATE.exists():
        request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        run([*request.split(), *subject, "-keyout", str(KEY), "-out", str(CERTIFICATE)])


def json_file(size: str) -> Path:
    """Where the messages of one entry of `JSON_SIZES` lie, one a line."""
    return BUILD / f"json-{JSON_SIZES[size]}.jsonl"


def make_events() -> None:
    """Writes messages of 128 B as Socket.IO has them, one a line; neighbours differ."""
    if not EVENTS.exists():
        lines = [f'42["m","{chr(65 + number) * 128}"]' for number in range(26)]
        EVENTS.write_text("\n".join(lines) + "\n")


def make_json() -> None:
    """Writes order-book updates as a market feed sends them: same keys, changing figures, a few symbols.

    The load generator repeats the file; 512 KB of it keep its last round out of deflate's window of 32 KB.
    """
    for name, size in JSON_SIZES.items():
        path = json_file(name)
        if path.exists():
            continue
        chance = random.Random(size)
        lines = []
        for sequence in range(max(60, 512 * 1024 // size)):
            symbol = chance.choice(["BTC-USD", "ETH-USD", "SOL-USD", "EUR-USD"])
            clock = f"14:{chance.randrange(60):02}:{chance.randrange(60):02}.{chance.randrange(10**6):06}"
            changes: list[dict[str, str]] = []
            message = {
                "type": "update",
                "symbol": symbol,
                "sequence": 81_000_000 + sequence * 3,
                "time": f"2026-03-02T{clock}Z",
                "changes": changes,
            }
            while len(json.dumps(message, separators=(",", ":"))) < size - 20:
                side, price, amount = (
                    chance.choice(["buy", "sell"]),
                    chance.gauss(64_000, 40),
                    chance.expovariate(2),
                )
                changes.append({"side": side, "price": f"{price:.2f}", "size": f"{amount:.4f}"})
            lines.append(json.dumps(message, separators=(",", ":")))
        path.write_text("\n".join(lines) + "\n")


def prepare() -> dict[str, str]:
    """Builds everything; returns what is missing and why. Only the load generator is indispensable."""
    BUILD.mkdir(exist_ok=True)
    build_load()
    make_json()
    make_events()
    missing = {}
    steps = {
        "native": build_native,
        "uWebSockets": build_uws,
        "node": install_node_modules,
        "certificate": make_certificate,
    }
    for name, step in steps.items():
        try:
            step()
        except Missing as error:
            missing[name] = str(error)
    return missing
