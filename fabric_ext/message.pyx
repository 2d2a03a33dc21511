"""Messages, raw frames and the frame header.

Owns the value types that pass between application and connection, and the wire form of one frame (RFC 6455
§5.2). Never reads a socket, keeps no state between frames, and knows nothing of `fabric`: the exceptions
that users catch are handed in by `bind_errors`; until then subclasses of ValueError serve, constructed alike.
"""

import enum
from functools import lru_cache
from os import urandom
from typing import Any

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromObject, PyBytes_FromStringAndSize,
)
from cpython.unicode cimport (
    PyUnicode_AsUTF8AndSize, PyUnicode_AsUTF8String, PyUnicode_DecodeUTF8, PyUnicode_FromObject,
)
from libc.string cimport memcpy

cdef extern from "_mask.h" nogil:
    void fabric_mask_simple(uint8_t* dst, const uint8_t* src, size_t n, uint32_t key)

cdef enum:
    SHOWN = 32             # most characters or bytes of a payload that a repr shows
    CACHED_DECODERS = 256  # JSON decoders kept, the least recently used go first


class MessageType(enum.IntEnum):
    """What a message is; the values are the opcodes of RFC 6455 §5.2."""

    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10

    def __str__(self):
        return self.name

    def __format__(self, spec):
        return format(self.name, spec)


cdef tuple _TYPES = tuple([MessageType(i) if i in (1, 2, 8, 9, 10) else None for i in range(11)])


# --- errors -------------------------------------------------------------------------------------------------

class _JsonError(ValueError):
    def __init__(self, message, *, path=""):
        super().__init__(f"{message} (at {path})" if path else message)
        self.path = path


class _Utf8Error(ValueError):
    pass


class _InvalidFrame(ValueError):
    def __init__(self, message, *, code=1002):
        super().__init__(message)
        self.code = code


class _MessageTooLarge(ValueError):
    def __init__(self, size, limit, message=None):
        super().__init__(message or f"{size} bytes, allowed are {limit}")
        self.size = size
        self.limit = limit


cdef object json_error_class = _JsonError
cdef object utf8_error_class = _Utf8Error
cdef object invalid_frame_class = _InvalidFrame
cdef object message_too_large_class = _MessageTooLarge


def bind_errors(*, json_error, utf8_error, invalid_frame, message_too_large):
    """Set the exception classes this module raises; called once, by `fabric.message`."""
    global json_error_class, utf8_error_class, invalid_frame_class, message_too_large_class
    json_error_class = json_error
    utf8_error_class = utf8_error
    invalid_frame_class = invalid_frame
    message_too_large_class = message_too_large


# --- conversions --------------------------------------------------------------------------------------------

cdef str _exact_text(object value):
    """An exact str that has a UTF-8 form. CPython keeps that form, so sending does not encode again."""
    cdef Py_ssize_t size
    if not isinstance(value, str):
        raise TypeError(f"text must be str, not {type(value).__name__}")
    # A subclass may carry attributes, hence reference cycles, which Message does not let the collector see.
    cdef str text = PyUnicode_FromObject(value)
    try:
        PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError as error:
        raise utf8_error_class(f"text has no UTF-8 form: {error}") from None
    return text


cdef bytes _exact_bytes(object value):
    if PyBytes_CheckExact(value):
        return value
    if not PyObject_CheckBuffer(value):
        raise TypeError(f"payload must be bytes-like, not {type(value).__name__}")
    return PyBytes_FromObject(value)  # an exact one, also for subclasses of bytes


cdef bytes _control_payload(object value, str what):
    """Control frames carry at most 125 bytes, RFC 6455 §5.5."""
    cdef bytes payload
    if isinstance(value, str):
        payload = PyUnicode_AsUTF8String(_exact_text(value))
    else:
        payload = _exact_bytes(value)
    if len(payload) > MAX_CONTROL:
        raise ValueError(f"{what} payload is {len(payload)} bytes, allowed are at most {MAX_CONTROL}")
    return payload


cdef bint is_wire_close_code(int code) noexcept nogil:
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


