# Guest memory as the host sees it: one region, guest physical address = offset, a PFN is offset / 4096.

from libc.stdint cimport uint8_t, uint64_t


ctypedef struct GuestMemory:
    uint8_t *base
    uint64_t size_bytes          # a multiple of 4096


cdef inline uint8_t *gpa_pointer(const GuestMemory *memory, uint64_t gpa, uint64_t length) noexcept nogil:
    """The host address of `length` bytes at `gpa`, or NULL when they are not all guest memory (VA-4).

    Compared by subtraction, so that an address near 2**64 cannot wrap into range (VA-3).
    """
    if gpa > memory.size_bytes or memory.size_bytes - gpa < length:
        return NULL
    return memory.base + gpa


cdef inline uint8_t *pfn_pointer(const GuestMemory *memory, uint64_t pfn) noexcept nogil:
    """The host address of the page, or NULL. The comparison is in pages: pfn * 4096 could overflow."""
    if pfn >= memory.size_bytes // 4096:
        return NULL
    return memory.base + pfn * 4096
