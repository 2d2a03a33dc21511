"""python-binance, an exchange connector: its feed goes on by itself after a cut."""

import asyncio
import json

import websockets
from binance.ws.reconnecting_websocket import ReconnectingWebsocket


async def exchange(connection):
    assert connection.request.path == "/ws/btcusdt@trade"
    for price in range(3):
        await connection.send(json.dumps({"e": "trade", "p": str(price)}))
    await (await connection.ping())  # the feed has taken them
    connection.transport.abort()


async def main():
    async with websockets.serve(exchange, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        cuts = 0
        async with ReconnectingWebsocket(url=url, path="btcusdt@trade", prefix="ws/") as feed:
            while True:
                message = await feed.recv()
                if message and message.get("e") == "trade":
                    assert message["p"] in {"0", "1", "2"}
                    if cuts:
                        break  # it has come back
                elif message:
                    cuts += 1
                    print("cut")


asyncio.run(main())
print("done")
