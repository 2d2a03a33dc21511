from cython cimport final
from libc.stdint cimport int64_t, uint8_t
from picows.picows cimport WSFrame, WSListener, WSTransport

from fabric_ext.bucket cimport RateGate
from fabric_ext.counters cimport Counters
from fabric_ext.deflate cimport Codec
from fabric_ext.message cimport Message
from fabric_ext.outlet cimport Hub, Outlet
from fabric_ext.reassembly cimport Assembler
from fabric_ext.ring cimport Ring


cdef class Link(WSListener):
    cdef Connection _connection  # None once another transport has taken over, or this one is gone
    cdef Hub _hub
    cdef public object transport # asyncio's, under picows'; set before picows takes it over


cdef class Shared


cdef class Connection(Outlet):
    # what a broadcast looks at, side by side, right behind the descriptor
    cdef int _state              # protocol.State
    cdef bint _sendable          # OPEN, nothing waits to be sent before a new message
    cdef Codec _codec            # None: no compression negotiated
    cdef Counters _counters      # shared with the other connections of the owner
    cdef readonly long long messages_sent      # these two over all transports
    cdef readonly long long bytes_sent

    cdef Link _link
    cdef WSTransport _transport  # None while there is none
    cdef object _io              # the transport underneath, asyncio's
    cdef bint _fragmenting       # a message is being sent in parts: other data waits
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
    cdef Py_ssize_t _fragment_size     # payload bytes per outbound frame; 0: never split
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

    # messages accepted and not yet written, because the transport is blocked or away
    cdef Ring _plain             # what the messages are that are gathered compressed; None until needed
    cdef object _plain_now       # what the one is that is being written
    cdef object _parts_plain     # bytearray: what the one is that is sent in parts, as long as its first part is gathered
    cdef bint _packing           # the message that is being sent in parts is compressed
    cdef object _unfinished      # what _take_back has found of a message, the end of which is still to come
    cdef Py_ssize_t _taken_back  # messages at the front of the outbox that a lost transport has not written
    cdef Ring _outbox
    cdef readonly Py_ssize_t _outbox_bytes
    cdef int _waiting            # senders that wait for room in it
    cdef public object _backpressure   # told of each message that leaves the outbox; None until needed
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
    cdef int on_written(self) except -1
    cdef int on_broken(self, bytes unwritten) except -1

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
    cdef bint _admit_part(self, bint first, Py_ssize_t n) except -1
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

    @final
    cdef bint _write_object(self, object message, object compress) except -1
    @final
    cdef int _write_message(self, int opcode, const char* p, Py_ssize_t n, object owner, object compress) except -1
    cdef bytes _pack(self, const char* p, Py_ssize_t n, bint fin)
    cdef int _write_packed(self, uint8_t first, bytes packed, object plain, bint fin) except -1
    cdef int _remember(self, object plain, unsigned long flushes) except -1
    cdef int _wait_first(self, list found) except -1
    cdef int _write_frames(self, uint8_t first, const char* p, Py_ssize_t size, object owner, bint fin) except -1
    cdef int _write_shared(self, Shared shared) except -1
    cdef int _write_control(self, int opcode, bytes payload) except -1
    cdef int _drain_outbox(self) except -1
    cdef int _move(self, int event) except -1
    cdef void _update_sendable(self) noexcept
    cdef int _send_close(self, int code, bytes body) except -1
    cdef int _end_transport(self) except -1
    cdef int _hear_no_more(self) except -1
    cdef int _watch(self, double seconds) except -1


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
