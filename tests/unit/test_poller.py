"""fabric_ext.poller: which sockets it reads and when, and what it leaves to the loop. On socket pairs, in fake time."""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import math
import random
import socket
import struct
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from fabric_ext.bucket import RateGate, TokenBucket
from fabric_ext.connection import Connection
from fabric_ext.counters import Counters, LoopCounters
from fabric_ext.poller import PolledSessionProtocol, read_now, use_clock
from fabric_ext.protocol import State
from fabric_ext.throttle import Throttle
from support.fake_transport import FakeTransport
from support.frames import TEXT, close_frame, encode

MS = 1_000_000  # nanoseconds
PASS = 250_000  # nanoseconds that a pass has
IN_VAIN = 4  # reads without bytes, in a pass
VISITS = 64  # connections looked at in a pass
LARGE = "x" * 60_000  # nearly a read
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


class Handle:
    def __init__(self, callback: Callable[..., Any], arguments: tuple[Any, ...], context: Any = None) -> None:
        self.callback: Any = callback
        self.arguments = arguments
        self.context = context

    def cancel(self) -> None:
        self.callback = None

    def run(self) -> None:
        if self.callback is not None:
            (self.context or copy_context()).run(self.callback, *self.arguments)


class Loop:
    """An event loop that goes round when the test says so.

    Attributes:
        now: its time, and the poller's, in nanoseconds.
        cost: nanoseconds that pass whenever the poller asks for the time.
        counters: what its poller counts in.
        before_call_soon: called once, in the midst of the next `call_soon`, as a finalizer may be.
        readers: the connections whose sockets it reads itself in each turn, as it finds them ready.
        fired: the objects whose methods its timers have called.
    """

    def __init__(self, *, cost: int = 0) -> None:
        self.now = 1_000 * MS
        self.cost = cost
        self.counters = LoopCounters()
        self.ready: deque[Handle] = deque()
        self.timers: list[tuple[int, int, Handle]] = []
        self.readers: list[End] = []
        self.fired: list[object] = []
        self.closed = False
        self.before_call_soon: Callable[[], object] | None = None
        self._number = itertools.count()
        self.poller = use_clock(self, self.counters, self.clock)  # type: ignore[arg-type]

    def clock(self) -> int:
        self.now += self.cost
        return self.now

    def time(self) -> float:
        return self.now / 1e9

    def is_closed(self) -> bool:
        return self.closed

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> Any:
        return None

    def call_soon(self, callback: Callable[..., Any], *arguments: Any, context: Any = None) -> Handle:
        before, self.before_call_soon = self.before_call_soon, None
        if before is not None:
            before()
        if self.closed:
            raise RuntimeError("Event loop is closed")
        handle = Handle(callback, arguments, context)
        self.ready.append(handle)
        return handle

    def call_later(self, delay: float, callback: Callable[..., Any], *arguments: Any) -> Handle:
        handle = Handle(callback, arguments)
        heapq.heappush(self.timers, (self.now + round(delay * 1e9), next(self._number), handle))
        return handle

    def turn(self) -> None:
        """What is ready is read, timers that are due fire, and what was to be called is called."""
        for end in self.readers:
            end.loop_reads()
        while self.timers and self.timers[0][0] <= self.now:
            handle = heapq.heappop(self.timers)[2]
            self.fired.append(getattr(handle.callback, "__self__", None))
            self.ready.append(handle)
        for _ in range(len(self.ready)):
            self.ready.popleft().run()

    def moments_of_limits(self) -> list[int]:
        """When timers of rate limits fire, soonest first."""
        callers = [(due, getattr(handle.callback, "__self__", None)) for due, _, handle in self.timers]
        return sorted(due for due, caller in callers if isinstance(caller, Throttle))

    @property
    def polls(self) -> bool:
        """Is it kept from sleeping?"""
        calls = [handle for handle in self.ready if getattr(handle.callback, "__self__", None) is self.poller]
        assert len(calls) <= 1, "one call of the poller in each turn"
        return bool(calls)


class _Connection(Connection):
    """One that a weak reference can watch."""


