"""The workflows of GitHub Actions: they run `make` targets that are there, on the Pythons that are promised."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_there_are_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "nightly", "test", "wheels"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_its_steps_are_make_targets(workflow: Path) -> None:
    commands = re.findall(r"^ +(?:- )?run: (.*)$", workflow.read_text(), re.M)
    assert commands
    for command in commands:
        words = command.removeprefix("sudo ").split()
        if words[0] == "make":
            assert words[1] in TARGETS or words[1] == "${{", command
        else:
            assert (ROOT / words[0]).exists(), command


def test_the_nightly_targets_are_there() -> None:
    listed = re.search(r"target:\n((?: +- .*\n)+)", (ROOT / ".github/workflows/nightly.yml").read_text())
    assert listed is not None
    assert {line.split()[1] for line in listed[1].splitlines()} <= TARGETS


def test_all_supported_versions_are_tested() -> None:
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    text = (ROOT / ".github/workflows/test.yml").read_text()
    assert re.findall(r'"(3\.\d+)"', re.findall(r"python: \[(.*)\]", text)[0]) == promised


def test_permissions_are_named_and_small() -> None:
    for workflow in WORKFLOWS:
        assert "permissions:\n  contents: read\n" in workflow.read_text()


def test_actionlint_accepts_them() -> None:
    found = shutil.which("actionlint") or shutil.which("actionlint", path=os.path.dirname(sys.executable))
    if found is None:
        pytest.skip("actionlint is not installed")
    done = subprocess.run([found, *WORKFLOWS], check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stdout
