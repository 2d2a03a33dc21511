"""When to try again after a connection was refused or lost, and when not to.

Owns the schedule (`ReconnectState`) and the table of what is final (`should_retry`). Reads no clock, never
sleeps, opens nothing: the moment is passed in, the delay is returned.

    verdict = state.decide(error)           # False: the end
    delay = state.next_delay(retry_after(error), exactly=None if verdict is True else verdict)
"""

from __future__ import annotations

import math
import random
import ssl
from datetime import UTC, datetime, timedelta

from fabric._config.policies import ReconnectConfig
from fabric.error import (
    AuthenticationFailed,
    CompressionError,
    ConnectionClosed,
    Error,
    HandshakeFailed,
    InvalidFrame,
    Tls,
    Utf8Error,
)

__all__ = ["FINAL_CLOSE_CODES", "ReconnectState", "parse_retry_after", "retry_after", "should_retry"]

# RFC 6455 §7.4.1: the peer is done, or says that this end speaks wrongly, which it would do again.
FINAL_CLOSE_CODES = frozenset({1000, 1002, 1003, 1007, 1008, 1010})

# Codes with which this end fails a connection for what would happen again: the peer's messages are over our limits
# (1008, 1009), or the application's callback raised (1011). Wrong bytes (1002, 1007) may have been an accident.
FINAL_FAILURES = frozenset({1008, 1009, 1011})

# RFC 9110 §15.5: a 4xx status blames the request, and the next one will be the same, except for these:
# Request Timeout, Too Early (RFC 8470), Too Many Requests (RFC 6585).
RETRIED_CLIENT_ERRORS = frozenset({408, 425, 429})

# Seconds. Retry-After is cut at this: a client that waits for a year would look broken.
MAX_RETRY_AFTER = 86_400.0

# No state: 2.5 KB less for each client, and forked processes do not draw the same.
_system_random = random.SystemRandom()


class ReconnectState:
    """How long to wait before each attempt, growing from one to the next.

    A random part of each delay spreads out the many clients of one server that was restarted. The delays
    start over when a connection has lived for `stable_after`: a server that accepts and closes at once is
    asked ever more rarely, as one that refuses.

    Args:
        config: delays, growth, jitter, limits.
        rng: source of the jitter, by default the operating system; give one to repeat a schedule.
    """

    __slots__ = ("_attempts", "_config", "_connected_at", "_delay", "_rng")

    def __init__(self, config: ReconnectConfig | None = None, rng: random.Random | None = None) -> None:
        self._config = config or ReconnectConfig()
        self._rng = rng or _system_random
        self._connected_at: float | None = None
        self._attempts = 0
        self._delay = self._config.initial_delay

    @property
    def config(self) -> ReconnectConfig:
        """Delays, growth, jitter, limits."""
        return self._config

    @property
    def attempts(self) -> int:
        """Attempts begun since the last stable connection."""
        return self._attempts

    @property
    def is_connected(self) -> bool:
        """Whether the last that was heard is `connected`."""
        return self._connected_at is not None

    @property
    def is_exhausted(self) -> bool:
        """Whether there is no further attempt: `max_attempts` are used up, or `enabled` is false."""
        limit = self._config.max_attempts
        return not self._config.enabled or bool(limit and self._attempts >= limit)

    def decide(self, error: BaseException, *, default: bool | None = None) -> bool | float:
        """What follows `error`, which ended a connection or an attempt to make one.

        `ReconnectConfig.decide` says so, and where it says None, `should_retry`. It is asked once for each error,
        but not about a `close()` of this end, which is always final.

        Args:
            default: what is said instead of `should_retry`, if it is given.

        Returns:
            False for nothing, True for another attempt as scheduled, seconds for one after just that time.

        Raises:
            TypeError, ValueError: `ReconnectConfig.decide` returned something else. What it raises is raised.
        """
        hook = self._config.decide
        verdict = None if hook is None or _is_own_close(error) else hook(error, self._attempts)
        if verdict is None:
            return should_retry(error) if default is None else default
        if isinstance(verdict, bool):
            return verdict
        seconds = verdict.total_seconds() if isinstance(verdict, timedelta) else verdict
        allowed = "expected True, False, None, or a duration of 0 s or more"
        if not isinstance(seconds, (int, float)):
            raise TypeError(f"ReconnectConfig.decide returned {verdict!r}: {allowed}")
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"ReconnectConfig.decide returned {verdict!r}: {allowed}")
        return float(seconds)

    def next_delay(self, retry_after: float | None = None, *, exactly: float | None = None) -> float | None:
        """Begin an attempt: seconds to wait before it, or None when there is none left.

        Args:
            retry_after: seconds the server asked for. The delay is never less, even where it is more than
                `max_delay`; jitter comes on top, so that clients that were told the same do not come at once.
            exactly: seconds to wait instead of all that; the schedule goes on as if it had been followed.
        """
        if self.is_exhausted:
            return None
        self._attempts += 1
        delay, jitter = self._delay, self._config.jitter * self._rng.random()
        self._delay = min(delay * self._config.backoff_multiplier, self._config.max_delay)
        if exactly is not None:
            return exactly
        if retry_after is not None and retry_after > delay * (1 - jitter):
            return retry_after + delay * jitter
        return delay * (1 - jitter)

    def connected(self, now: float) -> None:
        """An attempt succeeded at `now`, in seconds of a monotonic clock."""
        self._connected_at = now

    def disconnected(self, now: float) -> None:
        """The connection is lost at `now`; the delays start over if it has lived for `stable_after`."""
        if self._connected_at is not None and now - self._connected_at >= self._config.stable_after:
            self.reset()
        self._connected_at = None

    def reset(self) -> None:
        """Start over with the first delay and no attempts."""
        self._attempts = 0
        self._delay = self._config.initial_delay

    def __repr__(self) -> str:
        limit = self._config.max_attempts or "no limit"
        return f"ReconnectState(attempts={self._attempts} of {limit}, next delay up to {self._delay:g} s)"


