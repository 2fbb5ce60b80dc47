# vstor packets (storvsp.md sections 1, 3 and 5): the wire structs, and how a SCSI plan becomes a response.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from hvcore.scsi.srb cimport (
    SCSI_CHECK_CONDITION, SRB_AUTOSENSE_VALID, SRB_BAD_BLOCK_LENGTH, SRB_FLAG_DISABLE_AUTOSENSE, SRB_STATUS_MASK)
from hvcore.scsi.target cimport ScsiPlan

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #ifndef HV_STORAGE_PROTOCOL
    #define HV_STORAGE_PROTOCOL
    _Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "vstor packets are little-endian");
    /* 5.1; the part from offset 36 on exists since Windows 8 */
    typedef struct {
        uint16_t length;
        uint8_t srb_status, scsi_status, port, path_id, target_id, lun, cdb_length, sense_length, data_in, reserved;
        uint32_t data_transfer_length;
        uint8_t payload[20];
        uint16_t reserved2;
        uint8_t queue_tag, queue_action;
        uint32_t srb_flags, timeout_seconds, queue_sort_key;
    } hv_vstor_scsi_request;
    _Static_assert(sizeof(hv_vstor_scsi_request) == 0x34, "vstor SCSI request");
    _Static_assert(offsetof(hv_vstor_scsi_request, payload) == 16, "CDB and sense");
    _Static_assert(offsetof(hv_vstor_scsi_request, reserved2) == 0x24, "end of the Windows 7 SCSI request");
    /* 3.4 */
    typedef struct { uint16_t version, revision; } hv_vstor_version;
    typedef struct {
        uint32_t reserved;
        uint16_t max_sub_channels, reserved2;
        uint32_t flags, max_transfer_bytes;
        uint8_t reserved3[8];
    } hv_vstor_properties;
    _Static_assert(sizeof(hv_vstor_properties) == 24, "vstor channel properties");
    typedef struct {
        uint8_t primary_active, reserved[3];
        uint8_t primary_port[8], primary_node[8], secondary_port[8], secondary_node[8];
    } hv_vstor_fibre_channel;
    _Static_assert(sizeof(hv_vstor_fibre_channel) == 36, "vstor Fibre Channel data");
    /* 3.1 */
    typedef struct {
        uint32_t operation, flags, status;
        union {
            hv_vstor_scsi_request scsi;
            hv_vstor_version version;
            hv_vstor_properties properties;
            hv_vstor_fibre_channel fibre_channel;
            uint16_t sub_channel_count;
            uint8_t bytes[52];
        } u;
    } hv_vstor_packet;
    _Static_assert(sizeof(hv_vstor_packet) == 64, "vstor packet");
    _Static_assert(offsetof(hv_vstor_packet, u) == 12, "vstor packet header");
    /* section 1: interface GUIDs as they lie on the wire */
    __attribute__((unused)) static const uint8_t hv_guid_scsi[16] = {
        0xd9, 0x63, 0x61, 0xba, 0xa1, 0x04, 0x29, 0x4d, 0xb6, 0x05, 0x72, 0xe2, 0xff, 0xb1, 0xdc, 0x7f};
    __attribute__((unused)) static const uint8_t hv_guid_ide[16] = {
        0x32, 0x26, 0x41, 0x32, 0xcb, 0x86, 0xa2, 0x44, 0x9b, 0x5c, 0x50, 0xd1, 0x41, 0x73, 0x54, 0xf5};
    __attribute__((unused)) static const uint8_t hv_guid_fibre_channel[16] = {
        0x4a, 0xcc, 0x9b, 0x2f, 0x69, 0x00, 0xf3, 0x4a, 0xb7, 0x6b, 0x6f, 0xd0, 0xbe, 0x52, 0x8c, 0xda};
    #endif
    """
    ctypedef struct VstorScsiRequest "hv_vstor_scsi_request":
        uint16_t length
        uint8_t srb_status
        uint8_t scsi_status
        uint8_t port
        uint8_t path_id
        uint8_t target_id
        uint8_t lun
        uint8_t cdb_length
        uint8_t sense_length
        uint8_t data_in
        uint32_t data_transfer_length
        uint8_t payload[20]                  # CDB in a request, sense in a response
        uint8_t queue_tag
        uint8_t queue_action
        uint32_t srb_flags
        uint32_t timeout_seconds
        uint32_t queue_sort_key
    ctypedef struct VstorVersion "hv_vstor_version":
        uint16_t version
        uint16_t revision
    ctypedef struct VstorProperties "hv_vstor_properties":
        uint16_t max_sub_channels
        uint32_t flags
        uint32_t max_transfer_bytes
    ctypedef struct VstorFibreChannel "hv_vstor_fibre_channel":
        uint8_t primary_active
        uint8_t primary_port[8]
        uint8_t primary_node[8]
        uint8_t secondary_port[8]
        uint8_t secondary_node[8]
    ctypedef union VstorUnion:
        VstorScsiRequest scsi
        VstorVersion version
        VstorProperties properties
        VstorFibreChannel fibre_channel
        uint16_t sub_channel_count
        uint8_t bytes[52]
    ctypedef struct VstorPacket "hv_vstor_packet":
        uint32_t operation
        uint32_t flags
        uint32_t status
        VstorUnion u
    const uint8_t *GUID_SCSI "hv_guid_scsi"
    const uint8_t *GUID_IDE "hv_guid_ide"
    const uint8_t *GUID_FIBRE_CHANNEL "hv_guid_fibre_channel"

# 3.2
cdef enum VstorOperation:
    VSTOR_COMPLETE_IO = 1
    VSTOR_REMOVE_DEVICE = 2
    VSTOR_EXECUTE_SRB = 3
    VSTOR_RESET_LUN = 4
    VSTOR_RESET_ADAPTER = 5
    VSTOR_RESET_BUS = 6
    VSTOR_BEGIN_INITIALIZATION = 7
    VSTOR_END_INITIALIZATION = 8
    VSTOR_QUERY_PROTOCOL_VERSION = 9
    VSTOR_QUERY_PROPERTIES = 10
    VSTOR_ENUMERATE_BUS = 11
    VSTOR_FCHBA_DATA = 12
    VSTOR_CREATE_SUB_CHANNELS = 13
    VSTOR_EVENT_NOTIFICATION = 14

# 3.5
cdef enum VstorVersionNumber:
    VSTOR_WIN6 = 0x0200
    VSTOR_WIN7 = 0x0402
    VSTOR_WIN8 = 0x0501
    VSTOR_WIN8_1 = 0x0600
    VSTOR_WIN10 = 0x0602

cdef enum:
    VSTOR_REQUEST_COMPLETION = 1             # header flag
    VSTOR_MULTI_CHANNEL = 1                  # flag of the properties
    VSTOR_PACKET_BYTES = 64                  # 3.3; also before a version is agreed on
    VSTOR_PACKET_BYTES_WIN7 = 48             # and Win6
    VSTOR_SCSI_BYTES = 0x34
    VSTOR_SCSI_BYTES_WIN7 = 0x24
    VSTOR_SENSE_BYTES = 20
    VSTOR_MAX_TRANSFER = 0x40000             # 3.4, default

# 5.5
cdef enum NtStatus:
    NT_SUCCESS = 0
    NT_BUFFER_OVERFLOW = 0x80000005
    NT_DEVICE_BUSY = 0x80000011
    NT_UNSUCCESSFUL = 0xC0000001
    NT_INVALID_PARAMETER = 0xC000000D
    NT_INVALID_DEVICE_REQUEST = 0xC0000010
    NT_REVISION_MISMATCH = 0xC0000059
    NT_DEVICE_NOT_CONNECTED = 0xC000009D
    NT_IO_TIMEOUT = 0xC00000B5
    NT_DEVICE_DOES_NOT_EXIST = 0xC00000C0
    NT_CANCELLED = 0xC0000120
    NT_INVALID_DEVICE_STATE = 0xC0000184
    NT_IO_DEVICE_ERROR = 0xC0000185


cdef inline uint32_t vstor_packet_bytes(uint32_t version) noexcept nogil:
    """Size of a packet that nobody asked for; version 0: none agreed on."""
    return VSTOR_PACKET_BYTES_WIN7 if version == VSTOR_WIN6 or version == VSTOR_WIN7 else VSTOR_PACKET_BYTES


cdef inline uint32_t vstor_reply_bytes(uint32_t payload_bytes) noexcept nogil:
    """Size of the reply to a request with this payload, a multiple of 8 as it came from the ring (3.3)."""
    return payload_bytes if payload_bytes < VSTOR_PACKET_BYTES else VSTOR_PACKET_BYTES


cdef inline uint32_t vstor_ntstatus(uint8_t srb_status) noexcept nogil:
    """5.5, of the SRB status without its flag bits."""
    cdef uint8_t status = srb_status & SRB_STATUS_MASK
    if status == 0x01:
        return NT_SUCCESS
    if status == 0x05:
        return NT_DEVICE_BUSY
    if status == 0x20 or status == 0x21 or status == 0x08 or status == 0x11:
        return NT_DEVICE_DOES_NOT_EXIST
    if status == 0x09 or status == 0x0B:
        return NT_IO_TIMEOUT
    if status == 0x0A:
        return NT_DEVICE_NOT_CONNECTED
    if status == 0x15 or status == 0x22:
        return NT_INVALID_DEVICE_REQUEST
    if status == 0x12:
        return NT_BUFFER_OVERFLOW
    if status == 0x16:
        return NT_UNSUCCESSFUL
    if status == 0x02:
        return NT_CANCELLED
    return NT_IO_DEVICE_ERROR


cdef inline void vstor_reply(uint32_t status, VstorPacket *out) noexcept nogil:
    """A completion of anything but an SRB; the caller fills the union where the operation defines one."""
    memset(out, 0, sizeof(VstorPacket))
    out.operation = VSTOR_COMPLETE_IO
    out.status = status


cdef inline void vstor_complete(const VstorPacket *request, const ScsiPlan *plan, VstorPacket *out) noexcept nogil:
    """The response to EXECUTE_SRB, from the private copy of the request and a plan that is SCSI_DONE (5.1 to 5.5).

    All 64 bytes of `out` are written; vstor_reply_bytes says how many go out. Sense is capped by the request's sense
    length; without room for it, or with autosense disabled, bit 0x80 is clear too (5.3).
    """
    cdef const VstorScsiRequest *asked = &request.u.scsi
    cdef VstorScsiRequest *answer = &out.u.scsi
    cdef uint32_t sense = plan.sense_length
    if sense > asked.sense_length:
        sense = asked.sense_length
    if sense > VSTOR_SENSE_BYTES:
        sense = VSTOR_SENSE_BYTES
    if asked.srb_flags & SRB_FLAG_DISABLE_AUTOSENSE:
        sense = 0
    vstor_reply(vstor_ntstatus(plan.srb_status), out)
    answer.length = VSTOR_SCSI_BYTES
    answer.srb_status = plan.srb_status & SRB_STATUS_MASK
    answer.scsi_status = plan.scsi_status
    answer.path_id = asked.path_id
    answer.target_id = asked.target_id
    answer.lun = asked.lun
    answer.cdb_length = 16
    answer.sense_length = VSTOR_SENSE_BYTES
    # More than the guest's buffer is never claimed, whatever the plan says (checklist 8).
    answer.data_transfer_length = plan.data_length
    if answer.data_transfer_length > asked.data_transfer_length:
        answer.data_transfer_length = asked.data_transfer_length
    if sense:
        answer.srb_status |= SRB_AUTOSENSE_VALID
        memcpy(answer.payload, plan.sense, sense)


# The checks of the request itself that fail the SRB (5.3, checks 3 and 4), and the CDB with the bytes beyond its length
# zeroed. request: a private copy of at least 48 bytes of packet, then zeros (check 2 is the caller's). True: `cdb`
# is ready for scsi_plan, scsi_absent or scsi_report_luns; False: the plan holds the answer.
cdef bint vstor_command(const VstorPacket *request, uint32_t version, uint8_t *cdb, ScsiPlan *plan) noexcept nogil
