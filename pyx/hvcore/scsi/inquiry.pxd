# INQUIRY (storvsp.md 9.2, 9.3), of a unit and of a LUN that does not exist.

from libc.stdint cimport uint8_t, uint32_t

from hvcore.scsi.plan cimport ScsiPlan
from hvcore.scsi.unit cimport ScsiUnit

cdef enum:
    INQUIRY_BYTES = 104
    INQUIRY_ABSENT = 0x7F        # byte 0: no device at this LUN
    WRITE_SAME_MAX = 8 << 20     # bytes of one WRITE SAME, as VPD B0 says
    COMPARE_WRITE_MAX = 64 << 10     # bytes compared by one COMPARE AND WRITE, as VPD B0 says

cdef void plan_inquiry(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                       ScsiPlan *plan) noexcept nogil
# A command to a LUN that does not exist (section 7).
cdef void scsi_absent(const uint8_t *cdb, uint8_t lun, uint32_t buffer_length, uint8_t data_in,
                      ScsiPlan *plan) noexcept nogil
