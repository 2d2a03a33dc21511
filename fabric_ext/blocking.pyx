"""`recv` and `send` of a connection that is used without asyncio, for threads.

Owns how a call takes the driver's lock (`fabric_ext.driver`), and gives it back. The Python class above it is
`fabric.sync.SyncClient`.
"""

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cython cimport final

from fabric_ext.awaitable cimport take_reference
from fabric_ext.connection cimport Connection
from fabric_ext.driver cimport Driver, deadline_of, invalid_state, timed_out
from fabric_ext.interrupts cimport hold_interrupts, release_interrupts
from fabric_ext.receive_queue cimport fresh
from fabric_ext.session cimport Session
from fabric_ext.session_user cimport SessionUser
from fabric_ext.writer cimport LoopWriter

from fabric_ext.interrupts import uninterrupted


@final
cdef class _Cork:
    """Gathers what is sent inside the `with`. Compiled, so that nothing can be raised between its parts."""

    cdef Blocking _blocking
    cdef Session _session            # that it holds up; a later one is left alone

    def __cinit__(self, Blocking blocking not None):
        self._blocking = blocking

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    def __enter__(self):
        if self._session is not None:
            raise invalid_state("this cork is in use already")
        try:
            self._begin()
        except BaseException:                      # also of what was due
            self.__exit__()
            raise

    cdef int _begin(self) except -1:
        cdef Connection connection = self._blocking._connection
        cdef Session session
        cdef bint held = False
        self._blocking._driver.enter()
        try:
            held = hold_interrupts()
            session = connection._session
            if session is not None:
                session.cork(1)
            self._session = session
        finally:
            try:
                if held:
                    release_interrupts()
            finally:
                self._blocking._driver.leave()
        return 0

    def __exit__(self, *exc):
        cdef Session session
        self._blocking._driver.enter()
        try:
            session, self._session = self._session, None
            if session is not None:
                uninterrupted(session.cork, -1)
        finally:
            self._blocking._driver.leave()


