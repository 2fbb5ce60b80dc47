"""Slots, sending, receiving and waiting of one storvsp channel's VSC (see queue.pxd; storvsp.md is the source of every
rule)."""

from libc.errno cimport EINTR
from libc.string cimport memcpy, memset

from hvcore.linux.atomics cimport cpu_relax, fetch_add32, load_acquire32, load_relaxed32
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.spin cimport SpinBudget, spin_begin, spin_end, spin_learn, spin_yield
from hvcore.linux.syscalls cimport futex_wait, futex_wake
from hvcore.linux.threads cimport monitor_enter, monitor_unlock
from hvcore.storage.protocol cimport (
    VSTOR_COMPLETE_IO, VSTOR_ENUMERATE_BUS, VSTOR_EXECUTE_SRB, VSTOR_REMOVE_DEVICE, VSTOR_REQUEST_COMPLETION,
    VstorScsiRequest)
from hvcore.vmbus.abi cimport (
    PACKET_COMPLETION, PACKET_COMPLETION_REQUESTED, PACKET_GPA_DIRECT, PACKET_IN_BAND, PAGE_SIZE, GpaDirectHeader,
    GpaRange, PacketDescriptor)
from hvcore.vmbus.events cimport (
    event_guest_clear, event_guest_pending, event_guest_sleeps, event_guest_wait, event_signal_host, event_wake_guest)
from hvcore.vmbus.ring cimport (
    RING_EMPTY, RING_FULL, RING_OK, ring_mask, ring_poll, ring_publish, ring_put, ring_release, ring_take, ring_unmask,
    ring_want, ring_want_no_more)

cdef enum:
    HEADER_BYTES = 12            # of a vstor packet (3.1)
    LOOKS = 128                  # at the ring before a waiter gives up the monitor: some microseconds
    RETRY_NS = 1000000           # to the next try with a unit that refused everything, doubled each time ...
    RETRY_DOUBLINGS = 7          # ... so often
    ATTENTIONS_IN_ROW = 16       # more than a unit can have waiting


# Slots and bounce pages.

cdef VscSlot *vsc_slot(Vsc *vsc) noexcept nogil:
    cdef VscSlot *slot = vsc.free
    if slot != NULL:
        vsc.free = slot.next
        slot.generation += 1
        slot.transaction_id = slot.generation << 16 | <uint64_t> (slot - vsc.slots + 1)
        slot.page_count = 0
        vsc.in_flight += 1
    return slot


cdef void vsc_slot_return(Vsc *vsc, VscSlot *slot) noexcept nogil:
    cdef uint32_t i
    if slot.page_count:
        slot.unit.pages_used -= slot.page_count
    for i in range(slot.page_count):
        vsc.free_pages[vsc.free_page_count] = slot.pages[i]
        vsc.free_page_count += 1
    slot.page_count = 0
    slot.transaction_id = 0
    slot.done = NULL
    slot.next = vsc.free
    vsc.free = slot
    vsc.in_flight -= 1


cdef bint vsc_pages(Vsc *vsc, VscUnit *unit, VscSlot *slot, uint32_t length) noexcept nogil:
    cdef uint32_t needed = (length + PAGE_SIZE - 1) // PAGE_SIZE
    cdef uint32_t i
    # A unit's own share: what a slow one holds is nobody else's.
    if needed > vsc.pages_per_slot or needed > vsc.free_page_count or needed > unit.pages - unit.pages_used:
        return False
    slot.unit = unit
    unit.pages_used += needed
    for i in range(needed):
        vsc.free_page_count -= 1
        slot.pages[i] = vsc.free_pages[vsc.free_page_count]
    slot.page_count = needed
    return True


cdef void vsc_copy_out(Vsc *vsc, VscSlot *slot, uint8_t *to, uint32_t length) noexcept nogil:
    cdef uint32_t done = 0, page = 0, part
    while done < length:
        part = min(<uint32_t> PAGE_SIZE, length - done)
        memcpy(to + done, vsc.base + <uint64_t> slot.pages[page] * PAGE_SIZE, part)
        done += part
        page += 1
    vsc.bytes_copied += length


