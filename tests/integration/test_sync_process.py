"""A client without an event loop, and what may befall its process: signals, forks, the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

import fabric._connection.base
import fabric._sync.keeper
import fabric._sync.loop
import fabric.client
import fabric.sync
from fabric._sync.keeper import keeper
from fabric.error import ConnectionClosed, InvalidState, Timeout
from fabric.sync import SyncClient, connect
from fabric_ext.protocol import State
from integration.test_fork import child
from integration.test_sync import start, there, until, url
from support.interruption import interrupted
from support.serving import Held
from support.threads import DEADLINE, Caller, Elsewhere

__all__ = ["there"]

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Interrupted(KeyboardInterrupt):
    """What Ctrl-C raises, and nothing else does."""


@contextlib.contextmanager
def signals(handler: Callable[[], object]) -> Iterator[Callable[[Callable[[], object]], Caller]]:
    """`send(when)` has a thread send signals, once `when` is true, until `handler` was called, once."""
    called = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if not called.is_set():
            called.set()
            handler()

    def send(when: Callable[[], object]) -> None:
        until(when)
        while not called.wait(0.001):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield lambda when: Caller(send, when)
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupt() -> None:
    raise Interrupted


@pytest.mark.parametrize("busy_poll", [0, 3600])
def test_an_interrupted_recv_leaves_the_client_usable(there: Elsewhere, busy_poll: float) -> None:
    held = Held()
    with connect(url(start(there, held)), busy_poll=busy_poll) as client, signals(interrupt) as send:
        peer = there(held.next())
        sender = send(lambda: client._is_awaited)
        with pytest.raises(Interrupted):
            client.recv()
        sender.result()
        there(peer.send("x"))
        assert client.recv(DEADLINE) == "x"


def test_a_signal_handler_may_use_the_client(there: Elsewhere) -> None:
    def handler() -> None:
        client.send("from the handler")
        client.ping(timeout=DEADLINE)
        with pytest.raises(InvalidState):
            client.recv(0)

    with connect(url(start(there))) as client, signals(handler) as send:
        sender = send(lambda: client._is_awaited)
        assert client.recv() == "from the handler"
        sender.result()


def test_a_signal_handler_may_close(there: Elsewhere) -> None:
    client = connect(url(start(there)))
    with signals(client.close) as send:
        sender = send(lambda: client._is_awaited)
        assert client.recv() is None
        sender.result()
    assert client.state is State.CLOSED
    client.close()


def test_an_interrupted_close_drops_the_connection(there: Elsewhere) -> None:
    held = Held()
    client = connect(url(start(there, held)), close_timeout=DEADLINE)
    peer = there(held.next())

    async def pause() -> None:
        peer._session_now.io.pause_reading()

    there(pause())
    with signals(interrupt) as send:
        sender = send(lambda: client.state is State.CLOSING)
        with pytest.raises(Interrupted):
            client.close()
        sender.result()
    assert client.state is State.CLOSED
    assert client.close_code == 1006
    there.loop.call_soon_threadsafe(peer._abort)


def test_an_interrupted_connect_leaves_nothing(there: Elsewhere) -> None:
    began = threading.Event()

    async def wait(request: object) -> None:
        began.set()
        await asyncio.sleep(3600)

    server = start(there, process_request=wait, handshake_timeout=3600)
    with signals(interrupt) as send:
        sender = send(began.is_set)
        with pytest.raises(Interrupted):
            connect(url(server), connection_timeout=3600)
        sender.result()


MODULES = (
    asyncio.base_events,
    asyncio.selector_events,
    fabric.sync,
    fabric._sync.loop,
    fabric._sync.keeper,
    fabric.client,
    fabric._connection.base,
)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def cycle(client: SyncClient) -> None:
    client.send("a")
    client.send_parts(["b", "c"])
    with client.cork():
        client.send("d")
    client.send_many(["e", "f"])
    client.flush()
    client.ping(timeout=DEADLINE)
    list(client.recv_stream())
    for _ in range(3):
        client.recv(DEADLINE)
    client.recv_many(timeout=DEADLINE)
    with contextlib.suppress(Timeout):
        client.recv(0)


def probe(client: SyncClient) -> None:
    client.send("probe")
    while (message := client.recv(DEADLINE)) is not None and message != "probe":
        pass


# A coroutine that was made, and then not begun; a client that was made, and then not returned.
unfinished = pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@unfinished
def test_an_interruption_anywhere_leaves_the_client_usable_or_closed(there: Elsewhere, rng: random.Random) -> None:
    server = start(there)
    at, reached = rng.randint(1, 40), True
    while reached:
        client = connect(url(server), auto_reconnect=False, close_timeout=1)
        with contextlib.suppress(KeyboardInterrupt):
            reached = interrupted(lambda client=client: cycle(client), ctrl_c, at, *MODULES)
        with contextlib.suppress(ConnectionClosed):
            probe(client)
        client.close()
        assert client.state is State.CLOSED
        at += rng.randint(20, 60)
    gc.collect()


def interrupted_in_weak_reference(call: Callable[[], object], number: int) -> bool:
    """Have Ctrl-C come when for the time `number` in `call` a weak reference in a WeakSet tells of an end: asyncio has
    such of its tasks, before Python 3.14. Return whether there were so many.
    """
    ends = 0

    def at_call(frame: FrameType, event: str, _: object) -> None:
        nonlocal ends
        if event == "call" and frame.f_code.co_name == "_remove" and "_weakrefset" in frame.f_code.co_filename:
            ends += 1
            if ends == number:
                ctrl_c()

    raised = False
    sys.setprofile(at_call)
    try:
        call()
    except KeyboardInterrupt:
        raised = True
    finally:
        sys.setprofile(None)
    assert raised == (ends >= number), "Python prints what is raised in there, and goes on"
    return raised


@pytest.mark.parametrize("name", ["ping", "send_parts", "recv_stream"])
def test_ctrl_c_is_not_lost_where_a_task_ends(there: Elsewhere, name: str) -> None:
    def receive(client: SyncClient) -> None:
        client.send("x")
        list(client.recv_stream())

    calls = {"ping": SyncClient.ping, "send_parts": lambda client: client.send_parts(["a"]), "recv_stream": receive}
    with connect(url(start(there)), auto_reconnect=False) as client:
        number = 1
        while interrupted_in_weak_reference(lambda: calls[name](client), number):
            number += 1


@unfinished
def test_a_connect_that_is_interrupted_anywhere_leaves_nothing(there: Elsewhere, rng: random.Random) -> None:
    server = start(there)
    clients: list[SyncClient] = []

    def open_one() -> None:
        clients.append(connect(url(server), auto_reconnect=False, close_timeout=1))

    at, reached = rng.randint(1, 40), True
    while reached:
        with contextlib.suppress(KeyboardInterrupt):
            reached = interrupted(open_one, ctrl_c, at, *MODULES)
        for client in clients:
            client.close()
        clients.clear()
        at += rng.randint(60, 180)
    gc.collect()
    until(lambda: not keeper._drivers)


@unfinished
def test_a_close_that_is_interrupted_anywhere_has_closed_or_done_nothing(there: Elsewhere, rng: random.Random) -> None:
    server = start(there)
    at, reached = rng.randint(1, 60), True
    while reached:
        client = connect(url(server), auto_reconnect=False, close_timeout=1)
        with contextlib.suppress(KeyboardInterrupt):
            reached = interrupted(client.close, ctrl_c, at, *MODULES)
        if client.state is not State.CLOSED:
            probe(client)
            client.close()
        assert client.state is State.CLOSED
        assert not keeper._drivers
        at += rng.randint(30, 90)
    gc.collect()


def test_a_cork_that_is_interrupted_anywhere_is_off(there: Elsewhere) -> None:
    def corked() -> None:
        with client.cork():
            client.send("x")

    with connect(url(start(there)), auto_reconnect=False) as client:
        at, reached = 1, True
        while reached:
            with contextlib.suppress(KeyboardInterrupt):
                reached = interrupted(corked, ctrl_c, at, contextlib, *MODULES)
            probe(client)
            at += 1


@unfinished
def test_who_wakes_the_thread_that_waits_may_be_interrupted(there: Elsewhere) -> None:
    """The next one that needs it wakes it as well."""
    with connect(url(start(there)), auto_reconnect=False) as client:
        receiver = Caller(client.recv)
        until(lambda: client._is_awaited)
        at, reached = 1, True
        while reached:
            with contextlib.suppress(KeyboardInterrupt):
                reached = interrupted(lambda: client.ping(timeout=DEADLINE), ctrl_c, at, *MODULES)
            client.ping(timeout=DEADLINE)
            at += 1
        client.send("end")
        assert receiver.result() == "end"


def test_a_child_has_nothing_of_it(there: Elsewhere) -> None:
    held = Held()
    client = connect(url(start(there, held)), auto_reconnect=False)
    peer = there(held.next())
    with child():
        there(peer.send("still there"))
        assert client.recv(DEADLINE) == "still there"
        client.close()
        there(peer.wait_closed())


# Programs.

SERVER = """
    import asyncio, os, sys, threading
    import fabric
    from fabric.server import WebSocketServer

    async def echo(client):
        async for message in client:
            await client.send(message)

    started = threading.Event()

    def serve():
        async def main():
            global port
            server = WebSocketServer.bind("127.0.0.1:0", echo)
            await server.start()
            port = server.port
            started.set()
            await asyncio.Future()
        asyncio.run(main())

    def connect(**options):
        return fabric.sync.connect(f"ws://127.0.0.1:{port}/", **options)

    threading.Thread(target=serve, daemon=True).start()
    started.wait()
