"""openai, the realtime API: a session is updated, cut, and connected again."""

import asyncio
import json

import websockets
from openai import AsyncOpenAI


async def realtime(connection):
    assert connection.request.headers["Authorization"] == "Bearer key"
    await connection.send(json.dumps({"type": "session.created", "event_id": "1", "session": {"type": "realtime"}}))
    async for text in connection:
        if json.loads(text)["type"] == "response.create":
            await connection.send(json.dumps({"type": "response.output_text.delta", "event_id": "2", "delta": "hi"}))


async def main():
    async with websockets.serve(realtime, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = AsyncOpenAI(api_key="key", websocket_base_url=f"ws://127.0.0.1:{port}")
        for _ in range(2):
            async with client.realtime.connect(model="model") as connection:
                assert (await connection.recv()).type == "session.created"
                await connection.response.create()
                assert (await connection.recv()).delta == "hi"
                for accepted in server.connections:
                    accepted.transport.abort()
                try:
                    await connection.recv()
                except websockets.exceptions.ConnectionClosedError:
                    print("cut")


asyncio.run(main())
print("done")
