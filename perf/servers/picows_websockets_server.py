"""Peer: picows.websockets, picows' own layer with the API of `websockets`."""

import asyncio

import rig
from picows.websockets import ServerConnection, broadcast, serve

arguments = rig.options()
connected: set[ServerConnection] = set()


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def echo_twice(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)
        await connection.send(message)


async def everybody(connection: ServerConnection) -> None:
    connected.add(connection)
    try:
        async for message in connection:
            broadcast(connected, message)
    finally:
        connected.discard(connection)


async def main() -> None:
    handler = everybody if arguments.broadcast else echo_twice if arguments.twice else echo
    async with serve(handler, "127.0.0.1", 0, ssl=rig.tls_context(arguments)) as server:
        rig.announce(server.sockets[0].getsockname()[1])
        await asyncio.Future()


rig.run(main)