cdef bytes close_body(object code, object reason):
    """RFC 6455 §5.5.1: nothing, or two bytes of code and a reason in UTF-8."""
    cdef bytes tail = PyUnicode_AsUTF8String(_exact_text(reason))
    if code is None:
        if tail:
            raise ValueError("a close reason needs a close code")
        return b""
    cdef int number = code if isinstance(code, int) and 0 <= code <= 0xFFFF else -1
    if not is_wire_close_code(number):
        raise ValueError(f"close code is {code!r}, allowed are 1000-1003, 1007-1014 and 3000-4999")
    if len(tail) > MAX_CONTROL - 2:
        raise ValueError(f"close reason is {len(tail)} bytes of UTF-8, allowed are at most {MAX_CONTROL - 2}")
    return number.to_bytes(2, "big") + tail


# --- messages -----------------------------------------------------------------------------------------------

# msgspec takes as long to import as a dozen modules, and many programs use no JSON: these three import it at their first
# call, and are replaced by its own then.

def _first_decoder_for(type):
    _import_msgspec()
    return _decoder_for(type)


def _first_decode(data):
    _import_msgspec()
    return _untyped_decode(data)


def _first_encode(value):
    _import_msgspec()
    return _json_encode(value)


_decoder_for = _first_decoder_for
cdef object _untyped_decode = _first_decode
cdef object _json_encode = _first_encode


cdef object _import_msgspec():
    global msgspec, _decoder_for, _untyped_decode, _json_encode
    import msgspec

    _decoder_for = lru_cache(maxsize=CACHED_DECODERS)(msgspec.json.Decoder)
    _untyped_decode = msgspec.json.Decoder().decode
    _json_encode = msgspec.json.Encoder().encode


cdef object _typed_decode(object type):
    try:
        return _decoder_for(type).decode
    except TypeError:  # unsupported, or usable but not a key, such as Annotated with a dict in it
        pass
    return msgspec.json.Decoder(type).decode


cdef object _parse_json(Message message, object type):
    decode = _untyped_decode if type is Any else _typed_decode(type)
    try:
        return decode(message.data)
    except msgspec.ValidationError as error:
        # msgspec says "what - at `$.path`", or only what is wrong with the whole.
        what, _, path = str(error).partition(" - at `$")
        raise json_error_class(what, path="$" + path.removesuffix("`")) from error
    # A deep nest of brackets is the sender's doing, not ours: the same error as any bad document.
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise json_error_class(str(error)) from error


cdef str _as_text(Message message):
    if message.kind == K_TEXT:
        return message.data
    try:
        return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(message.data), len(<bytes>message.data), NULL)
    except UnicodeDecodeError as error:
        raise utf8_error_class(f"payload is not UTF-8: {error}") from None


def _text(value: str, /) -> Message:
    """A TEXT message. Raises TypeError unless given a str, Utf8Error for lone surrogates."""
    return new_message(K_TEXT, _exact_text(value))


def _json(value, /) -> Message:
    """A TEXT message with `value` as JSON: anything msgspec encodes. NaN and infinities become null.

    Raises TypeError for an object that JSON cannot express, Utf8Error for lone surrogates.
    """
    cdef bytes encoded
    try:
        encoded = _json_encode(value)
        return new_message(K_TEXT, PyUnicode_DecodeUTF8(PyBytes_AS_STRING(encoded), len(encoded), NULL))
    except UnicodeError as error:
        raise utf8_error_class(f"value has no UTF-8 form: {error}") from None


@cython.final
cdef class _TextAttribute:
    """`Message.text(value)` makes a message, `message.text` is the text of one."""

    def __get__(self, instance, owner):
        return _text if instance is None else _as_text(instance)

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")


@cython.final
cdef class _JsonAttribute:
    """`Message.json(value)` makes a message, `message.json(type)` parses one."""

    def __get__(self, instance, owner):
        return _json if instance is None else (<Message?>instance).parse_json

    def __reduce__(self):
        raise TypeError(f"cannot copy or pickle {type(self).__name__!r} object")


def _restore(int kind, data):
    """Unpickle a Message; checks what `new_message` trusts."""
    if kind == K_TEXT:
        return new_message(kind, _exact_text(data))
    if kind == K_BINARY:
        return new_message(kind, _exact_bytes(data))
    if kind not in (K_CLOSE, K_PING, K_PONG):
        raise ValueError(f"message type is {kind}, allowed are 1, 2, 8, 9 and 10")
    return new_message(kind, _control_payload(_exact_bytes(data), "control"))


