"""The methods that one end offers: what they are called, what they take, and whether they yield.

Owns the check of a method when it is offered, and of arguments when it is called. Runs nothing.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from fabric._rpc.wire import INVALID_PARAMS, RpcError

__all__ = ["Method", "methods_of"]


class Method:
    """One method; `is_stream` where it is an async generator.

    Args:
        name: what the other end calls it.
        function: plain, a coroutine function, or an async generator function.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise TypeError(f"the method {name!r} must be callable, not {type(function).__name__}")
        self.name = name
        self.function = function
        self.is_stream = inspect.isasyncgenfunction(function)
        self._signature = inspect.signature(function)
        try:
            hints = typing.get_type_hints(function)
        except NameError as error:
            raise TypeError(f"the method {name!r} has an annotation that cannot be found: {error}") from None
        self._types = {key: hints.get(key, Any) for key in self._signature.parameters}

    def bind(self, params: bytes) -> inspect.BoundArguments:
        """The arguments in `params`, JSON, as the types that the method declares.

        Raises:
            RpcError: invalid params; its text names the argument.
        """
        given = msgspec.json.decode(params) if params else []
        try:
            bound = self._signature.bind(**given) if isinstance(given, dict) else self._signature.bind(*given)
        except TypeError as error:
            raise RpcError(f"{self.name}: {error}", code=INVALID_PARAMS) from None
        for key, value in bound.arguments.items():
            bound.arguments[key] = self._converted(key, value)
        return bound

    def _converted(self, key: str, value: Any) -> Any:
        kind = self._signature.parameters[key].kind
        declared = self._types[key]
        if kind is inspect.Parameter.VAR_POSITIONAL:
            declared = tuple[declared, ...]  # type: ignore[valid-type]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            declared = dict[str, declared]  # type: ignore[valid-type]
        try:
            return msgspec.convert(value, declared)
        except msgspec.ValidationError as error:
            raise RpcError(f"{self.name}: {key}: {error}", code=INVALID_PARAMS) from None


def methods_of(offered: Mapping[str, Callable[..., Any]] | object | None) -> dict[str, Method]:
    """The methods of a mapping, or the public ones of an object.

    Raises:
        TypeError: one that cannot be called, or whose annotations cannot be found.
        ValueError: a name that JSON-RPC or this library keeps for itself.
    """
    if offered is None:
        return {}
    named: dict[str, Any]
    if isinstance(offered, Mapping):
        named = dict(offered)
    else:
        names = [name for name in dir(offered) if not name.startswith("_")]
        named = {name: value for name in names if callable(value := getattr(offered, name))}
    for name in named:
        if not isinstance(name, str) or name.startswith(("rpc.", "$/")):
            raise ValueError(f"{name!r} cannot be a method's name: 'rpc.' and '$/' are kept for the protocol")
    return {name: Method(name, function) for name, function in named.items()}
