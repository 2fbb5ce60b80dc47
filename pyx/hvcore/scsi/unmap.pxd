# UNMAP and WRITE SAME (storvsp.md 9.8, 9.9).

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.scsi.plan cimport ScsiPlan
from hvcore.scsi.unit cimport ScsiUnit

cdef void plan_unmap(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                     ScsiPlan *plan) noexcept nogil
# With the list.
cdef void unmap_parameters(const ScsiUnit *unit, const uint8_t *list, uint32_t length, ScsiPlan *plan) noexcept nogil
# bits: byte 1; sixteen: the (16) form, which has NDOB.
cdef void plan_write_same(const ScsiUnit *unit, uint8_t bits, bint sixteen, uint64_t lba, uint64_t blocks,
                          uint32_t buffer_length, uint8_t data_in, ScsiPlan *plan) noexcept nogil
