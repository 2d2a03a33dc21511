"""The methods that one end offers to the other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fabric._rpc.methods import Method, methods_of
from fabric._rpc.wire import INVALID_PARAMS, RpcError


def add(a: int, /, b: int = 2, *more: int, c: float = 0.5, **rest: str) -> None:
    """Every kind of parameter."""


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


def bound(params: Any) -> dict[str, Any]:
    return dict(Method("add", add).bind(json.dumps(params).encode()).arguments)


def test_arguments_are_bound_and_converted() -> None:
    assert bound([1]) == {"a": 1}
    assert bound([1, 3, 4, 5]) == {"a": 1, "b": 3, "more": (4, 5)}
    assert Method("n", numbers).bind(b'{"count": 3}').arguments == {"count": 3}
    assert Method("f", lambda: None).bind(b"").arguments == {}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ([], "add: missing a required argument: 'a'"),
        (["x"], "add: a: Expected `int`, got `str`"),
        ([1, 2, "x"], r"add: more: Expected `int`, got `str` - at `\$\[0\]`"),
        ({"a": 1}, "add: "),
    ],
)
def test_arguments_that_do_not_fit_are_named(params: Any, said: str) -> None:
    with pytest.raises(RpcError, match=said) as caught:
        bound(params)
    assert caught.value.code == INVALID_PARAMS


def test_named_arguments_of_any_name_are_converted() -> None:
    def named(**rest: int) -> None: ...

    assert Method("named", named).bind(b'{"x": 1}').arguments == {"rest": {"x": 1}}
    with pytest.raises(RpcError, match="named: rest: Expected `int`"):
        Method("named", named).bind(b'{"x": "a"}')


def test_methods_of_a_mapping_and_of_an_object() -> None:
    class Desk:
        limit = 5

        def price(self, symbol: str) -> float:
            return 1.0

        def _hidden(self) -> None: ...

    assert methods_of(None) == {}
    assert [*methods_of(Desk())] == ["price"]
    found = methods_of({"add": add, "numbers": numbers})
    assert [(name, method.is_stream) for name, method in found.items()] == [("add", False), ("numbers", True)]


@pytest.mark.parametrize("name", ["rpc.discover", "$/cancel"])
def test_names_of_the_protocol_are_kept(name: str) -> None:
    with pytest.raises(ValueError, match="kept for the protocol"):
        methods_of({name: add})
