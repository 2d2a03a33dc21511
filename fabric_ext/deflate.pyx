"""Compression of whole messages between two ends that share a window: permessage-deflate (RFC 7692) and zstd.

Owns both directions of one connection's compression state, and the bound on what a message may become.
Never: negotiates (that is `fabric.compression`), sees frames or RSV bits, or trusts a length that a peer
names.

What we send goes through our own encoder (_deflate.c): on JSON it is several times faster than zlib and
zlib-ng at equal savings, and a connection's state is 16 KB where zlib-ng's is 150 KB. What a peer sends is
hostile, so it goes through zlib: zlib-ng's, or the standard library's where that is not installed. Both
directions of zstd are the package zstandard's.
"""

cimport cython
from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

import functools

try:
    from zlib_ng import zlib_ng as zlib
except ImportError:
    import zlib

cdef extern from "Python.h":
    PyObject* _bytes_new "PyBytes_FromStringAndSize"(const char* p, Py_ssize_t n) except NULL
    int _bytes_resize "_PyBytes_Resize"(PyObject** object, Py_ssize_t n) except -1
    char* _bytes_data "PyBytes_AS_STRING"(PyObject* object)
    void _drop "Py_DECREF"(PyObject* object)

cdef enum:
    DEFAULT_LEVEL = 3
    SCRATCH = 1 << 16
    UNCOPIED = 1 << 15      # bytes; payloads from here on are read from where they lie
    MAX_RESTARTS = 64       # streams in one frame; each costs a new decompressor, so the peer may not choose
    ZSTD_BUFFER = 1 << 14   # bytes; what zstandard decompresses to at a time
    SHORTEST_BLOCK = 4      # bytes of a zstd block that becomes more than it is: RFC 8878 §3.1.1.2, a header and a byte
    SHARED = 16             # compressors kept for messages that refer to nothing before them
    SHORTEST_SLICE = 32     # bytes; shorter ones would let a peer that sends empty blocks cost a call for each

cdef Py_ssize_t MAX_SIZE = (<Py_ssize_t>1 << (8 * sizeof(Py_ssize_t) - 2))

cdef object new_inflate = zlib.decompressobj
cdef object ZlibError = zlib.error
cdef bytes TAIL = b"\x00\x00\xff\xff"       # RFC 7692 §7.2.1: left out by the sender; §7.2.2: put back
cdef bytes END_OF_FRAME = b"\x01\x00\x00"   # RFC 8878 §3.1.1.2: a last block, raw, of no bytes

# Where short messages are compressed to, before their size is known. Holds nothing between calls, which hold the GIL.
cdef uint8_t scratch[SCRATCH]


class OutputLimit(ValueError):
    """A message decompresses to more than it may; `size` is what was seen of it, `limit` what was allowed."""

    def __init__(self, size, limit):
        super().__init__(f"message decompresses to {size} bytes or more, over the limit of {limit} bytes")
        self.size = size
        self.limit = limit


class CorruptData(ValueError):
    """What a peer sent is not what the agreed extension produces."""


