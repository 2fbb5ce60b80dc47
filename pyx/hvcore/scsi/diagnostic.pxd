# SEND and RECEIVE DIAGNOSTIC (storvsp.md 9.7), LOG SENSE: there is one page of each, the list of pages.

from libc.stdint cimport uint8_t, uint32_t

from hvcore.scsi.plan cimport ScsiPlan
from hvcore.scsi.unit cimport ScsiUnit

cdef void plan_send_diagnostic(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                               ScsiPlan *plan) noexcept nogil
# With the list.
cdef void diagnostic_parameters(const uint8_t *list, uint32_t length, ScsiPlan *plan) noexcept nogil
cdef void plan_receive_diagnostic(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                                  ScsiPlan *plan) noexcept nogil
cdef void plan_log_sense(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                         ScsiPlan *plan) noexcept nogil
