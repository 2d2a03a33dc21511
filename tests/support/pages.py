"""The documents as tests see them: their blocks, links and tables, and a stage on which snippets run.

How a snippet runs. It is the body of a coroutine, so it may `await`; `asyncio.run(x)` in it means `await x`,
and `fabric.run(WebSocketServer...)` serves; port 8080 is a free one of the test's own. Hidden comments in the page say
what is needed around it:

    <!-- before: CODE -->   runs first, in the snippet's namespace
    <!-- after: CODE -->    behind the snippet; runs after it, or beside it if the snippet serves for ever
    <!-- continues -->      the snippet goes on where the one before it on the page ended
    <!-- script -->         the snippet is a program in a process of its own, which gets SIGTERM after `after`

A block with `<!-- file: PATH -->` in front of it shows a file, which has tests of its own, and is not run.

CODE may span lines. It finds `await echo()`, which starts an echo server on port 8080; `await serve(handler,
**options)` for any other; `await connect(**options)`, a client that waits for the server; and `printed`, the
lines printed so far.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import re
import socket
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fabric
from fabric import ConnectedClient, ConnectionFailed, WebSocketClient, WebSocketServer

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "perf/README.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
]
PORT = "8080"

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w{}-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)```[ \t]*$", re.M | re.S)
_COMMENT = re.compile(r"<!--\s*(?P<kind>before|after|continues|script)\b:?(?P<code>.*?)-->", re.S)
_FILE = re.compile(r"<!--\s*file:\s*(?P<path>\S+)\s*-->\s*\Z")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")
_CODE = re.compile(r"^( *)```.*?^\1```|`[^`\n]*`", re.M | re.S)
_RUN = re.compile(r"\b(?:asyncio|uvloop)\.run\((.*)\)[ \t]*$", re.M)
_SERVE = re.compile(r"\bfabric\.run\((WebSocketServer.*)\)[ \t]*$", re.M)


def name(page: Path) -> str:
    """How a page is called in the names of tests."""
    return str(page.relative_to(ROOT))


@dataclass
class Block:
    """A fenced block: its language and body, the line it begins in, and the text up to the next blocks."""

    page: Path
    line: int
    language: str
    body: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"

    @property
    def file(self) -> Path | None:
        """The file that it shows, if it shows one."""
        match = _FILE.search(self.before)
        return None if match is None else ROOT / match["path"]


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    text = page.read_text()
    found = list(_FENCE.finditer(text))
    for index, match in enumerate(found):
        start = found[index - 1].end() if index else 0
        end = found[index + 1].start() if index + 1 < len(found) else len(text)
        yield Block(
            page,
            text.count("\n", 0, match.start("body")) + 1,
            match["language"],
            textwrap.dedent(match["body"]),
            text[start : match.start()],
            text[match.end() : end],
        )


def links(page: Path) -> list[str]:
    """Where a page's links and pictures point to."""
    return [match[1] or match[2] for match in _LINK.finditer(_CODE.sub("", page.read_text()))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.M | re.S)
    headings = (heading.replace("`", "").lower() for heading in re.findall(r"^#+ +(.*?) *$", text, re.M))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


# Snippets.


@dataclass
class Snippet:
    """Python of a page with what its comments ask for."""

    block: Block
    before: str = ""
    after: str = ""
    kind: str = ""
    following: list[Snippet] = field(default_factory=list)

    @classmethod
    def of(cls, block: Block) -> Snippet:
        snippet = cls(block)
        for match in _COMMENT.finditer(block.before):
            if match["kind"] == "before":
                snippet.before += textwrap.dedent(match["code"]) + "\n"
            elif match["kind"] != "after":
                snippet.kind = match["kind"]
        for match in _COMMENT.finditer(block.after):
            if match["kind"] == "after":
                snippet.after += textwrap.dedent(match["code"]) + "\n"
        return snippet

    def __str__(self) -> str:
        return str(self.block)

    @property
    def serves(self) -> bool:
        return "serve_forever()" in self.block.body or "fabric.run(WebSocketServer" in self.block.body


def snippets() -> list[Snippet]:
    """All Python of all pages; what continues a snippet hangs on it."""
    found: list[Snippet] = []
    for page in PAGES:
        first: Snippet | None = None
        for block in blocks(page):
            if block.language != "python" or block.file is not None:
                continue
            snippet = Snippet.of(block)
            if snippet.kind == "continues":
                assert first is not None, f"{snippet} continues nothing"
                first.following.append(snippet)
            else:
                first = snippet
                found.append(snippet)
    return found


class Stage:
    """What snippets find around them: their names, and servers and clients that `stack` closes after them."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        self._stack = stack
        self._printed: list[str] = []
        self._names: dict[str, Any] = {
            "__name__": "__main__",
            "asyncio": asyncio,
            "connect": self.connect,
            "echo": self.echo,
            "fabric": fabric,
            "print": self.print,
            "printed": self._printed,
            "serve": self.serve,
        }

    def print(self, *values: object, sep: str = " ", **_: object) -> None:
        self._printed.append(sep.join(map(str, values)))

    async def serve(self, handler: Any = None, **options: Any) -> WebSocketServer:
        server = WebSocketServer.bind(f"127.0.0.1:{self.port}", handler, **options)
        return await self._stack.enter_async_context(server)

    async def echo(self) -> WebSocketServer:
        async def handler(client: ConnectedClient) -> None:
            async for message in client:
                await client.send(message)

        return await self.serve(handler)

    async def connect(self, **options: Any) -> WebSocketClient:
        while True:
            try:
                client = await WebSocketClient.connect(f"ws://127.0.0.1:{self.port}", **options)
            except ConnectionFailed:  # nobody listens yet
                await asyncio.sleep(0.005)
            else:
                return await self._stack.enter_async_context(client)

    async def run(self, code: str, file: str, line: int = 1) -> None:
        """Run `code`, which stands in `line` of `file`."""
        code = _RUN.sub(r"await \1", code.replace(PORT, self.port))
        code = _SERVE.sub(r"await \1.serve_forever()", code)
        tree = ast.increment_lineno(ast.parse(code, file), line - 1)
        compiled = compile(tree, file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(compiled, self._names)
        if inspect.isawaitable(result):
            await result

    async def play(self, snippet: Snippet) -> None:
        """Run a snippet, what belongs around it, and what continues it."""
        file, line = str(snippet.block.page), snippet.block.line
        await self.run(snippet.before, f"<before {snippet}>")
        if snippet.serves:
            await self._serve(snippet, file, line)
        else:
            await self.run(snippet.block.body, file, line)
            await self.run(snippet.after, f"<after {snippet}>")
        for following in snippet.following:
            await self.play(following)

    async def _serve(self, snippet: Snippet, file: str, line: int) -> None:
        serving = asyncio.create_task(self.run(snippet.block.body, file, line))
        checking = asyncio.create_task(self.run(snippet.after, f"<after {snippet}>"))
        try:
            await asyncio.wait([serving, checking], return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            await checking
        finally:
            await self._stack.aclose()
            checking.cancel()
            serving.cancel()
            await asyncio.wait([serving, checking])
