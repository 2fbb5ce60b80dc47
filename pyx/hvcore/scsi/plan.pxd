# What a command asks for, and its answer: the plan that the parts of the SCSI engine fill (storvsp.md 5, 10).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.scsi.sense cimport (
    ASC_INVALID_FIELD_IN_CDB, ASC_WRITE_PROTECTED, KEY_DATA_PROTECT, KEY_ILLEGAL_REQUEST)
from hvcore.scsi.srb cimport (
    SCSI_GOOD, SRB_AUTOSENSE_VALID, SRB_DATA_OVERRUN, SRB_ERROR, SRB_INVALID_REQUEST, SRB_SUCCESS)

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
    SCSI_COMPARE_WRITE = 9       # write the buffer's second half if the media equal the first: scsi_media

cdef enum:
    SCSI_DATA_MAX = 4096         # most bytes of an answer that is not the medium's
    SCSI_SENSE_MAX = 20
    SCSI_LIST_MAX = 65535        # data_length of SCSI_PARAMETERS

cdef enum:
    REJECTED = SRB_INVALID_REQUEST | SRB_AUTOSENSE_VALID     # 0x86: found in the CDB
    FAILED = SRB_ERROR | SRB_AUTOSENSE_VALID                 # 0x84: found by the device
    OVERRUN = SRB_DATA_OVERRUN | SRB_AUTOSENSE_VALID         # 0x92

ctypedef struct ScsiPlan:
    int action                   # ScsiAction
    bint fua                     # SCSI_WRITE: flush afterwards; SCSI_READ: flush first
    bint trim                    # SCSI_WRITE_SAME: a block of zeros may be discarded instead
    bint data_to_guest           # direction of data[] for SCSI_DONE
    uint64_t offset              # bytes on the disk
    uint32_t length              # bytes on the disk; SCSI_READ, SCSI_WRITE: as many of the buffer
    uint32_t buffer_length       # bytes of the request's buffer that the action uses: length, one block, or 0
    uint32_t epoch               # of the unit when the command was planned: see ScsiUnit
    uint32_t mismatch            # SCSI_VERIFY, SCSI_COMPARE_WRITE: the first byte of the buffer that differs
    const uint8_t *extents       # SCSI_TRIM: descriptors inside the list that scsi_parameters was given
    uint32_t extent_count
    # the answer, filled by scsi_plan (SCSI_DONE) or scsi_finish
    uint8_t srb_status
    uint8_t scsi_status
    uint8_t sense_length         # 0: no sense
    uint8_t sense[20]
    uint32_t data_length         # bytes moved, or bytes in data
    uint8_t *data                # the caller's, SCSI_DATA_MAX bytes: set before scsi_plan

# A plan that answers with CHECK CONDITION: sense key, ASC << 8 | ASCQ, SRB status (0x86, 0x84).
cdef void scsi_fail(ScsiPlan *plan, uint8_t srb_status, uint8_t key, uint16_t asc) noexcept nogil
# A plan that answers with these statuses and no sense: busy (05, 08), timeout (09, 08), conflict (04, 18), ...
cdef void scsi_refuse(ScsiPlan *plan, uint8_t srb_status, uint8_t scsi_status) noexcept nogil
# GOOD with min(available, allocation, buffer) bytes of data[] (5.8); the direction counts if bytes move (5.3).
cdef void answer_data(ScsiPlan *plan, uint32_t available, uint32_t allocation, uint32_t buffer_length,
                      uint8_t data_in) noexcept nogil
# Asks for a parameter list of `length` bytes; `mismatch` is the ASC for a length that is not the buffer's (5.8).
cdef void plan_parameters(uint32_t length, uint32_t buffer_length, uint8_t data_in, uint32_t mismatch,
                          ScsiPlan *plan) noexcept nogil


cdef inline void plan_begin(ScsiPlan *plan) noexcept nogil:
    """GOOD with nothing moved. data[] and sense[] stay as they are: their lengths are 0; so does what single actions
    alone use."""
    plan.action = SCSI_DONE
    plan.fua = False
    plan.data_to_guest = False
    plan.offset = 0
    plan.length = 0
    plan.buffer_length = 0
    plan.srb_status = SRB_SUCCESS
    plan.scsi_status = SCSI_GOOD
    plan.sense_length = 0
    plan.data_length = 0


cdef inline void reject(ScsiPlan *plan, uint32_t asc) noexcept nogil:
    scsi_fail(plan, REJECTED, KEY_ILLEGAL_REQUEST, <uint16_t> asc)


cdef inline void reject_field(ScsiPlan *plan) noexcept nogil:
    reject(plan, ASC_INVALID_FIELD_IN_CDB)


cdef inline void reject_write(ScsiPlan *plan) noexcept nogil:
    scsi_fail(plan, FAILED, KEY_DATA_PROTECT, ASC_WRITE_PROTECTED)
