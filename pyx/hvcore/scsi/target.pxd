# The SCSI engine without a bus (storvsp.md sections 5 to 11). It decodes a CDB into a plan; the caller does the media
# access the plan asks for, on whatever memory the request named, and hands the disk's status back.
#
# ScsiPlan and its answers are in plan.pxd, ScsiUnit and what several initiators share in unit.pxd; who plans and
# finishes commands finds all of it here.

from libc.stdint cimport uint8_t, uint32_t

from hvcore.disk.ops cimport Backend
from hvcore.linux.syscalls cimport iovec
from hvcore.scsi.capacity cimport scsi_report_luns
from hvcore.scsi.inquiry cimport scsi_absent
from hvcore.scsi.plan cimport (
    SCSI_ANSWER, SCSI_COMPARE_WRITE, SCSI_DATA_MAX, SCSI_DONE, SCSI_FLUSH, SCSI_LIST_MAX, SCSI_PARAMETERS, SCSI_READ,
    SCSI_SENSE_MAX, SCSI_TRIM, SCSI_VERIFY, SCSI_WRITE, SCSI_WRITE_SAME, ScsiAction, ScsiPlan, scsi_fail, scsi_refuse)
from hvcore.scsi.unit cimport LogicalUnit, ScsiUnit, scsi_attention, scsi_reset, unit_disk

# cdb: 16 bytes, those beyond the CDB's length zero. buffer_length: bytes of the request's data buffer. data_in: the
# SRB's byte (0 = from the guest, else to the guest, 2 = none). Never touches the disk's media. What needs nothing of
# them, such as a reservation, is done when this returns.
cdef void scsi_plan(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                    ScsiPlan *plan) noexcept nogil
# All media access that a plan can ask for, blocking unless flags has DISK_NOWAIT: then DISK_WOULD_BLOCK for all but a
# read or a write that the disk can do at once. iov: at least buffer_length bytes of the request's buffer, for SCSI_READ
# and SCSI_WRITE exactly that many. A DiskStatus, MEDIA_MISCOMPARE or MEDIA_ABORTED, for scsi_finish.
cdef int scsi_media(const ScsiUnit *unit, ScsiPlan *plan, const iovec *iov, int count, uint32_t flags) noexcept nogil
# After the media access that the plan asked for: what scsi_media returned, or a DiskStatus.
cdef void scsi_finish(ScsiUnit *unit, ScsiPlan *plan, int disk_status) noexcept nogil
# For SCSI_PARAMETERS, with the copied list (at most SCSI_LIST_MAX bytes). The plan then is SCSI_DONE or SCSI_TRIM, and
# SCSI_TRIM needs the copy until scsi_media returned.
cdef void scsi_parameters(ScsiUnit *unit, const uint8_t *cdb, const uint8_t *list, uint32_t length,
                          ScsiPlan *plan) noexcept nogil


cdef class Target:
    cdef ScsiUnit unit
    cdef readonly Backend image      # kept alive
    cdef list before                 # as those that were there before it: a request may still be with them
    cdef readonly LogicalUnit logical_unit
    cdef readonly bytes nexus
    cdef int check(self) except -1
