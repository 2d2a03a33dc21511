import asyncio
from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Block:
    """Memory that a transport reads into: a writable buffer of `size` bytes."""

    def __new__(cls, size: int) -> Self: ...

@disjoint_base
class ReadBuffer:
    """The block that all connections of one event loop read into.

    Its size is 64 KB, doubled up to 128 KB while reads fill it, and 64 KB again after 256 reads in a row that a quarter
    of it would have held. While a read is being delivered from it, other reads get another block.
    """

    def __new__(cls, loop: asyncio.AbstractEventLoop) -> Self: ...