class End:
    """A server's end of a connection that is polled, and the peer's socket."""

    def __init__(
        self,
        loop: Loop,
        *,
        busy_poll: float = 0.001,
        on_message: Callable[[End, str], object] | None = None,
        queued: int = 0,
        secure: bool = False,
        throttle: Throttle | None = None,
        pair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair,
    ) -> None:
        self.got: list[str] = []
        self.sent: list[str] = []
        self.then = on_message
        self.ours, self.theirs = pair()
        for sock in (self.ours, self.theirs):
            sock.setblocking(False)
        self.connection: Any = _Connection(
            loop,  # type: ignore[arg-type]
            Counters(),
            queue_limit=queued or 1000,
            queue_byte_limit=1 << 30,
            on_message=None if queued else self._note,
        )
        self.transport = FakeTransport(self.ours, secure=secure)
        self.session = PolledSessionProtocol(
            self.connection,
            self.transport,
            loop,  # type: ignore[arg-type]
            masking=False,
            max_message_size=1 << 20,
            max_fragments=10,
            fragment_size=0,
            close_timeout=5,
            throttle=throttle,
        )
        self.session.poll(loop, loop.counters, busy_poll)  # type: ignore[arg-type]
        self.connection._begin_session(self.session)

    def _note(self, _: Any, message: Any) -> None:
        self.got.append(message.text)
        if self.then is not None:
            self.then(self, message.text)

    def say(self, *texts: str) -> None:
        """The peer sends messages."""
        self.sent += texts
        self.theirs.sendall(b"".join(encode(TEXT, text) for text in texts))

    def take(self) -> list[str]:
        """What is in the queue."""
        taken = []
        while (message := self.connection._take_now()) is not None:
            taken.append(message.text)
        self.got += taken
        return taken

    def loop_reads(self) -> None:
        """What a loop does that finds the socket ready."""
        if not self.transport.reading or self.transport.closing:
            return
        try:
            data = self.ours.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self.transport.lose(error)
            return
        if data:
            self.transport.feed(data)
        else:
            self.transport.lose()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    return ours, theirs


def test_what_has_come_is_read_once_and_without_waiting() -> None:
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setblocking(True)
        assert read_now(ours.fileno()) is None
        theirs.sendall(b"x" * 20_000)
        ours.recv(20_000, socket.MSG_PEEK | socket.MSG_WAITALL)
        assert read_now(ours.fileno()) == b"x" * 16_384
        assert read_now(ours.fileno()) == b"x" * 3_616
        theirs.shutdown(socket.SHUT_WR)
        ours.recv(1, socket.MSG_PEEK)
        assert read_now(ours.fileno()) is None
    assert read_now(ours.fileno()) is None, "no descriptor"


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def make(loop: Loop) -> Iterator[Callable[..., End]]:
    """Makes an `End` on `loop`, whose sockets are closed afterwards."""
    with contextlib.ExitStack() as stack:

        def make_one(**options: Any) -> End:
            end = End(loop, **options)
            stack.callback(end.close)
            return end

        yield make_one


Make = Callable[..., End]

# --- hot and cold ------------------------------------------------------------------------------------------


def test_a_hot_socket_is_read_in_the_turn_in_which_bytes_are_there(loop: Loop, make: Make) -> None:
    end = make()
    assert loop.polls
    end.say("a", "b")
    loop.turn()
    assert end.got == ["a", "b"]
    assert end.session.inbound_seen
    assert (loop.counters.passes, loop.counters.hits) == (1, 1)
    loop.turn()
    assert (loop.counters.passes, loop.counters.hits) == (2, 1)


def test_a_connection_grows_cold_after_its_time_and_the_loop_may_sleep(loop: Loop, make: Make) -> None:
    end = make(busy_poll=0.001)
    loop.now += MS
    loop.turn()
    assert loop.polls
    loop.now += 1
    loop.turn()
    assert not loop.polls
    assert not loop.ready
    assert not loop.timers
    end.say("late")
    loop.turn()
    assert end.got == []
    end.loop_reads()
    assert end.got == ["late"]
    assert loop.polls


def test_each_byte_keeps_it_hot(loop: Loop, make: Make) -> None:
    end = make(busy_poll=0.001)
    for number in range(5):
        loop.now += MS - 1
        end.say(str(number))
        loop.turn()
    assert end.got == list("01234")
    end.theirs.sendall(encode(TEXT, "in two")[:3])
    loop.now += MS
    loop.turn()
    loop.now += MS
    loop.turn()
    assert loop.polls
    loop.now += 1
    loop.turn()
    assert not loop.polls


def test_an_endless_one_is_always_polled(loop: Loop, make: Make) -> None:
    end = make(busy_poll=math.inf)
    for _ in range(3):
        loop.now += 10**15
        end.say("x")
        loop.turn()
    assert end.got == ["x"] * 3
    assert loop.polls


