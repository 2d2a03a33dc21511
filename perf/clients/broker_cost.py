"""What a message costs a server on its way through a broker: CPU time to publish it, or to hear it, up to the fan-out.

    broker_cost.py hear --client fabric --broker URL --count N    prints "ready", and CPU time per message at the end
    broker_cost.py speak --client fabric --broker URL --count N   publishes N messages, `--a-turn` of them in a turn

Clients are the adapters of `fabric`, nats-py and redis-py.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable
from typing import Any

from gauge import run

from fabric.broker import make_broker
from fabric_ext.remote import wrap

SUBJECT = "fabric.cost"
A_ROUND = 1024  # messages until the broker is waited for
parser = argparse.ArgumentParser()
parser.add_argument("role", choices=("hear", "speak"))
parser.add_argument("--client", choices=("fabric", "nats-py", "redis-py"), required=True)
parser.add_argument("--broker", required=True)
parser.add_argument("--count", type=int, required=True)
parser.add_argument("--a-turn", type=int, default=32, help="messages published in one turn of the loop")
arguments = parser.parse_args()
envelope = wrap(2, os.urandom(8), 1, bytes(128))


class Hearer:
    """Counts messages; from the first one on CPU time counts."""

    def __init__(self) -> None:
        self.count = self.begun = 0
        self.done = asyncio.Event()

    def heard(self, count: int) -> None:
        if not self.count:
            self.begun = time.process_time_ns()
        self.count += count
        if self.count >= arguments.count:
            self.done.set()

    def deliver(self, batch: list[tuple[str, bytes]]) -> None:
        self.heard(len(batch))

    def gap(self, since: float) -> None:
        raise SystemExit("the broker was away")


async def hear() -> None:
    hearer = Hearer()
    close: Callable[[], Any]
    if arguments.client == "fabric":
        broker = make_broker(arguments.broker)
        broker.subscribe(("cost",))
        await broker.start(hearer)
        await broker.flush()
        close = broker.close
    elif arguments.client == "nats-py":
        import nats

        async def on_message(_: Any) -> None:
            hearer.heard(1)

        client = await nats.connect(arguments.broker)
        await client.subscribe(SUBJECT, cb=on_message)
        await client.flush()
        close = client.close
    else:
        import redis.asyncio

        connection = redis.asyncio.from_url(arguments.broker)
        pubsub = connection.pubsub()
        await pubsub.subscribe(SUBJECT)

        async def listen() -> None:
            async for message in pubsub.listen():
                if message["type"] == "message":
                    hearer.heard(1)

        listening = asyncio.create_task(listen())

        async def close() -> None:
            listening.cancel()
            await asyncio.wait([listening])
            await pubsub.aclose()
            await connection.aclose()

    print("ready", flush=True)
    async with asyncio.timeout(60):
        await hearer.done.wait()
    print(json.dumps({"cpu_ns": (time.process_time_ns() - hearer.begun) / hearer.count}), flush=True)
    await close()


async def speak() -> None:
    """As fast as the broker takes it, in turns: each waits until the broker has what went before."""
    publish: Callable[[], Any]
    end: Callable[[], Any]
    if arguments.client == "fabric":
        broker = make_broker(arguments.broker)
        await broker.start(Hearer())

        async def publish() -> None:
            for _ in range(arguments.a_turn):
                broker.publish("cost", envelope)
            await asyncio.sleep(0)

        end, close = broker.flush, broker.close
    elif arguments.client == "nats-py":
        import nats

        client = await nats.connect(arguments.broker)

        async def publish() -> None:
            for _ in range(arguments.a_turn):
                await client.publish(SUBJECT, envelope)
            await asyncio.sleep(0)

        end, close = client.flush, client.close
    else:
        import redis.asyncio

        connection = redis.asyncio.from_url(arguments.broker)

        async def publish() -> None:
            async with connection.pipeline(transaction=False) as pipeline:
                for _ in range(arguments.a_turn):
                    pipeline.publish(SUBJECT, envelope)
                await pipeline.execute()

        async def end() -> None:
            await connection.ping()

        close = connection.aclose
    begun = time.process_time_ns()
    turns = max(A_ROUND // arguments.a_turn, 1)
    for number in range(arguments.count // arguments.a_turn + 1):
        await publish()
        if number % turns == turns - 1:
            await end()
    await end()
    print(json.dumps({"publish_ns": (time.process_time_ns() - begun) / arguments.count}), flush=True)
    await close()


run(hear if arguments.role == "hear" else speak)