cdef void vsc_copy_in(Vsc *vsc, VscSlot *slot, const uint8_t *data, uint32_t length) noexcept nogil:
    cdef uint32_t done = 0, page = 0, part
    while done < length:
        part = min(<uint32_t> PAGE_SIZE, length - done)
        memcpy(vsc.base + <uint64_t> slot.pages[page] * PAGE_SIZE, data + done, part)
        done += part
        page += 1
    vsc.bytes_copied += length


cdef void vsc_abandon(Vsc *vsc, void *owner) noexcept nogil:
    cdef uint32_t i
    for i in range(vsc.depth):
        if vsc.slots[i].transaction_id and vsc.slots[i].owner == owner:
            vsc.slots[i].done = NULL
            vsc.slots[i].owner = NULL
            vsc.orphans += 1


# Sending.

cdef void vsc_srb(
        VstorPacket *packet, const uint8_t *cdb, uint32_t cdb_length, uint32_t length, uint8_t data_in) noexcept nogil:
    """EXECUTE_SRB as Linux fills it in (5.2)."""
    cdef VstorScsiRequest *srb = &packet.u.scsi
    memset(packet, 0, sizeof(VstorPacket))
    packet.operation = VSTOR_EXECUTE_SRB
    packet.flags = VSTOR_REQUEST_COMPLETION
    srb.length = 0x34
    srb.cdb_length = <uint8_t> cdb_length
    srb.sense_length = 0x14
    srb.data_in = data_in
    srb.data_transfer_length = length
    srb.queue_tag = 0xFF
    srb.queue_action = 0x20
    srb.srb_flags = 0x10A | (0 if data_in == 2 else 0x40 if data_in else 0x80)
    srb.timeout_seconds = 60
    memcpy(srb.payload, cdb, cdb_length)


cdef void vsc_read_srb(VstorPacket *packet, uint64_t lba, uint32_t blocks, uint32_t length, bint write) noexcept nogil:
    """READ or WRITE, with the ten-byte CDB where it reaches (8.2)."""
    cdef uint8_t cdb[16]
    cdef int i
    memset(cdb, 0, sizeof(cdb))
    if lba <= 0xffffffffu and blocks <= 0xffff:
        cdb[0] = 0x2A if write else 0x28
        for i in range(4):
            cdb[2 + i] = <uint8_t> (lba >> (24 - 8 * i))
        cdb[7] = <uint8_t> (blocks >> 8)
        cdb[8] = <uint8_t> blocks
        vsc_srb(packet, cdb, 10, length, 0 if write else 1)
    else:
        cdb[0] = 0x8A if write else 0x88
        for i in range(8):
            cdb[2 + i] = <uint8_t> (lba >> (56 - 8 * i))
        for i in range(4):
            cdb[10 + i] = <uint8_t> (blocks >> (24 - 8 * i))
        vsc_srb(packet, cdb, 16, length, 0 if write else 1)


cdef int vsc_send(Vsc *vsc, VscSlot *slot, const VstorPacket *packet, uint64_t gpa, uint32_t length) noexcept nogil:
    cdef uint64_t *pfns = vsc.header + 2
    cdef GpaDirectHeader *header = <GpaDirectHeader *> vsc.header
    cdef GpaRange *range_ = <GpaRange *> (vsc.header + 1)
    cdef uint32_t count = 0, header_length = 0, total, i
    cdef int status, type_ = PACKET_IN_BAND
    if length:
        type_ = PACKET_GPA_DIRECT
        header.reserved = 0
        header.range_count = 1
        range_.byte_count = length
        if slot.page_count:
            range_.byte_offset = 0
            count = slot.page_count
            for i in range(count):
                pfns[i] = slot.pages[i]
        else:
            range_.byte_offset = <uint32_t> (gpa % PAGE_SIZE)
            count = (range_.byte_offset + length + PAGE_SIZE - 1) // PAGE_SIZE
            for i in range(count):
                pfns[i] = gpa // PAGE_SIZE + i
        header_length = 16 + 8 * count
    slot.length = length
    status = ring_put(&vsc.outgoing, type_, PACKET_COMPLETION_REQUESTED, slot.transaction_id, vsc.header, header_length,
                      packet, sizeof(VstorPacket))
    if status == RING_FULL:
        total = 16 + header_length + sizeof(VstorPacket) + 8
        vsc_publish(vsc)
        status = ring_want(&vsc.outgoing, total)
        if status == 1:
            status = ring_put(&vsc.outgoing, type_, PACKET_COMPLETION_REQUESTED, slot.transaction_id, vsc.header,
                              header_length, packet, sizeof(VstorPacket))
        elif status == 0:
            return RING_FULL
    if status < 0:
        vsc.corrupt = True
    elif status == RING_OK:
        vsc.staged = True
        vsc.requests += 1
        slot.unit = &vsc.units[packet.u.scsi.lun]
        slot.unit.in_flight += 1
    return status


