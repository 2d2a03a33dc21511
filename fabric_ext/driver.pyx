"""Steps an event loop that no thread runs, and waits for its descriptors, in the threads that use its connections.

Owns the lock, the steps and the waiting of such a loop (`Driver`), and what it knows of a connection for whose messages
a thread waits (`Receiver`). `fabric_ext.blocking` and `fabric_ext.plain_blocking` add `recv` and `send` to that.
Decides nothing about the protocol: sessions, transports and tasks are those of any client, on a loop of their own.

The rules:

- Whatever touches the loop or a connection holds the driver's lock. Nothing waits while it holds it.
- One thread at a time waits for descriptors, and while it does it alone steps the loop. The others wait for it to bring
  what they wait for. A thread that waits for a message goes before all others: it reads its socket itself, without the
  loop, the moment that bytes come, with the GIL released until then.
- Nobody waits in there: then the keeper (`fabric._sync.keeper`) steps the loop when a descriptor or a timer asks for it.
- What the application gave to be called is called by a thread that waits, between two steps and without the lock, so
  that it may wait itself.
- A signal handler runs while its thread neither holds the lock nor waits for descriptors, as far as that is for us to
  choose. What Ctrl-C raises waits for the end of a step.
"""

import asyncio
import sys
import threading
from datetime import timedelta
from heapq import heappop, heappush

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport (NOWAIT_LOCK, WAIT_LOCK, PyThread_acquire_lock, PyThread_allocate_lock, PyThread_free_lock,
                               PyThread_get_thread_ident, PyThread_release_lock)
from libc.stdint cimport INT64_MAX, int64_t

from fabric_ext.clock cimport monotonic_ns
from fabric_ext.interrupts cimport hold_interrupts, release_interrupts
from fabric_ext.read_buffer cimport Block
from fabric_ext.session cimport Session
from fabric_ext.session_user cimport SessionUser
from fabric_ext.writer cimport loop_writer_of

from fabric_ext.interrupts import uninterrupted

cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <sys/socket.h>

    enum { FABRIC_LOOP, FABRIC_TIME, FABRIC_SIGNAL };

    static int fabric_sleep(struct pollfd *fds, int count, int64_t ns) {
    #if defined(__linux__)
        struct timespec limit = {ns / 1000000000, ns % 1000000000};
        return ppoll(fds, count, ns < 0 ? NULL : &limit, NULL);
    #else
        int64_t ms = ns < 0 ? -1 : (ns + 999999) / 1000000;
        return poll(fds, count, ms > 1000000 ? 1000000 : (int)ms);
    #endif
    }

    static inline void fabric_relax(void) {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("yield");
    #endif
    }

    /* Read from `fd` what is there, or wait for it: how many bytes, or 0 and a reason to look at something else, which is
       that the loop's descriptor is readable, or `woken` set, or `fd` at its end; that it is `until`; or a signal.
       `fd` -1: wait for the loop only. Until `busy_until` it is looked for again and again, then slept. */
    static ssize_t fabric_wait(int fd, int loop_fd, char *p, size_t size, int64_t until, int64_t busy_until,
                               const volatile int *woken, int *reason) {
        struct pollfd fds[2] = {{loop_fd, POLLIN, 0}, {fd, POLLIN, 0}};
        int64_t now, looked = 0, began = 0;
        ssize_t n;
        for (;;) {
            if (fd >= 0) {
                n = recv(fd, p, size, MSG_DONTWAIT);
                if (n > 0)
                    return n;
                if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
                    *reason = FABRIC_LOOP;         /* the loop is told the same, and knows what to do */
                    return 0;
                }
            }
            *reason = FABRIC_LOOP;
            if (*woken)
                return 0;
            now = fabric_monotonic_ns();
            if (now >= until) {
                *reason = FABRIC_TIME;
                return 0;
            }
            if (now < busy_until) {
                if (began == 0)
                    began = now;
                if (fd < 0 || now - looked >= 20000) {
                    looked = now;
                    if (fabric_sleep(fds, 1, 0) > 0)
                        return 0;
                }
                if (now - began >= 2000000) {      /* a signal that came sets a flag, and ends nothing here */
                    *reason = FABRIC_SIGNAL;
                    return 0;
                }
                fabric_relax();
                continue;
            }
            if (fabric_sleep(fds, fd < 0 ? 1 : 2, until == INT64_MAX ? -1 : until - now) < 0) {
                *reason = FABRIC_SIGNAL;
                return 0;
            }
            if (fds[0].revents && !(fd >= 0 && fds[1].revents))
                return 0;
        }
    }
    """
    enum: FABRIC_LOOP
    enum: FABRIC_TIME
    enum: FABRIC_SIGNAL
    Py_ssize_t wait_for "fabric_wait"(int fd, int loop_fd, char* p, size_t size, int64_t until, int64_t busy_until,
                                      const volatile int* woken, int* reason) noexcept nogil

cdef extern from "<sched.h>":
    int sched_yield() noexcept nogil

cdef enum:
    READS = 32                   # past the loop, in a row; then it has a step
    STEPS = 100                  # in a row, for tasks that make each other run
    YIELD = 16                   # steps in a row after which other threads may have the lock
    TICK_NS = 50_000_000         # between two looks of the keeper at a connection that is in use
    AWAY_NS = 1_000_000          # how long after a receiver has left another thread takes its place

cdef int64_t NEVER = INT64_MAX

cdef object _invalid_state = RuntimeError
cdef object _timed_out = TimeoutError

cdef object get_running_loop = asyncio._get_running_loop
cdef object set_running_loop = asyncio._set_running_loop
# From Python 3.14 on a thread has one running task, whatever its loop.
cdef object swap_current_task = asyncio.tasks._swap_current_task if sys.version_info >= (3, 14) else None


def bind_errors(*, invalid_state, timed_out):
    """Set what is raised for a call that is not allowed now, made with a text, and for one that took too long."""
    global _invalid_state, _timed_out
    _invalid_state, _timed_out = invalid_state, timed_out


cdef object invalid_state(str text):
    """The exception for a call that is not allowed now."""
    return _invalid_state(text)


cdef object timed_out(str what, object timeout):
    """The exception for a call that took longer than `timeout`."""
    return _timed_out(what, timeout)


def _nothing():
    """What a loop is given to do that is only to wake up."""


cdef int64_t deadline_of(object timeout) except -1:
    """The moment, in ns, that is `timeout` from now: seconds or a timedelta; None for never."""
    cdef double seconds
    if timeout is None:
        return NEVER
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    elif isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is seconds, a timedelta or None, not {type(timeout).__name__}")
    seconds = timeout
    if not seconds >= 0:
        raise ValueError(f"timeout is {timeout}, must be at least 0")
    if seconds > 1e9:
        return NEVER
    return monotonic_ns() + <int64_t>(seconds * 1e9)


cdef class Driver:
    """Steps `loop` from the threads that use its connections."""

    def __cinit__(self):
        self._lock = PyThread_allocate_lock()
        if self._lock == NULL:
            raise MemoryError("cannot allocate a lock")
        self._loop_fd = -1
        self._until = NEVER
        self._times = []
        self._followers = []
        self._calls = []
        self._connections = []
        self.is_closed = True

    def __dealloc__(self):
        if self._lock != NULL:
            PyThread_free_lock(self._lock)

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    def begin(self, loop, keeper, int descriptor):
        """Have `loop` stepped, whose selector is `descriptor`.

        `keeper.wake(driver)` is called when nobody else is there to do it, `keeper.release(driver)` when a thread waits
        for a message, and before `descriptor` is closed.
        """
        self.loop = loop
        self._writer = loop_writer_of(loop)
        self._writer.by_threads = True
        self._keeper = keeper
        self._loop_fd = descriptor
        self.is_closed = False

    # ------------------------------------------------------------------ what the loop tells

    def is_due(self):
        """Something is to be done in the next step."""
        self._due = True

    def is_due_at(self, double when):
        """Something is to be done at `when`, in seconds of the loop's clock."""
        cdef int64_t ns = <int64_t>(min(when, 9e9) * 1e9)
        heappush(self._times, ns)
        if self._waiting:
            if ns < self._until and self._waiting != <unsigned long>PyThread_get_thread_ident():
                self._wake()
        elif ns < self._kept_until:
            self._wake_keeper()

    cdef int _wake_keeper(self) except -1:
        """Have the keeper look at this one again."""
        self._kept_until = 0                       # first: it may look at once, and say until when it has
        try:
            uninterrupted(self._keeper.wake, self)
        except BaseException:
            self._kept_until = NEVER               # whether it was told or not, the next one tells it again
            raise
        return 0

    cdef int gathers(self) except -1:
        """What this thread wrote is gathered: it leaves before long, though the thread may not come back."""
        if self._kept_until:                       # else the keeper looks within a tick
            self._turns += 1                       # within which it leaves this one alone
            self._wake_keeper()
        return 0

    # ------------------------------------------------------------------ the lock

    cdef int _acquire(self) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef SessionUser connection
        cdef Session session
        if not self._forked and not PyThread_acquire_lock(self._lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self._lock, WAIT_LOCK)
        self._owner = me
        self._depth = 1
        if me != self._home:
            self._home = me
            for connection in self._connections:
                session = connection.session_now()
                if session is not None:
                    session._transport._thread_id = me
        return 0

    cdef void _release(self) noexcept:
        self._owner = 0
        self._depth = 0
        if not self._forked:
            PyThread_release_lock(self._lock)

    cdef int enter(self) except -1:
        """Take the lock, which the same thread may have several times."""
        if self._owner == <unsigned long>PyThread_get_thread_ident():
            self._depth += 1
            return 0
        if self._forked:
            raise _invalid_state("this connection belongs to the parent of this process")
        return self._acquire()

    cdef int leave(self) except -1:
        """Give the lock back; what has become due meanwhile is done first, or by the thread that waits."""
        if self._depth > 1:
            self._depth -= 1
            return 0
        try:
            if self._forked:
                pass
            elif self._due and not self._stepping:
                if self._waiting:
                    self._wake()
                else:
                    self._settle()
        finally:
            self._release()
        return 0

    # ------------------------------------------------------------------ steps

    cdef int _step(self) except -1:
        """Let the loop do what is due, without waiting for anything."""
        cdef int64_t now = monotonic_ns()
        cdef bint held
        if self._stepping or self.is_closed:
            return 0
        held = hold_interrupts()                   # in the midst of a step an exception could lose what it is about
        try:
            self._due = False
            self._woken = False
            self._reads = 0
            while self._times and self._times[0] <= now:
                heappop(self._times)
            outer = get_running_loop()
            task = None
            if outer is not None:                  # a thread that runs a loop of its own, as those of notebooks do
                if swap_current_task is not None:
                    task = swap_current_task(outer, None)
                set_running_loop(None)
            self._stepping = True
            try:
                self.loop.stop()                   # so that it looks once, and runs what is ready
                self.loop.run_forever()
            finally:
                self._stepping = False
                if outer is not None:
                    set_running_loop(outer)
                    if task is not None:
                        swap_current_task(outer, task)
                self._tell(False)
        finally:
            if held:
                release_interrupts()
        return 0

    cdef int _settle(self) except -1:
        """Step until nothing is due."""
        cdef int i
        try:
            for i in range(STEPS):
                if not self._due:
                    break
                self._step()
        finally:
            if self._due or self._calls:
                self._wake_keeper()
        return 0

    cdef int _wake(self) except -1:
        """Have the thread that waits for descriptors look at the loop."""
        if not self._woken:
            uninterrupted(self.loop.call_soon_threadsafe, _nothing)
            self._woken = True                     # only now: whatever is raised before, the next one tries again
        return 0

    # ------------------------------------------------------------------ waiting

    cdef bint wait(self, Receiver receiver, object future, int64_t until) except -1:
        """Wait, with the lock held, until `future` is done, or a message there for `receiver`; False: until `until`.

        The lock is given away meanwhile.
        """
        cdef bint receives = receiver is not None
        cdef bint tried = False
        cdef int steps = 0
        if self.is_closed:
            raise _invalid_state("this connection is closed")
        if self._depth > 1 or self._stepping:
            raise _invalid_state("this call would wait, which what is called inside the connection's own work may not")
        self._receivers += receives
        try:
            while True:
                if self._forked:
                    raise _invalid_state("this connection belongs to the parent of this process")
                if self._calls:
                    self._receivers -= receives
                    try:
                        self._call_outside()
                    finally:
                        self._receivers += receives
                if receiver._is_over() if receives else future.done():
                    return True
                if tried and monotonic_ns() >= until and not (self._due and not self._waiting):
                    return False
                tried = True
                steps = steps + 1 if self._due else 0
                if steps % YIELD == YIELD - 1:     # tasks that make each other run must not keep others from the lock
                    self._release()
                    with nogil:
                        sched_yield()
                    self._acquire()
                if self._may_drive(receives, until):
                    self._drive(receiver, until)
                else:
                    self._follow(receives, future, until)
        finally:
            self._receivers -= receives
            self._turns += 1
            if receives:
                self._received_by = PyThread_get_thread_ident()
                self._received_ns = monotonic_ns()
            if self._followers:
                self._tell(True)
            if self._kept_until and (not self._kept or self._due or self._calls
                                     or (self._times and self._times[0] < self._kept_until)):
                self._wake_keeper()

    cdef bint _may_drive(self, bint receives, int64_t until) noexcept:
        """Is it for this thread to wait for descriptors?"""
        if self._waiting:
            return False
        if receives:
            return True
        # A thread that receives one message after the other is back at once.
        return not self._receivers and (self._received_by == <unsigned long>PyThread_get_thread_ident()
                                        or monotonic_ns() - self._received_ns >= AWAY_NS)

    cdef int _drive(self, Receiver receiver, int64_t until) except -1:
        """Wait for what comes next: read it, or have the loop do so."""
        cdef Session session = None
        cdef Block block = None
        cdef char* p = NULL
        cdef size_t size = 0
        cdef Py_ssize_t n = 0
        cdef int fd = -1, reason = FABRIC_LOOP
        cdef int64_t at = until, busy_until = 0
        if self._due or self._reads >= READS or (self._times and self._times[0] <= monotonic_ns()):
            return self._step()
        if self._writer._first is not None:
            self._writer.flush_all()
            if self._due:
                return self._step()
        if receiver is not None:
            if receiver._busy_ns:
                busy_until = NEVER if receiver._busy_ns == NEVER else receiver._arrived_ns + receiver._busy_ns
            if receiver._is_readable():
                session = receiver._user.session_now()
                block = session._read_buffer.block()
                p, size = block.data, block.size
                fd = session._transport._socket
            elif receiver._is_put_off():           # it has taken what came before, and comes back for more
                uninterrupted(receiver._user.session_now()._say_fault)
                if self._due:
                    return self._step()
        if self._times:
            at = min(at, <int64_t>self._times[0])
        if self._kept and receiver is not None:
            self._kept = False                     # so that it is told when this thread leaves
            self._kept_until = NEVER
            uninterrupted(self._keeper.release, self)
        self._until = at
        self._waiting = PyThread_get_thread_ident()
        self._for_receiver = receiver is not None
        self._release()
        try:
            with nogil:
                n = wait_for(fd, self._loop_fd, p, size, at, busy_until, &self._woken, &reason)
        finally:
            self._acquire()
            self._until = NEVER
        if n == 0 and reason == FABRIC_SIGNAL:
            self._waiting = 0
            self._receivers -= receiver is not None        # what the handler waits for, this thread brings itself
            self._release()
            try:
                PyErr_CheckSignals()
            finally:
                self._acquire()
                self._receivers += receiver is not None
            return 0
        try:
            if n > 0:
                receiver._arrived_ns = monotonic_ns()
                session.inbound_seen = True
                self._reads += 1
                session.read(block, n)
                if self._followers:
                    self._tell(False)
            elif fd >= 0 and reason == FABRIC_TIME and not self._due and not (self._times and self._times[0] <= at):
                self._reads += 1                   # no more than a look at the socket
            else:
                self._step()
                if busy_until and receiver._user._items.size:
                    receiver._arrived_ns = monotonic_ns()
        finally:
            self._waiting = 0
        return 0

    cdef int _follow(self, bint receives, object future, int64_t until) except -1:
        """Wait until the thread that waits for descriptors has brought something, or leaves."""
        cdef int64_t now = monotonic_ns()
        entry = (threading.Lock(), future)
        entry[0].acquire()
        if self._waiting:
            if receives and not self._for_receiver:
                self._wake()                       # to have its place
            elif self._due:
                self._wake()
        else:
            until = min(until, now + AWAY_NS)
        self._followers.append(entry)
        self._release()
        try:
            if until == NEVER:
                entry[0].acquire()
            else:
                entry[0].acquire(True, min(max(until - now, 0) * 1e-9, threading.TIMEOUT_MAX))
        finally:
            self._acquire()
            self._followers.remove(entry)
        return 0

    cdef int _tell(self, bint everybody) except -1:
        """Wake the followers that have what they wait for, or all."""
        for lock, future in self._followers:
            if (everybody or future is None or future.done()) and lock.locked():
                lock.release()
        return 0

    cdef int _call_outside(self) except -1:
        """Call what is to be called outside of the loop; its future is told the result."""
        cdef object future, function, arguments, result, error
        while self._calls:
            future, function, arguments = self._calls.pop(0)
            if future.done():
                continue
            result = error = None
            self.calling += 1
            self._release()
            try:
                result = function(*arguments)
            except BaseException as raised:
                error = raised
            self._acquire()
            self.calling -= 1
            if not future.done():
                if error is None:
                    future.set_result(result)
                elif isinstance(error, Exception) and not isinstance(error, StopIteration):
                    future.set_exception(error)
                else:
                    future.cancel()
            if error is not None and not isinstance(error, Exception):
                raise error
            error = None
        return 0

    # ------------------------------------------------------------------ for Python

    def run(self, coroutine, timeout=None, what="the call", tasks=None):
        """Run `coroutine` in the loop, and wait for its result.

        Args:
            timeout: seconds; then it is cancelled and `Timeout` raised. None: for ever.
            what: names the call in that error.
            tasks: a set that has the task in it while it runs; its members may be cancelled.
        """
        cdef int64_t until
        cdef bint held
        cdef object task = None
        try:
            until = deadline_of(timeout)
            self.enter()
        except BaseException:
            coroutine.close()
            raise
        try:
            if self.is_closed:
                return finished(coroutine)
            if self._depth > 1 or self._stepping:
                coroutine.close()
                raise _invalid_state(
                    "this call would wait, which what is called inside the connection's own work may not"
                )
            held = hold_interrupts()               # a task that nobody knows of would go on
            try:
                task = self.loop.create_task(coroutine)
            finally:
                if held:
                    release_interrupts()
            if tasks is not None:
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if not self.wait(None, task, until):
                raise _timed_out(what, timeout)
            if task.cancelled():
                raise _invalid_state("the connection was closed meanwhile")
            return task.result()
        finally:
            if task is not None and not task.done():
                task.add_done_callback(forget)
                task.cancel()
            try:
                if task is not None:
                    held = hold_interrupts()       # asyncio is told of its end by a weak reference, where it would be lost
                    task = None
                    if held:
                        release_interrupts()
            finally:
                self.leave()

    async def call_outside(self, function, *arguments):
        """Have `function` called by a thread that waits, without the lock; return what it returns."""
        future = self.loop.create_future()
        self._calls.append((future, function, arguments))
        return await future

    @property
    def descriptor(self):
        """Readable when a descriptor of the loop is ready."""
        return self._loop_fd

    @property
    def is_forked(self):
        """Does it belong to the parent of this process?"""
        return self._forked

    @property
    def is_inside(self):
        """Does this thread run inside the work of a connection, where it must not wait?"""
        return self._owner == <unsigned long>PyThread_get_thread_ident()

    def soon(self, function, *arguments):
        """Call `function` with the lock held; it does not wait, and what Ctrl-C raises comes behind it."""
        self.enter()
        try:
            return uninterrupted(function, *arguments)
        finally:
            self.leave()

    def add(self, SessionUser connection not None):
        """One more connection of the loop."""
        cdef Session session = connection.session_now()
        self._connections.append(connection)
        if session is not None:
            session._transport._thread_id = self._home

    def remove(self, SessionUser connection not None):
        self._connections.remove(connection)

    def close(self):
        """Cancel what still runs, and close the loop, once no thread waits for descriptors."""
        cdef int i
        self.enter()
        try:
            if self._depth > 1:
                raise _invalid_state("a connection cannot be closed by what is called inside its own work")
            if self.is_closed:
                return
            for task in asyncio.all_tasks(self.loop):
                task.cancel()                      # so that a thread that waits for one leaves
            while self._waiting:
                self._wake()
                self._follow(False, None, monotonic_ns() + AWAY_NS)
            if self.is_closed:
                return
            self._due = True
            for i in range(STEPS):                 # one more than there is a need for: transports close in between
                self._step()
                if not self._due and not asyncio.all_tasks(self.loop):
                    break
            self.is_closed = True
            self._due = False
            self._calls.clear()
            self._times.clear()
            try:
                uninterrupted(self._keeper.release, self)
            finally:
                self.loop.close()
        finally:
            self.leave()

    # ------------------------------------------------------------------ for the keeper

    def attention(self):
        """What the keeper has to do: (wait for the descriptor, the moment in ns at which it has to look again).

        None for the moment: not before it is woken, or the descriptor is ready.
        """
        cdef bint unused = self._turns == self._seen_turns      # since the last look
        cdef int64_t at
        self._kept = self._kept_until = False
        if self.is_closed:
            return False, None
        self._seen_turns = self._turns
        if not unused:
            at = monotonic_ns() + TICK_NS
        elif self._waiting:                        # for as long as a look takes: it will say when it leaves
            at = self._kept_until = NEVER
        else:
            self._kept = True
            at = NEVER if not self._times else <int64_t>self._times[0]
            if self._due or (self._calls and not self._serving) or self._writer._first is not None:
                at = 0
            self._kept_until = at
        return self._kept, None if at == NEVER else at

    def keep(self):
        """Do what is due, unless a thread waits that does. Return whether something is to be called outside."""
        if self._waiting:
            return False
        self._kept_until = 0                       # the keeper looks again behind this
        self.enter()
        try:
            if not self._waiting and not self.is_closed:
                if self._writer._first is not None:
                    self._writer.flush_all()
                self._step()
            if not self._calls or self._waiting or self._serving:
                return False
            self._serving = True
            return True
        finally:
            self.leave()

    def serve(self):
        """Call what is due outside."""
        self.enter()
        try:
            self._call_outside()
        finally:
            self._serving = False
            self.leave()

    def abandon(self):
        """Drop the connections and close the loop, unless a thread waits: nobody will use them any more."""
        self.enter()
        try:
            if self._waiting or self.is_closed:
                return
            for connection in self._connections:
                self.loop.call_soon(connection._stop)      # so that nobody looks for another one
                self.loop.call_soon(connection._abort)
        finally:
            self.leave()
        self.close()

    def fork(self):
        """This is a child: nothing of it can be used here."""
        self._forked = True
        self._owner = 0
        self._depth = 0
        self._followers = []
        self.is_closed = True
        self.loop.set_exception_handler(say_nothing)       # of its tasks, which are garbage here
        if not self._stepping:
            self.loop.close()


