"""`fabric`'s client, everything on by default."""

import gauge

from fabric.client import WebSocketClient

options = gauge.arguments()


async def main() -> None:
    async with WebSocketClient.connect(f"ws://127.0.0.1:{options.port}/") as client:
        await gauge.measure(options, client.send, client.recv, lambda message: message.as_bytes())


gauge.run(main)