# No cycle can pass through an exact str or bytes, so the collector never needs to visit a message.
@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Message:
    """One whole message, immutable: `Message("text")`, `Message(b"binary")`, or by a named constructor.

    A str becomes TEXT; bytes, bytearray, memoryview and other buffers become BINARY, copied unless they are
    bytes. Raises TypeError for anything else, Utf8Error for a str with lone surrogates.

    A TEXT equals a str of the same characters, a BINARY bytes of the same content, and hashes alike.
    """

    def __cinit__(self):
        # Message.__new__ alone must leave something the compiled code can trust.
        self.kind = K_BINARY
        self.data = b""

    def __init__(self, value, /):
        if isinstance(value, str):
            self.data = _exact_text(value)
            self.kind = K_TEXT
        elif isinstance(value, Message):
            self.data = (<Message>value).data
            self.kind = (<Message>value).kind
        elif PyObject_CheckBuffer(value):
            self.data = _exact_bytes(value)
            self.kind = K_BINARY
        else:
            found = type(value).__name__
            raise TypeError(f"a message is made of str or bytes-like, not {found}: Message.json() makes one of any value")

    text = _TextAttribute()
    json = _JsonAttribute()

    @staticmethod
    def binary(value, /) -> Message:
        """A BINARY message of a bytes-like object, copied unless it is bytes. Raises TypeError for others."""
        return new_message(K_BINARY, _exact_bytes(value))

    @staticmethod
    def ping(payload=b"", /) -> Message:
        """A PING of at most 125 bytes (str is encoded); ValueError above that. RFC 6455 §5.5.2."""
        return new_message(K_PING, _control_payload(payload, "ping"))

    @staticmethod
    def pong(payload=b"", /) -> Message:
        """A PONG of at most 125 bytes (str is encoded); ValueError above that. RFC 6455 §5.5.3."""
        return new_message(K_PONG, _control_payload(payload, "pong"))

    @staticmethod
    def close(code=1000, reason="") -> Message:
        """A CLOSE; `code=None` means an empty body. RFC 6455 §5.5.1, §7.4.

        Raises ValueError for a code that must not be sent or a reason above 123 bytes of UTF-8.
        """
        return new_message(K_CLOSE, close_body(code, reason))

    def parse_json(self, type=Any):
        """The payload as JSON, decoded into `type`: a dataclass, msgspec.Struct, TypedDict, list[int] …

        Decoders are kept for the types used last. Raises JsonError, whose `path` tells where in the document
        a value does not fit ("" if the document is malformed), TypeError for a type msgspec does not support.
        """
        return _parse_json(self, type)

    def as_text(self) -> str:
        """The payload as str. Raises Utf8Error if it is not UTF-8, which a text message always is."""
        return _as_text(self)

    def as_bytes(self) -> bytes:
        """The payload as it is sent: UTF-8 for a text, code and reason for a close."""
        return PyUnicode_AsUTF8String(self.data) if self.kind == K_TEXT else self.data

    @property
    def payload(self) -> bytes:
        """The same as `as_bytes()`."""
        return self.as_bytes()

    @property
    def msg_type(self):
        """Which MessageType this is."""
        return _TYPES[self.kind]

    @property
    def is_text(self) -> bool:
        """Is this a TEXT message?"""
        return self.kind == K_TEXT

    @property
    def is_binary(self) -> bool:
        """Is this a BINARY message?"""
        return self.kind == K_BINARY

    @property
    def is_ping(self) -> bool:
        """Is this a PING?"""
        return self.kind == K_PING

    @property
    def is_pong(self) -> bool:
        """Is this a PONG?"""
        return self.kind == K_PONG

    @property
    def is_close(self) -> bool:
        """Is this a CLOSE?"""
        return self.kind == K_CLOSE

    @property
    def is_empty(self) -> bool:
        """Is the payload empty?"""
        return not self.data

    @property
    def close_code(self):
        """The code of a CLOSE, 1005 if it carries none (RFC 6455 §7.1.5); None for other messages."""
        if self.kind != K_CLOSE:
            return None
        return int.from_bytes((<bytes>self.data)[:2], "big") if len(<bytes>self.data) >= 2 else NO_STATUS

    @property
    def close_reason(self):
        """The reason of a CLOSE, "" if it has none; None for others. Raises Utf8Error if malformed."""
        if self.kind != K_CLOSE:
            return None
        return _as_text(new_message(K_BINARY, (<bytes>self.data)[2:]))

    def __len__(self):
        """Bytes of payload; for a text, of its UTF-8 form."""
        cdef Py_ssize_t size
        if self.kind != K_TEXT:
            return len(<bytes>self.data)
        PyUnicode_AsUTF8AndSize(self.data, &size)
        return size

    def __bool__(self):
        # `while message := await recv()` must not end at an empty message.
        return True

    def __bytes__(self):
        return self.as_bytes()

    def __eq__(self, other):
        if isinstance(other, Message):
            return self.kind == (<Message>other).kind and self.data == (<Message>other).data
        if self.kind == K_TEXT and isinstance(other, str):
            return self.data == other
        if self.kind == K_BINARY and isinstance(other, (bytes, bytearray, memoryview)):
            return self.data == other
        return NotImplemented

    def __hash__(self):
        # As that of the str or bytes which the message equals.
        return hash(self.data) if self.kind <= K_BINARY else hash((self.kind, self.data))

    def __repr__(self):
        name = _TYPES[self.kind].name
        if self.kind == K_CLOSE:
            return f"<Message {name} {self.close_code} {_shown((<bytes>self.data)[2:])}>"
        return f"<Message {name} {_shown(self.data)}, {len(self)} bytes>"

    def __reduce__(self):
        return _restore, (self.kind, self.data)


