"""Messages on their way out: compressed and split as agreed on, written as frames, and counted.

What leaves when is the writer's business; what a message is to the connection, the connection's.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cython cimport unlikely
from libc.stdint cimport uint8_t

from fabric_ext.deflate cimport Codec
from fabric_ext.message cimport K_BINARY, K_CLOSE, K_CONTINUATION, K_PING, K_PONG, K_TEXT, Message, new_message
from fabric_ext.writer cimport LARGE, Writer


cdef tuple message_of(object item):
    """What was sent, as (Message, compress); `item` is a str, bytes or Message, in a tuple where it has a `compress`."""
    data, compress = item if type(item) is tuple else (item, None)
    if type(data) is not Message:
        data = new_message(K_TEXT if isinstance(data, str) else K_BINARY, data)
    return data, compress


cdef class Sender(Writer):
    """The sending half of a session."""

    cdef bint write_message(self, int opcode, const char* p, Py_ssize_t n, object message, object compress) except -1:
        """Send a data message, whose payload lies in `message` (str, bytes or Message); one frame or more.

        False: what ran meanwhile, such as a finalizer, has ended the connection, and nothing was sent.
        """
        cdef uint8_t first = opcode
        cdef Py_ssize_t size = n
        cdef bytes packed = None
        cdef object entry = message if compress is None else (message, compress)
        cdef bint large = n >= LARGE and not self._is_client and not self._fragment_size
        if unlikely(self._due):
            self.take_due()
        if large:
            self.make_way()
        if self._codec is not None and self.compresses(n, compress):
            packed = self.pack(p, n, True)
            p = PyBytes_AS_STRING(packed)
            n = PyBytes_GET_SIZE(packed)
            first |= 0x40
            large = large and n >= LARGE
        if unlikely(self._is_shut):
            return False
        self.count_sent(size)
        if large:
            owner = packed
            if packed is None:
                owner = (<Message>message).data if type(message) is Message else message
            self.write_large(0x80 | first, p, n, owner, entry)
        else:
            if self._fragment_size and n > self._fragment_size:
                self.append_frames(first, p, n, True)
            else:
                self.append_frame(0x80 | first, p, n)
            self.appended(entry)
        self.after_writing()
        return True

    cdef bint compresses(self, Py_ssize_t n, object compress) except -1:
        """Is a message of `n` bytes compressed, of which its sender says `compress`?"""
        return self._codec is not None and compress is not False and (n >= self._codec.threshold or compress is True)

    cdef bytes pack(self, const char* p, Py_ssize_t n, bint fin):
        cdef Codec codec = self._codec             # held: a finalizer may let the loop run, and the session end
        cdef bytes packed = codec.compress_part(p, n, fin)
        self._counters.compression_bytes_in += n
        self._counters.compression_bytes_out += PyBytes_GET_SIZE(packed)
        return packed

    cdef int append_frames(self, uint8_t first, const char* p, Py_ssize_t n, bint fin) except -1:
        """Gather a payload as one frame, or as several where it is larger than `fragment_size`."""
        if self._fragment_size:
            while n > self._fragment_size:
                self.append_frame(first, p, self._fragment_size)
                p += self._fragment_size
                n -= self._fragment_size
                first = K_CONTINUATION
        return self.append_frame(0x80 | first if fin else first, p, n)

    cdef bint write_made(self, bytes frames, Py_ssize_t n, object message) except -1:
        """Send a message of `n` payload bytes whose frames are made already; False as in `write_message`."""
        if unlikely(self._is_shut):
            return False
        self.count_sent(n)
        self.write_raw(PyBytes_AS_STRING(frames), PyBytes_GET_SIZE(frames), message)
        self.after_writing()
        return True

    cdef int write_control(self, int opcode, bytes payload) except -1:
        if unlikely(self._due):
            self.take_due()
        if opcode == K_CLOSE:
            self._is_shut = True
        self.append_frame(0x80 | opcode, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        self.appended(None)
        return self.after_writing()

    cdef int check_made(self) except -1:
        """Raise unless this is a whole session: one that was made by hand has no transport."""
        if self._transport is None:
            raise TypeError(f"a {type(self).__name__} without a transport cannot send")
        return 0

    def write_ping(self, bytes payload not None):
        """Send a ping, before whatever waits in the outbox."""
        self.check_made()
        self.write_control(K_PING, payload)

    def write_pong(self, bytes payload not None):
        """Send a pong that nobody asked for (RFC 6455 §5.5.3)."""
        self.check_made()
        self.write_control(K_PONG, payload)

    def write_part(self, int opcode, bytes payload not None, bint fin, compress):
        """Send one part of a message sent in parts; `opcode` 0 continues it.

        Its first part decides whether it is compressed: the size of the whole is not known. False as in `write_message`.
        """
        cdef Py_ssize_t n = PyBytes_GET_SIZE(payload)
        cdef uint8_t first = opcode
        cdef bytes packed = None
        cdef bytes plain
        cdef list parts = []                       # before it is asked whether anything follows: no finalizer comes between
        cdef object message = None
        self.check_made()
        if self._user is None:
            raise RuntimeError("the session has ended")
        if self._due:
            self.take_due()
        if opcode:
            self._packing = self.compresses(n, compress)
        if self._packing and self._codec is not None:
            packed = self.pack(PyBytes_AS_STRING(payload), n, fin)
        if self._is_shut:
            return False
        if opcode:
            self._parts = parts
            self._parts_kind = opcode
            self._parts_flushes = self._flushes
        self.sending_parts = not fin
        if self._parts is not None:
            if self._parts_flushes == self._flushes:
                self._parts.append(payload)
            else:
                self._parts = None                 # its beginning has left
        self._user.bytes_sent += n
        self._counters.bytes_sent += n
        if fin:
            self._user.messages_sent += 1
            self._counters.messages_sent += 1
            if self._parts is not None:
                plain = b"".join(self._parts)
                message = new_message(self._parts_kind, plain.decode() if self._parts_kind == K_TEXT else plain)
                self._parts = None
        if packed is not None:
            if opcode:
                first |= 0x40
            self.append_frames(first, PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed), fin)
        else:
            self.append_frames(first, PyBytes_AS_STRING(payload), n, fin)
        self.appended(message)
        self.after_writing()
        return True

    @property
    def is_sending_parts(self):
        return self.sending_parts

    def stop_parts(self):
        """The message that was being sent in parts is at its end, or abandoned."""
        self.sending_parts = False

    def release_codec(self):
        """Give back the memory of compression that an idle connection need not keep."""
        if self._codec is not None:
            self._codec.release_idle()
