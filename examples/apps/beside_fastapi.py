"""WebSockets beside a FastAPI application: one process, one event loop, a port for each.

    uvicorn beside_fastapi:app    # HTTP on port 8000, WebSockets on 8080

POST /orders tells all who follow the customer: ws://127.0.0.1:8080/customers/7
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel

from fabric import ConnectedClient, Message, Router, WebSocketServer


class Order(BaseModel):
    customer: int
    item: str


router = Router()
sockets = WebSocketServer.bind(os.environ.get("SOCKETS", "127.0.0.1:8080"), router)


@router.route("/customers/{customer:int}")
async def follow(client: ConnectedClient, customer: int) -> None:
    client.subscribe(f"customer.{customer}")
    await client.wait_closed()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with sockets:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders")
async def order(order: Order) -> dict[str, int]:
    told = await sockets.publish(f"customer.{order.customer}", Message.json(order.model_dump()))
    return {"told": told}


@app.get("/health")
async def health() -> dict[str, int]:
    return {"connections": sockets.connection_count}
