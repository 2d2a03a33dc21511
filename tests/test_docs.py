"""README and docs: snippets run, commands are accepted, links lead somewhere, defaults are as stated."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fabric
from fabric.cli.main import build_parser
from support.pages import PAGES, PORT, ROOT, Block, Snippet, Stage, anchors, blocks, links, name, snippets
from test_docstrings import members
from test_layers import LAYERS

SNIPPETS = snippets()
NAMES = ROOT / "docs/names.md"


@pytest.mark.parametrize("snippet", [snippet for snippet in SNIPPETS if snippet.kind != "script"], ids=str)
async def test_snippet_runs(snippet: Snippet, stack: contextlib.AsyncExitStack) -> None:
    await Stage(stack).play(snippet)


@pytest.mark.parametrize("snippet", [snippet for snippet in SNIPPETS if snippet.kind == "script"], ids=str)
async def test_script_runs(snippet: Snippet, stack: contextlib.AsyncExitStack, tmp_path: Path) -> None:
    stage = Stage(stack)
    program = tmp_path / "snippet.py"
    program.write_text(snippet.block.body.replace(PORT, stage.port))
    process = await asyncio.create_subprocess_exec(sys.executable, program, env={"PYTHONPATH": str(ROOT)} | os.environ)
    try:
        await stage.run(snippet.after, f"<after {snippet}>")
        process.send_signal(signal.SIGTERM)
        # uvicorn, when it has shut down, ends by the signal that told it to.
        assert await process.wait() in (0, -signal.SIGTERM)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


FILES = [block for page in PAGES for block in blocks(page) if block.file is not None]


@pytest.mark.parametrize("block", FILES, ids=str)
def test_a_file_is_shown_as_it_is(block: Block) -> None:
    assert block.file is not None
    assert block.body == block.file.read_text()


# Commands.

SHELL = [block for page in PAGES for block in blocks(page) if block.language in {"sh", "bash", "console"}]
MAKE_TARGETS = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M))


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a line, without environment variables and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for word in [*lexer, ";"]:
        if set(word) <= set("();|&"):
            if words:
                yield words
            words, redirected = [], False
        elif set(word) <= set("<>"):
            redirected = True
        elif not redirected and (words or not re.match(r"\w+=", word)):
            words.append(word)


def objection(command: list[str]) -> str:
    """What is wrong with a command, or nothing."""
    if command[:3] == ["python", "-m", "fabric"]:
        command = command[2:]
    match command:
        case ["make", *words]:
            unknown = {word for word in words if "=" not in word} - MAKE_TARGETS
            return f"make has no target {unknown}" if unknown else ""
        case ["fabric", *words]:
            try:
                build_parser().parse_args(words)
            except SystemExit as leaving:
                return "not accepted" if leaving.code else ""
        case ["python", script, *_] if script.endswith(".py"):
            found = (ROOT / script).exists() or any((ROOT / "examples").rglob(script))
            return "" if found else f"there is no {script}"
    return ""


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_accepted(block: object) -> None:
    text = str(block.body).replace("\\\n", " ")  # type: ignore[attr-defined]
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=10)
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines()]
    found = {shlex.join(command): objection(command) for line in lines for command in commands(line)}
    assert {command: why for command, why in found.items() if why} == {}


# Links.


def trouble(page: Path, link: str) -> str:
    """Why a link leads nowhere, or nothing."""
    if link.startswith(("http://", "https://")):
        return "" if re.fullmatch(r"https://[\w.-]+(/[^\s]*)?", link) else "write links with https"
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return "leads nowhere"
    if not target.is_relative_to(ROOT):
        return "leads out of the project"
    return "" if not anchor or anchor in anchors(target) else f"{target.name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert {link: why for link in links(page) if (why := trouble(page, link))} == {}


# What the pages claim.

DEFAULT = re.compile(r"^\| `(?P<owner>\w+Config)\.(?P<name>\w+)` \| (?P<value>[^|]+?) \|", re.M)
UNITS = {"KiB": 1024, "MiB": 1024 * 1024, "s": 1, "bytes": 1, "messages": 1}


def claimed(text: str) -> object:
    """The value that a cell of a table states: `10 MiB`, `5 s`, `1,000`, `none`, `yes`, `"slow"`."""
    text = text.strip("`")
    if text in {"none", "yes", "no"}:
        return {"none": None, "yes": True, "no": False}[text]
    number = re.fullmatch(r"([\d,.]+)(?: (\w+))?", text)
    if number is None:
        return text.strip('"')
    return float(number[1].replace(",", "")) * UNITS[number[2] or "s"]


@pytest.mark.parametrize("page", [page for page in PAGES if page != NAMES], ids=name)
def test_defaults_are_as_stated(page: Path) -> None:
    wrong = {}
    for owner, field, value in DEFAULT.findall(page.read_text()):
        config = getattr(fabric, owner)
        actual = getattr(config("ws://localhost") if owner == "ClientConfig" else config(), field)
        off = not getattr(actual, "is_limited", actual)
        if not (off if value == "off" else actual == claimed(value)):
            wrong[f"{owner}.{field}"] = actual
    assert wrong == {}


def homes(dotted: str) -> set[str]:
    """The modules where a public name can be found; of a member, the one module that defines it."""
    owner, _, member = dotted.partition(".")
    found = getattr(fabric, owner)
    if member in getattr(found, "__dataclass_fields__", {}):
        return homes(owner)
    if member:
        defining = [cls.__module__ for cls in found.__mro__ if member in vars(cls) and not is_copied(cls, member)]
        return set(defining[:1])
    places = [module for module in sys.modules if module.startswith(("fabric.", "fabric_ext."))]
    return {module for module in places if vars(sys.modules[module]).get(owner) is found}


def is_copied(cls: type, member: str) -> bool:
    """Is it a compiled method that `inherits_in_c` has put into a Python class, to be found sooner?"""
    return isinstance(vars(cls)[member], types.MethodDescriptorType) and cls.__module__.startswith("fabric.")


def listed_members(name: str) -> Iterator[str]:
    """The calls, properties and fields of a public class that the page of names is to have."""
    cls = getattr(fabric, name)
    if not inspect.isclass(cls) or issubclass(cls, BaseException):
        return
    if any(base.__name__ in fabric.__all__ for base in cls.__mro__[1:]):
        return  # it has those of its base
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    for member in fields | {member for _, member, _ in members(cls)}:
        if not member.startswith(("_", "with_")):
            yield f"{name}.{member}"


def test_the_table_of_names_is_complete_and_true() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|", NAMES.read_text(), re.M)
    names = {dotted for dotted, _ in rows}
    assert set(fabric.__all__) - {"__version__"} <= names
    assert {member for name in fabric.__all__ for member in listed_members(name)} - names == set()
    assert {dotted: homes(dotted) for dotted, module in rows if module not in homes(dotted)} == {}


def test_the_table_of_modules_has_each_and_is_true() -> None:
    rows = re.findall(r"^\| \[\w+\]\(api/(\w+)\.md\) \| `fabric\.(\w+)` \| (.*) \|$", NAMES.read_text(), re.M)
    assert all(page == module for page, module, _ in rows)
    extras = {"asgi": "uvicorn", "otel": "opentelemetry", "prometheus": "prometheus_client"}
    for _, module, names in rows:
        if module not in extras or importlib.util.find_spec(extras[module]):
            exported = set(importlib.import_module(f"fabric.{module}").__all__)
            assert set(names.replace("`", "").split()) <= exported, module
    homes = {module for module in fabric._HOMES.values() if module.startswith("fabric.")}
    public = {module.name for module in pkgutil.iter_modules(fabric.__path__) if not module.name.startswith("_")}
    apart = {"cli", "websockets"}  # what these hold is not one list of names
    assert public - {home.removeprefix("fabric.") for home in homes} - apart == {module for _, module, _ in rows}


def test_the_architecture_has_the_layers() -> None:
    """Each module in the row of its layer; folders, which hold no code of their own, may be left out."""
    rows = re.findall(r"^\| (\w+) \| (`fabric[^|]*) \|", (ROOT / "docs/architecture.md").read_text(), re.M)
    listed = {layer: re.findall(r"`(fabric[\w.]+)`", modules) for layer, modules in rows}
    expected = {layer: modules.split() for layer, modules in LAYERS.items()}
    for row in (*listed.values(), *expected.values()):
        row[:] = sorted(module for module in row if not (ROOT / module.replace(".", "/")).is_dir())
    assert listed == expected


def test_figures_come_from_the_newest_full_result() -> None:
    command = [sys.executable, ROOT / "perf/readme.py", "--check"]
    # It imports what lies beside it, which `make debug` forbids.
    beside = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=beside)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_pages_build_without_warnings(require: Callable[[object, str], None], tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        require(importlib.util.find_spec(package), f"{package} is not installed")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "dummy",
        ROOT / "docs",
        tmp_path,
    ]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=150)
    assert run.returncode == 0, run.stdout + run.stderr
