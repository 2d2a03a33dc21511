"""Layout of Message and Frame, and the two functions a frame writer needs in line."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum Kind:  # opcodes, RFC 6455 §5.2
    K_CONTINUATION = 0
    K_TEXT = 1
    K_BINARY = 2
    K_CLOSE = 8
    K_PING = 9
    K_PONG = 10

cdef enum:
    MAX_HEADER = 14        # 2 bytes, 8 of length, 4 of key
    MAX_CONTROL = 125      # RFC 6455 §5.5
    NO_STATUS = 1005       # RFC 6455 §7.4.1: what an empty close frame means; never on the wire


cdef class Message:
    cdef int kind                # one of Kind, never K_CONTINUATION
    cdef readonly object data    # exactly str for K_TEXT, exactly bytes for all others; a close keeps its raw body
    cdef readonly int64_t received_ns      # of the monotonic clock, when the read returned that completed it; 0: not received


cdef class Frame:
    cdef readonly bint fin
    cdef readonly bint rsv1
    cdef readonly bint rsv2
    cdef readonly bint rsv3
    cdef readonly int opcode
    cdef readonly bint masked
    cdef readonly bytes payload    # never masked


# For trusted callers: `data` must be what Message.data promises for `kind`; nothing is checked.
cdef inline Message new_message(int kind, object data):
    cdef Message message = <Message>Message.__new__(Message)
    message.kind = kind
    message.data = data
    return message

# May this code stand in a close frame (RFC 6455 §7.4, and the codes IANA has registered since)?
cdef bint is_wire_close_code(int code) noexcept nogil

# The body of a close frame; ValueError or TypeError for what it may not say. `code` None: it has no body.
cdef bytes close_body(object code, object reason)


cdef inline Py_ssize_t write_header(
    uint8_t* out, uint8_t first, uint64_t n, bint masked, uint32_t key
) noexcept nogil:
    """Write a frame header in its shortest form (RFC 6455 §5.2); return its size, 2..MAX_HEADER bytes.

    `first` is the whole first byte (FIN, RSV, opcode); `key` holds the four key bytes as they lie in memory.
    """
    cdef uint8_t mask_bit = 0x80 if masked else 0
    cdef uint8_t* p = out + 2
    cdef int shift
    out[0] = first
    if n < 126:
        out[1] = mask_bit | <uint8_t>n
    elif n < 0x10000:
        out[1] = mask_bit | 126
        p[0] = <uint8_t>(n >> 8)
        p[1] = <uint8_t>n
        p += 2
    else:
        out[1] = mask_bit | 127
        for shift in range(56, -8, -8):
            p[0] = <uint8_t>(n >> shift)
            p += 1
    if masked:
        p[0] = (<uint8_t*>&key)[0]
        p[1] = (<uint8_t*>&key)[1]
        p[2] = (<uint8_t*>&key)[2]
        p[3] = (<uint8_t*>&key)[3]
        p += 4
    return p - out
