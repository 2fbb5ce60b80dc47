# VMBus packets in private memory (vmbus.md section 2): what ring_take copied, or any bytes that a caller owns. Nothing
# here may be pointed at shared memory: every field is read more than once.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from hvcore.vmbus.abi cimport (
    PACKET_COMPLETION, PACKET_COMPLETION_REQUESTED, PACKET_GPA_DIRECT, PACKET_IN_BAND, PACKET_TRANSFER_PAGES,
    GpaRange as GpaRangeHeader, PacketDescriptor)

# The verdicts of vmbus.md 8.4.
cdef enum PacketStatus:
    PACKET_OK = 0
    PACKET_FAILED = 1            # this request fails, the channel lives on (N8, N9, N10)
    PACKET_CORRUPT = -1          # the channel is dead (RB-43), as RING_CORRUPT

cdef enum:
    PACKET_MAX_BYTES = 524280    # length8 = 65535 (PK-1)
    GPA_RANGE_MAX_PFNS = 0xFFFFF

# A GPA-direct packet, header and ranges validated; the pointers lead into the packet.
ctypedef struct GpaDirectView:
    uint32_t range_count         # >= 1
    const uint8_t *ranges        # the first range, for gpa_range_next
    uint64_t data_length         # sum of the ranges' byte counts
    const uint8_t *payload
    uint32_t payload_length      # a multiple of 8: the tail may be padding (RB-19)

ctypedef struct GpaRangeView:
    uint32_t byte_count          # >= 1
    uint32_t byte_offset         # into the first page, 0..4095
    uint32_t pfn_count
    const uint64_t *pfns         # guest-chosen: each is still to be checked against guest memory (VA-4)

ctypedef struct TransferPagesView:
    uint32_t set_id
    uint32_t range_count
    const uint8_t *ranges        # range_count GPA range headers, count then offset (PK-6), unchecked against a buffer
    const uint8_t *payload
    uint32_t payload_length


cdef inline const char *descriptor_fault(const PacketDescriptor *head, bint strict) noexcept nogil:
    """The rule of vmbus.md 2.2 that a private descriptor breaks, or NULL. `strict`: as a host sees flags and types."""
    if head.length8 < 2:
        return "the packet is shorter than its descriptor"                  # N1
    if head.data_offset8 < 2:
        return "the payload starts inside the descriptor"                   # N2
    if head.data_offset8 > head.length8:
        return "the payload starts behind the packet's end"                 # N3
    if strict:
        if head.flags & ~PACKET_COMPLETION_REQUESTED:
            return "an undefined packet flag is set"                        # N4
        if (head.type != PACKET_IN_BAND and head.type != PACKET_COMPLETION and head.type != PACKET_GPA_DIRECT
                and head.type != PACKET_TRANSFER_PAGES):
            return "the packet type is unknown"                             # N5
    return NULL


cdef inline uint64_t gpa_pfn_count(uint32_t byte_offset, uint32_t byte_count) noexcept nogil:
    """Pages that a range touches; in 64 bits, because 0xFFF + 0xFFFFFFFF wraps in 32 (N10, VA-3)."""
    return (<uint64_t> byte_offset + byte_count + 4095) >> 12


cdef inline const uint8_t *gpa_range_next(const uint8_t *cursor, GpaRangeView *out) noexcept nogil:
    """Reads the range at `cursor` of a parsed packet and returns the cursor of the next one; call range_count times."""
    cdef GpaRangeHeader head
    memcpy(&head, cursor, sizeof(head))
    out.byte_count = head.byte_count
    out.byte_offset = head.byte_offset
    out.pfn_count = <uint32_t> gpa_pfn_count(head.byte_offset, head.byte_count)
    out.pfns = <const uint64_t *> (cursor + sizeof(head))
    return cursor + sizeof(head) + 8 * <uint64_t> out.pfn_count


# `packet` is 8-byte aligned and holds `length` bytes whose descriptor passed ring_take. The whole header is validated
# (vmbus.md 2.4): PACKET_OK, PACKET_FAILED (payload is set, ranges must not be used) or PACKET_CORRUPT (nothing is set).
cdef int gpa_direct_parse(const uint8_t *packet, uint32_t length, GpaDirectView *out) noexcept nogil
# The same for transfer pages (PK-7); the ranges are compared with the buffer's length by whoever knows the buffer.
cdef int transfer_pages_parse(const uint8_t *packet, uint32_t length, TransferPagesView *out) noexcept nogil
# What in the type-specific header kills the channel and a check of the descriptor cannot see (N6, N7, N12), or NULL.
cdef const char *header_fault(const uint8_t *packet, uint32_t length) noexcept nogil

cdef class Packet:
    cdef readonly unsigned int type
    cdef readonly unsigned int flags
    cdef readonly uint64_t transaction_id
    cdef readonly bytes payload
    cdef readonly bytes header

# A Packet of validated private bytes.
cdef Packet packet_from(const uint8_t *packet, uint32_t length)
