"""How a config is declared: fields that convert what they are given, builder methods in one line, and checks.

Owns: the base class of all configs, the wording of their errors, and what their repr shows. Knows no field by
name.
"""

from __future__ import annotations

import functools
import inspect
import math
import ssl
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, field, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar, overload

from fabric._http.url import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = [
    "LARGEST",
    "LONGEST",
    "Builder",
    "Config",
    "Converted",
    "Duration",
    "OptionalSeconds",
    "Seconds",
    "default",
    "default_factory",
    "explains_unknown_options",
]

LARGEST = 2**62
"""The most of any count or size: sums of two and what compression may add to it still are 64-bit numbers."""

LONGEST = 10**9
"""Seconds, 31 years: the longest duration. The event loops and nanoseconds in 64 bits reach further."""

_Given = TypeVar("_Given", contravariant=True)
_Held = TypeVar("_Held", covariant=True)
_Value = TypeVar("_Value")
_Config = TypeVar("_Config")


class Converted(Generic[_Given, _Held]):
    """The type of a field whose constructor takes more than the field holds: `Converted[given, held]`.

    Only for type checkers, which see a descriptor; at run time the field is an ordinary slot.
    """

    if TYPE_CHECKING:

        @overload
        def __get__(self, config: None, owner: Any) -> Converted[_Given, _Held]: ...
        @overload
        def __get__(self, config: object, owner: Any) -> _Held: ...
        def __get__(self, config: Any, owner: Any) -> Any: ...
        def __set__(self, config: object, value: _Given) -> None: ...


Duration = float | timedelta
Seconds = Converted[Duration, float]
OptionalSeconds = Converted[Duration | None, float | None]


def default(value: object) -> Any:
    """`value` as the default of a `Converted` field, which has another type for type checkers."""
    return value


def default_factory(make: Callable[[], object]) -> Any:
    """As `default`, for mutable values; these cannot be hashed, so the config's hash leaves the field out."""
    return field(default_factory=make, hash=False)


class Builder(Generic[_Value]):
    """`with_x = Builder[type]()` in a config's body is a method that returns a copy with `x` changed.

    Args:
        field: the field's name, where it is not the method's without `with_`.
    """

    def __init__(self, field: str = "") -> None:
        self._field = field

    def __set_name__(self, owner: type, name: str) -> None:
        field = self._field or name.removeprefix("with_")

        def build(self: Any, value: Any) -> Any:
            return replace(self, **{field: value})

        build.__name__ = name
        build.__qualname__ = f"{owner.__qualname__}.{name}"
        build.__module__ = owner.__module__
        build.__doc__ = f"A copy with `{field}` set to `value`."
        setattr(owner, name, build)  # the descriptor has done its work: from here on it is a plain method

    if TYPE_CHECKING:

        def __get__(self, config: _Config, owner: type[_Config]) -> Callable[[_Value], _Config]: ...


