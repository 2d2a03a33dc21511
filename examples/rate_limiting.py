"""Rate limits: a limiter alone, then a server that slows, drops from or closes connections over their limit.

python examples/rate_limiting.py
"""

import asyncio
import logging
import time
from typing import Literal

from fabric import (
    ConnectedClient,
    ConnectionClosed,
    RateLimitConfig,
    RateLimiter,
    RateLimitType,
    ServerConfig,
    WebSocketClient,
    WebSocketServer,
)

SENT = 30
LIMIT = RateLimitConfig(messages_per_second=50, messages_burst=10)


async def show_bucket() -> None:
    print("A limiter alone: 50 operations per second, 5 at once")
    limiter = RateLimiter(RateLimitConfig(operations_per_second=50, operations_burst=5))
    for number in range(1, 7):
        status = limiter.try_acquire(RateLimitType.OPERATIONS)
        told = f"{status.remaining} left" if status.allowed else f"retry after {status.retry_after * 1e3:.0f} ms"
        print(f"  operation {number}: {'allowed' if status.allowed else 'refused'}, {told}")
    begun = time.perf_counter()
    await limiter.acquire(RateLimitType.OPERATIONS)
    print(f"  acquire() waits until it is allowed: {(time.perf_counter() - begun) * 1e3:.0f} ms")


async def echo(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


async def show_server(on_exceed: Literal["slow", "drop", "close"]) -> None:
    config = ServerConfig("127.0.0.1:0", rate_limit=LIMIT.with_on_exceed(on_exceed))
    async with (
        WebSocketServer(config, echo) as server,
        WebSocketClient.connect(f"ws://127.0.0.1:{server.port}/", auto_reconnect=False) as client,
    ):
        begun = time.perf_counter()
        answered, end = 0, "the connection stays open"
        try:
            for number in range(SENT):
                await client.send(str(number))
            async with asyncio.timeout(2):
                while answered < SENT and await client.recv():
                    answered += 1
        except TimeoutError:
            end = f"{server.metrics.rate_limit_drops} were dropped"
        except ConnectionClosed as error:
            end = f"closed with {error.code}: {error.reason}"
        took = time.perf_counter() - begun
        print(f"  {on_exceed:<6} {answered} of {SENT} messages answered within {took:.1f} s; {end}")


async def main() -> None:
    await show_bucket()
    print(f"A server that allows each connection 50 messages per second, 10 at once; {SENT} are sent at once")
    await show_server("slow")
    await show_server("drop")
    await show_server("close")


if __name__ == "__main__":
    # A connection that is closed for going over its limit is a warning; here that is the point.
    logging.getLogger("fabric.client").setLevel(logging.ERROR)
    asyncio.run(main())
