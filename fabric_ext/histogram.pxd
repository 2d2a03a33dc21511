"""Layout of `fabric_ext.histogram` for the modules that record from C: `self.latency.record(nanoseconds)`."""

cimport cython
from libc.stdint cimport int64_t, uint16_t, uint64_t


@cython.final
cdef class Histogram:
    # Configuration, fixed at construction.
    cdef readonly int64_t lowest_discernible
    cdef readonly int64_t highest_trackable
    cdef readonly int significant_figures

    # The HdrHistogram layout that follows from it. A value belongs to one slot; see `slot_of` in the .pyx.
    cdef int unit_magnitude          # log2 of the width of the narrowest slot
    cdef int half_magnitude          # log2 of the slots in a bucket's upper half
    cdef int slots                   # how many slots the layout has
    cdef uint64_t linear_mask        # the values of bucket 0, where slots have the width of one unit
    cdef int64_t capacity            # the largest value that has a slot; >= highest_trackable

    # Counts live in chunks that are created when a value first falls into them. `directory` has one entry per
    # chunk of the layout: 0, or 1 + its place in `pool`. Both are owned by this object, NULL until the first
    # record, freed in __dealloc__. `pool` moves when it grows: never keep a pointer into it across a record.
    cdef int chunk_magnitude         # log2 of the slots in a chunk
    cdef int chunks_used
    cdef int chunks_allocated
    cdef uint16_t* directory
    cdef int64_t* pool

    cdef int64_t smallest            # INT64_MAX while empty
    cdef int64_t largest             # 0 while empty
    cdef readonly int64_t count
    cdef readonly int64_t clamped_low
    cdef readonly int64_t clamped_high
    cdef readonly int64_t unrecorded

    # A few ns. Allocates only the first time a value falls into a new range; never fails: see `unrecorded`.
    cpdef void record(self, Py_ssize_t value) noexcept nogil

    cdef int slot_of(self, int64_t value) noexcept nogil
    cdef int64_t width_of(self, int slot) noexcept nogil
    cdef int64_t lowest_of(self, int slot) noexcept nogil
    cdef int64_t highest_of(self, int slot) noexcept nogil
    cdef double median_of(self, int slot) noexcept nogil
    cdef bint same_layout(self, Histogram other) noexcept nogil
    cdef int64_t* cell(self, int slot) noexcept nogil
    cdef int new_chunk(self, int chunk) noexcept nogil
    cdef int64_t count_of(self, int slot) noexcept nogil
    cdef int next_recorded(self, int slot) noexcept nogil
    cdef void put(self, int64_t value, int64_t n) noexcept nogil
    cdef void add_unrecorded(self, int64_t n) noexcept nogil
    cdef void put_corrected(self, int64_t value, int64_t interval, int64_t n) noexcept nogil
    cdef int require_room(self, object n) except -1
    cdef Histogram empty_like(self)
    cdef int64_t target_count(self, double percentile) noexcept nogil
    cdef int fill(self, bytes counts) except -1
