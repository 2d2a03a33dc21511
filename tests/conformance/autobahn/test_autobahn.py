"""The Autobahn suite's verdict on our server and clients, case by case, against the committed one.

FABRIC_AUTOBAHN=quick, the default here and in CI, leaves out the performance cases 9.* and most of the compression
cases; `all`, what `make conformance` runs, takes some 12 minutes. `expected.json` lists the cases, and each verdict
that may be other than OK.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXPECTED = json.loads((HERE / "expected.json").read_text())

# One message size in eight of each compression setting, in both directions: less than a minute.
QUICK = ("[1-7].*", "10.*", "12.*.[1-7]", "12.*.11", "13.*.[1-7]", "13.*.11")

specification = importlib.util.spec_from_file_location("autobahn_suite", HERE / "suite.py")
assert specification is not None
assert specification.loader is not None
suite = importlib.util.module_from_spec(specification)
specification.loader.exec_module(suite)

CHOSEN = suite.select(
    {"quick": QUICK, "all": ("*",)}[os.environ.get("FABRIC_AUTOBAHN") or "quick"], known=EXPECTED["cases"]
)

pytestmark = pytest.mark.autobahn


@pytest.fixture(scope="session")
def verdicts(require: Callable[[object, str], None]) -> dict[str, dict[str, tuple[str, str]]]:
    """What the suite says of each side, each run once, at the same time."""
    try:
        suite.packages()
    except suite.Unavailable as reason:
        require(None, str(reason))
    with ThreadPoolExecutor() as pool:
        runs = {side: pool.submit(run, CHOSEN) for side, run in suite.RUN.items()}
        return {side: run.result() for side, run in runs.items()}


@pytest.mark.parametrize("case", CHOSEN)
@pytest.mark.parametrize("side", ["server", "client", "sync"])
def test_case(verdicts: dict[str, dict[str, tuple[str, str]]], side: str, case: str) -> None:
    behaviour, close = verdicts[side].get(case, ("DID NOT RUN", ""))
    expected = EXPECTED["other than OK"].get(case, ["OK", "OK"])
    assert behaviour in {"OK", expected[0]}
    assert close in {"OK", expected[1]}
