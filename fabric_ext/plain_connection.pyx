"""A WebSocket connection that gives messages as they are, `str` or `bytes`: the core of `fabric.websockets`.

A sibling of `fabric_ext.connection`, on the same sessions. It lives as long as one session; it keeps the frames of a
message apart, so that they can be received one by one after the fact; a sender writes first and waits afterwards, while
the transport holds much. `recv` and `send` are C methods of the object that the application holds.

The Python class above it is `fabric.websockets.asyncio.connection.Connection`. The hooks it overrides are at the end.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8String, PyUnicode_GET_LENGTH
from cython cimport final, unlikely

from fabric_ext.awaitable cimport reraise
from fabric_ext.broadcast cimport Shared
from fabric_ext.connection cimport Send
from fabric_ext.counters cimport Counters
from fabric_ext.message cimport K_BINARY, K_TEXT, Message, new_message
from fabric_ext.protocol cimport CLOSED, CLOSING, OPEN
from fabric_ext.receive_queue cimport Recv
from fabric_ext.session cimport QUEUE_FULL, Session
from fabric_ext.session_user cimport BATCH, BATCH_SIZE, Part, SessionUser, new_part

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) noexcept
    Py_ssize_t PY_SSIZE_T_MAX

# Sessions count here; it is not read.
cdef Counters UNUSED = Counters()


@final
cdef class Fragments:
    """A message that came in several frames."""


cdef inline Py_ssize_t frames_of(object item) except -1:
    """The frames that a queued item came in."""
    return len((<Fragments>item).parts) if type(item) is Fragments else 1


cdef class PlainConnection(SessionUser):
    """The base of the connections of `fabric.websockets`.

    Args:
        loop: the event loop.
        high: frames in the queue above which the socket is not read; None for no limit.
        low: frames down to which it is not.
        write_limit: bytes that the transport may hold before a sender waits.
        max_fragments: frames of one message that is received as a whole.
    """

    def __cinit__(self, *args, **kwargs):
        self._counters = UNUSED

    def __init__(self, loop, *, high, Py_ssize_t low, Py_ssize_t write_limit, Py_ssize_t max_fragments):
        SessionUser.__init__(self, loop)
        self._high = PY_SSIZE_T_MAX if high is None else high
        self._low = low
        self._write_limit = write_limit
        self._max_fragments = max_fragments

    # ------------------------------------------------------------------ the session comes and goes

    def _begin_session(self, Session session not None):
        """Exchange messages over `session`; nothing has been read yet."""
        self._session = session
        self._state = OPEN
        self.update_sendable()
        session.open()

    cdef object session_now(self):
        return self._session

    cdef int on_closing(self) except -1:
        self._state = CLOSING
        self.update_sendable()
        self._on_closing()
        return 0

    cdef int on_ended(self) except -1:
        cdef Session session = self._session
        self._session = None
        self._state = CLOSED
        self.update_sendable()
        self._on_lost(session)
        return 0

    def _finish_with(self, error not None, bint quiet):
        """There is no transport any more: receivers get what is queued, then `error`; iteration ends if it is `quiet`."""
        self._state = CLOSED
        self._quiet_end = quiet
        self.update_sendable()
        self._unfinished = None
        self.begin_delivery()
        self.finish(error)

    # ------------------------------------------------------------------ receiving

    cdef int deliver(self, Message message) except -1:
        if self._dropping:
            return 0
        self._stream_open = False              # this is the message that the stream has waited for
        self._items.push(message.data)
        return self.arrived(message.data)

    cdef int deliver_part(self, Part part) except -1:
        cdef Fragments whole
        if self._dropping:
            return 0
        if self._stream_open:
            self._stream_open = not part.final
            self._items.push(part)
            return self.arrived(part.data)
        if self._unfinished is None:
            self._unfinished = []
        self._unfinished.append(part.data)
        if part.final:
            whole = Fragments.__new__(Fragments)
            whole.parts = self._unfinished
            self._unfinished = None
            self._items.push(whole)
        elif len(self._unfinished) > self._max_fragments:
            self._on_too_many_fragments()
            return 0
        return self.arrived(part.data)

    cdef inline int arrived(self, object data) except -1:
        """A frame has been queued."""
        cdef Session session = self._session
        cdef Py_ssize_t n = PyUnicode_GET_LENGTH(data) if type(data) is str else PyBytes_GET_SIZE(data)
        self._frames += 1
        if not session.batching or self._items.size >= BATCH or n > BATCH_SIZE:
            self.hand_over()
        # A receiver that waits for the rest of a message makes room by itself.
        if unlikely(self._frames > self._high and ((self._waiter is None and not self._wanted) or self._items.size)):
            if self._state == OPEN:
                session.pause(QUEUE_FULL)
            else:
                self._dropping = True                          # reading goes on, up to the peer's close frame
        return 0

    cdef PyObject* take(self) except? NULL:
        cdef Session session = self._session
        cdef PyObject* item
        if session is not None:
            session._loop_writer.before_delivery()
            if unlikely(self._items.size and session._read_pauses & QUEUE_FULL
                        and self._frames - frames_of(<object>self._items.first()) <= self._low):
                session.resume(QUEUE_FULL)
            if unlikely(self._items.size == 0):
                return NULL
        item = self._items.take()
        self._frames -= frames_of(<object>item)
        return item

    cdef int on_wait(self) except -1:
        """What is queued is the beginning of a message: read on."""
        cdef Session session = self._session
        if unlikely(session is not None and session._read_pauses & QUEUE_FULL):
            session.resume(QUEUE_FULL)
        return 0

    cdef int on_closed_loop(self) except -1:
        return self.notice_closed_loop()

    cdef object shaped(self, object item, int form):
        if unlikely(type(item) is Fragments):
            parts = (<Fragments>item).parts
            item = ("" if type(parts[0]) is str else b"").join(parts)
        if form == BYTES and type(item) is str:
            return PyUnicode_AsUTF8String(item)
        return item

    cdef object concurrent_recv(self):
        return self._concurrent("recv")

    def recv(self, decode=None):
        """Receive the next message: `message = await connection.recv()`.

        Raises ConnectionClosed once the connection is closed and what came before has been received, ConcurrencyError
        when another task receives already. Cancelling it loses no message.

        `decode`: True for str, False for bytes, None for what was sent.
        """
        cdef Recv recv
        if unlikely(decode is not None and decode):
            return self._recv_text()
        if unlikely(self._streaming):
            return self._refuse("recv")
        recv = <Recv>Recv.__new__(Recv)
        recv._queue = self
        recv._form = MESSAGE if decode is None else BYTES
        return recv

    def __aiter__(self):
        """Iterate over messages: until a normal end, or ConnectionClosedError."""
        cdef Messages messages = Messages.__new__(Messages)
        messages._connection = self
        return messages

    def __anext__(self):
        return anext(aiter(self))              # what is in the queue is not always a message

    def _put(self, item):
        raise TypeError("only a session adds to the queue of a connection")

    # -- frame by frame

    def _recv_item(self):
        """Return an awaitable for what stands first in the queue: a whole message, `Fragments`, or a Part of a stream."""
        cdef Recv recv = <Recv>Recv.__new__(Recv)
        recv._queue = self
        return recv

    def _open_stream(self):
        """Have the next message put into the queue frame by frame, unless there is one already."""
        if self._items.size or self._end is not None:
            return
        self._stream_open = True
        parts, self._unfinished = self._unfinished, None
        if parts is not None:
            for data in parts:
                self._items.push(new_part(data, False, False))

    def _close_stream(self):
        """The stream was given up before its first frame was taken: put its frames together again."""
        cdef Fragments whole
        cdef list parts = []
        self._stream_open = False
        while self._items.size and type(self._items.peek()) is Part:
            part = <Part>self._items.pop()
            parts.append(part.data)
            if part.final:
                whole = Fragments.__new__(Fragments)
                whole.parts = parts
                self._items.push_front(whole)
                return
        if parts:
            self._unfinished = parts

    # ------------------------------------------------------------------ sending

    cdef int update_sendable(self) except -1:
        self._sendable = self._state == OPEN and self._session is not None and not self._session.sending_parts
        return 0

    cdef int on_writable(self) except -1:
        if self._writable_waiter is not None:
            waiter, self._writable_waiter = self._writable_waiter, None
            if not waiter.done():
                waiter.set_result(None)
        return 0

    cdef inline int check_here(self) except -1:
        """Raise unless this is the connection's own thread; notice that its loop was closed."""
        return 0 if self._session is None else self._session.check_here()

    cdef inline int notice_closed_loop(self) except -1:
        return 0 if self._session is None else self._session.notice_closed_loop()

    cdef bint is_congested(self) except -1:
        """Does the transport hold so much that a sender is to wait?"""
        cdef Session session = self._session
        if session is None or not session._transport.holds:
            return False
        return session._out_size + session._transport.io.get_write_buffer_size() > self._write_limit

    def send(self, message, *, text=None):
        """Send a message: `await connection.send("text")`. It begins when it is awaited.

        A str goes out as text, bytes-like objects as binary; an iterable or asynchronous iterable of them as one message,
        each item as a frame. Waits afterwards while the transport holds more than `write_limit`.

        `text`: True or False to send it as text or as binary, whatever its type.

        Raises ConnectionClosed after the end, TypeError for anything else.
        """
        cdef Send send = <Send>Send.__new__(Send)
        send._connection = self
        send._message = message
        send._option = text
        return send

    cdef object begin_send(self, object message, object text):
        self.check_here()
        if not (self._sendable and self.write_data(message, text)):
            return self._send_later(message, text)
        if unlikely(self._session is not None and self._session._transport.holds and self.is_congested()):
            return self._drain()
        return None

    def _check_here(self):
        """Raise unless this is the connection's own thread."""
        self.check_here()

    def _write(self, message, text):
        """Write a str or bytes-like object as one message."""
        self.check_here()
        if not (self._sendable and self.write_data(message, text)):
            raise RuntimeError("not connected, or a message is being sent in parts")

    cdef inline bint write_data(self, object message, object text) except -1:
        """Write a str or bytes-like object as one message; False when it is something else, or cannot be written now."""
        cdef const char* p
        cdef Py_ssize_t n
        cdef int opcode
        if isinstance(message, str):
            opcode = K_BINARY if text is False else K_TEXT
            p = PyUnicode_AsUTF8AndSize(message, &n)
            if unlikely(p == NULL):
                reraise()
        else:
            opcode = K_TEXT if text is True else K_BINARY
            if not isinstance(message, bytes):
                if not isinstance(message, (bytearray, memoryview)):
                    return False
                message = bytes(message)       # it may change once we have returned
                if not self._sendable:         # a class of the application may do anything in there
                    return False
            p = PyBytes_AS_STRING(message)
            n = PyBytes_GET_SIZE(message)
        return self._session.write_message(opcode, p, n, message, None)

    def _write_part(self, int opcode, bytes payload, bint fin):
        """Send one frame of a message in several; meanwhile other messages wait. False: the connection has ended."""
        if self._session is None:
            raise RuntimeError("not connected")
        if not self._session.write_part(opcode, payload, fin, None):
            return False
        if self._session is not None:
            self._session.flush()
        self.update_sendable()
        return True

    def _end_parts(self):
        """No message is being sent in several frames any more."""
        if self._session is not None:
            self._session.stop_parts()
        self.update_sendable()

    # ------------------------------------------------------------------ for the class above, in Python

    @property
    def _phase(self):
        """0 to 3: before the opening handshake has ended, open, closing, closed."""
        self.notice_closed_loop()
        return 3 if self._state == CLOSED else self._state

    @property
    def _session_now(self):
        """The session, or None."""
        self.notice_closed_loop()
        return self._session

    @property
    def _is_awaited(self):
        """Does a task receive?"""
        return self._streaming or (self._waiter is not None and self._future is not None
                                   and not self._future.cancelled())

    @property
    def _is_congested(self):
        return self.is_congested()

    # ------------------------------------------------------------------ hooks, overridden in Python

    def _on_closing(self):
        """A close frame was sent or received, or the connection failed."""

    def _on_lost(self, session):
        """The session has ended: `_finish_with` is to be called."""
        self._finish_with(ConnectionError("the connection is closed"), False)

    def _on_too_many_fragments(self):
        """A message has more frames than allowed: fail the connection."""

    def _concurrent(self, method):
        """The exception for a call of `method` while another task receives."""
        return RuntimeError(f"cannot call {method} while another task receives")

    async def _refuse(self, method):
        raise self._concurrent(method)

    def _recv_text(self):
        """The coroutine of `recv(decode=True)`."""
        raise NotImplementedError

    def _send_later(self, message, text):
        """The coroutine that goes on where send() could not write at once."""
        raise RuntimeError("not connected")

    def _drain(self):
        """The coroutine that waits until the transport holds less."""
        raise NotImplementedError


