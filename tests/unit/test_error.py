"""`fabric.error`: the tree, the attributes, the sentences, and copies of them."""

from __future__ import annotations

import copy
import errno
import inspect
import pickle
import re
from typing import Any

import pytest

from fabric import error
from fabric.error import Error

# One of each class: error, its attributes, what its sentence must tell.
SAMPLES: dict[str, tuple[Any, Any, Any]] = {
    type(sample).__name__: (sample, attributes, words)
    for sample, attributes, words in [
        (error.ConnectionFailed("refused by h:1", url="ws://h:1/"), {"url": "ws://h:1/"}, ["refused by h:1"]),
        (
            error.ConnectionClosed(1008, "go away", by="local", clean=True),
            {"code": 1008, "reason": "go away", "by": "local", "clean": True},
            ["1008", "policy violation", "go away", "this side"],
        ),
        (
            error.ReconnectTimeout("gave up", attempts=7, undelivered=iter(["a", "b"]), cause=OSError(1, "x")),
            {"attempts": 7, "undelivered": ("a", "b")},
            ["gave up", "7", "2 messages"],
        ),
        (error.InvalidFrame("RSV1 set", code=1003), {"code": 1003}, ["RSV1 set"]),
        (error.MessageTooLarge(12, 10), {"size": 12, "limit": 10}, ["12 bytes", "10 bytes"]),
        (error.Utf8Error("byte 0xff at 3"), {}, ["byte 0xff at 3"]),
        (error.BufferFull(10, 9, "bytes"), {"size": 10, "limit": 9, "what": "bytes"}, ["10 of 9 bytes"]),
        (error.BackpressureTimeout(1.5, 0.83), {"timeout": 1.5, "level": 0.83}, ["1.5 s", "83%"]),
        (error.Timeout("handshake", 5.0), {"what": "handshake", "timeout": 5.0}, ["handshake", "5 s"]),
        (
            error.RateLimitExceeded("bytes", 0.25),
            {"what": "bytes", "retry_after": 0.25},
            ["bytes", "0.250 s"],
        ),
        (
            error.ConnectionLimitExceeded(3, "connections to h"),
            {"limit": 3, "what": "connections to h"},
            ["3 connections to h"],
        ),
        (
            error.HandshakeFailed("status 503", status=503, headers={"A": "b"}, body=b"busy"),
            {"status": 503, "headers": {"A": "b"}, "body": b"busy"},
            ["status 503"],
        ),
        (
            error.AuthenticationFailed("status 401", status=401, challenge="Basic realm=x"),
            {"status": 401, "headers": None, "body": b"", "challenge": "Basic realm=x"},
            ["status 401"],
        ),
        (
            error.Tls("certificate expired", reason="CERTIFICATE_VERIFY_FAILED", certificate_rejected=True),
            {"reason": "CERTIFICATE_VERIFY_FAILED", "certificate_rejected": True},
            ["certificate expired"],
        ),
        (
            error.SubprotocolNegotiationFailed("nothing in common", ["a"], []),
            {"offered": ("a",), "supported": ()},
            ["nothing in common", "offered: a", "supported: none"],
        ),
        (error.InvalidSubprotocol("a b"), {"value": "a b"}, ["'a b'", "token"]),
        (error.InvalidHeader("X", "has a CR"), {"name": "X"}, ["'X'", "has a CR"]),
        (error.CompressionError("bad block"), {}, ["bad block"]),
        (error.JsonError("expected int", path="$.a[0]"), {"path": "$.a[0]"}, ["expected int", "$.a[0]"]),
        (error.NotSupported("AF_UNIX"), {}, ["AF_UNIX"]),
        (error.InvalidState("two recv", state="OPEN"), {"state": "OPEN"}, ["two recv", "OPEN"]),
        (error.Io("accept", errno=errno.EMFILE), {"errno": errno.EMFILE}, ["accept"]),
    ]
}

CLASSES = [c for _, c in inspect.getmembers(error, inspect.isclass) if issubclass(c, Error) and c is not Error]


def test_there_are_22_classes_all_public_and_all_sampled() -> None:
    assert len(CLASSES) == 22
    assert sorted(error.__all__) == sorted([c.__name__ for c in CLASSES] + ["Error"])
    assert SAMPLES.keys() == {c.__name__ for c in CLASSES}


