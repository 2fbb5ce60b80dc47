"""Commands and transfers on a storvsp channel (see transfer.pxd)."""

from libc.stdlib cimport malloc
from libc.string cimport memcpy

from hvcore.linux.atomics cimport load_acquire32
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.threads cimport monitor_enter, monitor_unlock
from hvcore.storage.protocol cimport VSTOR_COMPLETE_IO, VstorPacket, VstorScsiRequest
from hvcore.storage.queue cimport (
    VSC_CHANNELS, VSC_INTERRUPTED, VSC_OK, VSC_TIMEOUT, Vsc, VscSlot, VscUnit, vsc_admits, vsc_again, vsc_copy_in,
    vsc_copy_out, vsc_pages, vsc_publish, vsc_read_srb, vsc_send, vsc_slot, vsc_slot_return, vsc_wait, vsc_wait_any,
    vsc_wait_for)
from hvcore.vmbus.ring cimport RING_OK

cdef enum:
    SIGNAL_CHECK = 4096          # waits after which the interpreter may look for signals


cdef void command_done(VscSlot *slot) noexcept nogil:
    cdef Command *command = <Command *> slot.owner
    cdef uint32_t length = min(slot.reply.u.scsi.data_transfer_length, command.length)
    if command.patient and vsc_again(command.vsc, slot):
        command.again = True
        return
    if command.data != NULL and slot.page_count:
        vsc_copy_out(command.vsc, slot, command.data, length)
    command.reply = slot.reply
    command.done = True


cdef bint transfer_again(Transfer *transfer, uint64_t tag) noexcept nogil:
    """An SRB is to be sent again. Its slot and pages are others' meanwhile: a unit that refuses holds nothing."""
    if transfer.again == NULL:
        transfer.again = <uint64_t *> malloc(transfer.depth * sizeof(uint64_t))
        if transfer.again == NULL:
            return False
    transfer.again[transfer.again_count] = tag
    transfer.again_count += 1
    return True


cdef void transfer_done(VscSlot *slot) noexcept nogil:
    cdef Transfer *transfer = <Transfer *> slot.owner
    cdef VstorScsiRequest *srb = &slot.reply.u.scsi
    cdef uint64_t block = slot.tag // transfer.parts, into
    cdef uint8_t status = srb.srb_status
    transfer.in_flight -= 1
    if vsc_again(transfer.vsc, slot) and transfer_again(transfer, slot.tag):
        return
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


