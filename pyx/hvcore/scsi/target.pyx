"""The SCSI engine without a bus: what each CDB means for a disk (storvsp.md sections 5 to 11)."""

import hashlib

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.disk.ops cimport (
    DISK_CLOSED, DISK_NO_SPACE, DISK_NOWAIT, DISK_OK, DISK_RANGE, DISK_READ_ERROR, DISK_READ_ONLY, DISK_UNSUPPORTED,
    DISK_WOULD_BLOCK, DISK_WRITE_ERROR, Backend, DiskRef, disk_flush, disk_read, disk_write)
from hvcore.linux.atomics cimport exchange32, load_relaxed32, store_release64
from hvcore.linux.syscalls cimport iovec
from hvcore.scsi.cdb cimport *
from hvcore.scsi.inquiry cimport (
    SERIAL_MAX, WRITE_SAME_MAX, inquiry_absent, inquiry_page, inquiry_standard)
from hvcore.scsi.media cimport MEDIA_MISCOMPARE, media_compare, media_write_same
from hvcore.scsi.mode cimport MODE_SAVED, mode_has, mode_header, mode_select, mode_sense
from hvcore.scsi.sense cimport *
from hvcore.scsi.srb cimport *

from hvcore.scsi.result import MediaAccess, ScsiResult

cdef dict ACTIONS = {
    SCSI_READ: "read", SCSI_WRITE: "write", SCSI_FLUSH: "flush", SCSI_VERIFY: "verify", SCSI_PARAMETERS: "parameters",
    SCSI_TRIM: "trim", SCSI_WRITE_SAME: "write same",
}

cdef extern from *:
    int trailing_zeros "__builtin_ctz"(unsigned int value) noexcept nogil

cdef enum:
    REJECTED = SRB_INVALID_REQUEST | SRB_AUTOSENSE_VALID     # 0x86: found in the CDB
    FAILED = SRB_ERROR | SRB_AUTOSENSE_VALID                 # 0x84: found by the device
    OVERRUN = SRB_DATA_OVERRUN | SRB_AUTOSENSE_VALID         # 0x92

cdef enum:
    BYTCHK_NONE = 0
    BYTCHK_BUFFER = 1
    BYTCHK_RESERVED = 2


# ---- answers

cdef inline void plan_begin(ScsiPlan *plan) noexcept nogil:
    """GOOD with nothing moved. data[] and sense[] stay as they are: their lengths are 0."""
    plan.action = SCSI_DONE
    plan.fua = False
    plan.data_to_guest = False
    plan.offset = 0
    plan.length = 0
    plan.buffer_length = 0
    plan.extents = NULL
    plan.extent_count = 0
    plan.srb_status = SRB_SUCCESS
    plan.scsi_status = SCSI_GOOD
    plan.sense_length = 0
    plan.data_length = 0


cdef void scsi_refuse(ScsiPlan *plan, uint8_t srb_status, uint8_t scsi_status) noexcept nogil:
    plan_begin(plan)
    plan.srb_status = srb_status
    plan.scsi_status = scsi_status


cdef void scsi_fail(ScsiPlan *plan, uint8_t srb_status, uint8_t key, uint16_t asc) noexcept nogil:
    plan_begin(plan)
    plan.srb_status = srb_status
    plan.scsi_status = SCSI_CHECK_CONDITION
    plan.sense_length = SENSE_BYTES
    sense_fixed(plan.sense, key, asc)


cdef inline void reject(ScsiPlan *plan, uint32_t asc) noexcept nogil:
    scsi_fail(plan, REJECTED, KEY_ILLEGAL_REQUEST, <uint16_t> asc)


cdef inline void reject_write(ScsiPlan *plan) noexcept nogil:
    scsi_fail(plan, FAILED, KEY_DATA_PROTECT, ASC_WRITE_PROTECTED)


cdef void answer_data(ScsiPlan *plan, uint32_t available, uint32_t allocation, uint32_t buffer_length,
                      uint8_t data_in) noexcept nogil:
    """GOOD with min(available, allocation, buffer) bytes of data[] (5.8); the direction counts if bytes move (5.3)."""
    cdef uint32_t n = available if available < allocation else allocation
    if n > buffer_length:
        n = buffer_length
    if n and data_in == 0:
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    plan.data_to_guest = True
    plan.data_length = n


# ---- commands that answer from the unit's description

