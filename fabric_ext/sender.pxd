from cython cimport final
from libc.stdint cimport uint8_t

from fabric_ext.counters cimport Counters
from fabric_ext.deflate cimport Codec
from fabric_ext.session_user cimport SessionUser
from fabric_ext.writer cimport Writer


cdef tuple message_of(object item)


cdef class Sender(Writer):
    cdef SessionUser _user       # None once the transport is gone
    cdef Counters _counters
    cdef Codec _codec            # None: no compression negotiated
    cdef Py_ssize_t _fragment_size     # payload bytes per outbound frame; 0: never split

    cdef bint _is_shut           # no data follows any more: a close frame has been written, or the transport is gone

    # a message that is being sent in parts
    cdef bint sending_parts
    cdef bint _packing           # it is compressed
    cdef int _parts_kind         # its opcode
    cdef list _parts             # its parts, as long as the first of them is gathered; then None
    cdef unsigned long _parts_flushes

    @final
    cdef bint write_message(self, int opcode, const char* p, Py_ssize_t n, object message, object compress) except -1
    @final
    cdef bint write_made(self, bytes frames, Py_ssize_t n, object message) except -1
    @final
    cdef bint compresses(self, Py_ssize_t n, object compress) except -1
    @final
    cdef bytes pack(self, const char* p, Py_ssize_t n, bint fin)
    @final
    cdef int append_frames(self, uint8_t first, const char* p, Py_ssize_t n, bint fin) except -1
    @final
    cdef int check_made(self) except -1
    @final
    cdef int write_control(self, int opcode, bytes payload) except -1

    @final
    cdef inline int after_writing(self) except -1:
        """Tell the user if nothing more can be sent now; inside another write that is not known yet, and it will tell."""
        if self._transport.holds and not self._busy and self._user is not None:
            self._user.on_blocked()
        return 0

    @final
    cdef inline void count_sent(self, Py_ssize_t n) noexcept:
        self._user.messages_sent += 1
        self._user.bytes_sent += n
        self._counters.messages_sent += 1
        self._counters.bytes_sent += n
