"""Subprotocols: which of the names that a client offers a server takes, and what each side then speaks.

python examples/subprotocol_negotiation.py
"""

import asyncio

from fabric import (
    ConnectedClient,
    HandshakeFailed,
    InvalidSubprotocol,
    ServerConfig,
    SubprotocolList,
    SubprotocolNegotiationFailed,
    SubprotocolNegotiator,
    WebSocketClient,
    WebSocketServer,
)


def show_negotiator() -> None:
    print("The rules alone: the client's preference decides")
    negotiator = SubprotocolNegotiator(["chat.v1", "chat.v2"])
    for offered in (["chat.v2", "chat.v1"], ["chat.v3", "chat.v1"], ["mqtt"]):
        print(f"  offered {offered}: {negotiator.select(SubprotocolList(offered))}")
    print(f"  a server for '*' takes any: {SubprotocolNegotiator(['*']).select(['mqtt'])}")
    try:
        SubprotocolNegotiator(["chat.v1"], required=True).select(["mqtt"])
    except SubprotocolNegotiationFailed as error:
        print(f"  a server that requires one: {error}")
    try:
        SubprotocolList(["no spaces"])
    except InvalidSubprotocol as error:
        print(f"  names are tokens: {error}")


async def handler(client: ConnectedClient) -> None:
    """Speaks what was agreed on."""
    async for message in client:
        if client.subprotocol == "calc.json":
            await client.send_json({"sum": sum(message.json(list[int]))})
        else:
            await client.send(str(sum(map(int, message.text.split()))))


async def show_connections() -> None:
    print("Over connections, to a server that speaks calc.json and calc.text, and requires one of them")
    config = ServerConfig("127.0.0.1:0", subprotocols=["calc.json", "calc.text"], require_subprotocol=True)
    async with WebSocketServer(config, handler) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        for offered, question in ((["calc.json"], "[1, 2, 3]"), (["calc.xml", "calc.text"], "1 2 3")):
            async with WebSocketClient.connect(url, subprotocols=offered) as client:
                await client.send(question)
                answer = await client.recv()
                assert answer  # recv gives None when the server has closed the connection; this one does not
                print(f"  offered {offered}: agreed on {client.subprotocol}; {question} -> {answer.text}")
        try:
            await WebSocketClient.connect(url, subprotocols=["calc.xml"])
        except HandshakeFailed as error:
            print(f"  offered ['calc.xml']: refused with {error.status}, {error.body.decode().strip()}")


if __name__ == "__main__":
    show_negotiator()
    asyncio.run(show_connections())