def test_each_has_its_own_time(loop: Loop, make: Make) -> None:
    short, long = make(busy_poll=0.001), make(busy_poll=0.003)
    loop.now += 2 * MS
    loop.turn()
    short.say("a")
    long.say("b")
    loop.turn()
    assert (short.got, long.got) == ([], ["b"])


def test_the_time_for_which_it_polls_is_counted(loop: Loop, make: Make) -> None:
    end = make(busy_poll=0.001)
    for _ in range(10):
        loop.now += MS // 5
        loop.turn()
    assert not loop.polls
    polled = loop.counters.polled_ns
    assert MS <= polled <= MS + MS // 5
    loop.now += 1000 * MS
    end.say("x")
    end.loop_reads()
    loop.turn()
    assert loop.counters.polled_ns == polled


# --- what is left to the loop ------------------------------------------------------------------------------


def test_the_end_of_the_stream_is_the_transports(loop: Loop, make: Make) -> None:
    end = make(busy_poll=math.inf)
    end.say("last")
    end.theirs.close()
    loop.turn()
    loop.turn()
    assert end.got == ["last"]
    assert not loop.polls
    assert end.connection.state is State.OPEN
    end.loop_reads()
    assert end.connection.state is State.CLOSED


def test_an_error_of_which_the_kernel_tells_once_is_not_lost(loop: Loop, make: Make) -> None:
    end = make(busy_poll=math.inf, pair=tcp_pair)
    end.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    end.theirs.close()
    while loop.polls:
        loop.turn()
    end.loop_reads()
    assert isinstance(end.session.lost_error, ConnectionResetError)


def test_what_the_transport_knows_better_stays(loop: Loop, make: Make) -> None:
    end = make(busy_poll=math.inf)
    end.transport.lose(TimeoutError("no answer"))
    assert isinstance(end.session.lost_error, TimeoutError)
    loop.turn()
    assert not loop.polls


def test_over_tls_the_loop_is_kept_awake_and_the_transport_reads(loop: Loop, make: Make) -> None:
    end = make(secure=True)
    end.say("x")
    loop.turn()
    assert end.got == []
    assert loop.polls
    loop.now += MS + 1
    loop.turn()
    assert not loop.polls
    end.loop_reads()
    assert end.got == ["x"]
    assert loop.polls


def test_bytes_that_came_with_the_handshake_come_first(loop: Loop, make: Make) -> None:
    end = make()
    end.session.feed_early(encode(TEXT, "first"))
    end.say("second")
    loop.turn()
    assert end.got == []
    loop.turn()
    loop.turn()
    assert end.got == ["first", "second"]


def test_nothing_is_read_once_the_transport_is_closing(loop: Loop, make: Make) -> None:
    end = make()
    end.transport.abort()
    end.say("x")
    loop.turn()
    assert end.got == []
    assert not loop.polls


def test_nothing_is_polled_once_what_comes_is_thrown_away(loop: Loop, make: Make) -> None:
    end = make(busy_poll=math.inf)
    end.theirs.sendall(close_frame(1000) + encode(TEXT, "too late"))
    loop.turn()
    assert end.connection.state is State.CLOSING
    loop.turn()
    assert not loop.polls


# --- pause and resume --------------------------------------------------------------------------------------


def test_a_paused_socket_is_not_read_and_polled_again_when_it_is_resumed(loop: Loop, make: Make) -> None:
    end = make(queued=2, busy_poll=math.inf)
    while not end.session.is_reading_paused:
        end.say(LARGE)
        loop.turn()
    end.take()
    while not end.session.is_reading_paused:
        end.say(LARGE)
        loop.turn()
    queued = end.connection.queued
    end.say("c")
    for _ in range(3):
        loop.turn()
    assert not loop.polls
    assert end.take() == [LARGE] * queued
    for _ in range(3):
        loop.turn()
    assert end.take() == ["c"]
    assert loop.polls


# --- bounded and fair --------------------------------------------------------------------------------------


