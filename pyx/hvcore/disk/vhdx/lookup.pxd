# Where the bytes of a VHDX lie. Without a lock for what is in memory.

from libc.stdint cimport uint32_t, uint64_t

from hvcore.disk.vhdx.state cimport VhdxState

cdef enum RunKind:
    RUN_ZERO
    RUN_DATA
    RUN_PARENT

# A piece of the disk that is all in one place.
ctypedef struct Run:
    int kind
    uint64_t place               # in the file, of data
    uint64_t length

cdef int entry_of(VhdxState *state, uint64_t index, uint32_t flags, uint64_t *entry) noexcept nogil
cdef uint64_t after_zeros(VhdxState *state, uint64_t index, uint64_t block) noexcept nogil
cdef int find_run(VhdxState *state, uint64_t offset, uint64_t most, uint32_t flags, Run *run) noexcept nogil