cdef void plan_inquiry(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                       ScsiPlan *plan) noexcept nogil:
    cdef uint32_t allocation = be16(cdb + 3)
    cdef uint32_t available
    cdef bint vital = cdb[1] & 1
    if cdb[1] & 2 or (not vital and cdb[2] != 0):
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    if unit.strict_alloc and (allocation > buffer_length or (not vital and allocation < 5)):
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    if vital:
        available = inquiry_page(unit.disk, unit.id, unit.serial, unit.serial_length, unit.max_transfer,
                                 unit.discard, cdb[2], plan.data)
    else:
        available = inquiry_standard(plan.data)
    if available == 0:
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    answer_data(plan, available, allocation, buffer_length, data_in)


cdef void plan_request_sense(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                             ScsiPlan *plan) noexcept nogil:
    cdef uint32_t allocation = cdb[4]
    cdef uint32_t attention
    # descriptor-format sense does not exist here (6)
    if cdb[1] & 1 or (unit.strict_alloc and (allocation < 8 or allocation > buffer_length)):
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    sense_fixed(plan.data, KEY_NO_SENSE, ASC_NONE)
    answer_data(plan, SENSE_BYTES, allocation, buffer_length, data_in)
    if plan.data_length == 0:
        return
    attention = exchange32(&unit.unit_attention, 0)
    if attention:
        sense_fixed(plan.data, KEY_UNIT_ATTENTION, attention)


cdef void plan_mode_sense(const ScsiUnit *unit, const uint8_t *cdb, bint ten, uint32_t buffer_length, uint8_t data_in,
                          ScsiPlan *plan) noexcept nogil:
    cdef uint32_t allocation = be16(cdb + 7) if ten else cdb[4]
    cdef uint8_t control = cdb[2] >> 6
    if not mode_has(cdb[2] & 0x3F, cdb[3]):
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    if control == MODE_SAVED:
        reject(plan, ASC_SAVING_NOT_SUPPORTED)
        return
    # without a buffer: GOOD, nothing moved (5.8)
    if unit.strict_alloc and buffer_length and (allocation > buffer_length or 0 < allocation < mode_header(ten)):
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    answer_data(plan, mode_sense(ten, control, unit.disk.read_only, plan.data), allocation, buffer_length, data_in)


cdef inline uint64_t last_lba(const DiskRef *disk) noexcept nogil:
    cdef uint64_t blocks = disk.size_bytes >> trailing_zeros(disk.sector_size)
    return blocks - 1 if blocks else 0


cdef void plan_read_capacity10(const ScsiUnit *unit, uint32_t buffer_length, uint8_t data_in,
                               ScsiPlan *plan) noexcept nogil:
    cdef uint64_t last = last_lba(unit.disk)
    if buffer_length < 8:
        scsi_fail(plan, OVERRUN, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB)
        return
    put_be32(plan.data, 0xFFFFFFFFU if last > 0xFFFFFFFFU else <uint32_t> last)
    put_be32(plan.data + 4, unit.disk.sector_size)
    answer_data(plan, 8, 8, buffer_length, data_in)


cdef void plan_read_capacity16(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                               ScsiPlan *plan) noexcept nogil:
    cdef const DiskRef *disk = unit.disk
    cdef uint32_t allocation = be32(cdb + 10)
    if allocation and buffer_length < 12:
        scsi_fail(plan, OVERRUN, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB)
        return
    memset(plan.data, 0, 32)
    put_be64(plan.data, last_lba(disk))
    put_be32(plan.data + 8, disk.sector_size)
    if disk.physical_sector_size > disk.sector_size:
        plan.data[13] = <uint8_t> (trailing_zeros(disk.physical_sector_size) - trailing_zeros(disk.sector_size)) & 0x0F
    if unit.discard:
        plan.data[14] = 0x80                 # LBPME; discarded blocks are not promised to read as zeros
    answer_data(plan, 32, allocation, buffer_length, data_in)


cdef void scsi_report_luns(const uint8_t *luns, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                           bint strict_alloc, ScsiPlan *plan) noexcept nogil:
    cdef uint32_t allocation = be32(cdb + 6)
    cdef uint32_t available = 8
    cdef int lun
    plan_begin(plan)
    if cdb[2] > 2:
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
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


cdef void scsi_absent(const uint8_t *cdb, uint8_t lun, uint32_t buffer_length, uint8_t data_in,
                      ScsiPlan *plan) noexcept nogil:
    cdef uint32_t allocation
    plan_begin(plan)
    if cdb[0] != CDB_INQUIRY:
        scsi_refuse(plan, SRB_INVALID_LUN, SCSI_CHECK_CONDITION)
        return
    allocation = be16(cdb + 3)
    if cdb[1] & 3 or cdb[2] != 0 or allocation < 5 or allocation > buffer_length:
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    answer_data(plan, inquiry_absent(lun == 0, plan.data), allocation, buffer_length, data_in)


