"""`recv` and `send` of a connection of `fabric.websockets.sync`, for threads.

A sibling of `Blocking` in `fabric_ext.blocking`, on the same `fabric_ext.driver`: over a connection that gives messages as `str` and
`bytes` (`fabric_ext.plain_connection`). The Python class above it is `fabric.websockets.sync.connection.Connection`.
The hooks it overrides are at the end.
"""

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cython cimport unlikely
from libc.stdint cimport INT64_MAX, int64_t

from fabric_ext.awaitable cimport take_reference
from fabric_ext.clock cimport monotonic_ns
from fabric_ext.driver cimport Driver
from fabric_ext.plain_connection cimport AS_IT_IS, BYTES, MESSAGE, PlainConnection
from fabric_ext.protocol cimport OPEN
from fabric_ext.receive_queue cimport fresh
from fabric_ext.session cimport Session
from fabric_ext.session_user cimport SessionUser
from fabric_ext.writer cimport LoopWriter


cdef class PlainBlocking(Receiver):
    """The part of a blocking connection that sends and receives."""

    def _bind(self, Driver driver not None, SessionUser connection not None, double busy_poll):
        self._connection = <PlainConnection?>connection
        Receiver._bind(self, driver, connection, busy_poll)

    cdef inline int _check_made(self) except -1:
        if unlikely(self._connection is None):
            raise TypeError("a connection is made by connect() or serve()")
        return 0

    # ------------------------------------------------------------------ receiving

    cdef object _take(self, object timeout, int form, bint streams):
        """Wait for what stands first in the queue, and take it; `streams`: it may be a part of a message."""
        cdef PlainConnection connection = self._connection
        cdef Driver driver = self._driver
        cdef int64_t until = INT64_MAX
        cdef double seconds = 0.0
        cdef PyObject* taken
        cdef object item
        self._check_made()
        if timeout is not None:
            seconds = timeout
            if seconds < 1e9:
                until = monotonic_ns() + <int64_t>(max(seconds, 0.0) * 1e9)
        driver.enter()
        if self._receiver or (connection._streaming and not streams):
            driver.leave()
            raise self._concurrent("recv_streaming" if streams else "recv")
        self._receiver = PyThread_get_thread_ident()
        try:
            if not self._is_over():
                connection._wanted = True
                connection.on_wait()
                try:
                    if not driver.wait(self, None, until):
                        raise TimeoutError(f"timed out in {seconds:.1f}s")
                finally:
                    connection._wanted = False
            taken = connection.take() if connection._items.size else NULL      # nobody else may receive now
            if taken != NULL:
                item = take_reference(taken)
                return connection.shaped(item, form) if form != AS_IT_IS else item
        finally:
            self._receiver = 0
            driver.leave()
        self._release()
        raise fresh(connection._end)

    def recv(self, timeout=None, decode=None):
        """Receive the next message.

        Args:
            timeout: seconds to wait; 0 takes only what is there; None waits for ever.
            decode: True for str, False for bytes, None for what was sent.

        Raises:
            TimeoutError: nothing came within `timeout`; nothing is lost.
            ConnectionClosed: the connection is closed, and what came before has been received.
            ConcurrencyError: another thread receives.
        """
        if unlikely(self.pending_legacy_warning):
            self._warn_of_legacy(1)
        if unlikely(decode is not None and decode):
            return self._decoded(self._take(timeout, BYTES, False))
        return self._take(timeout, MESSAGE if decode is None else BYTES, False)

    def _recv_item(self):
        """What stands first in the queue: a whole message, `Fragments`, or a Part of the stream that has begun."""
        return self._take(None, AS_IT_IS, True)

    def _begin_stream(self):
        """Have the next message received frame by frame, by this thread."""
        self._check_made()
        self._driver.enter()
        try:
            if self._receiver or self._connection._streaming:
                raise self._concurrent("recv_streaming")
            self._connection._open_stream()
            self._connection._streaming = True
        finally:
            self._driver.leave()

    # ------------------------------------------------------------------ sending

    cdef int _write(self, object message, object text) except -1:
        """Write a message, if it is str or bytes-like and can be written now: what became of it."""
        cdef PlainConnection connection = self._connection
        cdef LoopWriter writer = self._driver._writer
        cdef Session session
        cdef bint written = False
        connection.notice_closed_loop()
        session = connection._session
        if connection._sendable:
            writer.reading += 1                    # so that no turn of the loop is asked for
            try:
                written = connection.write_data(message, text)
            finally:
                writer.reading -= 1
        if not written:
            if not isinstance(message, (str, bytes, bytearray, memoryview)):
                return NO_DATA
            return IN_PARTS if connection._state == OPEN and connection._session is not None else NOT_OPEN
        # What follows closely may be gathered only where this thread is back soon, for the messages that wait.
        if writer._first is not None and not writer.reading:
            if connection._items.size:
                self._driver.gathers()
            else:
                writer.flush_all()
            session.after_writing()
        return HELD if connection.is_congested() else WRITTEN

    def send(self, message, *, text=None):
        """Send a message; any thread may. It waits until the system has taken it.

        A str goes out as text, bytes-like objects as binary; an iterable of them as one message, each item as a frame.

        `text`: True or False to send it as text or as binary, whatever its type.

        Raises ConnectionClosed after the end, ConcurrencyError while another thread sends a message in parts, TypeError
        for anything else.
        """
        cdef int outcome
        self._check_made()
        if unlikely(self.pending_legacy_warning):
            self._warn_of_legacy(1)
        self._driver.enter()
        try:
            outcome = self._write(message, text)
        finally:
            self._driver.leave()
        if outcome == WRITTEN:
            return
        if outcome == NO_DATA:
            self._send_parts(message, text)
        elif outcome == HELD:
            self._drain()
        elif outcome == IN_PARTS:
            raise self._concurrent("send")
        else:
            self._raise_closed()

    def _write_now(self, message, text):
        """Write a str or bytes-like object, if the connection is open: True; None while one is sent in parts."""
        cdef int outcome
        self._check_made()
        self._driver.enter()
        try:
            outcome = self._write(message, text)
        finally:
            self._driver.leave()
        return None if outcome == IN_PARTS else outcome in (WRITTEN, HELD)

    # ------------------------------------------------------------------ hooks, overridden in Python

    def _warn_of_legacy(self, depth):
        """Warn of the use of a client's connection without a `with`: of the caller `depth` calls above this one."""

    def _concurrent(self, method):
        """The exception for a call of `method` that another thread's call excludes."""
        return RuntimeError(f"cannot call {method} now")

    def _decoded(self, data):
        """The text of `data`, which was received; fail the connection if it is none."""
        return data.decode()

    def _release(self):
        """The connection has ended: let go of what it was driven by."""

    def _send_parts(self, message, text):
        """Send an iterable as one message in several frames."""
        raise TypeError("data must be str, bytes, or iterable")

    def _drain(self):
        """Wait until the system has taken what was written."""

    def _raise_closed(self):
        """Wait for the end, and raise what tells of it."""
        raise RuntimeError("not connected")
