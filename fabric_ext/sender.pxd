from cython cimport final
from libc.stdint cimport uint8_t

from fabric_ext.counters cimport Counters
from fabric_ext.deflate cimport Codec
from fabric_ext.message cimport Message
from fabric_ext.outlet cimport Outlet
from fabric_ext.ring cimport Ring


cdef class Shared


cdef class Sender(Outlet):
    # what a broadcast looks at, side by side, right behind the descriptor
    cdef int _state              # protocol.State
    cdef bint _sendable          # OPEN, nothing waits to be sent before a new message
    cdef Codec _codec            # None: no compression negotiated
    cdef Counters _counters      # shared with the other connections of the owner
    cdef readonly long long messages_sent      # these two over all transports
    cdef readonly long long bytes_sent

    cdef object _io              # the transport underneath, asyncio's
    cdef Py_ssize_t _fragment_size     # payload bytes per outbound frame; 0: never split

    # a message that is being sent in parts
    cdef bint _fragmenting       # there is one: other data waits
    cdef bint _packing           # it is compressed
    cdef object _parts_plain     # bytearray: what it is, if so, as long as its first part is gathered

    # messages accepted and not yet written, because the transport is blocked or away
    cdef Ring _outbox
    cdef readonly Py_ssize_t _outbox_bytes
    cdef int _waiting            # senders that wait for room in it
    cdef public object _backpressure   # told of each message that leaves the outbox; None until needed

    # messages gathered and not yet written
    cdef Ring _plain             # what they are, if compressed; None until needed
    cdef object _plain_now       # the one that is being written
    cdef object _unfinished      # what _take_back has found of a message, the end of which is still to come
    cdef Py_ssize_t _taken_back  # how many stand at the front of the outbox, since the transport is lost

    @final
    cdef bint _write_object(self, object message, object compress) except -1
    @final
    cdef int _write_message(self, int opcode, const char* p, Py_ssize_t n, object owner, object compress) except -1
    @final
    cdef bint _compresses(self, Py_ssize_t n, object compress) except -1
    cdef bytes _pack(self, const char* p, Py_ssize_t n, bint fin)
    cdef int _write_packed(self, uint8_t first, bytes packed, object plain, bint fin) except -1
    cdef int _remember(self, object plain, unsigned long flushes) except -1
    @final
    cdef int _write_frames(self, uint8_t first, const char* p, Py_ssize_t size, object owner, bint fin) except -1
    cdef int _write_control(self, int opcode, bytes payload) except -1
    cdef int _write_shared(self, Shared shared) except -1
    cdef int _drain_outbox(self) except -1
    cdef int _wait_first(self, list found) except -1
    cdef void _update_sendable(self) noexcept


cdef class Shared:
    cdef int opcode
    cdef bytes payload
    cdef Py_ssize_t size
    cdef object compress         # as send() has it
    cdef Py_ssize_t fragment_size
    cdef bytes plain             # the frame without compression
    cdef dict packed             # Codec.group() -> (compressed payload, its frame)

    cdef bytes packed_for(self, Codec codec)
    cdef bytes _frame(self, bytes payload, uint8_t rsv)