# ---- commands on the medium

cdef inline bint outside(const DiskRef *disk, uint64_t lba, uint64_t blocks) noexcept nogil:
    """Compared by subtraction: lba + blocks could wrap."""
    cdef uint64_t capacity = disk.size_bytes >> trailing_zeros(disk.sector_size)
    return lba >= capacity or capacity - lba < blocks


cdef inline void plan_transfer(const ScsiUnit *unit, int action, uint8_t bits, uint64_t lba, uint32_t blocks,
                               uint32_t buffer_length, uint8_t data_in, ScsiPlan *plan) noexcept nogil:
    """READ and WRITE of every size, in the order of 9.6. bits: byte 1 of the CDB; 0 for the (6) forms."""
    cdef const DiskRef *disk = unit.disk
    cdef uint64_t length = <uint64_t> blocks << trailing_zeros(disk.sector_size)
    if cython.unlikely(bits & 0xE1):         # RELADR, protection
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    if cython.unlikely(outside(disk, lba, blocks)):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if cython.unlikely(blocks == 0):
        return
    if cython.unlikely(length > buffer_length):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if cython.unlikely(action == SCSI_WRITE and disk.read_only):
        reject_write(plan)
        return
    if cython.unlikely((data_in == 0) != (action == SCSI_WRITE)):
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    plan.action = action
    plan.fua = bits & 8 and not disk.read_only
    plan.offset = lba << trailing_zeros(disk.sector_size)
    plan.length = <uint32_t> length
    plan.buffer_length = <uint32_t> length


cdef void plan_write_verify(const ScsiUnit *unit, uint8_t bits, uint64_t lba, uint32_t blocks, uint32_t buffer_length,
                            uint8_t data_in, ScsiPlan *plan) noexcept nogil:
    """A write and a flush. What was just written compares equal, so BYTCHK asks for nothing more."""
    if (bits >> 1) & 3 >= BYTCHK_RESERVED:
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    plan_transfer(unit, SCSI_WRITE, (bits & 0xF1) | 8, lba, blocks, buffer_length, data_in, plan)


cdef void plan_verify(const ScsiUnit *unit, uint8_t bits, uint64_t lba, uint32_t blocks, uint32_t buffer_length,
                      uint8_t data_in, ScsiPlan *plan) noexcept nogil:
    cdef uint32_t sector_size = unit.disk.sector_size
    cdef uint8_t check = (bits >> 1) & 3
    cdef uint64_t length = <uint64_t> blocks * sector_size
    cdef uint64_t taken = length if check == BYTCHK_BUFFER else sector_size
    if bits & 0xE1 or check == BYTCHK_RESERVED:
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    if outside(unit.disk, lba, blocks):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if blocks == 0 or check == BYTCHK_NONE:
        return
    # The limit also bounds the work of comparing one block with many.
    if taken > buffer_length or (unit.max_transfer and length > unit.max_transfer) or length > 0xFFFFFFFFU:
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if data_in != 0:
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    plan.action = SCSI_VERIFY
    plan.offset = lba * sector_size
    plan.length = <uint32_t> length
    plan.buffer_length = <uint32_t> taken


cdef void plan_write_same(const ScsiUnit *unit, uint8_t bits, bint sixteen, uint64_t lba, uint64_t blocks,
                          uint32_t buffer_length, uint8_t data_in, ScsiPlan *plan) noexcept nogil:
    cdef const DiskRef *disk = unit.disk
    cdef uint32_t sector_size = disk.sector_size
    cdef bint zeros = sixteen and bits & 1
    if disk.read_only:
        reject_write(plan)
        return
    # Protection, ANCHOR, UNMAP (only LBPU is advertised), LBDATA and PBDATA; in the (10) form bit 0 is RELADR.
    if bits & 0xFE or (bits & 1 and not sixteen):
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    if outside(disk, lba, blocks):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    if blocks == 0:
        blocks = last_lba(disk) - lba + 1
    if blocks > WRITE_SAME_MAX // sector_size or (not zeros and (buffer_length < sector_size or data_in != 0)):
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    plan.action = SCSI_WRITE_SAME
    plan.offset = lba * sector_size
    plan.length = <uint32_t> (blocks * sector_size)
    plan.buffer_length = 0 if zeros else sector_size


cdef inline void plan_flush(const ScsiUnit *unit, ScsiPlan *plan) noexcept nogil:
    # A disk that cannot be written has nothing to flush, and a backend refuses to.
    if not unit.disk.read_only:
        plan.action = SCSI_FLUSH


