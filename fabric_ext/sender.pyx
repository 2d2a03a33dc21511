# cython: binding=False
"""The sending half of a connection: messages become frames, now or when the transport takes them.

Owns the outbox, for messages that are accepted and cannot be written yet, and what is known of those that are gathered
and have not left. Decides nothing about the state of the connection, which its subclass moves, and knows no transport
but asyncio's. A message is in one place at a time: with the caller, in the outbox, or written.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.ref cimport PyObject
from cython cimport final
from libc.stdint cimport uint8_t

from fabric_ext.counters cimport Counters
from fabric_ext.deflate cimport Codec
from fabric_ext.inbox cimport DONE
from fabric_ext.message cimport (K_BINARY, K_CLOSE, K_CONTINUATION, K_PING, K_TEXT, Message, new_message,
                                 write_header)
from fabric_ext.outlet cimport Outlet, hub_of
from fabric_ext.protocol cimport OPEN
from fabric_ext.ring cimport Ring

from fabric_ext.message import Frame

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    PyObject* PyList_GET_ITEM(object items, Py_ssize_t i) noexcept

cdef extern from *:
    """
    #define fabric_prefetch(p) __builtin_prefetch(p, 1)
    """
    void prefetch "fabric_prefetch"(const void* p) noexcept


cdef inline void fetch(PyObject* connection) noexcept:
    """Bring what a broadcast touches of the next connection into the cache while the kernel is busy with this one."""
    prefetch(connection)
    prefetch(&(<Sender>connection)._fd)
    prefetch(&(<Sender>connection).messages_sent)


cdef Message unsent_message(int kind, list parts):
    """The message whose payload came in `parts`, or is the only one."""
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    if kind == K_TEXT:
        return new_message(kind, data if type(data) is str else bytes(data).decode())
    return new_message(kind, bytes(data))


cdef class Sender(Outlet):
    """An outlet for messages. `_state`, `_io` and `_codec` are its subclass's to set."""

    def __init__(self, loop, bint masking, Counters counters not None):
        Outlet.__init__(self, loop)
        self._hub = hub_of(loop)
        self._masking = masking
        self._counters = counters
        self._outbox = Ring()

    cdef void _update_sendable(self) noexcept:
        self._sendable = (self._state == OPEN and not self._blocked and not self._fragmenting
                          and self._outbox.size == 0 and self._waiting == 0)

    def send(self, message, *, compress=None):
        """Send a message; see `fabric._connection.base.Peer.send`."""
        if self._sendable and self._write_object(message, compress):
            return DONE
        return self._send_later(message, compress)

    def send_nowait(self, message, *, compress=None):
        """Send a message without waiting: `BufferFull` when the outbox is, `InvalidState` when not connected."""
        if not (self._sendable and self._write_object(message, compress)):
            self._queue_now(message, compress)

    cdef bint _write_object(self, object message, object compress) except -1:
        """Write a str, bytes-like or data Message; False when it is something else."""
        cdef const char* p
        cdef Py_ssize_t n
        cdef Py_buffer buffer
        cdef int opcode = K_BINARY
        if type(message) is Message:
            opcode = (<Message>message).kind
            message = (<Message>message).data
        elif isinstance(message, str):
            opcode = K_TEXT
        elif not isinstance(message, bytes):
            if not isinstance(message, (bytearray, memoryview)):
                return False
            PyObject_GetBuffer(message, &buffer, PyBUF_SIMPLE)
            try:                                               # no owner: it may change once we have returned
                self._write_message(K_BINARY, <const char*>buffer.buf, buffer.len, None, compress)
            finally:
                PyBuffer_Release(&buffer)
            return True
        if opcode == K_TEXT:
            p = PyUnicode_AsUTF8AndSize(message, &n)
        elif opcode == K_BINARY:
            p = PyBytes_AS_STRING(message)
            n = PyBytes_GET_SIZE(message)
        else:
            return False
        self._write_message(opcode, p, n, message, compress)
        return True

    cdef int _write_message(self, int opcode, const char* p, Py_ssize_t n, object owner, object compress) except -1:
        cdef uint8_t first = opcode
        cdef bytes packed
        self.messages_sent += 1
        self.bytes_sent += n
        self._counters.messages_sent += 1
        self._counters.bytes_sent += n
        if self._compresses(n, compress):
            packed = self._pack(p, n, True)
            plain = owner if owner is not None else PyBytes_FromStringAndSize(p, n)
            return self._write_packed(0x40 | first, packed, plain, True)
        return self._write_frames(first, p, n, owner, True)

    cdef bint _compresses(self, Py_ssize_t n, object compress) except -1:
        """Is a message of `n` bytes compressed, of which its sender says `compress`?"""
        return self._codec is not None and compress is not False and (n >= self._codec.threshold or compress is True)

    cdef bytes _pack(self, const char* p, Py_ssize_t n, bint fin):
        cdef bytes packed = self._codec.compress_part(p, n, fin)
        self._counters.compression_bytes_in += n
        self._counters.compression_bytes_out += PyBytes_GET_SIZE(packed)
        return packed

    cdef int _write_packed(self, uint8_t first, bytes packed, object plain, bint fin) except -1:
        """Write a compressed message or its first part; while it is gathered, remember what it is."""
        cdef unsigned long flushes = self._flushes
        self._plain_now = plain
        self._write_frames(first, PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed), packed, fin)
        self._plain_now = None
        return self._remember(plain, flushes)

    cdef int _remember(self, object plain, unsigned long flushes) except -1:
        if self._out_size and self._flushes == flushes:
            if self._plain is None:
                self._plain = Ring()
            self._plain.push(plain)
        return 0

    cdef int _write_frames(self, uint8_t first, const char* p, Py_ssize_t size, object owner, bint fin) except -1:
        """Write a payload as one frame, or as several where it is larger than `fragment_size`."""
        if self._fragment_size:
            while size > self._fragment_size:
                self.write_frame(first, p, self._fragment_size, owner)
                p += self._fragment_size
                size -= self._fragment_size
                first = K_CONTINUATION
        return self.write_frame(0x80 | first if fin else first, p, size, owner)

    def _write_fragment(self, int opcode, bytes payload, bint fin, compress):
        """Send one part of a message sent in parts; `opcode` 0 continues it.

        Its first part decides whether it is compressed: the size of the whole is not known.
        """
        cdef Py_ssize_t n = PyBytes_GET_SIZE(payload)
        cdef uint8_t first = opcode
        cdef bytes packed
        if opcode:
            self._packing = self._compresses(n, compress)
        self.bytes_sent += n
        self._counters.bytes_sent += n
        if fin:
            self.messages_sent += 1
            self._counters.messages_sent += 1
        if not self._packing:
            self._write_frames(first, PyBytes_AS_STRING(payload), n, payload, fin)
            return
        packed = self._pack(PyBytes_AS_STRING(payload), n, fin)
        if opcode:
            self._parts_plain = bytearray(payload)
            self._write_packed(0x40 | first, packed, self._parts_plain, fin)
            if self._out_size == 0:
                self._parts_plain = None
        else:
            if self._parts_plain is not None:
                self._parts_plain += payload
            self._write_frames(first, PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed), packed, fin)

    cdef int _write_control(self, int opcode, bytes payload) except -1:
        return self.write_frame(0x80 | opcode, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), None)

    def _write_ping(self, bytes payload not None):
        """Send a ping now, before whatever waits in the outbox."""
        self._write_control(K_PING, payload)

    cdef int _write_shared(self, Shared shared) except -1:
        """Write a message that goes to many."""
        cdef unsigned long flushes = self._flushes
        cdef bytes frame = shared.plain
        cdef bint packing = self._compresses(shared.size, shared.compress)
        if packing:
            frame = shared.packed_for(self._codec)
        self.messages_sent += 1
        self.bytes_sent += shared.size
        self._counters.messages_sent += 1
        self._counters.bytes_sent += shared.size
        if not packing:
            return self.write_raw(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), frame)
        self._plain_now = shared.payload
        self.write_raw(PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), frame)
        self._plain_now = None
        return self._remember(shared.payload, flushes)

    def _outbox_push(self, Message message not None, compress):
        """Keep a message until the transport takes it."""
        self._outbox.push(message if compress is None else (message, compress))
        self._outbox_bytes += len(message)
        self._update_sendable()

    def _set_waiting(self, int change):
        """One sender more, or one less, waits for room in the outbox."""
        self._waiting += change
        self._update_sendable()

    def _outbox_pop(self):
        """The oldest message kept, as (message, compress); `IndexError` when there is none."""
        item = self._outbox.pop()
        message, compress = (item, None) if type(item) is Message else item
        self._outbox_bytes -= len(message)
        if self._backpressure is not None:
            self._backpressure.release(len(message))
        self._update_sendable()
        return message, compress

    cdef int _drain_outbox(self) except -1:
        while (self._outbox.size and not self._blocked and not self._fragmenting and self._state == OPEN
               and not self._io.is_closing()):
            message, compress = self._outbox_pop()
            self._write_object(message, compress)
            if self._out_size:
                self.flush()                                   # to learn whether the kernel still takes them
        return 0

    def _flush_outbox(self):
        """Write what waits in the outbox, as far as the transport takes it."""
        self._drain_outbox()

    # ------------------------------------------------------------------ what becomes of what was gathered

    cdef int on_written(self) except -1:
        if self._plain is not None:
            self._plain.clear()
            self._parts_plain = None
        return 0

    cdef int on_broken(self, bytes unwritten) except -1:
        """Nothing more can be sent: keep what waits, for the next transport or for `undelivered`."""
        self._blocked = True
        self._take_back(unwritten)
        self._update_sendable()
        return 0

    def _take_back(self, bytes unwritten):
        """Let the messages wait that `unwritten` consists of, frames that were gathered and then not written.

        One that does not begin there has been sent in part, and is not sent again.
        """
        cdef list found = []
        cdef Py_ssize_t at = 0
        # Of a message that is there from its beginning: its opcode, its payload so far, and is it compressed?
        kind, message, packed = self._unfinished or (0, None, False)
        view = memoryview(unwritten)
        while (parsed := Frame.parse(view[at:])) is not None:
            frame, at = parsed[0], at + parsed[1]
            if frame.opcode >= K_CLOSE:
                continue
            if frame.opcode != K_CONTINUATION:
                kind, message, packed = frame.opcode, [], frame.rsv1
                if packed:
                    message.append(self._plain.pop() if self._plain is not None and self._plain.size
                                   else self._plain_now)
            if message is None:
                continue
            if not packed:
                message.append(frame.payload)
            if frame.fin:
                found.append((unsent_message(kind, message), packed))
                message = None
        self._unfinished = None if message is None else (kind, message, packed)
        self._wait_first(found)
        self.on_written()

    cdef int _wait_first(self, list found) except -1:
        """Put messages that counted as sent before those that wait, and behind those put there before."""
        cdef list waiting = [self._outbox.pop() for _ in range(self._taken_back)]
        for message, packed in found:
            waiting.append(message if self._codec is None else (message, packed))
            self._outbox_bytes += len(message)
            self.messages_sent -= 1
            self.bytes_sent -= len(message)
            self._counters.messages_sent -= 1
            self._counters.bytes_sent -= len(message)
            self._on_taken_back(message)
        self._taken_back = len(waiting)
        for item in reversed(waiting):
            self._outbox.push_front(item)
        return 0

    def _set_fragmenting(self, bint fragmenting):
        """While a message is being sent in parts, other data waits in the outbox."""
        self._fragmenting = fragmenting
        if not fragmenting:
            self._drain_outbox()
            if not self._blocked and self._outbox.size == 0:
                self._on_writable()
        self._update_sendable()

    # ------------------------------------------------------------------ hooks, overridden in Python

    def _on_writable(self):
        """Nothing waits to be written any more."""

    def _on_taken_back(self, message):
        """A message that counted as sent waits again."""

    def _send_later(self, message, compress):
        """What send() returns when it could not write at once."""
        raise RuntimeError("not connected")

    def _queue_now(self, message, compress):
        """What send_nowait() does when it could not write at once."""
        raise RuntimeError("not connected")


