"""Every public name says what it is: modules, classes, functions, methods and properties.

A name is public where a public module exports it, or where it is a member, without an underscore in front, that a
public class has from this library. Compiled members are documented in their stub (`.pyi`), as `docs/conf.py` shows
them.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import fabric
import fabric_ext

PRIVATE = {"__main__"}
OPTIONAL = {"fabric.otel": "opentelemetry", "fabric.prometheus": "prometheus_client", "fabric.testing.plugin": "pytest"}

COMPILED = Path(fabric_ext.__file__).parent


def public_modules() -> Iterator[str]:
    """The modules of the package that have no underscore in front, with those that they hold."""
    yield "fabric"
    for module in pkgutil.walk_packages(fabric.__path__, "fabric."):
        parts = module.name.split(".")
        if not any(part.startswith("_") for part in parts) and "cli" not in parts and "websockets" not in parts:
            yield module.name


@functools.cache
def documented(module: str) -> dict[str, str]:
    """The docstrings in the stub of a compiled module, by dotted name."""
    found: dict[str, str] = {}

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for index, node in enumerate(body):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                if text := ast.get_docstring(node):
                    found[prefix + node.name] = text
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                following = body[index + 1] if index + 1 < len(body) else None
                if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                    found[prefix + node.target.id] = str(following.value.value)

    stub = COMPILED / f"{module.removeprefix('fabric_ext.')}.pyi" if module.startswith("fabric_ext.") else Path("none")
    collect(ast.parse(stub.read_text()).body if stub.exists() else [], "")
    return found


def exported(name: str) -> dict[str, object]:
    """What a module exports."""
    module = importlib.import_module(name)
    return {each: getattr(module, each) for each in getattr(module, "__all__", ())}


def about(cls: type) -> str:
    """The docstring of a class itself."""
    return documented(cls.__module__).get(cls.__name__, "") or cls.__doc__ or ""


def is_documented(cls: type, owner: type, name: str, found: object) -> bool:
    """Has the member `name` of `cls`, which `owner` defines as `found`, a docstring? Classes may tell of attributes."""
    is_attribute = not callable(found) and not isinstance(found, classmethod | staticmethod)
    heirs = cls.__mro__[: cls.__mro__.index(owner) + 1]
    if is_attribute and any(re.search(rf"\b{name}\b", about(heir)) for heir in heirs):
        return True
    if owner.__module__.startswith("fabric_ext."):
        return f"{owner.__name__}.{name}" in documented(owner.__module__)
    if isinstance(found, classmethod | staticmethod):
        found = found.__func__
    return not inspect.ismemberdescriptor(found) and bool(inspect.getdoc(found))


def members(cls: type) -> Iterator[tuple[type, str, object]]:
    """The public members that a class has from this library: who defines each, its name, and what it is."""
    seen = set()
    for owner in cls.__mro__:
        if owner.__module__.partition(".")[0] not in {"fabric", "fabric_ext"}:
            continue
        for name, found in vars(owner).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            called = callable(found) or isinstance(found, classmethod | staticmethod | property)
            if called or inspect.isdatadescriptor(found):
                yield owner, name, found


def missing(module: str) -> list[str]:
    """The names without a docstring."""
    lacking = [] if importlib.import_module(module).__doc__ else [module]
    for name, found in exported(module).items():
        if inspect.isclass(found):
            if not inspect.getdoc(found):
                lacking.append(name)
            is_plain = dataclasses.is_dataclass(found) or issubclass(found, enum.Enum) or typing.is_typeddict(found)
            fields = getattr(found, "__dataclass_fields__", {}) or getattr(found, "__slots__", ()) if is_plain else ()
            for owner, member, value in members(found):
                if member not in fields and not is_documented(found, owner, member, value):
                    lacking.append(f"{name}.{member}")
        elif inspect.isroutine(found) and not (inspect.getdoc(found) or name in documented(found.__module__)):
            lacking.append(name)
    return lacking


@pytest.mark.parametrize("module", sorted(public_modules()))
def test_no_public_name_lacks_a_docstring(module: str) -> None:
    if module in OPTIONAL:
        pytest.importorskip(OPTIONAL[module])
    if module.rpartition(".")[2] in PRIVATE:
        pytest.skip("it runs")
    assert missing(module) == []


def test_the_check_sees_what_is_missing() -> None:
    """It would hold nothing if it were blind."""

    class Bare:
        """Documented."""

        def told(self) -> None:
            """Said."""

        def untold(self) -> None: ...

        @property
        def unsaid(self) -> None: ...

    Bare.__module__ = "fabric.x"
    found = {name: is_documented(Bare, owner, name, value) for owner, name, value in members(Bare)}
    assert found == {"told": True, "untold": False, "unsaid": False}
    assert "Message.json" in documented("fabric_ext.message")
