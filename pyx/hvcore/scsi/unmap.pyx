"""UNMAP and WRITE SAME, for the SCSI target."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.disk.ops cimport DiskRef
from hvcore.scsi.cdb cimport be16, be32, be64
from hvcore.scsi.inquiry cimport WRITE_SAME_MAX
from hvcore.scsi.plan cimport (
    SCSI_TRIM, SCSI_WRITE_SAME, ScsiPlan, plan_parameters, reject, reject_field, reject_write)
from hvcore.scsi.sense cimport (
    ASC_INVALID_FIELD_IN_CDB, ASC_INVALID_FIELD_IN_LIST, ASC_INVALID_OPCODE, ASC_LBA_OUT_OF_RANGE)
from hvcore.scsi.unit cimport ScsiUnit, outside, unit_blocks, unit_disk, unit_protected

cdef enum:
    BITS_NDOB = 0x01             # WRITE SAME(16), byte 1: no data-out buffer; RELADR in the (10) form
    BITS_UNMAP = 0x08


cdef void plan_unmap(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                     ScsiPlan *plan) noexcept nogil:
    cdef uint32_t length = be16(cdb + 7)
    if unit_protected(unit):
        reject_write(plan)
    elif not unit.discard:
        reject(plan, ASC_INVALID_OPCODE)
    elif cdb[1] & 1 or 0 < length < 8:       # ANCHOR
        reject_field(plan)
    else:
        plan_parameters(length, buffer_length, data_in, ASC_INVALID_FIELD_IN_CDB, plan)


cdef void unmap_parameters(const ScsiUnit *unit, const uint8_t *list, uint32_t length, ScsiPlan *plan) noexcept nogil:
    """All descriptors are checked before any is acted on (9.8). A list of 65535 bytes has fewer than 4096."""
    cdef uint32_t i
    cdef const uint8_t *extent
    if be16(list) != length - 2:
        reject_field(plan)
        return
    if be16(list + 2) != length - 8 or (length - 8) % 16 != 0:
        reject(plan, ASC_INVALID_FIELD_IN_LIST)
        return
    for i in range((length - 8) // 16):
        extent = list + 8 + 16 * i
        if be32(extent + 8) != 0 and outside(unit_disk(unit), be64(extent), be32(extent + 8)):
            reject(plan, ASC_LBA_OUT_OF_RANGE)
            return
    plan.action = SCSI_TRIM
    plan.extents = list + 8
    plan.extent_count = (length - 8) // 16


cdef void plan_write_same(const ScsiUnit *unit, uint8_t bits, bint sixteen, uint64_t lba, uint64_t blocks,
                          uint32_t buffer_length, uint8_t data_in, ScsiPlan *plan) noexcept nogil:
    cdef const DiskRef *disk = unit_disk(unit)
    cdef uint32_t sector_size = disk.sector_size
    cdef uint64_t capacity = unit_blocks(disk)
    cdef bint zeros = sixteen and bits & BITS_NDOB
    cdef uint8_t offered = BITS_NDOB if sixteen else 0
    if unit_protected(unit):
        reject_write(plan)
        return
    if unit.discard and unit.extensions:     # LBPWS, LBPWS10
        offered |= BITS_UNMAP
    if bits & ~offered:                      # protection, ANCHOR, LBDATA and PBDATA, RELADR
        reject_field(plan)
        return
    if lba >= capacity or capacity - lba < blocks:
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if blocks == 0:
        blocks = capacity - lba
    if blocks > WRITE_SAME_MAX // sector_size or (not zeros and (buffer_length < sector_size or data_in != 0)):
        reject_field(plan)
        return
    plan.action = SCSI_WRITE_SAME
    plan.trim = bits & BITS_UNMAP != 0
    plan.offset = lba * sector_size
    plan.length = <uint32_t> (blocks * sector_size)
    plan.buffer_length = 0 if zeros else sector_size
