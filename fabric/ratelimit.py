"""How much may pass per second: token buckets by message, byte and operation, and waiting for them in line.

Owns the line of waiters: first come, first served, each kind of token for itself. What counts the
tokens is `fabric_ext.bucket`. Never decides what happens to a connection over its limit. The clock and the
timer of the waiters can be given. An object serves one event loop.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, Protocol

from fabric._config.policies import RateLimitConfig
from fabric.error import RateLimitExceeded
from fabric_ext.bucket import Limiter, RateGate, RateLimitStatus, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GlobalRateLimiter", "RateLimitStatus", "RateLimitType", "RateLimiter", "connection_gate"]

_NS_PER_S = 1e9


class RateLimitType(enum.IntEnum):
    """What is counted."""

    MESSAGES = 0
    BYTES = 1
    OPERATIONS = 2


class _Timer(Protocol):
    def cancel(self) -> object: ...


class _Line:
    """The waiters for one kind of token, oldest first, each with how many; the timer of the first."""

    __slots__ = ("timer", "waiters", "waking")

    def __init__(self) -> None:
        # Not a dict: taking the first of it again and again would pass by all that were taken before.
        self.waiters: OrderedDict[asyncio.Future[None], int] = OrderedDict()
        self.timer: _Timer | None = None
        self.waking = 0  # served, and not yet running again: no later caller overtakes these either


class RateLimiter(Limiter):
    """Limits of messages, bytes and operations per second.

    `try_acquire` and `check` answer at once with a `RateLimitStatus`; `acquire` waits. Nothing overtakes the
    waiters: as long as there is one, `try_acquire` refuses that type.

    Args:
        config: rates and bursts; None = no limits.
        clock: monotonic nanoseconds; None = time.monotonic_ns.
        call_later: starts the timer of the waiters, as `loop.call_later`; None = the running loop's.

    Attributes:
        messages, bytes, operations: the token bucket of each kind; None without a limit.
    """

    __slots__ = ("_call_later", "_gate", "_lines")

    def __init__(
        self,
        config: RateLimitConfig | None = None,
        *,
        clock: Callable[[], int] | None = None,
        call_later: Callable[..., _Timer] | None = None,
    ) -> None:
        config = config or RateLimitConfig()
        buckets = _buckets(config)
        super().__init__(*buckets, clock)
        self._call_later = call_later
        self._lines: dict[int, _Line] = {}
        self._gate = RateGate(*buckets) if config.is_limited else None

    @property
    def gate(self) -> RateGate | None:
        """The same buckets as a connection asks them; None if nothing is limited."""
        return self._gate

    async def acquire(self, type: RateLimitType, n: int = 1) -> RateLimitStatus:  # noqa: A002
        """Take `n` tokens, waiting in line for them; calls return in the order in which they were made.

        A wait that is ended, by its cancellation or any other exception, takes none.

        Raises:
            RateLimitExceeded: `n` is more than the burst, which no waiting brings; `retry_after` is infinite.
            ValueError: there is no such type, or `n` is below 1.
        """
        line = self._lines.get(type)
        if line is not None and line.waking:
            status = self.check(type, n)  # tokens or not, this one waits until they run
        else:
            status = self.try_acquire(type, n)
            if status.allowed:
                return status
        if status.retry_after == math.inf:
            raise RateLimitExceeded(RateLimitType(type).name.lower(), math.inf)
        await self._wait(type, n)
        return RateLimitStatus(True, self._limited(type).available(self._now()), 0.0)

    def reset(self, type: RateLimitType | None = None) -> None:  # noqa: A002
        """Fill the bucket of `type`, or all; waiters go first."""
        for kind in RateLimitType if type is None else (RateLimitType(type),):
            bucket = self._bucket(kind)
            if bucket is not None:
                bucket.reset()
                self._serve(kind)

    async def _wait(self, kind: int, n: int) -> None:
        line = self._lines.setdefault(kind, _Line())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiters[turn] = n
        self._wait_in_line(kind, n)
        try:
            if line.timer is None and not line.waking:
                self._serve(kind)
            await turn
        except BaseException:  # GeneratorExit too, where the coroutine is closed
            if turn.done() and not turn.cancelled():  # served, and ended before it could know
                line.waking -= 1
                self._limited(kind).give_back(n)
            elif line.waiters.pop(turn, None) is not None:
                self._wait_in_line(kind, -n)
            self._serve(kind)
            raise
        line.waking -= 1
        if line.waiters and line.timer is None:  # waiters that came meanwhile
            self._serve(kind)

    def _serve(self, kind: int) -> None:
        """Give tokens to those in front, as far as they go; come back when there are enough for the next."""
        line = self._lines.get(kind)
        if line is None:
            return
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        bucket, now = self._limited(kind), self._now()
        while line.waiters:
            turn, n = next(iter(line.waiters.items()))
            loop = turn.get_loop()
            if not turn.cancelled() and not loop.is_closed():
                if not bucket.take(n, now):
                    call_later = self._call_later or loop.call_later
                    line.timer = call_later(bucket.wait_ns(n, now) / _NS_PER_S, self._serve, kind)
                    return
                line.waking += 1
                turn.set_result(None)
            del line.waiters[turn]
            self._wait_in_line(kind, -n)

    def _limited(self, kind: int) -> TokenBucket:
        bucket = self._bucket(kind)
        assert bucket is not None, "only a limited type has waiters"
        return bucket

    def __repr__(self) -> str:
        buckets = ((kind.name.lower(), self._bucket(kind)) for kind in RateLimitType)
        limits = ", ".join(f"{name}={bucket}" for name, bucket in buckets if bucket is not None)
        return f"{type(self).__name__}({limits or 'no limits'})"


class GlobalRateLimiter(RateLimiter):
    """One limit for many: make one, and give it to every connection.

    All waiters stand in one line, whichever connection they come from.
    """

    __slots__ = ()


def connection_gate(config: RateLimitConfig, shared: GlobalRateLimiter | None = None) -> RateGate | None:
    """What one connection asks for each message it receives: limits of its own, then the shared ones.

    None if nothing is limited.
    """
    common = None if shared is None else shared.gate
    if not config.is_limited:
        return common
    return RateGate(*_buckets(config), common)


def _buckets(config: RateLimitConfig) -> tuple[TokenBucket | None, TokenBucket | None, TokenBucket | None]:
    """The three buckets of a config, in the order of RateLimitType."""
    return _bucket(config, "messages"), _bucket(config, "bytes"), _bucket(config, "operations")


def _bucket(config: RateLimitConfig, what: Literal["messages", "bytes", "operations"]) -> TokenBucket | None:
    limit = config.limit(what)
    return None if limit is None else TokenBucket(*limit)
