# What INQUIRY answers (storvsp.md 9.2, 9.3). Each function writes one whole answer and returns its length; `data` has
# room for SCSI_DATA_MAX bytes, everything reserved is zeroed.

from libc.stdint cimport uint8_t, uint32_t

from hvcore.disk.ops cimport DiskRef

cdef enum:
    INQUIRY_BYTES = 104
    INQUIRY_ABSENT = 0x7F        # byte 0: no device at this LUN
    SERIAL_MAX = 64
    WRITE_SAME_MAX = 8 << 20     # bytes of one WRITE SAME, as VPD B0 says

cdef uint32_t inquiry_standard(uint8_t *data) noexcept nogil
# 7F in byte 0; `named`: vendor, product and revision are given all the same (LUN 0).
cdef uint32_t inquiry_absent(bint named, uint8_t *data) noexcept nogil
# 0: there is no such page. max_transfer: bytes, 0 no limit.
cdef uint32_t inquiry_page(const DiskRef *disk, const uint8_t *id, const uint8_t *serial, uint32_t serial_length,
                           uint32_t max_transfer, bint discard, uint8_t page, uint8_t *data) noexcept nogil