cdef void vsc_publish(Vsc *vsc) noexcept nogil:
    cdef int status
    if not vsc.staged:
        return
    vsc.staged = False
    ring_want_no_more(&vsc.outgoing)
    status = ring_publish(&vsc.outgoing)
    if status < 0:
        vsc.corrupt = True
    elif status and event_signal_host(vsc.events, vsc.relid, vsc.doorbell):
        vsc.doorbells += 1


# Receiving.

cdef void vsc_call_watcher(Vsc *vsc) noexcept nogil:
    if vsc.watch_word != NULL:
        # The watcher sleeps on one of two words. Both change, so that it cannot miss it.
        fetch_add32(vsc.watch_word, 1)
        futex_wake(vsc.watch_word, 1)
        event_wake_guest(vsc.events)


cdef void vsc_note(Vsc *vsc, uint32_t notice) noexcept nogil:
    vsc.notices |= notice
    vsc_call_watcher(vsc)


cdef void vsc_noticed(Vsc *vsc, uint32_t start) noexcept nogil:
    """A packet that answers nothing, in vsc.buffer (4.4). Linux does the same for both kinds."""
    cdef uint32_t operation, i
    memcpy(&operation, vsc.buffer + start, 4)
    if operation == VSTOR_ENUMERATE_BUS:
        for i in range(<uint32_t> VSC_UNITS):    # their number changed, and with it what the host takes of each
            vsc.units[i].limit = 0
        vsc_note(vsc, VSC_NOTICE_ENUMERATE)
    elif operation == VSTOR_REMOVE_DEVICE:
        vsc_note(vsc, VSC_NOTICE_REMOVE)
    else:
        vsc.strays += 1


cdef bint vsc_refused(Vsc *vsc, VscUnit *unit) noexcept nogil:
    """The host has as many requests of the unit as it takes. False: it has been saying so for too long."""
    cdef int64_t now
    unit.limit = max(unit.in_flight, <uint32_t> 1)
    unit.executed = 0
    if unit.in_flight == 0:
        # Others have what it takes: no completion here will say when there is room. Ask again later, ever more rarely.
        now = <int64_t> clock_ns()
        if unit.refusals == 0:
            unit.refused_ns = now
        elif now - unit.refused_ns >= vsc.patience_ns:
            unit.refusals = 0
            return False
        unit.retry_ns = now + (RETRY_NS << min(unit.refusals, <uint32_t> RETRY_DOUBLINGS))
        unit.refusals += 1
    return True


cdef bint vsc_judge(Vsc *vsc, VscSlot *slot) noexcept nogil:
    cdef VscUnit *unit = slot.unit
    cdef VstorScsiRequest *srb = &slot.reply.u.scsi
    cdef uint8_t status = srb.srb_status & 0x3F
    if slot.reply.operation != VSTOR_COMPLETE_IO:
        return False
    # 5.9; 09 and 0B are of a backend that was given the request and did not answer.
    if (srb.scsi_status == 0x28 or srb.scsi_status == 0x08) and status != 0x09 and status != 0x0B and status != 0x01:
        return vsc_refused(vsc, unit)
    unit.refusals = 0
    if unit.limit:
        unit.executed += 1
        if unit.executed >= 4 * unit.limit:  # the host may take more by now: one in many requests finds out
            unit.executed = 0
            unit.limit = unit.limit + 1 if unit.limit < vsc.depth else 0
    if srb.srb_status & 0x80 == 0 or srb.scsi_status != 0x02 or (srb.payload[2] & 0xF) != 6:
        unit.attentions_in_row = 0
        return False
    # Unit attention: the command was not executed (section 11).
    unit.attention[unit.attentions % VSC_ATTENTIONS] = <uint16_t> (srb.payload[12] << 8 | srb.payload[13])
    unit.attentions += 1
    unit.attentions_in_row += 1
    vsc_note(vsc, VSC_NOTICE_ATTENTION)
    return unit.attentions_in_row <= <uint32_t> ATTENTIONS_IN_ROW


