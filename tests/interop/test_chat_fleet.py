"""The chat on several processes, `examples/chat_fleet`, in two browsers: its page, and a process that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.test_chat_fleet import processes, redis, started
from integration.test_workers import Program
from support.chromium import Page, find_chromium

__all__ = ["redis"]  # a fixture

Stack = contextlib.AsyncExitStack

LINES = (
    "[...document.querySelectorAll('#log .line, #log .whisper')].map((line) => line.querySelector('.text').textContent)"
)
PEOPLE = "[...document.querySelectorAll('#people li')].map((person) => person.textContent).join(', ')"

pytestmark = [
    pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True),  # the browser is what is tested
    pytest.mark.deadline(180),  # two browsers and two processes, on a machine that may stall
]


@pytest.fixture
def browser(require: Callable[[object, str], None]) -> str:
    found = find_chromium()
    require(found, "Chromium is not installed")
    return str(found)


async def join(page: Any, program: Program, name: str) -> int:
    """Come in under a name; the worker that serves it."""
    await page.goto(f"http://127.0.0.1:{program.port}/")
    await page.evaluate(
        f"document.getElementById('name').value = '{name}'; document.querySelector('#join button').click()"
    )
    return await worker(page)


async def worker(page: Any) -> int:
    """Which one serves it, once it is there."""
    await until(page, f"document.body.dataset.state === 'open' && ({PEOPLE}).length > 0")
    return int(await page.evaluate("document.body.dataset.worker"))


async def say(page: Any, text: str, to: str = "") -> None:
    """Write a line, as somebody with a keyboard would."""
    await page.evaluate(f"document.getElementById('to').value = '{to}'")
    await page.evaluate("document.getElementById('to').dispatchEvent(new Event('change'))")
    await page.evaluate("document.getElementById('text').focus()")
    await page.call("Input.insertText", text=text)
    for kind in ("keyDown", "keyUp"):
        await page.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )


async def until(page: Any, condition: str) -> None:
    await page.until(condition, timeout=60)


async def until_lines(page: Any, *lines: str) -> None:
    """Wait until it shows exactly these."""
    await until(page, f"JSON.stringify({LINES}) === JSON.stringify({list(lines)!r})")


async def test_two_pages_on_two_processes(redis: None, browser: str, stack: Stack, tmp_path: Path) -> None:
    program, ada, grace = await asyncio.gather(
        started(stack, tmp_path),
        stack.enter_async_context(Page.open(browser, tmp_path / "ada")),
        stack.enter_async_context(Page.open(browser, tmp_path / "grace")),
    )
    home = await join(ada, program, "Ada")
    far = await join(grace, program, "Grace")
    while far == home:  # it comes to the one with the fewest connections, those that load the page among them
        await grace.goto(f"http://127.0.0.1:{program.port}/")
        far = await worker(grace)
    for page in (ada, grace):
        await until(page, f"{PEOPLE} === 'Ada, Grace'")

    # They speak.
    nasty = "<img src=x onerror=alert(1)>"
    await say(ada, nasty)
    await until_lines(ada, nasty)
    await until_lines(grace, nasty)
    await say(grace, "only for you", to="Ada")
    await until_lines(ada, nasty, "only for you")
    await until_lines(grace, nasty, "only for you")
    assert await ada.evaluate("document.querySelector('#log .whisper').innerText.startsWith('Grace to Ada alone')")

    # There is room for all of it on a telephone.
    await grace.resize(390, 844)
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight].join()"
    await until(grace, f"{size} === '390,844'")

    # They go, and come.
    await grace.evaluate("location.hash = '#kitchen'")
    await until(ada, f"{PEOPLE} === 'Ada'")
    await until(grace, f"{PEOPLE} === 'Grace'")
    await until_lines(grace, "only for you")  # what is private stays in the page
    await grace.evaluate("location.hash = '#lobby'")
    await until(ada, f"{PEOPLE} === 'Ada, Grace'")
    await until_lines(grace, "only for you", nasty)  # and the room has its history
    assert await ada.evaluate("[...document.querySelectorAll('#log .notice')].map((each) => each.textContent)") == [
        "Grace has come",
        "Grace has left",
        "Grace has come",
    ]

    # A process is killed, and what is said meanwhile is not lost.
    ada.freeze()
    os.kill(processes(program)[home], signal.SIGKILL)
    await say(grace, "while you were away")
    await until_lines(grace, "only for you", nasty, "while you were away")
    ada.thaw()
    await until_lines(ada, nasty, "only for you", "while you were away")
    await worker(ada)
    await say(ada, "here again")
    await until_lines(grace, "only for you", nasty, "while you were away", "here again")
    await until_lines(ada, nasty, "only for you", "while you were away", "here again")
    for page in (ada, grace):
        await until(page, f"{PEOPLE} === 'Ada, Grace'")

    # They leave, and come back by the button of the browser.
    await grace.goto("about:blank")
    await until(ada, f"{PEOPLE} === 'Ada'")
    await grace.evaluate("void setTimeout(() => history.back())")  # it answers before it goes
    await until(ada, f"{PEOPLE} === 'Ada, Grace'")
    for page in (ada, grace):
        assert [problem for problem in page.problems if "WebSocket" not in problem] == []
    await ada.goto("about:blank")
    await program.end()
