"""The Grafana dashboard of the examples: its names are exported, and a real Prometheus answers each of its queries."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from fabric import (
    CompressionConfig,
    ConnectedClient,
    HandshakeFailed,
    MetricsCollector,
    Request,
    Response,
    WebSocketClient,
    WebSocketServer,
    prometheus,
)
from support.pages import ROOT
from support.ports import reserved_port

DASHBOARD = json.loads((ROOT / "examples/deploy/grafana.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]

CONFIG = """
global:
  scrape_interval: 200ms
  scrape_timeout: 200ms
scrape_configs:
  - job_name: app
    static_configs:
      - targets: ["127.0.0.1:{port}"]
"""


def test_every_name_is_exported() -> None:
    metrics = MetricsCollector()
    metrics.record_latency(0.001)
    metrics.record_handshake(0.001)
    metrics.record_disconnection(1000)
    metrics.record_refusal(403)
    exported = set(re.findall(r"^(fabric_\w+)", prometheus.render(metrics).decode(), re.M))
    asked = {name for _, query in QUERIES for name in re.findall(r"\bfabric_\w+", query)}
    assert len(QUERIES) > 15
    assert asked - exported == set()


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


async def handler(client: ConnectedClient) -> None:
    async for message in client:
        await client.send(message)


def ask(port: int, query: str) -> Any:
    """The result of an instant query; None while Prometheus does not answer yet."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]["result"]
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 503:  # it starts
                return None
            raise AssertionError(f"{query}: {error.read().decode()}") from None
    except OSError:
        return None


@pytest.mark.deadline(180)
@pytest.mark.parametrize("loop_factory", ["uvloop"], indirect=True)
async def test_prometheus_answers_every_query(
    require: Callable[[object, str], None], stack: contextlib.AsyncExitStack, tmp_path: Path
) -> None:
    found = shutil.which("prometheus")
    require(found, "Prometheus is not installed")
    server: WebSocketServer

    def answer(request: Request) -> Response | None:
        if request.path == "/metrics":
            return Response(200, {"Content-Type": "text/plain; version=0.0.4"}, prometheus.render(server.metrics))
        return Response(403) if request.path == "/refused" else None

    compression = CompressionConfig(threshold=0)
    server = WebSocketServer.bind("127.0.0.1:0", handler, process_request=answer, compression=compression)
    await stack.enter_async_context(server)
    url = f"ws://127.0.0.1:{server.port}"
    client = await stack.enter_async_context(WebSocketClient.connect(url, compression=compression))
    await client.send("x" * 1000)
    await client.recv()
    server.metrics.record_latency(await client.ping())
    async with WebSocketClient.connect(url):
        pass
    with pytest.raises(HandshakeFailed):
        await WebSocketClient.connect(f"{url}/refused")

    config = tmp_path / "prometheus.yml"
    config.write_text(CONFIG.format(port=server.port))
    port = stack.enter_context(reserved_port())
    process = await asyncio.create_subprocess_exec(
        str(found),
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        for _, query in QUERIES:
            concrete = query.replace("$job", ".+").replace("$__rate_interval", "1m")
            while not await asyncio.to_thread(ask, port, concrete):
                assert process.returncode is None, "Prometheus has ended"
                await asyncio.sleep(0.1)
    finally:
        process.kill()
        await process.wait()