cdef void vsc_completed(Vsc *vsc, uint32_t length) noexcept nogil:
    """One packet of the host, in vsc.buffer: untrusted, also what it says of itself (VA-23)."""
    cdef PacketDescriptor descriptor
    cdef VscSlot *slot
    cdef uint64_t index
    cdef uint32_t start
    memcpy(&descriptor, vsc.buffer, sizeof(descriptor))
    index = (descriptor.transaction_id & 0xffff) - 1
    start = 8 * <uint32_t> descriptor.data_offset8
    if descriptor.type == PACKET_IN_BAND and descriptor.transaction_id == 0 and length - start >= HEADER_BYTES:
        vsc_noticed(vsc, start)
        return
    if descriptor.type != PACKET_COMPLETION or index >= vsc.depth:
        vsc.strays += 1                      # nothing we sent
        return
    slot = &vsc.slots[index]
    if slot.transaction_id != descriptor.transaction_id or length - start < 48:
        vsc.strays += 1
        return
    memset(&slot.reply, 0, sizeof(VstorPacket))
    memcpy(&slot.reply, vsc.buffer + start, min(length - start, <uint32_t> sizeof(VstorPacket)))
    slot.unit.in_flight -= 1
    if slot.done != NULL:
        slot.done(slot)
    else:
        vsc.orphans -= 1
    vsc_slot_return(vsc, slot)


cdef int vsc_drain(Vsc *vsc) noexcept nogil:
    """[monitor, leader] Takes all completions; their number."""
    cdef uint32_t length
    cdef int taken = 0, status
    while not vsc.corrupt:
        status = ring_take(&vsc.incoming, vsc.buffer, VSC_PACKET_MAX, &length)
        if status == RING_EMPTY:
            break
        if status != RING_OK:
            vsc.corrupt = True
            break
        vsc_completed(vsc, length)
        taken += 1
    if taken and not vsc.corrupt:
        status = ring_release(&vsc.incoming)
        if status < 0:
            vsc.corrupt = True
        elif status and event_signal_host(vsc.events, vsc.relid, vsc.doorbell):
            vsc.doorbells += 1
    return taken


cdef bint vsc_look(Vsc *vsc) noexcept nogil:
    """[monitor] Looks for a completion for as long as a quick host needs, and no longer when another thread comes: to
    give up the monitor and to take it again would cost more than most of these waits."""
    cdef SpinBudget *budget = vsc.spinner.budget
    cdef int _i
    if vsc.spins and vsc.spinner.limit_ns and load_relaxed32(&budget.spinning) < budget.limit:
        for _i in range(LOOKS):
            if ring_poll(&vsc.incoming):
                return True
            if load_relaxed32(&vsc.wanted) or load_relaxed32(&vsc.gone):
                break
            cpu_relax()
    return ring_poll(&vsc.incoming)


cdef bint vsc_spin(Vsc *vsc) noexcept nogil:
    """[leader] Waits awake for a bounded time, without the monitor: others may send meanwhile."""
    cdef uint64_t end
    cdef int _i
    cdef bint found = False
    if not vsc.spins or not spin_begin(&vsc.spinner):
        return False
    end = clock_ns() + vsc.spinner.limit_ns
    while True:
        for _i in range(64):
            if ring_poll(&vsc.incoming) or load_relaxed32(&vsc.gone):
                found = True
                break
            cpu_relax()
        if found or clock_ns() >= end:
            break
        spin_yield()
    spin_end(&vsc.spinner)
    return found