cdef void plan_synchronize(const ScsiUnit *unit, uint64_t lba, uint32_t blocks, ScsiPlan *plan) noexcept nogil:
    if outside(unit.disk, lba, blocks):
        reject(plan, ASC_LBA_OUT_OF_RANGE)
        return
    plan_flush(unit, plan)


cdef void plan_start_stop(const ScsiUnit *unit, const uint8_t *cdb, ScsiPlan *plan) noexcept nogil:
    if cdb[1] & 1:                           # IMMED
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
    elif cdb[4] & 5 == 0:                    # neither START nor NO_FLUSH
        plan_flush(unit, plan)


# ---- commands with a parameter list

cdef void plan_parameters(uint32_t length, uint32_t buffer_length, uint8_t data_in, uint32_t mismatch,
                          ScsiPlan *plan) noexcept nogil:
    """Asks for the list; `mismatch` is the ASC for a list length that is not the buffer's (5.8)."""
    if length == 0:
        return
    if length != buffer_length:
        reject(plan, mismatch)
        return
    if data_in != 0:
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    plan.action = SCSI_PARAMETERS
    plan.buffer_length = length
    plan.data_length = length


cdef void plan_mode_select(const uint8_t *cdb, bint ten, uint32_t buffer_length, uint8_t data_in,
                           ScsiPlan *plan) noexcept nogil:
    cdef uint32_t length = be16(cdb + 7) if ten else cdb[4]
    # SP: there is nowhere to save pages to. Without PF the pages would be of no known format.
    if cdb[1] & 1 or (cdb[1] & 0x10 == 0 and length > mode_header(ten)):
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    plan_parameters(length, buffer_length, data_in, ASC_PARAMETER_LIST_LENGTH, plan)


cdef void plan_unmap(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                     ScsiPlan *plan) noexcept nogil:
    cdef uint32_t length = be16(cdb + 7)
    if unit.disk.read_only:
        reject_write(plan)
    elif not unit.discard:
        reject(plan, ASC_INVALID_OPCODE)
    elif cdb[1] & 1 or 0 < length < 8:       # ANCHOR
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
    else:
        plan_parameters(length, buffer_length, data_in, ASC_INVALID_FIELD_IN_CDB, plan)


