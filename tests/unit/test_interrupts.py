"""Ctrl-C that waits for the end of a call: in a forked child, and where no handler can be set."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fabric_ext.interrupts import uninterrupted
from support.threads import Caller


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a program in the foreground has it: tests that run behind a `&` inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def handler_of_interrupts() -> Any:
    return signal.getsignal(signal.SIGINT)


def true_in_child(check: Callable[[], bool]) -> bool:
    """Fork, and tell whether `check()` is true in the child."""
    child = os.fork()
    if not child:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@forks
@pytest.mark.usefixtures("interruptible")
def test_a_child_that_another_thread_forks_is_not_held_back() -> None:
    def check() -> bool:
        is_default = handler_of_interrupts() is signal.default_int_handler
        held = uninterrupted(handler_of_interrupts)  # raises nothing that the parent has held back
        return is_default and held is not signal.default_int_handler

    def fork_while_it_waits() -> None:
        signal.raise_signal(signal.SIGINT)
        results.append(handler_of_interrupts() is not signal.default_int_handler)
        results.append(Caller(true_in_child, check).result())

    results: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        uninterrupted(fork_while_it_waits)
    assert results == [True, True]
    assert handler_of_interrupts() is signal.default_int_handler


@forks
@pytest.mark.usefixtures("interruptible")
def test_a_child_of_the_thread_that_holds_back_releases_it_itself() -> None:
    child = uninterrupted(os.fork)
    if not child:
        try:
            os._exit(0 if handler_of_interrupts() is signal.default_int_handler else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class SetsNoHandler:
    """Takes the place of signal.signal(), and raises ValueError the first `times`."""

    def __init__(self, times: int) -> None:
        self.left = times
        self._set = signal.signal

    def __call__(self, number: int, handler: Any) -> Any:
        if self.left:
            self.left -= 1
            raise ValueError("signal only works in main thread of the main interpreter")
        return self._set(number, handler)


@pytest.mark.usefixtures("interruptible")
def test_that_no_handler_can_be_set_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", SetsNoHandler(10_000))
    called: list[bool] = []
    with pytest.raises(ValueError, match="only works in main thread"):
        uninterrupted(called.append, True)
    monkeypatch.undo()
    assert called == []
    uninterrupted(called.append, True)  # nothing of it is left
    assert called == [True]


@pytest.mark.usefixtures("interruptible")
def test_what_another_handler_raises_comes_behind_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", SetsNoHandler(1))
    called: list[bool] = []
    with pytest.raises(ValueError, match="only works in main thread"):
        uninterrupted(called.append, True)
    assert called == [True]
    assert handler_of_interrupts() is signal.default_int_handler
