"""What `fabric.workers.run` says of wrong arguments. What it does is in integration/test_workers.py."""

from __future__ import annotations

import asyncio
import pickle
import re
from typing import Any

import pytest

from fabric import InvalidState, workers


def main(worker: workers.Worker) -> None:
    """Any function that can be imported."""


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ({"n": 0}, ValueError, "n = 0: expected 1 or more"),
        ({"n": "2"}, TypeError, "n is a number, not str"),
        ({"max_failures": 0}, ValueError, "max_failures = 0"),
        ({"balance": "fair"}, ValueError, "balance = 'fair': expected"),
        ({"broker": "kafka://x"}, ValueError, "broker is"),
        ({"broker": 1}, TypeError, "broker is a URL, not int"),
        ({"bind": "8080"}, ValueError, "bind = '8080'"),
        ({"metrics": "9090"}, ValueError, "bind = '9090'"),
        ({"drain": -1}, ValueError, "drain = -1"),
        ({"start_timeout": -1}, ValueError, "start_timeout = -1"),
        ({"shutdown_timeout": "1"}, TypeError, "shutdown_timeout is a number of seconds"),
        ({"main": 1}, TypeError, "main is a function, not int"),
        ({"main": lambda worker: None}, ValueError, "a worker imports it"),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        workers.run(**{"main": main, "n": 2} | wrong)


async def test_not_in_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="event loop is running"):
        workers.run(main, 2)


async def test_only_in_the_main_thread() -> None:
    with pytest.raises(InvalidState, match="main thread"):
        await asyncio.to_thread(workers.run, main, 2)


def test_a_program_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.spawn.get_preparation_data", lambda name: {})
    monkeypatch.setattr("pickle.dumps", lambda main: b"c__main__\nmain\n")
    with pytest.raises(ValueError, match="this program has no file"):
        workers.run(main, 2)


def test_the_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(workers.WorkersFailed(1, 5, "why")))
    assert (error.number, error.failures, error.cause) == (1, 5, "why")
    assert str(error) == "worker 1 failed to start, 5 times in a row: why"
