"""Peer: aiohttp's client."""

import gauge
from aiohttp import ClientSession

options = gauge.arguments()


async def main() -> None:
    url = f"http://127.0.0.1:{options.port}/"
    async with ClientSession() as session, session.ws_connect(url) as connection:
        await gauge.measure(options, connection.send_bytes, connection.receive, lambda message: message.data)


gauge.run(main)