"""


def run(program: str) -> str:
    """Run a program; return what it prints. It must end by itself, with status 0 and without a word of error."""
    text = textwrap.dedent(SERVER) + textwrap.dedent(program)
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", text],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def test_a_process_ends_though_a_client_was_not_closed() -> None:
    assert run("client = connect(); client.send('x'); print(client.recv().text)") == "x\n"


def test_a_process_ends_though_a_daemon_thread_waits() -> None:
    program = """
        client = connect()
        other = connect(busy_poll=3600)
        threading.Thread(target=client.recv, daemon=True).start()
        threading.Thread(target=other.recv, daemon=True).start()
        client.ping()
        other.ping()
        print("ends")
    """
    assert run(program) == "ends\n"


def test_a_process_ends_in_the_midst_of_a_reconnection() -> None:
    program = """
        import logging
        logging.disable()
        client = connect(on_disconnect=lambda client, error: lost.set())
        lost = threading.Event()
        import socket
        socket.socket(fileno=os.dup(client._connection._descriptors()[0])).shutdown(socket.SHUT_RDWR)
        lost.wait()
        print("ends")
    """
    assert run(program) == "ends\n"


def test_a_child_may_connect_by_itself_and_gets_errors_from_what_is_the_parents() -> None:
    program = """
        from fabric import InvalidState
        client = connect()
        client.send("before")
        number = os.fork()
        if not number:
            for call in (client.recv, client.ping, lambda: client.send("x")):
                try:
                    call()
                except InvalidState as error:
                    assert "parent" in str(error), error
                else:
                    raise AssertionError("it did not raise")
            client.close()
            with connect() as own:
                own.send("of the child")
                assert own.recv(30) == "of the child"
            del client
            sys.exit(0)
        _, status = os.waitpid(number, 0)
        assert client.recv(30) == "before"
        client.send("after")
        print(client.recv(30).text, status)
        client.close()
    """
    assert run(program) == "after 0\n"


def test_multiprocessing_children_end() -> None:
    program = """
        import multiprocessing
        def work():
            pass
        client = connect()
        waiting = threading.Thread(target=client.recv)
        waiting.start()
        client.ping()
        for _ in range(3):
            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            process.join(30)
            assert process.exitcode == 0
        client.close()
        waiting.join()
        print("ends")
    """
    assert run(program) == "ends\n"
