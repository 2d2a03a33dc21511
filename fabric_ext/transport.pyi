import asyncio

from picows import WSTransport
from typing_extensions import disjoint_base

@disjoint_base
class Transport(WSTransport):
    """Writes to the socket of an asyncio transport after its opening handshake.

    Args:
        io: the transport. Its high-water mark is set to 0.
        loop: its loop.
    """

    def __init__(self, io: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None: ...
    def __call__(self, data: bytes) -> None:
        """The kernel did not take `data`: learn why, or have the loop's transport keep it. picows calls it."""
