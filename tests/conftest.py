"""The test rig: async tests on both event loops, each bounded in time, each failed by what it leaves behind.

`async def test_x(...)` runs twice, on uvloop and on plain asyncio; a plain test that drives a loop itself
asks for the fixture `loop_factory`. Tests of the client run a third time, on asyncio with the client of `fabric.sync`
(`support.over_sync`). When an async test has returned and `stack` is unwound, it fails if a
task, a socket or another descriptor of its own is still there, if an exception was never retrieved or
reached the loop's exception handler, or if collecting garbage raises a warning. A test that provokes such a
report claims it with the fixture `loop_reports`.

Randomness comes from the fixtures `seed` and `rng`; what hypothesis generates follows `seed` too. FABRIC_SEED repeats
a run. FABRIC_SEEDS=200 runs each test that is seeded, marked `seeded` thereby, for 200 seeds in a row, each with a
tenth of what hypothesis generates otherwise. Where a peer that is not from PyPI is missing, `require` skips the test,
or fails it when CI is set. FABRIC_TLS_CONTEXT=NAME runs the TLS tests with each context changed
(`support.tls_changes`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import os
import random
import re
import signal
import socket
import stat
import time
import traceback
import warnings
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import hypothesis
import pytest
import uvloop

import fabric
from fabric_ext import connection
from support import over_sync

DEADLINE = 30.0
"""Seconds for one async test; the marker `deadline` changes it."""

GRACE = 1.0
"""Seconds in which what a test has closed must be gone."""

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.SelectorEventLoop,
}

SEED = int(os.environ.get("FABRIC_SEED") or random.SystemRandom().getrandbits(32))
SEEDS = range(SEED, SEED + int(os.environ.get("FABRIC_SEEDS") or 1))
SHARE = 10  # where there are many seeds, each generates so much less by hypothesis: 200 of them, twenty times as much
KEEPS_KEY_LOGS = os.environ.get("FABRIC_TLS_CONTEXT") == "keylog_filename"  # open while their contexts live
IN_CI = bool(os.environ.get("CI") or os.environ.get("FABRIC_CI"))

stack_key = pytest.StashKey[contextlib.AsyncExitStack]()
reports_key = pytest.StashKey[list[str]]()


# What tests ask for.


@pytest.fixture(params=list(LOOPS))
def loop_factory(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes a new loop of the kind under test; `parametrize(..., ["uvloop"], indirect=True)` picks one."""
    if request.param == over_sync.KIND:
        over_sync.replace_client(
            request.module, request.getfixturevalue("monkeypatch"), request.getfixturevalue("stack")
        )
        return LOOPS["asyncio"]
    return LOOPS[request.param]


@pytest.fixture
def stack(request: pytest.FixtureRequest) -> contextlib.AsyncExitStack:
    """Closes what an async test entered, on the test's own loop, before anything is checked for leaks."""
    return request.node.stash.setdefault(stack_key, contextlib.AsyncExitStack())


@pytest.fixture
def loop_reports(request: pytest.FixtureRequest) -> list[str]:
    """What reached the loop's exception handler; a test that expects a report asserts on it and clears it."""
    return request.node.stash.setdefault(reports_key, [])


@pytest.fixture
def broken_log(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """A log whose handler raises, as one does whose disk is full; the texts of what it was given.

    Its logger is "fabric", or the one that `parametrize("broken_log", ["another"], indirect=True)` names.
    """
    texts: list[str] = []

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())
            raise ValueError("the disk is full")

    logger, handler = logging.getLogger(getattr(request, "param", "fabric")), Broken()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield texts
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def no_look_ahead() -> Iterator[None]:
    """The socket is not read any more as soon as the receive queue is full."""
    before = connection.look_ahead(0)
    yield
    connection.look_ahead(before)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """This run's seed, printed so that a failing test shows it."""
    value: int = request.param
    print(f"FABRIC_SEED={value}")
    if hypothesis.is_hypothesis_test(request.function):
        hypothesis.seed(value)(request.function)
    return value


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """A generator of this test's own: the same for the same seed, whatever ran before."""
    test = re.sub(r"-?FABRIC_SEED=\d+", "", request.node.nodeid).removesuffix("[]")
    return random.Random(f"{seed} {test}")


