# MODE SENSE and MODE SELECT (storvsp.md 9.5): the caching page, which a guest can read but not change, and beyond it
# the control page, whose one changeable bit is the write protection.

from libc.stdint cimport uint8_t, uint32_t

from hvcore.scsi.plan cimport ScsiPlan
from hvcore.scsi.unit cimport ScsiUnit

cdef void plan_mode_sense(const ScsiUnit *unit, const uint8_t *cdb, bint ten, uint32_t buffer_length, uint8_t data_in,
                          ScsiPlan *plan) noexcept nogil
cdef void plan_mode_select(const uint8_t *cdb, bint ten, uint32_t buffer_length, uint8_t data_in,
                           ScsiPlan *plan) noexcept nogil
# With the list.
cdef void mode_parameters(ScsiUnit *unit, bint ten, const uint8_t *list, uint32_t length, ScsiPlan *plan) noexcept nogil
