"""One WebSocket connection, over all its sessions: what was received and not taken, what was accepted and not sent.

Owns the receive queue, the outbox, the state, and the limits of both queues. Everything that belongs to one transport
is in its session. Decides with small integers; the Python class above it (`fabric._connection.base`) turns them into
exceptions, waits, and reconnects. The hooks it overrides are at the end.

A message is in one place at a time: with the caller, in the outbox, or with a session.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cpython.unicode cimport PyUnicode_GET_LENGTH
from cython cimport final, freelist, unlikely

from fabric_ext.awaitable cimport (PYGEN_ERROR, PYGEN_RETURN, PySendResult, reraise, sendfunc, set_send, step,
                                   take_reference, throw)
from fabric_ext.counters cimport Counters
from fabric_ext.frames cimport CALLBACK_FAILED
from fabric_ext.message cimport K_BINARY, K_TEXT, Message
from fabric_ext.protocol cimport CLOSE_BEGUN, CLOSED, ENDED, LOST, OPEN, OPENED, next_state
from fabric_ext.receive_queue cimport Recv
from fabric_ext.ring cimport Ring
from fabric_ext.sender cimport message_of
from fabric_ext.session cimport PARTS, QUEUE_FULL, SKIP, SKIP_THEN_PARTS, WHOLE, Session
from fabric_ext.session_user cimport BATCH, Part, SessionUser, new_part

from fabric_ext.protocol import State

cdef extern from "Python.h":
    PyObject* PyObject_Vectorcall(object function, PyObject** arguments, size_t count, PyObject* names) noexcept
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) noexcept
    int PyUnicode_KIND(object text) noexcept
    PySendResult PyIter_Send(object iterator, object value, PyObject** result) noexcept
    PyObject* Py_NewRef(object value) noexcept
    int PyErr_WarnFormat(object category, Py_ssize_t level, const char* text, ...) noexcept
    void PyErr_WriteUnraisable(PyObject* where) noexcept
    void PyErr_Fetch(PyObject** kind, PyObject** value, PyObject** traceback) noexcept
    void PyErr_Restore(PyObject* kind, PyObject* value, PyObject* traceback) noexcept

cdef enum:
    BATCH_BYTES = 16 * 1024      # for which a waiting task is resumed once, of at most BATCH messages
    MESSAGE_WEIGHT = 64          # bytes that a message counts beside its payload
    LEFT_UNREAD = 16 << 20       # bytes over its limit that the queue takes of a peer that has left, after decompression
    POLICY_VIOLATION = 1008

# Bytes that are read although the queue is full, so that pings, a close frame and the end that stand behind untaken
# messages are noticed.
cdef Py_ssize_t _look_ahead = 64 * 1024

cdef object _wrong_place = RuntimeError


def bind_errors(*, wrong_place):
    """Set what is raised for a call from a thread that is not the connection's: a class, called with a text."""
    global _wrong_place
    _wrong_place = wrong_place


def look_ahead(Py_ssize_t size):
    """For tests: read `size` bytes on where a queue is full; return how many it was before."""
    global _look_ahead
    before, _look_ahead = _look_ahead, size
    return before


cdef inline Py_ssize_t weight(object item):
    """Bytes that a queued item keeps in memory, give or take its header."""
    cdef object data = (<Message>item).data if type(item) is Message else (<Part>item).data
    if type(data) is str:
        return PyUnicode_GET_LENGTH(data) * PyUnicode_KIND(data)
    return PyBytes_GET_SIZE(data)


