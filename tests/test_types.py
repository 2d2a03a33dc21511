"""What users copy is typed: the examples and the snippets of the pages satisfy mypy in strict mode and pyright."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from support import type_checkers
from support.pages import ROOT, Snippet, snippets
from support.type_checkers import Objection

EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
BESIDE = [ROOT / "tests", ROOT / "examples/tutorial"]

# What `before` may call: see `support.pages.Stage`.
STAGE = {
    "connect": "async def connect(**options: Any) -> fabric.WebSocketClient: raise NotImplementedError",
    "echo": "async def echo() -> fabric.WebSocketServer: raise NotImplementedError",
    "serve": "async def serve(handler: Any, **options: Any) -> fabric.WebSocketServer: raise NotImplementedError",
}


class Program:
    """A snippet, and what continues it, as a module; and where each of its lines stands in the page.

    Its statements are the body of a coroutine, where they may await; its imports stand above that.
    """

    def __init__(self, snippet: Snippet) -> None:
        self._page = snippet.block.page
        self._top: list[tuple[str, int]] = [("import asyncio", 0), ("from typing import Any", 0), ("import fabric", 0)]
        self._body: list[tuple[str, int]] = [("async def snippet() -> None:", 0), ("    pass", 0)]
        self._add(snippet)
        self._lines = self._top + self._body

    def _add(self, snippet: Snippet) -> None:
        self._top += [(STAGE[name], 0) for name in STAGE if re.search(rf"\bawait {name}\(", snippet.before)]
        self._add_code(snippet.before, None)
        self._add_code(snippet.block.body, snippet.block.line)
        for following in snippet.following:
            self._add(following)

    def _add_code(self, code: str, first: int | None) -> None:
        lines = code.splitlines()
        imports: set[int] = set()
        for node in ast.parse(code).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                imports.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        for number, line in enumerate(lines, 1):
            place = 0 if first is None else first + number - 1
            if number in imports:
                self._top.append((line, place))
            else:
                self._body.append((f"    {line}" if line else "", place))

    def write(self, path: Path) -> Path:
        path.write_text("".join(f"{line}\n" for line, _ in self._lines))
        return path

    def place(self, line: int) -> str | None:
        """Where a line of the module stands in the page; None for what a reader does not see."""
        place = self._lines[line - 1][1]
        return f"{self._page.relative_to(ROOT)}:{place}" if place else None


def objections(folder: Path, check: Callable[[Path, Iterable[Path], Iterable[Path]], list[Objection]]) -> list[str]:
    """What a checker finds, with its places."""
    programs = {folder / f"snippet_{number}.py": Program(snippet) for number, snippet in enumerate(snippets())}
    written = [program.write(path) for path, program in programs.items()]
    found = (
        (programs[file].place(line) if file in programs else f"{file.relative_to(ROOT)}:{line}", text)
        for file, line, text in check(folder, [*EXAMPLES, *written], BESIDE)
    )
    return [f"{place}: {text}" for place, text in found if place]


def test_mypy_has_no_objection(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    assert objections(tmp_path.resolve(), type_checkers.mypy) == []


def test_pyright_has_no_objection(tmp_path: Path, require: Callable[[object, str], None]) -> None:
    type_checkers.require_pyright(require)
    assert objections(tmp_path.resolve(), type_checkers.pyright) == []