def broadcast(list connections not None, message, text):
    """Write a str or bytes-like object to those of `connections` that are open; wait for none of them.

    Of servers' connections the frame is built once, and compressed once for each setting that was agreed on. Returns
    those that it was not written to, as pairs with the exception, or None where a message is being sent in parts.
    """
    cdef Shared shared = None
    cdef PlainConnection connection
    cdef Session session
    cdef list left_out = []
    # First: a class of the application may do anything in there, and a bytearray may change.
    if isinstance(message, str):
        message = str(message)
    elif isinstance(message, (bytearray, memoryview)):
        message = bytes(message)
    for each in connections:
        connection = <PlainConnection?>each
        try:
            connection.check_here()
            session = connection._session
            if connection._state != OPEN or session is None:
                continue
            if not connection._sendable:
                left_out.append((connection, None))
                continue
            if session._is_client:
                connection.write_data(message, text)
                continue
            if shared is None:
                shared = shared_message(message, text)
            session.write_made(shared.frames_for(session), shared.size, None)
        except Exception as error:
            left_out.append((connection, error))
    return left_out


cdef Shared shared_message(object message, object text):
    cdef bint is_str = isinstance(message, str)
    if (is_str if text is None else text):
        return Shared(new_message(K_TEXT, str(message) if is_str else bytes(message).decode()), None, 0)
    return Shared(new_message(K_BINARY, message.encode() if is_str else bytes(message)), None, 0)


@final
cdef class Messages:
    """What `async for` over a connection iterates over."""

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef PlainConnection connection = self._connection
        cdef Recv recv
        if connection is None:
            raise TypeError("a Messages is made by aiter()")
        if unlikely(connection._streaming):
            return connection._refuse("recv")
        recv = <Recv>Recv.__new__(Recv)
        recv._queue = connection
        recv._iterating = True
        recv._form = MESSAGE
        return recv

    async def aclose(self):
        """There is nothing to close: this is for `contextlib.aclosing`."""
