import asyncio
from typing import Self

from typing_extensions import disjoint_base

def hold_back(loop: asyncio.AbstractEventLoop, ns: int) -> LoopWriter:
    """For tests: gather bytes for `ns` at most, on `loop`, as long as the object returned is kept."""

@disjoint_base
class Item:
    """A message for many connections."""

@disjoint_base
class LoopWriter:
    """What the writers of one event loop share: whether a read is being delivered, and which have gathered bytes."""

    def __new__(cls, loop: asyncio.AbstractEventLoop) -> Self: ...
    def end_turn(self) -> None:
        """The turn of the loop is over: write what was gathered in it. The loop calls it."""

@disjoint_base
class Writer:
    """Gathers frames, and writes them to one transport; the base of a session."""
