"""Busy polling: while connections are hot, their event loop looks for bytes instead of sleeping. One poller a loop.

A connection is hot for `busy_poll` seconds after its last byte. As long as there is one, the loop calls the poller in
each of its turns, and so does not sleep. The poller reads the hot sockets itself, without blocking, into the loop's
read buffer, and delivers what it finds as a read of the transport is delivered. So no sleeping thread has to be woken
for a message, and it does not wait for the loop to ask which descriptors are ready. Timers, other descriptors, calls
from other threads and signals have their turn as always: between two passes the loop goes once round.

A pass has PASS_NS at most, and a delivery that has begun; the next one goes on where it ended. So with many hot
connections each has its turn, and a timer is delayed by no more than that. Nor does it try many sockets in vain: where
more than IN_VAIN are hot, the loop finds by one call which of them are ready, and reads those that the pass did not.

Owns which connections are hot. Leaves to the loop: the end of a stream and errors, which the transport has to learn
by itself; connections that are not read from now; and those over TLS, for which it only keeps the loop awake.

`read_now` looks once, whether the request of a connection that was just accepted is there already.
"""

import asyncio
import os
import weakref
from contextvars import Context, copy_context

from cpython.exc cimport PyErr_Clear
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t

from fabric_ext.clock cimport monotonic_ns
from fabric_ext.counters cimport LoopCounters
from fabric_ext.read_buffer cimport Block, read_buffer_of
from fabric_ext.session cimport Session

cdef extern from "Python.h":
    int PyContext_Enter(object context) noexcept
    int PyContext_Exit(object context) noexcept

cdef extern from *:
    """
    #include <sys/socket.h>

    static ssize_t fabric_recv_now(int fd, void *p, size_t n) {
        return recv(fd, p, n, MSG_DONTWAIT);
    }

    /* Have the kernel look at the network card's queue itself, where the process may ask for that. */
    static void fabric_prefer_busy_poll(int fd) {
    #if defined(__linux__)
        int us = 50, yes = 1;
    #if defined(SO_BUSY_POLL)
        (void)setsockopt(fd, SOL_SOCKET, SO_BUSY_POLL, &us, sizeof(us));
    #endif
    #if defined(SO_PREFER_BUSY_POLL)
        (void)setsockopt(fd, SOL_SOCKET, SO_PREFER_BUSY_POLL, &yes, sizeof(yes));
    #endif
        (void)us, (void)yes;
    #else
        (void)fd;
    #endif
    }
    """
    ssize_t recv_now "fabric_recv_now"(int fd, void* p, size_t n) noexcept
    void prefer_busy_poll "fabric_prefer_busy_poll"(int fd) noexcept

cdef enum:
    PASS_NS = 250_000            # how long a pass may hold up everything else
    IN_VAIN = 4                  # reads that find nothing, after which a pass ends: each costs 0.3 to 0.7 µs
    VISITS = 64                  # sessions that a pass looks at, at most
    READ_SIZE = 16384            # bytes that read_now() takes, at most


def read_now(int fd):
    """What has come on a socket, at most 16 KB of it; None if nothing has. The end of the stream is left to its transport."""
    cdef char[READ_SIZE] data
    cdef ssize_t n = recv_now(fd, data, READ_SIZE)
    return data[:n] if n > 0 else None


_pollers = weakref.WeakValueDictionary()       # id(loop) -> Poller, which keeps its loop: no id is reused


cdef Poller poller_of(object loop, LoopCounters counters):
    """The poller of `loop`, as long as a connection uses it; one that is made now counts in `counters`."""
    poller = _pollers.get(id(loop))
    if poller is None:
        poller = _pollers[id(loop)] = Poller(loop, counters)
    return poller


def use_clock(loop, LoopCounters counters not None, clock):
    """For tests: have the poller of `loop` ask `clock()` for the time, as long as what is returned is kept."""
    cdef Poller poller = poller_of(loop, counters)
    poller._clock = clock
    return poller