cdef int vsc_block(Vsc *vsc, int64_t deadline_ns) noexcept nogil:
    """[leader] Sleeps until the host signals: the waiter's half of the protocol in events.pxd. 0 or -errno."""
    cdef uint32_t word
    cdef int status = 0
    cdef int64_t left = -1
    cdef uint64_t slept
    # The flag stays as it is: it may be all that tells a sender, whose look at the outgoing ring was before, of room.
    if ring_unmask(&vsc.incoming) == 0:
        word = event_guest_sleeps(vsc.events)
        # Once more after the word is set: a host that did not see it has published what is found here.
        if (not ring_poll(&vsc.incoming) and not event_guest_pending(vsc.events, vsc.relid)
                and not load_acquire32(&vsc.gone)):
            slept = clock_ns()
            if deadline_ns >= 0:
                left = max(<int64_t> 0, deadline_ns - <int64_t> slept)
            vsc.blocking_waits += 1
            status = event_guest_wait(vsc.events, word, left)
            spin_learn(&vsc.spinner, clock_ns() - slept)
    event_guest_clear(vsc.events, vsc.relid)     # the flag before the ring (EV-1)
    ring_mask(&vsc.incoming)
    return status


cdef void vsc_wake_others(Vsc *vsc) noexcept nogil:
    """[monitor] Whoever waits looks again: something completed, or there is no leader."""
    fetch_add32(&vsc.progress, 1)            # a full fence too: before the look at who sleeps
    if vsc.waiting:
        futex_wake(&vsc.progress, 0x7fffffff)
    if vsc.spread:
        event_wake_guest(vsc.events)


cdef inline void vsc_lead(Vsc *vsc) noexcept nogil:
    """[monitor] This thread alone reads the ring from here on."""
    vsc.leader = True
    if vsc.watched:                          # the first request after a while: the watcher looks again from now on
        vsc.watched = False
        ring_mask(&vsc.incoming)
        vsc_call_watcher(vsc)


cdef int vsc_wait(Vsc *vsc, int64_t deadline_ns) noexcept nogil:
    cdef uint32_t seen
    cdef int64_t left = -1
    cdef int status = 0
    if vsc.corrupt:
        return VSC_CORRUPT
    if load_acquire32(&vsc.gone):
        return VSC_GONE
    if vsc.leader:
        seen = load_acquire32(&vsc.progress)
        vsc.waiting += 1
        monitor_unlock(&vsc.monitor)
        if deadline_ns >= 0:
            left = max(<int64_t> 0, deadline_ns - <int64_t> clock_ns())
        status = futex_wait(&vsc.progress, seen, left)
        monitor_enter(&vsc.monitor, &vsc.wanted)
        vsc.waiting -= 1
    else:
        vsc_lead(vsc)
        if not vsc_look(vsc):
            monitor_unlock(&vsc.monitor)
            if not vsc_spin(vsc):
                status = vsc_block(vsc, deadline_ns)
            monitor_enter(&vsc.monitor, &vsc.wanted)
        vsc_drain(vsc)
        vsc.leader = False
        vsc_wake_others(vsc)
    if vsc.corrupt:
        return VSC_CORRUPT
    if load_acquire32(&vsc.gone):
        return VSC_GONE
    if status == -EINTR:
        return VSC_INTERRUPTED
    if deadline_ns >= 0 and <int64_t> clock_ns() >= deadline_ns:
        return VSC_TIMEOUT
    return VSC_OK


cdef int vsc_wait_for(Vsc *vsc, const VscUnit *unit, int64_t deadline_ns) noexcept nogil:
    cdef int result
    if unit.refusals == 0 or unit.in_flight or (0 <= deadline_ns <= unit.retry_ns):
        return vsc_wait(vsc, deadline_ns)
    result = vsc_wait(vsc, unit.retry_ns)
    return VSC_OK if result == VSC_TIMEOUT else result


# Several channels at once.

cdef bint any_ready(Vsc **channels, const uint32_t *seen, const bint *leads, uint32_t count) noexcept nogil:
    cdef uint32_t i
    for i in range(count):
        if load_acquire32(&channels[i].gone):
            return True
        if leads[i]:
            if ring_poll(&channels[i].incoming):
                return True
        elif load_acquire32(&channels[i].progress) != seen[i]:
            return True
    return False


