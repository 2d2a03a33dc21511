"""The mirror of a topic, over a broker that says what the test wants, when it wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from fabric._history.shared import SharedLogs
from fabric.broker import Kept, Window
from fabric.error import ConnectionClosed, Error, InvalidState
from fabric.history import History, Position
from fabric.message import Message, MessageType
from fabric.topics import Outcome
from fabric_ext.remote import wrap
from fabric_ext.topics import Subscriber
from support.fake_broker import FakeBroker, Hub
from support.serving import turns

Leave = Callable[[SharedLogs, Subscriber], None]

EPOCH = "e" * 16
NODE = b"another."


def envelope(text: str) -> bytes:
    return wrap(MessageType.TEXT, NODE, 1, text.encode())


def numbered(offset: int, data: bytes, before: int | None = None, epoch: str = EPOCH) -> bytes:
    """As it comes from the broker."""
    return b"\x04%b%016d%016d%b" % (epoch.encode(), offset, offset - 1 if before is None else before, data)


class KeepingBroker(FakeBroker):
    """Gives the test's windows.

    Attributes:
        windows: what is read, one after the other; while there is none, reading waits.
        on_flush: called by `flush`, with how many there were before.
    """

    keeps_histories = True

    def __init__(self) -> None:
        super().__init__(Hub())
        self.windows: asyncio.Queue[Window] = asyncio.Queue()
        self.on_flush: Callable[[int], None] = lambda _: None
        self.flushes = 0
        self.reading = 0  # windows that are waited for

    async def flush(self) -> None:
        self.on_flush(self.flushes)
        self.flushes += 1

    async def read(
        self, topic: str, size: int, ttl: float, known: tuple[str, int] | None, after: int, *, wait: bool
    ) -> Window:
        self.reading += 1
        try:
            return await self.windows.get()
        finally:
            self.reading -= 1

    async def peek(
        self,
        topic: str,
        size: int,
        ttl: float,
        since: tuple[str, int] | None,
        limit: int | None,
        *,
        reverse: bool,
    ) -> Window:
        return await self.windows.get()


class Rig:
    """The histories of one server.

    Attributes:
        got: texts and offsets of what its subscribers got.
        left_out: for each, who was left out.
        has_subscribers: what is said of any topic.
        raises: what is raised instead of sending message 3.
    """

    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []
        self.left_out: list[list[Subscriber]] = []
        self.gaps: list[str] = []
        self.raises: type[BaseException] | None = None
        self.has_subscribers = True
        self.broker = KeepingBroker()
        self.logs = SharedLogs(
            self.broker,
            b"01234567",
            lambda _: self.has_subscribers,
            lambda _: (10, 60.0),
            self.fan_out,
            lambda topic, _: self.gaps.append(topic),
            lambda: 1000.0,
        )

    def fan_out(
        self, topic: str, data: Message, position: Position, compress: bool | None, left_out: Iterable[Subscriber]
    ) -> int:
        if self.raises is not None and position.offset == 3:
            raise self.raises
        self.got.append((data.text, position.offset))
        self.left_out.append(list(left_out))
        return 1

    async def close(self) -> None:
        self.logs.close()
        await turns()


@pytest.fixture
def rig(stack: contextlib.AsyncExitStack) -> Rig:
    rig = Rig()
    stack.push_async_callback(rig.close)
    return rig


async def test_what_comes_after_the_window_was_read_that_has_it_is_not_lost(rig: Rig) -> None:
    """A subscriber by a pattern gets it, though another one by name makes the mirror meanwhile."""

    def on_flush(before: int) -> None:
        if before == 1:
            rig.logs.deliver("a", numbered(1, envelope("one")))

    rig.broker.on_flush = on_flush
    rig.broker.windows.put_nowait(Window(EPOCH, 1, 0, [Kept(1, 0.0, envelope("one"))]))
    rig.logs.resume()
    rig.logs.hear("a")
    await turns()
    assert rig.got == [("one", 1)]


@pytest.mark.parametrize(
    ("leave", "kind"),
    [
        (lambda logs, subscriber: logs.unsubscribed(subscriber, ["a"]), InvalidState),
        (lambda logs, subscriber: logs.unsubscribed(subscriber, ["a"], ConnectionClosed(1001)), ConnectionClosed),
        (lambda logs, subscriber: logs.close(), ConnectionClosed),
    ],
)
async def test_what_ends_a_subscription_cancels_nobody_who_waits_for_it(
    rig: Rig, leave: Leave, kind: type[Error]
) -> None:
    rig.logs.resume()
    subscriber = Subscriber("someone")
    outcome: Outcome[Any] = Outcome(None)
    confirm = rig.logs.join("a", subscriber, Position(EPOCH, 0), 0, lambda _: None, outcome)
    assert confirm is not None
    waiting = asyncio.ensure_future(confirm())
    await turns()
    leave(rig.logs, subscriber)
    with pytest.raises(kind):
        await waiting


async def mirrored(rig: Rig, count: int) -> None:
    """This server has `count` messages of the topic."""
    rig.broker.windows.put_nowait(window(count))
    rig.logs.resume()
    rig.logs.hear("a")
    await turns()


def window(count: int) -> Window:
    return Window(EPOCH, count, 0, [Kept(n, 0.0, envelope(str(n))) for n in range(1, count + 1)])


def join(rig: Rig, since: Position | None, recent: int = 0) -> tuple[Subscriber, Outcome[Any]]:
    subscriber = Subscriber("someone")
    outcome: Outcome[Any] = Outcome(None)
    rig.logs.join("a", subscriber, since, recent, lambda _: None, outcome)
    return subscriber, outcome


async def test_one_that_comes_from_a_server_that_was_faster(rig: Rig) -> None:
    """It has what has not arrived here yet: it lacks nothing, and gets nothing twice."""
    await mirrored(rig, 2)
    subscriber, outcome = join(rig, Position(EPOCH, 3))
    rig.broker.windows.put_nowait(window(4))
    await turns()
    assert outcome.value == History(Position(EPOCH, 3), True)
    assert rig.got == [("3", 3), ("4", 4)]
    assert rig.left_out == [[subscriber], []]


async def test_one_that_claims_to_have_what_nobody_has(rig: Rig) -> None:
    await mirrored(rig, 2)
    _, outcome = join(rig, Position(EPOCH, 9), recent=1)
    rig.broker.windows.put_nowait(window(3))
    await turns()
    assert (outcome.value.recovered, outcome.value.position) == (False, Position(EPOCH, 2))
    assert [offset for offset, _ in outcome.value.publications] == [2]
    assert (rig.got, rig.left_out) == ([("3", 3)], [[]])


async def test_one_that_is_new_gets_the_latest(rig: Rig) -> None:
    await mirrored(rig, 5)
    _, outcome = join(rig, None, recent=2)
    assert [offset for offset, _ in outcome.value.publications] == [4, 5]
    assert (outcome.value.recovered, outcome.value.position) == (False, Position(EPOCH, 5))


async def test_the_latest_are_read_where_only_what_came_lately_is_known(rig: Rig) -> None:
    """The topic was heard through a pattern."""
    rig.logs.resume()
    rig.logs.deliver("a", numbered(3, envelope("3")))
    _, outcome = join(rig, None, recent=2)
    assert outcome.value is None
    rig.broker.windows.put_nowait(window(3))
    await turns()
    assert [offset for offset, _ in outcome.value.publications] == [2, 3]
    assert rig.got == [("3", 3)]


@pytest.mark.parametrize("place", [1, 2, 3])
async def test_what_is_no_message_is_left_out_of_a_window(rig: Rig, place: int) -> None:
    """The topic goes on, and what comes next is the next."""
    wrong = [envelope("x")[:5], envelope("x")[:13] + b"\xff", b""]
    kept = [Kept(n, 0.0, wrong[n - 1] if n == place else envelope(str(n))) for n in range(1, 4)]
    others = [(str(n), n) for n in range(1, 4) if n != place]
    rig.broker.windows.put_nowait(Window(EPOCH, 0, 0, []))
    rig.logs.resume()
    rig.logs.hear("a")
    await turns()
    rig.logs.deliver("a", numbered(3, envelope("3")))  # the rest has to be read
    rig.broker.windows.put_nowait(Window(EPOCH, 3, 0, kept))
    await turns()
    rig.logs.deliver("a", numbered(4, envelope("4")))
    assert rig.got == [*others, ("4", 4)]
    assert rig.logs.malformed == 1
    assert rig.gaps == []
    rig.broker.windows.put_nowait(Window(EPOCH, 3, 0, kept))
    history = await rig.logs.peek("a", None, None, reverse=False)
    assert [(text.text, offset) for offset, text in history.publications] == others
    assert history.position == (EPOCH, 3)


async def test_what_is_no_message_is_left_out_as_it_comes(rig: Rig) -> None:
    rig.broker.windows.put_nowait(Window(EPOCH, 0, 0, []))
    rig.logs.resume()
    rig.logs.hear("a")
    await turns()
    rig.logs.deliver("a", numbered(1, b"none"))
    rig.logs.deliver("a", numbered(2, envelope("2")))
    rig.broker.windows.put_nowait(Window(EPOCH, 2, 0, [Kept(1, 0.0, b"none"), Kept(2, 0.0, envelope("2"))]))
    await turns()
    rig.logs.deliver("a", numbered(3, envelope("3")))
    assert rig.got == [("2", 2), ("3", 3)]


async def test_not_all_topics_are_read_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the broker is back, and when it was lost meanwhile; in the end each has been read."""
    monkeypatch.setattr("fabric._history.shared.MOST_READS", 3)
    rig.logs.resume()
    for number in range(20):
        rig.logs.hear(str(number))
    await turns()
    assert rig.broker.reading == 3
    rig.logs.resume()
    await turns()
    assert rig.broker.reading == 3
    for _ in range(20):
        rig.broker.windows.put_nowait(Window(EPOCH, 1, 0, [Kept(1, 0.0, envelope("old"))]))
    await turns(200)
    assert rig.broker.reading == 0
    for number in range(20):
        rig.logs.deliver(str(number), numbered(2, envelope(f"new {number}")))
    assert rig.got == [(f"new {number}", 2) for number in range(20)]


