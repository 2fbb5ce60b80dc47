"""VMBus packets (vmbus.md section 2): validation on the data path, and the codec that Python calls."""

import struct
from dataclasses import dataclass

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from hvcore.vmbus cimport abi
from hvcore.vmbus.abi cimport GpaDirectHeader, PacketDescriptor
from hvcore.vmbus.abi cimport GpaRange as GpaRangeHeader

from hvcore.errors import ProtocolError, RingCorrupt

IN_BAND = abi.PACKET_IN_BAND
TRANSFER_PAGES = abi.PACKET_TRANSFER_PAGES
GPA_DIRECT = abi.PACKET_GPA_DIRECT
COMPLETION = abi.PACKET_COMPLETION
COMPLETION_REQUESTED = abi.PACKET_COMPLETION_REQUESTED


cdef int gpa_direct_parse(const uint8_t *packet, uint32_t length, GpaDirectView *out) noexcept nogil:
    cdef PacketDescriptor head
    cdef GpaDirectHeader gpa
    cdef GpaRangeHeader item
    cdef uint32_t offset
    cdef uint32_t _
    cdef uint32_t rest
    cdef uint64_t pfns
    memcpy(&head, packet, sizeof(head))
    offset = 8 * <uint32_t> head.data_offset8
    # Before anything is subtracted: offset8 = 2 leaves no room for the header (N6, PK-5).
    if head.data_offset8 < 3 or offset > length:
        return PACKET_CORRUPT
    memcpy(&gpa, packet + sizeof(head), sizeof(gpa))
    if gpa.range_count == 0:                                                # N7
        return PACKET_CORRUPT
    out.range_count = gpa.range_count
    out.ranges = packet + sizeof(head) + sizeof(gpa)
    out.data_length = 0
    out.payload = packet + offset
    out.payload_length = length - offset
    # What is left for ranges bounds the loop, whatever count the peer claims.
    rest = offset - <uint32_t> (sizeof(head) + sizeof(gpa))
    for _ in range(gpa.range_count):
        if rest < sizeof(item):
            return PACKET_FAILED
        memcpy(&item, packet + offset - rest, sizeof(item))
        rest -= <uint32_t> sizeof(item)
        if item.byte_count == 0 or item.byte_offset > 4095:                 # N8
            return PACKET_FAILED
        pfns = gpa_pfn_count(item.byte_offset, item.byte_count)
        if pfns > GPA_RANGE_MAX_PFNS or pfns * 8 > rest:                    # N9, N10
            return PACKET_FAILED
        rest -= <uint32_t> pfns * 8
        out.data_length += item.byte_count
    return PACKET_OK


cdef int transfer_pages_parse(const uint8_t *packet, uint32_t length, TransferPagesView *out) noexcept nogil:
    cdef PacketDescriptor head
    cdef uint32_t words[2]
    cdef uint32_t offset
    memcpy(&head, packet, sizeof(head))
    offset = 8 * <uint32_t> head.data_offset8
    if head.data_offset8 < 3 or offset > length:                            # PK-7
        return PACKET_CORRUPT
    memcpy(words, packet + sizeof(head), sizeof(words))
    # 64 bits: 8 * 0x20000001 is 8 in 32 (N12).
    if 24 + 8 * <uint64_t> words[1] > offset:
        return PACKET_CORRUPT
    out.set_id = words[0] & 0xFFFF
    out.range_count = words[1]
    out.ranges = packet + 24
    out.payload = packet + offset
    out.payload_length = length - offset
    return PACKET_OK


cdef const char *header_fault(const uint8_t *packet, uint32_t length) noexcept nogil:
    cdef PacketDescriptor head
    cdef GpaDirectView gpa
    cdef TransferPagesView transfer
    memcpy(&head, packet, sizeof(head))
    if head.type == abi.PACKET_GPA_DIRECT and gpa_direct_parse(packet, length, &gpa) == PACKET_CORRUPT:
        return "the GPA-direct packet has no range header or no range"
    if head.type == abi.PACKET_TRANSFER_PAGES and transfer_pages_parse(packet, length, &transfer) == PACKET_CORRUPT:
        return "the transfer-page ranges do not fit before the payload"
    return NULL


@dataclass(frozen=True, slots=True)
class GpaRange:
    """Guest memory named by a GPA-direct packet: byte_count bytes from byte_offset (0..4095) of the first of `pfns`.

    There are as many PFNs as the range touches pages (vmbus.md 2.4).
    """

    byte_count: int
    byte_offset: int
    pfns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TransferRange:
    """Part of the buffer agreed for transfer pages: byte_count bytes at byte_offset of the buffer (PK-6)."""

    byte_count: int
    byte_offset: int


@cython.final
@cython.dataclasses.dataclass(frozen=True)
cdef class Packet:
    """One VMBus packet: descriptor fields, the type-specific header as it came, and the payload.

    `payload` of a received packet is a multiple of 8 bytes: the wire does not say how much of its tail is padding
    (RB-19). `flags` bit 0 is COMPLETION_REQUESTED. Immutable, equal by value.
    """

    type: cython.uint = 6
    flags: cython.uint = 0
    transaction_id: uint64_t = 0
    payload: bytes = b""
    header: bytes = b""

    @property
    def ranges(self):
        """The GpaRange or TransferRange tuple of a GPA-direct or transfer-page packet, else ().

        ProtocolError when they break a rule for which only this request fails (vmbus.md 8.4 N8 to N10).
        """
        cdef bytes packet
        if self.type == abi.PACKET_GPA_DIRECT:
            packet = encode_packet(self)
            return gpa_ranges(<const uint8_t *> PyBytes_AS_STRING(packet), <uint32_t> PyBytes_GET_SIZE(packet))
        if self.type == abi.PACKET_TRANSFER_PAGES:
            packet = encode_packet(self)
            return transfer_ranges(<const uint8_t *> PyBytes_AS_STRING(packet), <uint32_t> PyBytes_GET_SIZE(packet))
        return ()