class Config:
    """Base of the configs, which are frozen dataclasses. Their `__post_init__` calls the checks below.

    `_OTHER_NAMES` maps names that a field has elsewhere, or that people try, to what to write here.
    """

    __slots__ = ()

    _OTHER_NAMES: ClassVar[Mapping[str, str]] = {}

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

    def __repr__(self) -> str:
        """The fields that differ from their defaults; credentials are not shown."""
        shown = []
        for f in fields(self):
            value = getattr(self, f.name)
            usual = f.default if f.default_factory is MISSING else f.default_factory()
            if usual is MISSING or value != usual:
                shown.append(f"{f.name}={_shown(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _reject(self, name: str, allowed: str, error: type[Exception] = ValueError) -> NoReturn:
        value = getattr(self, name)
        raise error(f"{type(self).__name__}.{name} = {_shown(value)}: expected {allowed}")

    def _check_flag(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), bool):
                self._reject(name, "True or False", TypeError)

    def _check_integer(
        self, name: str, low: int, high: int = LARGEST, *, optional: bool = False, note: str = ""
    ) -> None:
        """An int of `low` to `high`; None too if `optional`, whose meaning `note` may tell."""
        value = getattr(self, name)
        if optional and value is None:
            return
        allowed = f"an integer from {low} to {'2**62' if high == LARGEST else high}"
        allowed += (" or None" if optional else "") + (f" ({note})" if note else "")
        if isinstance(value, bool) or not isinstance(value, int):
            self._reject(name, allowed, TypeError)
        if not low <= value <= high:
            self._reject(name, allowed)

    def _check_number(
        self,
        name: str,
        low: float,
        high: float = sys.float_info.max,
        *,
        above: bool = False,
        optional: bool = False,
    ) -> None:
        """A finite number of `low` to `high`, without `low` itself if `above`. Stored as float."""
        value = getattr(self, name)
        if optional and value is None:
            return
        allowed = f"a number above {low:g}" if above else f"a number of {low:g} or more"
        if high != sys.float_info.max:
            allowed += f" and at most {high:g}"
        allowed += " or None" if optional else ""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._reject(name, allowed, TypeError)
        if not low <= value <= high or (above and value == low):  # nor is NaN within any limits
            self._reject(name, allowed)
        self._set(name, float(value))

    def _check_seconds(self, *names: str, zero: bool = False, optional: bool = False, endless: bool = False) -> None:
        """A duration of at most LONGEST, in seconds or as timedelta, above 0, or also 0 if `zero`. Stored as float.

        `endless`: or `math.inf`.
        """
        for name in names:
            value = getattr(self, name)
            if optional and value is None:
                continue
            allowed = "a duration " + ("from 0 s" if zero else "above 0 s") + " to 10**9 s"
            allowed += ", as a number of seconds or a timedelta" + (", or None" if optional else "")
            allowed += ", or math.inf" if endless else ""
            seconds = value.total_seconds() if isinstance(value, timedelta) else value
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                self._reject(name, allowed, TypeError)
            if not (0 <= seconds <= LONGEST or (endless and seconds == math.inf)) or (seconds == 0 and not zero):
                self._reject(name, allowed)
            self._set(name, float(seconds))

    def _check_choice(self, name: str, choices: Collection[str]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in choices:
            error = ValueError if isinstance(value, str) else TypeError
            self._reject(name, f"one of {', '.join(map(repr, choices))}", error)

    def _check_instance(self, name: str, *types: type, optional: bool = False) -> None:
        value = getattr(self, name)
        if not isinstance(value, types) and not (optional and value is None):
            names = [t.__qualname__ for t in types] + (["None"] if optional else [])
            self._reject(name, f"an instance of {' or '.join(names)}", TypeError)

    def _check_function(self, name: str, arguments: str) -> None:
        """A plain function, or None."""
        value = getattr(self, name)
        if value is not None and (not callable(value) or inspect.iscoroutinefunction(value)):
            self._reject(name, f"a plain function of {arguments}, or None", TypeError)

    def _check_context(self, name: str, otherwise: str, *, function: bool = False) -> None:
        """An `ssl.SSLContext`, or None; or a function that returns them, but no class, where one is allowed."""
        value = getattr(self, name)
        is_function = function and callable(value) and not isinstance(value, type)
        if value is not None and not isinstance(value, ssl.SSLContext) and not is_function:
            self._reject(name, f"an ssl.SSLContext, {otherwise}", TypeError)

    def _check_several(self, name: str) -> tuple[Any, ...]:
        """The values of an iterable, which a single str is too, but never is meant to be."""
        value = getattr(self, name)
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            self._reject(name, "several, as in a list", TypeError)
        return tuple(value)

    def _check_part(self, name: str, off: Config) -> None:
        """A nested config; None and False stand for `off`."""
        value = getattr(self, name)
        if value is None or value is False:
            self._set(name, off)
        elif not isinstance(value, type(off)):
            self._reject(name, f"a {type(off).__name__}, or None or False for none", TypeError)


def _shown(value: object) -> str:
    """The repr of a field's value, without credentials and of bounded length."""
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    text = repr(redact(value) if isinstance(value, str) else value)
    return text if len(text) <= 500 else f"{text[:500]}..."


# Options that a config does not have.


def explains_unknown_options(cls: type[_Config]) -> type[_Config]:
    """A class decorator for configs: the TypeError for an option that does not exist tells which was meant."""
    made: Any = cls.__init__

    @functools.wraps(made)
    def make(self: Any, *args: Any, **options: Any) -> None:
        known = cls.__dataclass_fields__  # type: ignore[attr-defined]
        for name in options:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no option {name!r}: {_meant(cls, name)}")
        made(self, *args, **options)

    cls.__init__ = make  # type: ignore[method-assign]
    return cls


def _meant(cls: Any, name: str) -> str:
    """What to write instead of the option `name`."""
    if name in cls._OTHER_NAMES:
        return f"did you mean {cls._OTHER_NAMES[name]}?"
    own = {f.name: f.name for f in fields(cls)}
    nested = {
        inner.name: f"{f.name}={type(f.default).__name__}({inner.name}=...)"
        for f in fields(cls)
        if isinstance(f.default, Config)
        for inner in fields(f.default)
        if inner.name not in own
    }
    options = nested | own
    import difflib  # for the error only

    close = [name] if name in options else difflib.get_close_matches(name, options, n=1, cutoff=0.7)
    if close:
        return f"did you mean {options[close[0]]}?"
    return f"its options are {', '.join(own)}"
