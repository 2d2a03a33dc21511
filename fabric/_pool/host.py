"""The connections of a pool to one server, and the queue of tasks that want one.

Owns, per server, every rule of the pool:

- There are never more than `max_connections`: idle, in use, being opened and being closed together.
- Waiting tasks are served first come, first served. What a cancelled or timed-out waiter was given goes to the
  next; a connection that was being opened for it is finished and kept.
- A connection is lent only while it is open and nothing of a former borrower is in it, and comes back only
  like that. What has not arrived yet cannot be seen: a borrower that does not wait for the last answer should close it.
- One that the pool closes has a tenth of `acquire_timeout` to answer the close frame, then it is aborted: a
  server that does not answer keeps no task from its place for long. A task that closes its own connection, and the
  pool at its end, wait as long as `close_timeout` says, for what is still to be sent.

Only tasks of its own open and close connections, so a cancelled caller leaves nothing half done. Looks after
idle connections when `fabric.pool` says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from fabric._connection.events import log_event
from fabric.client import WebSocketClient
from fabric.config import ClientConfig, PoolConfig
from fabric.error import ConnectionFailed, Error, InvalidState, Timeout
from fabric.metrics import MetricsCollector
from fabric_ext.receive_queue import fresh

__all__ = ["HostPool", "Member", "ServerPoolStats"]

logger = logging.getLogger("fabric.pool")

CLOSING_SHARE = 0.1  # of `acquire_timeout`: so much of it a waiter may lose to a connection that is being closed

Connect = Callable[[ClientConfig], Awaitable[WebSocketClient]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many connections and callers are in which state, and what has become of all so far."""

    idle: int
    in_use: int
    opening: int
    closing: int
    waiting: int
    opened: int
    reused: int
    discarded: int
    expired: int

    @property
    def total(self) -> int:
        """What counts against `max_connections`."""
        return self.idle + self.in_use + self.opening + self.closing


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPoolStats(Counts):
    """The connections to one server at one moment, and what has become of all so far.

    Attributes:
        url: the server, without credentials.
        idle: open and free.
        in_use: lent.
        opening: being opened.
        closing: being closed.
        waiting: callers of `get` that have no connection yet.
        opened: connections opened so far.
        reused: `get`s so far that were served by a connection that had been lent before.
        discarded: connections closed so far because they broke, did not answer, or were not left clean.
        expired: connections closed so far because they were idle for `idle_timeout`.
    """

    url: str


class Member:
    """A connection that belongs to a pool."""

    __slots__ = ("checked", "client", "config", "is_new", "senders", "since")

    def __init__(self, client: WebSocketClient, config: ClientConfig) -> None:
        self.client = client
        self.config = config
        self.is_new = True  # not lent yet: what is unread in it, a greeting say, is for its first borrower
        self.senders = 0  # tasks of the borrower that wait to send: the client knows no more of one whose turn has come
        self.since = 0.0  # when it became idle, in seconds of the loop's clock
        self.checked = 0.0  # when it was last used or pinged

    def is_fit(self) -> bool:
        """May it be lent?"""
        return self.client.is_connected and (self.is_new or (not self.senders and self.client.is_at_rest))


class _Waiter:
    """One caller's place in the queue, and what it is told there."""

    __slots__ = ("config", "grant")

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.grant: asyncio.Future[Member] = asyncio.get_running_loop().create_future()

    @property
    def has_got(self) -> bool:
        """Was it given a connection?"""
        return self.grant.done() and not self.grant.cancelled() and self.grant.exception() is None


