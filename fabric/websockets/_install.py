"""Has `import websockets` mean `fabric.websockets`."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["install"]

STANDS_FOR = "websockets"
STANDING_IN = __name__.rpartition(".")[0]


def install() -> None:
    """Have `import websockets`, and of its modules, mean those here, in this process from now on; again has no effect.

    It is to be called before anything imports the package `websockets`, which need not be installed.

    Raises:
        RuntimeError: `websockets` has been imported already.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if STANDS_FOR in sys.modules:
        raise RuntimeError("websockets has been imported already: call install() before anything imports it")
    sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds `websockets` and its modules before all others are asked."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != STANDS_FOR and not name.startswith(f"{STANDS_FOR}."):
            return None
        return importlib.util.spec_from_loader(name, _Loader(), is_package=name == STANDS_FOR)


class _Loader(importlib.abc.Loader):
    """Puts the module that stands in into `sys.modules`, so that it is one and the same under both names."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        own = STANDING_IN + name.removeprefix(STANDS_FOR)
        try:
            sys.modules[name] = importlib.import_module(own)
        except ModuleNotFoundError as error:
            if error.name != own:
                raise
            raise ModuleNotFoundError(
                f"fabric.websockets stands for websockets, and has no {name}:"
                " it offers the asyncio and the threading interface",
                name=name,
            ) from None
