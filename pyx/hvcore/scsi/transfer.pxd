# READ, WRITE, VERIFY and their kin, caches, power (storvsp.md 9.6, 9.7).

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cimport cython

from hvcore.disk.ops cimport DiskRef
from hvcore.linux.syscalls cimport iovec
from hvcore.scsi.plan cimport SCSI_WRITE, ScsiPlan, reject, reject_field, reject_write
from hvcore.scsi.sense cimport ASC_LBA_OUT_OF_RANGE
from hvcore.scsi.unit cimport ScsiUnit, outside, trailing_zeros, unit_disk, unit_protected

cdef enum:
    BITS_RELADR = 0x01           # byte 1 of the CDB
    BITS_FUA = 0x08
    BITS_DPO = 0x10
    BITS_PROTECT = 0xE0


cdef inline void plan_transfer(const ScsiUnit *unit, int action, uint8_t bits, uint64_t lba, uint32_t blocks,
                               uint32_t buffer_length, uint8_t data_in, ScsiPlan *plan) noexcept nogil:
    """READ and WRITE of every size, in the order of 9.6. bits: byte 1 of the CDB; 0 for the (6) forms."""
    cdef const DiskRef *disk = unit_disk(unit)
    cdef uint64_t length = <uint64_t> blocks << trailing_zeros(disk.sector_size)
    if cython.unlikely(bits & (BITS_PROTECT | BITS_RELADR)):
        reject_field(plan)
        return
    if cython.unlikely(outside(disk, lba, blocks)):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if cython.unlikely(blocks == 0):
        return
    if cython.unlikely(length > buffer_length):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if cython.unlikely(action == SCSI_WRITE and unit_protected(unit)):
        reject_write(plan)
        return
    if cython.unlikely((data_in == 0) != (action == SCSI_WRITE)):
        reject_field(plan)
        return
    plan.action = action
    plan.fua = bits & BITS_FUA and not disk.read_only
    plan.offset = lba << trailing_zeros(disk.sector_size)
    plan.length = <uint32_t> length
    plan.buffer_length = <uint32_t> length


cdef void plan_write_verify(const ScsiUnit *unit, uint8_t bits, uint64_t lba, uint32_t blocks, uint32_t buffer_length,
                            uint8_t data_in, ScsiPlan *plan) noexcept nogil
cdef void plan_verify(const ScsiUnit *unit, uint8_t bits, uint64_t lba, uint32_t blocks, uint32_t buffer_length,
                      uint8_t data_in, ScsiPlan *plan) noexcept nogil
cdef void plan_compare_write(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                             ScsiPlan *plan) noexcept nogil
cdef void plan_pre_fetch(const ScsiUnit *unit, uint64_t lba, uint32_t blocks, ScsiPlan *plan) noexcept nogil
cdef void plan_synchronize(const ScsiUnit *unit, uint64_t lba, uint32_t blocks, ScsiPlan *plan) noexcept nogil
cdef void plan_start_stop(const ScsiUnit *unit, const uint8_t *cdb, ScsiPlan *plan) noexcept nogil
