"""The load generator of perf/ measures what it says: it notices wrong replies and flatters no stall."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "perf" / "load.c"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)

Reply = Callable[[int, bytes], list[bytes]]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("load") / "load"
    subprocess.run(["cc", "-O1", "-std=gnu11", "-o", str(target), str(SOURCE)], check=True)
    return target


def frame(payload: bytes, first: int = 0x82) -> bytes:
    """An unmasked frame shorter than 126 bytes."""
    return bytes([first, len(payload)]) + payload


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Reply, stall: float) -> None:
    """Upgrades, then answers small frames with what `reply` says; sleeps once, before message 100."""
    request = (await reader.readuntil(b"\r\n\r\n")).decode()
    key = next(row.split(":")[1].strip() for row in request.split("\r\n") if row.startswith("Sec-WebSocket-Key"))
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
    writer.write(b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n")
    count = 0
    try:
        while True:
            first, size = await reader.readexactly(2)
            mask = await reader.readexactly(4)
            masked = await reader.readexactly(size & 127)
            payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(masked))
            if first & 15 == 8:
                writer.write(frame(payload, 0x88))
                break
            if first & 15 == 10:
                continue
            if stall and count == 100:
                await asyncio.sleep(stall)
            for part in reply(count, payload):
                writer.write(part)
            count += 1
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()


def run(generator: Path, reply: Reply, *arguments: str, stall: float = 0) -> tuple[int, Any, str]:
    """Runs the generator against `serve`: exit status, JSON or None, what it complained of."""

    async def main() -> tuple[int, Any, str]:
        server = await asyncio.start_server(lambda r, w: serve(r, w, reply, stall), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            generator,
            arguments[0],
            "--port",
            str(port),
            *arguments[1:],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, complaint = await process.communicate()
        server.close()
        return process.returncode or 0, json.loads(out) if out else None, complaint.decode()

    return asyncio.run(main())


SHORT = ("echo", "--seconds", "0.1", "--warmup", "0.02", "--depth", "4")


def test_a_correct_echo_is_counted(generator: Path) -> None:
    status, result, complaint = run(generator, lambda _, payload: [frame(payload)], *SHORT)
    assert (status, complaint) == (0, "")
    assert result["messages"] == result["latency"]["count"] > 10
    assert result["unanswered"] == result["failures"] == 0
    assert 0 < result["latency"]["min"] <= result["latency"]["p50"] <= result["latency"]["max"]


def test_a_fragmented_echo_and_a_ping_between_are_understood(generator: Path) -> None:
    def reply(count: int, payload: bytes) -> list[bytes]:
        return [frame(b"?", 0x89), frame(payload[:5], 0x02), frame(payload[5:], 0x80)]

    status, result, complaint = run(generator, reply, *SHORT)
    assert (status, complaint) == (0, "")
    assert result["messages"] > 10


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (lambda payload: [frame(bytes([payload[0] ^ 1]) + payload[1:])], "differs"),
        (lambda payload: [frame(payload[:-1])], "another length"),
        (lambda payload: [frame(payload[:-1], 0x02), frame(b"", 0x80)], "another length"),
        (lambda payload: [frame(payload, 0x81)], "another opcode"),
        (lambda payload: [frame(payload, 0xC2)], "RSV1"),
        (lambda payload: [frame(payload), frame(payload)], "differs"),
        (lambda payload: [], "differs"),
        (lambda payload: [frame(b"\x03\xe8", 0x88)], "closed by the server"),
    ],
    ids=["byte", "length", "short", "opcode", "rsv1", "twice", "lost", "close"],
)
def test_a_wrong_reply_ends_the_run(generator: Path, fault: Callable[[bytes], list[bytes]], complaint: str) -> None:
    def reply(count: int, payload: bytes) -> list[bytes]:
        return fault(payload) if count == 20 else [frame(payload)]

    status, result, said = run(generator, reply, *SHORT)
    assert status == 2
    assert result is None
    assert complaint in said


def test_a_request_may_be_answered_twice(generator: Path) -> None:
    """Its latency is that of the second answer."""

    def reply(count: int, payload: bytes) -> list[bytes]:
        return [frame(payload), frame(payload)]

    status, result, complaint = run(generator, reply, *SHORT, "--replies", "2")
    assert (status, complaint) == (0, "")
    assert result["latency"]["count"] == result["messages"] > 10
    status, _, complaint = run(generator, lambda _, payload: [frame(payload)] * 3, *SHORT, "--replies", "2")
    assert (status, "differs" in complaint) == (2, True)


def test_a_stall_is_charged_to_every_message_that_was_due_in_it(generator: Path) -> None:
    """At 2,000 messages/s a stall of 200 ms delays 400 messages, not one (coordinated omission)."""
    arguments = ("open", "--rate", "2000", "--seconds", "0.5", "--warmup", "0")
    status, result, complaint = run(generator, lambda _, payload: [frame(payload)], *arguments, stall=0.2)
    assert (status, complaint) == (0, "")
    latency = result["latency"]
    assert 500 <= latency["count"] <= 1001  # fewer where the machine stands still
    assert latency["max"] >= 180e6
    delayed = next(share for share, value in latency["percentiles"] if value > 20e6)
    assert delayed <= 75, f"only messages above the {delayed}th percentile were delayed"
