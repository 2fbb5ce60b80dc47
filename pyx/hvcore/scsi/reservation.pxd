# PERSISTENT RESERVE IN and OUT, RESERVE and RELEASE (storvsp.md 9.11).

from libc.stdint cimport uint8_t, uint32_t

from hvcore.scsi.plan cimport ScsiPlan
from hvcore.scsi.unit cimport ScsiUnit

# What another initiator's reservation forbids: the plan then holds the conflict, and the answer is True. alert: of the
# unit, without ALERT_ATTENTION.
cdef bint plan_conflict(const uint8_t *cdb, uint32_t alert, ScsiPlan *plan) noexcept nogil
cdef void plan_reserve(ScsiUnit *unit, const uint8_t *cdb, ScsiPlan *plan) noexcept nogil
cdef void plan_release(ScsiUnit *unit, ScsiPlan *plan) noexcept nogil
cdef void plan_persistent_in(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                             ScsiPlan *plan) noexcept nogil
cdef void plan_persistent_out(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                              ScsiPlan *plan) noexcept nogil
# With the list.
cdef void persistent_parameters(ScsiUnit *unit, const uint8_t *cdb, const uint8_t *list, uint32_t length,
                                ScsiPlan *plan) noexcept nogil
