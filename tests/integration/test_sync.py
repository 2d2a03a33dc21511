"""A client without an event loop: sending, receiving, threads, callbacks, and its ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

import fabric
from conftest import descriptors
from fabric._sync.keeper import Keeper, Watch, keeper
from fabric._sync.loop import SteppedLoop
from fabric.config import BackpressureConfig, ClientConfig, HeartbeatConfig, ReconnectConfig
from fabric.error import ConnectionClosed, ConnectionFailed, InvalidState, ReconnectTimeout, Timeout
from fabric.message import Frame, Message
from fabric.sync import SyncClient, connect
from fabric_ext.driver import Driver
from fabric_ext.protocol import State
from integration.raw import RawServer, Visit
from support.frames import CLOSE, TEXT, encode
from support.ports import reserved_port
from support.serving import Held, Recorder, echo, serve
from support.threads import DEADLINE, Caller, Elsewhere, another_loop

QUICK = ReconnectConfig(initial_delay=0.001, max_delay=0.001, jitter=0)


@pytest.fixture
def there() -> Iterator[Elsewhere]:
    """The loop of the servers. Afterwards nothing of the clients is left."""
    before = descriptors()
    with another_loop() as elsewhere:
        yield elsewhere
    gc.collect()
    assert not keeper._drivers, "a client was not closed"
    for thread in threading.enumerate():
        if thread.name == "fabric.sync":
            thread.join(DEADLINE)  # a close() that was interrupted has not waited for it
    left = sorted(set(descriptors().items()) - set(before.items()))
    assert not left, "descriptors are still open"


def start(there: Elsewhere, handler: Any = echo, **options: Any) -> Any:
    return there(serve(there.stack, handler, **options))


def url(server: Any, scheme: str = "ws") -> str:
    return f"{scheme}://127.0.0.1:{server.port}/"


def until(condition: Any) -> None:
    """Wait for what no event tells of."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.001)


# Sending and receiving.


def test_messages_come_back(there: Elsewhere) -> None:
    with connect(url(start(there))) as client:
        client.send("text")
        client.send_binary(b"\x00\x01")
        client.send_json({"a": [1, 2]})
        client.send(Message("message"))
        assert client.recv() == "text"
        assert client.recv() == b"\x00\x01"
        message = client.recv(timeout=DEADLINE)
        assert message is not None
        assert message.parse_json(dict[str, list[int]]) == {"a": [1, 2]}
        assert client.recv(timeout=timedelta(seconds=DEADLINE)) == "message"
    assert client.state is State.CLOSED
    assert client.close_code == 1000


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 3_000_000])
def test_messages_of_all_sizes_come_back(there: Elsewhere, size: int) -> None:
    with connect(url(start(there))) as client:
        client.send(bytes(size))
        assert client.recv(DEADLINE) == bytes(size)


def test_many_messages_keep_their_order(there: Elsewhere) -> None:
    with connect(url(start(there))) as client:
        client.send_many(str(number) for number in range(1000))
        assert [client.recv(DEADLINE) for _ in range(1000)] == [str(number) for number in range(1000)]


def test_answers_to_pipelined_messages_keep_their_order(there: Elsewhere) -> None:
    async def greet(client: Any) -> None:
        await client.send_many(str(number) for number in range(200))
        for number in range(200):
            assert await client.recv() == f"re {number}"
        await client.close()

    with connect(url(start(there, greet))) as client:
        for message in client:
            client.send(f"re {message.as_text()}")
    assert client.close_code == 1000


def test_several_are_received_at_once(there: Elsewhere) -> None:
    async def greet(client: Any) -> None:
        await client.send_many(["a", "b", "c"])
        await client.wait_closed()

    with connect(url(start(there, greet))) as client:
        got: list[Message] = []
        while len(got) < 3:
            got += client.recv_many(2)
        assert got == ["a", "b", "c"]
        with pytest.raises(ValueError, match="limit"):
            client.recv_many(0)


def test_a_second_message_leaves_at_once(there: Elsewhere) -> None:
    """No loop has a turn that would end: nothing that was sent may wait for the next call."""
    recorder = Recorder()
    client = connect(url(start(there, recorder)))
    with client:
        for number in range(100):
            client.send(str(number))
        until(lambda: len(recorder.messages) == 100)


