"""Workers, as programs: processes that are killed, replaced, and told to end; what clients and operators see of it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import json
import os
import re
import signal
import socket
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fabric import ConnectionClosed, ConnectionFailed, WebSocketClient
from fabric.broker.embedded import find_nats_server
from support.pages import ROOT
from support.tls import certificate_file, client_context

Stack = contextlib.AsyncExitStack

pytestmark = [
    pytest.mark.parametrize("loop_factory", ["asyncio"], indirect=True),  # other processes are what is tested
    pytest.mark.deadline(120),  # they start interpreters, on a machine that may stall
]

PROGRAM = """
import asyncio, contextlib, logging, os, signal, sys, time
import fabric
from fabric import ServerConfig, WebSocketServer, workers

async def handler(client):
    await client.send(str(os.getpid()))
    async for message in client:
        if message == "environment":
            message = " ".join(os.environ.values())
        elif message == "broker":
            broker = client.server.topics.broker
            message = broker._where.replace("//", f"//{broker._login['token']}@")
        elif message == "subscribe":
            await client.subscribe("news")
        elif message.text.startswith("publish"):
            await client.server.publish("news", message, exclude=client)
            continue
        await client.send(message)

def main(worker):
    return WebSocketServer(ServerConfig(sock=worker.sockets), handler, broker=worker.broker)

#MORE

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    workers.run(main, N, **{"bind": "127.0.0.1:0", "metrics": "127.0.0.1:0"} | dict(OPTIONS))
    print("returned")
