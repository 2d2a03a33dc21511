"""Messages between servers: their envelope, their way to the subscribers, and readers of what brokers send.

An envelope is 13 bytes before the payload: the kind of message (1 text, 2 binary, as the opcodes of RFC 6455; 3 is what
the servers tell each other), 8 bytes that name the node it comes from, and a number that this node counts up. So a node
knows its own messages, and a message that a broker sends twice in a row, once for each of two subscriptions that fit.
"""

from asyncio import _get_running_loop

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cython cimport final
from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcmp, memcpy

from fabric_ext.broadcast cimport Shared
from fabric_ext.message cimport K_BINARY, K_TEXT, Message, new_message
from fabric_ext.topics cimport Index
from fabric_ext.writer cimport LoopWriter, loop_writer_of

cdef object running_loop = _get_running_loop       # None where none runs

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    str PyUnicode_DecodeUTF8(const char* p, Py_ssize_t n, const char* errors)

cdef enum:
    K_FLEET = 3                  # see fabric.fleet
    K_NUMBERED = 4               # of a topic with history, see fabric.broker
    NODE = 8                     # bytes of a node's name
    HEAD = 13
    MOST_NODES = 4096            # whose numbers are remembered
    AT_ONCE = 8                  # messages whose delivery is not done here, before it is
    LONGEST_LINE = 65536
    LARGEST = 1 << 30            # bytes of a message
    MOST_TOKENS = 5
    EPOCH = 16                   # characters
    DIGITS = 16                  # of an offset


