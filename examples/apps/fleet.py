"""A fleet: 50 agents connect to a coordinator, which gives them work by calling their methods, all at once.

    python fleet.py

Both ends call each other over one connection (`fabric.rpc`). An agent that is lost has its work done by another.
"""

import asyncio
import random

import fabric
from fabric import ConnectedClient, ConnectionClosed, WebSocketClient, WebSocketServer
from fabric.rpc import Rpc

AGENTS, JOBS = 50, 500


class Coordinator:
    """Knows the agents that are connected, and which of them are free."""

    def __init__(self) -> None:
        self.free: asyncio.Queue[Rpc] = asyncio.Queue()
        self.agents: dict[Rpc, str] = {}
        self.progress = 0.0

    async def handler(self, client: ConnectedClient) -> None:
        """One agent, as long as it is connected."""
        async with Rpc(client, {"report": self.report}) as agent:
            self.agents[agent] = await agent.call("name", type=str, timeout=10)
            self.free.put_nowait(agent)
            await client.wait_closed()
            del self.agents[agent]

    def report(self, done: float) -> None:
        """An agent has done a part of its work."""
        self.progress += done

    async def square(self, number: int) -> tuple[str, int]:
        """Have an agent do one job, and another if that one is lost: its name and the result."""
        while True:
            agent = await self.free.get()
            if agent not in self.agents:
                continue
            name = self.agents[agent]
            try:
                result = await agent.call("square", number, type=int, timeout=10)
            except ConnectionClosed:
                continue
            self.free.put_nowait(agent)
            return name, result


async def agent(url: str, name: str) -> None:
    """Work for a coordinator; come back to it when the connection is lost."""
    async with WebSocketClient.connect(url) as client:

        async def square(number: int) -> int:
            await asyncio.sleep(random.uniform(0, 0.002))  # the work
            await peer.notify("report", 1 / JOBS)
            return number * number

        async with Rpc(client, {"name": lambda: name, "square": square}) as peer:
            await client.wait_closed()


async def main() -> None:
    coordinator = Coordinator()
    async with WebSocketServer.bind("127.0.0.1:0", coordinator.handler) as server:
        url = f"ws://127.0.0.1:{server.port}"
        agents = [asyncio.create_task(agent(url, f"agent {number}")) for number in range(AGENTS)]
        results = await asyncio.gather(*(coordinator.square(number) for number in range(JOBS)))
        for each in agents:
            each.cancel()
        await asyncio.wait(agents)
    assert [result for _, result in results] == [number * number for number in range(JOBS)]
    print(
        f"{len(results)} jobs done by {len({name for name, _ in results})} agents, {coordinator.progress:.0%} reported"
    )


if __name__ == "__main__":
    fabric.run(main())
