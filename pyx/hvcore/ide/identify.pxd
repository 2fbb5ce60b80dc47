# IDENTIFY DEVICE data and the drive's geometry (ide.md section 2).

from libc.stdint cimport uint8_t, uint64_t

from hvcore.ide.channel cimport IdeDrive, IdeGeometry

cdef void ide_default_geometry(uint64_t sectors, IdeGeometry *geometry) noexcept nogil
# Fills 512 bytes.
cdef void ide_identify(const IdeDrive *drive, uint8_t *data) noexcept nogil
