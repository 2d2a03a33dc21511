"""`fabric._config.validation`: how a config is declared, on one made for the purpose."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

import pytest

from fabric._config.validation import (
    LARGEST,
    LONGEST,
    Builder,
    Config,
    Seconds,
    default,
    explains_unknown_options,
)


@explains_unknown_options
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Inner(Config):
    """A part.

    Attributes:
        depth: how deep.
        wait: how long.
    """

    depth: int = 1
    wait: Seconds = default(1.0)  # noqa: RUF009

    def __post_init__(self) -> None:
        self._check_integer("depth", 0)
        self._check_seconds("wait")


@explains_unknown_options
@dataclass(frozen=True, slots=True, repr=False)
class Outer(Config):
    """A whole.

    Attributes:
        name: of it.
        size: of it.
        part: of it.
    """

    _OTHER_NAMES: ClassVar[dict[str, str]] = {"length": "size", "ignored": "nothing at all"}

    name: str
    _: KW_ONLY
    size: int = 1
    part: Inner = Inner()

    def __post_init__(self) -> None:
        self._check_integer("size", 1)
        self._check_part("part", Inner(depth=0))

    with_size = Builder[int]()
    with_part = with_the_part = Builder[Any]("part")


def test_builders_are_methods_that_change_one_field() -> None:
    config = Outer("x")
    assert config.with_size(3) == Outer("x", size=3)
    assert config.with_the_part(Inner(depth=2)) == config.with_part(Inner(depth=2)) == Outer("x", part=Inner(depth=2))
    assert config.size == 1


def test_the_bounds_are_in_the_error() -> None:
    assert Outer("x", size=LARGEST).size == 2**62
    with pytest.raises(ValueError, match=r"Outer\.size = 4611686018427387905: expected an integer from 1 to 2\*\*62"):
        Outer("x", size=LARGEST + 1)
    assert Inner(wait=LONGEST).wait == 1e9
    with pytest.raises(ValueError, match=r"Inner\.wait = 1000000001: expected a duration above 0 s to 10\*\*9 s"):
        Inner(wait=LONGEST + 1)


def test_none_and_false_are_off() -> None:
    off = Inner(depth=0)
    for value in (None, False):
        assert Outer("x", part=value).part == off  # type: ignore[arg-type]
    for wrong in (True, 0, "", Outer("y")):
        with pytest.raises(TypeError, match=r"Outer\.part = .*: expected a Inner, or None or False for none"):
            Outer("x", part=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sise", r"did you mean size\?"),
        ("length", r"did you mean size\?"),
        ("ignored", r"did you mean nothing at all\?"),
        ("depth", r"did you mean part=Inner\(depth=\.\.\.\)\?"),
        ("dept", r"did you mean part=Inner\(depth=\.\.\.\)\?"),
        ("quite_different", "its options are name, size, part"),
    ],
)
def test_an_unknown_option(name: str, words: str) -> None:
    options: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=rf"Outer has no option '{name}': {words}"):
        Outer("x", **options)
    with pytest.raises(TypeError, match=rf"Outer has no option '{name}': {words}"):
        replace(Outer("x"), **options)


def test_the_constructor_looks_as_it_did() -> None:
    assert list(inspect.signature(Outer).parameters) == ["name", "size", "part"]
    with pytest.raises(TypeError, match="positional"):
        Outer("x", 3)  # type: ignore[call-arg,misc]
    with pytest.raises(TypeError, match="name"):
        Outer()  # type: ignore[call-arg]


def test_copies_are_equal() -> None:
    config = Outer("x", size=2)
    for twin in (copy.copy(config), copy.deepcopy(config), replace(config)):
        assert twin == config
    assert pickle.loads(pickle.dumps(Inner(depth=3))) == Inner(depth=3)
