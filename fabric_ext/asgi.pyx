"""A WebSocket connection that speaks ASGI: the core of `fabric.asgi`.

A sibling of `fabric_ext.connection`, on the same sessions. An application is given its `receive` and `send`, C methods
that take and give events as dicts. The queue holds messages as str and bytes, which become events when they are
received, and other events as they are. It lives as long as one session; a sender writes first and waits afterwards,
while the transport holds much.

The Python class above it is `fabric.asgi.WebSocketProtocol`: the opening handshake, everything but messages, and the
end. The hooks that it overrides are at the end.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_GET_LENGTH
from cpython.object cimport PyObject
from cython cimport likely, unlikely

from fabric_ext.awaitable cimport reraise
from fabric_ext.connection cimport Send
from fabric_ext.counters cimport Counters
from fabric_ext.message cimport K_BINARY, K_TEXT, Message
from fabric_ext.receive_queue cimport Recv
from fabric_ext.session cimport QUEUE_FULL, Session
from fabric_ext.session_user cimport BATCH, BATCH_SIZE, SessionUser

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) noexcept

cdef enum:
    EVENT = 1                    # the form that `receive` asks for

# Sessions count here; it is not read.
cdef Counters UNUSED = Counters()


cdef inline Py_ssize_t size_of(object item) noexcept:
    """Characters or bytes of a message in the queue; 0 for an event that is none."""
    if type(item) is str:
        return PyUnicode_GET_LENGTH(item)
    return PyBytes_GET_SIZE(item) if type(item) is bytes else 0


cdef class AsgiConnection(SessionUser):
    """The base of the connections of `fabric.asgi`.

    Args:
        loop: the event loop.
        max_queue: messages in the queue above which the socket is not read, down to half of them.
        max_queue_bytes: likewise, characters of texts and bytes.
        write_limit: bytes that the transport may hold before a sender waits.
    """

    def __cinit__(self, *args, **kwargs):
        self._counters = UNUSED

    def __init__(self, loop, *, Py_ssize_t max_queue, Py_ssize_t max_queue_bytes, Py_ssize_t write_limit):
        SessionUser.__init__(self, loop)
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes
        self._write_limit = write_limit

    # ------------------------------------------------------------------ the session comes and goes

    def _begin_session(self, Session session not None):
        """Exchange messages over `session`; nothing has been read yet."""
        self._session = session
        self._sendable = True
        session.open()

    cdef int on_closing(self) except -1:
        self._sendable = False
        self._on_closing()
        return 0

    cdef int on_ended(self) except -1:
        cdef Session session = self._session
        self._session = None
        self._sendable = False
        self._on_lost(session)
        return 0

    def _finish_with(self, event not None, error not None):
        """The application gets what is queued, then `event`, then `error`, raised; what still comes is thrown away."""
        if self._end is not None:
            return
        self._sendable = False
        self._dropping = True
        self.begin_delivery()
        self._items.push(event)
        self.finish(error)

    def _hang_up(self):
        """End the connection, without more of a close handshake, once what was sent has left."""
        cdef Session session = self._session
        self._sendable = False
        self._dropping = True
        if session is not None and session._transport.io is not None:
            session.hand_over()
            if not session._transport.io.is_closing():   # asyncio's TLS lets go of its connection when closed twice
                session._transport.io.close()
            session.watch()

    # ------------------------------------------------------------------ receiving

    cdef int deliver(self, Message message) except -1:
        cdef Session session = self._session
        cdef object data = message.data
        cdef Py_ssize_t n = size_of(data)
        if self._dropping:
            return 0
        self._items.push(data)
        self._queued_bytes += n
        if not session.batching or self._items.size >= BATCH or n > BATCH_SIZE:
            self.hand_over()
        if unlikely((self._items.size > self._max_queue or self._queued_bytes > self._max_queue_bytes)
                    and not self._dropping):
            session.pause(QUEUE_FULL)
        return 0

    cdef PyObject* take(self) except? NULL:
        cdef Session session = self._session
        cdef PyObject* item
        if session is not None:
            session._loop_writer.before_delivery()
            if unlikely(self._items.size and session._read_pauses & QUEUE_FULL):
                self.resume_if_drained(session)
            if unlikely(self._items.size == 0):
                return NULL
        item = self._items.take()
        self._queued_bytes -= size_of(<object>item)
        return item

    cdef int resume_if_drained(self, Session session) except -1:
        cdef object first = self._items.peek()                 # about to be taken
        if self._items.size - 1 <= self._max_queue // 2 \
                and self._queued_bytes - size_of(first) <= self._max_queue_bytes // 2:
            session.resume(QUEUE_FULL)
        return 0

    cdef object shaped(self, object item, int form):
        if form == EVENT:
            if type(item) is str:
                return {"type": "websocket.receive", "text": item}
            if type(item) is bytes:
                return {"type": "websocket.receive", "bytes": item}
        return item

    def receive(self):
        """ASGI's `receive`: an awaitable for the next event.

        Raises `ClientDisconnected` after the event `websocket.disconnect`, RuntimeError while another task waits in it.
        """
        cdef Recv recv = <Recv>Recv.__new__(Recv)
        recv._queue = self
        recv._form = EVENT
        return recv

    # ------------------------------------------------------------------ sending

    def send(self, event):
        """ASGI's `send`: an awaitable that sends `event`, a dict. It begins when it is awaited.

        Waits afterwards while the transport holds more than `write_limit`.

        Raises `ClientDisconnected`, an OSError, once the client has gone; RuntimeError for an event that is not
        expected now.
        """
        cdef Send send = <Send>Send.__new__(Send)
        send._connection = self
        send._message = event
        return send

    cdef object begin_send(self, object event, object option):
        if self._session is not None:
            self._session.check_here()
        if likely(self._sendable and type(event) is dict and (<dict>event).get("type") == "websocket.send"):
            if unlikely(not self.write_data(<dict>event)):
                return self._send_event(event)
            if unlikely(self._session is not None and self._session._transport.holds and self.is_congested()):
                return self._drain()
            return None
        return self._send_event(event)

    cdef bint write_data(self, dict event) except -1:
        """Write the message of an event `websocket.send`; False when it cannot be written any more."""
        cdef const char* p
        cdef Py_ssize_t n = 0
        cdef int opcode = K_BINARY
        cdef object data = event.get("bytes")
        if data is None:
            data = event.get("text")
            if not isinstance(data, str):
                raise TypeError(f"'websocket.send' wants a str as 'text' or bytes as 'bytes', not {type(data).__name__}")
            p = PyUnicode_AsUTF8AndSize(data, &n)
            if unlikely(p == NULL):
                reraise()
            opcode = K_TEXT
        else:
            if not isinstance(data, bytes):
                if not isinstance(data, (bytearray, memoryview)):
                    raise TypeError(f"'websocket.send' wants bytes as 'bytes', not {type(data).__name__}")
                data = bytes(data)                             # it may change once we have returned
            p = PyBytes_AS_STRING(data)
            n = PyBytes_GET_SIZE(data)
        if unlikely(not self._sendable):                       # classes of the application may do anything in there
            return False
        return self._session.write_message(opcode, p, n, data, None)

    cdef bint is_congested(self) except -1:
        """Does the transport hold so much that a sender is to wait?"""
        cdef Session session = self._session
        return session._out_size + session._transport.io.get_write_buffer_size() > self._write_limit

    cdef int on_writable(self) except -1:
        self._on_writable()
        return 0

    # ------------------------------------------------------------------ for the class above, in Python

    @property
    def _session_now(self):
        """The session, or None."""
        return self._session

    # ------------------------------------------------------------------ hooks, overridden in Python

    def _on_closing(self):
        """A close frame was sent or received, or the connection failed."""

    def _on_lost(self, session):
        """The session has ended."""

    def _on_writable(self):
        """The transport holds nothing any more."""

    async def _send_event(self, event):
        """What `send` does with all that is not a message on an open connection."""
        raise RuntimeError("the connection is not open")

    async def _drain(self):
        """Wait until the transport holds less."""
