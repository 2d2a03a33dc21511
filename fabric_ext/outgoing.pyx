"""What a server says to its broker, as text of the broker's protocol.

Commands of one turn of the event loop stand in one buffer, and leave by one write; while the broker is away they wait
there. A published message costs no Python object.

Where turns publish one message each, it leaves at once: the end of the turn is another round of the event loop, for
which it would wait. Where the turn before published more, all of them share a write.
"""

from asyncio import get_running_loop as _get_running_loop

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cython cimport final
from libc.string cimport memcpy

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef object get_running_loop = _get_running_loop

cdef enum:
    KEPT = 1 << 16               # bytes of a buffer that is kept from turn to turn
    DIGITS = 20                  # of a number at most


cdef int make_room(Text* text, Py_ssize_t size) except -1:
    """Let so many bytes more be put."""
    cdef Py_ssize_t capacity = text.capacity
    cdef void* grown
    if capacity - text.size >= size:
        return 0
    capacity = max(text.size + size, capacity + capacity // 2, 1024)
    grown = PyMem_Realloc(text.at, capacity)
    if grown == NULL:
        raise MemoryError("cannot keep what is said to the broker")
    text.at, text.capacity = <char*>grown, capacity
    return 0


cdef inline void put(Text* text, const char* p, Py_ssize_t size) noexcept:
    memcpy(text.at + text.size, p, size)
    text.size += size


cdef inline void put_bytes(Text* text, bytes data) noexcept:
    put(text, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline void put_number(Text* text, unsigned long long number) noexcept:
    cdef char digits[DIGITS]
    cdef int at = DIGITS
    while True:
        at -= 1
        digits[at] = c"0" + <int>(number % 10)
        number //= 10
        if not number:
            break
    put(text, digits + at, DIGITS - at)


def nats_subscriptions(bytes prefix not None, list subscriptions not None):
    """The command to subscribe to each topic or pattern: (its name, the number of the subscription)."""
    cdef Text text = Text(NULL, 0, 0)
    cdef Py_ssize_t size
    cdef const char* name
    cdef str topic
    cdef unsigned long long number
    try:
        for topic, number in subscriptions:
            name = PyUnicode_AsUTF8AndSize(topic, &size)
            make_room(&text, PyBytes_GET_SIZE(prefix) + size + DIGITS + 8)
            put(&text, b"SUB ", 4)
            put_bytes(&text, prefix)
            put(&text, name, size)
            put(&text, b" f", 2)
            put_number(&text, number)
            put(&text, b"\r\n", 2)
        return PyBytes_FromStringAndSize(text.at, text.size)
    finally:
        PyMem_Free(text.at)


def redis_commands(bytes command not None, bytes prefix not None, list words not None):
    """A command for each word, which is its one argument, behind the prefix."""
    cdef Text text = Text(NULL, 0, 0)
    cdef Py_ssize_t size
    cdef const char* argument
    cdef str word
    cdef bytes head = b"*2\r\n$%d\r\n%b\r\n$" % (PyBytes_GET_SIZE(command), command)
    try:
        for word in words:
            argument = PyUnicode_AsUTF8AndSize(word, &size)
            size += PyBytes_GET_SIZE(prefix)
            make_room(&text, PyBytes_GET_SIZE(head) + size + DIGITS + 4)
            put_bytes(&text, head)
            put_number(&text, size)
            put(&text, b"\r\n", 2)
            put_bytes(&text, prefix)
            put(&text, argument, size - PyBytes_GET_SIZE(prefix))
            put(&text, b"\r\n", 2)
        return PyBytes_FromStringAndSize(text.at, text.size)
    finally:
        PyMem_Free(text.at)


cdef class Outgoing:
    """Commands that leave together at the end of the turn, or once the connection is open; a lone message at once.

    Args:
        prefix: what stands before the topic.
        limit: bytes that may wait, here and in the transport together.
        most_topics: of how many `take_topics` tells.

    Attributes:
        largest: bytes of a message that the broker takes.
    """

    def __init__(self, bytes prefix not None, Py_ssize_t limit, Py_ssize_t most_topics):
        self._prefix = prefix
        self._limit = self.largest = limit
        self._most_topics = most_topics
        self._topics, self._latest = {}, None
        self._head_for = -1

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    def __dealloc__(self):
        PyMem_Free(self._text.at)
        PyMem_Free(self._head.at)

    @property
    def is_open(self):
        """Is there a connection?"""
        return self._write is not None

    def open(self, write, unwritten):
        """There is a connection, which `write` writes to and which holds `unwritten()` bytes: send what waits."""
        self._write, self._unwritten = write, unwritten
        self._is_scheduled = False                 # the event loop on which it was scheduled may be closed
        self._published = 0
        self.flush()

    def close(self):
        """The connection is gone: what is added waits."""
        self._write = self._unwritten = None

    cdef bint has_room(self, Py_ssize_t size) except -1:
        """Is there room for so many bytes more? The transport is asked only if the limit seems to be reached."""
        if self._text.size + self._held + size > self._limit:
            self._held = 0 if self._unwritten is None else self._unwritten()
        return self._text.size + self._held + size <= self._limit

    @property
    def is_overfull(self):
        """Does more than twice the limit wait, as `add` has none? Then the broker does not read."""
        return not self.has_room(-self._limit)

    def add(self, bytes commands not None):
        """Send commands, however much waits."""
        make_room(&self._text, PyBytes_GET_SIZE(commands))
        put_bytes(&self._text, commands)
        self.schedule()

    def publish(self, str topic not None, bytes envelope not None):
        """Send a message; return False, and do nothing, if it is too large, or too much waits already."""
        return self.put_if_room(topic, envelope)

    cdef bint put_if_room(self, str topic, bytes envelope) except -1:
        cdef Py_ssize_t size, length = PyBytes_GET_SIZE(envelope)
        cdef const char* name
        cdef bint is_first = not self._text.size
        if self._prefix is None:
            raise RuntimeError("Outgoing() was not called")
        if length > self.largest or not self.has_room(length):
            return False
        if topic is not self._latest or length != self._head_for:
            self._head_for = -1                    # until it is made
            self._head.size = 0
            name = PyUnicode_AsUTF8AndSize(topic, &size)
            make_room(&self._head, PyBytes_GET_SIZE(self._prefix) + size + 2 * DIGITS + 32)
            self.put_head(&self._head, name, size, length)
            self._head_for = length
        make_room(&self._text, self._head.size + length + 2)
        put(&self._text, self._head.at, self._head.size)
        put_bytes(&self._text, envelope)
        put(&self._text, b"\r\n", 2)
        if topic is not self._latest:
            self._latest = topic
            if len(self._topics) >= self._most_topics and topic not in self._topics:
                self._topics.clear()
                topic = ">"
            self._topics[topic] = None
        self._published += 1
        self.schedule()
        if is_first and self._published == 1 and self._was_alone:
            self.flush()
        return True

    cdef int put_head(self, Text* text, const char* topic, Py_ssize_t size, Py_ssize_t length) except -1:
        """Put what stands before a message of `length` bytes; for the next one like it, it is not made again."""
        raise NotImplementedError("how a message is published depends on the broker")

    def take_topics(self):
        """What was published to since the last call; `>` stands for those that are too many to be told."""
        topics, self._topics, self._latest = self._topics, {}, None
        return topics

    cdef int schedule(self) except -1:
        if self._write is not None and not self._is_scheduled:
            get_running_loop().call_soon(self._end_turn)
            self._is_scheduled = True
        return 0

    def _end_turn(self):
        self._is_scheduled = False
        self._was_alone = self._published <= 1
        self._published = 0
        self.flush()

    def flush(self):
        """Send what is gathered now, if there is a connection."""
        cdef bytes data
        if self._write is None or not self._text.size:
            return
        data = PyBytes_FromStringAndSize(self._text.at, self._text.size)
        self._text.size = 0
        if self._text.capacity > KEPT:
            PyMem_Free(self._text.at)
            self._text.at, self._text.capacity = NULL, 0
        self._write(data)
        self._held = 0 if self._unwritten is None else self._unwritten()


@final
cdef class NatsOutgoing(Outgoing):
    """What is said to a NATS server."""

    cdef int put_head(self, Text* text, const char* topic, Py_ssize_t size, Py_ssize_t length) except -1:
        put(text, b"PUB ", 4)
        put_bytes(text, self._prefix)
        put(text, topic, size)
        put(text, b" ", 1)
        put_number(text, length)
        put(text, b"\r\n", 2)
        return 0


@final
cdef class RedisOutgoing(Outgoing):
    """What is said to a Redis server."""

    cdef int put_head(self, Text* text, const char* topic, Py_ssize_t size, Py_ssize_t length) except -1:
        put(text, b"*3\r\n$7\r\nPUBLISH\r\n$", 18)
        put_number(text, PyBytes_GET_SIZE(self._prefix) + size)
        put(text, b"\r\n", 2)
        put_bytes(text, self._prefix)
        put(text, topic, size)
        put(text, b"\r\n$", 3)
        put_number(text, length)
        put(text, b"\r\n", 2)
        return 0


cdef class Publisher:
    """What an adapter publishes with.

    Args:
        outgoing: what takes messages.
    """

    def __init__(self, Outgoing outgoing not None):
        self._out = outgoing

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")

    def publish(self, str topic not None, bytes envelope not None):
        """Send a message to the other servers; see `fabric.broker.Broker.publish`."""
        if self._out is None:
            raise RuntimeError("Publisher() was not called")
        if not self._out.put_if_room(topic, envelope):
            self._refuse(topic, envelope)

    def _refuse(self, topic, envelope):
        """The message is too large, or too much waits already: raise an error that says so."""
        raise NotImplementedError("the error depends on the broker")