cdef class Blocking(Receiver):
    """The part of a blocking connection that sends and receives, over an asyncio one."""

    def _bind(self, Driver driver not None, SessionUser connection not None, double busy_poll):
        self._connection = <Connection?>connection
        Receiver._bind(self, driver, connection, busy_poll)

    # ------------------------------------------------------------------ receiving

    @property
    def _is_awaited(self):
        """Does a thread wait for a message?"""
        return self._receiver != 0

    cdef int _begin_receiving(self) except -1:
        if self._connection is None:
            raise TypeError("a client is made by fabric.sync.connect()")
        self._driver.enter()
        if self._receiver or self._connection._waiter is not None:
            self._driver.leave()
            raise invalid_state("another thread is already waiting in recv() on this connection")
        self._receiver = PyThread_get_thread_ident()
        return 0

    cdef object _next(self, object timeout, bint iterating, list more=None, Py_ssize_t limit=0):
        """The next message; `more` gets up to `limit` that are there behind it."""
        cdef Connection connection
        cdef PyObject* taken
        cdef object message
        self._begin_receiving()
        try:
            connection = self._connection
            if connection._streaming:
                connection.give_up_stream()
            if not self._is_over() and not self._driver.wait(self, None, deadline_of(timeout)):
                raise timed_out("recv", timeout)
            taken = connection.take() if connection._items.size else NULL      # nobody else may receive now
            if taken != NULL:
                message = take_reference(taken)
                while len(more or ()) < limit and connection._items.size:
                    more.append(connection._take_now())
                return message
            if connection._end is not None and connection._end is not True and not (iterating and connection._quiet_end):
                raise fresh(connection._end)
            return None
        finally:
            self._receiver = 0
            self._driver.leave()

    def recv(self, timeout=None):
        """Receive the next message; None after a normal close.

        Args:
            timeout: seconds to wait, a float or timedelta; 0 takes only what is there; None waits for ever.

        Raises:
            Timeout: nothing came within `timeout`; nothing is lost.
            ConnectionClosed: the connection ended otherwise than normally, and is not replaced.
            ReconnectTimeout: it was lost and could not be replaced.
            InvalidState: another thread is in `recv`.
        """
        return self._next(timeout, False)

    def recv_many(self, Py_ssize_t limit=1000, timeout=None):
        """Receive the next message, and those that are there already: 1 to `limit`; [] after a normal close.

        Raises what `recv` raises.
        """
        cdef list more = []
        cdef object message
        if limit < 1:
            raise ValueError(f"limit is {limit}, must be at least 1")
        message = self._next(timeout, False, more, limit - 1)
        return [] if message is None else [message, *more]

    def __iter__(self):
        return self

    def __next__(self):
        message = self._next(None, True)
        if message is None:
            raise StopIteration
        return message

    def _receive_by(self, coroutine):
        """Run `coroutine`, which receives, in the loop."""
        try:
            self._begin_receiving()
        except BaseException:
            coroutine.close()
            raise
        self._driver.leave()
        try:
            return self._driver.run(coroutine)
        finally:
            self._receiver = 0

    def _end_waits(self):
        """The connection is being closed here: a thread in recv() need not wait any more."""
        if self._driver is None:
            raise TypeError("a client is made by fabric.sync.connect()")
        self._driver.enter()
        try:
            self._closing = True
            if self._driver._waiting:
                self._driver._wake()
            self._driver._tell(True)
        finally:
            self._driver.leave()

    # ------------------------------------------------------------------ sending

    cdef bint _write(self, object message, object compress) except -1:
        """Write a message now, if nothing is in the way: False if something is, or it is none."""
        cdef Connection connection = self._connection
        cdef LoopWriter writer = self._driver._writer
        cdef Session session
        if not connection._sendable:
            return False
        session = connection._session
        writer.reading += 1                        # so that no turn of the loop is asked for
        try:
            if not connection.write_object(message, compress):
                return False
        finally:
            writer.reading -= 1
        # What follows closely may be gathered only where this thread is back soon, for the messages that wait.
        if writer._first is not None and not writer.reading:
            if connection._items.size:
                self._driver.gathers()
            else:
                writer.flush_all()
                session.after_writing()
        return True

    def send(self, message, *, compress=None):
        """Send a message; any thread may.

        A str goes out as text, bytes-like objects as binary; an iterator as one message, each item as a part of it.
        When it returns, the message has been given to the system, or is kept until the peer takes it: then it waits
        while too much is kept (see `BackpressureConfig`).

        `compress`: True or False for this message alone; None as configured.

        Raises TypeError for anything else, ConnectionClosed after the end, BackpressureTimeout when room took too long,
        BufferFull when an outage has used it up.
        """
        cdef bint written
        if self._connection is None:
            raise TypeError("a client is made by fabric.sync.connect()")
        self._driver.enter()
        try:
            written = self._write(message, compress)
        finally:
            self._driver.leave()
        if not written:
            self._send_later(message, compress)

    def send_nowait(self, message, *, compress=None):
        """Send a message without waiting: `BufferFull` when too much is kept; `InvalidState` when not connected."""
        if self._connection is None:
            raise TypeError("a client is made by fabric.sync.connect()")
        self._driver.enter()
        try:
            if not self._write(message, compress):
                self._connection._queue_now(message, compress)
        finally:
            self._driver.leave()

    def cork(self):
        """Gather what is sent inside the `with`, up to 64 KB at a time; what was sent before leaves first."""
        if self._connection is None:
            raise TypeError("a client is made by fabric.sync.connect()")
        return _Cork(self)

    def send_many(self, messages):
        """Send several messages, gathered into as few system calls as possible."""
        with self.cork():
            for message in messages:
                self.send(message)

    def _send_later(self, message, compress):
        """What send() does when the message could not be written at once."""
        raise RuntimeError("not connected")
