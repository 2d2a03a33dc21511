"""What can be configured about reconnecting, heartbeats, backpressure, rates and pools."""

# ruff: noqa: RUF009  (`default` only changes the type that checkers see)

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

from fabric._config.defaults import (
    DEFAULT_BUFFER_SIZE,
    DEFAULT_MAX_BUFFER_BYTES,
    DEFAULT_PING_INTERVAL,
    DEFAULT_PING_TIMEOUT,
)
from fabric._config.validation import (
    Builder,
    Config,
    Duration,
    OptionalSeconds,
    Seconds,
    default,
    explains_unknown_options,
)

__all__ = [
    "NO_BACKPRESSURE",
    "NO_HEARTBEAT",
    "NO_RATE_LIMIT",
    "NO_RECONNECT",
    "BackpressureConfig",
    "HeartbeatConfig",
    "Off",
    "PoolConfig",
    "RateLimitConfig",
    "ReconnectConfig",
]

Off = Literal[False] | None  # what a part of a config may be, instead of a config of its own

# Tokens per second that a bucket can count exactly.
MIN_RATE, MAX_RATE = 1e-9, 1e18


@explains_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ReconnectConfig(Config):
    """When to try again after a connection is lost or refused.

    The n-th delay, from n = 0, is `initial_delay * backoff_multiplier ** n`, at most `max_delay`, less a
    random part of it.

    Attributes:
        enabled: False ends the client with its first connection.
        max_attempts: attempts after which to give up; 0 = no limit.
        initial_delay: seconds before the first attempt.
        max_delay: seconds at most between two attempts; not below `initial_delay`.
        backoff_multiplier: growth of the delay from attempt to attempt, 1 or more.
        jitter: the part of each delay that is random, so that many clients spread out: 0 = none, 1 = all.
            0.5 draws evenly between half the delay and the whole.
        stable_after: seconds a connection must have lived for the delays to start over.
        decide: called with the error that ended a connection or an attempt, and the number of attempts since the
            last stable connection. Says what follows: False nothing, True another attempt as scheduled, a number of
            seconds or a timedelta one after just that time, None what `fabric.reconnect.should_retry` says. A plain
            function. `enabled` and `max_attempts` still hold, and it is not asked about a `close()` of this end.
    """

    enabled: bool = True
    max_attempts: int = 0
    initial_delay: Seconds = default(0.1)
    max_delay: Seconds = default(30.0)
    backoff_multiplier: float = 1.5
    jitter: float = 0.5
    stable_after: Seconds = default(5.0)
    decide: Callable[[BaseException, int], bool | Duration | None] | None = None

    def __post_init__(self) -> None:
        self._check_flag("enabled")
        self._check_integer("max_attempts", 0, note="0 = no limit")
        self._check_seconds("initial_delay", "max_delay")
        self._check_number("backoff_multiplier", 1)
        self._check_number("jitter", 0, 1)
        self._check_seconds("stable_after", zero=True)
        if self.max_delay < self.initial_delay:
            self._reject("max_delay", f"at least initial_delay, which is {self.initial_delay:g}")
        self._check_function("decide", "(error, attempt)")

    with_enabled = Builder[bool]()
    with_max_attempts = Builder[int]()
    with_initial_delay = Builder[Duration]()
    with_max_delay = Builder[Duration]()
    with_backoff_multiplier = Builder[float]()
    with_jitter = Builder[float]()
    with_stable_after = Builder[Duration]()
    with_decide = Builder[Callable[[BaseException, int], bool | Duration | None] | None]()


@explains_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HeartbeatConfig(Config):
    """When to ask a silent peer for a sign of life (RFC 6455 §5.5.2).

    A half-open connection is found within `ping_interval + ping_timeout`.

    Attributes:
        enabled: False never asks.
        mode: "idle" pings only a peer that says nothing; "always" pings in each `ping_interval`, whatever comes: for a
            peer, or a proxy between, that takes a connection for dead on which it receives nothing.
        ping_interval: seconds of silence before a ping, or between two.
        ping_timeout: seconds the peer has to send anything after it.
        busy_timeout: seconds longer, in steps of `ping_timeout`, for a peer whose system acknowledges our pings
            while its application says nothing; None = for ever. Busy and hung look the same from here: with 0 a
            hung application is found like a dead machine, with None only a dead machine is. Nothing but Linux
            tells, and nothing on UNIX-domain sockets: there it is 0. A peer to which more was sent than it reads is
            not meant: a ping that waits behind our own data proves nothing.
    """

    enabled: bool = True
    mode: Literal["idle", "always"] = "idle"
    ping_interval: Seconds = default(DEFAULT_PING_INTERVAL)
    ping_timeout: Seconds = default(DEFAULT_PING_TIMEOUT)
    busy_timeout: OptionalSeconds = default(0.0)

    def __post_init__(self) -> None:
        self._check_flag("enabled")
        self._check_choice("mode", ("idle", "always"))
        self._check_seconds("ping_interval", "ping_timeout")
        self._check_seconds("busy_timeout", zero=True, optional=True)

    with_enabled = Builder[bool]()
    with_mode = Builder[Literal["idle", "always"]]()
    with_ping_interval = Builder[Duration]()
    with_ping_timeout = Builder[Duration]()
    with_busy_timeout = Builder[Duration | None]()