cdef str _shown(object data):
    return repr(data) if len(data) <= SHOWN else repr(data[:SHOWN]) + "…"


# --- frames -------------------------------------------------------------------------------------------------

cdef int _check_shape(int opcode, bint fin, uint64_t size) except -1:
    """The rules every frame obeys whatever extension is in use."""
    # RFC 6455 §5.2: 3-7 and 11-15 are reserved.
    if opcode > K_PONG or K_BINARY < opcode < K_CLOSE:
        raise invalid_frame_class(f"opcode {opcode} is reserved")
    # RFC 6455 §5.5: control frames are not fragmented and carry at most 125 bytes.
    if opcode >= K_CLOSE and not fin:
        raise invalid_frame_class(f"control frame {_TYPES[opcode].name} is fragmented")
    if opcode >= K_CLOSE and size > MAX_CONTROL:
        raise invalid_frame_class(f"control frame {_TYPES[opcode].name} is longer than {MAX_CONTROL} bytes")
    return 0


cdef bytes _xored(const uint8_t* data, Py_ssize_t size, uint32_t key):
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size)
    fabric_mask_simple(<uint8_t*>PyBytes_AS_STRING(out), data, size, key)
    return out


@cython.final
cdef class Frame:
    """One raw frame (RFC 6455 §5.2), immutable; `payload` is never masked, `masked` tells how it travels.

    `opcode` is 0 (continuation), 1, 2, 8, 9 or 10. Raises InvalidFrame for a reserved opcode or a control
    frame that is fragmented or longer than 125 bytes. RSV bits are free: what they mean is up to the extension.
    """

    def __init__(self, int opcode, payload=b"", *, bint fin=True, bint rsv1=False, bint rsv2=False,
                 bint rsv3=False, bint masked=False):
        cdef bytes body = _exact_bytes(payload)
        if not 0 <= opcode <= 15:
            raise ValueError(f"opcode is {opcode}, allowed are 0-15")
        _check_shape(opcode, fin, len(body))
        self.opcode = opcode
        self.payload = body
        self.fin = fin
        self.rsv1 = rsv1
        self.rsv2 = rsv2
        self.rsv3 = rsv3
        self.masked = masked

    def __cinit__(self):
        self.fin = True
        self.opcode = K_BINARY
        self.payload = b""

    def encode(self, mask=None) -> bytes:
        """The frame as it goes on the wire, masked with the 4 bytes of `mask`.

        Without `mask` a frame that says `masked` takes a fresh random key and others go out plain. Raises
        ValueError if `mask` is not 4 bytes.
        """
        cdef uint8_t header[MAX_HEADER]
        cdef bint masked = mask is not None or self.masked
        cdef uint32_t key = 0
        cdef Py_ssize_t size = len(self.payload), head
        cdef uint8_t first = self.fin << 7 | self.rsv1 << 6 | self.rsv2 << 5 | self.rsv3 << 4 | self.opcode
        cdef bytes key_bytes, out
        if masked:
            key_bytes = urandom(4) if mask is None else _exact_bytes(mask)
            if len(key_bytes) != 4:
                raise ValueError(f"mask is {len(key_bytes)} bytes, must be 4")
            memcpy(&key, PyBytes_AS_STRING(key_bytes), 4)
        head = write_header(header, first, size, masked, key)
        out = PyBytes_FromStringAndSize(NULL, head + size)
        memcpy(PyBytes_AS_STRING(out), header, head)
        # A key of zeros changes nothing: the plain copy is the same walk.
        fabric_mask_simple(<uint8_t*>PyBytes_AS_STRING(out) + head,
                           <const uint8_t*>PyBytes_AS_STRING(self.payload), size, key)
        return out

    @staticmethod
    def parse(buffer, *, max_size=None):
        """Take the first frame of `buffer`: `(Frame, bytes consumed)`, or None if it is not all there yet.

        Faults are raised as soon as the bytes that show them are there, before any payload is copied:
        InvalidFrame (see the class; also a length not in its shortest form or above 2**63 - 1),
        MessageTooLarge for a payload above `max_size` bytes.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            return _parse(<const uint8_t*>view.buf, view.len, max_size)
        finally:
            PyBuffer_Release(&view)

    def __eq__(self, other):
        if not isinstance(other, Frame):
            return NotImplemented
        return _state(self) == _state(<Frame>other)

    def __hash__(self):
        return hash(_state(self))

    def __repr__(self):
        flags = [name for name in ("fin", "rsv1", "rsv2", "rsv3", "masked") if getattr(self, name)]
        name = "CONTINUATION" if self.opcode == K_CONTINUATION else _TYPES[self.opcode].name
        return f"<Frame {' '.join([name, *flags])} {_shown(self.payload)}, {len(self.payload)} bytes>"

    def __reduce__(self):
        return _restore_frame, _state(self)


cdef tuple _state(Frame frame):
    return (frame.opcode, frame.payload, frame.fin, frame.rsv1, frame.rsv2, frame.rsv3, frame.masked)


def _restore_frame(opcode, payload, fin, rsv1, rsv2, rsv3, masked):
    """Unpickle a Frame."""
    return Frame(opcode, payload, fin=fin, rsv1=rsv1, rsv2=rsv2, rsv3=rsv3, masked=masked)


cdef object _parse(const uint8_t* p, Py_ssize_t available, object max_size):
    cdef int opcode, extended = 0, i
    cdef bint fin, masked
    cdef uint64_t size
    cdef uint32_t key = 0
    cdef Py_ssize_t head = 2
    cdef Frame frame
    if available < 1:
        return None
    fin = p[0] >> 7
    opcode = p[0] & 0x0F
    _check_shape(opcode, fin, 0)
    if available < 2:
        return None
    masked = p[1] >> 7
    size = p[1] & 0x7F
    _check_shape(opcode, fin, size)  # 126 and 127 announce more than a control frame may carry
    if size >= 126:
        extended = 2 if size == 126 else 8
        head += extended
        if available < head:
            return None
        size = 0
        for i in range(extended):
            size = size << 8 | p[2 + i]
        # RFC 6455 §5.2: the shortest form that holds the length, and its most significant bit is 0.
        if size < 126 or (extended == 8 and size < 0x10000):
            raise invalid_frame_class(f"length {size} is not in its shortest form")
        if size >> 63:
            raise invalid_frame_class("length is above 2**63 - 1")
    if max_size is not None and size > max_size:
        raise message_too_large_class(size, max_size)
    if masked:
        head += 4
    if available < head or size > <uint64_t>(available - head):
        return None
    if masked:
        memcpy(&key, p + head - 4, 4)
    frame = Frame.__new__(Frame)
    frame.fin = fin
    frame.rsv1 = p[0] >> 6 & 1
    frame.rsv2 = p[0] >> 5 & 1
    frame.rsv3 = p[0] >> 4 & 1
    frame.opcode = opcode
    frame.masked = masked
    frame.payload = _xored(p + head, <Py_ssize_t>size, key)
    return frame, head + <Py_ssize_t>size