async def test_an_epoch_that_ends_while_a_window_is_read(rig: Rig) -> None:
    """What has come of it is delivered, what is even older is forgotten, and it is not read again and again."""
    rig.broker.windows.put_nowait(Window(EPOCH, 1, 0, []))
    rig.logs.resume()
    rig.logs.hear("a")
    await turns()
    rig.logs.deliver("a", numbered(3, envelope("3")))  # 2 is missing: it is read
    rig.logs.deliver("a", numbered(7, envelope("ancient"), epoch="o" * 16))
    await turns()
    rig.logs.resume()  # the broker was away
    await turns()
    rig.broker.windows.put_nowait(Window("n" * 16, 0, 0, []))
    await turns()
    assert rig.broker.reading == 0
    rig.logs.deliver("a", numbered(1, envelope("new"), epoch="n" * 16))
    assert rig.got == [("3", 3), ("new", 1)]
    assert rig.gaps == ["a"]


async def test_offsets_that_grow_by_more_than_one(rig: Rig) -> None:
    """A message says what stands before it on its topic: where that is missing it is read."""
    rig.broker.windows.put_nowait(Window(EPOCH, 10, 0, []))
    rig.logs.resume()
    rig.logs.hear("a")
    await turns()
    rig.logs.deliver("a", numbered(15, envelope("15"), before=4))
    rig.logs.deliver("a", numbered(40, envelope("40"), before=30))
    assert rig.got == [("15", 15)]
    rig.broker.windows.put_nowait(Window(EPOCH, 40, 0, [Kept(30, 0.0, envelope("30")), Kept(40, 0.0, envelope("40"))]))
    await turns()
    assert rig.got == [("15", 15), ("30", 30), ("40", 40)]
    assert rig.gaps == []


