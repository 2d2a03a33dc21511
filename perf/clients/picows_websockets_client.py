"""Peer: picows.websockets' client."""

import gauge
from picows.websockets import connect

options = gauge.arguments()


async def main() -> None:
    async with connect(f"ws://127.0.0.1:{options.port}/", proxy=None) as connection:
        await gauge.measure(options, connection.send, connection.recv, lambda message: message)


gauge.run(main)
