"""A pool: many callers share a few connections, which stay open between uses.

python examples/connection_pool.py
"""

import asyncio
import time

from fabric import ConnectedClient, ConnectionPool, PoolConfig, WebSocketServer

CALLS = 200


async def answer(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(f"{message.text} squared is {int(message.text) ** 2}")


async def ask(pool: ConnectionPool, url: str, number: int) -> str:
    """Borrow a connection, use it, give it back by leaving the block."""
    async with pool.get(url) as client:
        await client.send(str(number))
        message = await client.recv()
        assert message  # recv gives None when the server has closed the connection; this one does not
        return message.text


async def main() -> None:
    async with WebSocketServer.bind("127.0.0.1:0", answer) as server:
        url = f"ws://127.0.0.1:{server.port}/"
        pool = ConnectionPool(PoolConfig(min_connections=2, max_connections=5, acquire_timeout=10))

        begun = time.perf_counter()
        answers = await asyncio.gather(*(ask(pool, url, number) for number in range(CALLS)))
        took = time.perf_counter() - begun
        print(f"{CALLS} calls at once: {answers[0]!r} ... {answers[-1]!r} in {took * 1e3:.0f} ms")

        stats = pool.server_stats(url)
        assert stats  # None for a server that the pool does not know
        print(f"connections opened: {stats.opened}, as many as the limit allows")
        print(f"calls served by a connection that was open already: {stats.reused}")
        print(f"now idle: {stats.idle}, in use: {stats.in_use}, waiting: {stats.waiting}")

        async with pool.get(url) as client:
            await client.send("7")
            await client.ping()  # by now the answer is here, and is left unread
        print(f"a connection given back with its answer unread is not reused: {pool.stats().discarded} discarded")

        await pool.close_all()
        print(f"after close_all the server has {server.connection_count} connections")


if __name__ == "__main__":
    asyncio.run(main())
