# VMBus ring wire data (vmbus.md sections 1 and 2).

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #ifndef HV_VMBUS_ABI
    #define HV_VMBUS_ABI
    /* vmbus.md 1.2: the control page of one ring. */
    typedef struct {
        uint32_t in, out, interrupt_mask, pending_send_size;
        uint32_t reserved[12];
        uint32_t feature_bits;
    } hv_ring_control;
    _Static_assert(offsetof(hv_ring_control, feature_bits) == 64, "VMBus ring control page (RB-1)");
    /* vmbus.md 2.1 */
    typedef struct { uint16_t type, data_offset8, length8, flags; uint64_t transaction_id; } hv_packet_descriptor;
    _Static_assert(sizeof(hv_packet_descriptor) == 16, "VMBus packet descriptor");
    /* vmbus.md 2.4: header of a GPA-direct packet after its descriptor, and of each of its ranges */
    typedef struct { uint32_t reserved, range_count; } hv_gpa_direct_header;
    _Static_assert(sizeof(hv_gpa_direct_header) == 8, "VMBus GPA-direct header");
    typedef struct { uint32_t byte_count, byte_offset; } hv_gpa_range;
    _Static_assert(sizeof(hv_gpa_range) == 8, "VMBus GPA range header");
    #endif
    """
    ctypedef struct RingControl "hv_ring_control":
        uint32_t in_ "in"
        uint32_t out
        uint32_t interrupt_mask
        uint32_t pending_send_size
        uint32_t feature_bits
    ctypedef struct PacketDescriptor "hv_packet_descriptor":
        uint16_t type
        uint16_t data_offset8
        uint16_t length8
        uint16_t flags
        uint64_t transaction_id
    ctypedef struct GpaDirectHeader "hv_gpa_direct_header":
        uint32_t reserved
        uint32_t range_count
    ctypedef struct GpaRange "hv_gpa_range":
        uint32_t byte_count
        uint32_t byte_offset

cdef enum:
    PAGE_SIZE = 4096
    PACKET_TRAILER = 8                    # after every packet, not in length8 (RB-17)
    PACKET_IN_BAND = 6
    PACKET_TRANSFER_PAGES = 7
    PACKET_GPA_DIRECT = 9
    PACKET_COMPLETION = 0xB
    PACKET_COMPLETION_REQUESTED = 1       # descriptor flag
    RING_FEATURE_PENDING_SEND_SIZE = 1
