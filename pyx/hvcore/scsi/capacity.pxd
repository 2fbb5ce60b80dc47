# READ CAPACITY (storvsp.md 9.4), GET LBA STATUS (9.10), REPORT LUNS (7).

from libc.stdint cimport uint8_t, uint32_t

from hvcore.disk.ops cimport DiskRef
from hvcore.scsi.plan cimport ScsiPlan
from hvcore.scsi.unit cimport ScsiUnit

cdef void plan_read_capacity10(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                               ScsiPlan *plan) noexcept nogil
cdef void plan_read_capacity16(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                               ScsiPlan *plan) noexcept nogil
# Asks the disk: SCSI_ANSWER.
cdef void plan_lba_status(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                          ScsiPlan *plan) noexcept nogil
# The answer, into plan.data: a DiskStatus. May block.
cdef int media_lba_status(const DiskRef *disk, ScsiPlan *plan) noexcept nogil
# The controller answers it for any LUN: luns is a bitmap of 256 bits, lun n at bit n % 8 of byte n / 8.
cdef void scsi_report_luns(const uint8_t *luns, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                           bint strict_alloc, ScsiPlan *plan) noexcept nogil
