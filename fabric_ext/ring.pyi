from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class Ring:
    """First-in first-out queue; `len()` is the number of items."""

    def __len__(self) -> int: ...
    def append(self, item: Any) -> None:
        """Add `item` at the end."""
    def popleft(self) -> Any:
        """Take the oldest item; `IndexError` when there is none."""
