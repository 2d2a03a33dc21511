"""The live page in a real browser: it shows what happens, in light and dark, and survives a restart of its server."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fabric._server import dashboard
from fabric.cli.serve import Service
from fabric.client import WebSocketClient
from fabric.config import ServerConfig
from support.chromium import Page, find_chromium

pytestmark = [
    pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True),  # the browser is what is tested
    pytest.mark.deadline(90),
]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard, "INTERVAL", 0.1)


@pytest.fixture
def browser(require: Callable[[object, str], None]) -> str:
    found = find_chromium()
    require(found, "Chromium is not installed")
    return str(found)


@contextlib.asynccontextmanager
async def serving(port: int = 0) -> AsyncIterator[int]:
    """A server with its page; yields its port."""
    service = Service(ServerConfig(f"127.0.0.1:{port}"), "echo", dashboard=True)
    async with service.server as server:
        yield server.port


async def tile(page: Any, name: str) -> str:
    program = f"[...document.querySelectorAll('.tile')].find((t) => t.innerText.includes('{name}')).innerText"
    return str(await page.evaluate(program))


def tile_says(name: str, text: str) -> str:
    """The JavaScript condition that a tile shows `text` in a line of its own."""
    return (
        f"[...document.querySelectorAll('.tile')].some((t) => {{ const l = t.innerText.split('\\n');"
        f" return l[0] === '{name}' && l.includes('{text}'); }})"
    )


async def test_it_shows_what_happens(browser: str, tmp_path: Path) -> None:
    async with (
        serving() as port,
        Page.open(browser, tmp_path) as page,
        contextlib.AsyncExitStack() as clients,
    ):
        await page.goto(f"http://127.0.0.1:{port}/")  # leads to the page
        await page.until("document.body.dataset.state === 'live'")
        assert await page.evaluate("location.pathname") == "/dashboard"
        await page.until(tile_says("Connections", "0"))  # who watches does not count

        opened = [
            await clients.enter_async_context(WebSocketClient.connect(f"ws://127.0.0.1:{port}")) for _ in range(3)
        ]
        await page.until(tile_says("Connections", "3"))
        for client in opened:
            await client.send("x" * 1000)
            assert await client.recv() is not None
        await page.until("known.samples.some((s) => s.messages_in > 0 && s.bytes_out > 0)")
        await page.until("known.distribution.count >= 10")  # pings were answered
        assert await tile(page, "Round trip") != "–"
        texts = await page.evaluate("[...document.querySelectorAll('.tile')].map((t) => t.innerText)")
        windows = re.compile(r"\bnow\b|last (second|minute)|since (the start|it was opened)")
        assert [text for text in texts if not windows.search(text)] == []
        assert await page.evaluate("document.querySelectorAll('.bar').length") > 0
        labels = await page.evaluate("[...document.querySelectorAll('svg')].map((s) => s.ariaLabel)")
        assert len(labels) == 11
        await page.until("known.samples.some((s) => s.lateness_us && s.polled === 0)")
        assert all(labels), "a chart says nothing to those who cannot see it"
        assert not page.problems


async def test_it_comes_back_after_the_server_restarts(browser: str, tmp_path: Path) -> None:
    async with Page.open(browser, tmp_path) as page:
        async with serving() as port:
            await page.goto(f"http://127.0.0.1:{port}/dashboard")
            await page.until("document.body.dataset.samples > 3")
        await page.until("document.body.dataset.state === 'reconnecting'")
        await page.until("document.getElementById('state').textContent.startsWith('no data since ')")
        assert float(await page.evaluate("getComputedStyle(document.querySelector('.tile dd')).opacity")) < 1
        before = int(await page.evaluate("document.body.dataset.samples"))

        async with serving(port):
            await page.until("document.body.dataset.state === 'live'")
            await page.until(f"document.body.dataset.samples > {before + 3}")  # the past is kept
            await page.until("document.body.dataset.restarts === '1'")
            await page.until(tile_says("Reconnections", "of this page since it was opened; server restarts: 1"))
            assert await page.evaluate("document.querySelectorAll('.gap').length") > 0
        # Attempts while nobody listened are reported by the browser itself.
        assert all("ERR_CONNECTION" in problem for problem in page.problems)


async def test_light_and_dark(browser: str, tmp_path: Path) -> None:
    async with serving() as port, Page.open(browser, tmp_path) as page:
        lightness = []
        for scheme in ("light", "dark"):
            await page.prefer(scheme)
            await page.goto(f"http://127.0.0.1:{port}/dashboard")
            await page.until("document.body.dataset.samples > 2")
            colour = "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
            paper = await page.evaluate(colour.format("backgroundColor"))
            ink = await page.evaluate(colour.format("color"))
            lightness.append((paper, ink))
        (light_paper, light_ink), (dark_paper, dark_ink) = lightness
        assert light_paper - light_ink > 500
        assert dark_ink - dark_paper > 500
        assert not page.problems


async def test_pause_holds_the_picture_and_not_the_feed(browser: str, tmp_path: Path) -> None:
    async with serving() as port, Page.open(browser, tmp_path) as page:
        await page.goto(f"http://127.0.0.1:{port}/dashboard")
        await page.until("document.body.dataset.samples > 2")
        await page.evaluate("document.getElementById('pause').click()")
        held = await page.evaluate("shown.length")
        assert await page.evaluate("document.getElementById('pause').textContent") == "Resume"
        assert str(await page.evaluate("document.getElementById('state').textContent")).startswith("paused at ")
        await page.until(f"document.body.dataset.samples > {held + 3}")
        assert await page.evaluate("shown.length") == held
        await page.evaluate("document.getElementById('pause').click()")
        await page.until(f"shown.length > {held}")


async def test_connections_and_how_they_ended(browser: str, tmp_path: Path) -> None:
    async with serving() as port, Page.open(browser, tmp_path) as page:
        async with WebSocketClient.connect(f"ws://127.0.0.1:{port}/rooms/tea?token=secret") as client:
            await page.goto(f"http://127.0.0.1:{port}/dashboard")
            rows = "[...document.querySelectorAll('#{} tbody tr')].map((r) => r.innerText)"
            await page.until(rows.format("clients") + ".some((r) => r.includes('/rooms/tea'))")
            assert "secret" not in str(await page.evaluate("document.documentElement.outerHTML"))
            await client.close(4000)
        await page.until(rows.format("ends") + ".some((r) => r.includes('closed with 4000'))")
        assert not page.problems


async def test_topics_and_the_broker(browser: str, tmp_path: Path) -> None:
    async with (
        serving() as port,
        Page.open(browser, tmp_path) as page,
        WebSocketClient.connect(f"ws://127.0.0.1:{port}"),
    ):
        await page.goto(f"http://127.0.0.1:{port}/dashboard")
        rows = "[...document.querySelectorAll('#topics tbody tr')].map((r) => r.innerText.split('\\t').join(': '))"
        await page.until(rows + ".includes('broker, now: none')")
        told = "{ topics: 2, subscriptions: 3, drops: { full: 7 }, broker_healthy: false, has_broker: true }"
        # In one step: the next sample draws it anew.
        away = "document.getElementById('topics').hasAttribute('data-away')"
        found = str(await page.evaluate(f"(drawTopics({told}), [...{rows}, `away: ${{{away}}}`].join('; '))"))
        assert "topics and patterns, now: 2; subscriptions, now: 3; broker, now: away" in found
        assert "not delivered, client's queue full: 7; away: true" in found
        assert not page.problems


@pytest.mark.parametrize(("width", "columns"), [(390, 2), (768, 4), (1280, 8), (2560, 8)])
async def test_widths(browser: str, tmp_path: Path, width: int, columns: int) -> None:
    """Nothing overflows, and no tile stands alone in its row."""
    async with serving() as port, Page.open(browser, tmp_path, width=width) as page:
        await page.goto(f"http://127.0.0.1:{port}/dashboard")
        await page.until("document.body.dataset.samples > 2")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tops = "new Set([...document.querySelectorAll('.tile')].map((t) => t.offsetTop)).size"
        tiles = int(await page.evaluate("document.querySelectorAll('.tile').length"))
        assert tiles / int(await page.evaluate(tops)) == columns
        assert int(await page.evaluate("document.querySelector('main').offsetWidth")) > width - 60
