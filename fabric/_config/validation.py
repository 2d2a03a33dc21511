"""How a config is declared: fields that convert what they are given, builder methods in one line, and checks.

Owns: the base class of all configs, the wording of their errors, and what their repr shows. Knows no field by
name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import MISSING, field, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar, overload

from fabric._http.url import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = [
    "Builder",
    "Config",
    "Converted",
    "Duration",
    "OptionalSeconds",
    "Seconds",
    "default",
    "default_factory",
]

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
    """Base of the configs, which are frozen dataclasses. Their `__post_init__` calls the checks below."""

    __slots__ = ()

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
        self, name: str, low: int, high: int | None = None, *, optional: bool = False, note: str = ""
    ) -> None:
        """An int of `low` to `high`; None too if `optional`, whose meaning `note` may tell."""
        value = getattr(self, name)
        if optional and value is None:
            return
        allowed = f"an integer of {low} or more" if high is None else f"an integer from {low} to {high}"
        allowed += (" or None" if optional else "") + (f" ({note})" if note else "")
        if isinstance(value, bool) or not isinstance(value, int):
            self._reject(name, allowed, TypeError)
        if value < low or (high is not None and value > high):
            self._reject(name, allowed)

    def _check_number(
        self, name: str, low: float, high: float = math.inf, *, above: bool = False, optional: bool = False
    ) -> None:
        """A finite number of `low` to `high`, without `low` itself if `above`. Stored as float."""
        value = getattr(self, name)
        if optional and value is None:
            return
        allowed = f"a number above {low:g}" if above else f"a number of {low:g} or more"
        if high != math.inf:
            allowed += f" and at most {high:g}"
        allowed += " or None" if optional else ""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._reject(name, allowed, TypeError)
        if not (math.isfinite(value) and low <= value <= high) or (above and value == low):
            self._reject(name, allowed)
        self._set(name, float(value))

    def _check_seconds(self, *names: str, zero: bool = False, optional: bool = False) -> None:
        """A finite duration in seconds or as timedelta, above 0, or also 0 if `zero`. Stored as float."""
        for name in names:
            value = getattr(self, name)
            if optional and value is None:
                continue
            allowed = "a duration " + ("of 0 s or more" if zero else "above 0 s")
            allowed += ", as a number of seconds or a timedelta" + (", or None" if optional else "")
            seconds = value.total_seconds() if isinstance(value, timedelta) else value
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
                self._reject(name, allowed, TypeError)
            if not (math.isfinite(seconds) and seconds >= 0) or (seconds == 0 and not zero):
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

    def _check_several(self, name: str) -> tuple[Any, ...]:
        """The values of an iterable, which a single str is too, but never is meant to be."""
        value = getattr(self, name)
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            self._reject(name, "several, as in a list", TypeError)
        return tuple(value)

    def _check_part(self, name: str, off: Config) -> None:
        """A nested config; None stands for `off`."""
        if getattr(self, name) is None:
            self._set(name, off)
        self._check_instance(name, type(off), optional=True)


def _shown(value: object) -> str:
    """The repr of a field's value, without credentials and of bounded length."""
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    text = redact(repr(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= 500 else f"{text[:500]}..."
