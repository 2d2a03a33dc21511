"""Peer: aiohttp's WebSocketResponse behind a bare AppRunner (no access log)."""

import asyncio

import rig
from aiohttp import WSMsgType, web

arguments = rig.options()


async def echo(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse()
    await response.prepare(request)
    async for message in response:
        if message.type is WSMsgType.BINARY:
            await response.send_bytes(message.data)
        elif message.type is WSMsgType.TEXT:
            await response.send_str(message.data)
    return response


async def echo_twice(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse()
    await response.prepare(request)
    async for message in response:
        if message.type is WSMsgType.BINARY:
            await response.send_bytes(message.data)
            await response.send_bytes(message.data)
    return response


async def main() -> None:
    application = web.Application()
    application.router.add_get("/", echo_twice if arguments.twice else echo)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=rig.tls_context(arguments))
    await site.start()
    rig.announce(runner.addresses[0][1])
    await asyncio.Future()


rig.run(main)
