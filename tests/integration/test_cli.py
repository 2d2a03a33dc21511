"""The command line as a user runs it: a process of its own, its output, its exit code."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fabric._version import VERSION
from fabric.cli.serve import Service
from fabric.client import WebSocketClient
from fabric.config import ServerConfig
from fabric_ext.histogram import Histogram

TIMEOUT = 60  # seconds for one run
FABRIC = [sys.executable, "-W", "error", "-m", "fabric"]
ENVIRONMENT = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}


def fabric(*argv: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*FABRIC, *argv],
        check=False,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env={**ENVIRONMENT, **environment},
        timeout=TIMEOUT,
    )


class Server:
    """A `fabric serve` process."""

    def __init__(self, *argv: str) -> None:
        self.process = subprocess.Popen(
            [*FABRIC, "serve", "--bind", "127.0.0.1:0", "--json", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=ENVIRONMENT,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        self.place: dict[str, Any] = json.loads(line)
        self.url: str = self.place["url"]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; the exit code and what was said on standard error."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, said


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Children start with SIGINT at its default; those of a shell's background job would inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


# demo


@pytest.fixture(scope="module")
def demo() -> subprocess.CompletedProcess[str]:
    return fabric("demo", "--duration", "500ms", "--clients", "20")


def test_demo_shows_the_main_job(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.returncode == 0, demo.stderr
    for line in (
        r"^server +listening on ws://127\.0\.0\.1:\d+/$",
        r'^text +"Grüße .*🚀" came back in [\d.]+ [µm]s$',
        r"^binary +1\.00 MiB came back, byte for byte, in",
        r'^JSON +\{"symbol":"EURUSD"',
        r"^ +→ Order\(symbol='EURUSD', side='buy', price=1.0842, size=250000\)$",
        r"^broadcast +one message to 20 clients; all had it after",
        r"^latency +one message in flight: p50 [\d.]+ [µm]s, p99 [\d.]+ [µm]s$",
        r"^throughput +64 in flight: [\d,]+ messages/s",
        r"^ +p50 +p95 +p99 +p99\.9 +max$",
    ):
        assert re.search(line, demo.stdout, re.MULTILINE), f"{line} is not in\n{demo.stdout}"


def test_demo_draws_within_80_columns(demo: subprocess.CompletedProcess[str]) -> None:
    assert max(map(len, demo.stdout.splitlines())) <= 80
    assert "█" in demo.stdout
    assert "▲" in demo.stdout
    assert "\x1b" not in demo.stdout, "a pipe gets no colours"


def test_demo_where_only_ascii_can_be_shown() -> None:
    done = fabric("demo", "--duration", "200ms", "--clients", "2", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "#" in done.stdout


# serve


def test_serve_answers_health_checks_and_ends_with_sigterm(server: Server) -> None:
    address = server.url.replace("ws:", "http:")
    with urllib.request.urlopen(f"{address}health", timeout=TIMEOUT) as answer:
        assert answer.read() == b"ok\n"
    code, said = server.stop()
    assert code == 0
    assert "Traceback" not in said


def test_serve_is_interrupted_with_130(server: Server) -> None:
    code, said = server.stop(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in said


def test_serve_ends_by_itself() -> None:
    done = fabric("serve", "--bind", "127.0.0.1:0", "--duration", "100ms")
    assert done.returncode == 0
    assert re.match(r"echo server on ws://127\.0\.0\.1:\d+/\n$", done.stdout)


def test_serve_on_a_path_says_which(tmp_path: Path) -> None:
    bind = f"unix:{tmp_path}/s"
    done = fabric("serve", "--bind", bind, "--duration", "100ms", "--dashboard")
    assert (done.returncode, done.stdout) == (0, f"echo server on {bind}\n")
    done = fabric("serve", "--bind", bind, "--duration", "100ms", "--json")
    assert json.loads(done.stdout) == {"url": bind, "port": 0, "dashboard": None, "fabric": VERSION}


def test_an_address_in_use_is_a_sentence(server: Server) -> None:
    done = fabric("serve", "--bind", f"127.0.0.1:{server.place['port']}")
    assert done.returncode == 1
    assert done.stderr.startswith("fabric serve: cannot listen on")
    assert "Traceback" not in done.stderr


def test_no_password_of_a_broker_is_shown() -> None:
    """It stands in the environment, which other users do not see; they are told of one among the arguments."""
    where = "127.0.0.1:1"  # where nobody listens
    url = f"redis://user:hunter2@{where}"
    serve = ("serve", "--bind", "127.0.0.1:0", "--workers", "1", "--broadcast", "--verbose")
    in_arguments, in_environment = fabric(*serve, "--broker", url), fabric(*serve, FABRIC_BROKER=url)
    for done in (in_arguments, in_environment):
        assert done.returncode == 1
        assert f"the broker redis://{where} is unavailable" in done.stderr
        assert "Traceback" not in done.stderr  # of its worker
        assert "hunter2" not in done.stdout + done.stderr
    note = "other users see the password in --broker"
    assert (note in in_arguments.stderr, note in in_environment.stderr) == (True, False)


@pytest.mark.parametrize("broker", [(), ("--broker", "memory:")])
def test_workers_broadcast_over_a_broker(broker: tuple[str, ...]) -> None:
    done = fabric("serve", "--bind", "127.0.0.1:0", "--workers", "2", "--broadcast", *broker)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--broadcast with --workers needs --broker" in done.stderr


def test_closing_a_server_tells_its_clients() -> None:
    running = Server()
    client = subprocess.Popen(
        [*FABRIC, "connect", running.url, "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=ENVIRONMENT,
    )
    assert client.stdout is not None
    assert json.loads(client.stdout.readline())["event"] == "connected"
    assert running.stop()[0] == 0
    out, err = client.communicate(timeout=TIMEOUT)
    last = json.loads(out.splitlines()[-1])
    assert (last["event"], last["code"], last["reason"], last["by"]) == (
        "closed",
        1001,
        "server shutdown",
        "remote",
    )
    assert client.returncode == 0, err


@pytest.mark.parametrize(("mode", "received"), [("echo", ["hi"]), ("broadcast", ["hi"]), ("discard", [])])
async def test_serve_modes(mode: str, received: list[str]) -> None:
    service = Service(ServerConfig("127.0.0.1:0"), mode, dashboard=False)
    await service.server.start()
    async with service.server, WebSocketClient.connect(f"ws://127.0.0.1:{service.server.port}") as client:
        await client.send("hi")
        await client.ping()  # answered after what was sent before
        if received:
            answer = await client.recv()
            assert answer is not None
            assert [answer.as_text()] == received
        assert client.metrics.messages_received == len(received)


async def test_who_watches_the_dashboard_is_not_counted() -> None:
    service = Service(ServerConfig("127.0.0.1:0"), "echo", dashboard=True)
    async with service.server as running:
        url = f"ws://127.0.0.1:{running.port}"
        async with (
            WebSocketClient.connect(f"{url}/dashboard/feed") as viewer,
            WebSocketClient.connect(url) as client,
        ):
            welcome = (await viewer.recv()).parse_json()
            assert welcome["hello"]["bounds_us"][0] == 1
            await client.send("x" * 100)
            await client.recv()
            sample = (await viewer.recv()).parse_json()
            assert sample["connections"] == 1
            assert sample["opened"] == 1
            assert (sample["messages_in"] > 0) == (sample["bytes_in"] > 0)
        assert service.server.metrics.total_connections == 1


async def test_a_broadcast_does_not_reach_who_watches_the_dashboard() -> None:
    service = Service(ServerConfig("127.0.0.1:0"), "broadcast", dashboard=True)
    async with service.server as running:
        url = f"ws://127.0.0.1:{running.port}"
        async with (
            WebSocketClient.connect(f"{url}/dashboard/feed") as viewer,
            WebSocketClient.connect(url) as speaker,
            WebSocketClient.connect(url) as listener,
        ):
            assert "hello" in (await viewer.recv()).parse_json()
            await speaker.send("<img>")
            assert (await listener.recv()).as_text() == "<img>"
            await viewer.ping()  # answered after what was sent before
            assert viewer.metrics.messages_received == 1


# connect


def test_connect_shows_both_ways(server: Server) -> None:
    done = fabric("connect", server.url, "--linger", "300ms", stdin="hello\nwörld\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sorted(lines) == sorted(
        ["> text, 5 B: hello", "< text, 5 B: hello", "> text, 6 B: wörld", "< text, 6 B: wörld"]
    )
    assert re.search(rf"^connected to {server.url} in [\d.]+ [µm]s, permessage-deflate", done.stderr)
    assert "closed by this side with 1000 (normal closure)" in done.stderr


def test_connect_takes_commands_when_asked(server: Server) -> None:
    commands = "/ping\n/binary 00 ff\n/binary xyz\n/nope\n//slash\n/close nine\n/close 4001 so long\n"
    done = fabric("connect", server.url, "--commands", stdin=commands)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^> ping\n< pong after [\d.]+ [µm]s$", done.stdout, re.MULTILINE)
    assert "> binary, 2 B: 00 ff" in done.stdout
    assert "> text, 6 B: /slash" in done.stdout
    assert "/binary takes hexadecimal digits" in done.stderr
    assert "/nope is not a command" in done.stderr
    assert "'nine' is not a close code" in done.stderr
    assert "closed by this side with 4001 (private use)" in done.stderr


def test_a_pipe_is_data_unless_asked(server: Server) -> None:
    done = fabric("connect", server.url, "--raw", "--count", "1", stdin="/close\n")
    assert (done.returncode, done.stdout) == (0, "/close\n")


def test_connect_ends_after_as_many_messages_as_wanted(server: Server) -> None:
    done = fabric("connect", server.url, "--raw", "--count", "3", "-q", stdin="a\nb\nc\nd\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\nb\nc\n", "")


def test_connect_tells_events_as_json(server: Server) -> None:
    done = fabric("connect", server.url, "--json", "--count", "1", stdin="hi\n")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["connected", "sent", "received", "closed"]
    assert events[2]["data"] == "hi"
    assert events[3]["code"] == 1000


def test_an_endless_pipe_is_read_no_faster_than_sent(server: Server) -> None:
    line = f"yes | {sys.executable} -m fabric connect {server.url} | head -n 3"
    done = subprocess.run(
        line, shell=True, check=False, capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=TIMEOUT
    )
    assert len(done.stdout.splitlines()) == 3
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_connect_at_a_terminal(server: Server) -> None:
    """Somebody types: the prompt_toolkit editor is off, lines come through a terminal."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*FABRIC, "connect", server.url],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=ENVIRONMENT,
        )
        os.write(ours, b"/ping\nhello\n")
        assert process.stdout is not None
        said = "".join(process.stdout.readline() for _ in range(4))
        assert "< pong after" in said
        assert "< text, 5 B: hello" in said
        os.write(ours, b"\x04")  # Ctrl-D
        _, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, err
        assert "closed by this side with 1000" in err
    finally:
        os.close(theirs)
        os.close(ours)


