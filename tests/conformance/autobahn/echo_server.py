"""The server that the Autobahn suite tests: prints its port and echoes until it is ended."""

from __future__ import annotations

import uvloop

from fabric import CompressionConfig, ConnectedClient, ServerConfig, WebSocketServer

LARGEST = 32 * 1024 * 1024  # the suite sends messages of 16 MB


async def echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


async def main() -> None:
    config = ServerConfig("127.0.0.1:0", max_message_size=LARGEST, compression=CompressionConfig(enabled=True))
    async with WebSocketServer(config, echo) as server:
        print(server.port, flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
