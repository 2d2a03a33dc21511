"""A client: connect, send and receive text, binary and JSON, ping, close.

Run it alone (it starts a server to talk to), or give it the address of any server that echoes:

    python examples/basic_client.py [ws://host:port/path]
"""

import asyncio
import sys
from dataclasses import dataclass

from fabric import ConnectedClient, WebSocketClient, WebSocketServer


@dataclass
class Quote:
    symbol: str
    bid: float
    ask: float


async def talk(url: str) -> None:
    # Leaving the block closes the connection with 1000, the whole close handshake included.
    async with WebSocketClient.connect(url) as client:
        print(f"connected to {client.url}")

        await client.send("hello")  # a str goes out as text, bytes as binary
        message = await client.recv()
        assert message  # recv gives None when the server has closed the connection; this one does not
        print(f"text:   sent 'hello', received {message.text!r}")

        await client.send(b"\x00\x01\x02")
        message = await client.recv()
        assert message
        print(f"binary: sent 3 bytes, received {message.as_bytes()!r}")

        await client.send_json(Quote("EURUSD", 1.0841, 1.0843))
        message = await client.recv()
        assert message
        print(f"JSON:   on the wire {message.text}, decoded {message.json(Quote)}")

        print(f"ping:   {await client.ping() * 1e6:.0f} µs there and back")

        for number in range(3):
            await client.send(f"message {number}")
        await client.send("last")
        async for message in client:  # until the connection is closed, or we have what we want
            print(f"loop:   {message.text}")
            if message.text == "last":
                break

    print(f"closed with {client.close_code}")


async def echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


async def main() -> None:
    if len(sys.argv) > 1:
        await talk(sys.argv[1])
        return
    async with WebSocketServer.bind("127.0.0.1:0", echo) as server:
        await talk(f"ws://127.0.0.1:{server.port}/")


if __name__ == "__main__":
    asyncio.run(main())
