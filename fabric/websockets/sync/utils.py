"""Time that several steps share."""

from __future__ import annotations

import time

__all__ = ["Deadline"]


class Deadline:
    """The moment that is `timeout` seconds from now; None for never."""

    def __init__(self, timeout: float | None) -> None:
        self.deadline = None if timeout is None else time.monotonic() + timeout

    def timeout(self, *, raise_if_elapsed: bool = True) -> float | None:
        """Seconds that are left; None for no limit.

        Raises:
            TimeoutError: none are, unless `raise_if_elapsed` is False.
        """
        if self.deadline is None:
            return None
        timeout = self.deadline - time.monotonic()
        if raise_if_elapsed and timeout <= 0:
            raise TimeoutError("timed out")
        return timeout
