# The SCSI engine without a bus (storvsp.md sections 5 to 11). It decodes a CDB into a plan; the caller does the media
# access the plan asks for, on whatever memory the request named, and hands the disk's status back.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.disk.ops cimport Backend, DiskRef
from hvcore.linux.atomics cimport exchange32
from hvcore.linux.syscalls cimport iovec

cdef enum ScsiAction:
    SCSI_DONE = 0                # the plan holds the answer: data[0 .. data_length), statuses, sense
    SCSI_READ = 1                # media -> guest memory: offset, length
    SCSI_WRITE = 2               # guest memory -> media; then flush when `fua`
    SCSI_FLUSH = 3
    SCSI_VERIFY = 4              # compare the media with the request's buffer: scsi_media
    SCSI_PARAMETERS = 5          # copy data_length bytes of the request's buffer once, then call scsi_parameters
    SCSI_TRIM = 6                # discard the ranges of the UNMAP list: scsi_media
    SCSI_WRITE_SAME = 7          # repeat one block of the request's buffer, or zeros, over the range: scsi_media
    SCSI_ANSWER = 8              # scsi_media finds the answer and leaves it in data[], which must live until then

cdef enum:
    SCSI_DATA_MAX = 4096         # most bytes of an answer that is not the medium's
    SCSI_SENSE_MAX = 20
    SCSI_LIST_MAX = 65535        # data_length of SCSI_PARAMETERS

ctypedef struct ScsiUnit:
    DiskRef *disk
    uint8_t id[16]               # of VPD 83
    uint8_t serial[64]           # ASCII; serial_length 0: no VPD 80
    uint32_t serial_length
    uint32_t max_transfer        # bytes of one request; 0: no limit
    bint strict_alloc            # storvsp.md 5.8
    bint discard                 # UNMAP is offered: the disk can trim
    uint32_t unit_attention      # ASC << 8 | ASCQ of the pending one (section 11), 0 none; taken by atomic exchange

ctypedef struct ScsiPlan:
    int action                   # ScsiAction
    bint fua                     # SCSI_WRITE: flush afterwards; SCSI_READ: flush first
    bint data_to_guest           # direction of data[] for SCSI_DONE
    uint64_t offset              # bytes on the disk
    uint32_t length              # bytes on the disk; SCSI_READ, SCSI_WRITE: as many of the buffer
    uint32_t buffer_length       # bytes of the request's buffer that the action uses: length, one block, or 0
    const uint8_t *extents       # SCSI_TRIM: descriptors inside the list that scsi_parameters was given
    uint32_t extent_count
    # the answer, filled by scsi_plan (SCSI_DONE) or scsi_finish
    uint8_t srb_status
    uint8_t scsi_status
    uint8_t sense_length         # 0: no sense
    uint8_t sense[20]
    uint32_t data_length         # bytes moved, or bytes in data
    uint8_t *data                # the caller's, SCSI_DATA_MAX bytes: set before scsi_plan

# cdb: 16 bytes, those beyond the CDB's length zero. buffer_length: bytes of the request's data buffer. data_in: the
# SRB's byte (0 = from the guest, else to the guest, 2 = none). Never touches the disk's media.
cdef void scsi_plan(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                    ScsiPlan *plan) noexcept nogil
# All media access that a plan can ask for (READ to VERIFY, TRIM, WRITE_SAME), blocking unless flags has DISK_NOWAIT:
# then DISK_WOULD_BLOCK for all but a read or a write that the disk can do at once. iov: at least buffer_length bytes of
# the request's buffer, for SCSI_READ and SCSI_WRITE exactly that many. A DiskStatus or MEDIA_MISCOMPARE, for
# scsi_finish.
cdef int scsi_media(const ScsiUnit *unit, const ScsiPlan *plan, const iovec *iov, int count,
                    uint32_t flags) noexcept nogil
# After the media access that the plan asked for: a DiskStatus or MEDIA_MISCOMPARE.
cdef void scsi_finish(ScsiUnit *unit, ScsiPlan *plan, int disk_status) noexcept nogil
# For SCSI_PARAMETERS, with the copied list (at most SCSI_LIST_MAX bytes). The plan then is SCSI_DONE or SCSI_TRIM, and
# SCSI_TRIM needs the copy until scsi_media returned.
cdef void scsi_parameters(ScsiUnit *unit, const uint8_t *cdb, const uint8_t *list, uint32_t length,
                          ScsiPlan *plan) noexcept nogil
# A command to a LUN that does not exist (storvsp.md 7), and REPORT LUNS, which the controller answers for any LUN:
# luns is a bitmap of 256 bits, lun n at bit n % 8 of byte n / 8.
cdef void scsi_absent(const uint8_t *cdb, uint8_t lun, uint32_t buffer_length, uint8_t data_in,
                      ScsiPlan *plan) noexcept nogil
cdef void scsi_report_luns(const uint8_t *luns, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                           bint strict_alloc, ScsiPlan *plan) noexcept nogil
# A plan that answers with CHECK CONDITION: sense key, ASC << 8 | ASCQ, SRB status (0x86, 0x84).
cdef void scsi_fail(ScsiPlan *plan, uint8_t srb_status, uint8_t key, uint16_t asc) noexcept nogil
# A plan that answers with these statuses and no sense: busy (05, 08), timeout (09, 08), aborted (02, 40), ...
cdef void scsi_refuse(ScsiPlan *plan, uint8_t srb_status, uint8_t scsi_status) noexcept nogil


cdef inline void scsi_attention(ScsiUnit *unit, uint32_t asc) noexcept nogil:
    """Sets the unit attention (section 11). One slot: a pending one of a lower ASC (29 is a reset) has priority."""
    cdef uint32_t before = exchange32(&unit.unit_attention, asc)
    if before != 0 and before < asc:
        exchange32(&unit.unit_attention, before)


cdef class Target:
    cdef ScsiUnit unit
    cdef readonly Backend image  # kept alive
    cdef list before             # as those that were there before it: a request may still be with them