def test_a_pass_is_bounded_and_the_next_goes_on_where_it_ended() -> None:
    loop = Loop(cost=20_000)  # a delivery
    ends = [End(loop, busy_poll=math.inf) for _ in range(50)]
    for round_ in range(20):
        for end in ends:
            end.say(str(round_))
    before = 0
    while loop.counters.hits < len(ends):  # a read takes all that is there
        loop.turn()
        assert 0 < loop.counters.hits - before <= PASS // 20_000 + 1
        before = loop.counters.hits
    assert all(end.got == end.sent for end in ends)
    # One that always has bytes does not keep others from theirs.
    order: list[int] = []
    for number, end in enumerate(ends):
        end.then = lambda end, _, number=number: (order.append(number), end.say("again"))  # type: ignore[misc]
        end.say("begin")
    while len(order) < 1000:
        loop.turn()
    counts = [order.count(number) for number in range(50)]
    assert max(counts) - min(counts) <= 1
    for end in ends:
        end.close()


def test_sockets_without_bytes_are_bounded_too() -> None:
    loop = Loop()
    ends = [End(loop, busy_poll=math.inf) for _ in range(100)]
    for number in (99, 50, 3, 4, 98):
        ends[number].say("x")
        for _ in range(100 // IN_VAIN):
            loop.turn()
        assert ends[number].got == ["x"]
    # The loop, which is kept awake, finds it in its very next turn.
    loop.readers += ends
    ends[70].say("x")
    loop.turn()
    assert ends[70].got == ["x"]
    for end in ends:
        end.close()


def test_many_that_grow_cold_do_so_in_several_passes() -> None:
    loop = Loop()
    ends = [End(loop, busy_poll=0.001) for _ in range(200)]
    loop.now += MS + 1
    for _ in range(math.ceil(200 / VISITS)):
        assert loop.polls
        loop.turn()
    assert not loop.polls
    for end in ends:
        end.close()


def test_a_timer_of_1_ms_is_never_later_than_2_ms_under_full_polling(rng: random.Random) -> None:
    loop = Loop(cost=10_000)
    handler_ns = 30_000
    late: list[int] = []
    passes: list[int] = []
    due = due_passes = 0

    def work(end: End, _: str) -> None:
        loop.now += rng.randrange(handler_ns)
        end.say("again")

    def fire() -> None:
        late.append(loop.now - due)
        passes.append(loop.counters.passes - due_passes)
        start()

    def start() -> None:
        nonlocal due, due_passes
        due = loop.now + MS
        due_passes = -1
        loop.call_later(0.001, fire)

    ends = [End(loop, busy_poll=math.inf, on_message=work) for _ in range(200)]
    for end in ends:
        end.say("begin")
    start()
    while len(late) < 200:
        loop.now += 5_000  # what a turn costs
        loop.turn()
        if due_passes < 0 and loop.now >= due:
            due_passes = loop.counters.passes
    assert max(late) <= MS
    assert max(passes) <= 1  # of the poller, between the moment at which it is due and its call
    assert min(len(end.got) for end in ends) > 1
    for end in ends:
        end.close()


# --- what a handler may do ---------------------------------------------------------------------------------


def test_a_handler_that_lets_the_loop_run(loop: Loop, make: Make) -> None:
    def run_inside(end: End, text: str) -> None:
        if text == "a":
            other.say("inside")
            end.say("nested")
            for _ in range(3):
                loop.turn()

    first, other = make(on_message=run_inside, busy_poll=math.inf), make(busy_poll=math.inf)
    loop.readers += [first, other]
    first.say("a", "b")
    for _ in range(4):
        loop.turn()
    assert first.got == first.sent
    assert other.got == other.sent
    assert loop.polls


def test_a_handler_that_ends_connections(loop: Loop, make: Make) -> None:
    ends: list[End] = []

    def end_all(_: End, __: str) -> None:
        for end in ends:
            end.transport.lose()

    ends += [make(on_message=end_all, busy_poll=math.inf) for _ in range(5)]
    survivor = make(busy_poll=math.inf)
    for end in (*ends, survivor):
        end.say("x")
    loop.turn()
    loop.turn()
    assert [len(end.got) for end in ends] == [1, 0, 0, 0, 0]
    assert survivor.got == ["x"]
    assert loop.polls
    survivor.transport.lose()
    loop.turn()
    assert not loop.polls


def test_a_handler_that_raises_fails_its_own_connection(loop: Loop, make: Make) -> None:
    def fail(_: End, __: str) -> None:
        raise ValueError("no")

    bad, good = make(on_message=fail, busy_poll=math.inf), make(busy_poll=math.inf)
    for end in (bad, good):
        end.say("x", "y")
    loop.turn()
    assert bad.session.closing is not None
    assert bad.session.closing.sent_code == 1011
    assert good.got == ["x", "y"]
    assert loop.polls


def test_the_poller_and_the_loop_deliver_in_the_context_of_the_connection(loop: Loop, make: Make) -> None:
    number: ContextVar[int] = ContextVar("number", default=0)
    seen: list[int] = []

    def note(_: End, __: str) -> None:
        seen.append(number.get())
        number.set(number.get() + 1)

    context = copy_context()
    context.run(number.set, 10)
    end = context.run(make, on_message=note, busy_poll=math.inf)
    for read in (loop.turn, end.loop_reads, loop.turn):
        end.say("x")
        read()
    assert seen == [10, 11, 12]
    assert number.get() == 0


def test_a_poller_keeps_nobodys_context(loop: Loop, make: Make) -> None:
    number: ContextVar[int] = ContextVar("number")
    copy_context().run(lambda: (number.set(1), make(busy_poll=math.inf)))
    (handle,) = loop.ready
    assert number not in handle.context


# --- its end -----------------------------------------------------------------------------------------------


def test_it_is_scheduled_once_whatever_a_finalizer_does(loop: Loop, make: Make) -> None:
    end = make()
    loop.now += 2 * MS
    loop.turn()
    assert not loop.ready
    loop.before_call_soon = lambda: end.say("inside") or end.loop_reads()  # type: ignore[func-returns-value]
    end.say("outside")
    end.loop_reads()
    assert loop.polls  # once, or it would fail
    assert end.got == ["outside", "inside"]


def test_a_loop_that_is_closed_calls_nobody(loop: Loop, make: Make) -> None:
    end = make()
    loop.now += 2 * MS
    loop.turn()
    loop.closed = True
    end.say("x")
    with pytest.raises(RuntimeError, match="closed"):
        end.loop_reads()
    loop.closed = False
    end.say("y")
    end.loop_reads()
    assert loop.polls
    assert end.got == ["x", "y"]


def test_what_is_polled_is_garbage_once_the_loop_is() -> None:
    loop = Loop()
    end = End(loop, busy_poll=math.inf)
    end.say("x")
    loop.turn()
    watched = weakref.ref(end.connection), weakref.ref(loop.poller)
    end.close()
    del end, loop
    gc.collect()
    assert [reference() for reference in watched] == [None, None]


def test_it_is_polled_by_one_poller(loop: Loop, make: Make) -> None:
    end = make()
    with pytest.raises(RuntimeError, match="polled already"):
        end.session.poll(loop, loop.counters, 1)  # type: ignore[arg-type]


# --- against a model ---------------------------------------------------------------------------------------


class Modelled:
    """An `End`, and what must be true of it.

    Some have a rate limit. Its tokens come so rarely that none comes by itself: behind the burst there is a message for
    each timer of the limit that has fired.
    """

    def __init__(self, loop: Loop, rng: random.Random) -> None:
        self.loop = loop
        self.busy = rng.choice([0.0005, 0.001, 0.004, math.inf])
        self.burst = rng.choice([0, 0, 2, 5])
        self.throttle: Throttle | None = None
        if self.burst:
            self.throttle = Throttle(RateGate(TokenBucket(0.001, self.burst)), "slow", "slow")
        self.end = End(loop, busy_poll=self.busy, queued=rng.choice([1, 3, 10]), throttle=self.throttle)
        self.heard = loop.now
        self.paused = False
        self.ended = False
        self.count = itertools.count()

    def is_hot(self, now: int) -> bool:
        return not self.ended and not self.paused and now - self.heard <= self.busy * 1e9

    def received(self) -> int:
        return len(self.end.got) + self.end.connection.queued

    def allowed(self) -> int:
        """How many messages may have been received."""
        if self.throttle is None:
            return len(self.end.sent)
        return min(len(self.end.sent), self.burst + self.loop.fired.count(self.throttle))


class Timers:
    """Ordinary timers of a loop: none is early, and none waits for more than one pass of the poller."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.due: dict[int, int] = {}  # number -> when
        self.late: dict[int, int] = {}  # number -> passes that there had been when it became due
        self.count = itertools.count()

    def start(self, ns: int) -> None:
        number = next(self.count)
        self.due[number] = self.loop.now + ns
        self.loop.call_later(ns / 1e9, self.fire, number)

    def fire(self, number: int) -> None:
        assert self.loop.now >= self.due.pop(number)
        assert self.loop.counters.passes - self.late.pop(number) <= 1

    def time_has_passed(self) -> None:
        for number, when in self.due.items():
            if when <= self.loop.now:
                self.late.setdefault(number, self.loop.counters.passes)


@pytest.mark.parametrize("episode", range(30))
def test_against_a_model(episode: int, rng: random.Random) -> None:
    """At random: bytes come, are taken, time passes, timers and limits begin, connections end; the loop reads at times.

    The poller reads what is hot, and nothing else, and what a rate limit holds up is not read; all that is not read by
    it is there for the loop; the loop is kept awake exactly while something is hot; no timer waits for more than a
    pass; and what arrives is what was sent, in order.
    """
    rng.seed(f"{rng.random()} {episode}")
    loop = Loop()
    all_: list[Modelled] = [Modelled(loop, rng) for _ in range(rng.randrange(1, 12))]
    timers = Timers(loop)

    def check() -> None:
        for one in all_:
            got = [*one.end.got]
            assert got == one.end.sent[: len(got)]
            if not one.ended:
                assert one.received() <= one.allowed()
                one.paused = one.end.session.is_reading_paused

    for _ in range(300):
        one = rng.choice(all_)
        action = rng.choice(
            ["say", "say", "say", "take", "turn", "turn", "time", "loop", "timer", "tokens", "close", "lose", "new"]
        )
        if action == "say" and not one.ended and len(one.end.sent) == one.received():
            filler = "x" * rng.choice([0, 0, 25_000])  # two of them fit into one read
            one.end.say(*(f"{next(one.count)}{filler}" for _ in range(rng.randrange(1, 3))))
        elif action == "take":
            one.end.take()
            if one.paused and not one.end.session.is_reading_paused:
                one.paused, one.heard = False, loop.now  # polled again from when it is read again
        elif action == "turn":
            polled_turn(loop, all_)
        elif action == "time":
            loop.now += rng.choice([1000, MS // 4, MS, 5 * MS])
            timers.time_has_passed()
        elif action == "timer":
            timers.start(rng.choice([0, 1000, MS, 3 * MS]))
            timers.time_has_passed()
        elif action == "tokens" and (moments := loop.moments_of_limits()):
            loop.now = max(loop.now, moments[0])
            timers.time_has_passed()
            polled_turn(loop, all_)
        elif action == "loop" and not one.ended:
            waiting = len(one.end.sent) - one.received()
            was_paused = one.paused
            one.end.loop_reads()
            if waiting and not was_paused:
                one.heard = loop.now
        elif action in ("close", "lose") and not one.ended and rng.random() < 0.2:
            one.ended = True
            if action == "lose":
                one.end.transport.lose()
            else:
                one.end.theirs.close()
                one.end.transport.closing = True
                one.end.transport.protocol.connection_lost(None)
        elif action == "new" and rng.random() < 0.1:
            one.end.close()
            if not one.ended:
                one.end.transport.lose()
            all_[all_.index(one)] = Modelled(loop, rng)
        check()
    for one in all_:
        if not one.ended:
            for _ in range(1000):
                if len(one.end.got) == len(one.end.sent):
                    break
                one.end.take()
                if one.end.session.is_reading_paused and (moments := loop.moments_of_limits()):
                    loop.now = max(loop.now, moments[0])
                    timers.time_has_passed()
                loop.turn()
                one.end.loop_reads()
            assert one.end.got == one.end.sent
            one.end.transport.lose()
        assert one.end.got == one.end.sent[: len(one.end.got)]
        one.end.close()
    loop.turn()
    loop.turn()
    assert not loop.polls


def polled_turn(loop: Loop, all_: list[Modelled]) -> None:
    """Turns in which the loop itself reads nothing: as many as it takes to look at all that are hot."""
    hot = [one.is_hot(loop.now) for one in all_]
    before = [one.received() for one in all_]
    fired = len(loop.fired)
    polled = loop.polls
    assert polled or not any(hot)
    for _ in range(4 + len(all_) // IN_VAIN):
        loop.turn()
    for one, was_hot, had in zip(all_, hot, before, strict=True):
        waited = len(one.end.sent) - had
        if one.ended:
            continue
        was_released = one.throttle is not None and one.throttle in loop.fired[fired:]
        if was_hot and waited:
            assert one.received() == one.allowed()  # a read takes all
            one.heard = loop.now
        was_paused, one.paused = one.paused, one.end.session.is_reading_paused
        if was_released:
            assert one.received() == one.allowed() > had
        elif not was_hot:
            assert one.received() == had
        if was_paused and not one.paused:
            one.heard = loop.now  # polled again from when it is read again
    assert loop.polls == any(one.is_hot(loop.now) for one in all_)
