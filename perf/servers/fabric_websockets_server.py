"""Peer: `fabric.websockets`, the drop-in for `websockets`; the same program as `websockets_server.py`."""

import asyncio

import rig

from fabric.websockets.asyncio.server import ServerConnection, broadcast, serve
from fabric_ext.writer import hold_back

arguments = rig.options()


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def everybody(connection: ServerConnection) -> None:
    async for message in connection:
        broadcast(connection.server.connections, message)


async def main() -> None:
    # What is sent within 50 µs may be gathered: under an instrument that is as many microseconds more.
    patience = hold_back(asyncio.get_running_loop(), 50_000 * arguments.slowed_down)
    handler = everybody if arguments.broadcast else echo
    async with serve(handler, "127.0.0.1", 0, ssl=rig.tls_context(arguments)) as server:
        rig.announce(server.sockets[0].getsockname()[1])
        await asyncio.Future()
    del patience


rig.run(main)
