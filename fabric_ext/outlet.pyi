import asyncio
from typing import TypeVar

from fabric_ext.inbox import Inbox

T = TypeVar("T")

class Hub:
    """What the connections of one event loop share: whether a read is in progress, and who has gathered bytes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None: ...
    def end_turn(self) -> None:
        """The turn of the loop is over: write what was gathered in it."""

class Outlet(Inbox[T]):
    """An inbox that can also send."""
