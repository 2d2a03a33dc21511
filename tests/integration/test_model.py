"""Two connections, a pipe between them, and chance: 50,000 short episodes against a model, 800,000 actions.

In an episode both ends send (at once, from tasks, in parts), receive, ping, close and are cancelled at random moments,
while the pipe delivers a few bytes, gets stuck or breaks. The model knows what each sender has been told. Whatever
happened, this holds at the end:

- what arrives was sent: whole, once, and in the order of its sender;
- a cancelled `recv` has lost nothing, a cancelled `send` is sent whole or not at all;
- if nobody broke the pipe, what the end that closed had been promised has arrived;
- nobody waits any more, nothing is held, and both ends agree on close code and reason.

FABRIC_SEED repeats a run, FABRIC_EPISODES sets how many.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from fabric._connection.base import BaseConnection
from fabric.config import BackpressureConfig, ServerConfig
from fabric.error import BufferFull, ConnectionClosed, InvalidState
from fabric.metrics import MetricsCollector
from fabric_ext.protocol import State
from support.pipe import PipeTransport, join

pytestmark = pytest.mark.usefixtures("no_look_ahead")

EPISODES = int(os.environ.get("FABRIC_EPISODES") or 50_000)
ROUNDS = 2  # event loops that share them
ABREAST = 10  # episodes at once

BOUND = BackpressureConfig(
    max_buffer_size=4, max_buffer_bytes=10_000, backpressure_threshold=0.5, recovery_threshold=0.25
)
CONFIG = ServerConfig(
    backpressure=BOUND, max_message_size=1 << 20, max_fragments=100, buffer_size=3, close_timeout=1000
)
LOGGER = logging.getLogger("fabric.test")
FILLERS = ("", "x" * 40, "é💥" * 30, "y" * 3000)


class Side(BaseConnection):
    """One end, and what its application did."""

    def __init__(self, name: str, *, masking: bool) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            CONFIG,
            masking=masking,
            metrics=MetricsCollector(),
            logger=LOGGER,
            on_message=None,
        )
        self.name = name
        self.other: Side = None  # type: ignore[assignment]
        self.transport: PipeTransport = None  # type: ignore[assignment]
        self.senders = 0
        self.promised: list[tuple[int, int]] = []  # (sender, number) of what send() has accepted
        self.got: list[tuple[int, int]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.receiver: asyncio.Task[None] | None = None
        self.closed_with: tuple[int, str] | None = None
        self.close_begun = False

    # -- what its application does

    def payload(self, sender: int, number: int, filler: str) -> str:
        return f"{self.name}:{sender}:{number}:{filler}:{len(filler)}"

    def send_now(self, random: Random) -> None:
        """One of the messages of sender 0, which never waits."""
        number = self.count = getattr(self, "count", -1) + 1
        try:
            self.send_nowait(self.payload(0, number, random.choice(FILLERS)))
        except (BufferFull, ConnectionClosed, InvalidState):
            return
        self.promised.append((0, number))

    def start_sender(self, random: Random) -> None:
        self.senders += 1
        self.start(self._send_some(self.senders, random.randrange(1, 4), random))

    async def _send_some(self, sender: int, count: int, random: Random) -> None:
        for number in range(count):
            text = self.payload(sender, number, random.choice(FILLERS))
            if random.random() < 0.25:
                cut = sorted(random.randrange(len(text) + 1) for _ in range(random.randrange(3)))
                await self.send(self._parts([text[a:b] for a, b in zip([0, *cut], [*cut, None], strict=True)], random))
            else:
                await self.send(text)
            self.promised.append((sender, number))

    @staticmethod
    async def _parts(parts: list[str], random: Random) -> AsyncIterator[str]:
        for part in parts:
            if random.random() < 0.5:
                await asyncio.sleep(0)
            yield part

    def start_receiver(self, count: int) -> None:
        if self.receiver is None or self.receiver.done():
            self.receiver = self.start(self._receive(count))

    async def _receive(self, count: int) -> None:
        while count:
            count -= 1
            message = await self.recv()
            if message is None:
                return
            self.take(message.as_text())

    def take(self, text: str) -> None:
        name, sender, number, filler, size = text.split(":")
        assert name == self.other.name
        assert len(filler) == int(size)
        assert filler in FILLERS
        self.got.append((int(sender), int(number)))

    def start_close(self, random: Random) -> None:
        code, reason = random.choice(((1000, ""), (4000, "bye"), (3000, "é" * 60)))
        self.start(self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        await self.close(code, reason)

    def _begin_closing(self, code: int, reason: str) -> None:
        if self._is_open:
            self.close_begun = True
            self.closed_with = code, reason
        super()._begin_closing(code, reason)

    def start(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.append(task)
        return task


class Episode:
    """Both ends, the pipe, and a die."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.server, self.client = Side("s", masking=False), Side("c", masking=True)
        self.sides = self.server, self.client
        for side, transport in zip(self.sides, join(self.server, self.client), strict=True):
            side.transport = transport
        self.server.other, self.client.other = self.client, self.server
        self.broken = False
        self.log: list[str] = []

    def in_callback(self, function: Any, *args: Any) -> None:
        """Call it where a transport would, in no task."""
        asyncio.get_running_loop().call_soon(function, *args)

    def act(self) -> None:
        random = self.random
        side = random.choice(self.sides)
        dice = random.random()
        action = ""
        if dice < 0.30:
            action = "deliver"
            self.in_callback(side.transport.deliver, random.choice((1, 5, 30, 300, 5000, 100_000)))
        elif dice < 0.44:
            action = "send_now"
            side.send_now(random)
        elif dice < 0.56:
            action = "send"
            side.start_sender(random)
        elif dice < 0.68:
            action = "recv"
            side.start_receiver(random.randrange(1, 6))
        elif dice < 0.78:
            action = "cancel"
            if side.tasks:
                random.choice(side.tasks).cancel()
        elif dice < 0.84:
            action = "stick"
            side.transport.stuck = True
        elif dice < 0.91:
            action = "unstick"
            self.in_callback(side.transport.unstick)
        elif dice < 0.94:
            action = "ping"
            side.start(side.ping())
        elif dice < 0.98 or self.broken:
            if random.random() < 0.4:
                action = "close"
                side.start_close(random)
        elif random.random() < 0.5:
            action = "reset"
            self.broken = True
            side.transport.abort()
        self.log.append(f"{side.name} {action}")

    async def run(self) -> None:
        for _ in range(self.random.randrange(4, 28)):
            self.act()
            if self.random.random() < 0.6:
                await asyncio.sleep(0)
        await self.end()
        self.check()

    async def end(self) -> None:
        """Let everything arrive that still can, then close."""
        for side in self.sides:
            if side.receiver is not None:
                side.receiver.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for side in self.sides:
            side.receiver = None
            side.start_receiver(-1)
        await self.settle()
        # Receivers stay until the end: they take what the close lets out.
        closing = self.random.choice(self.sides)
        if all(side.is_connected for side in self.sides):
            closing.start(closing.close(4999, "end"))
        await self.settle()
        turns = 0
        while turns < 100 and not all(task.done() for side in self.sides for task in side.tasks):
            turns += 1  # a message in parts may rest between them, and others wait for their turn
            await asyncio.sleep(0)

    async def settle(self) -> None:
        quiet = turns = 0
        while quiet < 3:
            turns += 1
            assert turns < 1000, "it never comes to rest"
            moved = False
            for side in self.sides:
                if side.transport.stuck or side.transport.held:
                    self.in_callback(side.transport.unstick)
                if side.transport.has_news:
                    moved = True
                    self.in_callback(side.transport.deliver, 100_000)
            await asyncio.sleep(0)
            quiet = 0 if moved else quiet + 1

    def check(self) -> None:
        for side in self.sides:
            for task in side.tasks:
                assert task.done(), f"still waiting: {task}"
                if not task.cancelled():
                    error = task.exception()
                    assert error is None or isinstance(error, (ConnectionClosed, InvalidState)), error
            self.check_side(side)

    def check_side(self, side: Side) -> None:
        assert side.state is State.CLOSED
        if not self.broken:
            # Who has not begun has answered, with the code and reason that it got.
            assert (side.close_code, side.close_reason) == (side.other.closed_with or side.closed_with)
        assert side.queued == 0
        assert side._outbox_size == side._outbox_bytes == 0
        assert side.backpressure.messages == side.backpressure.bytes == side.backpressure.waiting == 0
        got = side.other.got
        assert len(set(got)) == len(got), "twice"
        for sender in range(side.senders + 1):
            numbers = [number for each, number in got if each == sender]
            assert numbers == sorted(numbers), "out of order"
        # What was cancelled on its way into the outbox may have arrived without having been promised.
        undelivered = [tuple(map(int, message.as_text().split(":")[1:3])) for message in side.undelivered]
        assert not set(undelivered) & set(got), "delivered and handed back"
        if not self.broken and not side.other.close_begun:
            missing = set(side.promised) - set(got) - set(undelivered)
            assert not missing, f"promised and lost: {missing}"
            if side.closed_with != (1011, "message abandoned half-way"):
                assert not undelivered, f"not delivered before the close: {undelivered}"


async def play(rng: Random, seen: Counter[str]) -> None:
    """Episodes in a row. Several rows run at once, since the connections of a loop share its write buffer."""
    for number in range(EPISODES // ROUNDS // ABREAST):
        seed = rng.getrandbits(48)
        episode = Episode(Random(seed))
        try:
            await episode.run()
        except BaseException:
            print(f"episode {number} of its row, seed {seed}: {'; '.join(episode.log)}")
            raise
        seen["actions"] += len(episode.log)
        seen["broken"] += episode.broken
        seen["arrived"] += sum(len(side.got) for side in episode.sides)
        seen["failed"] += any(side._loss is not None and side._loss.__cause__ for side in episode.sides)


@pytest.mark.deadline(300)
async def test_the_model(rng: Random) -> None:
    seen: Counter[str] = Counter()
    rows = [Random(rng.getrandbits(48)) for _ in range(ABREAST)]
    async with asyncio.TaskGroup() as group:
        for row in rows:
            group.create_task(play(row, seen))
    episodes = EPISODES // ROUNDS // ABREAST * ABREAST
    print(dict(seen))
    assert seen["actions"] > 10 * episodes
    assert seen["broken"] > episodes / 50
    assert seen["arrived"] > episodes
    assert seen["failed"] == 0
