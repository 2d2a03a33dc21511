"""Quart: see `test_frameworks`."""

from quart import Quart, abort, websocket

app = Quart(__name__)


@app.websocket("/echo")
async def echo() -> None:
    await websocket.accept(subprotocol="chat" if "chat" in websocket.requested_subprotocols else None)
    while True:
        message = await websocket.receive()
        if isinstance(message, str) and message.startswith("close "):
            code, reason = message.split(" ", 2)[1:]
            await websocket.close(int(code), reason)
            return
        await websocket.send(message)


@app.websocket("/denied")
async def denied() -> None:
    abort(401)
