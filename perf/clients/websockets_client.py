"""Peer: `websockets`, its asyncio client."""

import gauge
from websockets.asyncio.client import connect

options = gauge.arguments()


async def main() -> None:
    async with connect(options.url, ssl=options.context, proxy=None) as connection:
        await gauge.measure(options, connection.send, connection.recv, lambda message: message)


gauge.run(main)
