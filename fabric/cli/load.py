"""Load for a server that echoes, and how long its answers take.

Owns the connections to one URL and the measuring. Closed loop: each connection keeps `depth` messages in
flight, and an answer brings the next message. Open loop: messages are due at a fixed rate, whatever the
server does, and latency counts from the moment a message was due, not from when it could be sent. So a server
that stalls is charged for everything that should have happened meanwhile, which is what correcting for
coordinated omission means.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from fabric.client import WebSocketClient
from fabric.config import ClientConfig
from fabric.error import ConnectionFailed, Error, Timeout
from fabric.message import Message
from fabric_ext.histogram import Histogram

__all__ = ["Load", "Measurement", "Meter", "NotAnEcho", "Plan"]

DIALING = 64  # connections being opened at once
DRAIN = 10.0  # seconds for the answers to what is in flight at the end
SPIN = 0.002  # seconds before a message is due from which timers, good to a millisecond, no longer serve
BURST = 64  # messages sent late one after the other before answers get their turn

now = time.monotonic_ns  # as `Message.received_ns`


class NotAnEcho(Error):
    """The server answers with something else than what it got."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send.

    Attributes:
        connections: at once.
        depth: messages in flight on each, in a closed loop.
        rate: messages per second over all connections, in an open loop; None = closed loop.
        size: bytes of payload.
        text: send text rather than random bytes.
    """

    connections: int = 1
    depth: int = 1
    rate: float | None = None
    size: int = 32
    text: bool = False

    def message(self) -> Message:
        """The message sent again and again; the text compresses as JSON does."""
        if not self.text:
            return Message.binary(os.urandom(self.size))
        orders = (
            f'{{"id":{order},"side":"{("buy", "sell")[order % 2]}","price":{order * 7919 % 99_991 / 100}}},'
            for order in range(self.size // 30 + 1)
        )
        return Message.text("".join(orders)[: self.size])


@dataclass(slots=True)
class Meter:
    """What is being measured, readable while it goes on.

    Attributes:
        latency: nanoseconds from when a message was due, all of this measurement but the current interval.
        interval: likewise, since the last `turn`.
        waited: nanoseconds for which an answer that had been read waited for its task, a part of `latency`.
        service: open loop only: nanoseconds from when a message was really sent.
    """

    latency: Histogram = field(default_factory=Histogram)
    interval: Histogram = field(default_factory=Histogram)
    waited: Histogram = field(default_factory=Histogram)
    service: Histogram | None = None

    def turn(self) -> Histogram:
        """End the current interval: a copy of what it holds."""
        ended = self.interval.copy()
        self.latency.add(self.interval)
        self.interval.reset()
        return ended


@dataclass(frozen=True, slots=True)
class Measurement:
    """The result of one run, or of several: messages answered within `seconds`, and their latencies."""

    messages: int
    seconds: float
    unanswered: int
    latency: Histogram
    service: Histogram | None = None
    waited: Histogram | None = None

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds if self.seconds else 0.0

    @classmethod
    def total(cls, parts: list[Measurement]) -> Measurement:
        """All parts together."""
        latency, waited, service = Histogram(), Histogram(), None
        for part in parts:
            latency.add(part.latency)
            if part.waited is not None:
                waited.add(part.waited)
            if part.service is not None:
                service = service or Histogram()
                service.add(part.service)
        return cls(
            sum(part.messages for part in parts),
            sum(part.seconds for part in parts),
            sum(part.unanswered for part in parts),
            latency,
            service,
            waited,
        )


class Load:
    """Connections to one URL, for one measurement after the other.

    async with Load(config, Plan(depth=64)) as load:
        measurement = await load.run(10.0, Meter())
    """

    def __init__(self, config: ClientConfig, plan: Plan, opened: Callable[[int], None] | None = None) -> None:
        """`opened` is told how many connections are open, while they are being opened."""
        self.config = config
        self.plan = plan
        self._message = plan.message()
        self._opened = opened
        self._clients: list[WebSocketClient] = []
        self._in_step = True  # no answer is due to a measurement that is over

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _open(self) -> None:
        gate = asyncio.Semaphore(DIALING)

        async def dial() -> None:
            async with gate:
                self._clients.append(await WebSocketClient.connect(self.config))
            if self._opened is not None:
                self._opened(len(self._clients))

        tasks = [asyncio.create_task(dial()) for _ in range(self.plan.connections)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._check_echo()

    async def _check_echo(self) -> None:
        """One message each way, so that a wrong server is named before anything is measured."""
        client = self._clients[0]
        await client.send(self._message)
        try:
            async with asyncio.timeout(self.config.connection_timeout):
                answer = await client.recv()
        except TimeoutError:
            seconds = self.config.connection_timeout
            raise NotAnEcho(f"{self.config.address} does not echo: no answer within {seconds:g} s") from None
        if answer is None:
            raise _ended(client)
        if answer != self._message:
            kind = "text" if answer.is_text else "binary"
            raise NotAnEcho(
                f"{self.config.address} does not echo: it answered {len(self._message)} bytes"
                f" with {len(answer)} bytes of {kind}"
            )

    async def close(self) -> None:
        """Close all connections."""
        clients, self._clients, self._in_step = self._clients, [], True
        await asyncio.gather(*(client.close() for client in clients), return_exceptions=True)

    async def run(self, seconds: float, meter: Meter) -> Measurement:
        """Send for `seconds`, then wait for what is still in flight.

        Raises:
            ConnectionFailed, ConnectionClosed: a connection ended.
            Timeout: a closed loop's messages stay unanswered.
        """
        if not self._in_step:
            await self.close()
            await self._open()
        begun = now()
        end = begun + round(seconds * 1e9)
        if self.plan.rate is None:
            unanswered = await self._closed_loop(end, seconds, meter)
        else:
            meter.service = Histogram()
            unanswered = await self._open_loop(begun, end, self.plan.rate, meter)
        elapsed = (now() - begun) * 1e-9
        meter.turn()
        answered = meter.latency.count - unanswered
        return Measurement(answered, elapsed, unanswered, meter.latency, meter.service, meter.waited)

    # -- closed loop

    async def _closed_loop(self, end: int, seconds: float, meter: Meter) -> int:
        try:
            async with asyncio.timeout(seconds + DRAIN):
                await _all(self._keep_in_flight(client, end, meter) for client in self._clients)
        except TimeoutError:
            raise Timeout("waiting for the echo of messages in flight", DRAIN) from None
        return 0

    async def _keep_in_flight(self, client: WebSocketClient, end: int, meter: Meter) -> None:
        message, size = self._message, len(self._message)
        record, record_wait = meter.interval.record, meter.waited.record
        sent: deque[int] = deque()
        for _ in range(self.plan.depth):
            sent.append(now())
            await client.send(message)
        async for answer in client:
            at = now()
            record(at - sent.popleft())
            record_wait(at - answer.received_ns)
            if len(answer) != size:
                raise NotAnEcho(f"{self.config.address} answered {size} bytes with {len(answer)}")
            if at < end:
                sent.append(at)
                await client.send(message)
            elif not sent:
                return
        raise _ended(client)

    # -- open loop

    async def _open_loop(self, begun: int, end: int, rate: float, meter: Meter) -> int:
        flights: list[deque[tuple[int, int]]] = [deque() for _ in self._clients]
        receivers = [
            asyncio.create_task(self._take_answers(client, flight, meter))
            for client, flight in zip(self._clients, flights, strict=True)
        ]
        pace = asyncio.create_task(self._keep_pace(begun, end, rate, flights))
        try:
            await asyncio.wait([pace, *receivers], return_when=asyncio.FIRST_COMPLETED)
            for task in (*receivers, pace):
                if task.done():
                    task.result()
            deadline = now() + round(DRAIN * 1e9)
            while any(flights) and now() < deadline:  # noqa: ASYNC110 - an event would burden every answer
                await asyncio.sleep(0.001)
        finally:
            for task in (pace, *receivers):
                task.cancel()
            await asyncio.gather(pace, *receivers, return_exceptions=True)
        at = now()
        for due, _ in (sent for flight in flights for sent in flight):
            meter.interval.record(at - due)  # it took that long at least
        unanswered = sum(map(len, flights))
        self._in_step = not unanswered
        return unanswered

    async def _keep_pace(self, begun: int, end: int, rate: float, flights: list[deque[tuple[int, int]]]) -> None:
        interval = 1e9 / rate
        clients, message = self._clients, self._message
        number = late = 0
        while (due := begun + round(number * interval)) < end:
            at = now()
            if at < due:
                wait = (due - at) * 1e-9
                await asyncio.sleep(wait - SPIN if wait > SPIN else 0)
                late = 0
                continue
            which = number % len(clients)
            flights[which].append((due, at))
            await clients[which].send(message)
            number += 1
            late += 1
            if late % BURST == 0:
                await asyncio.sleep(0)

    async def _take_answers(self, client: WebSocketClient, flight: deque[tuple[int, int]], meter: Meter) -> None:
        assert meter.service is not None
        from_due, from_sent, record_wait = meter.interval.record, meter.service.record, meter.waited.record
        async for answer in client:
            at = now()
            record_wait(at - answer.received_ns)
            if flight:
                due, sent = flight.popleft()
                from_due(at - due)
                from_sent(at - sent)
        raise _ended(client)


def _ended(client: WebSocketClient) -> ConnectionFailed:
    reason = f": {client.close_reason}" if client.close_reason else ""
    return ConnectionFailed(f"the server closed the connection with {client.close_code}{reason}", url=client.url)


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all; the first that fails ends the others."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