cdef void unmap_parameters(const ScsiUnit *unit, const uint8_t *list, uint32_t length, ScsiPlan *plan) noexcept nogil:
    """All descriptors are checked before any is acted on (9.8). A list of 65535 bytes has fewer than 4096."""
    cdef uint32_t i
    cdef const uint8_t *extent
    if be16(list) != length - 2:
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    if be16(list + 2) != length - 8 or (length - 8) % 16 != 0:
        reject(plan, ASC_INVALID_FIELD_IN_LIST)
        return
    for i in range((length - 8) // 16):
        extent = list + 8 + 16 * i
        if be32(extent + 8) != 0 and outside(unit.disk, be64(extent), be32(extent + 8)):
            reject(plan, ASC_LBA_OUT_OF_RANGE)
            return
    plan.action = SCSI_TRIM
    plan.extents = list + 8
    plan.extent_count = (length - 8) // 16


cdef void scsi_parameters(ScsiUnit *unit, const uint8_t *cdb, const uint8_t *list, uint32_t length,
                          ScsiPlan *plan) noexcept nogil:
    cdef uint32_t asc
    plan.action = SCSI_DONE
    if cdb[0] == CDB_UNMAP:
        unmap_parameters(unit, list, length, plan)
        return
    asc = mode_select(cdb[0] == CDB_MODE_SELECT10, unit.disk.read_only, list, length)
    if asc:
        reject(plan, asc)


# ---- the three steps

cdef inline uint32_t lba21(const uint8_t *cdb) noexcept nogil:
    """Of the (6) forms: what lies above it in byte 1 is ignored."""
    return be32(cdb) & 0x1FFFFF


cdef void scsi_plan(ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                    ScsiPlan *plan) noexcept nogil:
    cdef uint8_t op = cdb[0]
    cdef uint32_t attention
    cdef uint8_t lun_zero[32]
    plan_begin(plan)
    if cython.unlikely(unit.max_transfer != 0 and buffer_length > unit.max_transfer):     # 5.3, check 6
        reject(plan, ASC_INVALID_FIELD_IN_CDB)
        return
    # The slot is read before it is exchanged: the common case costs no locked instruction. Taken by one command only,
    # which is then not executed (11).
    if cython.unlikely(load_relaxed32(&unit.unit_attention) != 0):
        if op != CDB_INQUIRY and op != CDB_REPORT_LUNS and op != CDB_REQUEST_SENSE:
            attention = exchange32(&unit.unit_attention, 0)
            if attention:
                scsi_fail(plan, FAILED, KEY_UNIT_ATTENTION, <uint16_t> attention)
                return
    if op == CDB_READ10:
        plan_transfer(unit, SCSI_READ, cdb[1], be32(cdb + 2), be16(cdb + 7), buffer_length, data_in, plan)
    elif op == CDB_WRITE10:
        plan_transfer(unit, SCSI_WRITE, cdb[1], be32(cdb + 2), be16(cdb + 7), buffer_length, data_in, plan)
    elif op == CDB_READ16:
        plan_transfer(unit, SCSI_READ, cdb[1], be64(cdb + 2), be32(cdb + 10), buffer_length, data_in, plan)
    elif op == CDB_WRITE16:
        plan_transfer(unit, SCSI_WRITE, cdb[1], be64(cdb + 2), be32(cdb + 10), buffer_length, data_in, plan)
    elif op == CDB_READ12:
        plan_transfer(unit, SCSI_READ, cdb[1], be32(cdb + 2), be32(cdb + 6), buffer_length, data_in, plan)
    elif op == CDB_WRITE12:
        plan_transfer(unit, SCSI_WRITE, cdb[1], be32(cdb + 2), be32(cdb + 6), buffer_length, data_in, plan)
    elif op == CDB_READ6:
        plan_transfer(unit, SCSI_READ, 0, lba21(cdb), cdb[4] if cdb[4] else 256, buffer_length, data_in, plan)
    elif op == CDB_WRITE6:
        plan_transfer(unit, SCSI_WRITE, 0, lba21(cdb), cdb[4] if cdb[4] else 256, buffer_length, data_in, plan)
    elif op == CDB_SYNCHRONIZE_CACHE10:
        plan_synchronize(unit, be32(cdb + 2), be16(cdb + 7), plan)
    elif op == CDB_SYNCHRONIZE_CACHE16:
        plan_synchronize(unit, be64(cdb + 2), be32(cdb + 10), plan)
    elif op == CDB_UNMAP:
        plan_unmap(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_WRITE_SAME10:
        plan_write_same(unit, cdb[1], False, be32(cdb + 2), be16(cdb + 7), buffer_length, data_in, plan)
    elif op == CDB_WRITE_SAME16:
        plan_write_same(unit, cdb[1], True, be64(cdb + 2), be32(cdb + 10), buffer_length, data_in, plan)
    elif op == CDB_WRITE_VERIFY10:
        plan_write_verify(unit, cdb[1], be32(cdb + 2), be16(cdb + 7), buffer_length, data_in, plan)
    elif op == CDB_WRITE_VERIFY12:
        plan_write_verify(unit, cdb[1], be32(cdb + 2), be32(cdb + 6), buffer_length, data_in, plan)
    elif op == CDB_WRITE_VERIFY16:
        plan_write_verify(unit, cdb[1], be64(cdb + 2), be32(cdb + 10), buffer_length, data_in, plan)
    elif op == CDB_VERIFY10:
        plan_verify(unit, cdb[1], be32(cdb + 2), be16(cdb + 7), buffer_length, data_in, plan)
    elif op == CDB_VERIFY12:
        plan_verify(unit, cdb[1], be32(cdb + 2), be32(cdb + 6), buffer_length, data_in, plan)
    elif op == CDB_VERIFY16:
        plan_verify(unit, cdb[1], be64(cdb + 2), be32(cdb + 10), buffer_length, data_in, plan)
    elif op == CDB_INQUIRY:
        plan_inquiry(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_REQUEST_SENSE:
        plan_request_sense(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_REPORT_LUNS:
        memset(lun_zero, 0, sizeof(lun_zero))
        lun_zero[0] = 1
        scsi_report_luns(lun_zero, cdb, buffer_length, data_in, unit.strict_alloc, plan)
    elif op == CDB_READ_CAPACITY10:
        plan_read_capacity10(unit, buffer_length, data_in, plan)
    elif op == CDB_SERVICE_ACTION_IN16 and cdb[1] & 0x1F == SERVICE_READ_CAPACITY16:
        plan_read_capacity16(unit, cdb, buffer_length, data_in, plan)
    elif op == CDB_MODE_SENSE6 or op == CDB_MODE_SENSE10:
        plan_mode_sense(unit, cdb, op == CDB_MODE_SENSE10, buffer_length, data_in, plan)
    elif op == CDB_MODE_SELECT6 or op == CDB_MODE_SELECT10:
        plan_mode_select(cdb, op == CDB_MODE_SELECT10, buffer_length, data_in, plan)
    elif op == CDB_START_STOP_UNIT:
        plan_start_stop(unit, cdb, plan)
    elif op == CDB_FORMAT_UNIT:
        if unit.disk.read_only:
            reject_write(plan)
    elif op == CDB_SEND_DIAGNOSTIC:
        if cdb[1] & 0xF0 or be16(cdb + 3):   # only the default self-test: no code, no page format, no list
            reject(plan, ASC_INVALID_FIELD_IN_CDB)
    elif (op == CDB_TEST_UNIT_READY or op == CDB_PREVENT_ALLOW or op == CDB_RESERVE6 or op == CDB_RELEASE6
            or op == CDB_RESERVE10 or op == CDB_RELEASE10):
        pass                                 # GOOD, no effect (9.7)
    else:
        reject(plan, ASC_INVALID_OPCODE)


cdef int trim_extents(const DiskRef *disk, const uint8_t *extents, uint32_t count) noexcept nogil:
    cdef uint32_t i
    cdef uint64_t length
    cdef int status = DISK_OK
    for i in range(count):
        length = <uint64_t> be32(extents + 16 * i + 8) * disk.sector_size
        if length:
            status = disk.ops.trim(disk.state, be64(extents + 16 * i) * disk.sector_size, length)
        if status != DISK_OK:
            break
    return status


cdef int scsi_media(const ScsiUnit *unit, const ScsiPlan *plan, const iovec *iov, int count,
                    uint32_t flags) noexcept nogil:
    cdef const DiskRef *disk = unit.disk
    cdef int status = DISK_OK
    if disk.ops == NULL:
        return DISK_CLOSED
    if flags & DISK_NOWAIT and (plan.fua or (plan.action != SCSI_READ and plan.action != SCSI_WRITE)):
        return DISK_WOULD_BLOCK
    if plan.action == SCSI_READ:
        if plan.fua:
            status = disk_flush(disk)
        if status == DISK_OK:
            status = disk_read(disk, plan.offset, iov, count, flags)
    elif plan.action == SCSI_WRITE:
        status = disk_write(disk, plan.offset, iov, count, flags)
        if status == DISK_OK and plan.fua:
            status = disk_flush(disk)
    elif plan.action == SCSI_FLUSH:
        status = disk_flush(disk)
    elif plan.action == SCSI_VERIFY:
        status = media_compare(disk, plan.offset, plan.length, iov, count, plan.buffer_length)
    elif plan.action == SCSI_TRIM:
        status = trim_extents(disk, plan.extents, plan.extent_count)
    elif plan.action == SCSI_WRITE_SAME:
        status = media_write_same(disk, plan.offset, plan.length, iov, count, plan.buffer_length)
    return status


cdef void scsi_finish(ScsiUnit *unit, ScsiPlan *plan, int disk_status) noexcept nogil:
    cdef uint64_t lba = plan.offset >> trailing_zeros(unit.disk.sector_size)
    cdef bint single = plan.length == unit.disk.sector_size
    # A discard is a hint: what the backend cannot discard stays (9.8).
    if disk_status == DISK_OK or (disk_status == DISK_UNSUPPORTED and plan.action == SCSI_TRIM):
        plan.data_length = plan.buffer_length
        plan.action = SCSI_DONE
    elif disk_status == MEDIA_MISCOMPARE:
        scsi_fail(plan, FAILED, KEY_MISCOMPARE, ASC_MISCOMPARE)
    elif disk_status == DISK_RANGE:
        scsi_fail(plan, FAILED, KEY_ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE)
    elif disk_status == DISK_READ_ONLY:
        reject_write(plan)
    elif disk_status == DISK_READ_ERROR:
        scsi_fail(plan, FAILED, KEY_MEDIUM_ERROR, ASC_UNRECOVERED_READ)
        # INFORMATION is the first bad LBA: known where only one block was read, and it has 32 bits.
        if single and lba <= 0xFFFFFFFFU:
            sense_information(plan.sense, <uint32_t> lba)
    elif disk_status == DISK_WRITE_ERROR:
        scsi_fail(plan, FAILED, KEY_MEDIUM_ERROR, ASC_WRITE_FAULT)
    elif disk_status == DISK_NO_SPACE:
        # What a thin disk says when its pool is full; a Linux guest reports ENOSPC.
        scsi_fail(plan, FAILED, KEY_DATA_PROTECT, ASC_SPACE_ALLOCATION_FAILED)
    else:
        scsi_fail(plan, FAILED, KEY_MEDIUM_ERROR, ASC_NONE)


# ---- from Python

cdef int load_cdb(object cdb, uint8_t *command) except -1:
    """Bytes beyond the CDB's length are zero (5.3, check 4)."""
    cdef bytes copy = bytes(memoryview(cdb))
    if not 1 <= len(copy) <= CDB_MAX:
        raise ValueError(f"a CDB has 1 to {CDB_MAX} bytes, not {len(copy)}")
    memset(command, 0, CDB_MAX)
    memcpy(command, PyBytes_AS_STRING(copy), len(copy))
    return 0


cdef int check_lun(object lun) except -1:
    if not 0 <= lun <= 255:
        raise ValueError(f"a LUN is 0 to 255, not {lun}")
    return 0


cdef object plan_result(const ScsiPlan *plan, bytes data):
    sense = PyBytes_FromStringAndSize(<char *> plan.sense, plan.sense_length)
    return ScsiResult(plan.scsi_status, data, sense, plan.srb_status, plan.data_length)


cdef bytes plan_data(const ScsiPlan *plan):
    return PyBytes_FromStringAndSize(<char *> plan.data, plan.data_length) if plan.data_to_guest else b""


cdef bytes identity(Backend image):
    """16 bytes that stay the same for the same image file, or without one for the same kind and size of disk."""
    path = getattr(image, "path", "")
    text = f"{type(image).__module__}.{type(image).__name__}\0{path}\0{image.ref.size_bytes}\0{image.ref.sector_size}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:16]


@cython.final
cdef class Target:
    """One SCSI disk over a disk backend: the SCSI engine without a bus.

    image: a hvcore.disk backend; it stays open and the caller's. id: 16 bytes that name the disk (VPD 83), serial: up
    to 64 ASCII characters (VPD 80; "" for none); both default to values derived from the image, so two disks of the
    same kind and size without a path need an id each. max_transfer: most bytes of one request, 0 for no limit.
    strict_alloc: refuse an allocation length beyond the buffer (storvsp.md 5.8) instead of answering what fits.
    discard: offer UNMAP where the image can trim.

    Calls may run concurrently; a unit attention is reported to exactly one of them.
    """

    def __cinit__(self, image, *, id=None, serial=None, uint32_t max_transfer=0, bint strict_alloc=True,
                  bint discard=True):
        if not isinstance(image, Backend):
            raise TypeError(f"image must be a hvcore.disk backend, not {type(image).__name__}")
        self.image = image
        self.before = [image]
        id = identity(image) if id is None else bytes(memoryview(id))
        if len(id) != 16:
            raise ValueError(f"id has 16 bytes, not {len(id)}")
        serial = id.hex() if serial is None else serial
        if len(serial) > SERIAL_MAX or not serial.isascii():
            raise ValueError(f"serial has at most {SERIAL_MAX} ASCII characters, not {serial!r}")
        encoded = serial.encode()
        memset(&self.unit, 0, sizeof(self.unit))
        self.unit.disk = &self.image.ref
        memcpy(self.unit.id, PyBytes_AS_STRING(id), 16)
        memcpy(self.unit.serial, PyBytes_AS_STRING(encoded), len(encoded))
        self.unit.serial_length = <uint32_t> len(encoded)
        self.unit.max_transfer = max_transfer
        self.unit.strict_alloc = strict_alloc
        self.unit.discard = discard and self.image.ref.can_trim

    def exchange(self, Backend image not None):
        """Goes on with another backend of the same size and kind: a filter before the present one, or that one again.

        Requests that begin afterwards are the new one's; those under way end with the old one, which has to stay open.
        ValueError: it is closed, or another disk.
        """
        cdef DiskRef *old = self.unit.disk
        cdef DiskRef *new = &image.ref
        if new.ops == NULL:
            raise ValueError("the disk is closed")
        if (new.size_bytes != old.size_bytes or new.sector_size != old.sector_size or new.read_only != old.read_only
                or new.can_trim != old.can_trim):
            raise ValueError("the disk to go on with has another size, other sectors, or can do more or less")
        if not any(each is image for each in self.before):
            self.before.append(image)
        # One word, and both disks stay good: a thread that reads it meanwhile has the one or the other. Release:
        # whoever has the new one finds it whole.
        store_release64(<uint64_t *> &self.unit.disk, <uint64_t> new)
        self.image = image

    @property
    def id(self):
        """The 16 bytes of VPD 83."""
        return PyBytes_FromStringAndSize(<char *> self.unit.id, 16)

    @property
    def serial(self):
        """The characters of VPD 80."""
        return PyBytes_FromStringAndSize(<char *> self.unit.serial, self.unit.serial_length).decode()

    def raise_unit_attention(self, uint8_t asc, uint8_t ascq):
        """The next command but INQUIRY, REPORT LUNS and REQUEST SENSE fails with this, once; 0x2A, 0x09: resized."""
        scsi_attention(&self.unit, (<uint32_t> asc << 8) | ascq)

    def media_access(self, cdb, uint32_t buffer_length=0, *, bint to_guest=True):
        """The MediaAccess that a CDB with a buffer of this size would ask for; None: it is answered without the medium.

        Nothing is executed, a pending unit attention stays pending.
        """
        cdef uint8_t command[CDB_MAX]
        cdef ScsiUnit unit = self.unit
        cdef ScsiPlan plan
        cdef uint8_t answer[SCSI_DATA_MAX]
        plan.data = answer
        load_cdb(cdb, command)
        unit.unit_attention = 0
        scsi_plan(&unit, command, buffer_length, to_guest, &plan)
        if plan.action == SCSI_DONE:
            return None
        return MediaAccess(ACTIONS[plan.action], plan.offset, plan.length, bool(plan.fua))

    def execute(self, cdb, data_out=b"", uint32_t allocation=0, *, int disk_status=0):
        """Executes one CDB of 1 to 16 bytes and returns a ScsiResult; blocks without the GIL while the disk works.

        data_out: what the guest sends; allocation: bytes of its buffer for an answer; at most one of them. Whatever the
        CDB says, the result tells: only arguments of the wrong form raise (ValueError, TypeError). disk_status: a
        DiskStatus (negative) to answer with, as if the medium had said so, instead of accessing it.
        """
        cdef uint8_t command[CDB_MAX]
        cdef Py_buffer out
        cdef ScsiPlan plan
        cdef uint8_t answer[SCSI_DATA_MAX]
        cdef iovec vector
        cdef int status = disk_status
        cdef uint8_t data_in
        cdef uint64_t sent
        cdef bytes data = b""
        cdef bytes params
        plan.data = answer
        load_cdb(cdb, command)
        PyObject_GetBuffer(data_out, &out, PyBUF_SIMPLE)
        try:
            sent = out.len
            if sent and allocation:
                raise ValueError("a command moves data one way: data_out or allocation, not both")
            if sent > 0xFFFFFFFFU:
                raise ValueError(f"data_out has {sent} bytes, more than a request can move")
            data_in = 0 if sent else 1 if allocation else 2
            scsi_plan(&self.unit, command, <uint32_t> sent if sent else allocation, data_in, &plan)
            if plan.action == SCSI_PARAMETERS:
                params = PyBytes_FromStringAndSize(<char *> out.buf, plan.data_length)
                scsi_parameters(&self.unit, command, <uint8_t *> PyBytes_AS_STRING(params), plan.data_length, &plan)
            vector.iov_base = out.buf
            vector.iov_len = plan.buffer_length
            if plan.action == SCSI_READ:
                data = PyBytes_FromStringAndSize(NULL, plan.length)
                vector.iov_base = PyBytes_AS_STRING(data)
            if plan.action != SCSI_DONE:
                with nogil:
                    if status == DISK_OK:
                        status = scsi_media(&self.unit, &plan, &vector, 1, 0)
                    scsi_finish(&self.unit, &plan, status)
                if plan.scsi_status != SCSI_GOOD:
                    data = b""
            if plan.data_to_guest:
                data = plan_data(&plan)
        finally:
            PyBuffer_Release(&out)
        return plan_result(&plan, data)


def report_luns(luns, cdb, uint32_t allocation, *, bint strict_alloc=True):
    """What a controller with these LUNs answers to a REPORT LUNS CDB."""
    cdef uint8_t bitmap[32]
    cdef uint8_t command[CDB_MAX]
    cdef ScsiPlan plan
    cdef uint8_t answer[SCSI_DATA_MAX]
    plan.data = answer
    load_cdb(cdb, command)
    memset(bitmap, 0, sizeof(bitmap))
    for lun in luns:
        check_lun(lun)
        bitmap[<int> lun >> 3] |= 1 << (<int> lun & 7)
    scsi_report_luns(bitmap, command, allocation, 1, strict_alloc, &plan)
    return plan_result(&plan, plan_data(&plan))


def absent(cdb, lun, uint32_t allocation=0):
    """What a controller answers to a command for a LUN that it does not have; all but REPORT LUNS."""
    cdef uint8_t command[CDB_MAX]
    cdef ScsiPlan plan
    cdef uint8_t answer[SCSI_DATA_MAX]
    plan.data = answer
    load_cdb(cdb, command)
    check_lun(lun)
    scsi_absent(command, lun, allocation, 1 if allocation else 2, &plan)
    return plan_result(&plan, plan_data(&plan))
