"""How large a disk is, what of it takes space, and which LUNs there are, for the SCSI target."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from hvcore.disk.ops cimport DISK_OK, DISK_RANGE, DiskRef, disk_status
from hvcore.scsi.cdb cimport be32, be64, put_be32, put_be64
from hvcore.scsi.plan cimport (
    OVERRUN, SCSI_ANSWER, SCSI_DATA_MAX, ScsiPlan, answer_data, plan_begin, reject, reject_field, scsi_fail)
from hvcore.scsi.sense cimport ASC_INVALID_FIELD_IN_CDB, ASC_LBA_OUT_OF_RANGE, KEY_ILLEGAL_REQUEST
from hvcore.scsi.unit cimport ScsiUnit, outside, too_much, trailing_zeros, unit_blocks, unit_disk

cdef enum:
    LBPME = 0x80                 # READ CAPACITY(16), byte 14: blocks can be discarded, ...
    LBPRZ = 0x40                 # ... and then read as zeros
    STATUS_HEADER = 8            # of GET LBA STATUS' answer
    STATUS_BYTES = 16            # of one descriptor
    STATUS_STEPS = 1024          # questions to the disk for one answer
    DEALLOCATED = 1              # provisioning status


cdef inline uint64_t last_lba(const DiskRef *disk) noexcept nogil:
    cdef uint64_t blocks = unit_blocks(disk)
    return blocks - 1 if blocks else 0


cdef inline bint partial_medium(const ScsiUnit *unit, bint partial, uint64_t lba) noexcept nogil:
    """Without PMI the LBA is 0; OpenVMM does not look (9.4)."""
    return unit.extensions and not partial and lba != 0


cdef void plan_read_capacity10(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                               ScsiPlan *plan) noexcept nogil:
    cdef uint64_t last = last_lba(unit_disk(unit))
    if buffer_length < 8:
        scsi_fail(plan, OVERRUN, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB)
        return
    if partial_medium(unit, cdb[8] & 1, be32(cdb + 2)):
        reject_field(plan)
        return
    put_be32(plan.data, 0xFFFFFFFFU if last > 0xFFFFFFFFU else <uint32_t> last)
    put_be32(plan.data + 4, unit_disk(unit).sector_size)
    answer_data(plan, 8, 8, buffer_length, data_in)


cdef void plan_read_capacity16(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                               ScsiPlan *plan) noexcept nogil:
    cdef const DiskRef *disk = unit_disk(unit)
    cdef uint32_t allocation = be32(cdb + 10)
    if allocation and buffer_length < 12:
        scsi_fail(plan, OVERRUN, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB)
        return
    if partial_medium(unit, cdb[14] & 1, be64(cdb + 2)):
        reject_field(plan)
        return
    memset(plan.data, 0, 32)
    put_be64(plan.data, last_lba(disk))
    put_be32(plan.data + 8, disk.sector_size)
    if disk.physical_sector_size > disk.sector_size:
        plan.data[13] = <uint8_t> (trailing_zeros(disk.physical_sector_size) - trailing_zeros(disk.sector_size)) & 0x0F
    if unit.discard:
        plan.data[14] = LBPME | LBPRZ if unit.extensions else LBPME
    answer_data(plan, 32, allocation, buffer_length, data_in)


cdef void plan_lba_status(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                          ScsiPlan *plan) noexcept nogil:
    cdef uint64_t lba = be64(cdb + 2)
    cdef uint32_t allocation = be32(cdb + 10)
    if outside(unit_disk(unit), lba, 0):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if allocation < STATUS_HEADER + STATUS_BYTES or too_much(unit, allocation, buffer_length):
        reject_field(plan)
        return
    answer_data(plan, SCSI_DATA_MAX, allocation, buffer_length, data_in)
    if plan.data_length:
        plan.action = SCSI_ANSWER
        plan.offset = lba << trailing_zeros(unit_disk(unit).sector_size)


cdef int64_t block_status(const DiskRef *disk, uint64_t offset, uint64_t left, bint *mapped) noexcept nogil:
    """Whole blocks from `offset` on that are alike, in bytes: a block of which a part takes space takes space."""
    cdef int64_t found = disk_status(disk, offset, left, mapped)
    if found <= 0:
        return found if found < 0 else DISK_RANGE
    if found % disk.sector_size:
        if not mapped[0] and found > disk.sector_size:
            return found - found % disk.sector_size
        mapped[0] = True
        found += disk.sector_size - found % disk.sector_size
    return found


cdef int media_lba_status(const DiskRef *disk, ScsiPlan *plan) noexcept nogil:
    cdef uint8_t *data = plan.data
    cdef uint8_t *last = NULL
    cdef uint32_t shift = trailing_zeros(disk.sector_size), room = plan.data_length, used = STATUS_HEADER, steps = 0
    cdef uint64_t offset = plan.offset, end = unit_blocks(disk) << shift, blocks
    cdef int64_t found = 0
    cdef bint mapped = True, before = True
    # Each answer of the disk is a piece; equal neighbours become one descriptor. Who wants more asks again from there.
    while offset < end and steps < STATUS_STEPS:
        found = block_status(disk, offset, end - offset, &mapped)
        if found < 0:
            break
        blocks = <uint64_t> found >> shift
        if last != NULL and mapped == before and blocks + be32(last + 8) <= 0xFFFFFFFFU:
            put_be32(last + 8, be32(last + 8) + <uint32_t> blocks)
        else:
            if room - used < STATUS_BYTES:
                break
            last = data + used
            used += STATUS_BYTES
            if blocks > 0xFFFFFFFFU:
                blocks = 0xFFFFFFFFU
            memset(last, 0, STATUS_BYTES)
            put_be64(last, offset >> shift)
            put_be32(last + 8, <uint32_t> blocks)
            last[12] = 0 if mapped else DEALLOCATED
            before = mapped
        offset += blocks << shift
        steps += 1
    if last == NULL:                         # nothing is known, or the disk ends before this now
        return <int> found if found < 0 else DISK_RANGE
    put_be32(data, used - 4)
    put_be32(data + 4, 0)
    plan.data_length = used
    return DISK_OK


cdef void scsi_report_luns(const uint8_t *luns, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                           bint strict_alloc, ScsiPlan *plan) noexcept nogil:
    cdef uint32_t allocation = be32(cdb + 6)
    cdef uint32_t available = 8
    cdef int lun
    plan_begin(plan)
    if cdb[2] > 2:
        reject_field(plan)
        return
    if cdb[2] != 1:                          # 1: well-known LUNs, of which there are none
        for lun in range(256):
            if luns[lun >> 3] & (1 << (lun & 7)):
                memset(plan.data + available, 0, 8)
                plan.data[available + 1] = <uint8_t> lun
                available += 8
    put_be32(plan.data, available - 8)
    put_be32(plan.data + 4, 0)
    # A piece of the header tells nothing: OpenVMM moves none of it.
    if strict_alloc and (buffer_length < 8 or allocation < 8):
        allocation = 0
    answer_data(plan, available, allocation, buffer_length, data_in)
