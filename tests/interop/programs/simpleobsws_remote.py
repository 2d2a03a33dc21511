"""simpleobsws, a remote control of OBS Studio: identifies itself, asks, is cut, and connects again."""

import asyncio

import msgpack
import simpleobsws
import websockets


async def studio(connection):
    assert connection.subprotocol == "obswebsocket.msgpack"
    await connection.send(msgpack.packb({"op": 0, "d": {"obsWebSocketVersion": "5.0.0", "rpcVersion": 1}}))
    async for data in connection:
        message = msgpack.unpackb(data)
        if message["op"] == 1:
            await connection.send(msgpack.packb({"op": 2, "d": {"negotiatedRpcVersion": 1}}))
        elif message["op"] == 6:
            status = {"result": True, "code": 100}
            answer = {**message["d"], "requestStatus": status, "responseData": {"scene": "one"}}
            await connection.send(msgpack.packb({"op": 7, "d": answer}))


async def main():
    async with websockets.serve(studio, "127.0.0.1", 0, subprotocols=["obswebsocket.msgpack"]) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        remote = simpleobsws.WebSocketClient(url=url)
        for _ in range(2):
            assert await remote.connect()
            assert await remote.wait_until_identified()
            answer = await remote.call(simpleobsws.Request("GetCurrentProgramScene"))
            assert answer.responseData == {"scene": "one"}
            for accepted in server.connections:
                accepted.transport.abort()
            while remote.ws.close_code is None:
                await asyncio.sleep(0)
            print("cut")
            await remote.disconnect()


asyncio.run(main())
print("done")
