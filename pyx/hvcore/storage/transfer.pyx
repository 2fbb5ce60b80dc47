"""Commands and transfers on a storvsp channel (see transfer.pxd)."""

from libc.string cimport memcpy

from hvcore.linux.threads cimport monitor_lock, monitor_unlock
from hvcore.storage.protocol cimport VSTOR_COMPLETE_IO, VstorPacket, VstorScsiRequest
from hvcore.storage.queue cimport (
    VSC_INTERRUPTED, VSC_OK, Vsc, VscSlot, vsc_copy_in, vsc_copy_out, vsc_pages, vsc_publish, vsc_read_srb, vsc_send,
    vsc_slot, vsc_slot_return, vsc_wait)
from hvcore.vmbus.ring cimport RING_OK

cdef enum:
    SIGNAL_CHECK = 4096          # waits after which the interpreter may look for signals


cdef void command_done(VscSlot *slot) noexcept nogil:
    cdef Command *command = <Command *> slot.owner
    cdef uint32_t length = min(slot.reply.u.scsi.data_transfer_length, command.length)
    if command.data != NULL and slot.page_count:
        vsc_copy_out(command.vsc, slot, command.data, length)
    command.reply = slot.reply
    command.done = True


cdef void transfer_done(VscSlot *slot) noexcept nogil:
    cdef Transfer *transfer = <Transfer *> slot.owner
    cdef VstorScsiRequest *srb = &slot.reply.u.scsi
    cdef uint64_t block = slot.tag // transfer.parts, into
    cdef uint8_t status = srb.srb_status
    transfer.in_flight -= 1
    transfer.finished += 1
    if slot.reply.operation != VSTOR_COMPLETE_IO or (status == 0x01 and srb.data_transfer_length != slot.length):
        status = 0x12                        # the host says success and moved something else: an underrun
    if status != 0x01:
        if transfer.statuses != NULL:
            transfer.statuses[block] = status
        if block < transfer.failed:
            transfer.failed = block
            transfer.srb_status = status
            transfer.scsi_status = srb.scsi_status
            memcpy(transfer.sense, srb.payload, 20)
    elif not transfer.write and not transfer.direct:
        into = slot.tag % transfer.parts * transfer.part
        vsc_copy_out(transfer.vsc, slot, transfer.data + block * transfer.block + into, slot.length)


cdef void transfer_send(Transfer *transfer) noexcept nogil:
    """[monitor] Sends as much as depth, slots, pages and ring allow."""
    cdef Vsc *vsc = transfer.vsc
    cdef VscSlot *slot
    cdef VstorPacket packet
    cdef uint64_t block, into, offset
    cdef uint8_t *data
    cdef uint32_t length
    cdef int status
    while transfer.next < transfer.blocks * transfer.parts and transfer.in_flight < transfer.depth:
        slot = vsc_slot(vsc)
        if slot == NULL:
            break
        block = transfer.next // transfer.parts
        into = transfer.next % transfer.parts * transfer.part
        length = <uint32_t> min(<uint64_t> transfer.part, transfer.block - into)
        offset = into + transfer.offset + block * transfer.block
        if transfer.offsets != NULL:
            offset = into + transfer.offsets[block]
        data = transfer.data + block * transfer.block + into
        if not transfer.direct:
            if not vsc_pages(vsc, slot, length):
                vsc_slot_return(vsc, slot)
                break
            if transfer.write:
                vsc_copy_in(vsc, slot, data, length)
        vsc_read_srb(&packet, offset // transfer.sector_size, length // transfer.sector_size, length, transfer.write)
        packet.u.scsi.lun = <uint8_t> transfer.lun
        slot.done = transfer_done
        slot.owner = transfer
        slot.tag = transfer.next
        status = vsc_send(vsc, slot, &packet, <uint64_t> (data - vsc.base) if transfer.direct else 0, length)
        if status != RING_OK:
            vsc_slot_return(vsc, slot)
            break
        transfer.next += 1
        transfer.in_flight += 1
    vsc_publish(vsc)


cdef int transfer_run(Transfer *transfer, int64_t deadline_ns) noexcept nogil:
    """Until all is finished or the wait ends otherwise (VscResult); may be called again after VSC_INTERRUPTED."""
    cdef Vsc *vsc = transfer.vsc
    cdef int result = VSC_OK
    cdef uint32_t waits = 0
    monitor_lock(&vsc.monitor)
    while True:
        transfer_send(transfer)
        if transfer.finished == transfer.blocks * transfer.parts:
            break
        result = vsc_wait(vsc, deadline_ns)
        waits += 1
        if result == VSC_OK and waits == SIGNAL_CHECK:
            result = VSC_INTERRUPTED         # a wait that never blocks never sees EINTR
        if result != VSC_OK and transfer.finished < transfer.blocks * transfer.parts:
            break
    monitor_unlock(&vsc.monitor)
    return VSC_OK if transfer.finished == transfer.blocks * transfer.parts else result


cdef int command_run(Vsc *vsc, Command *command, const VstorPacket *packet, uint32_t length, const uint8_t *data_out,
                     bint *sent, int64_t deadline_ns) noexcept nogil:
    cdef VscSlot *slot
    cdef int result = VSC_OK
    monitor_lock(&vsc.monitor)
    while not command.done:
        if not sent[0]:
            slot = vsc_slot(vsc)
            if slot != NULL:
                if length == 0 or vsc_pages(vsc, slot, length):
                    slot.done = command_done
                    slot.owner = command
                    if data_out != NULL:
                        vsc_copy_in(vsc, slot, data_out, length)
                    sent[0] = vsc_send(vsc, slot, packet, 0, length) == RING_OK
                if sent[0]:
                    vsc_publish(vsc)
                else:
                    vsc_slot_return(vsc, slot)
        result = vsc_wait(vsc, deadline_ns)
        if result != VSC_OK:
            break
    monitor_unlock(&vsc.monitor)
    return VSC_OK if command.done else result