cdef void transfer_send(Transfer *transfer, uint32_t most) noexcept nogil:
    """[monitor] Sends as much as depth, unit, slots, pages and ring allow, and at most so many SRBs."""
    cdef Vsc *vsc = transfer.vsc
    cdef VscUnit *unit = &vsc.units[transfer.lun]
    cdef VscSlot *slot
    cdef VstorPacket packet
    cdef uint64_t tag, block, into, offset, total = transfer.blocks * transfer.parts
    cdef uint8_t *data
    cdef uint32_t length
    cdef int status
    while (most and transfer.in_flight < transfer.depth and (transfer.cursor[0] < total or transfer.again_count)
            and vsc_admits(unit)):
        slot = vsc_slot(vsc)
        if slot == NULL:
            break
        tag = transfer.again[transfer.again_count - 1] if transfer.again_count else transfer.cursor[0]
        block = tag // transfer.parts
        into = tag % transfer.parts * transfer.part
        length = <uint32_t> min(<uint64_t> transfer.part, transfer.block - into)
        offset = into + transfer.offset + block * transfer.block
        if transfer.offsets != NULL:
            offset = into + transfer.offsets[block]
        data = transfer.data + block * transfer.block + into
        if not transfer.direct:
            if not vsc_pages(vsc, unit, slot, length):
                vsc_slot_return(vsc, slot)
                break
            if transfer.write:
                vsc_copy_in(vsc, slot, data, length)
        vsc_read_srb(&packet, offset // transfer.sector_size, length // transfer.sector_size, length, transfer.write)
        if transfer.fua:
            packet.u.scsi.payload[1] = 0x08
        packet.u.scsi.lun = <uint8_t> transfer.lun
        slot.done = transfer_done
        slot.owner = transfer
        slot.tag = tag
        status = vsc_send(vsc, slot, &packet, <uint64_t> (data - vsc.base) if transfer.direct else 0, length)
        if status != RING_OK:
            vsc_slot_return(vsc, slot)
            break
        if transfer.again_count:
            transfer.again_count -= 1
        else:
            transfer.cursor[0] += 1
        transfer.in_flight += 1
        most -= 1
    vsc_publish(vsc)


cdef int transfer_run(Transfer *transfer, int64_t deadline_ns) noexcept nogil:
    cdef Vsc *vsc = transfer.vsc
    cdef int result = VSC_OK
    cdef uint32_t waits = 0
    monitor_enter(&vsc.monitor, &vsc.wanted)
    while True:
        transfer_send(transfer, <uint32_t> -1)
        if transfer.finished == transfer.blocks * transfer.parts:
            break
        result = vsc_wait_for(vsc, &vsc.units[transfer.lun], deadline_ns)
        waits += 1
        if result == VSC_OK and waits == SIGNAL_CHECK:
            result = VSC_INTERRUPTED         # a wait that never blocks never sees EINTR
        if result != VSC_OK and transfer.finished < transfer.blocks * transfer.parts:
            break
    monitor_unlock(&vsc.monitor)
    return VSC_OK if transfer.finished == transfer.blocks * transfer.parts else result


cdef int spread_run(Spread *spread, int64_t deadline_ns) noexcept nogil:
    cdef uint32_t[VSC_CHANNELS] seen
    cdef Transfer *transfer = spread.transfers
    cdef VscUnit *unit
    cdef uint64_t finished
    cdef int64_t until
    cdef uint32_t i, k, waits = 0
    cdef int result = VSC_OK
    while True:
        finished = 0
        until = deadline_ns
        for i in range(spread.count):
            k = (spread.first + i) % spread.count
            transfer = &spread.transfers[k]
            unit = &transfer.vsc.units[transfer.lun]
            monitor_enter(&transfer.vsc.monitor, &transfer.vsc.wanted)
            transfer_send(transfer, transfer.depth)
            finished += transfer.finished
            seen[k] = load_acquire32(&transfer.vsc.progress)
            if unit.refusals and unit.in_flight == 0 and (until < 0 or unit.retry_ns < until):
                until = unit.retry_ns
            monitor_unlock(&transfer.vsc.monitor)
        if finished == transfer.blocks * transfer.parts:
            return VSC_OK
        if result != VSC_OK:
            return result
        result = vsc_wait_any(spread.channels, seen, spread.count, until)
        if result == VSC_TIMEOUT and (deadline_ns < 0 or <int64_t> clock_ns() < deadline_ns):
            result = VSC_OK
        waits += 1
        if result == VSC_OK and waits == SIGNAL_CHECK:
            result = VSC_INTERRUPTED


cdef int command_run(Vsc *vsc, Command *command, const VstorPacket *packet, uint32_t length, const uint8_t *data_out,
                     bint *sent, int64_t deadline_ns) noexcept nogil:
    cdef VscUnit *unit = &vsc.units[packet.u.scsi.lun]
    cdef VscSlot *slot
    cdef int result = VSC_OK
    monitor_enter(&vsc.monitor, &vsc.wanted)
    while not command.done:
        if command.again:
            command.again = sent[0] = False
        if not sent[0] and (not command.patient or vsc_admits(unit)):
            slot = vsc_slot(vsc)
            if slot != NULL:
                if length == 0 or vsc_pages(vsc, unit, slot, length):
                    slot.done = command_done
                    slot.owner = command
                    if data_out != NULL:
                        vsc_copy_in(vsc, slot, data_out, length)
                    sent[0] = vsc_send(vsc, slot, packet, 0, length) == RING_OK
                if sent[0]:
                    vsc_publish(vsc)
                else:
                    vsc_slot_return(vsc, slot)
        result = vsc_wait_for(vsc, unit, deadline_ns) if command.patient else vsc_wait(vsc, deadline_ns)
        if result != VSC_OK:
            break
    monitor_unlock(&vsc.monitor)
    return VSC_OK if command.done else result
