"""The pages of the examples in a real browser: those of the tutorial, and that of the chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric import WebSocketClient
from integration.test_apps import loaded
from integration.test_tutorial import connect, event, running
from support.chromium import Page, find_chromium
from support.ports import reserved_port

pytestmark = [
    pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True),  # the browser is what is tested
    pytest.mark.deadline(90),
]


@pytest.fixture
def port() -> Iterator[int]:
    """A port that no other program gets."""
    with reserved_port() as port:
        yield port


@pytest.fixture
def browser(require: Callable[[object, str], None]) -> str:
    found = find_chromium()
    require(found, "Chromium is not installed")
    return str(found)


async def say(page: Any, text: str) -> None:
    await page.evaluate(f"text.value = '{text}'; form.requestSubmit()")


async def test_the_page_of_part_1(browser: str, tmp_path: Path, port: int) -> None:
    async with running("first.py", port, tmp_path) as place, Page.open(browser, tmp_path / "profile") as page:
        other = await connect(f"ws://{place}/chat")
        await page.goto(f"http://{place}/")
        await page.until("socket.readyState === WebSocket.OPEN")
        await say(page, "<b>hello</b>")
        assert await other.recv() == "<b>hello</b>"
        await page.until("document.querySelectorAll('li').length === 1")
        assert await page.evaluate("document.querySelector('li').textContent") == "<b>hello</b>"
        await other.close()
        assert page.problems == []


async def test_the_page_of_part_2_comes_back(browser: str, tmp_path: Path, port: int) -> None:
    async with Page.open(browser, tmp_path / "profile") as page:
        async with running("rooms.py", port, tmp_path) as place:
            ada = await connect(f"ws://{place}/rooms/tea?name=Ada")
            await page.goto(f"http://{place}/?room=tea&name=Grace")
            await page.until("people.textContent === 'Ada, Grace'")
            await say(page, "good evening")
            assert (await event(ada, "said"))["text"] == "good evening"
            await page.until("document.querySelector('li')?.textContent === 'Grace: good evening'")
        await page.until("document.getElementById('state').textContent !== ''")
        async with running("rooms.py", port, tmp_path) as place:
            ada = await connect(f"ws://{place}/rooms/tea?name=Ada")
            await page.until("people.textContent === 'Ada, Grace'")
            await page.until("document.getElementById('state').textContent === ''")
            await ada.close()


async def test_the_page_of_chat(browser: str, tmp_path: Path) -> None:
    with loaded("chat") as chat:
        async with chat.make_server("127.0.0.1:0") as server, Page.open(browser, tmp_path) as page:
            place = f"127.0.0.1:{server.port}"
            await page.goto(f"http://{place}/?name=Grace")
            await page.until("document.getElementById('people').textContent === 'Grace'")
            async with WebSocketClient.connect(f"ws://{place}/rooms/lobby?name=Ada") as ada:
                await page.until("document.getElementById('people').textContent === 'Ada, Grace'")
                await page.evaluate("text.value = '<i>hello</i>'; form.requestSubmit()")
                assert (await event(ada, "said"))["text"] == "<i>hello</i>"
                await page.until("document.querySelector('li')?.textContent === 'Grace: <i>hello</i>'")
            assert page.problems == []