@pytest.fixture(scope="session")
def require() -> Callable[[object, str], None]:
    """`require(found, reason)` skips the test when `found` is false; in CI nothing is silently missing."""

    def check(found: object, reason: str) -> None:
        if not found:
            (pytest.fail if IN_CI else pytest.skip)(reason)

    return check


# The machinery.


def pytest_configure(config: pytest.Config) -> None:
    # A shell has what it runs in the background ignore SIGINT: then Ctrl-C would be nothing, here and in children.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if change := os.environ.get("FABRIC_TLS_CONTEXT"):
        from support import tls_changes

        config.pluginmanager.register(tls_changes.each_context(change))
    # A shared machine stalls now and then; a test that hangs is caught by the deadline of the rig.
    hypothesis.settings.register_profile("fabric", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("fabric")


def pytest_report_header() -> str:
    return f"fabric: {fabric.VERSION} from {os.path.dirname(fabric.__file__)}\nFABRIC_SEED={SEED}"


def pytest_sessionstart() -> None:
    # libuv opens a pipe for signals with its first loop and keeps it for all later ones.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


def pytest_collection_finish() -> None:
    # With its first test hypothesis makes a generator of random numbers and looks for what refers to it. That is not
    # found where it is frozen.
    hypothesis.given(hypothesis.strategies.none())(lambda _: None)()
    # What exists by now, thousands of tests among it, stays: the collections around each async test leave it out.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    if collector.istestfunction(obj, name):
        if inspect.iscoroutinefunction(obj):
            pytest.mark.usefixtures("loop_factory")(obj)
            if over_sync.means_the_same(collector.path, name):
                pytest.mark.parametrize("loop_factory", [*LOOPS, over_sync.KIND], indirect=True)(obj)
        if hypothesis.is_hypothesis_test(obj):
            pytest.mark.usefixtures("seed")(obj)


@pytest.hookimpl(trylast=True)  # so that the seed ends the name of the test, where `rng` takes it away
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        names = [f"FABRIC_SEED={seed}" for seed in SEEDS] if len(SEEDS) > 1 else [pytest.HIDDEN_PARAM]
        runs = [pytest.param(seed, id=name, marks=pytest.mark.seeded) for seed, name in zip(SEEDS, names, strict=True)]
        metafunc.parametrize("seed", runs, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if len(SEEDS) > 1:
        for function in {item.function for item in items if hypothesis.is_hypothesis_test(getattr(item, "obj", None))}:
            own = function._hypothesis_internal_use_settings
            fewer = hypothesis.settings(own, max_examples=max(own.max_examples // SHARE, 5))
            function._hypothesis_internal_use_settings = fewer
    # One seed after the other, so that a run that is stopped has tried every test.
    items.sort(key=lambda item: item.callspec.params["seed"] if item.get_closest_marker("seeded") else SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    marker = pyfuncitem.get_closest_marker("deadline")
    run_guarded(
        functools.partial(pyfuncitem.obj, **arguments),
        pyfuncitem.funcargs["loop_factory"],
        deadline=marker.args[0] if marker else DEADLINE,
        stack=pyfuncitem.stash.get(stack_key, contextlib.AsyncExitStack()),
        reports=pyfuncitem.stash.setdefault(reports_key, []),
    )
    return True


def run_guarded(
    test: Callable[[], Coroutine[Any, Any, None]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    *,
    deadline: float,
    stack: contextlib.AsyncExitStack,
    reports: list[str],
) -> None:
    """Run `test` on a new loop within `deadline` seconds and fail it for what it leaves behind."""
    before = descriptors()
    with logged_errors(reports):
        runner = asyncio.Runner(loop_factory=loop_factory)
        try:
            runner.run(_bounded(test, deadline, stack, reports))
        finally:
            # Recorded, not raised: uvloop's close never returns when its warning of an open handle raises.
            with warnings.catch_warnings(record=True, action="always") as warned:
                runner.close()
        reports.extend(f"warned: {warning.message}" for warning in warned)
        gc.collect()
        gc.freeze()  # what is left now stays: the collections of the tests to come need not look at it
    leaked = sorted(set(descriptors().items()) - set(before.items()))
    problems = [*reports, *(f"descriptor {number} is still open: {kind}" for number, kind in leaked)]
    if problems:
        pytest.fail("the test left behind:\n" + "\n".join(problems), pytrace=False)


async def _bounded(
    test: Callable[[], Coroutine[Any, Any, None]],
    deadline: float,
    stack: contextlib.AsyncExitStack,
    reports: list[str],
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reports.append(describe(context)))
    before = descriptors()
    try:
        async with asyncio.timeout(deadline) as limit, stack:
            await test()
    except TimeoutError:
        if limit.expired():
            reports.append(f"the test did not end within {deadline:g} s")
            reports.extend(map(stand, other_tasks()))
            return
        raise
    gc.collect()
    if not await all_gone(before):
        reports.extend(f"a task is still running: {stand(task)}" for task in other_tasks())
        reports.extend(f"a socket is still open: {text}" for text in opened_sockets(before))
    # One turn more: a future that has just been collected reports its exception to the loop.
    gc.collect()
    await asyncio.sleep(0)


async def all_gone(before: dict[int, str]) -> bool:
    """Whether the test's tasks and sockets are gone within GRACE; looks ever less often, to wait cheaply."""
    end, pause = time.monotonic() + GRACE, 0.0
    while other_tasks() or opened_sockets(before):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(pause)
        pause = min(0.05, pause * 2 or 0.0005)
    return True


def other_tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


def stand(task: asyncio.Task[Any]) -> str:
    """A task's name and where it stands."""
    frames = [line for frame in task.get_stack() for line in traceback.format_stack(frame, limit=1)]
    return f"{task!r}\n{''.join(frames)}".rstrip()


def describe(context: dict[str, Any]) -> str:
    """The report that the loop's exception handler was given, with its traceback."""
    exception = context.get("exception")
    lines = traceback.format_exception(exception) if exception is not None else []
    return f"reported to the loop: {context.get('message')}\n{''.join(lines)}".rstrip()


def descriptors() -> dict[int, str]:
    """Every open descriptor of this process, with what tells it from a later one of the same number."""
    found = {}
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # the one that listed the folder is closed by now
            status = os.fstat(int(name))
            if KEEPS_KEY_LOGS and stat.S_ISREG(status.st_mode):
                continue
            kind = "socket" if stat.S_ISSOCK(status.st_mode) else f"mode {stat.S_IFMT(status.st_mode):o}"
            found[int(name)] = f"{kind} {status.st_dev}:{status.st_ino}"
    return found


def opened_sockets(before: dict[int, str]) -> list[str]:
    """The sockets that `before` does not know, each with its addresses."""
    found = []
    for number, kind in descriptors().items():
        if kind.startswith("socket") and before.get(number) != kind:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as copy:
                peer = "no peer"
                with contextlib.suppress(OSError):
                    peer = str(copy.getpeername())
                found.append(f"descriptor {number}, {copy.getsockname()} to {peer}")
    return found


@contextlib.contextmanager
def logged_errors(reports: list[str]) -> Iterator[None]:
    """Add to `reports` what asyncio and picows only log: the exceptions that nobody else sees."""

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reports.append(f"logged by {record.name}: {self.format(record)}")

    handler = Collect(logging.ERROR)
    loggers = [logging.getLogger(name) for name in ("asyncio", "picows", "aiofastnet")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