cdef class Connection(SessionUser):
    """The base of `WebSocketClient` and `ConnectedClient`."""

    def __cinit__(self, *args, **kwargs):
        self._outbox = Ring()
        self._counters = Counters()

    def __init__(self, loop, Counters counters not None, *, Py_ssize_t queue_limit, Py_ssize_t queue_byte_limit,
                 on_message=None):
        SessionUser.__init__(self, loop)
        self._counters = counters
        self._queue_limit = queue_limit
        self._queue_byte_limit = queue_byte_limit
        self._batch_limit = min(BATCH, queue_limit)
        self._batch_byte_limit = min(BATCH_BYTES, queue_byte_limit)
        self._on_message = on_message

    # ------------------------------------------------------------------ sessions come and go

    def _begin_session(self, Session session not None):
        """Go on with `session`; nothing has been read yet."""
        self._session = session
        session.open(self._wants_parts)
        self._wants_parts = False
        self.move(OPENED)

    def _adopt(self, Connection other not None):
        """Go on with the session of `other`, an open one, and with what `other` has received and not taken."""
        cdef Session session = other._session
        if session is None or other._state != OPEN:
            raise RuntimeError("fabric: there is no open session to go on with")
        other.give_up_stream()
        other._session = None
        other.update_sendable()
        session._user = self
        session.given_back = 0                                 # to `other`, whose outbox stays behind
        self._session = session
        self.messages_received += other.messages_received
        self.bytes_received += other.bytes_received
        self.messages_sent += other.messages_sent
        self.bytes_sent += other.bytes_sent
        self.move(OPENED)
        if self._wants_parts and other._items.size == 0:
            session.deliver_in_parts()
        self._wants_parts = False
        if session._read_pauses & QUEUE_FULL:
            session.resume(QUEUE_FULL)
        while other._items.size and not session._discarding:
            session.deliver_held(other._items.pop())

    cdef object session_now(self):
        return self._session

    cdef int on_closing(self) except -1:
        return self.move(CLOSE_BEGUN)

    cdef int on_ended(self) except -1:
        cdef Session session = self._session
        cdef bint cut_off = session._delivery == PARTS and session.in_message()
        self._wants_parts = session._delivery == SKIP_THEN_PARTS or (session._delivery == PARTS and not cut_off)
        self._session = None
        self.update_sendable()
        self._on_lost(session)
        if cut_off and self._state != CLOSED:
            # The task that waits for its next part must not get another message's.
            self.put(new_part(b"", True, True))
        return 0

    cdef int move(self, int event) except -1:
        cdef int after = next_state(self._state, event)
        if after < 0:
            raise RuntimeError(f"fabric: no move from {State(self._state).name} by event {event}")
        self._state = after
        self.update_sendable()
        return 0

    def _lose(self):
        """The transport is gone, another one will be sought."""
        self.move(LOST)

    def _finish(self, error=None):
        """No transport will come any more: receivers get what is queued, then None or `error`."""
        self.move(ENDED)
        self.begin_delivery()
        self.finish(error)

    # ------------------------------------------------------------------ receiving

    cdef int deliver(self, Message message) except -1:
        cdef PyObject* arguments[2]
        cdef PyObject* result
        if self._on_message is not None:
            self._session._loop_writer.before_delivery()
            arguments[0] = <PyObject*>self
            arguments[1] = <PyObject*>message
            result = PyObject_Vectorcall(self._on_message, arguments, 2, NULL)
            if unlikely(result == NULL):
                return self.callback_raised()
            Py_DECREF(<object>result)
            return 0
        return self.enqueue(message, weight(message))

    cdef int callback_raised(self) except -1:
        """The application's callback raised: so does this, unless it says no more than that the connection closes."""
        try:
            reraise()
        except BaseException as error:
            if self._state == OPEN or not self._is_end(error):
                raise
        return 0

    cdef int deliver_part(self, Part part) except -1:
        return self.enqueue(part, weight(part))

    cdef inline int enqueue(self, object item, Py_ssize_t n) except -1:
        cdef Session session = self._session
        if session.overflowed:
            return 0
        self._queued_bytes += n
        self._items.push(item)
        if (not session.batching or self._items.size >= self._batch_limit
                or self._queued_bytes >= self._batch_byte_limit):
            self.hand_over()
        if self._items.size >= self._queue_limit or self._queued_bytes >= self._queue_byte_limit:
            return self.on_full(session, n)
        return 0

    cdef int on_full(self, Session session, Py_ssize_t n) except -1:
        """The queue is at its limit, or beyond it, with the item of `n` bytes that has just come from `session`."""
        if self._state != OPEN:
            session.overflowed = True                          # reading goes on, up to the peer's close frame
            return 0
        if self._items.size <= self._queue_limit and self._queued_bytes - n < self._queue_byte_limit:
            self._ahead = 0                                    # it was not before
        else:
            self._ahead += n + MESSAGE_WEIGHT
        if self._session._peer_is_done and self._queued_bytes >= self._queue_byte_limit + LEFT_UNREAD:
            return self._session.fail_with(CALLBACK_FAILED, POLICY_VIOLATION, "too much was left unread", None)
        return self._session.pause(QUEUE_FULL) if self._ahead >= _look_ahead else 0

    cdef PyObject* take(self) except? NULL:
        cdef Session session = self._session
        cdef PyObject* item
        if session is not None:
            session._loop_writer.before_delivery()
            if self._items.size and session._read_pauses & QUEUE_FULL:
                self.resume_if_drained(session, 1, weight(<object>self._items.first()))
            if unlikely(self._items.size == 0):
                return NULL
        item = self._items.take()
        self._queued_bytes -= weight(<object>item)
        return item

    cdef int resume_if_drained(self, Session session, Py_ssize_t items, Py_ssize_t n) except -1:
        """Read again where the queue is half empty without so many items, of `n` bytes."""
        if self._items.size - items <= self._queue_limit // 2 and self._queued_bytes - n <= self._queue_byte_limit // 2:
            session.resume(QUEUE_FULL)
        return 0

    cdef int on_closed_loop(self) except -1:
        return self.notice_closed_loop()

    def _put(self, item):
        raise TypeError("only a session adds to the queue of a connection")

    def recv(self):
        """Receive the next message: `message = await connection.recv()`.

        Returns None after a normal close. Gives up a stream (`recv_stream`) that is not at its end. Cancelling it loses
        no message. Raises ConnectionClosed after an end that was not normal, ReconnectTimeout when a lost connection
        was not replaced, InvalidState when another task waits in `recv` already.
        """
        cdef Recv recv = <Recv>Recv.__new__(Recv)
        recv._queue = self
        if unlikely(self._streaming):
            self.give_up_stream()
        return recv

    def __anext__(self):
        cdef Recv recv = <Recv>Recv.__new__(Recv)
        recv._queue = self
        recv._iterating = True
        if unlikely(self._streaming):
            self.give_up_stream()
        return recv

    def _take_now(self):
        """The next message if there is one already, else None."""
        cdef PyObject* taken
        if self._items.size == 0 or self._waiter is not None or self._streaming:
            return None
        taken = self.take()
        return None if taken == NULL else take_reference(taken)

    # -- in parts

    def _recv_part(self):
        """Return an awaitable for the next item of a stream: a Part, or a whole Message that was there before."""
        cdef Recv recv = <Recv>Recv.__new__(Recv)
        recv._queue = self
        return recv

    def _start_stream(self):
        """Deliver the next message in parts, unless one is queued already; return the number of this stream."""
        cdef Session session = self._session
        if self._waiter is not None:
            self.displace()
        self.give_up_stream()
        self._streaming = True
        self._stream_number += 1
        if self._items.size == 0 and self._end is None:
            if session is None:
                self._wants_parts = True
            else:
                session.deliver_in_parts()
        return self._stream_number

    def _is_stream(self, int number):
        """Is this still the stream that parts are for?"""
        return self._streaming and number == self._stream_number

    def _stop_stream(self, int number):
        """No more parts are wanted, if they are those of this stream."""
        if self._is_stream(number):
            self.give_up_stream()

    cdef int give_up_stream(self) except -1:
        """Skip what is left of the message that is received in parts, if there is one."""
        cdef Session session = self._session
        if self._waiter is not None:
            return 0                           # of another task, which is told that it is not alone
        self._streaming = self._wants_parts = False
        if session is not None:
            if session._delivery == PARTS:
                session._delivery = SKIP if session._in_parts and session.in_message() else WHOLE
            elif session._delivery == SKIP_THEN_PARTS:
                session._delivery = SKIP
        for _ in range(self._items.size):
            item = self._items.pop()
            if type(item) is Part:
                self._queued_bytes -= weight(item)
            else:
                self._items.push(item)
        if session is not None and session._read_pauses & QUEUE_FULL:
            self.resume_if_drained(session, 0, 0)
        return 0

    # ------------------------------------------------------------------ sending

    cdef object wrong_thread(self):
        return _wrong_place("this connection belongs to another thread: use asyncio.run_coroutine_threadsafe")

    cdef void update_sendable(self) noexcept:
        self._sendable = (self._state == OPEN and self._session is not None and not self._session._transport.holds
                          and not self._session.sending_parts and self._outbox.size == 0 and self._waiting == 0
                          and not self._draining)

    cdef int on_blocked(self) except -1:
        self.update_sendable()
        return 0

    cdef int on_writable(self) except -1:
        self.update_sendable()
        self.drain_outbox()
        if self._session is not None and not self._session._transport.holds:
            self._on_writable()
        return 0

    cdef inline int check_here(self) except -1:
        """Raise unless this is the connection's own thread; notice that its loop was closed."""
        return 0 if self._session is None else self._session.check_here()

    cdef inline int notice_closed_loop(self) except -1:
        return 0 if self._session is None else self._session.notice_closed_loop()

    def send(self, message, *, compress=None):
        """Send a message: `await connection.send("text")`.

        A str goes out as text, bytes-like objects as binary; an iterator or async iterator as one message, each item
        as a part of it. It begins when it is awaited. When it returns, the message has been given to the system, or is
        kept until the peer takes it: then it waits while too much is kept (see `BackpressureConfig`).

        `compress`: True or False for this message alone; None as configured.

        Raises TypeError for anything else, ConnectionClosed after the end, BackpressureTimeout when room took too long,
        BufferFull when an outage has used it up.
        """
        cdef Send send = <Send>Send.__new__(Send)
        send._connection = self
        send._message = message
        send._option = compress
        return send

    cdef object begin_send(self, object message, object compress):
        self.check_here()
        if self._sendable and self.write_object(message, compress):
            return None
        return self._send_later(message, compress)

    def send_nowait(self, message, *, compress=None):
        """Send a message without waiting: `BufferFull` when too much is kept, `InvalidState` when not connected, or
        when it is called from a thread that is not the connection's.
        """
        self.check_here()
        if not (self._sendable and self.write_object(message, compress)):
            self._queue_now(message, compress)

    cdef bint write_object(self, object message, object compress) except -1:
        """Write a str, bytes-like or data Message; False when it is something else, or cannot be written now."""
        cdef const char* p
        cdef Py_ssize_t n
        cdef int opcode
        cdef object data
        if type(message) is Message:
            opcode = (<Message>message).kind
            data = (<Message>message).data
        elif isinstance(message, str):
            opcode = K_TEXT
            data = message
        elif isinstance(message, bytes):
            opcode = K_BINARY
            data = message
        elif isinstance(message, (bytearray, memoryview)):
            data = bytes(message)              # it may change once we have returned
            # A class of the application may do anything in there.
            return self._sendable and self.write_object(data, compress)
        else:
            return False
        if opcode == K_TEXT:
            p = PyUnicode_AsUTF8AndSize(data, &n)
            if unlikely(p == NULL):            # lone surrogates: the same error as everywhere
                PyErr_Clear()
                Message(data)
        elif opcode == K_BINARY:
            p = PyBytes_AS_STRING(data)
            n = PyBytes_GET_SIZE(data)
        else:
            return False
        return self._session.write_message(opcode, p, n, message, compress)

    def flush(self):
        """Give the system now what has been gathered, rather than at the end of the turn."""
        self.check_here()
        if self._session is not None:
            self._session.flush()
            self._session.after_writing()

    def _check_here(self):
        """Raise unless this is the connection's own thread."""
        self.check_here()

    def _outbox_push(self, Message message not None, compress):
        """Keep a message until the transport takes it."""
        self._outbox.push(message if compress is None else (message, compress))
        self._outbox_bytes += len(message)
        self.update_sendable()

    def _keep_backpressure(self, controller not None):
        """Count in `controller` from now on, unless there is one already; return the one that counts."""
        if self._backpressure is None:             # in C: no signal handler that sends comes between
            self._backpressure = controller
        return self._backpressure

    def _set_waiting(self, int change):
        """One sender more, or one less, waits for room in the outbox."""
        self._waiting += change
        self.update_sendable()
        if self._waiting == 0:
            self.go_on()

    def _outbox_pop(self):
        """The oldest message kept, as (message, compress); `IndexError` when there is none."""
        item = self.pop_outbox()
        return (item, None) if type(item) is Message else item

    cdef object pop_outbox(self):
        """The oldest message kept, in a tuple with its `compress` where it has one."""
        cdef object item = self._outbox.pop()
        self._outbox_bytes -= len(item if type(item) is Message else item[0])
        if self._session is not None and self._session.given_back:
            self._session.given_back -= 1
        self.update_sendable()
        return item

    cdef int drain_outbox(self) except -1:
        """Write what waits, in order: what is sent meanwhile, by a callback or a finalizer, goes behind it."""
        cdef Session session
        cdef object item, message, compress
        cdef bint written
        if self._draining:
            return 0
        self._draining = True
        try:
            while self.can_drain():
                session = self._session
                item = self.pop_outbox()
                message, compress = (item, None) if type(item) is Message else item
                written = True
                try:
                    if self._session is session:
                        written = self.write_object(message, compress)
                        session.flush()                        # to learn whether the kernel still takes them
                        session.after_writing()
                    else:
                        written = False
                finally:
                    if not written:
                        self._outbox.push_front(item)
                        self._outbox_bytes += len(message)
                    elif self._backpressure is not None:
                        self._backpressure.release(len(message))   # may call back, and so send
        finally:
            self._draining = False
            self.update_sendable()
        return 0

    cdef bint can_drain(self) except -1:
        cdef Session session = self._session
        return (self._outbox.size and self._state == OPEN and session is not None and not session._transport.holds
                and not session.sending_parts and not session._transport.io.is_closing())

    cdef int go_on(self) except -1:
        """What kept messages from being written may have ended: write what waits, and say so if nothing does any more."""
        self.drain_outbox()
        if self._sendable:
            self._on_writable()
        return 0

    def _flush_outbox(self):
        """Write what waits in the outbox, as far as the transport takes it."""
        self.go_on()

    cdef int on_unsent(self, list messages) except -1:
        """Put messages that counted as sent before those that wait, and behind those put there before."""
        cdef Session session = self._session
        cdef list waiting = [self._outbox.pop() for _ in range(session.given_back)]
        cdef Message message
        for item in messages:
            message, compress = message_of(item)
            waiting.append(message if compress is None else (message, compress))
            self._outbox_bytes += len(message)
            self.messages_sent -= 1
            self.bytes_sent -= len(message)
            self._counters.messages_sent -= 1
            self._counters.bytes_sent -= len(message)
            self._on_taken_back(message)
        session.given_back = len(waiting)
        for item in reversed(waiting):
            self._outbox.push_front(item)
        self.update_sendable()
        return 0

    def _write_part(self, int opcode, bytes payload, bint fin, compress):
        """Send one part of a message; meanwhile other messages wait in the outbox. False: the connection has ended."""
        if self._session is None:
            raise RuntimeError("not connected")
        if not self._session.write_part(opcode, payload, fin, compress):
            return False
        self.update_sendable()
        if fin:
            self._end_parts()
        return True

    def _end_parts(self):
        """No message is being sent in parts any more."""
        if self._session is None:
            return
        self._session.stop_parts()
        self.update_sendable()
        self.go_on()

    # ------------------------------------------------------------------ for the class above, in Python

    @property
    def state(self):
        """CONNECTING, OPEN, CLOSING, RECONNECTING or CLOSED."""
        self.notice_closed_loop()
        return State(self._state)

    @property
    def _is_loop_closed(self):
        return self._loop.is_closed()

    @property
    def _is_open(self):
        self.notice_closed_loop()
        return self._state == OPEN

    @property
    def _is_closed(self):
        self.notice_closed_loop()
        return self._state == CLOSED

    @property
    def _is_awaited(self):
        """Does a task wait in `recv`?"""
        return self._waiter is not None and self._future is not None and not self._future.cancelled()

    @property
    def _session_now(self):
        """The session, or None."""
        self.notice_closed_loop()
        return self._session

    @property
    def _is_blocked(self):
        return self._session is None or self._session._transport.holds

    @property
    def _is_sendable(self):
        """Is it open, and would a new message be written at once?"""
        return self._sendable

    @property
    def _outbox_size(self):
        return self._outbox.size

    @property
    def _oldest_ns(self):
        """When the oldest message in the queue was received; 0 where there is none, or it is received in parts."""
        cdef object item
        if self._items.size == 0:
            return 0
        item = <object>self._items.first()
        return (<Message>item).received_ns if type(item) is Message else 0

    # ------------------------------------------------------------------ hooks, overridden in Python

    def _on_lost(self, session):
        """`session` has ended: finish, or find another."""
        self._finish()

    def _on_writable(self):
        """The transport takes data again, or messages wait no more for what came before them."""

    def _is_end(self, error):
        """Does what the application's callback raised say that a connection is closed, and nothing else?"""
        return False

    def _on_taken_back(self, message):
        """A message that counted as sent waits again."""

    def _send_later(self, message, compress):
        """The coroutine that goes on where send() could not write at once."""
        raise RuntimeError("not connected")

    def _queue_now(self, message, compress):
        """What send_nowait() does when it could not write at once."""
        raise RuntimeError("not connected")


