"""One place that shows all workers: for Prometheus, as JSON, for health checks, and as the live page.

The parent serves it, on an address of its own. The supervisor collects the numbers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fabric._http.messages import Request, Response
from fabric._server.dashboard import Dashboard, Process
from fabric.config import ServerConfig
from fabric.metrics import ServerMetrics
from fabric.server import WebSocketServer

if TYPE_CHECKING:
    from fabric._connection.base import BaseConnection

__all__ = ["Page", "State", "WorkerState"]

DASHBOARD = "/dashboard"
NO_STORE = {"Cache-Control": "no-store"}
OF_WORKERS = """\
# HELP fabric_workers_ready Workers that take connections.
# TYPE fabric_workers_ready gauge
fabric_workers_ready {ready}
# HELP fabric_worker_restarts_total Processes started in place of one that had ended by itself.
# TYPE fabric_worker_restarts_total counter
fabric_worker_restarts_total {restarts}
"""
PRESSURE: dict[str, Callable[[list[Any]], Any]] = {
    "waiting_connections": sum,
    "waiting_messages": sum,
    "fullest_buffer": max,
    "paused_connections": sum,
}


@dataclass(frozen=True)
class WorkerState:
    """One worker.

    Attributes:
        number, pid: of the worker and its process.
        state: "starting", "ready", or "ending".
        since: `time.time()` at which the process was started.
        connections: open at its last report.
        report: its last report; empty at first.
    """

    number: int
    pid: int
    state: str
    since: float
    connections: int
    report: dict[str, Any]


@dataclass(frozen=True)
class State:
    """All workers together, at one moment.

    Attributes:
        wanted: how many there are to be.
        restarts: processes that were started in place of one that had ended by itself.
        workers: all whose processes run, those that are ending too.
        metrics: the sum of what they have counted.
    """

    wanted: int
    restarts: int
    workers: list[WorkerState]
    metrics: ServerMetrics

    @property
    def ready(self) -> int:
        """How many take connections."""
        return sum(worker.state == "ready" for worker in self.workers)


class Page:
    """Serves what there is to show on `address`; `look` asks the workers."""

    def __init__(self, address: str, look: Callable[[], Awaitable[State]]) -> None:
        self._look = look
        self.server = WebSocketServer(ServerConfig(address), _refuse, process_request=self._respond)
        self.server._dashboard = _Dashboard(self.server, look)

    async def _respond(self, request: Request) -> Response | None:
        if request.path == "/health":
            state = await self._look()
            status = 200 if state.ready >= state.wanted else 503
            return Response(status, NO_STORE, f"{state.ready} of {state.wanted} workers are ready\n")
        if request.path == "/metrics":
            try:
                from fabric.prometheus import CONTENT_TYPE, render  # prometheus_client may be missing
            except ModuleNotFoundError as error:
                return Response(501, body=f"{error}\n")
            state = await self._look()
            text = OF_WORKERS.format(ready=state.ready, restarts=state.restarts).encode() + render(state.metrics)
            return Response(200, {"Content-Type": CONTENT_TYPE}, text)
        if request.path == "/metrics.json":
            return Response(200, NO_STORE | {"Content-Type": "application/json"}, _as_json(await self._look()))
        if request.path == "/" and "Upgrade" not in request.headers:
            return Response(302, {"Location": DASHBOARD}, f"see {DASHBOARD}\n")
        return None


async def _refuse(client: BaseConnection) -> None:
    await client.close(1008, "there is only the dashboard here")


def _as_json(state: State) -> bytes:
    workers = [
        {name: value for name, value in asdict(worker).items() if name != "report"} | worker.report.get("process", {})
        for worker in state.workers
    ]
    value = {"wanted": state.wanted, "ready": state.ready, "restarts": state.restarts, "workers": workers}
    return msgspec.json.encode(value | {"total": state.metrics.snapshot()})


class _Dashboard(Dashboard):
    """The live page about all workers. It has no list of connections: the workers have them."""

    def __init__(self, server: WebSocketServer, look: Callable[[], Awaitable[State]]) -> None:
        super().__init__(server, DASHBOARD)
        self._look = look
        self._own = Process()
        self._state = State(0, 0, [], ServerMetrics())

    async def _prepare(self) -> None:
        self._state = await self._look()

    def _metrics(self) -> ServerMetrics:
        return self._state.metrics

    def _now(self) -> dict[str, Any]:
        workers = self._state.workers
        reports = [worker.report for worker in workers if worker.report]
        own = self._own.take()
        pressures = [report["pressure"] for report in reports]
        oldest = [each["oldest_us"] for each in pressures if each["oldest_us"] is not None]
        return {
            "connections": sum(worker.connections for worker in workers),
            "cpu_percent": round(own["cpu_percent"] + sum(each["process"]["cpu_percent"] for each in reports), 1),
            "memory": own["memory"] + sum(each["process"]["memory"] for each in reports),
            **{name: together([each[name] for each in pressures] or [0]) for name, together in PRESSURE.items()},
            "oldest_us": max(oldest, default=None),
        }

    def listed(self) -> list[dict[str, Any]] | None:
        """None: this process has no connections of the application."""
        return None

    def _to_ping(self) -> Sequence[BaseConnection]:
        return ()