def wrap(int kind, bytes node not None, uint32_t number, bytes payload not None):
    """The envelope of a message, and its payload.

    Raises:
        ValueError: `kind` is not 1, 2 or 3, or `node` has not 8 bytes.
    """
    cdef bytes result
    cdef char* p
    if kind not in (K_TEXT, K_BINARY, K_FLEET) or PyBytes_GET_SIZE(node) != NODE:
        raise ValueError("an envelope takes a kind of 1, 2 or 3, and a node of 8 bytes")
    result = PyBytes_FromStringAndSize(NULL, HEAD + PyBytes_GET_SIZE(payload))
    p = PyBytes_AS_STRING(result)
    p[0] = kind
    memcpy(p + 1, PyBytes_AS_STRING(node), NODE)
    memcpy(p + 1 + NODE, &number, 4)               # compared only with what the same node has sent
    memcpy(p + HEAD, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
    return result


@final
cdef class Incoming:
    """What other nodes publish, on its way to the subscribers of this one."""

    def __init__(self, Index index not None, bytes node not None, Py_ssize_t fragment_size):
        self._index = index
        self._node = node
        self._fragment_size = fragment_size
        self._latest = {}

    def deliver(self, list batch not None, Py_ssize_t start=0, bint whole=False):
        """Send (topic, envelope) one after the other; return what is left to do as (topic, message, shared, targets).

        See `Index.publish` for the targets. What servers tell each other, and what has an offset, is
        (topic, envelope, None, []); while `hold` is set, messages are (topic, message, None, []), and are not sent.

        Args:
            start: where in `batch` to begin.
            whole: come to its end. Otherwise `taken` tells where this has stopped: where so much is due to connections
                that more would have all of it written at once, or so much is left to do.
        """
        cdef list left = [], rest
        cdef uint32_t number
        cdef const char* p
        cdef bytes data, node
        cdef Message message
        cdef Shared shared
        cdef str topic
        cdef object loop = None if whole else running_loop()
        cdef LoopWriter writer = None if loop is None else loop_writer_of(loop)
        if self._index is None:
            raise RuntimeError("Incoming() was not called")
        self.taken = start
        while self.taken < len(batch):
            topic, data = batch[self.taken]
            if writer is not None and (len(left) >= AT_ONCE or
                                       writer.is_full(0 if data is None else PyBytes_GET_SIZE(data))):
                break
            self.taken += 1
            p = PyBytes_AS_STRING(data) if data is not None else NULL
            if topic is None or p == NULL or PyBytes_GET_SIZE(data) < HEAD or p[0] < K_TEXT or p[0] > K_NUMBERED:
                self.malformed += 1
                continue
            if p[0] == K_NUMBERED:
                left.append((topic, data, None, []))
                continue
            node = PyBytes_FromStringAndSize(p + 1, NODE)
            if node == self._node:
                continue
            memcpy(&number, p + 1 + NODE, 4)
            if self._latest.get(node) == number:
                continue
            if len(self._latest) >= MOST_NODES:
                self._latest.clear()
            self._latest[node] = number
            if p[0] == K_FLEET:
                left.append((topic, data, None, []))
                continue
            try:
                if p[0] == K_TEXT:
                    message = new_message(K_TEXT, PyUnicode_DecodeUTF8(p + HEAD, PyBytes_GET_SIZE(data) - HEAD, NULL))
                else:
                    message = new_message(K_BINARY, data[HEAD:])
                if self.hold:
                    self.messages += 1
                    left.append((topic, message, None, []))
                    continue
                shared = Shared(message, None, self._fragment_size)
                rest = []
                if self._index.offer(topic, shared, (), rest):
                    self._is_due = True
            except ValueError:                     # no UTF-8, or no topic
                self.malformed += 1
                continue
            self.messages += 1
            if rest:
                left.append((topic, message, shared, rest))
        return left

    def end_read(self):
        """All that came in this read was delivered: connections get it now, rather than at the end of the turn.

        The turn may end much later, and its end is another round of the event loop.
        """
        if self._is_due:
            self._is_due = False
            loop_writer_of(running_loop()).serve(False)


cdef bytes field(bytes head, bytes name):
    """A field of a header of NATS; empty if it is not there."""
    cdef Py_ssize_t at = head.find(b"\r\n" + name + b": "), end
    if at < 0:
        return b""
    at += PyBytes_GET_SIZE(name) + 4
    end = head.find(b"\r\n", at)
    return head[at:end] if end > 0 else b""


cdef bytes numbered(bytes head, bytes payload):
    """A message as `fabric.broker.Node.deliver` takes it; if no stream of ours has numbered it, the payload."""
    cdef bytes stream = field(head, b"Nats-Stream")
    cdef bytes number = field(head, b"Nats-Sequence")
    cdef bytes before = field(head, b"Nats-Last-Sequence")
    if not stream.startswith(b"fabric-") or PyBytes_GET_SIZE(stream) != 7 + EPOCH:
        return payload
    if not (number.isdigit() and before.isdigit() and len(number) <= DIGITS and len(before) <= DIGITS):
        return payload
    return b"\4%b%b%b%b" % (stream[7:], number.zfill(DIGITS), before.zfill(DIGITS), payload)


cdef class Reader:
    """Takes messages out of what a broker sends.

    Args:
        prefix: what stands before the topic.
    """

    def __init__(self, bytes prefix not None):
        self._prefix = PyBytes_GET_SIZE(prefix)
        self._parts = []

    cdef bytes joined(self, bytes data):
        """What is left of before, and `data`; None while that is known to be too little."""
        if not self._size:
            return data
        self._parts.append(data)
        self._size += PyBytes_GET_SIZE(data)
        if self._size < self._needed:
            return None
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return data

    cdef int keep(self, bytes data, Py_ssize_t at, Py_ssize_t needed) except -1:
        """Keep what stands from `at` on: so many bytes of it are needed at least."""
        if at < PyBytes_GET_SIZE(data):
            self._parts.append(data[at:])
            self._size = PyBytes_GET_SIZE(data) - at
            self._needed = needed
        return 0

    cdef str topic_of(self, const char* p, Py_ssize_t n):
        """The topic in a subject or channel: the same object as before where it is the same."""
        cdef Py_ssize_t size
        cdef const char* known
        p += self._prefix
        n -= self._prefix
        if n < 0:
            return None
        if self._topic is not None:
            known = PyUnicode_AsUTF8AndSize(self._topic, &size)
            if size == n and memcmp(known, p, n) == 0:
                return self._topic
        self._topic = PyUnicode_DecodeUTF8(p, n, "replace")
        return self._topic


@final
cdef class NatsReader(Reader):
    """Takes the messages out of what a NATS server sends whose subscription begins with `f`; the rest is the client's.

    Those that a stream of `fabric.broker.jetstream` has kept and sent are made what `fabric.broker.Node.deliver` takes.

    Args:
        prefix: what stands before the topic in a subject.
    """

    def feed(self, bytes data not None):
        """Return the messages as (topic, payload), and the bytes that are not ours.

        Raises:
            ValueError: this is not NATS' protocol.
        """
        cdef list batch = [], others = []
        cdef const char* p
        cdef const char* found
        cdef Py_ssize_t at = 0, size, line, end, i, needed = 0
        cdef Py_ssize_t starts[MOST_TOKENS + 1]
        cdef Py_ssize_t ends[MOST_TOKENS + 1]
        cdef Py_ssize_t count, payload, head
        cdef bint with_head
        cdef bytes message
        if self._parts is None:
            raise RuntimeError("NatsReader() was not called")
        data = self.joined(data)
        if data is None:
            return batch, b""
        p = PyBytes_AS_STRING(data)
        size = PyBytes_GET_SIZE(data)
        while at < size:
            found = <const char*>memchr(p + at, c"\n", size - at)
            if found == NULL:
                if size - at > LONGEST_LINE:
                    raise ValueError("a line without an end")
                break
            line = found - p + 1
            with_head = line - at > 5 and memcmp(p + at, b"HMSG ", 5) == 0
            if not with_head and not (line - at > 4 and memcmp(p + at, b"MSG ", 4) == 0):
                others.append(data[at:line])
                at = line
                continue
            # subject, sid, [reply-to,] [bytes of headers,] bytes
            count = 0
            i = at + (5 if with_head else 4)
            end = line - 1
            while i < end:
                while i < end and (p[i] == c" " or p[i] == c"\t" or p[i] == c"\r"):
                    i += 1
                if i == end or count > MOST_TOKENS:
                    break
                starts[count] = i
                while i < end and p[i] != c" " and p[i] != c"\t" and p[i] != c"\r":
                    i += 1
                ends[count] = i
                count += 1
            if count < 3 + with_head or count > 4 + with_head:
                raise ValueError("a malformed MSG")
            payload = number_at(p + starts[count - 1], ends[count - 1] - starts[count - 1])
            head = number_at(p + starts[count - 2], ends[count - 2] - starts[count - 2]) if with_head else 0
            if payload < 0 or head < 0 or head > payload:
                raise ValueError("a malformed MSG")
            if size - line < payload + 2:
                needed = line - at + payload + 2
                break
            if p[starts[1]] == c"f":
                message = PyBytes_FromStringAndSize(p + line + head, payload - head)
                if with_head:
                    message = numbered(PyBytes_FromStringAndSize(p + line, head), message)
                batch.append((self.topic_of(p + starts[0], ends[0] - starts[0]), message))
            else:
                others.append(data[at:line + payload + 2])
            at = line + payload + 2
        self.keep(data, at, needed)
        return batch, b"".join(others)


cdef enum:
    UNFINISHED = -1              # more is needed


cdef Py_ssize_t line_end(const char* p, Py_ssize_t size, Py_ssize_t at) except -2:
    """Where the line ends that begins at `at`: behind its line feed.

    Raises:
        ValueError: it has none, and is too long.
    """
    cdef const char* found = <const char*>memchr(p + at, c"\n", size - at) if at < size else NULL
    if found == NULL:
        if size - at > LONGEST_LINE:
            raise ValueError("a line without an end")
        return UNFINISHED
    if found == p + at or (found - 1)[0] != c"\r":
        raise ValueError("a line that does not end in CR LF")
    return found - p + 1


cdef Py_ssize_t bulk(const char* p, Py_ssize_t size, Py_ssize_t at, Py_ssize_t* begin, Py_ssize_t* end) except -2:
    """Read a bulk string at `at`: set where its text begins and ends; return where the next reply begins.

    If it is not all there, `end` is where it ends all the same, or 0.
    """
    cdef Py_ssize_t length
    end[0] = 0
    begin[0] = line_end(p, size, at)
    if begin[0] == UNFINISHED:
        return UNFINISHED
    length = number_at(p + at + 1, begin[0] - at - 3)
    if p[at] != c"$" or length < 0:
        raise ValueError("a malformed message")
    end[0] = begin[0] + length
    return end[0] + 2 if end[0] + 2 <= size else UNFINISHED


cdef Py_ssize_t skip(const char* p, Py_ssize_t size, Py_ssize_t at) except -2:
    """Where the reply ends that begins at `at`, whatever it is in version 2 of the protocol."""
    cdef Py_ssize_t left = 1, line, length
    cdef bint is_nothing
    while left:
        line = line_end(p, size, at)
        if line == UNFINISHED:
            return UNFINISHED
        left -= 1
        if p[at] == c"$" or p[at] == c"*":
            is_nothing = line - at == 5 and p[at + 1] == c"-" and p[at + 2] == c"1"
            length = 0 if is_nothing else number_at(p + at + 1, line - at - 3)
            if length < 0:
                raise ValueError("a malformed reply")
            if p[at] == c"*":
                left += length
            elif not is_nothing:
                line += length + 2
        elif p[at] != c"+" and p[at] != c"-" and p[at] != c":":
            raise ValueError("a reply of an unknown kind")
        at = line
        if at > size:
            return UNFINISHED
    return at


@final
cdef class RedisReader(Reader):
    """Takes the messages out of what a Redis server sends; the other replies are for another reader.

    What tells nothing is left out: a number, which answers a PUBLISH, and what confirms a subscription or its end.

    Args:
        prefix: what stands before the topic in a channel.
    """

    def feed(self, bytes data not None):
        """Return the messages as (topic, payload), and the bytes of other replies.

        Raises:
            ValueError: this is not Redis' protocol (RESP, version 2).
        """
        cdef list batch = [], others = []
        cdef const char* p
        cdef Py_ssize_t at = 0, size, after, needed = 0
        cdef Py_ssize_t begin, end, from_, to
        if self._parts is None:
            raise RuntimeError("RedisReader() was not called")
        data = self.joined(data)
        if data is None:
            return batch, b""
        p = PyBytes_AS_STRING(data)
        size = PyBytes_GET_SIZE(data)
        while at < size:
            if p[at] == c":":
                after = line_end(p, size, at)
                if after == UNFINISHED:
                    break
                at = after
                continue
            if begins(p + at, size - at, b"*3\r\n$7\r\nmessage\r\n"):
                after = at + 17
            elif begins(p + at, size - at, b"*4\r\n$8\r\npmessage\r\n"):
                after = bulk(p, size, at + 18, &begin, &end)       # the pattern
            else:
                after = skip(p, size, at)
                if after == UNFINISHED:
                    break
                if not confirms(p + at, after - at):
                    others.append(data[at:after])
                at = after
                continue
            if after != UNFINISHED:
                after = bulk(p, size, after, &begin, &end)         # the channel
            if after != UNFINISHED:
                after = bulk(p, size, after, &from_, &to)
                if after == UNFINISHED and to:
                    needed = to + 2 - at
            if after == UNFINISHED:
                break
            batch.append((self.topic_of(p + begin, end - begin), PyBytes_FromStringAndSize(p + from_, to - from_)))
            at = after
        self.keep(data, at, needed)
        return batch, b"".join(others)


cdef bint begins(const char* p, Py_ssize_t n, bytes words) noexcept:
    return n >= PyBytes_GET_SIZE(words) and memcmp(p, PyBytes_AS_STRING(words), PyBytes_GET_SIZE(words)) == 0


cdef bint confirms(const char* p, Py_ssize_t n) noexcept:
    """Is it the reply to SUBSCRIBE, PSUBSCRIBE, UNSUBSCRIBE or PUNSUBSCRIBE?"""
    return (
        begins(p, n, b"*3\r\n$9\r\nsubscribe\r\n") or begins(p, n, b"*3\r\n$10\r\npsubscribe\r\n")
        or begins(p, n, b"*3\r\n$11\r\nunsubscribe\r\n") or begins(p, n, b"*3\r\n$12\r\npunsubscribe\r\n")
    )


cdef Py_ssize_t number_at(const char* p, Py_ssize_t n) noexcept:
    """A decimal number; -1 if it is none, or too large."""
    cdef Py_ssize_t i, number = 0
    if n < 1 or n > 10:
        return -1
    for i in range(n):
        if p[i] < c"0" or p[i] > c"9":
            return -1
        number = 10 * number + (p[i] - c"0")
    return number if number <= LARGEST else -1
