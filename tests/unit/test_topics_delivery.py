"""fabric._topics.delivery over fabric_ext.topics and fabric_ext.fanout, against a model in plain Python.

Subscriptions with wildcards, messages of whatever `on_full`, connections that are full, that are lost, and all of it
once more from within the write of a fan-out: what a connection gets is what it was given, in that order.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from fabric._topics.delivery import Delivery
from fabric._topics.settings import Settings, SettingsByPattern, fits
from fabric.broker import MemoryBroker
from fabric.error import BufferFull
from fabric.message import Message
from fabric.metrics import MetricsCollector
from fabric_ext.connection import Connection
from fabric_ext.counters import Counters
from fabric_ext.topics import Index, Subscriber
from support.fake_transport import FakeTransport
from support.frames import decode_all
from support.serving import until

if TYPE_CHECKING:
    import random

PEERS = 6
OUTBOX = 3  # messages
STEPS = 1500
POLICIES = {"drop": "drop.>", "close": "close.>", "latest": "latest.>"}


class Peer(Connection):
    """A connection whose outbox takes a few messages.

    Attributes:
        patterns: the model's: what it has subscribed to.
        given: the model's: what it has to get, in this order.
        is_lost: the model's.
        asked: how `send_nowait` ended for the message that is being published, if it was called: was it accepted?
    """

    def __init__(self, play: Play) -> None:
        super().__init__(asyncio.get_running_loop(), Counters(), queue_limit=10, queue_byte_limit=1 << 20)
        self._subscriber = Subscriber(self)
        self.play = play
        self.patterns: set[str] = set()
        self.given: list[bytes] = []
        self.is_lost = False
        self.asked: bool | None = None
        self.transport = FakeTransport().connect(self)
        self.transport.on_write = play.in_the_midst

    @property
    def is_free(self) -> bool:
        return not self._is_blocked and not self._outbox_size

    def send_nowait(self, message: Any, *, compress: bool | None = None) -> None:
        payload = Message(message).as_bytes() if isinstance(message, bytes) else message.as_bytes()
        self.given.append(payload)  # before the call, in which others may be given to it
        place = len(self.given) - 1
        try:
            super().send_nowait(message, compress=compress)
        except BufferFull:
            assert self.given.pop(place) == payload
            self.asked = False
            raise
        self.asked = True

    def _queue_now(self, message: Any, compress: bool | None) -> None:
        if self._outbox_size >= OUTBOX:
            raise BufferFull(self._outbox_size, OUTBOX)
        self._outbox_push(message if isinstance(message, Message) else Message(message), compress)
        self._flush_outbox()

    def _on_writable(self) -> None:
        if self._subscriber.waiting:
            self.play.delivery.send_waiting(self, self._subscriber.waiting)

    def _begin_closing(self, code: int, reason: str) -> None:
        assert code == 1008
        self.play.lose(self)

    def got(self) -> list[bytes]:
        return [frame.payload for frame in decode_all(self.transport.output)]


class Play:
    """The steps, each done to the real thing and to the model."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.index = Index()
        self.drops: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()  # the model's
        settings = SettingsByPattern(Settings(), MemoryBroker())
        for policy, pattern in POLICIES.items():
            on_full: Any = policy
            settings.configure(pattern, on_full=on_full, presence=None, history=None, ttl=None, order=None)
        self.delivery = Delivery(self.index, settings, self.drops, MetricsCollector(), 0)
        self.is_draining = self.is_inside = False
        self.failed: list[BaseException] = []
        self.nested = 0  # steps that were done from within a write
        self.published = 0
        self.peers = [Peer(self) for _ in range(PEERS)]
        self.gone: list[Peer] = []

    def name(self, *wildcards: str) -> str:
        tokens = [self.rng.choice([*"abc", *wildcards]) for _ in range(self.rng.randint(1, 3))]
        last = [">"] if wildcards and self.rng.random() < 0.3 else []
        return ".".join([self.rng.choice(list(POLICIES)), *tokens, *last])

    def in_the_midst(self, _: Any) -> None:
        """A write of a fan-out runs the application, as a log handler or a finalizer does."""
        if self.is_draining and self.rng.random() < 0.3:
            self.is_draining, self.is_inside = False, True
            try:
                for _ in range(self.rng.randint(1, 3)):
                    self.step()
                    self.nested += 1
            except BaseException as error:
                self.failed.append(error)  # whatever writes would handle it
                raise
            self.is_draining, self.is_inside = True, False

    def step(self) -> None:
        peer, chance = self.rng.choice(self.peers), self.rng.random()
        if chance < 0.15:
            self.subscribe(peer)
        elif chance < 0.22:
            self.unsubscribe(peer)
        elif chance < 0.82:
            self.publish()
        elif chance < 0.9:
            self.send(peer)
        elif chance < 0.94:
            peer.transport.keeps = True
        elif chance < 0.98:
            peer.transport.release()
        else:
            self.lose(peer)

    def subscribe(self, peer: Peer) -> None:
        if not peer.is_lost:
            pattern = self.name("*")
            is_first = not any(pattern in each.patterns for each in self.peers)
            assert self.index.subscribe(peer._subscriber, pattern) is (None if pattern in peer.patterns else is_first)
            peer.patterns.add(pattern)

    def unsubscribe(self, peer: Peer) -> None:
        if peer.patterns:
            pattern = self.rng.choice(sorted(peer.patterns))
            peer.patterns.discard(pattern)
            is_last = not any(pattern in each.patterns for each in self.peers)
            assert self.index.unsubscribe(peer._subscriber, pattern) is is_last

    def send(self, peer: Peer) -> None:
        if not peer.is_lost:
            is_full = peer._outbox_size >= OUTBOX
            self.published += 1
            try:
                peer.send_nowait(b"sent %d" % self.published)
            except BufferFull:
                assert is_full

    def lose(self, peer: Peer) -> None:
        """Its connection ends; another one comes."""
        if not peer.is_lost:
            peer.is_lost = True
            peer.patterns.clear()
            peer._subscriber.waiting = None
            peer.transport.lose()
            self.index.leave(peer._subscriber)
            self.gone.append(peer)
            self.peers[self.peers.index(peer)] = Peer(self)

    def publish(self) -> None:
        topic = self.name()
        policy = topic.partition(".")[0]
        left_out = self.rng.sample(self.peers, self.rng.choice([0, 0, 1]))
        takers = [
            peer
            for peer in self.peers
            if peer not in left_out and any(fits(pattern, topic) for pattern in peer.patterns)
        ]
        self.published += 1
        payload = b"%d %b" % (self.published, topic.encode())
        before = {
            peer: (peer.is_free, peer._outbox_size >= OUTBOX, dict(peer._subscriber.waiting or {})) for peer in takers
        }
        for peer in self.peers:
            peer.asked = None
        reached = self.delivery.fan_out(topic, Message(payload), None, None, [peer._subscriber for peer in left_out])
        accepted = 0
        for peer in takers:
            is_free, is_full, waiting = before[peer]
            kept = [message.as_bytes() for message, _ in (peer._subscriber.waiting or {}).values()]
            if payload in kept:
                assert policy == "latest"
                assert not is_free or self.is_inside  # or it is about to write what waited
                self.dropped["replaced"] += topic in waiting
                assert list(peer._subscriber.waiting or {}) == [*(each for each in waiting if each != topic), topic]
            elif peer.asked is None:  # by the fan-out
                assert is_free or self.is_inside  # a connection that is being written to gets it behind that
                peer.given.append(payload)
            else:
                assert not is_free or self.is_inside  # or it is about to write what waited, and gets it behind that
                assert peer.asked is not is_full
                self.dropped[{"drop": "full", "close": "closed"}[policy]] += is_full
            accepted += peer.asked is not False
            assert peer.is_lost is (policy == "close" and peer.asked is False)
        assert reached == accepted
        assert +self.drops == +self.dropped
        assert [peer for peer in self.peers if peer not in takers and peer.asked is not None] == []

    async def end_of_turn(self) -> None:
        self.is_draining = True
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.is_draining = False
        if self.failed:
            raise self.failed[0]


async def test_what_is_given_to_a_connection_is_what_it_gets(rng: random.Random) -> None:
    play = Play(rng)
    for _ in range(STEPS):
        play.step()
        if rng.random() < 0.15:
            await play.end_of_turn()
    for peer in play.peers:
        peer.transport.release()
    await until(lambda: all(peer.is_free and peer.got() == peer.given for peer in play.peers))
    assert [peer._subscriber.waiting or {} for peer in play.peers] == [{}] * PEERS
    for peer in play.gone:
        rest = [peer._outbox_pop()[0].as_bytes() for _ in range(peer._outbox_size)]
        assert peer.got() + rest == peer.given
    assert play.nested > 10
    assert set(play.dropped) == {"full", "closed", "replaced"}