@final
@freelist(64)
cdef class Send:
    """One `send()`: awaitable, and a coroutine for `create_task`, `gather`, `run_coroutine_threadsafe`.

    It begins with its first step. One that is never awaited sends nothing, and warns as a coroutine does.
    """

    def __dealloc__(self):
        cdef PyObject* kind = NULL
        cdef PyObject* value = NULL
        cdef PyObject* traceback = NULL
        if self._begun or self._connection is None:
            return
        PyErr_Fetch(&kind, &value, &traceback)
        if PyErr_WarnFormat(RuntimeWarning, 1, "send() was never awaited: nothing was sent") < 0:
            PyErr_WriteUnraisable(NULL)
        PyErr_Restore(kind, value, traceback)

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return step(self)

    def send(self, value):
        return step(self)

    def throw(self, kind, value=None, traceback=None):
        self._begun = True
        if self._later is not None:
            return self._later.throw(kind) if value is None and traceback is None else \
                self._later.throw(kind, value, traceback)
        throw(kind, value, traceback)

    def close(self):
        self._begun = True
        if self._later is not None:
            self._later.close()


cdef inline bint written(Send send) except -1:
    """Begin: is the message written already?"""
    if send._connection is None:
        raise TypeError("a Send is made by send()")
    send._later = send._connection.begin_send(send._message, send._option)
    return send._later is None


cdef PySendResult send_send(PyObject* self, PyObject* value, PyObject** result) except PYGEN_ERROR:
    """The `am_send` of Send."""
    cdef Send send = <Send>self
    if send._later is None:
        if send._begun:
            raise RuntimeError("this send() has already been awaited")
        send._begun = True
        if written(send):
            result[0] = Py_NewRef(None)
            return PYGEN_RETURN
    return PyIter_Send(send._later, None, result)


set_send(Send, <sendfunc>send_send)