def test_parts_are_one_message(there: Elsewhere) -> None:
    with connect(url(start(there))) as client:
        client.send_parts(["a", "b", "c"])
        client.send(part for part in ("d", "e"))
        client.send_parts([])
        assert client.recv(DEADLINE) == "abc"
        assert client.recv(DEADLINE) == "de"


def test_a_part_leaves_before_the_last_is_there(there: Elsewhere) -> None:
    async def stream(peer: Any) -> None:
        async for part in peer.recv_stream():
            got.append(part)
        await peer.close()

    def parts() -> Iterator[str]:
        yield "a"
        yield "b"
        until(lambda: got == ["a"])
        yield "c"

    got: list[Any] = []
    with connect(url(start(there, stream))) as client:
        client.send_parts(parts())
        assert client.recv() is None
    assert "".join(got) == "abc"


def test_parts_that_raise_end_the_connection(there: Elsewhere) -> None:
    def parts() -> Iterator[Any]:
        yield "a"
        yield "b"
        raise LookupError("no more")

    with connect(url(start(there)), auto_reconnect=False) as client:
        with pytest.raises(LookupError):
            client.send_parts(parts())
        client.wait_closed(DEADLINE)
        assert client.close_code == 1011
        with pytest.raises(ConnectionClosed):
            client.send("x")


@pytest.mark.parametrize("more", [["c"], []], ids=["before-another-part", "before-the-end"])
def test_a_close_by_another_thread_ends_a_message_in_parts(there: Elsewhere, more: list[str]) -> None:
    def parts() -> Iterator[str]:
        yield "a"
        yield "b"
        Caller(client.close).result()
        yield from more

    client = connect(url(start(there)))
    with pytest.raises(ConnectionClosed):
        client.send_parts(parts())
    assert client.state is State.CLOSED


def test_parts_inside_parts_are_refused(there: Elsewhere) -> None:
    def parts() -> Iterator[Any]:
        yield "a"
        with pytest.raises(InvalidState):
            client.send_parts(["b"])
        yield "c"

    with connect(url(start(there))) as client:
        client.send_parts(parts())
        assert client.recv(DEADLINE) == "ac"


def test_a_stream_comes_in_parts(there: Elsewhere) -> None:
    async def stream(peer: Any) -> None:
        await peer.send_parts(["a", "b", "c"])
        await peer.send("next")
        await peer.wait_closed()

    with connect(url(start(there, stream))) as client:
        assert "".join(str(part) for part in client.recv_stream()) == "abc"
        assert client.recv(DEADLINE) == "next"


def test_what_is_no_message_is_refused(there: Elsewhere) -> None:
    async def parts() -> Any:
        yield "x"

    with connect(url(start(there))) as client:
        for wrong in (5, None, ["a"], {"a": 1}, parts()):
            with pytest.raises(TypeError):
                client.send(wrong)
        with pytest.raises(TypeError):
            client.send_text(b"x")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            client.send_binary("x")  # type: ignore[arg-type]
        client.send("still open")
        assert client.recv(DEADLINE) == "still open"


# Waiting.


