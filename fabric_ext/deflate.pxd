# Layout and signatures of fabric_ext.deflate; what they mean is in the .pyx and the .pyi.

cimport cython
from libc.stdint cimport uint8_t

cdef extern from "_deflate.h" nogil:
    ctypedef struct fabric_deflate:
        pass
    fabric_deflate* fabric_deflate_new(int window_bits, int level, int hash_bits)
    void fabric_deflate_free(fabric_deflate* d)
    size_t fabric_deflate_memory(int window_bits, int level, int hash_bits)
    void fabric_deflate_forget(fabric_deflate* d)
    void fabric_deflate_skip(fabric_deflate* d, const uint8_t* src, size_t n)
    size_t fabric_deflate_bound(size_t n)
    size_t fabric_deflate_message(fabric_deflate* d, const uint8_t* src, size_t n, uint8_t* out)
    enum:
        FABRIC_DEFLATE_RECALL
    size_t fabric_deflate_recall(size_t n, uint8_t* out)


cdef class Codec:
    cdef readonly Py_ssize_t threshold      # messages with fewer bytes are sent plain
    cdef readonly bint own_takeover
    cdef readonly bint peer_takeover
    cdef readonly int own_window_bits
    cdef readonly int peer_window_bits
    cdef readonly long long plain_out       # bytes given to compress()
    cdef readonly long long wire_out        # bytes it returned
    cdef readonly long long wire_in         # bytes given to decompress()
    cdef readonly long long plain_in        # bytes it returned
    cdef Py_ssize_t produced                # of the message that is arriving
    cdef Py_ssize_t consumed
    cdef bint inside                        # a message is arriving
    cdef bint failed                        # the peer's window is lost: nothing can be decompressed any more
    cdef object inflater                    # the peer's context; None until needed

    # A whole message: the payload of frames of which the first has RSV1 set. It must be sent, in this order.
    cdef bytes compress(self, const char* p, Py_ssize_t n)

    # The same for a message in parts, each of which can be read when it arrives.
    cdef bytes compress_part(self, const char* p, Py_ssize_t n, bint fin)

    # One frame's payload; `limit` is what the message may still produce. Raises OutputLimit or CorruptData.
    cdef bytes decompress(self, const char* p, Py_ssize_t n, bint first, bint fin, Py_ssize_t limit)

    # For a message to many peers: compressed once per `group`, with no reference to any message before it ...
    cdef object group(self)
    cdef bytes compress_alone(self, const char* p, Py_ssize_t n)
    # ... and noted by each codec, which returns what to send: `alone` itself where that is possible.
    cdef bytes adopt(self, bytes alone, const char* p, Py_ssize_t n)

    # Gives back all memory that the agreed terms do not force to keep. The next message is a little larger.
    cpdef void release_idle(self) noexcept

    cdef bytes pack(self, const char* p, Py_ssize_t n)
    cdef bytes pack_alone(self, const char* p, Py_ssize_t n)
    cdef bytes unpack(self, const char* p, Py_ssize_t n, bint fin, Py_ssize_t limit)


@cython.final
cdef class DeflateCodec(Codec):
    cdef int level
    cdef int mem_level                      # the hash table has 2 ** (mem_level + 6) entries of two bytes
    cdef fabric_deflate* encoder            # owned; NULL until the first message, and after release_idle()
    cdef Py_ssize_t history                 # bytes the inflater has produced: how far its window is filled
    cdef bytes window                       # the peer's context while there is no inflater; None when empty

    cdef object new_inflater(self)
    cdef bytes inflate(self, object data, Py_ssize_t limit, bint fin)
    cdef bytes left_over(self, bytes unused, bint fin)
    cdef bytes read_window(self)
    cdef bytes unpack_large(self, object data, bint fin, Py_ssize_t limit)


@cython.final
cdef class ZstdCodec(Codec):
    cdef int level
    cdef readonly bytes dictionary
    cdef object loaded                      # ZstdCompressionDict, shared by all codecs of that dictionary
    cdef object stream                      # what we send with takeover; None until the first message, and released
    cdef bint open_frame                    # the peer's decompressor is inside a frame of ours

    cdef object new_compressor(self)
    cdef object new_inflater(self)
    cdef bytes closing(self, bytes payload)
