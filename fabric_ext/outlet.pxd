from libc.stdint cimport int64_t, uint8_t

from fabric_ext.inbox cimport Inbox


cdef class Outlet


cdef class Hub:
    cdef object __weakref__
    cdef object loop
    cdef object _call_soon
    cdef Outlet _dirty           # the latest outlet that holds gathered bytes; each leads to the one before
    cdef bint reading            # the frames of one read are being delivered: gather until it ends
    cdef int64_t patience_ns
    cdef Py_ssize_t _held        # frames gathered in this read,
    cdef Py_ssize_t _look_at     # and how many they will be when the clock is looked at next
    cdef int64_t _held_since     # ns; when the oldest of them was; 0: not yet looked at
    cdef int64_t _looked         # ns; the latest look
    cdef bint _turn_scheduled
    cdef unsigned long turn      # counts loop turns in which something was sent outside a read
    cdef char* _spare            # one SPARE_SIZE block, lent to the outlet that gathers

    cdef void begin_read(self) noexcept
    cdef int hold(self) except -1
    cdef int flush_all(self) except -1
    cdef int begin_turn(self) except -1


cdef Hub hub_of(object loop)


cdef class Outlet(Inbox):
    cdef Hub _hub
    cdef object _write           # the transport's write(), for what the kernel does not take at once
    cdef int _fd                 # -1: no direct writes (TLS, or not connected)
    cdef bint _masking           # a client: RFC 6455 §5.3
    cdef bint _blocked           # the transport holds bytes that the kernel has not taken
    cdef bint _lost              # the kernel has said so
    cdef unsigned long _flushes  # how often what was gathered has left
    cdef bint _is_dirty          # among those that the hub knows to hold bytes
    cdef Outlet _next_dirty      # the one after it there
    cdef unsigned long _turn     # the turn in which this outlet last wrote at once
    cdef char* _out
    cdef Py_ssize_t _out_size
    cdef Py_ssize_t _out_capacity

    cdef int write_frame(self, uint8_t first, const char* p, Py_ssize_t n, object owner) except -1
    cdef int write_raw(self, const char* p, Py_ssize_t n, object owner) except -1
    cdef int flush(self) except -1
    cdef int _write_large(self, const char* header, Py_ssize_t size, const char* p, Py_ssize_t n,
                          object owner) except -1
    cdef int on_written(self) except -1
    cdef int on_broken(self, bytes unwritten) except -1
    cdef bytes take_output(self)
    cdef int _reserve(self, Py_ssize_t n) except -1
    cdef int _gather(self) except -1
    cdef int _pass_on(self, const char* p, Py_ssize_t n, object owner) except -1
    cdef void _release(self) noexcept
