"""A client without an event loop whose line cuts, stalls and breaks, with threads that send, receive and close."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from typing import Any

import pytest

from fabric.config import ReconnectConfig
from fabric.error import BufferFull, ConnectionClosed, Timeout
from fabric.server import ConnectedClient
from fabric.sync import SyncClient, connect
from fabric_ext.protocol import State
from fault.relay import Relay
from integration.test_sync import there, until
from support.serving import serve
from support.threads import DEADLINE, Caller, Elsewhere

__all__ = ["there"]

SENDERS = 4


class Echo:
    """Echoes, and keeps what each connection brought."""

    def __init__(self) -> None:
        self.arrived: list[list[str]] = []

    async def __call__(self, client: ConnectedClient) -> None:
        self.arrived.append(mine := [])
        with contextlib.suppress(ConnectionClosed):
            async for message in client:
                mine.append(message.as_text())
                await client.send(message)


def between(there: Elsewhere, **options: Any) -> tuple[Echo, Relay, SyncClient]:
    echo = Echo()
    server = there(serve(there.stack, echo))
    relay = there.enter(Relay(server.port))
    options = {
        "heartbeat": None,
        "compression": None,
        "reconnect": ReconnectConfig(initial_delay=0.001, max_delay=0.01),
        **options,
    }
    return echo, relay, connect(relay.url, **options)


def at_the_relay(there: Elsewhere, function: Any, *args: Any) -> None:
    async def call() -> None:
        function(*args)

    there(call())


def in_order(texts: list[str], sender: int) -> list[int]:
    """The numbers of what `sender` sent, as they came."""
    return [int(number) for who, number in (text.split(":")[:2] for text in texts) if int(who) == sender]


@pytest.mark.parametrize("busy_poll", [0, 0.001])
def test_threads_send_over_a_line_that_cuts_while_another_receives(
    there: Elsewhere, rng: random.Random, busy_poll: float
) -> None:
    echo, relay, client = between(there, busy_poll=busy_poll)
    for way in (relay.to_server, relay.to_client):
        way.piece = lambda: rng.choice([1, 2, 7, 50, 1000])
    sizes = [rng.choice([0, 10, 200, 3000]) for _ in range(50)]

    def send(sender: int) -> None:
        for number, size in enumerate(sizes):
            client.send(f"{sender}:{number}:" + "x" * size)

    def receive() -> list[str]:
        return [client.recv(DEADLINE).as_text() for _ in range(SENDERS * len(sizes))]  # type: ignore[union-attr]

    with client:
        callers = [Caller(receive), *(Caller(send, sender) for sender in range(SENDERS))]
        received, *_ = [caller.result() for caller in callers]
    for sender in range(SENDERS):
        assert in_order(received, sender) == list(range(len(sizes)))
    assert echo.arrived == [received]


def test_a_stall_holds_up_who_receives_and_nobody_else(there: Elsewhere) -> None:
    echo, relay, client = between(there)
    with client:
        for number in range(10):
            at_the_relay(there, relay.to_client.go_silent)
            receiver = Caller(client.recv, DEADLINE)
            until(lambda: client._is_awaited)
            client.send(str(number))
            until(lambda number=number: echo.arrived[0][number:])  # the send did not wait for the receiver
            at_the_relay(there, relay.to_client.resume)
            assert receiver.result() == str(number)
            with pytest.raises(Timeout):
                client.recv(0)


def test_threads_go_on_over_connections_that_break(there: Elsewhere, rng: random.Random) -> None:
    echo, relay, client = between(there)
    over = threading.Event()

    def send(sender: int) -> int:
        numbers = itertools.count()
        while not over.wait(0.0005):
            client.send(f"{sender}:{next(numbers)}")
        last = next(numbers)
        client.send(f"{sender}:{last}")
        return last

    def receive() -> list[str]:
        received = []
        while (message := client.recv(DEADLINE)) is not None and message != "end":
            received.append(message.as_text())
        return received

    with client:
        receiver = Caller(receive)
        senders = [Caller(send, sender) for sender in range(SENDERS)]
        for losses in range(10):
            if rng.random() < 0.5:
                there(relay.reset())
            else:
                at_the_relay(there, relay.end_to_client)
                at_the_relay(there, relay.end_to_server)
            until(lambda losses=losses: client.metrics.reconnections > losses and client.is_connected)
        over.set()
        last = [caller.result() for caller in senders]
        client.send("end")
        received = receiver.result()
    arrived = [text for connection in echo.arrived for text in connection if text != "end"]
    for sender in range(SENDERS):
        for texts in (arrived, received):  # some may be lost with a connection, none comes twice or out of order
            numbers = in_order(texts, sender)
            assert numbers == sorted(set(numbers))
        assert in_order(arrived, sender)[-1] == last[sender]  # on the connection that stayed


@pytest.mark.parametrize("fault", ["none", "stall", "reset", "half-closed"])
def test_close_from_anywhere_ends_all_calls(there: Elsewhere, fault: str) -> None:
    _, relay, client = between(there, close_timeout=0.2)

    def send() -> None:
        while True:
            client.send("x" * 1000)

    senders = [Caller(send) for _ in range(SENDERS)]
    receiver = Caller(lambda: list(client))
    client.ping(timeout=DEADLINE)
    if fault == "stall":
        at_the_relay(there, relay.to_server.go_silent)
        at_the_relay(there, relay.to_client.go_silent)
    elif fault == "reset":
        there(relay.reset())
    elif fault == "half-closed":
        at_the_relay(there, relay.end_to_client)
    closers = [Caller(client.close) for _ in range(2)]
    for closer in closers:
        closer.result()
    assert client.state is State.CLOSED
    for sender in senders:
        with pytest.raises((ConnectionClosed, BufferFull)):  # full: in the outage, before close() was called
            sender.result()
    with contextlib.suppress(ConnectionClosed):  # None if close() came first
        receiver.result()
