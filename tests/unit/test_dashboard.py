"""The page about a server: what it may do, and whom it is for."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from fabric import MetricsCollector
from fabric._http.messages import Request
from fabric._server.dashboard import BOUNDS, LISTED, RECENT, Dashboard, Interval, Process, _is_same_origin, _pressure
from fabric.metrics import LoopMetrics, ServerMetrics, TopicMetrics
from fabric_ext.histogram import Histogram


class Server:
    """Enough of one."""

    metrics = MetricsCollector()

    def clients(self) -> list[object]:
        return []


def dashboard(path: str = "/dashboard") -> Dashboard:
    return Dashboard(Server(), path)  # type: ignore[arg-type]


def test_an_interval_holds_what_was_added() -> None:
    histogram, interval = Histogram(), Interval()
    histogram.record_n(1000, 5)
    assert interval.take(histogram).count == 5
    assert interval.take(histogram).count == 0
    histogram.record_n(1000, 2)
    histogram.record(50_000)
    added = interval.take(histogram)
    assert added.count == 3
    assert added.count_at(1000) == 2
    histogram.reset()
    histogram.record(1000)
    assert interval.take(histogram).count <= 1  # starting over is no negative count


def request(path: str, **headers: str) -> Request:
    lines = [f"GET {path} HTTP/1.1", "Host: host:1", *(f"{name}: {value}" for name, value in headers.items())]
    return Request("\r\n".join(lines).encode("utf-8", "surrogateescape"))


def test_the_page_may_run_its_own_script_only() -> None:
    response = dashboard().respond(request("/dashboard"))
    assert response is not None
    assert response.status == 200
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "script-src 'unsafe-inline'" not in policy
    page = response.body.decode()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "the page asks for something from outside"
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


def test_which_requests_are_its_own() -> None:
    for path in ("/dashboard", "/admin/live"):
        mounted = dashboard(path)
        for suffix, page, feed in (
            ("", True, False),
            ("/", True, False),
            ("?a=b", True, False),
            ("/feed", False, True),
            ("/feed?a=b", False, True),
            ("/feed/", False, False),
            ("/other", False, False),
            ("x", False, False),
        ):
            asked = request(path + suffix)
            assert (mounted.is_page(asked), mounted.is_feed(asked)) == (page, feed)
        assert not mounted.is_page(request("/"))


@pytest.mark.parametrize("path", ["", "/", "dashboard", "/a/", "/a?b", "/a#b", "/a b", "/%61", "/é"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="path = "):
        dashboard(path)


def test_the_feed_is_for_the_pages_own_site() -> None:
    mounted = dashboard()
    feed = "/dashboard/feed"
    assert mounted.respond(request(feed, Upgrade="websocket", Origin="http://host:1")) is None
    assert mounted.respond(request(feed, Upgrade="websocket")) is None
    refused = mounted.respond(request(feed, Upgrade="websocket", Origin="http://evil"))
    assert refused is not None
    assert refused.status == 403
    for origin in ("null", "http://[::1", "http://", "://", "", "host:1", "http://host:1/", "\udcff"):
        assert not _is_same_origin(origin, "host:1")
        answer = mounted.respond(request(feed, Upgrade="websocket", Origin=origin))
        assert answer is not None
        assert answer.status == 403
    assert _is_same_origin("http://[::1]:80", "[::1]:80")
    assert not _is_same_origin("http://", None)


def test_bounds_are_whole_decades() -> None:
    assert BOUNDS[0] == 1000
    assert BOUNDS[12] == 10_000
    assert BOUNDS[-1] == 10**10


def test_how_long_the_oldest_message_has_waited_for_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def client(received_ns: int) -> Any:
        return SimpleNamespace(_outbox_size=0, is_reading_paused=False, _oldest_ns=received_ns)

    monkeypatch.setattr(time, "monotonic_ns", lambda: 5_000_000)
    assert _pressure([])["oldest_us"] is None
    assert _pressure([client(0)])["oldest_us"] is None
    assert _pressure([client(0), client(4_000_000), client(3_000_000)])["oldest_us"] == 2000


def test_a_sample_tells_how_the_loop_did_since_the_one_before() -> None:
    server = Server()
    server.metrics = MetricsCollector()
    mounted = Dashboard(server, "/dashboard")  # type: ignore[arg-type]
    sample = mounted.sample()
    assert (sample["lateness_us"], sample["polled"], sample["poll_hits"]) == (None, None, None)
    loop = server.metrics.loop = LoopMetrics(object())  # type: ignore[arg-type]
    assert mounted.sample()["polled"] == 0
    loop.polled_ns, loop.hits = 10**15, 50
    loop.record_lateness(0.002)
    sample = mounted.sample()
    assert sample["polled"] == 1
    assert sample["poll_hits"] > 0
    assert sample["lateness_us"][:3] == pytest.approx([2000] * 3, rel=1e-3)
    assert sample["lateness_us"][3] is None  # of so few
    sample = mounted.sample()
    assert (sample["lateness_us"], sample["polled"], sample["poll_hits"]) == (None, 0, 0)


class Client:
    """Enough of a connection."""

    remote_addr = ("::1", 5000, 0, 0)
    latency = 0.000_25
    is_reading_paused = False
    _oldest_ns = 0

    def __init__(self, queue: int = 0, path: str = "/room?token=secret") -> None:
        self._outbox_size = queue
        self.request = request(path)
        self.messages_received = self.messages_sent = 0
        self.backpressure = SimpleNamespace(level=0.5)


def mounted_on(*clients: Client) -> tuple[Dashboard, MetricsCollector]:
    server = SimpleNamespace(metrics=MetricsCollector(), clients=lambda: list(clients))
    return Dashboard(server, "/dashboard"), server.metrics  # type: ignore[arg-type]


def test_a_rare_percentile_is_not_told_of_few_values() -> None:
    mounted, metrics = mounted_on()
    assert mounted.sample()["latency_us"] is None
    for _ in range(999):
        metrics.record_latency(0.001)
    sample = mounted.sample()
    assert sample["latency_us"][3] is None
    assert sample["latency_us"][0] == pytest.approx(1000, rel=0.01)
    assert 99.9 not in dict(sample["distribution"]["curve"])
    metrics.record_latency(0.001)
    sample = mounted.sample()
    assert sample["latency_us"][3] is None  # of the last second there is one
    assert sample["recent_us"][3] == pytest.approx(1000, rel=0.01)
    assert sample["recent_count"] == 1000
    assert 99.9 in dict(sample["distribution"]["curve"])


def test_recent_is_the_last_minute() -> None:
    mounted, metrics = mounted_on()
    metrics.record_latency(0.001)
    for _ in range(RECENT):
        sample = mounted.sample()
    assert sample["recent_count"] == 1
    sample = mounted.sample()
    assert (sample["recent_count"], sample["recent_us"]) == (0, None)
    assert sample["distribution"]["count"] == 1


def test_the_list_of_connections() -> None:
    """The longest queues first, then the oldest; no more than fit; rates from one to the next; nothing of a query."""
    clients = [Client() for _ in range(LISTED)] + [Client(queue=3), Client(queue=7)]
    mounted, _ = mounted_on(*clients)
    mounted.opened(clients[-1])  # type: ignore[arg-type]
    first = mounted.listed()
    assert [each["queue"] for each in first[:3]] == [7, 3, 0]
    assert len(first) == LISTED
    assert first[0]["address"] == "[::1]:5000"
    assert first[0]["path"] == "/room"
    assert (first[0]["in"], first[0]["out"], first[0]["latency_us"]) == (0, 0, 250)
    assert first[0]["since"] >= mounted._started
    clients[-1].messages_received += 5
    clients[-1].messages_sent += 2
    again = mounted.listed()
    assert (again[0]["in"], again[0]["out"]) == (5, 2)
    mounted.ended(clients[-1])  # type: ignore[arg-type]
    assert clients[-1] not in mounted._since


def test_a_sample_tells_of_ends_and_errors() -> None:
    mounted, metrics = mounted_on()
    metrics.record_disconnection(1006)
    metrics.record_refusal(403)
    metrics.record_send_error()
    sample = mounted.sample()
    assert sample["closes"] == {1006: 1}
    assert sample["refusals"] == {403: 1}
    assert (sample["send_errors"], sample["receive_errors"], sample["errors"]) == (1, 0, 1)


def test_a_sample_tells_of_topics_and_the_broker() -> None:
    mounted, _ = mounted_on()
    assert mounted.sample()["topics"] is None
    metrics = ServerMetrics()
    metrics.source = lambda: TopicMetrics(2, 5, {"full": 1}, broker_healthy=False, has_broker=True)
    server = SimpleNamespace(metrics=metrics, clients=list)
    told = msgspec.json.decode(msgspec.json.encode(Dashboard(server, "/dashboard").sample()))["topics"]  # type: ignore[arg-type]
    assert told == {"topics": 2, "subscriptions": 5, "drops": {"full": 1}, "broker_healthy": False, "has_broker": True}


def test_what_the_process_takes() -> None:
    process = Process()
    sum(range(300_000))
    taken = process.take()
    assert taken["cpu_percent"] > 0
    assert taken["memory"] > 5_000_000