cdef bint any_spin(Vsc **channels, const uint32_t *seen, const bint *leads, uint32_t count) noexcept nogil:
    cdef Spinner *spinner = NULL
    cdef uint64_t end
    cdef uint32_t i
    cdef int _i
    cdef bint found = False
    for i in range(count):
        if leads[i] and channels[i].spins:   # the spinner of a channel is its leader's
            spinner = &channels[i].spinner
    if spinner == NULL or not spin_begin(spinner):
        return False
    end = clock_ns() + spinner.limit_ns
    while True:
        for _i in range(16):
            if any_ready(channels, seen, leads, count):
                found = True
                break
            cpu_relax()
        if found or clock_ns() >= end:
            break
        spin_yield()
    spin_end(spinner)
    return found


cdef int any_block(
        Vsc **channels, const uint32_t *seen, const bint *leads, uint32_t count, int64_t deadline_ns) noexcept nogil:
    """vsc_block for all rings that this thread leads; the leaders of the others wake it through the event page."""
    cdef EventPage *events = channels[0].events
    cdef uint32_t i, word
    cdef int status = 0
    cdef bint ready = False
    cdef int64_t left = -1
    cdef uint64_t slept = 0
    for i in range(count):
        if leads[i] and ring_unmask(&channels[i].incoming) != 0:
            ready = True
    if not ready:
        word = event_guest_sleeps(events)
        ready = any_ready(channels, seen, leads, count)
        for i in range(count):
            if leads[i] and event_guest_pending(events, channels[i].relid):
                ready = True
        if not ready:
            slept = clock_ns()
            if deadline_ns >= 0:
                left = max(<int64_t> 0, deadline_ns - <int64_t> slept)
            status = event_guest_wait(events, word, left)
            slept = clock_ns() - slept
    for i in range(count):
        if leads[i]:
            if slept:
                spin_learn(&channels[i].spinner, slept)
            event_guest_clear(events, channels[i].relid)
            ring_mask(&channels[i].incoming)
    return status


cdef int vsc_wait_any(Vsc **channels, const uint32_t *seen, uint32_t count, int64_t deadline_ns) noexcept nogil:
    cdef bint[VSC_CHANNELS] leads
    cdef bint blocks
    cdef Vsc *vsc
    cdef uint32_t i
    cdef int status = 0, result = VSC_OK
    memset(leads, 0, sizeof(leads))
    for i in range(count):
        vsc = channels[i]
        monitor_enter(&vsc.monitor, &vsc.wanted)
        leads[i] = not vsc.leader
        if leads[i]:
            vsc_lead(vsc)
        else:
            vsc.spread += 1
        monitor_unlock(&vsc.monitor)
    blocks = not any_ready(channels, seen, leads, count) and not any_spin(channels, seen, leads, count)
    if blocks:
        status = any_block(channels, seen, leads, count, deadline_ns)
    for i in range(count):
        vsc = channels[i]
        monitor_enter(&vsc.monitor, &vsc.wanted)
        if i == 0:
            vsc.blocking_waits += blocks
        if leads[i]:
            vsc_drain(vsc)
            vsc.leader = False
            vsc_wake_others(vsc)
        else:
            vsc.spread -= 1
        if vsc.corrupt:
            result = VSC_CORRUPT
        elif load_acquire32(&vsc.gone) and result == VSC_OK:
            result = VSC_GONE
        monitor_unlock(&vsc.monitor)
    if result == VSC_OK and status == -EINTR:
        result = VSC_INTERRUPTED
    if result == VSC_OK and deadline_ns >= 0 and <int64_t> clock_ns() >= deadline_ns:
        result = VSC_TIMEOUT
    return result


# For the watcher.

cdef bint vsc_attend(Vsc *vsc) noexcept nogil:
    if vsc.leader:                           # it takes what comes
        return True
    if vsc.corrupt or load_acquire32(&vsc.gone):
        return False
    event_guest_clear(vsc.events, vsc.relid)     # the flag before the ring (EV-1)
    if ring_poll(&vsc.incoming) and vsc_drain(vsc):
        vsc_wake_others(vsc)
    if vsc.watched:
        return False
    if vsc.requests != vsc.watch_requests:   # unmasked, each of many completions would be signalled
        vsc.watch_requests = vsc.requests
        return True
    vsc.watched = True
    if ring_unmask(&vsc.incoming) != 0 and vsc_drain(vsc):
        vsc_wake_others(vsc)
    return False
