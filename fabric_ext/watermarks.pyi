from typing_extensions import disjoint_base

FULL: int
COUNTED: int
BEGAN: int

@disjoint_base
class Watermarks:
    """Counts messages and bytes within limits, and tells when the marks are passed.

    Args:
        max_messages, max_bytes: the limits.
        high, low: the marks, as fractions of the limits.
    """

    @property
    def messages(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def is_active(self) -> bool: ...
    def __init__(self, max_messages: int, max_bytes: int, high: float, low: float) -> None: ...
    def level(self) -> float:
        """The higher of both counts, over its limit."""
    def fits(self, size: int) -> bool:
        """Is there room for one message more, of `size` bytes? One that is larger than the limit fits alone."""
    def add(self, size: int) -> bool:
        """Count a message, whatever the limits say. Does `is_active` begin with it?"""
    def add_if_room(self, size: int, unless_active: bool = False) -> int:
        """Count a message if the limits, or the marks too, allow it: FULL, COUNTED or BEGAN."""
    def remove(self, size: int) -> bool:
        """Take a message off the counts. Does `is_active` end with it? ValueError: it was not counted."""
