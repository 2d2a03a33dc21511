"""xrpl-py, a client of the XRP ledger: asks a server, is cut, and connects again."""

import asyncio
import json

import websockets
from xrpl.asyncio.clients import AsyncWebsocketClient
from xrpl.models import ServerInfo


async def ledger(connection):
    async for text in connection:
        message = json.loads(text)
        answer = {"id": message["id"], "type": "response", "status": "success", "result": {"info": {"peers": 7}}}
        await connection.send(json.dumps(answer))


async def main():
    async with websockets.serve(ledger, "127.0.0.1", 0) as server:
        client = AsyncWebsocketClient(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for _ in range(2):
            await client.open()
            answer = await client.request(ServerInfo())
            assert answer.result["info"]["peers"] == 7
            for accepted in server.connections:
                accepted.transport.abort()
            while client.is_open():
                await asyncio.sleep(0)
            print("cut")
            await client.close()


asyncio.run(main())
print("done")