cdef class Receiver:
    """A blocking connection, as its driver sees it: what it waits for, and where that is read."""

    def _bind(self, Driver driver not None, SessionUser connection not None, double busy_poll):
        self._driver = driver
        self._user = connection
        self._busy_ns = NEVER if busy_poll > 1e9 else <int64_t>(busy_poll * 1e9)
        self._arrived_ns = monotonic_ns()

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    cdef bint _is_over(self) noexcept:
        """Need recv() not wait any more?"""
        return self._user._items.size or self._user._end is not None or self._closing

    cdef bint _is_readable(self) except -1:
        """May the socket be read past the loop's transport?"""
        cdef Session session = self._user.session_now()
        return (session is not None and session.closing is None and session._read_pauses == 0
                and not session._discarding and session._early is None and not session._transport.is_secure
                and not session._transport.closed and self._user._waiter is None)

    cdef bint _is_put_off(self) except -1:
        """Does a fault of the peer wait until this one has taken what came before it?"""
        cdef Session session = self._user.session_now()
        return session is not None and session.closing is not None and session.closing.is_put_off


def say_nothing(loop, context):
    """An exception handler of an event loop."""


def forget(task):
    """Take the error of a task that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def finished(coroutine):
    """The result of a coroutine that waits for nothing, as those of a closed connection."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise _invalid_state("this connection is closed")
