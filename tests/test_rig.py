"""The rig itself: each kind of leak fails the test that leaked, on both loops, and nothing else does."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import fabric
from support.over_sync import LEFT_OUT

pytest_plugins = ["pytester"]

# The body of a test that leaks, and what the report must say.
LEAKS = {
    "task": (
        "KEPT.append(asyncio.create_task(asyncio.Event().wait(), name='stray'))",
        "a task is still running: *stray*",
    ),
    "transport": (
        "KEPT.append(await asyncio.get_running_loop().create_server(asyncio.Protocol, '127.0.0.1', 0))",
        "a socket is still open: descriptor *127.0.0.1*",
    ),
    "open_socket": ("KEPT.append(socket.socket())", "a socket is still open: descriptor *"),
    "dropped_socket": ("socket.socket()", "*unclosed <socket.socket*"),
    "descriptor": ("KEPT.append(os.pipe())", "descriptor * is still open: mode *"),
    "never_retrieved": (
        "asyncio.get_running_loop().create_future().set_exception(OSError('lost'))",
        "reported to the loop: *exception was never retrieved*",
    ),
    "callback": (
        "asyncio.get_running_loop().call_soon(lambda: 1 / 0); await asyncio.sleep(0)",
        "reported to the loop: *",
    ),
    "never_awaited": ("asyncio.sleep(1)", "*coroutine 'sleep' was never awaited*"),
    "unraisable": ("Unraisable()", "*ValueError: from __del__*"),
    "too_slow": ("await asyncio.Event().wait()", "the test did not end within 0.2 s"),
}

HEAD = """
import asyncio, os, socket
import pytest

KEPT = []

class Unraisable:
    def __del__(self):
        raise ValueError("from __del__")
"""

TEST = """
@pytest.mark.deadline(0.2)
async def test_{kind}():
    {body}
"""

CLEAN = """
import asyncio

async def test_echo(stack, rng):
    async def serve(reader, writer):
        writer.write(await reader.read(100))
        writer.close()

    server = await stack.enter_async_context(await asyncio.start_server(serve, "127.0.0.1", 0))
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    stack.push_async_callback(writer.wait_closed)
    stack.callback(writer.close)
    data = rng.randbytes(10)
    writer.write(data)
    assert await reader.read(100) == data

async def test_reports_can_be_claimed(loop_reports):
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
    assert "ZeroDivisionError" in loop_reports.pop()

def test_plain(loop_factory):
    loop_factory().close()
"""


@pytest.fixture
def rig(pytester: pytest.Pytester, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project of its own under this very conftest, less patient, and this configuration."""
    folders = [os.path.dirname(os.path.dirname(fabric.__file__)), os.path.dirname(__file__)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))
    conftest = Path(__file__).with_name("conftest.py").read_text()
    assert "\nGRACE = 1.0\n" in conftest
    quick = conftest.replace("\nGRACE = 1.0\n", "\nGRACE = 0.1\n")
    pytester.mkdir("tests").joinpath("conftest.py").write_text(quick)
    pytester.makefile(".toml", pyproject=request.config.rootpath.joinpath("pyproject.toml").read_text())
    return pytester


def run(rig: pytest.Pytester, tests: str, *arguments: str) -> pytest.RunResult:
    rig.path.joinpath("tests/test_it.py").write_text(tests)
    return rig.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=60)


def test_each_leak_fails_its_own_test(rig: pytest.Pytester) -> None:
    tests = [TEST.format(kind=kind, body=body) for kind, (body, _) in LEAKS.items()]
    result = run(rig, HEAD + "".join(tests))
    result.assert_outcomes(failed=2 * len(LEAKS))
    # Failures stand in the order of the tests, so each report is looked for behind its own headline.
    for kind, (_, report) in LEAKS.items():
        for loop in ("uvloop", "asyncio"):
            result.stdout.fnmatch_lines([f"*_ test_{kind}?{loop}? _*", f"*{report}"])


def test_clean_tests_pass_on_both_loops(rig: pytest.Pytester) -> None:
    result = run(rig, CLEAN, "-v")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["*test_echo?uvloop? PASSED*", "*test_echo?asyncio? PASSED*"])