cdef class Codec:
    """Base of the two algorithms: limits, counters, and what must not happen after an error."""

    def __cinit__(self):
        if not isinstance(self, (DeflateCodec, ZstdCodec)):
            raise TypeError(f"{type(self).__name__} is no codec: use DeflateCodec or ZstdCodec")

    cdef bytes compress(self, const char* p, Py_ssize_t n):
        cdef bytes payload = self.pack(p, n) if self.own_takeover else self.pack_alone(p, n)
        self.plain_out += n
        self.wire_out += PyBytes_GET_SIZE(payload)
        return payload

    cdef bytes compress_part(self, const char* p, Py_ssize_t n, bint fin):
        return self.compress(p, n)

    cdef bytes decompress(self, const char* p, Py_ssize_t n, bint first, bint fin, Py_ssize_t limit):
        cdef bytes plain
        if self.failed:
            raise CorruptData("an earlier message could not be decompressed")
        if first == self.inside:
            raise CorruptData("frames of a compressed message are out of order")
        self.failed = True      # until this call succeeds
        if first:
            self.produced = self.consumed = 0
        self.inside = not fin
        self.consumed += n
        # +1 below must not overflow.
        plain = self.unpack(p, n, fin, 0 if limit < 0 else limit if limit < MAX_SIZE else MAX_SIZE)
        if fin and not self.peer_takeover:
            self.inflater = None
        self.produced += PyBytes_GET_SIZE(plain)
        self.wire_in += n
        self.plain_in += PyBytes_GET_SIZE(plain)
        self.failed = False
        return plain

    cdef object group(self):
        raise NotImplementedError

    cdef bytes compress_alone(self, const char* p, Py_ssize_t n):
        return self.pack_alone(p, n)

    cdef bytes adopt(self, bytes alone, const char* p, Py_ssize_t n):
        raise NotImplementedError

    cpdef void release_idle(self) noexcept:
        pass

    cdef bytes pack(self, const char* p, Py_ssize_t n):
        raise NotImplementedError

    cdef bytes pack_alone(self, const char* p, Py_ssize_t n):
        raise NotImplementedError

    cdef bytes unpack(self, const char* p, Py_ssize_t n, bint fin, Py_ssize_t limit):
        raise NotImplementedError

    # For Python: the same on any buffer.

    def encode(self, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.compress(<const char*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def decode(self, data, *, bint first=True, bint fin=True, Py_ssize_t limit):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.decompress(<const char*>view.buf, view.len, first, fin, limit)
        finally:
            PyBuffer_Release(&view)

    @property
    def sharing(self):
        return self.group()

    def encode_alone(self, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.compress_alone(<const char*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def adopted(self, bytes alone not None, data):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            return self.adopt(alone, <const char*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)


cdef int check(str name, int value, int low, int high) except -1:
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")
    return value


cdef int counted_restart(int restarts) except -1:
    """One more than `restarts`; raises CorruptData for more than a sender has reason to send."""
    if restarts == MAX_RESTARTS:
        raise CorruptData(f"more than {MAX_RESTARTS} compressed streams in one frame")
    return restarts + 1


# Compressors for messages that refer to nothing before them: one for each `Codec.group` that is in use. Each is taken
# out while it works, since zstandard's let other threads run, and must not be entered by two.
cdef dict shared_compressors = {}       # the longest unused first


cdef object take_shared(object key):
    """The compressor of the group `key`, or None."""
    return shared_compressors.pop(key, None)


cdef int keep_shared(object key, object compressor) except -1:
    """Keep `compressor` for the next message of its group, and forget the one that was longest unused."""
    shared_compressors[key] = compressor
    if len(shared_compressors) > SHARED:
        del shared_compressors[next(iter(shared_compressors))]
    return 0


# permessage-deflate


@cython.final
cdef class _Encoder:
    """One encoder for all whose messages refer to nothing before them."""

    cdef fabric_deflate* encoder        # owned; NULL only in one that Python code has made

    def __dealloc__(self):
        fabric_deflate_free(self.encoder)


cdef fabric_deflate* new_encoder(int window_bits, int level, int mem_level) except NULL:
    cdef fabric_deflate* encoder = fabric_deflate_new(window_bits, level, mem_level + 6)
    if encoder is NULL:
        raise MemoryError
    return encoder


cdef bytes deflated(fabric_deflate* encoder, const char* p, Py_ssize_t n):
    cdef size_t bound = fabric_deflate_bound(n)
    cdef size_t size
    cdef PyObject* out
    if bound <= SCRATCH:
        size = fabric_deflate_message(encoder, <const uint8_t*>p, n, scratch)
        return PyBytes_FromStringAndSize(<const char*>scratch, size)
    out = _bytes_new(NULL, bound)       # before anything moves in the window
    size = fabric_deflate_message(encoder, <const uint8_t*>p, n, <uint8_t*>_bytes_data(out))
    return resized(out, size)


cdef bytes resized(PyObject* out, Py_ssize_t n):
    """Takes over the only reference to `out`."""
    _bytes_resize(&out, n)              # on failure it has dropped the reference
    result = <bytes>out
    _drop(out)
    return result


@cython.final
cdef class DeflateCodec(Codec):
    """permessage-deflate (RFC 7692) as agreed for one connection."""

    def __cinit__(self, *, int own_window_bits=15, int peer_window_bits=15, bint own_takeover=True,
                  bint peer_takeover=True, level=None, int mem_level=5, Py_ssize_t threshold=0):
        self.own_window_bits = check("own_window_bits", own_window_bits, 8, 15)
        self.peer_window_bits = check("peer_window_bits", peer_window_bits, 8, 15)
        self.own_takeover = own_takeover
        self.peer_takeover = peer_takeover
        # To zlib 0 means "do not compress"; a program that wants that does not negotiate this.
        self.level = max(1, check("level", DEFAULT_LEVEL if level is None else level, 0, 9))
        self.mem_level = check("mem_level", mem_level, 1, 9)
        self.threshold = threshold

    def __dealloc__(self):
        fabric_deflate_free(self.encoder)

    @property
    def own_memory(self):
        if self.encoder is NULL:
            return 0
        return fabric_deflate_memory(self.own_window_bits, self.level, self.mem_level + 6)

    cdef bytes pack(self, const char* p, Py_ssize_t n):
        if self.encoder is NULL:
            self.encoder = new_encoder(self.own_window_bits, self.level, self.mem_level)
        return deflated(self.encoder, p, n)

    cdef bytes compress_part(self, const char* p, Py_ssize_t n, bint fin):
        # RFC 7692 §7.2.1: only the end of a message does without the tail.
        cdef bytes payload = self.compress(p, n)
        return payload if fin else payload + TAIL

    cdef object group(self):
        return "deflate", self.own_window_bits, self.level, self.mem_level

    cdef bytes pack_alone(self, const char* p, Py_ssize_t n):
        cdef object key = self.group()
        cdef _Encoder shared = take_shared(key)
        if shared is None:
            shared = _Encoder()
            shared.encoder = new_encoder(self.own_window_bits, self.level, self.mem_level)
        # First, so that no message of one connection is ever behind a reference in another's.
        fabric_deflate_forget(shared.encoder)
        cdef bytes payload = deflated(shared.encoder, p, n)
        keep_shared(key, shared)
        return payload

    cdef bytes adopt(self, bytes alone, const char* p, Py_ssize_t n):
        # No encoder: its first message will refer to nothing, whatever the peer's window then holds.
        if self.encoder is not NULL:
            fabric_deflate_skip(self.encoder, <const uint8_t*>p, n)
        self.plain_out += n
        self.wire_out += PyBytes_GET_SIZE(alone)
        return alone

    cpdef void release_idle(self) noexcept:
        fabric_deflate_free(self.encoder)
        self.encoder = NULL
        # Below 3 bytes, the shortest match, there is no way to ask; such an inflater has hardly been used.
        if self.inflater is not None and not self.inside and not self.failed and self.history >= 3:
            try:
                self.window = self.read_window()
                self.inflater = None
            except Exception:
                self.failed = True      # the inflater is in the middle of what read_window() gave it

    cdef bytes read_window(self):
        """What the peer may still refer to: 4 KB of the 22 that an inflater for a 4 KB window takes."""
        cdef uint8_t blocks[FABRIC_DEFLATE_RECALL]
        cdef Py_ssize_t window_size = 1 << self.peer_window_bits
        cdef size_t n = fabric_deflate_recall(min(self.history, window_size), blocks)
        return self.inflater.decompress(PyBytes_FromStringAndSize(<char*>blocks, n))

    cdef object new_inflater(self):
        cdef bytes window = self.window
        if window is None:
            self.history = 0
            return new_inflate(-self.peer_window_bits)
        self.window = None
        self.history = PyBytes_GET_SIZE(window)
        return new_inflate(-self.peer_window_bits, zdict=window)

    cdef bytes inflate(self, object data, Py_ssize_t limit, bint fin):
        """Decompress, and go on behind a final block (RFC 7692 §7.2.3.4), which ends a stream."""
        cdef bytes plain, rest
        cdef list parts = None
        cdef int restarts = 0
        cdef Py_ssize_t left = limit
        if self.inflater is None:
            self.inflater = self.new_inflater()
        while True:
            # One byte more than allowed tells too much from just enough.
            plain = self.inflater.decompress(data, left + 1)
            if PyBytes_GET_SIZE(plain) > left:
                self.inflater = None
                raise OutputLimit(self.produced + limit + 1, self.produced + limit)
            left -= PyBytes_GET_SIZE(plain)
            self.history += PyBytes_GET_SIZE(plain)
            if not self.inflater.eof:
                break
            rest = self.left_over(self.inflater.unused_data, fin)
            self.inflater = None
            if not rest:
                break
            restarts = counted_restart(restarts)
            if parts is None:
                parts = []
            parts.append(plain)
            self.inflater = self.new_inflater()
            data = rest
        if parts is None:
            return plain
        parts.append(plain)
        return b"".join(parts)

    cdef bytes unpack(self, const char* p, Py_ssize_t n, bint fin, Py_ssize_t limit):
        cdef bytes data
        cdef char* out
        if n == 0 and (not fin or self.consumed == 0 or self.inflater is None):
            # Nothing at all has come of the message, not even the one byte of §7.2.3.6, or what came ended
            # with its final block. The tail alone would not be a block.
            return b""
        if n >= UNCOPIED:
            return self.unpack_large(PyMemoryView_FromMemory(<char*>p, n, PyBUF_READ), fin, limit)
        if fin:
            data = PyBytes_FromStringAndSize(NULL, n + 4)
            out = PyBytes_AS_STRING(data)
            memcpy(out, p, n)
            memcpy(out + n, PyBytes_AS_STRING(TAIL), 4)
        else:
            data = PyBytes_FromStringAndSize(p, n)
        try:
            return self.inflate(data, limit, fin)
        except ZlibError as error:
            self.inflater = None
            raise CorruptData(f"invalid DEFLATE data: {error}") from None

    cdef bytes unpack_large(self, object data, bint fin, Py_ssize_t limit):
        """The same where a copy, for the tail to stand behind, would cost more than a second call."""
        cdef bytes plain, rest
        try:
            plain = self.inflate(data, limit, False)
            if not fin or self.inflater is None:        # it has ended with its final block
                return plain
            rest = self.inflate(TAIL, limit - PyBytes_GET_SIZE(plain), True)
            return plain + rest if rest else plain
        except ZlibError as error:
            self.inflater = None
            raise CorruptData(f"invalid DEFLATE data: {error}") from None

    cdef bytes left_over(self, bytes unused, bint fin):
        if not fin:
            return unused
        if len(unused) < 4:
            raise CorruptData("message ends inside its final block")
        # Some senders stop where the final block ends, without the empty one of §7.2.3.4 that takes the tail.
        return b"" if unused == TAIL else unused


# permessage-zstd

cdef object zstandard = None    # imported with the first codec: few connections have one


cdef int import_zstandard() except -1:
    global zstandard
    if zstandard is None:
        import zstandard as module
        zstandard = module
    return 0


@functools.lru_cache(maxsize=SHARED)
def _loaded_dictionary(bytes content):
    return zstandard.ZstdCompressionDict(content)



@cython.final
cdef class ZstdCodec(Codec):
    """permessage-zstd: a zstd stream (RFC 8878) whose blocks end where messages end."""

    def __cinit__(self, *, int own_window_bits=15, int peer_window_bits=15, bint own_takeover=True,
                  bint peer_takeover=True, level=None, bytes dictionary=None, Py_ssize_t threshold=0):
        self.own_window_bits = check("own_window_bits", own_window_bits, 10, 27)
        self.peer_window_bits = check("peer_window_bits", peer_window_bits, 10, 27)
        self.own_takeover = own_takeover
        self.peer_takeover = peer_takeover
        self.level = check("level", DEFAULT_LEVEL if level is None else level, 1, 22)
        self.dictionary = dictionary
        import_zstandard()
        self.loaded = None if dictionary is None else _loaded_dictionary(dictionary)
        self.threshold = threshold

    cdef object new_compressor(self):
        parameters = zstandard.ZstdCompressionParameters(
            compression_level=self.level,
            window_log=self.own_window_bits,
            write_content_size=False,
            write_dict_id=False,
        )
        return zstandard.ZstdCompressor(compression_params=parameters, dict_data=self.loaded)

    cdef bytes closing(self, bytes payload):
        """The frame that the peer is inside of must end before another begins."""
        return END_OF_FRAME + payload if self.open_frame else payload

    cdef bytes pack(self, const char* p, Py_ssize_t n):
        cdef bytes payload
        cdef object stream = self.stream
        cdef bint begins = stream is None
        if begins:
            stream = self.new_compressor().compressobj()
        self.stream = None      # until this call succeeds: the peer will not see a part of what it makes
        payload = stream.compress(p[:n]) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        if begins:
            # An empty message does not even begin a frame.
            payload, self.open_frame = self.closing(payload), bool(payload)
        else:
            self.open_frame = self.open_frame or payload
        self.stream = stream
        return payload

    cdef object group(self):
        return "zstd", self.own_window_bits, self.level, self.dictionary

    cdef bytes pack_alone(self, const char* p, Py_ssize_t n):
        cdef object key = self.group()
        shared = take_shared(key)
        if shared is None:
            shared = self.new_compressor()
        cdef bytes payload = shared.compress(p[:n])
        keep_shared(key, shared)
        return payload

    cdef bytes adopt(self, bytes alone, const char* p, Py_ssize_t n):
        cdef bytes payload = self.closing(alone)
        self.stream = None
        self.open_frame = False
        self.plain_out += n
        self.wire_out += PyBytes_GET_SIZE(payload)
        return payload

    cpdef void release_idle(self) noexcept:
        self.stream = None

    cdef object new_inflater(self):
        # zstd would otherwise take as much memory as the frame's header asks for.
        decompressor = zstandard.ZstdDecompressor(dict_data=self.loaded, max_window_size=1 << self.peer_window_bits)
        return decompressor.decompressobj(write_size=ZSTD_BUFFER)

    cdef bytes unpack(self, const char* p, Py_ssize_t n, bint fin, Py_ssize_t limit):
        """Decompress slice by slice, since zstandard takes no limit on what comes out of a slice.

        A slice is short enough that the blocks which can end in it hold no more than is left of the limit, or
        than `SHORTEST_SLICE` allows: RFC 8878 §3.1.1.2.4 bounds a block by the window and by 128 KB.
        """
        cdef Py_ssize_t largest_block = 1 << min(self.peer_window_bits, 17)
        cdef Py_ssize_t at = 0, size, left = limit
        cdef int restarts = 0
        cdef list parts = []
        cdef bytes plain
        while at < n:
            if self.inflater is None:
                self.inflater = self.new_inflater()
            size = min(n - at, max(SHORTEST_SLICE, left // largest_block * SHORTEST_BLOCK))
            try:
                plain = self.inflater.decompress(p[at:at + size])
            except zstandard.ZstdError as error:
                self.inflater = None
                raise CorruptData(f"invalid zstd data: {error}") from None
            at += size
            if PyBytes_GET_SIZE(plain) > left:
                self.inflater = None
                raise OutputLimit(self.produced + limit + 1, self.produced + limit)
            left -= PyBytes_GET_SIZE(plain)
            parts.append(plain)
            if self.inflater.eof:
                at -= PyBytes_GET_SIZE(<bytes>self.inflater.unused_data)
                self.inflater = None
                if at < n:
                    restarts = counted_restart(restarts)
        return parts[0] if len(parts) == 1 else b"".join(parts)