cdef class Poller:
    """Polls the hot connections of one event loop."""

    def __cinit__(self, loop, LoopCounters counters not None):
        self._loop = loop
        self._call_soon = loop.call_soon
        self._context = Context()
        self._counters = counters
        self._read_buffer = read_buffer_of(loop)
        self._hot = []

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    cdef int64_t now(self) except -1:
        return monotonic_ns() if self._clock is None else self._clock()

    cdef int heat(self, PolledSession session, int64_t now) except -1:
        """Poll `session` from now on."""
        if session._place < 0:
            session._place = len(self._hot)
            self._hot.append(session)
        if not self._scheduled and not self._passing:
            self._since = now
            self.schedule()
        return 0

    cdef int cool(self, PolledSession session) except -1:
        """Poll `session` no longer."""
        cdef Py_ssize_t place = session._place
        cdef PolledSession last
        if place < 0:
            return 0
        session._place = -1
        last = self._hot.pop()
        if last is not session:
            last._place = place
            self._hot[place] = last
        return 0

    cdef int schedule(self) except -1:
        """Have the loop call `turn`; so it does not sleep before."""
        if self._scheduled:
            return 0
        self._scheduled = True                 # first: what a finalizer brings about here must not schedule another one
        try:
            self._call_soon(self.turn, context=self._context)
        except BaseException:
            self._scheduled = False
            raise
        return 0

    def turn(self):
        """Make one pass, and have the loop call again as long as something is hot. The loop calls it."""
        cdef int64_t now = self.now()
        self._scheduled = False
        if self._passing:                      # in a loop that a handler runs inside a pass: it reads for itself
            return
        self._counters.passes += 1
        self._counters.polled_ns += now - self._since
        self._since = now
        self._passing = True
        try:
            self.look(now)
        finally:
            self._passing = False
            if self._hot:
                self.schedule()

    cdef int look(self, int64_t now) except -1:
        """Look at the hot sessions, each once, until IN_VAIN of them had nothing or the time is up.

        When one is taken out, another takes its place, and may so be passed over until the next pass.
        """
        cdef int64_t end = now + PASS_NS
        cdef Py_ssize_t left = min(len(self._hot), VISITS)
        cdef int in_vain = 0
        cdef PolledSession session
        while left and len(self._hot):
            left -= 1
            if self._next >= len(self._hot):
                self._next = 0
            session = self._hot[self._next]
            if not session.is_hot(now):
                self.cool(session)             # another one has its place now
                continue
            self._next += 1                    # first: a delivery may change which are hot
            if not session._is_direct:
                continue
            if self.read(session, now):
                now = self.now()
                if now >= end:
                    break
            else:
                in_vain += 1
                if in_vain == IN_VAIN:
                    break
        return 0

    cdef bint read(self, PolledSession session, int64_t now) except -1:
        """Read the socket of `session`; were there bytes?"""
        cdef Block block
        cdef ssize_t n
        if session._early is not None:
            return False                       # these come first
        block = self._read_buffer.block()
        n = recv_now(session._transport._socket, block.data, block.size)
        if n > 0:
            if session._transport.io.is_closing():
                self.cool(session)             # not wanted any more
                return True
            self._counters.hits += 1
            session._heard_ns = now
            session.inbound_seen = True
            session.deliver_read(block, n)
            if not session.is_hot(now):        # what it brought about may have paused or ended it
                self.cool(session)
            return True
        if n == 0:
            self.cool(session)                 # the transport sees the end of the stream too
        elif errno != EAGAIN and errno != EINTR:
            session._read_error = OSError(errno, os.strerror(errno))
            self.cool(session)                 # the transport sees the end, but not this error, of which the kernel tells once
        return False


cdef class PolledSession(Session):
    """A session that is polled while it is hot; `poll` is to be called before it is opened."""

    def __cinit__(self, *args, **options):
        self._place = -1

    def poll(self, loop, LoopCounters counters not None, double seconds):
        """Have the poller of `loop`, which counts in `counters`, poll it for `seconds` after its last byte."""
        if self._poller is not None:
            raise RuntimeError("it is polled already")
        self._poller = poller_of(loop, counters)
        self._busy_ns = <int64_t>(seconds * 1e9) if seconds * 1e9 < INT64_MAX else INT64_MAX
        self._context = copy_context()
        self._is_direct = not self._transport.is_secure and self._transport._socket >= 0
        if self._transport._socket >= 0:
            prefer_busy_poll(self._transport._socket)

    def open(self, bint in_parts=False):
        Session.open(self, in_parts)
        self.warm()

    def buffer_updated(self, Py_ssize_t n, /):
        cdef bint entered = PyContext_Enter(self._context) == 0
        if not entered:                        # a handler of this very session lets the loop run
            PyErr_Clear()
        try:
            Session.buffer_updated(self, n)
        finally:
            if entered:
                PyContext_Exit(self._context)
        self.warm()

    def connection_lost(self, error):
        if self._poller is not None:
            self._poller.cool(self)
        Session.connection_lost(self, self._read_error if error is None else error)

    cdef int start_reading(self) except -1:
        Session.start_reading(self)
        return self.warm()

    cdef int warm(self) except -1:
        """Bytes have come, or may come again: poll it. A pass leaves out what is not to be polled."""
        cdef int64_t now
        if self._poller is None or self._user is None:
            return 0
        now = self._heard_ns = self._poller.now()
        return self._poller.heat(self, now)

    cdef int deliver_read(self, Block block, Py_ssize_t n) except -1:
        """Deliver what the poller has read, in this session's context."""
        cdef bint entered = PyContext_Enter(self._context) == 0
        if not entered:
            PyErr_Clear()
        try:
            return self.read(block, n)
        finally:
            if entered:
                PyContext_Exit(self._context)


class PolledSessionProtocol(PolledSession, asyncio.BufferedProtocol):
    """A polled session, as asyncio knows a protocol that reads into a buffer of its own."""

    __slots__ = ()
    data_received = None                           # as that of SessionProtocol