def test_connect_with_the_line_editor(server: Server) -> None:
    """With the extra `cli`, what arrives is written above the line being edited."""
    pytest.importorskip("prompt_toolkit")
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*FABRIC, "connect", server.url],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**ENVIRONMENT, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            start_new_session=True,
        )
        os.close(theirs)  # from here on, reading fails when the process has ended
        editing = b"\x1b[?2004h"  # the editor asks for bracketed pastes, and reads what is typed from now on
        said = b""
        while b"connected to" not in said or editing not in said:
            said += os.read(ours, 4096)
        os.write(ours, b"hello\r")
        while editing not in said.partition(b"< text, 5 B: hello")[2]:
            said += os.read(ours, 4096)
        os.write(ours, b"\x04")  # Ctrl-D
        while b"closed by this side with 1000" not in said:
            said += os.read(ours, 4096)
        assert process.wait(TIMEOUT) == 0
    finally:
        os.close(ours)


def test_connect_is_interrupted_with_130(server: Server) -> None:
    process = subprocess.Popen(
        [*FABRIC, "connect", server.url, "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["connect", "bench"])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_interrupted_while_it_connects(command: str, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(TIMEOUT)
        url = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/"
        process = subprocess.Popen(
            [*FABRIC, command, url, "--timeout", "100"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            env=ENVIRONMENT,
        )
        with process, listening.accept()[0] as accepted:
            accepted.settimeout(TIMEOUT)
            assert accepted.recv(1)  # of the request, or of the TLS handshake, which nobody answers
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["connect", "bench"])
def test_no_connection_is_a_sentence(command: str) -> None:
    done = fabric(command, "ws://127.0.0.1:1/", "--timeout", "2")
    assert done.returncode == 1
    assert done.stderr.startswith(f"fabric {command}: ")
    assert done.stderr.count("\n") == 1


def test_what_a_server_says_instead_of_upgrading_is_shown(server: Server) -> None:
    done = fabric("connect", f"{server.url}health")
    assert done.returncode == 1
    assert "200" in done.stderr
    assert "  ok\n" in done.stderr
    assert "Traceback" not in done.stderr


# bench


def test_bench_reports(server: Server) -> None:
    done = fabric("bench", server.url, "-t", "300ms", "--warmup", "50ms", "--depth", "8")
    assert done.returncode == 0, done.stderr
    assert "1 connection, closed loop, 8 in flight on each, 32 B of binary" in done.stdout
    assert re.search(r"^[\d,]+ messages/s, .*/s each way$", done.stdout, re.MULTILINE)
    assert "▲" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_bench_as_json_with_a_distribution(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "latency.hgrm"
    line = [
        "-t",
        "300ms",
        "--warmup",
        "50ms",
        "--size",
        "1k",
        "--text",
        "-c",
        "3",
        "--json",
        "--hgrm",
        str(file),
    ]
    done = fabric("bench", server.url, *line)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (result,) = report["servers"]
    assert report["mode"] == "closed"
    assert (report["connections"], report["depth"], report["size"], report["type"]) == (3, 1, 1024, "text")
    assert report["ratio"] is None
    assert result["messages"] == result["latency_us"]["count"] > 10
    assert result["messages_per_second"] == pytest.approx(result["messages"] / result["seconds"])
    assert Histogram.decode(result["histogram_ns"]).count == result["messages"]
    text = file.read_text()
    assert text.split()[:3] == ["Value", "Percentile", "TotalCount"]
    assert "#[Mean" in text


def test_bench_in_an_open_loop_keeps_its_rate(server: Server) -> None:
    done = fabric("bench", server.url, "-t", "1", "--warmup", "50ms", "--rate", "500", "-c", "5", "--json")
    report = json.loads(done.stdout)
    (result,) = report["servers"]
    assert report["mode"] == "open"
    assert result["messages"] == 500
    assert result["unanswered"] == 0
    assert result["latency_since_sent_us"]["count"] == 500
    assert result["latency_us"]["p50"] >= result["latency_since_sent_us"]["p50"] * 0.99


def test_bench_compares_two(server: Server, tmp_path: Path) -> None:
    other = Server()
    try:
        line = ["-t", "400ms", "--warmup", "50ms", "--rounds", "4", "--hgrm", str(tmp_path / "x.hgrm")]
        done = fabric("bench", server.url, other.url, *line)
        assert done.returncode == 0, done.stderr
        assert f"A  {server.url}" in done.stdout
        assert f"B  {other.url}" in done.stdout
        for what in ("throughput", "p50", "p99"):
            found = re.search(
                rf"^{what} +([\d.]+)   middle half ([\d.]+) – ([\d.]+),   all ([\d.]+) – ([\d.]+)$",
                done.stdout,
                re.MULTILINE,
            )
            assert found, done.stdout
            median, lower, upper, low, high = map(float, found.groups())
            assert low <= lower <= median <= upper <= high
        assert {path.name for path in tmp_path.iterdir()} == {"x-a.hgrm", "x-b.hgrm"}
    finally:
        other.stop()
        other.process.communicate()


@pytest.mark.parametrize(("mode", "said"), [("--discard", "does not echo: no answer within 0.3 s"), ("--echo", None)])
def test_bench_needs_an_echo(mode: str, said: str | None) -> None:
    running = Server(mode)
    try:
        done = fabric("bench", running.url, "-t", "100ms", "--warmup", "50ms", "--timeout", "300ms")
        assert done.returncode == (1 if said else 0)
        assert said is None or said in done.stderr
    finally:
        running.stop()
        running.process.communicate()


def test_a_server_that_goes_away_while_measured_is_a_sentence(server: Server) -> None:
    process = subprocess.Popen(
        [*FABRIC, "bench", server.url, "-t", "30", "--warmup", "100ms"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=ENVIRONMENT,
    )
    for line in process.stderr:  # type: ignore[union-attr]
        if "msg/s" in line:  # it measures
            break
    server.stop()
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "fabric bench: the server closed the connection with 1001" in err
    assert "Traceback" not in err


# Streams that are closed, and Ctrl-C at an odd moment


ENDS: dict[str, tuple[int, list[str]]] = {
    "demo": (0, ["--duration", "100ms", "--clients", "2"]),
    "serve": (0, ["--bind", "127.0.0.1:0", "--duration", "100ms"]),
    "connect": (1, ["ws://127.0.0.1:1/"]),
    "bench": (1, ["ws://127.0.0.1:1/"]),
}
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("command", ENDS)
def test_streams_may_be_closed(command: str, closed: str) -> None:
    code, arguments = ENDS[command]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *FABRIC, command, *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env=ENVIRONMENT,
        timeout=TIMEOUT,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("closed", CLOSED)
def test_connect_with_closed_streams(server: Server, closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *FABRIC, "connect", server.url, "--linger", "100ms"],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env=ENVIRONMENT,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


INTERRUPT_AT_IMPORT = """
import signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "{}":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "module",
    ["asyncio", "picows", "fabric_ext.session", "fabric.error", "fabric.cli.main", "fabric.cli.bench", "uvloop"],
)
def test_an_interruption_while_it_is_imported_is_quiet(tmp_path: Path, module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT_AT_IMPORT.format(module))
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = fabric("serve", "--bind", "127.0.0.1:0", "--duration", "100ms", PYTHONPATH=path)
    assert done.returncode == 130
    assert (done.stdout, done.stderr) == ("", "")
