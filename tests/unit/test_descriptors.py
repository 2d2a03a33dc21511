"""`fabric._handshake.descriptors`: what is said of a shortage, and how often."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource

import pytest

from fabric._handshake import descriptors
from fabric._handshake.descriptors import CALM, SPARE, DescriptorWatch
from support.fake_time import in_fake_time

LIMIT = 1000


class System:
    """A system with `free` descriptors, the lowest of which is `LIMIT - free`."""

    RLIMIT_NOFILE, RLIM_INFINITY = resource.RLIMIT_NOFILE, resource.RLIM_INFINITY
    O_RDONLY, devnull = os.O_RDONLY, os.devnull

    def __init__(self) -> None:
        self.free = LIMIT
        self.limit = LIMIT

    def getrlimit(self, what: int) -> tuple[int, int]:
        assert what == resource.RLIMIT_NOFILE
        return self.limit, self.limit

    def open(self, path: str, flags: int) -> int:
        assert (path, flags) == (os.devnull, os.O_RDONLY)
        if not self.free:
            raise OSError(errno.EMFILE, "Too many open files")
        return LIMIT - self.free

    def close(self, descriptor: int) -> None:
        assert descriptor == LIMIT - self.free


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    system = System()
    for module in ("resource", "os"):
        monkeypatch.setattr(descriptors, module, system)
    return system


class Said:
    """What was logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self._caplog = caplog

    def take(self) -> list[str]:
        """The texts since this was last called."""
        texts = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        return texts


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    return Said(caplog)


def watch(turns_away: bool = True) -> DescriptorWatch:
    return DescriptorWatch(logging.getLogger("fabric.test"), lambda: 900, lambda: turns_away)


async def test_plenty_is_not_worth_a_word(system: System, said: Said) -> None:
    watching = watch()
    for number in range(LIMIT - SPARE):
        watching.note(number)
    system.limit = resource.RLIM_INFINITY
    watching.note(LIMIT)
    assert said.take() == []


@in_fake_time
async def test_it_is_said_once_then_once_a_second_until_there_are_some_again(system: System, said: Said) -> None:
    watching = watch()
    system.free = 0
    for number in range(LIMIT - SPARE, LIMIT):
        watching.note(number)
    (text,) = said.take()
    assert "file descriptors run short: 900 connections, hardly one of 1000 left" in text
    await asyncio.sleep(3.5)
    assert said.take() == [f"for {n} s no file descriptor was free: clients are turned away" for n in (1, 2, 3)]
    system.free = SPARE - 1
    await asyncio.sleep(5)
    assert said.take() == ["there are file descriptors again"]  # few, but this is known
    system.free = 0
    await asyncio.sleep(1)
    assert said.take() == ["for 1 s no file descriptor was free: clients are turned away"]
    system.free = LIMIT // 2
    await asyncio.sleep(5)
    assert said.take() == ["there are file descriptors again"]
    await asyncio.sleep(CALM)
    watching.note(LIMIT - 1)
    assert len(said.take()) == 1  # another shortage
    watching.stop()
    await asyncio.sleep(5)
    assert said.take() == []


@in_fake_time
@pytest.mark.parametrize("turns_away", [True, False])
async def test_a_shortage_that_comes_and_goes_is_said_once(system: System, said: Said, turns_away: bool) -> None:
    watching = watch(turns_away)
    for _ in range(1000):
        system.free = 0
        watching.note(LIMIT - 1)
        system.free = LIMIT // 2
        await asyncio.sleep(0.1)
        watching.note(LIMIT // 2)
    texts = said.take()
    assert sum("run short" in text for text in texts) == 1
    assert len(texts) <= 1 + 100  # seconds
    watching.stop()


@in_fake_time
async def test_it_is_watched_although_the_log_raises(system: System, broken_log: list[str]) -> None:
    watching = DescriptorWatch(logging.getLogger("fabric.server"), lambda: 900, lambda: True)
    system.free = 0
    watching.note(LIMIT - 1)
    await asyncio.sleep(3.5)
    assert len(broken_log) == 4
    watching.stop()


@in_fake_time
async def test_who_lets_clients_wait_says_so_itself(system: System, said: Said) -> None:
    system.free = 0
    watch(turns_away=False).note(LIMIT - 1)
    assert len(said.take()) == 1
    await asyncio.sleep(5)
    assert said.take() == []
