import asyncio
from collections.abc import Callable
from typing import NoReturn, Self, final

from fabric_ext.bucket import RateGate
from fabric_ext.counters import Counters
from fabric_ext.session import Session

@final
class Throttle:
    """The inbound rate limit of one session: messages pass, wait, are dropped, or fail the connection with 1008.

    Args:
        gate: the buckets that are asked.
        on_exceed: "slow", "drop" or "close": what happens when the connection's own limit is exceeded.
        on_shared_exceed: the same for the limit that it shares with others.
        clock: returns nanoseconds; None = the system's monotonic clock.

    Raises:
        KeyError: an action is none of the three.
    """

    def __new__(
        cls, gate: RateGate, on_exceed: str, on_shared_exceed: str, clock: Callable[[], int] | None = None
    ) -> Self: ...
    def __reduce__(self) -> NoReturn: ...
    def start(self, session: Session, loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
        """Throttle `session`, which is asked to pause, resume, deliver and fail. A session calls it when it opens."""
