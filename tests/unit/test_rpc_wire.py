"""JSON-RPC 2.0 as text."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fabric._rpc import wire
from fabric._rpc.wire import RpcError


@pytest.mark.parametrize(
    ("args", "kwargs", "id_", "said"),
    [
        ((), {}, None, {"method": "m"}),
        ((1, "a"), {}, 5, {"method": "m", "params": [1, "a"], "id": 5}),
        ((), {"x": None}, 5, {"method": "m", "params": {"x": None}, "id": 5}),
    ],
)
def test_a_request_is_read_back(args: Any, kwargs: Any, id_: int | None, said: dict[str, Any]) -> None:
    text = wire.request("m", args, kwargs, id_)
    assert json.loads(text) == {"jsonrpc": "2.0", **said}
    incoming = wire.read(text)
    assert not incoming.is_answer
    assert incoming.id == (msgspec.UNSET if id_ is None else id_)


def test_positional_and_named_arguments_are_not_mixed() -> None:
    with pytest.raises(TypeError, match="m: JSON-RPC takes positional or named arguments, not both"):
        wire.request("m", (1,), {"x": 2})


def test_answers_are_read_back() -> None:
    result = wire.read(wire.answer("a", [1]))
    assert (result.is_answer, result.id, bytes(result.result), result.failure()) == (True, "a", b"[1]", None)
    failure = wire.read(wire.error_answer(None, RpcError("no", code=5, data=[1]))).failure()
    assert failure is not None
    assert (failure.message, failure.code, failure.data) == ("no", 5, [1])
    assert RpcError("no").code == wire.FAILED


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("", msgspec.DecodeError),
        ("{}", msgspec.ValidationError),
        ('{"jsonrpc": "2.0"}', msgspec.ValidationError),
        ('{"jsonrpc": "2.0", "id": 1}', msgspec.ValidationError),
        ('{"jsonrpc": "2.0", "result": 1}', msgspec.ValidationError),
        ('{"jsonrpc": "2.0", "method": 5}', msgspec.ValidationError),
        ('{"jsonrpc": "2.0", "method": "m", "params": "x"}', msgspec.ValidationError),
        ('{"jsonrpc": "2.0", "id": 1, "error": {"code": "x", "message": ""}}', msgspec.ValidationError),
    ],
)
def test_other_forms_are_refused(said: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        wire.read(said)


def test_a_batch_is_a_list_whose_items_are_looked_at_later() -> None:
    assert wire.items_of('{"jsonrpc": "2.0"}') is None
    assert [bytes(item) for item in wire.items_of(' \n[1, {"a": 2}]') or []] == [b"1", b'{"a": 2}']
    assert wire.items_of(b"[]") == []
    with pytest.raises(msgspec.DecodeError):
        wire.items_of("[1")
