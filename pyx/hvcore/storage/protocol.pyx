"""EXECUTE_SRB without a channel: vstor packets answered by a SCSI target."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from hvcore.scsi.sense cimport ASC_INVALID_FIELD_IN_CDB, KEY_ILLEGAL_REQUEST
from hvcore.scsi.srb cimport (
    SCSI_CHECK_CONDITION, SRB_AUTOSENSE_VALID, SRB_BAD_BLOCK_LENGTH, SRB_INVALID_REQUEST)
from hvcore.scsi.target cimport ScsiPlan, scsi_fail, scsi_refuse

from hvcore.errors import ProtocolError


# Interface GUIDs as they lie in an offer.
INTERFACES = {
    "scsi": PyBytes_FromStringAndSize(<const char *> GUID_SCSI, 16),
    "ide": PyBytes_FromStringAndSize(<const char *> GUID_IDE, 16),
    "fibre channel": PyBytes_FromStringAndSize(<const char *> GUID_FIBRE_CHANNEL, 16),
}


cdef bint vstor_command(const VstorPacket *request, uint32_t version, uint8_t *cdb, ScsiPlan *plan) noexcept nogil:
    cdef const VstorScsiRequest *asked = &request.u.scsi
    if asked.length < VSTOR_SCSI_BYTES_WIN7 or (version >= VSTOR_WIN8 and asked.length != VSTOR_SCSI_BYTES):
        scsi_refuse(plan, SRB_BAD_BLOCK_LENGTH, SCSI_CHECK_CONDITION)
        return False
    if asked.cdb_length == 0 or asked.cdb_length > 16:
        scsi_fail(plan, SRB_INVALID_REQUEST | SRB_AUTOSENSE_VALID, KEY_ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB)
        return False
    memset(cdb, 0, 16)
    memcpy(cdb, asked.payload, asked.cdb_length)
    return True


cdef int load_request(object packet, VstorPacket *request) except -1:
    """A private zeroed copy; what is longer than 64 bytes is ignored (3.3)."""
    cdef Py_buffer view
    PyObject_GetBuffer(packet, &view, PyBUF_SIMPLE)
    try:
        if view.len < VSTOR_PACKET_BYTES_WIN7:
            raise ProtocolError(f"an EXECUTE_SRB packet has at least {VSTOR_PACKET_BYTES_WIN7} bytes, not {view.len}")
        memset(request, 0, sizeof(VstorPacket))
        memcpy(request, view.buf, min(view.len, <Py_ssize_t> sizeof(VstorPacket)))
    finally:
        PyBuffer_Release(&view)
    if request.operation != VSTOR_EXECUTE_SRB:
        raise ProtocolError(f"the packet's operation is {request.operation}, not EXECUTE_SRB")
    return 0


cdef bytes response(const VstorPacket *request, const ScsiPlan *plan, Py_ssize_t payload_bytes):
    cdef VstorPacket out
    vstor_complete(request, plan, &out)
    return PyBytes_FromStringAndSize(<char *> &out, vstor_reply_bytes(<uint32_t> min(payload_bytes, 64)))


def complete(packet, result):
    """The response packet to an EXECUTE_SRB packet, from a ScsiResult. ProtocolError: the packet is no such request."""
    cdef VstorPacket request
    cdef ScsiPlan plan
    load_request(packet, &request)
    cdef bytes sense = result.sense
    if len(sense) > VSTOR_SENSE_BYTES:
        raise ValueError(f"sense has at most {VSTOR_SENSE_BYTES} bytes, not {len(sense)}")
    scsi_refuse(&plan, result.srb_status, result.status)
    plan.data_length = result.transferred
    plan.sense_length = <uint8_t> len(sense)
    memcpy(plan.sense, PyBytes_AS_STRING(sense), len(sense))
    return response(&request, &plan, len(packet))


def execute(target, packet, data_out=b"", *, uint32_t version=VSTOR_WIN8_1):
    """Answers an EXECUTE_SRB packet: (response packet, bytes for the guest's buffer).

    The packet's data_transfer_length is the size of the guest's buffer; data_out is its content for a write. The
    address is not looked at. ProtocolError: what would be a fault of the channel (short packet, other operation, buffer
    and data_transfer_length that do not agree).
    """
    cdef VstorPacket request
    cdef ScsiPlan plan
    cdef uint8_t cdb[16]
    load_request(packet, &request)
    length = request.u.scsi.data_transfer_length
    inward = request.u.scsi.data_in != 0
    if len(data_out) != (0 if inward else length):
        raise ProtocolError(f"the packet says {length} bytes {'to' if inward else 'from'} the guest, "
                            f"data_out has {len(data_out)}")
    if not vstor_command(&request, version, cdb, &plan):
        return response(&request, &plan, len(packet)), b""
    result = target.execute(PyBytes_FromStringAndSize(<char *> cdb, 16), data_out, length if inward else 0)
    return complete(packet, result), result.data_in
