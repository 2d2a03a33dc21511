"""slack_sdk, a bot in socket mode: gets an event, acknowledges it, and connects again after a cut."""

import asyncio
import json

import websockets
from slack_sdk.socket_mode.response import SocketModeResponse
from slack_sdk.socket_mode.websockets import SocketModeClient

acknowledged = []


async def slack(connection):
    await connection.send(json.dumps({"type": "hello"}))
    await connection.send(json.dumps({"type": "events_api", "envelope_id": "7", "payload": {"event": "x"}}))
    acknowledged.append(json.loads(await connection.recv()))
    connection.transport.abort()


async def main():
    async with websockets.serve(slack, "127.0.0.1", 0) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        client = SocketModeClient(app_token="xapp-1", ping_interval=0.1)

        async def issue_new_wss_url():
            return url

        async def on_request(client, request):
            await client.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id))

        client.issue_new_wss_url = issue_new_wss_url
        client.socket_mode_request_listeners.append(on_request)
        await client.connect()
        while len(acknowledged) < 2:
            await asyncio.sleep(0.01)
        print("cut")
        await client.close()
    assert [each["envelope_id"] for each in acknowledged[:2]] == ["7", "7"]


asyncio.run(main())
print("done")
