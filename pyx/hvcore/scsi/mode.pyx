"""MODE SENSE and MODE SELECT, for the SCSI target."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memset

from hvcore.scsi.cdb cimport be16, put_be16
from hvcore.scsi.sense cimport ASC_INVALID_FIELD_IN_LIST, ASC_PARAMETER_LIST_LENGTH

cdef enum:
    CACHING_PAGE = 0x08
    CACHING_BYTES = 12           # with its two header bytes
    CACHING_WCE = 0x04
    WRITE_PROTECT = 0x80
    DPOFUA = 0x10
    PAGE_SAVEABLE = 0x80


cdef void caching_page(uint8_t control, bint read_only, uint8_t *page) noexcept nogil:
    memset(page, 0, CACHING_BYTES)
    page[0] = CACHING_PAGE
    page[1] = CACHING_BYTES - 2
    if control != MODE_CHANGEABLE and not read_only:
        page[2] = CACHING_WCE


cdef uint32_t mode_sense(bint ten, uint8_t control, bint read_only, uint8_t *data) noexcept nogil:
    cdef uint32_t header = mode_header(ten)
    cdef uint8_t device = DPOFUA | (WRITE_PROTECT if read_only else 0)
    memset(data, 0, header)
    if ten:
        put_be16(data, header + CACHING_BYTES - 2)
        data[3] = device
    else:
        data[0] = <uint8_t> (header + CACHING_BYTES - 1)
        data[2] = device
    caching_page(control, read_only, data + header)
    return header + CACHING_BYTES


cdef uint32_t mode_select(bint ten, bint read_only, const uint8_t *list, uint32_t length) noexcept nogil:
    cdef uint32_t position = mode_header(ten)
    cdef uint8_t current[CACHING_BYTES]
    if length < position:
        return ASC_PARAMETER_LIST_LENGTH
    if (be16(list + 6) if ten else list[3]) != 0:        # block descriptors: there are none
        return ASC_INVALID_FIELD_IN_LIST
    caching_page(MODE_CURRENT, read_only, current)
    while position < length:
        if length - position < 2:
            return ASC_PARAMETER_LIST_LENGTH
        if list[position] & ~PAGE_SAVEABLE != CACHING_PAGE or list[position + 1] != CACHING_BYTES - 2:
            return ASC_INVALID_FIELD_IN_LIST
        if length - position < CACHING_BYTES:
            return ASC_PARAMETER_LIST_LENGTH
        if memcmp(list + position + 2, current + 2, CACHING_BYTES - 2) != 0:
            return ASC_INVALID_FIELD_IN_LIST
        position += CACHING_BYTES
    return 0
