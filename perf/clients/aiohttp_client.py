"""Peer: aiohttp's client."""

import gauge
from aiohttp import ClientSession

options = gauge.arguments()


async def main() -> None:
    how = {"ssl": options.context or True, "compress": 15 if options.deflate else 0}
    async with ClientSession() as session, session.ws_connect(options.url, **how) as connection:
        await gauge.measure(options, connection.send_bytes, connection.receive, lambda message: message.data)


gauge.run(main)
