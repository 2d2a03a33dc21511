"""An application's own Cython on top of fabric: builds `pinger.pyx` in a temporary folder, and runs it.

Needs Cython and a C compiler, which fabric itself does not.

    python examples/cython_echo/run.py
"""

import asyncio
import importlib
import sys
import tempfile
import types
from pathlib import Path

from fabric import ConnectedClient, LatencyPercentiles, Message, WebSocketClient, WebSocketServer

SOURCE = Path(__file__).with_name("pinger.pyx")
COUNT = 20_000


def build(folder: str) -> types.ModuleType:
    """Compile the module, finding fabric's `.pxd` files where `import fabric_ext` finds the package."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    import fabric_ext

    site = Path(fabric_ext.__file__).parents[1]
    extensions = cythonize(Extension("pinger", [str(SOURCE)]), include_path=[str(site)], build_dir=folder, quiet=True)
    distribution = Distribution({"ext_modules": extensions})
    command = distribution.get_command_obj("build_ext")
    command.build_lib = command.build_temp = folder
    command.ensure_finalized()
    command.run()
    sys.path.insert(0, folder)
    return importlib.import_module("pinger")


def echo(client: ConnectedClient, message: Message) -> None:
    client.send_nowait(message)


async def main(pinger: types.ModuleType) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ping = pinger.Pinger(COUNT, done)
    async with (
        WebSocketServer.bind("127.0.0.1:0", on_message=echo) as server,
        WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", on_message=ping.on_message) as client,
    ):
        ping.start(client)
        await done
    took = LatencyPercentiles.of(ping.latency)
    print(f"{took.count:,} round trips, each timed and recorded in C")
    print(f"p50 {took.p50:.1f} µs, p95 {took.p95:.1f} µs, p99 {took.p99:.1f} µs, max {took.max:.0f} µs")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"compiling {SOURCE.name} against the .pxd files of fabric_ext")
        module = build(folder)
        try:
            import uvloop
        except ImportError:
            sys.exit(asyncio.run(main(module)))
        sys.exit(uvloop.run(main(module)))