cdef tuple gpa_ranges(const uint8_t *packet, uint32_t length):
    cdef GpaDirectView view
    cdef GpaRangeView item
    cdef const uint8_t *cursor
    cdef uint32_t i
    cdef int status = gpa_direct_parse(packet, length, &view)
    if status != PACKET_OK:
        raise ProtocolError("a GPA range is empty, starts behind its first page or has fewer PFNs than pages")
    cursor = view.ranges
    result = []
    for _ in range(view.range_count):
        cursor = gpa_range_next(cursor, &item)
        result.append(GpaRange(item.byte_count, item.byte_offset, tuple([item.pfns[i] for i in range(item.pfn_count)])))
    return tuple(result)


cdef tuple transfer_ranges(const uint8_t *packet, uint32_t length):
    cdef TransferPagesView view
    cdef GpaRangeHeader item
    cdef uint32_t i
    if transfer_pages_parse(packet, length, &view) != PACKET_OK:
        raise ProtocolError("the transfer-page ranges do not fit before the payload")
    result = []
    for i in range(view.range_count):
        memcpy(&item, view.ranges + 8 * i, sizeof(item))
        result.append(TransferRange(item.byte_count, item.byte_offset))
    return tuple(result)


cdef Packet packet_from(const uint8_t *packet, uint32_t length):
    cdef PacketDescriptor head
    cdef uint32_t offset
    cdef Packet result = Packet.__new__(Packet)
    memcpy(&head, packet, sizeof(head))
    offset = 8 * <uint32_t> head.data_offset8
    result.type = head.type
    result.flags = head.flags
    result.transaction_id = head.transaction_id
    result.header = PyBytes_FromStringAndSize(<const char *> packet + 16, offset - 16) if offset > 16 else b""
    result.payload = PyBytes_FromStringAndSize(<const char *> packet + offset, length - offset)
    return result


def gpa_direct_header(ranges):
    """The type-specific header of a GPA-direct packet for a sequence of GpaRange (or equal tuples).

    ValueError when a range is empty, starts behind its first page, or has not one PFN per page.
    """
    header = bytearray(struct.pack("<II", 0, len(ranges)))
    if not ranges:
        raise ValueError("a GPA-direct packet needs at least one range")
    for item in ranges:
        byte_count, byte_offset, pfns = item if isinstance(item, tuple) else (
            item.byte_count, item.byte_offset, item.pfns)
        if not 0 < byte_count <= 0xFFFFFFFF or not 0 <= byte_offset <= 4095:
            raise ValueError(f"a range of {byte_count} bytes at offset {byte_offset} is not 1.. bytes at 0..4095")
        count = (byte_offset + byte_count + 4095) // 4096
        if len(pfns) != count:
            raise ValueError(f"{byte_count} bytes at offset {byte_offset} need {count} PFNs, not {len(pfns)}")
        header += struct.pack(f"<II{len(pfns)}Q", byte_count, byte_offset, *pfns)
    return bytes(header)


def encode_packet(Packet packet not None):
    """The packet's bytes as they stand in a ring, padded to 8 with zeros, without the trailer.

    ValueError when the header is not a multiple of 8 bytes or the packet exceeds 524280 bytes (PK-1).
    """
    offset = 16 + len(packet.header)
    length = (offset + len(packet.payload) + 7) & ~7
    if offset % 8:
        raise ValueError(f"a packet header of {offset - 16} bytes is not a multiple of 8")
    if length > PACKET_MAX_BYTES:
        raise ValueError(f"a packet of {length} bytes exceeds {PACKET_MAX_BYTES}")
    if packet.type > 0xFFFF or packet.flags > 0xFFFF:
        raise ValueError("type and flags are 16 bits")
    head = struct.pack("<4HQ", packet.type, offset >> 3, length >> 3, packet.flags, packet.transaction_id)
    return b"".join((head, packet.header, packet.payload, bytes(-len(packet.payload) % 8)))


def decode_packet(data, role="host"):
    """The Packet in a bytes-like object that holds exactly one packet without its trailer.

    RingCorrupt for what kills a channel (vmbus.md 2.2, 8.4) in the eyes of `role`, "host" (strict) or "guest".
    encode_packet gives the same bytes again.
    """
    cdef bytes packet = bytes(data)
    cdef PacketDescriptor head
    cdef const char *fault
    cdef Py_ssize_t length = PyBytes_GET_SIZE(packet)
    cdef const uint8_t *start = <const uint8_t *> PyBytes_AS_STRING(packet)
    if role not in ("host", "guest"):
        raise ValueError(f"role is 'host' or 'guest', not {role!r}")
    if length < 16:
        raise RingCorrupt("the packet is shorter than its descriptor")
    memcpy(&head, start, sizeof(head))
    fault = descriptor_fault(&head, role == "host")
    if fault == NULL and 8 * <Py_ssize_t> head.length8 != length:
        fault = "the packet's length is not the length its descriptor says"
    if fault == NULL:
        fault = header_fault(start, <uint32_t> length)
    if fault != NULL:
        raise RingCorrupt(fault.decode())
    return packet_from(start, <uint32_t> length)