"""


class Program:
    """A program that runs workers. What it logs are the events that the tests wait for."""

    def __init__(self, process: asyncio.subprocess.Process, script: Path, scheme: str) -> None:
        self.process = process
        self.script = script
        self.scheme = scheme
        self.said = ""
        self.port = self.page = 0

    async def until(self, pattern: str) -> re.Match[str]:
        """Read on until a line fits."""
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.said += line.decode()
            if found := re.search(pattern, line.decode()):
                return found
        raise AssertionError(f"no {pattern!r} in:\n{self.said}")

    async def rest(self) -> str:
        """What it says until every process has ended that it has started: each holds its standard error."""
        assert self.process.stderr is not None
        self.said += (await self.process.stderr.read()).decode()
        return self.said

    async def connect(self) -> WebSocketClient:
        tls: dict[str, Any] = {"ssl": client_context()} if self.scheme == "wss" else {}
        url = f"{self.scheme}://127.0.0.1:{self.port}/"
        return await WebSocketClient.connect(url, auto_reconnect=False, connection_timeout=60, **tls)

    async def join(self, stack: Stack) -> tuple[WebSocketClient, int]:
        """A client, and the process that serves it."""
        client = await stack.enter_async_context(await self.connect())
        return client, int(await text(client))

    async def join_each(self, stack: Stack, count: int = 2) -> dict[int, WebSocketClient]:
        """A client of each of so many processes. Which one gets a connection may be chance."""
        found: dict[int, WebSocketClient] = {}
        while len(found) < count:
            client, pid = await self.join(stack)
            found.setdefault(pid, client)
        return found

    async def get(self, path: str) -> tuple[int, str]:
        """What the page about all workers answers."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.page)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        return int(head.split()[1]), body

    async def totals(self) -> dict[str, Any]:
        status, body = await self.get("/metrics.json")
        assert status == 200
        told: dict[str, Any] = json.loads(body)
        return told

    async def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Tell it to end, which goes well and leaves nothing; what it has said."""
        self.process.send_signal(number)
        said = await self.rest()
        assert await self.process.wait() == 0, said
        assert "Traceback" not in said
        assert "is killed" not in said
        return said


async def closed(client: WebSocketClient) -> int | None:
    """The close code, when the connection has ended."""
    with contextlib.suppress(ConnectionClosed):
        while await client.recv() is not None:
            pass
    return client.close_code


async def text(client: WebSocketClient) -> str:
    message = await client.recv()
    assert message is not None
    return message.text


@pytest.fixture
def program(tmp_path: Path, stack: Stack) -> Callable[..., Any]:
    """Starts one; unless `ready` is False, returns when all workers are ready."""

    async def start(
        options: str = "", *, n: int = 2, more: str = "", ready: bool = True, scheme: str = "ws"
    ) -> Program:
        body = PROGRAM.replace("#MORE", textwrap.dedent(more)).replace("OPTIONS", options).replace(", N,", f", {n},")
        script = tmp_path / "program.py"
        script.write_text(body)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            script,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != "FABRIC_EMBEDDED_NATS"}
            | {"PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)],
        )
        started = Program(process, script, scheme)
        stack.push_async_callback(gone, process)
        if ready:
            started.page = int((await started.until(r"listening on \('127.0.0.1', (\d+)\)"))[1])
            started.port = int((await started.until(rf"^{n} workers listen on \('127.0.0.1', (\d+)\)"))[1])
        return started

    return start


async def gone(process: asyncio.subprocess.Process) -> None:
    """End it, if it is still there, as by a second signal; and wait for its workers, but not for ever."""
    with contextlib.suppress(ProcessLookupError):
        for number in (signal.SIGTERM, signal.SIGINT):  # two different ones, as equal ones may count as one
            process.send_signal(number)
    try:
        async with asyncio.timeout(20):
            await process.communicate()
    except TimeoutError:
        process._transport.close()  # which kills it; its workers then end by themselves
        await process.wait()


@pytest.fixture
def nats(require: Callable[[object, str], None]) -> None:
    require(find_nats_server(), 'nats-server is not in PATH: pip install "websocket-fabric[nats-server]" brings it')


# Beginning and end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("balance", ["hash", "least"])
async def test_both_workers_serve_and_end_in_good_order(
    stack: Stack, program: Callable[..., Any], balance: str, number: signal.Signals
) -> None:
    running = await program(f"balance={balance!r}")
    clients = await running.join_each(stack)
    assert running.process.pid not in clients
    for client in clients.values():
        await client.send("hello")
        assert await text(client) == "hello"
    ending = asyncio.create_task(running.end(number))
    for client in clients.values():
        assert await closed(client) == 1001
    await ending
    assert (await running.process.stdout.read()).decode() == "returned\n"
    with pytest.raises(ConnectionFailed):
        await running.connect()


async def test_a_second_signal_ends_it_at_once(stack: Stack, program: Callable[..., Any]) -> None:
    """A handler does not end for its own sake; the timeout is an hour."""
    running = await program(
        "shutdown_timeout=3600",
        n=1,
        more="""
        async def handler(client):
            await client.send(str(os.getpid()))
            try:
                await asyncio.Event().wait()
            finally:
                await client.wait_closed()
        """,
    )
    client, _ = await running.join(stack)
    running.process.send_signal(signal.SIGTERM)
    assert await closed(client) == 1001
    running.process.send_signal(signal.SIGINT)
    await running.rest()
    assert await running.process.wait() == 0


async def test_main_may_be_a_context_manager_or_a_coroutine(stack: Stack, program: Callable[..., Any]) -> None:
    running = await program(
        more="""
        @contextlib.asynccontextmanager
        async def serving(worker):
            print("set up", flush=True)
            async with WebSocketServer(ServerConfig(sock=worker.sockets), handler) as server:
                yield server
            print("torn down", flush=True)

        async def later(worker):
            await asyncio.sleep(0)
            return WebSocketServer(ServerConfig(sock=worker.sockets), handler)

        def main(worker):
            return serving(worker) if worker.number else later(worker)
        """
    )
    await running.join_each(stack)
    await running.end()
    assert (await running.process.stdout.read()).decode() == "set up\ntorn down\nreturned\n"


async def test_a_parent_that_is_killed_leaves_nobody_behind(stack: Stack, program: Callable[..., Any]) -> None:
    running = await program()
    clients = await running.join_each(stack)
    running.process.kill()
    for client in clients.values():
        assert await closed(client) == 1001
    assert "its parent has ended" in await running.rest()  # which ends when the last of them has


# A worker ends, or does not begin.


@pytest.mark.parametrize("balance", ["hash", "least"])
async def test_a_worker_that_is_killed_is_started_again(
    stack: Stack, program: Callable[..., Any], balance: str
) -> None:
    running = await program(f"balance={balance!r}")
    clients = await running.join_each(stack)
    (victim, lost), (survivor, other) = clients.items()
    os.kill(victim, signal.SIGKILL)
    assert (await running.until(rf"worker \d \(process {victim}\) has ended: (.*)"))[1] == "killed by SIGKILL"
    await running.until(r"worker \d \(process \d+\) is ready")
    assert await closed(lost) == 1006
    await other.send("still there")
    assert await text(other) == "still there"
    assert set(await running.join_each(stack)) - {survivor}
    told = await running.totals()
    assert (told["restarts"], told["ready"]) == (1, 2)
    await running.end()


async def test_one_that_fails_to_start_is_tried_so_often(program: Callable[..., Any]) -> None:
    running = await program(
        "max_failures=3",
        ready=False,
        more="""
        def main(worker):
            if worker.number == 1:
                raise LookupError("no such table")
            return WebSocketServer(ServerConfig(sock=worker.sockets), handler)
        """,
    )
    said = await running.rest()
    assert await running.process.wait() == 1
    assert re.findall(r"worker 1 \(process \d+\) failed to start \((\d) of 3\): (.*)", said) == [
        (str(number), "LookupError: no such table") for number in (1, 2, 3)
    ]
    last = "WorkersFailed: worker 1 failed to start, 3 times in a row: LookupError: no such table"
    assert said.rstrip().endswith(last)


async def test_one_that_is_never_ready_is_killed(program: Callable[..., Any]) -> None:
    running = await program(
        "max_failures=1, start_timeout=3",
        n=1,
        ready=False,
        more="""
        def main(worker):
            time.sleep(3600)
        """,
    )
    said = await running.rest()
    assert await running.process.wait() == 1
    assert "WorkersFailed: worker 0 failed to start, 1 times in a row: not ready within 3 s" in said


async def test_a_process_that_the_system_does_not_start_is_a_failed_start(
    stack: Stack, program: Callable[..., Any]
) -> None:
    """Once in the place of a worker that has ended, and once at a replacement."""
    running = await program(
        n=1,
        more="""
        if __name__ == "__main__":
            import errno, subprocess
            answers = iter([True, False, True, False, True])
            class Popen(subprocess.Popen):
                def __init__(self, *args, **options):
                    if not next(answers):
                        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                    super().__init__(*args, **options)
            subprocess.Popen = Popen
        """,
    )
    _, victim = await running.join(stack)
    os.kill(victim, signal.SIGKILL)
    cause = f": the system starts no process: {os.strerror(errno.EAGAIN)}"
    await running.until(rf"worker 0 \(no process\) failed to start \(1 of 5\){cause}")
    await running.until(r"worker 0 \(process \d+\) is ready")
    client, _ = await running.join(stack)
    running.process.send_signal(signal.SIGHUP)
    await running.until(rf"is not replaced, .* failed to start{cause}")
    await client.send("hello")
    assert await text(client) == "hello"
    running.process.send_signal(signal.SIGHUP)
    await running.until("all workers have been replaced")
    await running.end()


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        ("if __name__ != '__main__': import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("if __name__ != '__main__': del main", "AttributeError: .*main"),
        ("if __name__ != '__main__': sys.exit(7)", "main cannot be imported: SystemExit: 7"),
        ("def main(worker): os._exit(7)", "exit status 7"),
        ("def main(worker): os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("def main(worker): return 1", r"TypeError: main\(worker\) returned int, not a WebSocketServer"),
        ("workers.run(main, 2, bind='127.0.0.1:0', max_failures=1)", "InvalidState: .*below `if __name__"),
    ],
)
async def test_the_cause_is_named(program: Callable[..., Any], more: str, cause: str) -> None:
    running = await program("max_failures=1", n=1, ready=False, more=more)
    said = await running.rest()
    assert await running.process.wait() == 1
    assert re.search(rf"WorkersFailed: worker \d failed to start, 1 times in a row: .*{cause}", said), said


# Replacement.


@pytest.mark.parametrize("balance", ["hash", "least", "tls"])
async def test_nobody_is_refused_while_workers_are_replaced(
    stack: Stack, program: Callable[..., Any], tmp_path: Path, balance: str
) -> None:
    """Clients that come at any moment are served; the old ones are told 1012."""
    more, scheme = "", "ws"
    if balance == "tls":
        balance, scheme = "least", "wss"
        more = f"""
        import ssl
        def main(worker):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain({str(certificate_file(tmp_path))!r})
            return WebSocketServer(ServerConfig(sock=worker.sockets, ssl=context), handler)
        """
    running = await program(f"balance={balance!r}", more=more, scheme=scheme)
    old = await running.join_each(stack)
    is_over = False

    async def come_and_go() -> set[int]:
        seen = set()
        while not is_over:
            client = await running.connect()
            try:
                seen.add(int(await text(client)))
                await client.close()
            except ConnectionClosed as error:  # it came just before its worker was replaced
                assert error.code == 1012  # noqa: PT017
        return seen

    coming = [asyncio.create_task(come_and_go()) for _ in range(4)]
    running.process.send_signal(signal.SIGHUP)
    await running.until("all workers have been replaced")
    for client in old.values():
        assert await closed(client) == 1012
    is_over = True
    seen = set().union(*await asyncio.gather(*coming))
    assert seen - set(old)
    new = await running.join_each(stack)
    assert not set(new) & set(old)
    await running.end()


async def test_old_connections_may_go_on_for_a_while(stack: Stack, program: Callable[..., Any]) -> None:
    running = await program("drain=3600, shutdown_timeout=3600", n=1)
    client, old = await running.join(stack)
    running.process.send_signal(signal.SIGHUP)
    await running.until("all workers have been replaced")
    while (late := await running.join(stack))[1] == old:  # it may be about to take no more
        await late[0].close()  # else it waits for this one too
    await client.send("still here")
    assert await text(client) == "still here"
    await client.close()
    await running.until(rf"worker 0 \(process {old}\) has ended")
    await running.end()


async def test_a_new_one_that_crashes_while_the_old_one_drains(stack: Stack, program: Callable[..., Any]) -> None:
    """It is started again, although the old process is there for an hour."""
    running = await program("drain=3600", n=1)
    client, _ = await running.join(stack)
    running.process.send_signal(signal.SIGHUP)
    victim = int((await running.until(r"worker 0 \(process (\d+)\) is ready"))[1])
    await running.until("all workers have been replaced")
    os.kill(victim, signal.SIGKILL)
    await running.until(rf"worker 0 \(process {victim}\) has ended: killed by SIGKILL")
    new = int((await running.until(r"worker 0 \(process (\d+)\) is ready"))[1])
    while (await running.join(stack))[1] != new:  # the old one may be about to take no more
        pass
    await client.send("still here")
    assert await text(client) == "still here"
    await running.end()


async def test_the_end_does_not_wait_for_those_that_are_replaced(stack: Stack, program: Callable[..., Any]) -> None:
    running = await program("drain=3600", n=1)
    client, _ = await running.join(stack)
    running.process.send_signal(signal.SIGHUP)
    await running.until("all workers have been replaced")
    ending = asyncio.create_task(running.end())
    assert await closed(client) == 1001
    await ending


async def test_a_replacement_that_fails_leaves_the_old_one(stack: Stack, program: Callable[..., Any]) -> None:
    running = await program()
    clients = await running.join_each(stack)
    good = running.script.read_text()
    running.script.write_text(good.replace("def main(worker):", "def main(worker):\n    raise LookupError('worse')\n"))
    running.process.send_signal(signal.SIGHUP)
    assert (await running.until("is not replaced, .* failed to start: (.*)"))[1] == "LookupError: worse"
    for client in clients.values():
        await client.send("hello")
        assert await text(client) == "hello"
    running.script.write_text(good)
    running.process.send_signal(signal.SIGHUP)
    await running.until("all workers have been replaced")
    for client in clients.values():
        assert await closed(client) == 1012
    running.process.send_signal(signal.SIGTERM)
    await running.rest()
    assert await running.process.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors of another process are counted by /proc")
@pytest.mark.parametrize("balance", ["hash", "least"])
async def test_the_parent_keeps_no_descriptors(stack: Stack, program: Callable[..., Any], balance: str) -> None:
    running = await program(f"balance={balance!r}")
    await running.totals()

    def count() -> int:
        return len(os.listdir(f"/proc/{running.process.pid}/fd"))

    before = count()
    pids = set(await running.join_each(stack))
    for _ in range(2):
        running.process.send_signal(signal.SIGHUP)
        for _ in range(2):
            await running.until(r"worker \d \(process \d+\) has ended")
        pids = set(await running.join_each(stack))
    os.kill(pids.pop(), signal.SIGKILL)
    await running.until(r"worker \d \(process \d+\) is ready")
    while count() > before:  # a descriptor or two may be about to be closed
        await asyncio.sleep(0.01)
    await running.end()


# Shares.


async def test_equal_shares(stack: Stack, program: Callable[..., Any]) -> None:
    running = await program("balance='least'", n=3)
    shares = collections.Counter([(await running.join(stack))[1] for _ in range(12)])
    assert list(shares.values()) == [4, 4, 4]
    await running.end()


async def test_on_a_path(stack: Stack, program: Callable[..., Any], tmp_path: Path) -> None:
    """All share its socket; it is removed in the end."""
    path = tmp_path / "socket"
    running = await program(f"bind='unix:{path}'", ready=False)
    await running.until("2 workers listen on")
    for _ in range(4):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        client = await stack.enter_async_context(
            WebSocketClient.connect("ws://localhost/", sock=sock, auto_reconnect=False)
        )
        assert int(await text(client)) != running.process.pid
    await running.end()
    assert not path.exists()


# What there is to see.


async def test_one_page_for_all(stack: Stack, program: Callable[..., Any]) -> None:
    running = await program()
    assert await running.get("/health") == (200, "2 of 2 workers are ready\n")
    clients = await running.join_each(stack)
    for client in clients.values():
        await client.send("hello")
        assert await text(client) == "hello"
        await client.ping()
    while (told := await running.totals())["total"]["messages_received"] < 2:
        pass  # a worker that answers late is in the next totals
    assert {worker["pid"] for worker in told["workers"]} == set(clients)
    assert {worker["state"] for worker in told["workers"]} == {"ready"}
    assert all(worker["memory"] > 0 for worker in told["workers"])
    total = told["total"]
    assert total["messages_received"] == 2
    assert total["active_connections"] == sum(worker["connections"] for worker in told["workers"])
    assert total["handshake_us"]["count"] == total["total_connections"] >= 2
    sent = total["messages_sent"]

    status, text_of_metrics = await running.get("/metrics")
    assert status == 200
    assert re.search(r"^fabric_messages_received_total 2\.0$", text_of_metrics, re.M)
    assert re.search(r"^fabric_workers_ready 2$", text_of_metrics, re.M)

    victim = next(iter(clients))
    os.kill(victim, signal.SIGKILL)
    await running.until(r"worker \d \(process \d+\) is ready")
    after = await running.totals()
    assert after["total"]["messages_received"] == 2  # no counter goes back
    assert after["total"]["messages_sent"] >= sent
    assert re.search(r"^fabric_worker_restarts_total 1$", (await running.get("/metrics"))[1], re.M)
    await running.end()


async def test_one_dashboard_for_all(stack: Stack, program: Callable[..., Any]) -> None:
    running = await program()
    clients = await running.join_each(stack)
    status, page = await running.get("/dashboard")
    assert (status, "<html" in page.lower()) == (200, True)
    feed = await stack.enter_async_context(
        WebSocketClient.connect(f"ws://127.0.0.1:{running.page}/dashboard/feed", auto_reconnect=False)
    )
    hello = json.loads(await text(feed))
    assert "history" in hello
    while (sample := json.loads(await text(feed)))["connections"] < len(clients):
        pass
    assert sample["memory"] > 0
    assert sample["listed"] is None
    refused = await WebSocketClient.connect(f"ws://127.0.0.1:{running.page}/", auto_reconnect=False)
    assert await closed(refused) == 1008
    await feed.close()
    await running.end()


# The broker that they share.


async def test_topics_reach_the_clients_of_all(nats: None, stack: Stack, program: Callable[..., Any]) -> None:
    running = await program("broker='nats:embedded'")
    clients = await running.join_each(stack)
    one, other = clients.values()
    for client in (one, other):
        await client.send("subscribe")
        assert await text(client) == "subscribe"
    await one.send("publish 1")
    assert await text(other) == "publish 1"
    await other.send("publish 2")
    assert await text(one) == "publish 2"

    await one.send("broker")
    token = re.match("nats://(.*)@127.0.0.1", await text(one))
    assert token is not None
    await one.send("environment")  # which its own children would inherit
    assert token[1] not in await text(one)
    if sys.platform == "linux":
        for pid in (running.process.pid, *clients):
            for what in ("cmdline", "environ"):
                assert token[1].encode() not in Path(f"/proc/{pid}/{what}").read_bytes()  # noqa: ASYNC240
    said = await running.end()
    assert token[1] not in said


async def test_the_broker_ends_with_a_parent_that_is_killed(
    nats: None, stack: Stack, program: Callable[..., Any]
) -> None:
    running = await program("broker='nats:embedded'", n=1)
    client, _ = await running.join(stack)
    await client.send("broker")
    port = int((await text(client)).rpartition(":")[2])
    running.process.kill()
    await running.rest()
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            break
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await asyncio.sleep(0.01)


# The address is in use.


async def test_an_address_in_use(program: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        running = await program(f"bind='127.0.0.1:{port}'", ready=False)
        said = await running.rest()
    assert await running.process.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said
