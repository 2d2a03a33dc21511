"""When is a server back that has many topics, whose broker is killed and started again?

broker_return.py --broker URL --count N    subscribes to N topics and prints "ready"; "gone" when the broker is;
                                           and time.monotonic() when all is subscribed again
"""

import argparse
import asyncio
import time

from gauge import run

from fabric.broker import make_broker

parser = argparse.ArgumentParser()
parser.add_argument("--broker", required=True)
parser.add_argument("--count", type=int, required=True)
arguments = parser.parse_args()


class Node:
    """Hears nothing but that the broker is back."""

    def __init__(self) -> None:
        self.back: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def deliver(self, batch: list[tuple[str, bytes]]) -> None:
        raise SystemExit("nothing was published")

    def gap(self, since: float) -> None:
        self.back.set_result(time.monotonic())

    def lost(self, told: list[bytes]) -> None:
        raise SystemExit("nothing was published")


async def main() -> None:
    broker, node = make_broker(arguments.broker), Node()
    broker.subscribe([f"topic.{number}" for number in range(arguments.count)])
    await broker.start(node)
    await broker.flush()
    print("ready", flush=True)
    while broker.is_healthy:  # noqa: ASYNC110 -- an adapter tells nobody that its broker is gone
        await asyncio.sleep(0.01)
    print("gone", flush=True)
    print(await node.back, flush=True)
    await broker.close()


run(main)
