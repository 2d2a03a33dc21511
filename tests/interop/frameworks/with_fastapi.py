"""FastAPI: see `test_frameworks`. Dependencies, JSON, and a page for a browser."""

from typing import Annotated

from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect, WebSocketException
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

PAGE = """<!doctype html><meta charset="utf-8"><title>FastAPI</title><body>
<script>
const said = [], socket = new WebSocket(`ws://${location.host}/echo`, ["chat", "other"]);
socket.binaryType = "arraybuffer";
socket.onopen = () => { socket.send("é"); socket.send(new Uint8Array([0, 255])); socket.send("x".repeat(100000)); };
socket.onmessage = ({data}) => {
  said.push(typeof data === "string" ? (data.length > 9 ? data.length : data) : Array.from(new Uint8Array(data)));
  if (said.length === 3) socket.send("close 4001 enough");
};
socket.onclose = ({code, reason, wasClean}) => {
  said.push(socket.protocol, socket.extensions.split(";")[0], code, reason, wasClean);
  const denied = new WebSocket(`ws://${location.host}/denied`);
  denied.onclose = ({code}) => { said.push(code); document.body.dataset.said = JSON.stringify(said); };
};
</script>"""

app = FastAPI()


def subprotocol(websocket: WebSocket) -> str | None:
    return "chat" if "chat" in websocket.scope["subprotocols"] else None


@app.get("/")
async def page() -> HTMLResponse:
    return HTMLResponse(PAGE)


@app.websocket("/echo")
async def echo(websocket: WebSocket, chosen: Annotated[str | None, Depends(subprotocol)]) -> None:
    await websocket.accept(chosen)
    try:
        while True:
            event = await websocket.receive()
            if event["type"] == "websocket.disconnect":
                break
            if (data := event.get("bytes")) is not None:
                await websocket.send_bytes(data)
            elif event["text"].startswith("close "):
                code, reason = event["text"].split(" ", 2)[1:]
                raise WebSocketException(int(code), reason)
            else:
                await websocket.send_text(event["text"])
    except WebSocketDisconnect:
        pass


@app.websocket("/denied")
async def denied(websocket: WebSocket) -> None:
    raise HTTPException(401, "who are you?", headers={"WWW-Authenticate": "Bearer"})
