# Headers, log and flushes of a VHDX that is written. All return a DiskStatus.

from libc.stdint cimport uint64_t, uint8_t

from hvcore.disk.vhdx.state cimport VhdxState

cdef int begin(VhdxState *state, const uint8_t *data_write_guid) noexcept nogil
cdef int commit_all(VhdxState *state, const uint64_t *places, const uint8_t *pages, uint64_t count) noexcept nogil
cdef int flush_all(VhdxState *state) noexcept nogil
cdef int finish(VhdxState *state) noexcept nogil