@pytest.mark.parametrize("kind", [ValueError, StopIteration, asyncio.CancelledError, GeneratorExit])
async def test_what_on_recovery_raises_concerns_its_client_alone(rig: Rig, kind: type[BaseException]) -> None:
    def raising(_: History) -> None:
        raise kind

    rig.logs.resume()
    waiting = []
    for serve in (raising, lambda _: None):
        confirm = rig.logs.join("a", Subscriber("someone"), Position(EPOCH, 1), 0, serve, Outcome(None))
        assert confirm is not None
        waiting.append(asyncio.ensure_future(confirm()))
    await turns()
    rig.broker.windows.put_nowait(window(2))
    await turns()
    assert waiting[0].done()
    with pytest.raises(RuntimeError if kind is StopIteration else kind):
        waiting[0].result()
    assert waiting[1].result() is None
    rig.logs.deliver("a", numbered(3, envelope("3")))
    assert rig.got == [("3", 3)]


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, GeneratorExit])
async def test_what_a_message_raises_concerns_it_alone(rig: Rig, kind: type[BaseException]) -> None:
    rig.raises = kind
    await mirrored(rig, 1)
    rig.logs.deliver("a", numbered(4, envelope("4")))  # what comes between has to be read
    rig.broker.windows.put_nowait(window(4))
    await turns()
    assert rig.got == [("2", 2), ("4", 4)]
    assert rig.gaps == []
