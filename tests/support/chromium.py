"""Headless Chromium, driven over the DevTools protocol by fabric's own client."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any, Self

import msgspec

from fabric.client import WebSocketClient

STARTUP = 60.0  # seconds
ANSWER = 60.0  # seconds

FLAGS = """
--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-port=0
""".split()


def find_chromium() -> str | None:
    """Where it is, under one of its names."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Page:
    """One page: `async with Page.open(executable, folder) as page`, with a browser of its own.

    `problems` holds every exception and error message of the page so far.
    """

    def __init__(self, process: asyncio.subprocess.Process, devtools: WebSocketClient) -> None:
        self._process = process
        self._devtools = devtools
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self._reader: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[None] | None = None
        self.problems: list[str] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, executable: str, folder: Path, width: int = 1280, height: int = 900) -> Any:
        """Start a browser that keeps its profile in `folder`, and open an empty page."""
        process = await asyncio.create_subprocess_exec(
            executable,
            *FLAGS,
            f"--user-data-dir={folder}",
            f"--window-size={width},{height}",
            "about:blank",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(STARTUP):
                url = await _devtools_url(process)
            drained = asyncio.create_task(_drain(process))
            async with WebSocketClient.connect(
                url, auto_reconnect=False, max_message_size=64 << 20, compression=None
            ) as devtools:
                page = await cls(process, devtools)._attach(width, height)
                try:
                    yield page
                finally:
                    page._stop()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the whole session of processes that it started
            await process.wait()
            with contextlib.suppress(NameError):
                await drained

    async def _attach(self, width: int, height: int) -> Self:
        self._reader = asyncio.create_task(self._read())
        targets = await self.call("Target.getTargets")
        target = next(each["targetId"] for each in targets["targetInfos"] if each["type"] == "page")
        attached = await self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.resize(width, height)
        return self

    def _stop(self) -> None:
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        async for message in self._devtools:
            data = message.parse_json()
            if "id" in data:
                answer = self._answers.pop(data["id"], None)
                if answer is not None and not answer.done():
                    answer.set_result(data)
            elif data["method"] == "Page.loadEventFired":
                if self._loaded is not None and not self._loaded.done():
                    self._loaded.set_result(None)
            elif data["method"] == "Runtime.exceptionThrown":
                self.problems.append(str(data["params"]["exceptionDetails"]))
            elif data["method"] == "Log.entryAdded" and data["params"]["entry"]["level"] == "error":
                self.problems.append(data["params"]["entry"]["text"])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._devtools.send_text(msgspec.json.encode(command).decode())
        async with asyncio.timeout(ANSWER):
            data = await answer
        if "error" in data:
            raise RuntimeError(f"{method}: {data['error']}")
        return data["result"]

    async def goto(self, url: str) -> None:
        """Load `url`; return when the page and its script are there."""
        loaded = self._loaded = asyncio.get_running_loop().create_future()
        result = await self.call("Page.navigate", url=url)
        assert "errorText" not in result, result
        async with asyncio.timeout(ANSWER):
            await loaded

    async def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression; promises are awaited."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    async def until(self, condition: str, timeout: float = 20.0) -> None:
        """Wait until a JavaScript condition holds; the page itself looks, at every change of its document."""
        program = (
            "new Promise((resolve) => {"
            f"  const check = () => {{ if ({condition}) {{ clearInterval(timer); resolve(true); }} }};"
            "  const timer = setInterval(check, 20); check(); })"
        )
        try:
            async with asyncio.timeout(timeout):
                await self.evaluate(program)
        except TimeoutError:
            state = await self.evaluate("JSON.stringify(document.body.dataset)")
            raise AssertionError(
                f"not within {timeout:g} s: {condition}; the page says {state}, {self.problems}"
            ) from None

    def freeze(self) -> None:
        """Stop the browser, which hears and does nothing until `thaw`."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.killpg(self._process.pid, signal.SIGCONT)

    async def resize(self, width: int, height: int) -> None:
        """Give the page another size, in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def prefer(self, scheme: str) -> None:
        """Emulate a user who prefers a "light" or "dark" colour scheme."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def screenshot(self) -> bytes:
        """The visible page as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


async def _devtools_url(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    said = b""
    while line := await process.stderr.readline():
        said += line
        if found := re.search(rb"DevTools listening on (ws://\S+)", line):
            return found[1].decode()
    raise RuntimeError(f"the browser ended: {said[-2000:].decode(errors='replace')}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    while await process.stderr.read(65536):
        pass
