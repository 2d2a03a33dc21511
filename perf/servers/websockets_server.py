"""Peer: `websockets`, its asyncio server as its documentation shows it."""

import asyncio

import rig
from websockets.asyncio.server import ServerConnection, broadcast, serve

arguments = rig.options()


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def echo_twice(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)
        await connection.send(message)


async def everybody(connection: ServerConnection) -> None:
    async for message in connection:
        broadcast(connection.server.connections, message)


async def main() -> None:
    handler = everybody if arguments.broadcast else echo_twice if arguments.twice else echo
    async with serve(handler, "127.0.0.1", 0, ssl=rig.tls_context(arguments)) as server:
        rig.announce(server.sockets[0].getsockname()[1])
        await asyncio.Future()


rig.run(main)
