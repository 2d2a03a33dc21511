"""Official SDKs of the Centrifugal protocol, driven alike: centrifuge-python here, centrifuge-js in a Node of its own.

Events are lists: ["connected", id], ["subscribed", channel, was recovering, recovered], ["publication", channel, data,
offset], ["join", channel, user], ["unsubscribed", channel, code], ["disconnected", code, reason], and so on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any, Protocol

from interop.peers import NODE


class Failed(Exception):
    """What was ordered has failed, with a code of the protocol."""


class Sdk(Protocol):
    events: asyncio.Queue[list[Any]]

    async def order(self, order: str, **arguments: Any) -> Any: ...


class Events(asyncio.Queue[list[Any]]):
    """What an SDK tells its user."""

    def told(self, *what: Any) -> None:
        self.put_nowait(list(what))


def missing_js() -> str:
    """What keeps centrifuge-js from being tried; nothing if it is there."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not (NODE / "node_modules" / "centrifuge").is_dir():
        return "centrifuge is not installed: npm install in tests/interop/node"
    return ""


def missing_python() -> str:
    """What keeps centrifuge-python from being tried; nothing if it is there."""
    return "" if find_spec("centrifuge") else "centrifuge-python is not installed"


class NodeSdk:
    """centrifuge-js: one process for each client."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.events = Events()
        self._process = process
        self._results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def read(self) -> None:
        """Read what the process tells, to its end."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            if "event" in told:
                self.events.told(*told["event"])
            else:
                self._results.put_nowait(told)
        self.events.told("ended")
        self._results.put_nowait({"failed": "the process has ended"})

    async def order(self, order: str, **arguments: Any) -> Any:
        """Have something done; return its result."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"order": order, **arguments}).encode() + b"\n")
        result = await self._results.get()
        if "failed" in result:
            raise Failed(result["failed"])
        return result["done"]


@asynccontextmanager
async def js(url: str, token: str) -> AsyncIterator[NodeSdk]:
    """A client of centrifuge-js."""
    process = await asyncio.create_subprocess_exec("node", NODE / "centrifuge.js", url, token, stdin=PIPE, stdout=PIPE)
    sdk = NodeSdk(process)
    reading = asyncio.create_task(sdk.read())
    try:
        yield sdk
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reading
        assert process.stdin is not None
        process.stdin.close()


class PythonSdk:
    """centrifuge-python."""

    def __init__(self, url: str, token: str) -> None:
        from centrifuge import Client, ClientEventHandler, SubscriptionEventHandler

        self.events = events = Events()

        class OfClient(ClientEventHandler):
            async def on_connected(self, ctx: Any) -> None:
                events.told("connected", ctx.client)

            async def on_disconnected(self, ctx: Any) -> None:
                if ctx.code >= 3000:  # others say that it comes back
                    events.told("disconnected", ctx.code, ctx.reason)

            async def on_subscribed(self, ctx: Any) -> None:
                events.told("server subscribed", ctx.channel)

            async def on_unsubscribed(self, ctx: Any) -> None:
                events.told("server unsubscribed", ctx.channel)

            async def on_publication(self, ctx: Any) -> None:
                events.told("publication", ctx.channel, ctx.pub.data, ctx.pub.offset)

        class OfSubscription(SubscriptionEventHandler):
            def __init__(self, channel: str) -> None:
                self.channel = channel

            async def on_subscribed(self, ctx: Any) -> None:
                events.told("subscribed", self.channel, ctx.was_recovering, ctx.recovered)

            async def on_unsubscribed(self, ctx: Any) -> None:
                events.told("unsubscribed", self.channel, ctx.code)

            async def on_publication(self, ctx: Any) -> None:
                events.told("publication", self.channel, ctx.pub.data, ctx.pub.offset)

            async def on_join(self, ctx: Any) -> None:
                events.told("join", self.channel, ctx.info.user)

            async def on_leave(self, ctx: Any) -> None:
                events.told("leave", self.channel, ctx.info.user)

        self.client = Client(url, OfClient(), token, timeout=25, min_reconnect_delay=0.01, max_reconnect_delay=0.1)
        self._new_events = OfSubscription

    async def order(self, order: str, **arguments: Any) -> Any:
        """Have something done; return its result."""
        from centrifuge import CentrifugeError, ReplyError

        try:
            return await getattr(self, "_" + order)(**arguments)
        except ReplyError as error:
            raise Failed(error.code) from None
        except CentrifugeError as error:
            raise Failed(str(error)) from None

    async def _connect(self) -> None:
        await self.client.connect()

    async def _subscribe(self, channel: str, recoverable: bool = False, join_leave: bool = False) -> None:
        events = self._new_events(channel)
        sub = self.client.new_subscription(channel, events, recoverable=recoverable, join_leave=join_leave)
        await sub.subscribe()

    async def _unsubscribe(self, channel: str) -> None:
        sub = self.client.get_subscription(channel)
        assert sub is not None
        await sub.unsubscribe()

    async def _publish(self, channel: str, data: Any) -> None:
        await self.client.publish(channel, data)

    async def _presence(self, channel: str) -> list[str]:
        return sorted(info.user for info in (await self.client.presence(channel)).clients.values())

    async def _presence_stats(self, channel: str) -> list[int]:
        stats = await self.client.presence_stats(channel)
        return [stats.num_clients, stats.num_users]

    async def _history(self, channel: str, limit: int) -> list[Any]:
        history = await self.client.history(channel, limit)
        return [[[pub.data, pub.offset] for pub in history.publications], history.offset]

    async def _rpc(self, method: str, data: Any) -> Any:
        return (await self.client.rpc(method, data)).data


def _is_of_sdk(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and "/site-packages/centrifuge/" in code.co_filename


@asynccontextmanager
async def python(url: str, token: str) -> AsyncIterator[PythonSdk]:
    """A client of centrifuge-python; what it leaves running when it disconnects is ended."""
    before = asyncio.all_tasks()
    sdk = PythonSdk(url, token)
    try:
        yield sdk
    finally:
        await sdk.client.disconnect()
        left = {task for task in asyncio.all_tasks() - before if _is_of_sdk(task)}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
