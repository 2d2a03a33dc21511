from cython cimport final
from libc.stdint cimport int64_t
from picows.picows cimport WSFrame, WSListener, WSTransport

from fabric_ext.bucket cimport RateGate
from fabric_ext.message cimport Message
from fabric_ext.outlet cimport Hub
from fabric_ext.reassembly cimport Assembler
from fabric_ext.ring cimport Ring
from fabric_ext.sender cimport Sender


cdef class Link(WSListener):
    cdef Connection _connection  # None once another transport has taken over, or this one is gone
    cdef Hub _hub
    cdef public object transport # asyncio's, under picows'; set before picows takes it over


cdef class Connection(Sender):
    cdef Link _link
    cdef WSTransport _transport  # None while there is none
    cdef bint _deaf              # failed or closed: frames are read and thrown away until the transport ends
    cdef bint _discarding        # closing, and the queue is full: messages are thrown away
    cdef public bint _inbound_seen     # something arrived since the heartbeat last looked
    cdef int _read_pauses        # Pause bits: why the socket is not being read

    # limits and policies, set by _configure
    cdef Py_ssize_t _queue_limit       # messages received and not taken before reading stops
    cdef Py_ssize_t _queue_byte_limit
    cdef Py_ssize_t _queued_bytes
    cdef bint _gathering         # more frames of this read follow: what came before them may wait for them
    cdef Py_ssize_t _gather_limit      # messages that wait for each other at most
    cdef Py_ssize_t _gather_byte_limit
    cdef readonly Py_ssize_t _max_message_size
    cdef Py_ssize_t _max_fragments
    cdef public double _close_timeout
    cdef object _on_message
    cdef RateGate _gate          # None: no inbound rate limit
    cdef int _gate_action        # GateAction, for the connection's own limit
    cdef int _shared_action      # the same, for the limit that it shares
    cdef Ring _held              # inbound messages that the rate limit makes wait; None until needed

    # the message being received
    cdef Assembler _assembler    # None until a fragmented message comes
    cdef bint _inflating         # the message being received is compressed
    cdef int _stream             # StreamMode
    cdef bint _streaming         # somebody receives parts, and has not given up
    cdef int _stream_number      # of the latest stream
    cdef int _stream_kind        # opcode of the message being streamed; 0 between messages
    cdef Py_ssize_t _streamed    # its bytes so far
    cdef Py_ssize_t _stream_frames
    cdef object _stream_decoder

    cdef bytes _pong_due         # the newest ping's payload while its pong cannot be written

    # closing
    cdef public int _sent_code         # of the close frame we sent; 0: none
    cdef public int _received_code     # of the close frame received; 0: none, 1005: it had no body
    cdef public str _close_text        # the reason that goes with the code that counts
    cdef readonly Py_ssize_t _oversize # bytes that the message refused with 1009 has, or has at least
    cdef public object _failure        # the exception for which we failed the connection
    cdef object _timer           # aborts a transport that does not end

    # of this object's life, over all its transports
    cdef readonly long long messages_received
    cdef readonly long long bytes_received

    cdef int on_connected(self, Link link, WSTransport transport) except -1
    @final
    cdef int on_frame(self, WSFrame frame) except -1
    cdef int on_fault(self, int code, str reason) except -1
    cdef int on_disconnected(self, WSTransport transport) except -1
    cdef int on_blocked(self, bint blocked) except -1

    @final
    cdef int _receive(self, WSFrame frame) except -1
    @final
    cdef int _receive_data(self, int opcode, bint fin, const char* p, Py_ssize_t n, bytes owner) except -1
    cdef Py_ssize_t _room(self) noexcept
    @final
    cdef void _count_received(self, Py_ssize_t n) noexcept
    cdef int _receive_stream(self, int opcode, bint fin, const char* p, Py_ssize_t n) except -1
    cdef void _end_skip(self) noexcept
    cdef int _give_up_stream(self) except -1
    cdef int _receive_control(self, int opcode, const char* p, Py_ssize_t n) except -1
    cdef int _receive_close(self, const char* p, Py_ssize_t n) except -1
    @final
    cdef int _admit(self, Message message, Py_ssize_t n) except -1
    cdef int _admit_part(self, bint first, Py_ssize_t n) except -1
    cdef bint _admit_ping(self) except -1
    cdef int _overdraw(self, int64_t ns) except -1
    cdef int _wait_for_rate(self, int64_t ns) except -1
    @final
    cdef int _deliver(self, Message message) except -1
    @final
    cdef int _enqueue(self, object item) except -1
    cdef int _pause(self, int reason) except -1
    cdef int _resume(self, int reason) except -1
    cdef int _refuse(self, int code, str reason) except -1

    cdef int _move(self, int event) except -1
    cdef int _send_close(self, int code, bytes body) except -1
    cdef int _end_transport(self) except -1
    cdef int _hear_no_more(self) except -1
    cdef int _watch(self, double seconds) except -1
