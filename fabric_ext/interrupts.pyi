from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")

def uninterrupted(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call `function`, which does not wait; what Ctrl-C raises comes behind it."""

def guarded(function: Callable[[], _T], end: Callable[[], object]) -> _T:
    """Call `function`, and then, however that ended, `end()`, which Ctrl-C does not interrupt; return what it returned.

    A `finally` in Python code can itself be interrupted before it has done anything.
    """
