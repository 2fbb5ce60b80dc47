"""READ, WRITE, VERIFY and their kin, caches, power, for the SCSI target."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.scsi.cdb cimport be64
from hvcore.scsi.inquiry cimport COMPARE_WRITE_MAX
from hvcore.scsi.plan cimport (
    SCSI_COMPARE_WRITE, SCSI_FLUSH, SCSI_VERIFY, SCSI_WRITE, ScsiPlan, reject, reject_field, reject_write)
from hvcore.scsi.sense cimport ASC_LBA_OUT_OF_RANGE
from hvcore.scsi.unit cimport ScsiUnit, outside, trailing_zeros, unit_disk, unit_protected

cdef enum:
    BYTCHK_NONE = 0
    BYTCHK_BUFFER = 1
    BYTCHK_RESERVED = 2
    START_IMMEDIATE = 1          # START STOP UNIT: byte 1, then byte 4
    START_START = 1
    START_NO_FLUSH = 4


cdef void plan_write_verify(const ScsiUnit *unit, uint8_t bits, uint64_t lba, uint32_t blocks, uint32_t buffer_length,
                            uint8_t data_in, ScsiPlan *plan) noexcept nogil:
    """A write and a flush. What was just written compares equal, so BYTCHK asks for nothing more."""
    if (bits >> 1) & 3 >= BYTCHK_RESERVED:
        reject_field(plan)
        return
    plan_transfer(unit, SCSI_WRITE, (bits & (BITS_PROTECT | BITS_DPO | BITS_RELADR)) | BITS_FUA, lba, blocks,
                  buffer_length, data_in, plan)


cdef void plan_verify(const ScsiUnit *unit, uint8_t bits, uint64_t lba, uint32_t blocks, uint32_t buffer_length,
                      uint8_t data_in, ScsiPlan *plan) noexcept nogil:
    """Nothing but the range is checked without BYTCHK; else the media are compared with as many blocks, or one."""
    cdef uint32_t sector_size = unit_disk(unit).sector_size
    cdef uint8_t check = (bits >> 1) & 3
    cdef uint64_t length = <uint64_t> blocks * sector_size
    cdef uint64_t taken = length if check == BYTCHK_BUFFER else sector_size
    if bits & (BITS_PROTECT | BITS_RELADR) or check == BYTCHK_RESERVED:
        reject_field(plan)
        return
    if outside(unit_disk(unit), lba, blocks):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if blocks == 0 or check == BYTCHK_NONE:
        return
    # The limit also bounds the work of comparing one block with many.
    if taken > buffer_length or (unit.max_transfer and length > unit.max_transfer) or length > 0xFFFFFFFFU:
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if data_in != 0:
        reject_field(plan)
        return
    plan.action = SCSI_VERIFY
    plan.offset = lba * sector_size
    plan.length = <uint32_t> length
    plan.buffer_length = <uint32_t> taken


cdef void plan_compare_write(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                             ScsiPlan *plan) noexcept nogil:
    """The buffer holds what is expected, then as much to be written in its place."""
    cdef uint64_t lba = be64(cdb + 2)
    cdef uint32_t length = cdb[13] * unit_disk(unit).sector_size
    if cdb[1] & BITS_PROTECT:
        reject_field(plan)
    elif outside(unit_disk(unit), lba, cdb[13]):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
    elif length > COMPARE_WRITE_MAX or 2 * length > buffer_length:
        reject_field(plan)
    elif unit_protected(unit):
        reject_write(plan)
    elif length and data_in != 0:
        reject_field(plan)
    elif length:
        plan.action = SCSI_COMPARE_WRITE
        plan.fua = cdb[1] & BITS_FUA
        plan.offset = lba << trailing_zeros(unit_disk(unit).sector_size)
        plan.length = length
        plan.buffer_length = 2 * length


cdef inline void plan_flush(const ScsiUnit *unit, ScsiPlan *plan) noexcept nogil:
    # A disk that cannot be written has nothing to flush, and a backend refuses to.
    if not unit_disk(unit).read_only:
        plan.action = SCSI_FLUSH


cdef void plan_pre_fetch(const ScsiUnit *unit, uint64_t lba, uint32_t blocks, ScsiPlan *plan) noexcept nogil:
    """GOOD, which promises nothing; CONDITION MET would say that the blocks are in the cache."""
    if outside(unit_disk(unit), lba, blocks):
        reject(plan, ASC_LBA_OUT_OF_RANGE)


cdef void plan_synchronize(const ScsiUnit *unit, uint64_t lba, uint32_t blocks, ScsiPlan *plan) noexcept nogil:
    if outside(unit_disk(unit), lba, blocks):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    plan_flush(unit, plan)


cdef void plan_start_stop(const ScsiUnit *unit, const uint8_t *cdb, ScsiPlan *plan) noexcept nogil:
    """The disk goes on serving when it is stopped: an initiator that powers off need not know of the others."""
    # OpenVMM refuses to answer before the work is done; it may as well be done at once.
    if cdb[1] & START_IMMEDIATE and not unit.extensions:
        reject_field(plan)
    elif cdb[4] & (START_START | START_NO_FLUSH) == 0:
        plan_flush(unit, plan)
