"""A fleet: 50 agents with names, and a server that gives work to those who are there, all at once.

    python fleet.py                    one server
    python fleet.py nats:embedded      two servers, with the agents of both; as well nats://host, redis://host

Agents are reached by their names, on whichever server they are (`server.request`). Who is there is told by presence. An
agent that is lost has its work done by another.
"""

import asyncio
import random
import sys

import fabric
from fabric import ConnectedClient, Message, WebSocketClient, WebSocketServer
from fabric.fleet import NobodyThere, RequestFailed
from fabric.rpc import Rpc

AGENTS, JOBS = 50, 500


class Base:
    """A server that agents connect to, each under the name in its path. It knows who is free, on all servers."""

    def __init__(self, broker: str = "memory:") -> None:
        self.agents: dict[ConnectedClient, Rpc] = {}
        self.free: asyncio.Queue[str] = asyncio.Queue()
        self.server = WebSocketServer.bind("127.0.0.1:0", self.handler, broker=broker, on_request=self.ask)
        self.server.on_join = lambda topic, member: self.free.put_nowait(member.name)
        self.server.topics.configure("fleet", presence=True)

    async def handler(self, client: ConnectedClient) -> None:
        """One agent, as long as it is connected."""
        async with Rpc(client) as agent:
            self.agents[client] = agent
            client.name = client.request.path.strip("/")
            client.subscribe("fleet")
            await client.wait_closed()
        del self.agents[client]

    async def ask(self, client: ConnectedClient, message: Message) -> str:
        """Somebody asks an agent of this server, which gets it as a call."""
        return str(await self.agents[client].call("square", int(message.text), type=int, timeout=10))

    async def square(self, number: int) -> tuple[str, int]:
        """Have an agent do one job, and another if that one is lost: its name and the result."""
        while True:
            name = await self.free.get()
            try:
                result = await self.server.request(name, str(number), timeout=10)
            except (NobodyThere, RequestFailed):
                continue  # it is free again when it has joined again
            self.free.put_nowait(name)
            return name, int(result.text)


async def agent(url: str, name: str) -> None:
    """Work under a name; come back when the connection is lost."""

    async def square(number: int) -> int:
        await asyncio.sleep(random.uniform(0, 0.002))  # the work
        return number * number

    async with WebSocketClient.connect(f"{url}/{name}") as client, Rpc(client, {"square": square}):
        await client.wait_closed()


async def main() -> None:
    broker = sys.argv[1] if len(sys.argv) > 1 else "memory:"
    bases = [Base(broker) for _ in range(1 if broker == "memory:" else 2)]
    for base in bases:
        await base.server.start()
    urls = [f"ws://127.0.0.1:{base.server.port}" for base in bases]
    agents = [asyncio.create_task(agent(urls[number % len(urls)], f"agent-{number}")) for number in range(AGENTS)]
    results = await asyncio.gather(*(bases[0].square(number) for number in range(JOBS)))
    there = await bases[0].server.presence("fleet")
    for each in agents:
        each.cancel()
    await asyncio.wait(agents)
    for base in reversed(bases):
        await base.server.shutdown()
    assert [result for _, result in results] == [number * number for number in range(JOBS)]
    print(f"{len(results)} jobs done by {len({name for name, _ in results})} of {len(there)} agents")


if __name__ == "__main__":
    fabric.run(main())