@explains_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class BackpressureConfig(Config):
    """How much may wait to be sent on one connection, and when senders wait.

    Attributes:
        enabled: False lets senders run up to the limits, and then raises BufferFull.
        max_buffer_size: messages, at most.
        max_buffer_bytes: bytes, at most; one message may pass it if it is alone. Bounds likewise what has
            been received and not yet read.
        backpressure_threshold: part of either limit above which `send` waits.
        recovery_threshold: part below which it goes on; not above `backpressure_threshold`.
        timeout: seconds `send` waits, for room or for the end of another message in parts, before BackpressureTimeout;
            None = as long as it takes.
    """

    enabled: bool = True
    max_buffer_size: int = DEFAULT_BUFFER_SIZE
    max_buffer_bytes: int = DEFAULT_MAX_BUFFER_BYTES
    backpressure_threshold: float = 0.8
    recovery_threshold: float = 0.6
    timeout: OptionalSeconds = default(None)

    def __post_init__(self) -> None:
        self._check_flag("enabled")
        self._check_integer("max_buffer_size", 1)
        self._check_integer("max_buffer_bytes", 1)
        self._check_number("backpressure_threshold", 0, 1, above=True)
        self._check_number("recovery_threshold", 0, 1)
        self._check_seconds("timeout", optional=True)
        if self.recovery_threshold > self.backpressure_threshold:
            limit = self.backpressure_threshold
            self._reject("recovery_threshold", f"at most backpressure_threshold, which is {limit:g}")

    with_enabled = Builder[bool]()
    with_max_buffer_size = Builder[int]()
    with_max_buffer_bytes = Builder[int]()
    with_backpressure_threshold = Builder[float]()
    with_recovery_threshold = Builder[float]()
    with_timeout = Builder[Duration | None]()


@explains_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RateLimitConfig(Config):
    """How much a connection, or all of a server's together, may receive. Off by default.

    Attributes:
        messages_per_second, bytes_per_second, operations_per_second: sustained rates; None = no limit. Operations
            are messages and pings.
        messages_burst, bytes_burst, operations_burst: what may come at once; None = what one second brings,
            and at least 1.
        on_exceed: "slow" stops reading until it is allowed, "drop" drops the message, "close" closes (1008). A message
            larger than `bytes_burst`, which no wait would let in, is dropped or closes the connection.
    """

    messages_per_second: float | None = None
    messages_burst: int | None = None
    bytes_per_second: float | None = None
    bytes_burst: int | None = None
    operations_per_second: float | None = None
    operations_burst: int | None = None
    on_exceed: Literal["slow", "drop", "close"] = "slow"

    def __post_init__(self) -> None:
        for what in ("messages", "bytes", "operations"):
            rate, burst = f"{what}_per_second", f"{what}_burst"
            self._check_number(rate, MIN_RATE, MAX_RATE, optional=True)
            self._check_integer(burst, 1, optional=True)
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                self._reject(burst, f"None, because {rate} is None")
        self._check_choice("on_exceed", ("slow", "drop", "close"))

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return (self.messages_per_second or self.bytes_per_second or self.operations_per_second) is not None

    def limit(self, what: Literal["messages", "bytes", "operations"]) -> tuple[float, int] | None:
        """Rate per second and burst of one kind; None = no limit."""
        rate: float | None = getattr(self, f"{what}_per_second")
        burst: int | None = getattr(self, f"{what}_burst")
        return None if rate is None else (rate, burst or math.ceil(rate))

    def with_messages(self, rate: float | None, burst: int | None = None) -> Self:
        """A copy that allows `rate` messages per second, `burst` at once."""
        return replace(self, messages_per_second=rate, messages_burst=burst)

    def with_bytes(self, rate: float | None, burst: int | None = None) -> Self:
        """A copy that allows `rate` bytes per second, `burst` at once."""
        return replace(self, bytes_per_second=rate, bytes_burst=burst)

    def with_operations(self, rate: float | None, burst: int | None = None) -> Self:
        """A copy that allows `rate` operations per second, `burst` at once."""
        return replace(self, operations_per_second=rate, operations_burst=burst)

    with_messages_per_second = Builder[float | None]()
    with_messages_burst = Builder[int | None]()
    with_bytes_per_second = Builder[float | None]()
    with_bytes_burst = Builder[int | None]()
    with_operations_per_second = Builder[float | None]()
    with_operations_burst = Builder[int | None]()
    with_on_exceed = Builder[Literal["slow", "drop", "close"]]()


@explains_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PoolConfig(Config):
    """A pool of client connections. Limits are per server.

    Attributes:
        min_connections: connections kept open, in use or idle.
        max_connections: connections at most; not below `min_connections`.
        idle_timeout: seconds after which an idle connection above the minimum is closed.
        health_check_interval: seconds between two checks of the idle ones.
        acquire_timeout: seconds `get` takes at most, waiting and opening together.
        enable_health_check: False checks a connection only when it is handed out.
    """

    min_connections: int = 1
    max_connections: int = 10
    idle_timeout: Seconds = default(300.0)
    health_check_interval: Seconds = default(30.0)
    acquire_timeout: Seconds = default(5.0)
    enable_health_check: bool = True

    def __post_init__(self) -> None:
        self._check_integer("min_connections", 0)
        self._check_integer("max_connections", 1)
        self._check_seconds("idle_timeout", "health_check_interval", "acquire_timeout")
        self._check_flag("enable_health_check")
        if self.max_connections < self.min_connections:
            self._reject("max_connections", f"at least min_connections, which is {self.min_connections}")

    with_min_connections = Builder[int]()
    with_max_connections = Builder[int]()
    with_idle_timeout = Builder[Duration]()
    with_health_check_interval = Builder[Duration]()
    with_acquire_timeout = Builder[Duration]()
    with_enable_health_check = Builder[bool]()


# What `Off` means for a part.
NO_RECONNECT = ReconnectConfig(enabled=False)
NO_HEARTBEAT = HeartbeatConfig(enabled=False)
NO_BACKPRESSURE = BackpressureConfig(enabled=False)
NO_RATE_LIMIT = RateLimitConfig()
