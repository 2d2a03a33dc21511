from cython cimport final
from libc.stdint cimport int64_t, uint8_t, uint64_t

from fabric_ext.assembler cimport Assembler
from fabric_ext.counters cimport Counters
from fabric_ext.deflate cimport Codec
from fabric_ext.frames cimport Decoder
from fabric_ext.message cimport Message
from fabric_ext.read_buffer cimport Block, ReadBuffer
from fabric_ext.receive_queue cimport ReceiveQueue
from fabric_ext.throttle cimport Throttle
from fabric_ext.writer cimport Writer

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


cdef class Part:
    cdef readonly object data    # str or bytes
    cdef readonly bint final
    cdef readonly bint is_cut_off    # no part: the connection was lost, and the rest of the message with it


cdef Part new_part(object data, bint last, bint is_cut_off)


cdef class CloseHandshake:
    cdef readonly str began_by       # "local" or "remote"
    cdef readonly int sent_code      # of the close frame we sent; 0: none
    cdef readonly int received_code  # of the close frame received; 0: none, 1005: it had no body
    cdef readonly str reason         # what goes with the code that counts
    cdef readonly str sent_reason    # of the close frame we sent
    cdef readonly str received_reason    # of the one received
    cdef readonly int fault          # the frames.Fault for which we failed the connection
    cdef readonly object cause       # the exception behind it, or None
    cdef readonly uint64_t oversize      # bytes that a message refused with 1009 has, or has at least


cdef tuple message_of(object item)


cdef class SessionUser(ReceiveQueue):
    cdef Counters _counters      # shared with the other connections of the owner
    cdef readonly long long messages_received  # these over all sessions
    cdef readonly long long bytes_received
    cdef readonly long long messages_sent
    cdef readonly long long bytes_sent

    cdef int deliver(self, Message message) except -1
    cdef int deliver_part(self, Part part) except -1
    cdef int on_closing(self) except -1
    cdef int on_blocked(self) except -1
    cdef int on_writable(self) except -1
    cdef int on_unsent(self, list messages) except -1
    cdef int on_ended(self) except -1
    cdef object begin_send(self, object message, object option)


cdef class Session(Writer):
    cdef SessionUser _user       # None once the transport is gone
    cdef object _loop
    cdef Counters _counters
    cdef ReadBuffer _read_buffer
    cdef Block _block            # what the transport is reading into
    cdef bytes _early            # came behind the opening handshake and is not read yet; None
    cdef Decoder _decoder
    cdef Codec _codec            # None: no compression negotiated
    cdef Throttle _throttle      # None: no inbound rate limit
    cdef Assembler _assembler    # while a message is joined or streamed
    cdef Py_ssize_t _fragment_size     # payload bytes per outbound frame; 0: never split
    cdef Py_ssize_t _message_size      # bytes so far of the message being received
    cdef int _delivery           # Delivery
    cdef bint _in_parts          # so is the message being received
    cdef bint _frames_apart      # each frame of a message in several is delivered as a part
    cdef Py_ssize_t _frame_size  # inflated bytes so far of the compressed frame being received
    cdef bint _discarding        # failed or closed: what arrives is thrown away until the transport ends
    cdef bint _in_user           # the application's callback is being called
    cdef bint gathering          # more frames of this read follow: what came before them may wait for them
    cdef public bint inbound_seen      # something arrived since the heartbeat last looked
    cdef int _read_pauses        # Pause bits
    cdef bint _resuming          # the transport is through, and `_write_on` about to be called
    cdef bytes _pong_due         # the newest ping's payload while its pong cannot be written
    cdef readonly CloseHandshake closing     # None while open
    cdef readonly object abort_cause   # why the transport was dropped without a close frame; None
    cdef readonly object lost_error    # what the event loop said of its end; None
    cdef public object pings     # of the application, unanswered; None until needed
    cdef object _timer           # of the close handshake
    cdef object _end_check       # looks whether a peer that is not read from has left
    cdef bint _peer_is_done      # it has: what is left is no more than a socket buffer
    cdef Py_ssize_t _unsent_bytes      # at the latest look of the timer
    cdef int _quiet_looks        # in a row at which the peer had taken nothing
    cdef public Py_ssize_t cut_off_bytes     # that the peer had not taken when the transport was dropped
    cdef Py_ssize_t _dropped     # bytes that the loop's transport held when it was dropped
    cdef list cut_off            # after the end: messages whose end has not left; None
    cdef double close_timeout

    # a message that is being sent in parts
    cdef bint sending_parts
    cdef bint _packing           # it is compressed
    cdef int _parts_kind         # its opcode
    cdef list _parts             # its parts, as long as the first of them is gathered; then None
    cdef unsigned long _parts_flushes

    @final
    cdef int write_message(self, int opcode, const char* p, Py_ssize_t n, object message, object compress) except -1
    @final
    cdef int write_made(self, bytes frames, Py_ssize_t n, object message) except -1
    @final
    cdef bint compresses(self, Py_ssize_t n, object compress) except -1
    @final
    cdef bytes pack(self, const char* p, Py_ssize_t n, bint fin)
    @final
    cdef int append_frames(self, uint8_t first, const char* p, Py_ssize_t n, bint fin) except -1
    @final
    cdef int write_control(self, int opcode, bytes payload) except -1
    @final
    cdef inline void count_sent(self, Py_ssize_t n) noexcept

    @final
    cdef int read(self, Block block, Py_ssize_t n) except -1
    @final
    cdef int on_raised(self) except -1
    @final
    cdef bint receive_rest(self) except -1
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
    cdef int receive_close(self, const char* p, Py_ssize_t n) except -1
    @final
    cdef int send_pong(self) except -1
    @final
    cdef int fail(self, int fault, object cause) except -1
    @final
    cdef int fail_with(self, int fault, int code, str reason, object cause) except -1
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
    cdef int resume(self, int reason) except -1
    @final
    cdef int stop_reading(self) except -1
    cdef int start_reading(self) except -1
    cdef int read_to_the_end(self) except -1
    @final
    cdef inline int after_writing(self) except -1
    @final
    cdef int _abort_now(self) except -1
    @final
    cdef bint in_message(self) noexcept
