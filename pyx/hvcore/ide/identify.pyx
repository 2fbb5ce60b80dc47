"""IDENTIFY DEVICE data and the drive's geometry (ide.md section 2)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from hvcore.ide.abi cimport IDE_CHS_SECTORS, IDE_LBA28_SECTORS, IDE_MULTIPLE_MAX, IDE_SECTOR


cdef void ide_default_geometry(uint64_t sectors, IdeGeometry *geometry) noexcept nogil:
    cdef uint32_t total = <uint32_t> sectors if sectors < IDE_CHS_SECTORS else IDE_CHS_SECTORS
    cdef uint32_t tracks = total // 17
    geometry.sectors = 17
    geometry.heads = (tracks + 1023) // 1024
    if geometry.heads < 4:
        geometry.heads = 4
    if tracks >= geometry.heads * 1024 or geometry.heads > 16:
        geometry.sectors = 31
        geometry.heads = 16
        tracks = total // 31
    if tracks >= geometry.heads * 1024:
        geometry.sectors = 63
        tracks = total // 63
    geometry.cylinders = tracks // geometry.heads


cdef inline void put(uint8_t *data, uint32_t word, uint32_t value) noexcept nogil:
    data[2 * word] = value & 0xFF
    data[2 * word + 1] = value >> 8 & 0xFF


cdef void put_text(uint8_t *data, uint32_t word, uint32_t words, const uint8_t *text) noexcept nogil:
    """Text padded with spaces; the two characters of each word are swapped."""
    cdef uint32_t i
    cdef bint ended = False
    for i in range(2 * words):
        ended = ended or text[i] == 0
        data[2 * word + (i ^ 1)] = c' ' if ended else text[i]


cdef void put_geometry(const IdeDrive *drive, uint8_t *data) noexcept nogil:
    cdef const IdeGeometry *fixed = &drive.default_geometry
    cdef const IdeGeometry *current = &drive.geometry
    cdef uint32_t capacity = fixed.cylinders * fixed.heads * fixed.sectors
    cdef uint32_t per_cylinder = current.heads * current.sectors
    cdef uint32_t cylinders = 0
    put(data, 1, 0x3FFF if capacity >= IDE_CHS_SECTORS else fixed.cylinders)
    put(data, 3, fixed.heads)
    put(data, 4, IDE_SECTOR * fixed.sectors)
    put(data, 6, fixed.sectors)
    if per_cylinder:
        cylinders = capacity // per_cylinder
        if cylinders > 0xFFFF:
            cylinders = 0xFFFF
        put(data, 54, cylinders)
        put(data, 55, current.heads)
        put(data, 56, current.sectors)
    put(data, 57, cylinders * per_cylinder & 0xFFFF)
    put(data, 58, cylinders * per_cylinder >> 16)


cdef void ide_identify(const IdeDrive *drive, uint8_t *data) noexcept nogil:
    cdef uint32_t word
    cdef uint64_t reach = drive.sectors if drive.sectors < IDE_LBA28_SECTORS else IDE_LBA28_SECTORS
    cdef uint8_t[21] serial
    memset(data, 0, IDE_SECTOR)
    put(data, 0, 0x045A)
    put_geometry(drive, data)
    put(data, 5, IDE_SECTOR)
    put(data, 7, 0xABCD)
    put(data, 8, 0xDCBA)
    put(data, 9, 0x0123)
    for word in range(20):
        serial[word] = drive.serial[word]
    serial[20] = 0
    put_text(data, 10, 10, serial)
    put(data, 20, 3)
    put(data, 21, 0x80)
    put_text(data, 23, 4, b"1.1.0" if drive.number < 2 else b"1.1.1")
    put_text(data, 27, 20, b"Virtual HD")
    put(data, 47, 0x8000 | IDE_MULTIPLE_MAX)
    put(data, 49, 0x0F00)
    put(data, 51, 0x0200)
    put(data, 52, 0x0200)
    put(data, 53, 3)
    put(data, 59, 0x0100 | drive.multiple if drive.multiple else 0)
    put(data, 60, reach & 0xFFFF)
    put(data, 61, reach >> 16)
    put(data, 62, 7)
    put(data, 63, 0x0407)
    put(data, 64, 3)
    put(data, 65, 0x78)
    put(data, 66, 0x78)
    put(data, 67, 0x014D)
    put(data, 68, 0x78)
    put(data, 80, 0x01F0)
    put(data, 82, 0x0028)
    put(data, 83, 0x7400)
    put(data, 84, 0x4040)
    put(data, 85, 0x0028 if drive.write_cache else 0x0008)
    put(data, 86, 0x3400)
    put(data, 87, 0x4040)
    for word in range(4):
        put(data, 100 + word, <uint32_t> (drive.sectors >> 16 * word) & 0xFFFF)
    put(data, 106, 0x6003 if drive.physical_4096 else 0x4000)
    put(data, 209, 0x4000)
    if drive.can_trim:
        put(data, 69, 0x4000)                    # reads of trimmed sectors are deterministic
        put(data, 105, 1)                        # one block of 64 ranges at a time
        put(data, 169, 1)
