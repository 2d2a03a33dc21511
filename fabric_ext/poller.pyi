import asyncio
from collections.abc import Callable
from typing import NoReturn, Self

from typing_extensions import disjoint_base

from fabric_ext.counters import LoopCounters
from fabric_ext.session import Session

def use_clock(loop: asyncio.AbstractEventLoop, counters: LoopCounters, clock: Callable[[], int] | None) -> Poller:
    """For tests: have the poller of `loop` ask `clock()` for the time in ns, as long as what is returned is kept."""

def read_now(fd: int) -> bytes | None:
    """What has come on a socket, at most 16 KB of it; None if nothing has.

    The end of the stream, and an error, are left to its transport.
    """

@disjoint_base
class Poller:
    """Polls the hot connections of one event loop."""

    def __new__(cls, loop: asyncio.AbstractEventLoop, counters: LoopCounters) -> Self: ...
    def __reduce__(self) -> NoReturn: ...
    def turn(self) -> None:
        """Make one pass, and have the loop call again as long as something is hot. The loop calls it."""

@disjoint_base
class PolledSession(Session):
    """A session that is polled for a while after each byte. `PolledSessionProtocol` is the class to make one of."""

    def poll(self, loop: asyncio.AbstractEventLoop, counters: LoopCounters, seconds: float) -> None:
        """Have the poller of `loop`, which counts in `counters`, poll it for `seconds` after its last byte.

        To be called before it is opened. `math.inf`: for ever.
        """

class PolledSessionProtocol(PolledSession, asyncio.BufferedProtocol):
    """A polled session, as asyncio knows a protocol that reads into a buffer of its own."""

    data_received: None
