"""python-lsp-server, a language server: an editor asks it, hangs up, and asks again."""

import asyncio
import json
import logging
import socket
import threading

import websockets
from pylsp.python_lsp import PythonLSPServer, start_ws_lang_server

logging.getLogger("pylsp").setLevel(logging.ERROR)


async def main():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    threading.Thread(target=start_ws_lang_server, args=(port, False, PythonLSPServer), daemon=True).start()
    connected = 0
    async for connection in websockets.connect(f"ws://localhost:{port}", reconnect_delays=lambda: iter([0.05] * 200)):
        params = {"processId": None, "rootUri": None, "capabilities": {}}
        await connection.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}))
        answer = json.loads(await connection.recv())
        assert answer["result"]["serverInfo"]["name"] == "pylsp"
        connected += 1
        if connected == 2:
            break
        connection.transport.abort()
        print("cut")


asyncio.run(main())
print("done")
