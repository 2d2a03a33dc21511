from cpython.pythread cimport PyThread_get_thread_ident
from cython cimport final, unlikely

from fabric_ext.assembler cimport Assembler
from fabric_ext.closing cimport CloseHandshake
from fabric_ext.frames cimport Decoder
from fabric_ext.message cimport Message
from fabric_ext.read_buffer cimport Block, ReadBuffer
from fabric_ext.sender cimport Sender
from fabric_ext.throttle cimport Throttle

# Why a socket is not being read.
cdef enum Pause:
    QUEUE_FULL = 1
    OVER_RATE = 2                # messages are held until the rate limit lets them go
    OVERDRAWN = 4                # more was taken from the rate limit than it had

# How messages are delivered.
cdef enum Delivery:
    WHOLE = 0
    PARTS = 1                    # the next message, or this one, part by part
    SKIP = 2                     # the rest of the current message is not wanted any more
    SKIP_THEN_PARTS = 3          # and the one after it is to be delivered part by part


cdef class Session(Sender):
    cdef object _loop
    cdef ReadBuffer _read_buffer
    cdef Block _block            # what the transport is reading into
    cdef bytes _early            # came behind the opening handshake, or before a pause, and is not read yet; None
    cdef Decoder _decoder
    cdef Throttle _throttle      # None: no inbound rate limit
    cdef Assembler _assembler    # while a message is joined or streamed
    cdef Py_ssize_t _message_size      # bytes so far of the message being received
    cdef int _delivery           # Delivery
    cdef bint _in_parts          # so is the message being received
    cdef bint _frames_apart      # each frame of a message in several is delivered as a part
    cdef Py_ssize_t _frame_size  # inflated bytes so far of the compressed frame being received
    cdef bint _discarding        # failed or closed: what arrives is thrown away until the transport ends
    cdef bint _in_user           # the application's callback is being called
    cdef bint batching           # more frames of this read follow: what came before them may wait for them
    cdef public bint inbound_seen      # something arrived since the heartbeat last looked
    cdef int _read_pauses        # Pause bits
    cdef bint _resuming          # the transport is through, and `_write_on` about to be called
    cdef bytes _pong_due         # the newest ping's payload while its pong cannot be written
    cdef readonly CloseHandshake closing     # None while open
    cdef readonly object abort_cause   # why the transport was dropped without a close frame; None
    cdef readonly object lost_error    # what the event loop said of its end; None
    cdef public object pings     # of the application, unanswered; None until needed
    cdef public object probe     # what a heartbeat watches it by; None
    cdef public bint is_renewed  # this end has closed it, to have another
    cdef public bint is_judged   # its user has decided whether another follows
    cdef object _timer           # of the close handshake
    cdef object _end_check       # looks whether a peer that is not read from has left
    cdef bint _peer_is_done      # it has: what is left is no more than a socket buffer
    cdef Py_ssize_t _unsent_bytes      # at the latest look of the timer
    cdef int _quiet_looks        # in a row at which the peer had taken nothing
    cdef public Py_ssize_t cut_off_bytes     # that the peer had not taken when the transport was dropped
    cdef Py_ssize_t _dropped     # bytes that the loop's transport held when it was dropped
    cdef list cut_off            # after the end: messages whose end has not left; None
    cdef Py_ssize_t given_back   # messages that it has given back, and that its user has not taken up again
    cdef bint overflowed         # closing, and its user's queue is full: what still comes is thrown away
    cdef double close_timeout

    @final
    cdef inline int check_here(self) except -1:
        """Raise unless this is the session's own thread; notice that its loop was closed."""
        if unlikely(self._transport._thread_id != PyThread_get_thread_ident()):
            self._refuse_thread()
        return self.notice_closed_loop()

    @final
    cdef inline int notice_closed_loop(self) except -1:
        """A loop that was closed has closed the socket without a report: its descriptor may be another's by now."""
        return 0 if self._loop_writer.reading else self._look_at_loop()

    @final
    cdef int _refuse_thread(self) except -1
    @final
    cdef int _look_at_loop(self) except -1
    @final
    cdef int read(self, Block block, Py_ssize_t n) except -1
    @final
    cdef int on_raised(self) except -1
    @final
    cdef int receive_behind(self, Block block, Py_ssize_t n) except -1
    @final
    cdef inline int receive_frames(self) except -1
    @final
    cdef int receive_data(self) except -1
    @final
    cdef inline int receive_whole(self, const char* p, Py_ssize_t n, bytes owner) except -1
    @final
    cdef int receive_piece(self, const char* p, Py_ssize_t n, bint first, bint last, bytes owner) except -1
    @final
    cdef int receive_part(self, const char* p, Py_ssize_t n, bint first, bint last) except -1
    @final
    cdef inline int admit(self, object data, int kind, Py_ssize_t n) except -1
    @final
    cdef inline int pass_on(self, Message message) except -1
    @final
    cdef int receive_control(self) except -1
    @final
    cdef bint begin_handshake(self, str began_by) except -1
    @final
    cdef int receive_close(self, bytes payload) except -1
    @final
    cdef int deliver_in_parts(self) except -1
    @final
    cdef int send_pong(self) except -1
    @final
    cdef int fail(self, int fault, object cause) except -1
    @final
    cdef int fail_with(self, int fault, int code, str reason, object cause) except -1
    @final
    cdef int say_fault(self) except -1
    @final
    cdef int on_error(self, object error) except -1
    @final
    cdef int end_transport(self) except -1
    @final
    cdef int watch(self) except -1
    @final
    cdef Py_ssize_t unsent(self) except -1
    @final
    cdef Py_ssize_t not_taken(self) noexcept
    @final
    cdef int pause(self, int reason) except -1
    @final
    cdef int keep_rest(self) except -1
    @final
    cdef int resume(self, int reason) except -1
    @final
    cdef int stop_reading(self) except -1
    cdef int start_reading(self) except -1
    cdef int read_to_the_end(self) except -1
    @final
    cdef int _flush_now(self) except -1
    @final
    cdef int _abort_now(self) except -1
    @final
    cdef bint in_message(self) noexcept
