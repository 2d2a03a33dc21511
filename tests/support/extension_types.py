"""Does to one extension type what Python can do to any object; `python extension_types.py MODULE NAME`.

Each step is printed before it is taken, so that the last line tells where the interpreter died. An ordinary exception
is an answer; SystemError, an exception that is not reported to the caller, and a copy that is not equal are faults.
"""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

MOST_ARGUMENTS = 5
NOT_CALLED = {"__class__", "__init_subclass__", "__subclasshook__"}


class Fault(BaseException):
    """What an extension type must not do; not an Exception, so that no step takes it for an answer."""


def attempt(step: str, call: Callable[[], Any]) -> Any:
    """The result of `call`, or None if it raises an ordinary exception."""
    print(step, flush=True)
    try:
        return call()
    except SystemError as error:
        raise Fault(f"{step}: {error!r}") from error
    except Exception:  # noqa: BLE001 (any of them will do)
        return None


def arguments(own: Any) -> Iterator[tuple[Any, ...]]:
    """No arguments; then as many as a method may take, of a type that it may not."""
    yield ()
    for value in (None, object(), own, 0, -1, 3, 40, 2**70, 1.5, "text", b"bytes", bytearray(9), [own], int):
        for count in range(1, MOST_ARGUMENTS + 1):
            yield (value,) * count


def keywords(call: Any) -> list[str]:
    """The keyword arguments that must be given, as far as the signature is known."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (ValueError, TypeError):
        return []
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.default is each.empty]


def call_it(step: str, call: Any, own: Any) -> Iterator[Any]:
    names = keywords(call)
    for given in arguments(own):
        named = dict.fromkeys(names, given[0]) if given else {}
        result = attempt(f"{step}{given!r}", functools.partial(call, *given, **named))
        if inspect.iscoroutine(result):
            result.close()
        yield result


def duplicate(step: str, one: Any) -> None:
    """A copy is equal, or a TypeError says what cannot be copied."""
    ways: dict[str, Callable[[], Any]] = {"copy": lambda: copy.copy(one), "deepcopy": lambda: copy.deepcopy(one)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        ways[f"pickle {protocol}"] = lambda protocol=protocol: pickle.loads(pickle.dumps(one, protocol))
    for way, call in ways.items():
        print(f"{way} {step}", flush=True)
        try:
            twin = call()
        except TypeError as error:
            if not any(each.__name__ in str(error) for each in type(one).__mro__[:-1]):
                raise Fault(f"{way} {step}: the class is not named: {error}") from error
        else:
            if type(twin) is not type(one) or twin != one:
                raise Fault(f"{way} {step}: not equal")


def exercise(step: str, one: Any) -> None:
    duplicate(step, one)
    for function in (repr, str, hash, bool, len, iter, list, sys.getsizeof, dir, memoryview, gc.get_referents):
        attempt(f"{function.__name__}({step})", functools.partial(function, one))
    for other in (one, None, object(), 5, type(one)):
        attempt(f"{step} == {other!r}", lambda other=other: one == other or one != other)
        attempt(f"{step} < {other!r}", lambda other=other: one < other)
    for name in sorted(set(dir(one)) - NOT_CALLED):
        value = attempt(f"{step}.{name}", lambda name=name: getattr(one, name))
        if callable(value):
            for _ in call_it(f"{step}.{name}", value, one):
                pass
        if not name.startswith("__"):
            for wrong in (None, object(), -1, 2**70):
                attempt(f"{step}.{name} = {wrong!r}", lambda name=name, wrong=wrong: setattr(one, name, wrong))
            attempt(f"del {step}.{name}", lambda name=name: delattr(one, name))
    gc.collect()


def inherited(kind: type) -> set[str]:
    """What a type has from another package's: those methods do not look at what they are called on."""
    return {name for base in kind.__mro__ if base.__module__.startswith("picows") for name in vars(base)}


def main(module: str, name: str) -> None:
    unreported: list[object] = []
    sys.unraisablehook = lambda report: unreported.append((report.exc_value, report.object))
    kind = getattr(importlib.import_module(module), name)
    bare = attempt(f"{name}.__new__", lambda: kind.__new__(kind))
    if bare is not None:
        exercise(f"{name}.__new__", bare)
    # The methods without an object, and with another in its place.
    for method in sorted(set(dir(kind)) - NOT_CALLED - inherited(kind)):
        attempt(f"{name}.{method}", lambda method=method: getattr(kind, method)())
        attempt(f"{name}.{method}(object)", lambda method=method: getattr(kind, method)(object()))
    made = [one for one in call_it(name, kind, None) if one is not None]
    if made:
        exercise(f"{name}()", made[0])
    subclass = attempt("class Subclass", lambda: type("Subclass", (kind,), {"__module__": __name__}))
    if subclass is not None:
        globals()["Subclass"] = subclass  # where pickle looks for it
        one = attempt("Subclass.__new__", lambda: subclass.__new__(subclass))
        if one is not None:
            attempt("a cycle", lambda: setattr(one, "itself", one))
            exercise("Subclass.__new__", one)
        del one
    del bare, made
    gc.collect()
    if unreported:
        raise Fault(f"not reported to the caller: {unreported}")


if __name__ == "__main__":
    main(*sys.argv[1:])
