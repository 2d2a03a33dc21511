"""A message for many connections of a server: its frame is built once, and compressed once per agreed setting."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cython cimport final, unlikely
from libc.stdint cimport uint8_t, uint32_t

from fabric_ext.connection cimport Connection
from fabric_ext.deflate cimport Codec
from fabric_ext.message cimport K_CONTINUATION, Message, write_header
from fabric_ext.protocol cimport OPEN
from fabric_ext.session cimport Session
from fabric_ext.writer cimport Item, LoopWriter, Writer

cdef extern from "Python.h":
    PyObject* PyList_GET_ITEM(object items, Py_ssize_t i) noexcept

cdef extern from *:
    """
    #define fabric_prefetch(p) __builtin_prefetch(p, 1)
    """
    void prefetch "fabric_prefetch"(const void* p) noexcept


cdef inline void fetch(PyObject* connection) noexcept:
    """Bring what a broadcast touches of the next connection into the cache while the kernel is busy with this one."""
    prefetch(&(<Connection>connection)._state)
    prefetch(<PyObject*>(<Connection>connection)._session)
    prefetch(&(<Connection>connection)._session._due)
    prefetch(&(<Connection>connection).messages_sent)


@final
cdef class Shared(Item):
    """A message for many connections of a server: its frame is built once, and compressed once per agreed setting."""

    def __init__(self, Message message not None, compress, Py_ssize_t fragment_size):
        self.opcode = message.kind
        self.compress = compress
        self.fragment_size = fragment_size
        self.entry = message if compress is None else (message, compress)
        self.payload = message.as_bytes()
        self.size = len(self.payload)
        self.plain = self._frame(self.payload, 0)
        self.packed = {}

    def send_to(self, list peers not None):
        """Send it to those of `peers` that take it now; return their number, and the open ones that do not.

        It is written at the end of the turn of the loop, together with what else is sent to many in it. A peer that
        asks for no gathering (`cork=False`) gets it at once. This loop calls no Python, and with thousands of
        connections, none of which is in a cache when its turn comes, the next one is fetched meanwhile.
        """
        cdef Py_ssize_t i, count = PyList_GET_SIZE(peers), sent = 0
        cdef list later = []
        cdef Connection peer
        cdef Session session
        cdef LoopWriter checked = None         # of a loop that is this thread's and open
        cdef LoopWriter put_off = None         # the one that has this in its fan-out
        cdef uint32_t item = 0
        for i in range(count):
            if i + 1 < count:
                fetch(PyList_GET_ITEM(peers, i + 1))
            peer = <Connection?>peers[i]
            session = peer._session
            if session is not None and session._loop_writer is not checked:
                peer.check_here()
                if peer._session is None:
                    continue
                checked = session._loop_writer
                put_off = None
            if peer._sendable:
                if session._uncorked:
                    sent += session.write_made(self.frames_for(session), self.size, self.entry)
                    put_off = None             # it may have let the loop run, and this turn end
                    continue
                if put_off is not session._loop_writer:
                    put_off = session._loop_writer
                    put_off.add_item(self, PyBytes_GET_SIZE(self.plain))
                    item = len(put_off.fan_out.items) - 1
            if peer._sendable:                 # still: a finalizer may have closed it
                session.count_sent(self.size)
                session.add_due(item)
                sent += 1
            elif peer._state == OPEN:
                later.append(peer)
        return sent, later

    cdef int write_to(self, Writer writer) except -1:
        cdef Session session = <Session>writer
        cdef bytes frames = self.frames_for(session)
        if unlikely(session._is_shut):         # meanwhile
            return session.on_unsent([self.entry])
        return writer.add_made(PyBytes_AS_STRING(frames), PyBytes_GET_SIZE(frames), self.entry)

    cdef bytes frames_for(self, Session session):
        """The frames as they go to one peer, which takes them now."""
        return self._packed_for(session._codec) if session.compresses(self.size, self.compress) else self.plain

    cdef bytes _packed_for(self, Codec codec):
        """The frame, compressed as agreed with one peer; its codec takes note of the message."""
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