def test_a_timeout_loses_nothing(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    with connect(url(server)) as client:
        peer = there(held.next())
        for number in range(20):
            with pytest.raises(Timeout):
                client.recv(timeout=0.001)
            there(peer.send(str(number)))
            assert client.recv(DEADLINE) == str(number)


def test_zero_takes_only_what_is_there(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    with connect(url(server)) as client:
        peer = there(held.next())
        with pytest.raises(Timeout):
            client.recv(timeout=0)
        there(peer.send_many(["a", "b"]))
        got = []
        while len(got) < 2:
            with contextlib.suppress(Timeout):
                got.append(client.recv(0))
        assert got == ["a", "b"]
        with pytest.raises(Timeout):
            client.recv(0)


@pytest.mark.parametrize("wrong", [-1, float("nan"), "1", True])
def test_a_wrong_timeout_is_refused(there: Elsewhere, wrong: Any) -> None:
    with connect(url(start(there))) as client:
        with pytest.raises((ValueError, TypeError), match="timeout"):
            client.recv(wrong)


def test_a_ping_takes_a_while(there: Elsewhere) -> None:
    with connect(url(start(there))) as client:
        assert client.ping() > 0
        assert client.ping(b"data", timeout=DEADLINE) > 0
        assert client.latency is not None


def test_a_ping_that_is_not_answered_times_out(there: Elsewhere) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        await visit.until_closed()

    server = there.enter(RawServer(handle))
    client = connect(server.url, auto_reconnect=False, close_timeout=0.05)
    with client, pytest.raises(Timeout, match="ping"):
        client.ping(timeout=0.01)


def test_a_full_queue_stops_reading_and_loses_nothing(there: Elsewhere) -> None:
    async def flood(peer: Any) -> None:
        await peer.send_many(str(number) for number in range(500))
        await peer.close()

    with connect(url(start(there, flood)), buffer_size=4) as client:
        until(lambda: client.queued >= 4)
        assert [message.as_text() for message in client] == [str(number) for number in range(500)]


def test_a_call_in_a_thread_that_runs_a_loop(there: Elsewhere) -> None:
    """As in a notebook."""

    async def cell() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        with connect(url(server), on_connect=lambda client: client.send("first")) as client:
            assert client.recv(DEADLINE) == "first"
            client.send("x")
            assert client.recv(DEADLINE) == "x"
            client.ping()
            assert asyncio.get_running_loop() is loop
            assert asyncio.current_task() is task
        await asyncio.sleep(0)

    server = start(there)
    asyncio.run(cell())


# Threads.


def test_any_thread_may_send(there: Elsewhere) -> None:
    def send(name: str) -> None:
        for number in range(200):
            client.send(f"{name} {number}")

    with connect(url(start(there))) as client:
        senders = [Caller(send, name) for name in "abc"]
        got = [client.recv(DEADLINE) for _ in range(600)]
        for sender in senders:
            sender.result()
        for name in "abc":
            own = [str(message.text) for message in got if message is not None and str(message.text).startswith(name)]
            assert own == [f"{name} {number}" for number in range(200)]


def test_one_thread_receives(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    with connect(url(server)) as client:
        peer = there(held.next())
        waiting = Caller(client.recv)
        until(lambda: client._is_awaited)
        for call in (client.recv, client.recv_many, client.__next__, lambda: list(client.recv_stream())):
            with pytest.raises(InvalidState, match="another thread"):
                call()
        there(peer.send("x"))
        assert waiting.result() == "x"


def test_close_ends_a_thread_in_recv(there: Elsewhere) -> None:
    client = connect(url(start(there)))
    waiting = Caller(client.recv)
    until(lambda: client._is_awaited)
    client.close()
    assert waiting.result() is None


def test_close_ends_a_thread_in_recv_though_the_peer_does_not_answer(there: Elsewhere) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        await visit.until_closed()

    server = there.enter(RawServer(handle))
    client = connect(server.url, close_timeout=DEADLINE, auto_reconnect=False)
    waiting = Caller(client.recv)
    until(lambda: client._is_awaited)
    closing = Caller(client.close)
    assert waiting.result() is None
    assert closing.is_alive()
    client._driver.soon(client._connection._abort)
    closing.result()


def test_a_close_that_another_one_has_overtaken_is_done(there: Elsewhere) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        await visit.until_closed()

    client = connect(there.enter(RawServer(handle)).url, close_timeout=1000)
    closing = Caller(client.close)
    until(lambda: client.state is State.CLOSING)
    client._driver.soon(client._connection._abort)
    client._driver.close()  # as the other one does at its end
    closing.result()
    assert client.state is State.CLOSED


def test_close_ends_a_thread_in_send(there: Elsewhere) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        await released.wait()

    async def new_event() -> asyncio.Event:
        return asyncio.Event()

    released = there(new_event())
    server = there.enter(RawServer(handle))
    client = connect(
        server.url, backpressure=BackpressureConfig(max_buffer_size=2), close_timeout=0.1, auto_reconnect=False
    )

    def send() -> None:
        while True:
            client.send(bytes(1_000_000))

    sending = Caller(send)
    until(lambda: client._sends)
    client.close()
    with pytest.raises(ConnectionClosed):
        sending.result()
    # Over TLS the transport may have taken all of it, and does not tell what has left it.
    assert client.undelivered or client.url.startswith("wss:")
    there.loop.call_soon_threadsafe(released.set)


def test_a_sender_waits_while_another_thread_receives(there: Elsewhere) -> None:
    server = start(there, buffer_size=2)
    client = connect(url(server), backpressure=BackpressureConfig(max_buffer_size=3), buffer_size=2)

    def send() -> None:
        for number in range(60):
            client.send(bytes([number]) * 200_000)

    with client:
        sending = Caller(send)
        for number in range(60):
            message = client.recv(DEADLINE)
            assert message is not None
            assert message.payload == bytes([number]) * 200_000
        sending.result()


def test_a_ping_of_one_thread_while_another_receives(there: Elsewhere) -> None:
    with connect(url(start(there))) as client:
        waiting = Caller(client.recv)
        until(lambda: client._is_awaited)
        for _ in range(5):
            client.ping(timeout=DEADLINE)
        client.send("x")
        assert waiting.result() == "x"


# While nobody receives.


def test_pings_are_answered_while_nobody_receives(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    with connect(url(server)):
        peer = there(held.next())
        for _ in range(3):
            assert there(peer.ping()) > 0


def test_the_peers_close_is_noticed_while_nobody_receives(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    with connect(url(server)) as client:
        there(there(held.next()).close(1000, "done"))
        until(lambda: client.state is State.CLOSED)
        assert client.close_reason == "done"
        assert client.recv() is None


def test_the_heartbeat_finds_a_dead_peer_while_nobody_receives(there: Elsewhere) -> None:
    async def handle(visit: Visit) -> None:
        await visit.accept()
        await visit.until_closed()

    server = there.enter(RawServer(handle))
    heartbeat = HeartbeatConfig(ping_interval=0.02, ping_timeout=0.02, busy_timeout=0.02)
    with connect(server.url, heartbeat=heartbeat, auto_reconnect=False) as client:
        until(lambda: client.state is State.CLOSED)
        with pytest.raises(ConnectionClosed):
            client.recv()


def test_one_thread_keeps_all_clients_and_ends_with_the_last(there: Elsewhere) -> None:
    def keepers() -> int:
        return [thread.name for thread in threading.enumerate()].count("fabric.sync")

    server = start(there)
    clients = [connect(url(server)) for _ in range(5)]
    assert keepers() == 1
    for client in clients:
        client.close()
    assert keepers() == 0


def test_clients_are_kept_although_the_log_raises(
    there: Elsewhere, monkeypatch: pytest.MonkeyPatch, broken_log: list[str]
) -> None:
    look = Keeper._look

    def fail(self: Keeper, watch: Watch) -> None:
        if "looking after blocking clients failed" not in broken_log:
            raise LookupError
        look(self, watch)

    monkeypatch.setattr(Keeper, "_look", fail)
    held = Held()
    server = start(there, held)
    with connect(url(server)):
        until(lambda: broken_log)
        assert there(there(held.next()).ping()) > 0  # answered by that thread
        held.release()


def test_what_comes_for_one_client_is_no_work_for_the_others(there: Elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    server = start(there, held, ping_interval=None)
    clients = [connect(url(server), heartbeat=None) for _ in range(20)]
    peers = [there(held.next()) for _ in clients]
    drivers = [client._driver for client in clients]
    watch = keeper._watch
    assert watch is not None
    until(lambda: set(watch._descriptors) == set(drivers))  # nobody has used them for a while
    looked: list[Driver] = []
    attention = Keeper._ask
    monkeypatch.setattr(
        Keeper, "_ask", lambda self, driver, of: (looked.append(driver), attention(self, driver, of))[1]
    )
    for peer in peers[:3]:
        there(peer.ping())
    assert len(set(looked)) == 3
    assert set(looked) < set(drivers)
    for client in clients:
        client.close()


def test_a_thread_that_waits_for_a_message_has_it_to_itself(there: Elsewhere) -> None:
    """The keeper does not wait for the same descriptor, and does when the thread has left."""
    held = Held()
    with connect(url(start(there, held, ping_interval=None)), heartbeat=None) as client:
        peer = there(held.next())
        watch = keeper._watch
        assert watch is not None
        for number in range(3):
            until(lambda: client._driver in watch._descriptors)
            waiting = Caller(client.recv)
            until(lambda: client._driver not in watch._descriptors)
            there(peer.send(str(number)))
            assert waiting.result() == str(number)


def test_what_was_gathered_leaves_though_its_thread_does_not_come_back(there: Elsewhere) -> None:
    """It may be gathered while messages wait to be taken: a thread that takes none has sent it all the same."""
    held = Held()
    with connect(url(start(there, held, ping_interval=None)), heartbeat=None) as client:
        peer = there(held.next())
        watch = keeper._watch
        assert watch is not None
        there(peer.send_many(["a", "b", "c"]))
        until(lambda: client.queued == 3 and client._driver in watch._descriptors)
        client.recv()
        for number in range(500):  # of which the last are too close for a system call each
            client.send_nowait(str(number))
        assert [there(peer.recv()) for _ in range(500)] == [str(number) for number in range(500)]


def test_a_driver_that_another_thread_has_closed_is_not_kept() -> None:
    driver = Driver()
    SteppedLoop(driver, keeper)
    driver.close()
    keeper.remove(driver)
    keeper.add(driver)
    assert not keeper._drivers
    assert keeper._thread is None


def test_messages_that_came_meanwhile_are_there(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    with connect(url(server)) as client:
        there(there(held.next()).send_many(["a", "b", "c"]))
        until(lambda: client.queued == 3)
        assert [client.recv(0) for _ in range(3)] == ["a", "b", "c"]


def test_a_client_that_is_dropped_is_closed(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    client = connect(url(server))
    peer = there(held.next())
    with pytest.warns(ResourceWarning, match="unclosed <SyncClient"):
        del client
    there(peer.wait_closed())
    until(lambda: not keeper._drivers)


# Ends, and what follows them.


def test_iteration_ends_with_a_normal_close(there: Elsewhere) -> None:
    async def greet(peer: Any) -> None:
        await peer.send("a")

    with connect(url(start(there, greet))) as client:
        assert list(client) == ["a"]
        assert client.recv() is None
        with pytest.raises(ConnectionClosed):
            client.send("x")
        with pytest.raises(ConnectionClosed):
            client.ping()


def test_an_end_that_is_not_normal_is_raised(there: Elsewhere) -> None:
    async def greet(peer: Any) -> None:
        await peer.send("a")
        await peer.close(1011, "broken")

    with connect(url(start(there, greet)), auto_reconnect=False) as client:
        assert client.recv() == "a"
        with pytest.raises(ConnectionClosed, match="broken"):
            client.recv()
        with pytest.raises(ConnectionClosed, match="broken"):
            next(client)


class AtFault:
    """A server that sends a message and a frame with reserved bits in one piece, when it is told to."""

    def __init__(self, there: Elsewhere) -> None:
        self.frames: list[Frame] = []
        self._there = there
        self._sent = asyncio.Event()
        self.server = there.enter(RawServer(self._handle))

    async def _handle(self, visit: Visit) -> None:
        await visit.accept()
        await self._sent.wait()
        visit.writer.write(encode(TEXT, "good", mask=False) + encode(TEXT, "bad", rsv=1, mask=False))
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                self.frames.append(await visit.frame())

    def send(self) -> None:
        self._there.loop.call_soon_threadsafe(self._sent.set)

    def connect(self, *, close_timeout: float = 1000.0) -> SyncClient:
        return connect(self.server.url, auto_reconnect=False, heartbeat=None, close_timeout=close_timeout)

    def heard(self) -> list[int]:
        return [frame.opcode for frame in self.frames]


def receive_good(peer: AtFault, client: SyncClient) -> None:
    """Receive what comes before the fault in one read: the thread waits before it is sent."""
    caller = Caller(client.recv)
    until(lambda: client._is_awaited)
    peer.send()
    assert caller.result() == "good"
    assert client.state is State.OPEN


def test_what_came_before_a_fault_in_the_same_read_can_be_answered(there: Elsewhere) -> None:
    peer = AtFault(there)
    with peer.connect() as client:
        receive_good(peer, client)
        client.send("answer")
        with pytest.raises(ConnectionClosed, match="reserved bits"):
            client.recv()
        until(lambda: len(peer.frames) == 2)
        assert peer.heard() == [TEXT, CLOSE]
        assert client.close_code == 1002


def test_a_fault_is_told_though_nobody_receives_any_more(there: Elsewhere) -> None:
    peer = AtFault(there)
    with peer.connect(close_timeout=0.1) as client:
        receive_good(peer, client)
        until(lambda: client.state is State.CLOSED)
        assert peer.heard() == [CLOSE]
        with pytest.raises(ConnectionClosed, match="reserved bits"):
            client.recv()


def test_close_tells_a_fault_that_was_put_off(there: Elsewhere) -> None:
    peer = AtFault(there)
    client = peer.connect()
    receive_good(peer, client)
    client.close()
    until(lambda: peer.frames)
    assert peer.heard() == [CLOSE]
    assert client.close_code == 1002


def test_calls_after_close(there: Elsewhere) -> None:
    client = connect(url(start(there)))
    client.close()
    client.close()
    assert client.recv() is None
    assert list(client) == []
    assert list(client.recv_stream()) == []
    with pytest.raises(ConnectionClosed):
        client.send("x")
    with pytest.raises(ConnectionClosed):
        client.send_parts(["x"])
    with pytest.raises(ConnectionClosed):
        client.ping()
    client.wait_closed()
    assert "CLOSED" in repr(client)


class Loan:
    """Something that is given back when it is dropped."""


SENDING_OR_RECEIVING: dict[str, Callable[[SyncClient], object]] = {
    "recv": SyncClient.recv,
    "recv_many": SyncClient.recv_many,
    "recv_stream": lambda client: list(client.recv_stream()),
    "iterate": list,
    "send": lambda client: client.send("x"),
    "send_parts": lambda client: client.send_parts(["a", "b"]),
    "ping": SyncClient.ping,
}


@pytest.mark.parametrize("how", SENDING_OR_RECEIVING)
def test_what_is_raised_keeps_no_frames(there: Elsewhere, how: str) -> None:
    held = Held()
    loans: list[weakref.ref[Loan]] = []

    def borrow() -> None:
        loan = Loan()
        loans.append(weakref.ref(loan))
        SENDING_OR_RECEIVING[how](client)

    client = connect(url(start(there, held)), auto_reconnect=False)
    there.loop.call_soon_threadsafe(there(held.next())._abort)
    until(lambda: client.state is State.CLOSED)
    gc.disable()
    try:
        for _ in range(2):
            with pytest.raises(ConnectionClosed) as raised:
                borrow()
            del raised
            assert loans[-1]() is None
    finally:
        gc.enable()
    client.close()


def test_iteration_goes_on_over_a_reconnection(there: Elsewhere) -> None:
    async def handle(peer: Any) -> None:
        told.append(peer)
        if len(told) == 1:
            await peer.recv()
        await peer.send(f"session {len(told)}")
        if len(told) < 3:
            peer._abort()
        else:
            await peer.close()

    told: list[Any] = []
    events: list[Any] = []
    client = connect(
        url(start(there, handle)),
        reconnect=QUICK,
        on_connect=lambda client: events.append("connect"),
        on_disconnect=lambda client, error: events.append(type(error).__name__),
        on_reconnect=lambda client: events.append("reconnect"),
    )
    with client:
        client.send("begin")
        assert [message.as_text() for message in client] == ["session 1", "session 2", "session 3"]
    assert events[0] == "connect"
    assert events.count("ConnectionClosed") == 3


def test_callbacks_may_wait(there: Elsewhere) -> None:
    async def handle(peer: Any) -> None:
        sessions.append([])
        async for message in peer:
            sessions[-1].append(message.as_text())
            await peer.send(f"re {message.as_text()}")
            if message == "drop":
                peer._abort()

    def log_in(client: SyncClient) -> None:
        client.send("login")
        assert client.recv(DEADLINE) == "re login"

    def again(client: SyncClient) -> None:
        client.send("again")
        rounds.append(client.ping(timeout=DEADLINE))

    sessions: list[list[str]] = []
    rounds: list[float] = []
    client = connect(url(start(there, handle)), reconnect=QUICK, on_session=log_in, on_reconnect=again)
    with client:
        client.send("drop")
        got = [client.recv(DEADLINE)]
        if got == ["re drop"]:
            got = [client.recv(DEADLINE)]
        assert got == ["re again"]
        until(lambda: rounds)
    assert [session[0] for session in sessions] == ["login", "login"]


def test_it_reconnects_while_nobody_receives(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    called = threading.Event()
    with connect(url(server), reconnect=QUICK, on_reconnect=lambda client: called.set()) as client:
        there.loop.call_soon_threadsafe(there(held.next())._abort)
        assert called.wait(DEADLINE)
        there(there(held.next()).send("again"))
        assert client.recv(DEADLINE) == "again"


def test_a_callback_may_close(there: Elsewhere) -> None:
    async def handle(peer: Any) -> None:
        await peer.recv()
        peer._abort()

    client = connect(
        url(start(there, handle)), reconnect=QUICK, on_disconnect=lambda client, error: client.close(), close_timeout=1
    )
    client.send("x")
    assert client.recv(DEADLINE) is None
    assert client.state is State.CLOSED


@pytest.mark.parametrize(
    "wait",
    [
        SyncClient.reconnect,
        SyncClient.wait_connected,
        lambda client: client.send("y"),
        lambda client: client.send_parts(["y", "z"]),
    ],
    ids=["reconnect", "wait_connected", "send", "send_parts"],
)
def test_on_disconnect_cannot_wait_for_what_comes_after_it(there: Elsewhere, wait: Callable[[Any], object]) -> None:
    refused: list[InvalidState] = []

    async def handle(peer: Any) -> None:
        if await peer.recv() == "x":
            peer._abort()
        else:
            await peer.send("there")

    def on_disconnect(client: SyncClient, _: object) -> None:
        if not refused:
            with pytest.raises(InvalidState, match="on_disconnect") as info:
                wait(client)
            refused.append(info.value)

    with connect(url(start(there, handle)), reconnect=QUICK, on_disconnect=on_disconnect, outage="wait") as client:
        client.send("x")
        until(lambda: refused)
        client.send("again")
        assert client.recv(DEADLINE) == "there"


def test_on_connect_may_close(there: Elsewhere) -> None:
    client = connect(url(start(there)), on_connect=lambda client: client.close())
    assert client.state is State.CLOSED
    assert client.recv() is None
    with pytest.raises(ConnectionClosed):
        client.send("x")
    client.close()


def test_another_thread_may_close_during_on_connect(there: Elsewhere) -> None:
    def wait(client: SyncClient) -> None:
        closing = Caller(client.close)
        assert client.recv() is None  # until it is closed
        closing.result()

    client = connect(url(start(there)), on_connect=wait)
    assert client.state is State.CLOSED
    assert client.close_code == 1000


def test_it_gives_up(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    with connect(url(server), reconnect=QUICK.with_max_attempts(2)) as client:
        peer = there(held.next())
        there.loop.call_soon_threadsafe(server.stop_accepting)
        there.loop.call_soon_threadsafe(peer._abort)
        with pytest.raises(ReconnectTimeout):
            client.recv(DEADLINE)


def test_reconnect_asks_for_a_fresh_connection(there: Elsewhere) -> None:
    held = Held()
    server = start(there, held)
    with connect(url(server)) as client:
        there(held.next())
        client.reconnect()
        there(there(held.next()).send("fresh"))
        assert client.recv(DEADLINE) == "fresh"


def test_what_does_not_connect_is_raised_and_leaves_nothing(there: Elsewhere) -> None:
    with reserved_port() as port:
        with pytest.raises(ConnectionFailed):
            connect(f"ws://127.0.0.1:{port}/")
        with pytest.raises(ConnectionFailed):
            connect(f"ws://localhost:{port}/")


def test_on_session_that_raises_fails_connect(there: Elsewhere) -> None:
    def refuse(client: SyncClient) -> None:
        raise LookupError("not this one")

    with pytest.raises(LookupError):
        connect(url(start(there)), on_session=refuse)


def test_functions_are_asked_for_url_and_headers(there: Elsewhere) -> None:
    server = start(there)
    with connect(lambda: url(server), headers=lambda: {"X-Token": "1"}) as client:
        assert client.request is not None
        assert client.request.headers["X-Token"] == "1"
        assert client.url == url(server)


async def coroutine_function(*_: object) -> Any: ...


@pytest.mark.parametrize("name", ["on_session", "on_connect", "on_disconnect", "on_reconnect", "headers"])
def test_a_coroutine_function_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} .*plain"):
        connect("ws://127.0.0.1:1", **{name: coroutine_function})


def test_what_needs_a_loop_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="on_message"):
        connect("ws://127.0.0.1:1", on_message=print)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="connect"):
        SyncClient()
    with pytest.raises(TypeError, match="address"):
        connect("localhost", 80)  # type: ignore[arg-type]


def test_a_client_that_was_not_connected_does_nothing() -> None:
    client = SyncClient.__new__(SyncClient)
    for call in (client.recv, client.recv_many, client.__next__, lambda: client.send("x"), client._end_waits):
        with pytest.raises(TypeError, match="connect"):
            call()
    assert "not connected" in repr(client)


def test_it_is_an_attribute_of_the_package(there: Elsewhere) -> None:
    with fabric.sync.connect(ClientConfig(url(start(there))), close_timeout=1) as client:
        assert client.config.close_timeout == 1
        assert client.is_connected
        assert client.subprotocol is None
        assert client.remote_addr[0] == "127.0.0.1"
        assert client.metrics.active_connections == 1
