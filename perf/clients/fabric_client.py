"""`fabric`'s client, everything on by default."""

import gauge

from fabric.client import WebSocketClient

options = gauge.arguments()


async def main() -> None:
    async with WebSocketClient.connect(options.url, ssl=options.context, busy_poll=options.busy_poll) as client:
        await gauge.measure(options, client.send, client.recv, lambda message: message.as_bytes())


gauge.run(main)
