from cpython.object cimport PyObject
from cython cimport final
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from fabric_ext.fanout cimport FanOut
from fabric_ext.mask cimport apply_mask, next_key
from fabric_ext.message cimport MAX_HEADER, write_header
from fabric_ext.transport cimport Transport

cdef enum:
    BLOCK = 65536                # the loop's block; also where a writer stops gathering
    LARGE = 8192                 # payloads from here on are written from where they lie


cdef struct Gathered:
    PyObject* message            # owned
    Py_ssize_t end               # of its bytes among those gathered


cdef class Writer


cdef class Item:
    cdef int write_to(self, Writer writer) except -1


cdef class LoopWriter:
    cdef object __weakref__
    cdef object loop
    cdef object _call_soon
    cdef object is_closed        # the loop's method
    cdef Writer _first           # the latest writer that holds gathered bytes; each leads to the one before
    cdef int reading             # how many reads are being delivered, one inside the other
    cdef int64_t read_ns         # when the one that is being delivered returned; 0 outside of reads
    cdef bint fresh              # the clock was read for the frame that is being delivered
    cdef bint _turn_scheduled
    cdef int64_t since           # ns; when the oldest gathered bytes were
    cdef int64_t patience_ns
    cdef char* _spare            # one BLOCK, lent to the writer that gathers
    cdef FanOut fan_out          # of this turn
    cdef int64_t due_since       # ns; when its first item was added; 0: nothing is due
    cdef bint by_threads         # no task takes the messages of its connections, but a thread behind the read

    @final
    cdef int look(self) except -1
    @final
    cdef int flush_all(self) except -1
    @final
    cdef int _schedule_turn(self) except -1

    @final
    cdef inline int before_delivery(self) except -1:
        """The next frame or message is about to be delivered: what has been gathered for too long leaves first."""
        return self.look() if self._first is not None or self.due_since else 0

    @final
    cdef inline int end_read(self) except -1:
        """All frames of a read have been delivered."""
        self.reading -= 1
        return self.flush_all() if self._first is not None else 0

    @final
    cdef int add_item(self, Item item, Py_ssize_t size) except -1
    @final
    cdef bint is_full(self, Py_ssize_t size) noexcept
    @final
    cdef int serve(self, bint whole) except -1


cdef LoopWriter loop_writer_of(object loop)


cdef class Writer:
    cdef LoopWriter _loop_writer
    cdef Transport _transport    # None once it is gone
    cdef bint _is_client         # so frames are masked, RFC 6455 §5.3
    cdef bint _uncorked          # nothing is ever gathered
    cdef object _frame_log       # is told of each write; None: there is none
    cdef bint _busy              # inside a call of the loop's transport: what is sent meanwhile waits for its end
    cdef bint _is_gathered       # among those that the loop's writer knows to hold bytes
    cdef int _corks              # how many ask that nothing leaves yet
    cdef Writer _next            # the one after it there
    cdef int64_t _last_sent      # ns
    cdef uint32_t _due           # node of the first item of the loop's fan-out that it is to be sent; 0: none
    cdef uint32_t _last_due
    cdef unsigned long _flushes  # how often what was gathered has left
    cdef char* _out
    cdef Py_ssize_t _out_size
    cdef Py_ssize_t _out_capacity
    cdef Gathered* _unsent       # the messages that are wholly among the gathered bytes
    cdef Py_ssize_t _unsent_count
    cdef Py_ssize_t _unsent_capacity
    cdef list _held              # of what the kernel has not taken whole: (message, end of its bytes); None
    cdef Py_ssize_t _held_size   # its bytes, with those that the kernel did take

    @final
    cdef inline int append_frame(self, uint8_t first, const char* p, Py_ssize_t n) except -1:
        """Add one frame to the gathered bytes: `first` is FIN, RSV and opcode. `appended` is to be called next."""
        cdef uint32_t key = next_key() if self._is_client else 0
        cdef uint8_t* at
        self._reserve(n + MAX_HEADER)
        at = <uint8_t*>self._out + self._out_size
        at += write_header(at, first, n, self._is_client, key)
        if self._is_client:
            apply_mask(at, <const uint8_t*>p, n, key, 0)
        else:
            memcpy(at, p, n)
        self._out_size = <char*>at - self._out + n
        return 0

    @final
    cdef int write_large(self, uint8_t first, const char* p, Py_ssize_t n, object payload, object message) except -1
    @final
    cdef int make_way(self) except -1
    @final
    cdef int add_due(self, uint32_t item) except -1
    @final
    cdef int leave(self) except -1
    @final
    cdef int take_due(self) except -1
    @final
    cdef int add_made(self, const char* p, Py_ssize_t n, object message) except -1
    @final
    cdef int write_raw(self, const char* p, Py_ssize_t n, object message) except -1
    @final
    cdef int appended(self, object message) except -1
    @final
    cdef int flush(self) except -1
    @final
    cdef int flush_with(self, object message) except -1
    @final
    cdef int hand_over(self) except -1
    cdef int on_unsent(self, list messages) except -1
    cdef int on_write_failed(self) except -1
    @final
    cdef int _forget_unsent(self) except -1
    @final
    cdef int _lost(self, Gathered* unsent, Py_ssize_t count, object message) except -1
    @final
    cdef int _failed(self, Gathered* unsent, Py_ssize_t count) except -1
    @final
    cdef int _note(self, const char* p, Py_ssize_t n) except -1
    @final
    cdef list take_unsent(self)
    @final
    cdef list take_held(self, Py_ssize_t left)
    @final
    cdef int _note_held(self, list messages, Py_ssize_t size) except -1
    @final
    cdef inline int _keep(self, object message) except -1
    @final
    cdef int _grow_unsent(self) except -1
    @final
    cdef int _gather(self) except -1
    @final
    cdef int _gather_rest(self) except -1
    @final
    cdef inline int _reserve(self, Py_ssize_t n) except -1:
        """Make room for `n` bytes more: in the block of the loop, where that is free."""
        if self._out_size + n <= self._out_capacity:
            return 0
        if self._out == NULL and n <= BLOCK and self._loop_writer._spare != NULL:
            self._out = self._loop_writer._spare
            self._out_capacity = BLOCK
            self._loop_writer._spare = NULL
            return 0
        return self._grow(n)

    @final
    cdef int _grow(self, Py_ssize_t n) except -1
    @final
    cdef void _give_back(self, char* block, Py_ssize_t capacity) noexcept
