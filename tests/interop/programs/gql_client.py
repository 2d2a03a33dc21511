"""gql, a GraphQL client: a query over graphql-transport-ws, a connection that is cut, another query."""

import asyncio
import json

import websockets
from gql import Client, gql
from gql.transport.exceptions import TransportConnectionFailed
from gql.transport.websockets import WebsocketsTransport


async def serve_graphql(connection):
    async for text in connection:
        message = json.loads(text)
        if message["type"] == "connection_init":
            await connection.send(json.dumps({"type": "connection_ack"}))
        elif message["type"] == "subscribe" and "cut" in message["payload"]["query"]:
            connection.transport.abort()
        elif message["type"] == "subscribe":
            answer = {"id": message["id"], "type": "next", "payload": {"data": {"hello": "world"}}}
            await connection.send(json.dumps(answer))
            await connection.send(json.dumps({"id": message["id"], "type": "complete"}))


async def main():
    protocols = ["graphql-transport-ws"]
    async with websockets.serve(serve_graphql, "127.0.0.1", 0, subprotocols=protocols) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/graphql"
        for _ in range(2):
            async with Client(transport=WebsocketsTransport(url=url)) as session:
                assert await session.execute(gql("query { hello }")) == {"hello": "world"}
                try:
                    await session.execute(gql("query { cut }"))
                except TransportConnectionFailed:
                    print("cut")


asyncio.run(main())
print("done")
