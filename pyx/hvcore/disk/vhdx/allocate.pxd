# Places of blocks: given, taken away, changed. All return a DiskStatus.

from libc.stdint cimport uint64_t

from hvcore.disk.span cimport Span
from hvcore.disk.vhdx.state cimport VhdxState

cdef int take_space(VhdxState *state, uint64_t from_, uint64_t width, uint64_t *start, bint *clean) noexcept nogil
cdef int write_block(VhdxState *state, uint64_t at, uint64_t length, Span *span) noexcept nogil
cdef int give_up(VhdxState *state, uint64_t block, uint64_t end, int target) noexcept nogil
cdef int move_block(VhdxState *state, uint64_t block, bint *moved) noexcept nogil