class HostPool:
    """The connections to one server.

    Args:
        url: the server, without credentials.
        limits: the pool's.
        connect: opens a connection.
        past: gets the metrics of connections that are closed.
    """

    def __init__(self, url: str, limits: PoolConfig, connect: Connect, past: MetricsCollector) -> None:
        self.url = url
        self.asked = 0.0  # when `get` was last called, in seconds of the loop's clock
        self._limits = limits
        self._connect = connect
        self._past = past
        self._config: ClientConfig | None = None  # the latest that worked: to keep connections warm
        self._idle: dict[Member, None] = {}  # in the order in which they became idle
        self._in_use: set[Member] = set()
        self._opening: dict[asyncio.Task[WebSocketClient], ClientConfig] = {}
        self._closing: dict[Member, asyncio.Task[None]] = {}
        self._waiters: dict[_Waiter, None] = {}  # in the order in which they came
        self._is_closed = False
        self._opened = self._reused = self._discarded = self._expired = 0

    @property
    def total(self) -> int:
        """What counts against `max_connections`."""
        return self._useful + len(self._closing)

    @property
    def _useful(self) -> int:
        return len(self._idle) + len(self._in_use) + len(self._opening)

    @property
    def is_unused(self) -> bool:
        """Is there no connection, and does nobody want one?"""
        return not self.total and not self._waiters

    @property
    def opening(self) -> Collection[asyncio.Task[Any]]:
        """The tasks that open connections just now."""
        return self._opening.keys()

    @property
    def closing(self) -> Collection[asyncio.Task[Any]]:
        """The tasks that close connections just now."""
        return self._closing.values()

    def members(self) -> list[Member]:
        """All connections that are not quite closed."""
        return [*self._idle, *self._in_use, *self._closing]

    def stats(self) -> ServerPoolStats:
        """The numbers as they are now."""
        return ServerPoolStats(
            url=self.url,
            idle=len(self._idle),
            in_use=len(self._in_use),
            opening=len(self._opening),
            closing=len(self._closing),
            waiting=sum(not waiter.grant.done() for waiter in self._waiters),
            opened=self._opened,
            reused=self._reused,
            discarded=self._discarded,
            expired=self._expired,
        )

    # -- lending

    async def get(self, config: ClientConfig) -> Member:
        """Borrow a connection opened with `config`; see `ConnectionPool.get`."""
        self.asked = now()
        member = None if self._waiters else self._take(config)
        if member is None:
            member = await self._wait_in_time(config)
        if member.is_new:
            member.is_new = False
        else:
            self._reused += 1
        return member

    async def _wait_in_time(self, config: ClientConfig) -> Member:
        limit = asyncio.timeout(self._limits.acquire_timeout)
        try:
            async with limit:
                return await self._wait(config)
        except TimeoutError:
            if not limit.expired():
                raise
            what = f"getting one of at most {self._limits.max_connections} connections to {self.url}"
            raise Timeout(what, self._limits.acquire_timeout) from None

    async def _wait(self, config: ClientConfig) -> Member:
        """Queue for a connection, which is then in use."""
        self._check_open()
        waiter = _Waiter(config)
        self._waiters[waiter] = None
        try:
            while True:
                self._serve()
                member = await waiter.grant
                if self.owns(member) and member.is_fit():
                    return member
                self.give_back(member)  # it broke before it was our turn: ask again, at the same place
                self._check_open()
                if member.is_new:
                    raise self._closed_at_once()  # another might end like this, again and again
                waiter.grant = asyncio.get_running_loop().create_future()
        except BaseException:
            if waiter.has_got:
                self.give_back(waiter.grant.result())
            asyncio.get_running_loop().call_soon(self._serve)  # the next waiter may want what this one did not
            raise
        finally:
            del self._waiters[waiter]
            del waiter  # with an exception in it, it would keep this frame, which keeps it

    def _check_open(self) -> None:
        if self._is_closed:
            raise InvalidState("the pool is closed", state="closed")

    def _take(self, config: ClientConfig) -> Member | None:
        """Take the idle connection for `config` that was used last, so that the others can grow old."""
        for member in reversed(list(self._idle)):
            if member.config is config or member.config == config:
                if member.is_fit():
                    del self._idle[member]
                    self._in_use.add(member)
                    return member
                self._discard(member)
        return None

    def _serve(self) -> None:
        """Something has changed: give what there is to the waiters, in their order."""
        expected = list(self._opening.values())
        for waiter in self._waiters:
            if waiter.grant.done():
                continue  # its task runs soon
            member = self._take(waiter.config)
            if member is not None:
                waiter.grant.set_result(member)
            elif waiter.config in expected:
                expected.remove(waiter.config)  # one for it is being opened
            elif self.total < self._limits.max_connections:
                self._open(waiter.config)
            else:
                if self._idle and not self._closing:  # make room: none of these was opened with this config
                    self._drop(next(iter(self._idle)))
                break

    def owns(self, member: Member) -> bool:
        """Is it still lent? Not if the pool was closed."""
        return member in self._in_use

    def give_back(self, member: Member, *, is_clean: bool = True) -> None:
        """A borrower is through with it, and has left it clean as far as it knows."""
        if not self.owns(member):
            return
        if is_clean and member.is_fit():
            self._in_use.discard(member)
            self._keep(member)
            self._serve()
        else:
            self._discard(member)

    def _keep(self, member: Member) -> None:
        member.since = member.checked = now()
        self._idle[member] = None

    # -- opening and closing

    def _open(self, config: ClientConfig) -> None:
        """Open a connection for the first waiter of the queue, or else to be kept warm."""
        task = asyncio.get_running_loop().create_task(self._call_connect(config))
        self._opening[task] = config
        # A callback, not the end of the coroutine: a task that is cancelled before it starts has no end.
        task.add_done_callback(self._end_opening)

    async def _call_connect(self, config: ClientConfig) -> WebSocketClient:
        return await self._connect(config)

    def _closed_at_once(self) -> ConnectionFailed:
        return ConnectionFailed(f"{self.url} closed the connection at once", url=self.url)

    def _end_opening(self, task: asyncio.Task[WebSocketClient]) -> None:
        config = self._opening.pop(task)
        error = None if task.cancelled() else task.exception()
        if not task.cancelled() and error is None:
            self._opened += 1
            member = Member(task.result(), config)
            if self._is_closed:
                self.retire(member)
            elif member.is_fit():
                self._config = config
                self._keep(member)
                self._serve()
                self.warm()
                return
            else:
                self._discard(member)
                error = self._closed_at_once()
        waiter = self._left_without(config)
        if waiter is None:
            log_event(
                logger,
                logging.WARNING if error else logging.DEBUG,
                "no connection to %s: %s",
                self.url.partition("?")[0],
                error,
            )
        elif error is None:
            waiter.grant.cancel()
        else:
            waiter.grant.set_exception(fresh(error))
        self._serve()

    def _left_without(self, config: ClientConfig) -> _Waiter | None:
        """The waiter that counted on the connection which could not be opened."""
        others = sum(config == other for other in self._opening.values())
        for waiter in self._waiters:
            if waiter.config == config and not waiter.grant.done():
                if not others:
                    return waiter
                others -= 1
        return None

    def _discard(self, member: Member) -> None:
        """Close a connection that is not fit to be lent."""
        self._discarded += 1
        self._drop(member)

    def _drop(self, member: Member) -> None:
        """Close a connection whose place others may want: it is aborted if that takes long."""
        task = self.retire(member)
        patience = CLOSING_SHARE * self._limits.acquire_timeout
        timer = asyncio.get_running_loop().call_later(patience, member.client._abort)
        task.add_done_callback(lambda _: timer.cancel())

    def retire(self, member: Member, code: int = 1000, reason: str = "") -> asyncio.Task[None]:
        """Close a connection, within its `close_timeout`; it counts until that is done. Returns the task for it."""
        self._idle.pop(member, None)
        self._in_use.discard(member)
        task = asyncio.get_running_loop().create_task(member.client.close(code, reason))
        self._closing[member] = task
        task.add_done_callback(partial(self._end_closing, member))
        return task

    def _end_closing(self, member: Member, task: asyncio.Task[None]) -> None:
        del self._closing[member]
        self._past.add(member.client.metrics)
        if not task.cancelled() and (error := task.exception()) is not None:
            log_event(
                logger, logging.WARNING, "closing a connection to %s failed: %s", self.url.partition("?")[0], error
            )
        self._serve()
        if not member.is_new:  # else another might end like this, again and again
            self.warm()

    def close(self) -> None:
        """Begin to close everything, what is lent too; waiters get `InvalidState`. Tasks do the rest."""
        self._is_closed = True
        for waiter in self._waiters:
            if not waiter.grant.done():
                waiter.grant.set_exception(InvalidState("the pool was closed", state="closed"))
        for task in self._opening:
            task.cancel()
        for member in [*self._idle, *self._in_use]:
            self.retire(member)

    # -- upkeep

    def warm(self) -> None:
        """Open connections until there are `min_connections`, if any could be opened before."""
        if self._config is None or self._is_closed:
            return
        room = self._limits.max_connections - self.total
        for _ in range(min(self._limits.min_connections - self._useful, room)):
            self._open(self._config)

    def sweep(self) -> tuple[int, int]:
        """Close idle connections: so many that are broken, so many that are too old and too many."""
        broken = expired = 0
        limit = now() - self._limits.idle_timeout
        for member in list(self._idle):
            if not member.is_fit():
                broken += 1
                self._discard(member)
            elif member.since <= limit and self._useful > self._limits.min_connections:
                expired += 1
                self._drop(member)
        self._expired += expired
        return broken, expired

    async def ping(self, unused_since: float) -> None:
        """Ping the idle connections that nobody used or pinged since then, and drop those that do not answer.

        That keeps nobody from borrowing them.
        """
        await asyncio.gather(*(self._ping(each) for each in self._idle if each.checked <= unused_since))

    async def _ping(self, member: Member) -> None:
        try:
            async with asyncio.timeout(member.config.heartbeat.ping_timeout):
                await member.client.ping()
            member.checked = now()
        except (Error, TimeoutError) as error:
            if member in self._idle:  # a borrower finds out for himself
                log_event(logger, logging.DEBUG, "an idle connection to %s does not answer: %s", self.url, error)
                member.client._abort()
                self._discard(member)


def now() -> float:
    """Seconds of the running loop's clock."""
    return asyncio.get_running_loop().time()
