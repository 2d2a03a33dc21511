"""Browsers as clients: a page, served by fabric, holds the talks and reports over a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from fabric import Request, Response
from fabric.message import Message
from fabric.server import ConnectedClient, WebSocketServer
from interop.peers import NODE, Client, checked
from interop.talk import Report, Talk

PAGE = """<!doctype html><meta charset="utf-8"><title>talks</title>
<script src="/client.js"></script>
<script>
leadAll(%s).then((reports) => {
  const socket = new WebSocket(`ws://${location.host}/report`);
  socket.onopen = () => { socket.send(JSON.stringify(reports)); socket.close(1000, "reported"); };
});
</script>
"""

CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --disable-sync "
    "--disable-extensions --disable-background-networking --disable-component-update --no-first-run "
    "--disable-domain-reliability --no-default-browser-check --no-proxy-server --password-store=basic"
).split()

# What Firefox would do on its own: ask the network about itself, its updates, its user's safety.
FIREFOX = {
    "app.normandy.enabled": False,
    "app.update.auto": False,
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.newtabpage.enabled": False,
    "browser.region.network.url": "",
    "browser.safebrowsing.downloads.remote.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.search.update": False,
    "browser.sessionstore.resume_from_crash": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "browser.startup.page": 0,
    "datareporting.healthreport.uploadEnabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.blocklist.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "extensions.systemAddon.update.enabled": False,
    "extensions.update.enabled": False,
    "media.gmp-manager.updateEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disablePrefetch": True,
    "network.http.speculative-parallel-limit": 0,
    "network.prefetch-next": False,
    "network.proxy.type": 0,
    "network.trr.mode": 5,
    "services.settings.server": "data:,#remote-settings-dummy/v1",
    "toolkit.telemetry.enabled": False,
    "toolkit.telemetry.server": "",
    "toolkit.telemetry.unified": False,
}


def chromium(home: Path, url: str) -> list[str]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
    return [program, *CHROMIUM, f"--user-data-dir={home / 'profile'}", url]


def firefox(home: Path, url: str) -> list[str]:
    profile = home / "profile"
    profile.mkdir()
    lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in FIREFOX.items())
    (profile / "user.js").write_text("\n".join(lines))
    program = shutil.which("firefox-esr") or shutil.which("firefox") or "firefox-esr"
    return [program, "--headless", "--no-remote", "--profile", str(profile), url]


def missing(*programs: str) -> str:
    """What keeps a browser from being tried; nothing if one of `programs` is there."""
    return "" if any(map(shutil.which, programs)) else f"{programs[0]} is not installed"


def client(command: Callable[[Path, str], list[str]]) -> Client:
    """The client that is a page in the browser started by `command(home, url)`."""
    return partial(hold, command)


async def hold(
    command: Callable[[Path, str], list[str]], url: str, talks: Sequence[Talk], compressed: bool
) -> list[Report]:
    plan = json.dumps({"url": url, "talks": [asdict(talk) for talk in talks], "compressed": compressed})
    async with stage(PAGE % plan) as (address, reported), running(command, address) as ended:
        await asyncio.wait({reported, ended}, return_when=asyncio.FIRST_COMPLETED)
        assert reported.done(), f"the browser ended early: {ended.result()}"
        return checked(json.loads(reported.result()))


@asynccontextmanager
async def stage(page: str) -> AsyncIterator[tuple[str, asyncio.Future[str]]]:
    """Serve `page`; yields its address, and the future of what it reports."""
    files = {
        "/": Response(200, {"Content-Type": "text/html; charset=utf-8"}, page.encode()),
        "/client.js": Response(
            200, {"Content-Type": "text/javascript; charset=utf-8"}, (NODE / "client.js").read_bytes()
        ),
    }
    reported: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def answer(request: Request) -> Response | None:
        return None if request.path == "/report" else files.get(request.path, Response(404))

    def receive(_client: ConnectedClient, message: Message) -> None:
        reported.set_result(message.as_text())

    async with WebSocketServer.bind("127.0.0.1:0", on_message=receive, process_request=answer) as server:
        yield f"http://127.0.0.1:{server.port}/", reported


@asynccontextmanager
async def running(command: Callable[[Path, str], list[str]], url: str) -> AsyncIterator[Awaitable[str]]:
    """Run a browser in a home of its own; yields the future of its output, which comes when it has ended."""
    with tempfile.TemporaryDirectory(prefix="fabric-browser-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        with (home / "output").open("w+") as output:
            process = subprocess.Popen(  # noqa: ASYNC220 - its children would keep a pipe open
                command(home, url),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": name, "XDG_CONFIG_HOME": name, "XDG_CACHE_HOME": name},
                start_new_session=True,
            )

            def wait() -> str:
                process.wait()
                output.seek(0)
                return output.read()

            ended = asyncio.ensure_future(asyncio.to_thread(wait))
            try:
                yield ended
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await ended