def test_the_docstring_shows_the_tree_as_it_is() -> None:
    lines = re.findall(r"^ *(?:│ *)?[├└]── (\w+) *(.*)$", error.__doc__ or "", re.MULTILINE)
    assert len(lines) == 22
    for name, rest in lines:
        cls = getattr(error, name)
        own = [base.__name__ for base in cls.__bases__ if not issubclass(base, Error)]
        retry, reconnect = "retry" in rest, "reconnect" in rest
        assert re.findall(r"\w+Error", rest) == own, name
        assert (cls.is_retryable, cls.should_reconnect) == (retry, reconnect), name


def test_what_may_be_retried_and_what_calls_for_a_new_connection() -> None:
    reconnect = {"Io", "ConnectionFailed", "ConnectionClosed", "Timeout"}
    assert {c.__name__ for c in CLASSES if c.should_reconnect} == reconnect
    assert {c.__name__ for c in CLASSES if c.is_retryable} == reconnect | {"Tls"}
    assert Error.is_retryable is False
    assert Error.should_reconnect is False


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConnectionFailed", ConnectionError),
        ("ConnectionClosed", ConnectionError),
        ("ReconnectTimeout", TimeoutError),
        ("ReconnectTimeout", ConnectionError),
        ("HandshakeFailed", ConnectionError),
        ("AuthenticationFailed", error.HandshakeFailed),
        ("BackpressureTimeout", TimeoutError),
        ("Timeout", TimeoutError),
        ("Tls", OSError),
        ("Io", OSError),
        ("InvalidFrame", ValueError),
        ("Utf8Error", UnicodeError),
        ("JsonError", ValueError),
        ("InvalidState", RuntimeError),
        ("NotSupported", NotImplementedError),
    ],
)
def test_ordinary_except_clauses_catch(name: str, builtin: type[BaseException]) -> None:
    with pytest.raises(builtin):
        raise SAMPLES[name][0]


@pytest.mark.parametrize("name", SAMPLES)
def test_attributes_and_sentence(name: str) -> None:
    sample, attributes, words = SAMPLES[name]
    assert {key: getattr(sample, key) for key in attributes} == attributes
    for word in words:
        assert word in str(sample)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_keep_everything(name: str, duplicate: object) -> None:
    sample, attributes, _ = SAMPLES[name]
    sample.add_note("seen twice")
    twin = duplicate(sample)  # type: ignore[operator]
    assert type(twin) is type(sample)
    assert (str(twin), twin.args) == (str(sample), sample.args)
    assert {key: getattr(twin, key) for key in attributes} == attributes
    assert twin.__notes__ == sample.__notes__


def test_the_cause_of_giving_up_is_chained_and_copied() -> None:
    cause = error.ConnectionFailed("refused")
    final = error.ReconnectTimeout("gave up", attempts=1, cause=cause)
    assert final.cause is final.__cause__ is cause
    assert str(pickle.loads(pickle.dumps(final)).cause) == "refused"


@pytest.mark.parametrize(
    ("closed", "sentence"),
    [
        (error.ConnectionClosed(1000), "connection closed by the peer with 1000 (normal closure)"),
        (error.ConnectionClosed(1006, by="transport"), "connection lost with 1006 (abnormal closure)"),
        (error.ConnectionClosed(3456, by="local"), "connection closed by this side with 3456 (registered)"),
        (error.ConnectionClosed(4000, "bye"), "connection closed by the peer with 4000 (private use): 'bye'"),
        (error.ConnectionClosed(2999), "connection closed by the peer with 2999 (unknown)"),
    ],
)
def test_a_close_tells_code_name_reason_and_side(closed: Error, sentence: str) -> None:
    assert str(closed) == sentence


def test_a_close_code_is_no_errno() -> None:
    closed = error.ConnectionClosed(1001, "x")
    assert closed.errno is None
    assert closed.strerror is None


def test_a_peers_words_stay_on_one_line_of_bounded_length() -> None:
    text = str(error.ConnectionClosed(4000, "\x1b[2J\nfake log line " * 100))
    assert text.isprintable()
    assert len(text) < 300
    assert "\n" not in str(error.InvalidHeader("a\r\nb", "not a token"))
