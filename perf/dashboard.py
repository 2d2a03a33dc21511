"""Takes the pictures of the live page for README and docs: `docs/images/dashboard*.png`.

    python perf/dashboard.py     needs Chromium

The server is on loopback, with connections that talk, topics, and a broker in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fabric import ConnectedClient, WebSocketClient, WebSocketServer  # noqa: E402
from support.chromium import Page, find_chromium  # noqa: E402

IMAGES = ROOT / "docs/images"
WIDTH = 1280  # pixels
TOP = 963  # pixels, down to the third row of charts
MARGIN = 12  # pixels around the lists of connections, errors and topics, which are a picture of their own
LISTS = "JSON.stringify(document.getElementById('lists').getBoundingClientRect())"
CLIENTS = 12
SAMPLES = 110  # one a second; the charts show two minutes until there are more
SYMBOLS = ("eurusd", "gbpusd", "usdjpy", "audusd")


async def handler(client: ConnectedClient) -> None:
    """Sends back what comes, and follows one topic."""
    client.subscribe(f"md.{SYMBOLS[int(client.request.path.rpartition('/')[2]) % len(SYMBOLS)]}")
    async for message in client:
        await client.send(message)


async def talk(url: str, number: int) -> None:
    """One client: questions at a pace of its own, answers and prices that it only receives."""
    async with WebSocketClient.connect(url, on_message=lambda client, message: None) as client:
        while True:
            await client.send("x" * (40 + 7 * number))
            await asyncio.sleep(0.004 + 0.001 * number)


async def quote(server: WebSocketServer) -> None:
    """Publishes prices."""
    number = 0
    while True:
        number += 1
        server.publish(f"md.{SYMBOLS[number % len(SYMBOLS)]}", f"1.{number:06}")
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def busy_server() -> AsyncIterator[str]:
    """The address of the page of a server that has something to do."""
    server = WebSocketServer.bind("127.0.0.1:0", handler, broker="memory:")
    server.mount_dashboard()
    async with server:
        address = f"127.0.0.1:{server.port}"
        tasks = [asyncio.create_task(talk(f"ws://{address}/agents/{number}", number)) for number in range(CLIENTS)]
        tasks.append(asyncio.create_task(quote(server)))
        try:
            yield f"http://{address}/dashboard"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def picture(page: Page, top: float, height: float) -> bytes:
    """What stands on the page from `top` on, as PNG."""
    width = await page.evaluate("innerWidth")
    clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
    taken = await page.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    return base64.b64decode(taken["data"])


async def take(chromium: str, width: int) -> dict[str, bytes]:
    """The pictures of a page of so many pixels, by the name of the file."""
    async with busy_server() as url:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            async with Page.open(chromium, Path(profile), width=width) as page:
                await page.prefer("light")
                await page.goto(url)
                for samples in range(0, SAMPLES, 10):  # `until` waits for less than half a minute
                    await page.until(f"document.body.dataset.samples >= {samples + 10}")
                light = await picture(page, 0, TOP)
                place = json.loads(await page.evaluate(LISTS))
                lists = await picture(page, place["y"] - MARGIN, place["height"] + 2 * MARGIN)
                await page.prefer("dark")
                for odd in (0, 1):  # until all is drawn anew, in these colours
                    await page.until(f"document.body.dataset.samples % 2 == {odd}")
                dark = await picture(page, 0, TOP)
                assert not page.problems, page.problems
    return {"dashboard.png": light, "dashboard-lists.png": lists, "dashboard-dark.png": dark}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=IMAGES, help="the folder")
    parser.add_argument("--width", type=int, default=WIDTH, help="of the page, in pixels")
    given = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("there is no Chromium")
    given.output.mkdir(parents=True, exist_ok=True)
    for name, data in asyncio.run(take(chromium, given.width)).items():
        (given.output / name).write_bytes(data)


if __name__ == "__main__":
    main()
