"""INQUIRY, for the SCSI target."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from hvcore.disk.ops cimport DiskRef
from hvcore.scsi.cdb cimport CDB_INQUIRY, be16, put_be16, put_be32, put_be64
from hvcore.scsi.plan cimport ScsiPlan, answer_data, plan_begin, reject_field, scsi_refuse
from hvcore.scsi.srb cimport SCSI_CHECK_CONDITION, SRB_INVALID_LUN
from hvcore.scsi.unit cimport ScsiUnit, too_much, unit_disk

cdef enum:
    PAGE_LIST = 0x00
    PAGE_SERIAL = 0x80
    PAGE_IDENTIFICATION = 0x83
    PAGE_LIMITS = 0xB0
    PAGE_CHARACTERISTICS = 0xB1
    PAGE_PROVISIONING = 0xB2
    PAGE_PRIVATE_CE = 0xCE
    PAGE_PRIVATE_CF = 0xCF

cdef extern from *:
    """
    static const uint8_t hv_inquiry_names[] = "Msft    Virtual Disk    1.0 ";
    static const uint8_t hv_inquiry_cf[20] = {
        1, 0, 0, 0, 0x15, 0x8f, 0xa9, 0x89, 0x28, 0xc9, 0x8b, 0x4d, 0x94, 0xcd, 0xef, 0x51, 0xfa, 0xa9, 0x9d, 0x33};
    """
    const uint8_t *NAMES "hv_inquiry_names"
    const uint8_t *CF_BODY "hv_inquiry_cf"


cdef uint32_t inquiry_standard(uint8_t *data) noexcept nogil:
    memset(data, 0, INQUIRY_BYTES)
    data[2] = 5                  # SPC-3
    data[3] = 2                  # response data format
    data[4] = INQUIRY_BYTES - 5
    data[7] = 2                  # CMDQUE
    memcpy(data + 8, NAMES, 28)
    return INQUIRY_BYTES


cdef uint32_t inquiry_absent(bint named, uint8_t *data) noexcept nogil:
    inquiry_standard(data)
    data[0] = INQUIRY_ABSENT
    data[7] = 0
    if not named:
        memset(data + 8, 0, 28)
    return INQUIRY_BYTES


cdef uint32_t page_list(bint discard, uint32_t serial_length, uint8_t *body) noexcept nogil:
    cdef uint32_t n = 0
    body[n] = PAGE_LIST
    n += 1
    if serial_length:
        body[n] = PAGE_SERIAL
        n += 1
    body[n] = PAGE_IDENTIFICATION
    body[n + 1] = PAGE_LIMITS
    body[n + 2] = PAGE_CHARACTERISTICS
    n += 3
    if discard:
        body[n] = PAGE_PROVISIONING
        n += 1
    body[n] = PAGE_PRIVATE_CE
    body[n + 1] = PAGE_PRIVATE_CF
    return n + 2


cdef uint32_t page_identification(const uint8_t *id, uint8_t *body) noexcept nogil:
    # T10 vendor identification: the vendor's name and the whole id
    put_be32(body, 0x01010018)
    memcpy(body + 4, NAMES, 8)
    memcpy(body + 12, id, 16)
    # NAA 6 of Microsoft's company id: the id without its middle
    put_be32(body + 28, 0x01030010)
    put_be32(body + 32, 0x60022480)
    memcpy(body + 36, id, 6)
    memcpy(body + 42, id + 10, 6)
    return 0x30


cdef uint32_t page_limits(const ScsiUnit *unit, uint8_t *body) noexcept nogil:
    cdef const DiskRef *disk = unit_disk(unit)
    cdef uint32_t granularity = disk.trim_unit // disk.sector_size if disk.trim_unit else 1
    memset(body, 0, 0x3C)
    if unit.extensions:
        body[1] = <uint8_t> (COMPARE_WRITE_MAX // disk.sector_size)
    put_be32(body + 4, unit.max_transfer // disk.sector_size)
    if unit.discard:
        put_be32(body + 16, 0xFFFFFFFF)      # LBAs of one UNMAP
        put_be32(body + 20, 0x1000)          # its descriptors
        put_be32(body + 24, granularity)     # alignment 0
        put_be32(body + 28, 0x80000000)
    put_be64(body + 32, WRITE_SAME_MAX // disk.sector_size)
    return 0x3C


cdef uint32_t inquiry_page(const ScsiUnit *unit, uint8_t page, uint8_t *data) noexcept nogil:
    """One vital page; 0: there is no such page."""
    cdef uint8_t *body = data + 4
    cdef uint32_t length
    if page == PAGE_LIST:
        length = page_list(unit.discard, unit.serial_length, body)
    elif page == PAGE_SERIAL and unit.serial_length:
        length = unit.serial_length
        memcpy(body, unit.serial, length)
    elif page == PAGE_IDENTIFICATION:
        length = page_identification(unit.id, body)
    elif page == PAGE_LIMITS:
        length = page_limits(unit, body)
    elif page == PAGE_CHARACTERISTICS:
        length = 0x3C
        memset(body, 0, length)
        put_be16(body, 1)                    # does not rotate
    elif page == PAGE_PROVISIONING and unit.discard:
        length = 4
        # threshold exponent 1, LBPU, thin; beyond it LBPWS and LBPWS10, and LBPRZ: what is discarded reads as zeros
        put_be32(body, 0x01E40200 if unit.extensions else 0x01800200)
    elif page == PAGE_PRIVATE_CE:
        length = 4
        put_be32(body, 0x01010000)
    elif page == PAGE_PRIVATE_CF:
        length = 20
        memcpy(body, CF_BODY, length)
    else:
        return 0
    data[0] = 0
    data[1] = page
    put_be16(data + 2, length)
    return 4 + length


cdef void plan_inquiry(const ScsiUnit *unit, const uint8_t *cdb, uint32_t buffer_length, uint8_t data_in,
                       ScsiPlan *plan) noexcept nogil:
    cdef uint32_t allocation = be16(cdb + 3)
    cdef uint32_t available
    cdef bint vital = cdb[1] & 1
    if cdb[1] & 2 or (not vital and cdb[2] != 0):
        reject_field(plan)
        return
    if too_much(unit, allocation, buffer_length) or (unit.strict_alloc and not vital and allocation < 5):
        reject_field(plan)
        return
    if vital:
        available = inquiry_page(unit, cdb[2], plan.data)
    else:
        available = inquiry_standard(plan.data)
    if available == 0:
        reject_field(plan)
        return
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
        reject_field(plan)
        return
    answer_data(plan, inquiry_absent(lun == 0, plan.data), allocation, buffer_length, data_in)
