"""Masking for compiled callers."""

from libc.stdint cimport uint8_t, uint32_t

# XOR n bytes of `src` into `dst` (equal, or not overlapping at all; any alignment). `key` holds the four key
# bytes as they lie in memory; `offset` is how many bytes of the payload have been masked before.
cdef void apply_mask(uint8_t* dst, const uint8_t* src, size_t n, uint32_t key, size_t offset) noexcept nogil

# A key nobody can predict (RFC 6455 §5.3), in memory order. Fails only if os.urandom does.
cdef uint32_t next_key() except? 0