DRAW = """
import pytest
from hypothesis import given
from hypothesis import strategies as st

def test_rng(rng):
    print("drawn", rng.random())

@pytest.mark.parametrize("x", "ab")
async def test_rng_more(rng, x):
    print("drawn", rng.random())

@given(st.integers())
def test_generate(n):
    print("drawn", n)

@pytest.mark.parametrize("x", "ab")
@given(n=st.integers())
def test_generate_more(x, n):
    print("drawn", n)

@pytest.mark.soak
def test_slow(rng):
    print("drawn", rng.random())

def test_of_no_chance():
    print("drawn nothing")
"""


def drawn(
    rig: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, seed: int, seeds: str, *arguments: str
) -> dict[str, str]:
    """What the tests of DRAW drew, by their names."""
    monkeypatch.setenv("FABRIC_SEED", str(seed))
    monkeypatch.setenv("FABRIC_SEEDS", seeds)
    found: dict[str, str] = {}
    for line in run(rig, DRAW, "-rA", *arguments).outlines:
        if headline := re.fullmatch(r"_+ (\S+) _+", line):
            name = headline[1]
        elif line.startswith("drawn"):
            found[name] = found.get(name, "") + line
    return found


def test_a_seed_repeats_a_run(rig: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = drawn(rig, monkeypatch, 43, "")
    assert alone.pop("test_of_no_chance") == "drawn nothing"
    assert len({draws for name, draws in alone.items() if "rng" in name}) == 1 + 4
    both = drawn(rig, monkeypatch, 42, "2", "-m", "seeded and not soak")
    assert len(both) == 2 * len(alone) == 2 * (1 + 4 + 1 + 2)
    for name, draws in alone.items():
        begin = f"{name.removesuffix(']')}-" if "[" in name else f"{name}["
        # One of many generates less by hypothesis: what it does is the beginning of what it does alone.
        assert draws.startswith(both[f"{begin}FABRIC_SEED=43]"])
        assert not draws.startswith(both[f"{begin}FABRIC_SEED=42]"])


def test_the_seed_of_a_failure_is_printed(rig: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_SEED", "42")
    monkeypatch.setenv("FABRIC_SEEDS", "3")
    result = run(rig, "def test_draw(seed):\n    assert seed != 43")
    result.assert_outcomes(passed=2, failed=1)
    shown = ["FABRIC_SEED=42", "*- Captured stdout setup -*", "FABRIC_SEED=43", "FAILED *::test_draw?FABRIC_SEED=43? *"]
    result.stdout.fnmatch_lines(shown)


@pytest.mark.parametrize(("ci", "outcome"), [("", "skipped"), ("1", "failed")])
def test_a_missing_peer_is_never_silent_in_ci(
    rig: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: str
) -> None:
    monkeypatch.delenv("FABRIC_CI", raising=False)
    monkeypatch.setenv("CI", ci)
    result = run(rig, "def test_peer(require):\n    require(None, 'no such browser')")
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines(["*no such browser*"])


USES_TLS = """
import ssl
import pytest
from support.tls import client_context, server_context

CHANGED = ssl.TLSVersion.TLSv1_2

def make(*, secure=False):
    return server_context() if secure else None

@pytest.fixture
def context():
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

def test_of_a_fixture(context):
    assert context.maximum_version is CHANGED

@pytest.mark.parametrize("secure", [True, False])
async def test_both(secure):
    assert make(secure=secure).maximum_version is CHANGED

@pytest.mark.parametrize("make", [client_context, server_context], ids=["client", "server"])
def test_helpers(make):
    assert make().maximum_version is CHANGED

def test_plain():
    assert make() is None
"""


def test_tls_tests_run_with_each_context_changed(rig: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_TLS_CONTEXT", "maximum_version")
    run(rig, USES_TLS).assert_outcomes(passed=1 + 2 + 2, deselected=2 + 1)
    monkeypatch.setenv("FABRIC_TLS_CONTEXT", "sni_calback")
    result = run(rig, USES_TLS)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*FABRIC_TLS_CONTEXT=sni_calback: there are *, keylog_filename, *"])


@pytest.mark.parametrize("module", LEFT_OUT)
def test_what_does_not_run_over_sync_exists(module: str) -> None:
    source = (Path(__file__).parent / f"{module}.py").read_text()
    assert [name for name in LEFT_OUT[module] if f"def {name}(" not in source] == []
