"""CRC-32C, the checksum of VHDX headers, region tables and log entries (disk-formats.md 1)."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t

cdef uint32_t POLYNOMIAL = 0x82F63B78
cdef uint32_t[256] TABLE         # filled below, at import, and constant from then on


cdef void fill() noexcept nogil:
    cdef uint32_t value
    cdef int i, _bit
    for i in range(256):
        value = i
        for _bit in range(8):
            value = (value >> 1) ^ (POLYNOMIAL & (0 - (value & 1)))
        TABLE[i] = value


fill()


cdef uint32_t crc32c_update(uint32_t crc, const uint8_t *data, size_t length) noexcept nogil:
    """Continues `crc`, which is 0 at the start."""
    cdef size_t i
    crc = ~crc
    for i in range(length):
        crc = TABLE[(crc ^ data[i]) & 0xFF] ^ (crc >> 8)
    return ~crc


def crc32c(data, uint32_t crc=0):
    """CRC-32C of a buffer; `crc` is that of the bytes before it."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return crc32c_update(crc, <const uint8_t *> view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