@final
cdef class Shared:
    """A message for many connections of a server: its frame is built once, and compressed once per agreed setting."""

    def __init__(self, Message message not None, compress, Py_ssize_t fragment_size):
        self.opcode = message.kind
        self.compress = compress
        self.fragment_size = fragment_size
        self.payload = message.as_bytes()
        self.size = len(self.payload)
        self.plain = self._frame(self.payload, 0)
        self.packed = {}

    def send_to(self, list peers not None):
        """Write it to those of `peers` that take it now; return their number, and the open ones that do not.

        A peer costs little more than the system call: this loop calls no Python, and with thousands of connections,
        none of which is in a cache when its turn comes, the next one is fetched meanwhile.
        """
        cdef Py_ssize_t i, count = PyList_GET_SIZE(peers), sent = 0
        cdef list later = []
        cdef Sender peer
        for i in range(count):
            if i + 1 < count:
                fetch(PyList_GET_ITEM(peers, i + 1))
            peer = <Sender?>peers[i]
            if peer._sendable:
                peer._write_shared(self)
                sent += 1
            elif peer._state == OPEN:
                later.append(peer)
        return sent, later

    cdef bytes packed_for(self, Codec codec):
        cdef object group = codec.group()
        cdef object known = self.packed.get(group)
        cdef bytes alone, own
        if known is None:
            alone = codec.compress_alone(PyBytes_AS_STRING(self.payload), self.size)
            known = self.packed[group] = alone, self._frame(alone, 0x40)
        alone = known[0]
        own = codec.adopt(alone, PyBytes_AS_STRING(self.payload), self.size)
        return known[1] if own is alone else self._frame(own, 0x40)

    cdef bytes _frame(self, bytes payload, uint8_t rsv):
        """The frame of `payload`, or the frames where it is larger than `fragment_size`."""
        cdef uint8_t header[14]
        cdef uint8_t first = self.opcode | rsv
        cdef Py_ssize_t start, n, size, total = PyBytes_GET_SIZE(payload)
        cdef Py_ssize_t step = self.fragment_size or max(total, 1)
        cdef list parts = []
        for start in range(0, max(total, 1), step):
            n = min(step, total - start)
            size = write_header(header, first | (0x80 if start + n == total else 0), n, False, 0)
            parts += PyBytes_FromStringAndSize(<char*>header, size), payload[start:start + n]
            first = K_CONTINUATION
        return b"".join(parts)
