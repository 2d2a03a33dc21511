"""Names of a module that are imported when they are asked for, and those of `websockets` that are not here."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["absent", "lazy"]


def absent(module: str, *names: str) -> Callable[[str], Any]:
    """A module's `__getattr__` that says of `names` that they are left out, and why."""
    return lazy(module, {}, {}, names)


def lazy(
    module: str, names: Mapping[str, str], deprecated: Mapping[str, str], left_out: tuple[str, ...] = ()
) -> Callable[[str], Any]:
    """A module's `__getattr__`.

    Args:
        module: the module's name.
        names: of each name the module that has it.
        deprecated: likewise; asking for these warns.
        left_out: names of `websockets` for parts that are not here: Sans-I/O, legacy, trio.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807  (PEP 562)
        if name in names:
            return getattr(importlib.import_module(names[name]), name)
        if name in deprecated:
            warnings.warn(f"{module}.{name} is deprecated", DeprecationWarning, stacklevel=2)
            return getattr(importlib.import_module(deprecated[name]), name)
        if name in left_out:
            raise AttributeError(
                f"fabric.websockets has no {name}: it offers the asyncio and the threading interface of"
                " websockets, and neither Sans-I/O nor legacy classes"
            )
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__
