# MODE SENSE and MODE SELECT (storvsp.md 9.5): one page, caching, which a guest can read but not change.

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    MODE_CURRENT = 0
    MODE_CHANGEABLE = 1
    MODE_DEFAULT = 2
    MODE_SAVED = 3


cdef inline uint32_t mode_header(bint ten) noexcept nogil:
    """Bytes of the header of the (10) or the (6) form."""
    return 8 if ten else 4


cdef inline bint mode_has(uint8_t page, uint8_t subpage) noexcept nogil:
    return (page == 0x08 and subpage == 0) or (page == 0x3F and (subpage == 0 or subpage == 0xFF))


# Writes header and caching page; returns their length.
cdef uint32_t mode_sense(bint ten, uint8_t control, bint read_only, uint8_t *data) noexcept nogil
# The ASC << 8 | ASCQ to fail with, or 0 when the list changes nothing.
cdef uint32_t mode_select(bint ten, bint read_only, const uint8_t *list, uint32_t length) noexcept nogil
