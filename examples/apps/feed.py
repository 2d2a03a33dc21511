"""A market-data feed: prices by topic, the newest first for who is slow, and clients that come back where they were.
It runs a server and a client that follows two symbols, and cuts their connection in between."""

import asyncio
import random

import msgspec

import fabric
from fabric import ClientConfig, ConnectedClient, Message, ReconnectConfig, WebSocketClient, WebSocketServer


class Subscribe(msgspec.Struct):
    """What a client sends: the symbols that it wants; `*` is all of them."""

    symbols: list[str]


class Price(msgspec.Struct):
    symbol: str
    price: float
    number: int  # counts the prices of a symbol


latest: dict[str, Price] = {}


async def handler(client: ConnectedClient) -> None:
    async for message in client:
        for symbol in message.json(Subscribe).symbols:
            client.subscribe(f"price.{symbol}")
            await client.send_many([Message.json(price) for name, price in latest.items() if symbol in (name, "*")])


def make_server(address: str) -> WebSocketServer:
    server = WebSocketServer.bind(address, handler)
    server.topics.configure("price.>", on_full="latest")  # a slow client gets the newest price, not all of them
    return server


def publish(server: WebSocketServer, symbol: str, value: float) -> None:
    number = latest[symbol].number + 1 if symbol in latest else 1
    price = latest[symbol] = Price(symbol, round(value, 5), number)
    server.publish(f"price.{symbol}", Message.json(price))


async def follow(config: ClientConfig, symbols: list[str], prices: asyncio.Queue[Price]) -> None:
    """Put the prices of some symbols into a queue, over any number of connections, each price once."""
    seen: dict[str, int] = {}

    async def subscribe(session: WebSocketClient) -> None:
        await session.send_json(Subscribe(symbols))

    async with WebSocketClient.connect(config, on_session=subscribe) as client:
        async for message in client:
            price = message.json(Price)
            if price.number > seen.get(price.symbol, 0):
                seen[price.symbol] = price.number
                await prices.put(price)


async def main() -> None:
    async with make_server("127.0.0.1:0") as server:
        prices: asyncio.Queue[Price] = asyncio.Queue(100)
        config = ClientConfig(f"ws://127.0.0.1:{server.port}", reconnect=ReconnectConfig(initial_delay=0.01))
        following = asyncio.create_task(follow(config, ["EURUSD", "GBPUSD"], prices))
        for turn in range(10):
            for symbol, value in (("EURUSD", 1.08), ("GBPUSD", 1.27), ("USDJPY", 151.2)):
                publish(server, symbol, value + random.gauss(0, 0.001))
            for price in (await prices.get(), await prices.get()):
                print(f"{price.symbol} {price.price:.5f}, number {price.number}")
            if turn == 5:  # the client comes back, and goes on
                await asyncio.gather(*(client.close(1012, "restart") for client in server.clients()))
        following.cancel()


if __name__ == "__main__":
    fabric.run(main())
