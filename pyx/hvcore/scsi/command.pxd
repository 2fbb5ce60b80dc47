# Which part of the engine answers a command. A module of its own, so that scsi_plan stays small: READ and WRITE, nearly
# all that an initiator sends, are decided there.

from libc.stdint cimport uint8_t, uint32_t

from hvcore.scsi.plan cimport ScsiPlan
from hvcore.scsi.unit cimport ScsiUnit

# All commands but READ and WRITE.
cdef void plan_other(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                     ScsiPlan *plan) noexcept nogil
# True: a unit attention or a reservation is the answer, the command is not executed (storvsp.md 9.11, 11).
cdef bint plan_alert(ScsiUnit *unit, const uint8_t *cdb, uint32_t alert, ScsiPlan *plan) noexcept nogil
