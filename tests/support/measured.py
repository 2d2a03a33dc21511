"""A server in a process of its own that tells what a connection costs; its options are one JSON argument.

Prints its port. Answers the text "measure" with a JSON object, and prints one when a connection has ended:
the close code, how many messages of which size came, and the bytes that the process has grown by
since the connection began, at the most (`peak`) and lastly (`kept`). The text "busy" keeps it busy a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import uvloop

from fabric.server import ConnectedClient, WebSocketServer

ON_LINUX = sys.platform == "linux"


class Growth:
    """The memory of this process since this object was made."""

    def __init__(self) -> None:
        self._before = self._now()
        if ON_LINUX:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is the present

    @staticmethod
    def _now() -> int:
        gc.collect()
        if ON_LINUX:
            ctypes.CDLL(None).malloc_trim(0)  # what is free is not ours
        return psutil.Process().memory_info().rss

    @staticmethod
    def _peak() -> int:
        if not ON_LINUX:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def measure(self) -> dict[str, int]:
        return {"peak": self._peak() - self._before, "kept": self._now() - self._before}


async def serve(options: dict[str, Any]) -> None:
    async def handle(client: ConnectedClient) -> None:
        growth = Growth()
        received: Counter[int] = Counter()
        with contextlib.suppress(ConnectionError):
            async for message in client:
                order = message.as_text() if message.is_text and len(message) < 10 else ""
                received[len(message)] += 1
                del message
                if order == "measure":
                    await client.send_json(growth.measure())
                elif order == "busy":
                    time.sleep(0.3)  # noqa: ASYNC251 - what comes meanwhile waits in the system's buffer
        print(json.dumps({"code": client.close_code, "received": received, **growth.measure()}), flush=True)

    async with WebSocketServer.bind("127.0.0.1:0", handle, **options) as server:
        print(server.port, flush=True)
        await server.serve_forever()


class Measured:
    """What the test sees of it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self.port = port

    async def ended(self) -> dict[str, Any]:
        """What is told of the next connection that ends."""
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return told


@contextlib.asynccontextmanager
async def measured(**options: Any) -> AsyncIterator[Measured]:
    """Run it; `options` are those of `WebSocketServer.bind` that are numbers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, json.dumps(options), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield Measured(process, int(await process.stdout.readline()))
    finally:
        process.kill()
        await process.wait()


if __name__ == "__main__":
    uvloop.run(serve(json.loads(sys.argv[1])))
