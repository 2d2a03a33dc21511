import asyncio
from typing import Self

from typing_extensions import disjoint_base

from fabric_ext.inbox import Inbox

def hold_back(loop: asyncio.AbstractEventLoop, ns: int) -> None:
    """For tests: hold frames back for `ns` at most, in reads of `loop` from now on."""

@disjoint_base
class Hub:
    """What the connections of one event loop share: whether a read is in progress, and who has gathered bytes."""

    def __new__(cls, loop: asyncio.AbstractEventLoop) -> Self: ...
    def end_turn(self) -> None:
        """The turn of the loop is over: write what was gathered in it."""

@disjoint_base
class Outlet(Inbox):
    """An inbox that can also send."""