def should_retry(error: BaseException) -> bool:
    """Whether another attempt may help after `error`, by default.

    Final are:

    - a `close()` by this end, and the peer's 1000, 1002, 1003, 1007, 1008 and 1010;
    - a connection that this end failed because the peer's messages are over its limits, or because the application's
      callback raised;
    - the HTTP statuses 401 and 403, and other 4xx except 408, 425 and 429; a proxy that refuses the login;
    - a certificate of the peer's that this end does not accept;
    - a subprotocol that was not offered, and errors that are none of the network's, as a ValueError.

    Everything else is tried again: what was refused, lost or timed out, any other failure of TLS (an alert, plain HTTP
    on the port, garbage), wrong bytes, a malformed close frame.
    """
    if isinstance(error, ConnectionClosed):
        if error.by != "local":
            return error.code not in FINAL_CLOSE_CODES
        return not _is_own_close(error) and error.code not in FINAL_FAILURES
    if isinstance(error, HandshakeFailed):
        status = error.status
        if status is None:
            return not isinstance(error, AuthenticationFailed)
        return not 400 <= status < 500 or status in RETRIED_CLIENT_ERRORS
    if isinstance(error, Tls):
        return not error.certificate_rejected
    if isinstance(error, Error):
        return error.should_reconnect or isinstance(error, (CompressionError, InvalidFrame, Utf8Error))
    return isinstance(error, (OSError, EOFError)) and not isinstance(error, ssl.SSLCertVerificationError)


def _is_own_close(error: BaseException) -> bool:
    """Whether this end has closed the connection by `close()`: when it fails a connection, there is a cause."""
    return isinstance(error, ConnectionClosed) and error.by == "local" and error.__cause__ is None


def retry_after(error: BaseException | None, now: datetime | None = None) -> float | None:
    """Seconds after which the server that answered with `error` wants to be asked again; None = not said.

    Args:
        now: what a date is compared with; None = the system's clock.
    """
    if not isinstance(error, HandshakeFailed) or error.headers is None:
        return None
    values = [value for name, value in error.headers.items() if name.lower() == "retry-after"]
    return parse_retry_after(values[0], now) if values else None


def parse_retry_after(value: str, now: datetime | None = None) -> float | None:
    """Seconds of a `Retry-After` header (RFC 9110 §10.2.3), 0 to a day; None if it cannot be read."""
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER)
    from email.utils import parsedate_to_datetime  # few servers send a date, and it takes a while to import

    try:
        date = parsedate_to_datetime(text)
    except Exception:  # noqa: BLE001  (a peer's text meets a lenient parser: ValueError, OverflowError, …)
        return None
    if date.tzinfo is None:  # "-0000": in UTC, from an unknown place
        date = date.replace(tzinfo=UTC)
    seconds = (date - (now or datetime.now(UTC))).total_seconds()
    return min(max(0.0, seconds), MAX_RETRY_AFTER)
