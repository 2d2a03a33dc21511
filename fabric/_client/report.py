"""What the life of a client leaves in the log, and which cancellation is whose."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from fabric._connection.events import log_event

if TYPE_CHECKING:
    from fabric.error import ConnectionClosed

__all__ = ["is_cancelled", "log", "told"]

logger = logging.getLogger("fabric.client")


def is_cancelled(error: BaseException) -> bool:
    """Is this the cancellation of the running task, not of something that it waits for?"""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def told(loss: ConnectionClosed) -> str:
    """How a connection ended, and the reason behind it, for the log."""
    return f"{loss} ({loss.__cause__})" if loss.__cause__ else str(loss)


def log(
    level: int,
    text: str,
    *args: Any,
    exc_info: BaseException | None = None,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write to the log; one whose handlers or filters raise must not end the repair.

    An error is given as text: a record that a handler keeps would keep the client too, by the error's traceback.
    """
    log_event(logger, level, text, *args, exc_info=exc_info, **(extra or {}))
