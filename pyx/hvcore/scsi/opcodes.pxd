# REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (A3/0C, A3/0D).

from libc.stdint cimport uint8_t, uint32_t

from hvcore.scsi.plan cimport ScsiPlan
from hvcore.scsi.unit cimport ScsiUnit

cdef void plan_maintenance_in(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                              ScsiPlan *plan) noexcept nogil
