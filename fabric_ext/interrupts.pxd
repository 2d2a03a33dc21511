cdef bint hold_interrupts() except -1

cdef int release_interrupts() except -1
