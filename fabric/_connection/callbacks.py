"""Whether a function of the application can be called as it will be, asked when it is handed over.

Owns the sentences that say what to write instead. Calls nothing.
"""

from __future__ import annotations

import dis
import inspect
import types
from typing import Any

__all__ = ["check_callback", "check_handler"]


# Instructions of CPython 3.11 to 3.15 by which a function may return None.
_CONSTANTS = frozenset({"LOAD_CONST", "RETURN_CONST", "LOAD_COMMON_CONSTANT"})


def check_callback(
    name: str, function: Any, arguments: tuple[str, ...], *, keywords: tuple[str, ...] = (), hint: str = ""
) -> None:
    """Raise `TypeError` unless `function` can be called with `arguments`.

    Args:
        name: what the function is for: the parameter that it was given as.
        arguments: names of what it is called with, for the text.
        keywords: names of what it is called with by name.
        hint: what to write instead of more arguments.
    """
    if not callable(function):
        raise TypeError(f"{name} must be callable, not {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a builtin, which does not tell
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        what = ", ".join((*arguments, *(f"{keyword}=..." for keyword in keywords)))
        called = f"{name} is called with ({what}), which {_named(function)}{signature} does not take"
        raise TypeError(f"{called}: {error}{hint}") from None


def check_handler(
    name: str, function: Any, arguments: tuple[str, ...], *, keywords: tuple[str, ...] = (), hint: str = ""
) -> None:
    """As `check_callback`, for a function that must return an awaitable; one that plainly does not is refused."""
    if isinstance(function, type):
        raise TypeError(f"{name} is a class, {function.__name__}: give a coroutine function, or an object of the class")
    check_callback(name, function, arguments, keywords=keywords, hint=hint)
    called = function if isinstance(function, (types.FunctionType, types.MethodType)) else type(function).__call__
    if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called) or _returns_only_none(called):
        what = "yields" if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called) else "returns None"
        raise TypeError(f"{name} {_named(function)} {what}, which cannot be awaited: write it as `async def`")


def _returns_only_none(function: Any) -> bool:
    """Is it a plain Python function whose every `return` is without a value?"""
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType) or inspect.iscoroutinefunction(function):
        return False
    before: dis.Instruction | None = None
    for instruction in dis.get_instructions(function):
        if instruction.opname in ("RETURN_VALUE", "RETURN_CONST"):
            value = instruction if instruction.opname == "RETURN_CONST" else before
            if value is None or value.opname not in _CONSTANTS or value.argval is not None:
                return False
        before = instruction
    return True


def _named(function: Any) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__
