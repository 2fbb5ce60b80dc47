"""The storage VSC (see vsc.pxd; storvsp.md is the source of every rule)."""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from hvcore.errors import GuestGone, ProtocolError, RingCorrupt
from hvcore.linux.atomics cimport cpu_relax, fetch_add32, load_acquire32, load_relaxed32, store_release32
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.cpu cimport spin_budget
from hvcore.linux.spin cimport SPIN_MAX_NS, spin_begin, spin_end, spin_learn, spin_yield
from hvcore.linux.syscalls cimport futex_wait, futex_wake
from hvcore.linux.threads cimport monitor_destroy, monitor_init, monitor_lock, monitor_unlock
from hvcore.storage.protocol cimport (
    NT_SUCCESS, VSTOR_BEGIN_INITIALIZATION, VSTOR_COMPLETE_IO, VSTOR_END_INITIALIZATION, VSTOR_EXECUTE_SRB,
    VSTOR_QUERY_PROPERTIES, VSTOR_QUERY_PROTOCOL_VERSION, VSTOR_REQUEST_COMPLETION, VstorScsiRequest)
from hvcore.vmbus.abi cimport (
    PACKET_COMPLETION, PACKET_COMPLETION_REQUESTED, PACKET_GPA_DIRECT, PACKET_IN_BAND, PAGE_SIZE, GpaDirectHeader,
    GpaRange, PacketDescriptor, RingControl)
from hvcore.vmbus.events cimport (
    event_end_guest, event_guest_clear, event_guest_pending, event_guest_sleeps, event_guest_wait, event_signal_host)
from hvcore.vmbus.ring cimport (
    RING_EMPTY, RING_FULL, RING_GUEST, RING_OK, ring_mask, ring_open_reader, ring_open_writer, ring_poll, ring_publish,
    ring_put, ring_release, ring_take, ring_unmask, ring_want, ring_want_no_more)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef enum:
    PACKET_MAX = 65536           # of the host: completions and notifications, and room for what a later host may send
    VSC_VERSIONS = 5
    DEPTH = 32                   # of a transfer whose caller does not care
    SIGNAL_CHECK = 4096          # waits after which the interpreter may look for signals

cdef uint16_t[5] VERSIONS = [0x0602, 0x0600, 0x0501, 0x0402, 0x0200]


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
    for i in range(slot.page_count):
        vsc.free_pages[vsc.free_page_count] = slot.pages[i]
        vsc.free_page_count += 1
    slot.page_count = 0
    slot.transaction_id = 0
    slot.done = NULL
    slot.next = vsc.free
    vsc.free = slot
    vsc.in_flight -= 1


cdef bint vsc_pages(Vsc *vsc, VscSlot *slot, uint32_t length) noexcept nogil:
    cdef uint32_t needed = (length + PAGE_SIZE - 1) // PAGE_SIZE
    cdef uint32_t i
    if needed > vsc.pages_per_slot or needed > vsc.free_page_count:
        return False
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

cdef void vsc_completed(Vsc *vsc, uint32_t length) noexcept nogil:
    """One packet of the host, in vsc.buffer: untrusted, also what it says of itself (VA-23)."""
    cdef PacketDescriptor descriptor
    cdef VscSlot *slot
    cdef uint64_t index
    cdef uint32_t start
    memcpy(&descriptor, vsc.buffer, sizeof(descriptor))
    index = (descriptor.transaction_id & 0xffff) - 1
    if descriptor.type != PACKET_COMPLETION or index >= vsc.depth:
        vsc.strays += 1                      # a notification, or nothing we sent
        return
    slot = &vsc.slots[index]
    start = 8 * <uint32_t> descriptor.data_offset8
    if slot.transaction_id != descriptor.transaction_id or length - start < 48:
        vsc.strays += 1
        return
    memset(&slot.reply, 0, sizeof(VstorPacket))
    memcpy(&slot.reply, vsc.buffer + start, min(length - start, <uint32_t> sizeof(VstorPacket)))
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
        status = ring_take(&vsc.incoming, vsc.buffer, PACKET_MAX, &length)
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
    fetch_add32(&vsc.progress, 1)
    if vsc.waiting:
        futex_wake(&vsc.progress, 0x7fffffff)


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
        monitor_lock(&vsc.monitor)
        vsc.waiting -= 1
    else:
        vsc.leader = True
        if not ring_poll(&vsc.incoming):
            monitor_unlock(&vsc.monitor)
            if not vsc_spin(vsc):
                status = vsc_block(vsc, deadline_ns)
            monitor_lock(&vsc.monitor)
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


# Commands and transfers.

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


cdef void vsc_abandon(Vsc *vsc, void *owner) noexcept nogil:
    cdef uint32_t i
    for i in range(vsc.depth):
        if vsc.slots[i].transaction_id and vsc.slots[i].owner == owner:
            vsc.slots[i].done = NULL
            vsc.slots[i].owner = NULL
            vsc.orphans += 1


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


cdef int raise_result(int result) except -1:
    if result == VSC_GONE:
        raise GuestGone("the host has ended the channel")
    if result == VSC_CORRUPT:
        raise RingCorrupt("the host broke a rule of the channel's ring")
    if result == VSC_TIMEOUT:
        raise TimeoutError("the host did not answer in time")
    return 0


cdef int64_t deadline_of(timeout) except? -2:
    """CLOCK_MONOTONIC ns, or -1 for None."""
    if timeout is None:
        return -1
    if not timeout >= 0:
        raise ValueError(f"timeout {timeout} is not a number of seconds")
    return <int64_t> clock_ns() + <int64_t> (min(<double> timeout, 1e9) * 1e9)


cdef class Channel:
    """One open storvsp channel of a child partition, negotiated and ready. Its calls may run in several threads.

    memory, events: the guest's memory and event page. ring_pages: page numbers of the two rings, which the host has
    already opened; downstream_offset: where the second begins. allocate(pages) gives the number of the first of
    so many adjacent pages, or raises. depth: most requests in flight. spins: waiting awake may pay.
    """

    def __cinit__(self, Region memory not None, Region events not None, int doorbell, relid, ring_pages,
                  uint32_t downstream_offset, allocate, uint32_t depth=256, bint spins=True):
        cdef Vsc *vsc = &self.vsc
        cdef uint32_t count = len(ring_pages), i
        cdef int status
        if not 1 <= depth <= 4096:
            raise ValueError(f"depth {depth} is not between 1 and 4096")
        self.memory = memory
        self.events = events
        self.allocate = allocate
        self.relid = relid
        self.held = []
        status = monitor_init(&vsc.monitor)
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        self.ready = True                    # from here on __dealloc__ has something to do
        vsc.doorbell = -1
        vsc.events = <EventPage *> events.base
        vsc.base = memory.base
        vsc.size_bytes = memory.size
        # Its own: a thread that is still signalling when the guest closes must not write into what got the number next.
        vsc.doorbell = os.dup(doorbell)
        vsc.relid = relid
        vsc.depth = depth
        vsc.spins = spins
        vsc.spinner.budget = spin_budget()
        vsc.spinner.limit_ns = SPIN_MAX_NS
        vsc.buffer = <uint8_t *> malloc(PACKET_MAX)
        vsc.header = <uint64_t *> malloc((2 + VSC_PFNS) * 8)
        vsc.slots = <VscSlot *> calloc(depth, sizeof(VscSlot))
        self.ring_pages = <uint8_t **> calloc(count, sizeof(uint8_t *))
        if vsc.buffer == NULL or vsc.header == NULL or vsc.slots == NULL or self.ring_pages == NULL:
            raise MemoryError
        for i in range(depth):
            vsc.slots[i].next = vsc.free
            vsc.free = &vsc.slots[i]
        for i in range(count):
            if ring_pages[i] >= memory.size // PAGE_SIZE:
                raise ValueError(f"ring page {ring_pages[i]} is not in guest memory")
            self.ring_pages[i] = memory.base + <uint64_t> ring_pages[i] * PAGE_SIZE
        status = ring_open_writer(&vsc.outgoing, <RingControl *> self.ring_pages[0], &self.ring_pages[1],
                                  (downstream_offset - 1) * PAGE_SIZE, RING_GUEST)
        if status == 0:
            status = ring_open_reader(&vsc.incoming, <RingControl *> self.ring_pages[downstream_offset],
                                      &self.ring_pages[downstream_offset + 1],
                                      (count - downstream_offset - 1) * PAGE_SIZE, RING_GUEST)
        if status < 0:
            raise RingCorrupt("the new channel's rings are not valid")
        ring_mask(&vsc.incoming)

    def __dealloc__(self):
        if self.ready:
            monitor_destroy(&self.vsc.monitor)
            if self.vsc.doorbell >= 0:
                close(self.vsc.doorbell)
        free(self.vsc.buffer)
        free(self.vsc.header)
        free(self.vsc.slots)
        free(self.vsc.page_lists)
        free(self.vsc.free_pages)
        free(self.ring_pages)

    def start(self, double timeout=10):
        """Negotiates (storvsp.md 4.1): newest version first. Then `version` and `max_transfer` are known."""
        cdef int64_t deadline = <int64_t> clock_ns() + <int64_t> (timeout * 1e9)
        cdef VstorPacket packet
        cdef int i
        memset(&packet, 0, sizeof(packet))
        packet.operation = VSTOR_BEGIN_INITIALIZATION
        self.negotiate(&packet, deadline)
        for i in range(VSC_VERSIONS):
            memset(&packet, 0, sizeof(packet))
            packet.operation = VSTOR_QUERY_PROTOCOL_VERSION
            packet.u.version.version = VERSIONS[i]
            if self.exchange(&packet, 0, NULL, NULL, deadline) == NT_SUCCESS:
                self.version = VERSIONS[i]
                break
        else:
            raise ProtocolError("the host knows none of our storage protocol versions")
        memset(&packet, 0, sizeof(packet))
        packet.operation = VSTOR_QUERY_PROPERTIES
        self.negotiate(&packet, deadline)
        # Whatever the host says, a request has to fit the slots' page lists (VA-24).
        limit = packet.u.properties.max_transfer_bytes // PAGE_SIZE * PAGE_SIZE
        if limit == 0:
            raise ProtocolError(f"the host allows transfers of {packet.u.properties.max_transfer_bytes} bytes")
        self.vsc.max_transfer = min(<uint32_t> limit, <uint32_t> 0x1000000)
        self.vsc.pages_per_slot = self.vsc.max_transfer // PAGE_SIZE
        self.vsc.page_lists = <uint32_t *> calloc(<size_t> self.vsc.depth * self.vsc.pages_per_slot, 4)
        if self.vsc.page_lists == NULL:
            raise MemoryError
        for i in range(<int> self.vsc.depth):
            self.vsc.slots[i].pages = &self.vsc.page_lists[<size_t> i * self.vsc.pages_per_slot]
        memset(&packet, 0, sizeof(packet))
        packet.operation = VSTOR_END_INITIALIZATION
        self.negotiate(&packet, deadline)

    cdef int negotiate(self, VstorPacket *packet, int64_t deadline) except -1:
        """Sends and waits; the reply replaces the packet."""
        operation = packet.operation
        if self.exchange(packet, 0, NULL, NULL, deadline) != NT_SUCCESS:
            raise ProtocolError(f"the host answered storage operation {operation} with status {packet.status:#010x}")
        return 0

    cdef int64_t exchange(self, VstorPacket *packet, uint32_t length, uint8_t *data_in, const uint8_t *data_out,
                          int64_t deadline) except -1:
        """One packet and its completion, which replaces it; returns the NTSTATUS. `length` bytes go through bounce
        pages."""
        cdef Vsc *vsc = &self.vsc
        cdef Command command
        cdef int result = VSC_INTERRUPTED
        cdef bint sent = False
        memset(&command, 0, sizeof(command))
        command.vsc = vsc
        command.data = data_in
        command.length = length
        packet.flags = VSTOR_REQUEST_COMPLETION
        self.ensure_pages((length + PAGE_SIZE - 1) // PAGE_SIZE)
        try:
            while result == VSC_INTERRUPTED:
                with nogil:
                    result = command_run(vsc, &command, packet, length, data_out, &sent, deadline)
                if result == VSC_INTERRUPTED:
                    PyErr_CheckSignals()
            raise_result(result)
        except BaseException:
            self.abandon(&command)
            raise
        if command.reply.operation != VSTOR_COMPLETE_IO:
            raise ProtocolError(f"the host completed a request with operation {command.reply.operation}")
        packet[0] = command.reply
        return command.reply.status

    cdef void abandon(self, void *owner) noexcept:
        with nogil:
            monitor_lock(&self.vsc.monitor)
            vsc_abandon(&self.vsc, owner)
            monitor_unlock(&self.vsc.monitor)

    cdef int ensure_pages(self, uint64_t pages) except -1:
        """Grows this channel's bounce pages to `pages`. MemoryError names what is missing."""
        cdef Vsc *vsc = &self.vsc
        cdef uint32_t *grown
        cdef uint32_t missing, i
        if pages <= vsc.page_count:
            return 0
        missing = <uint32_t> (pages - vsc.page_count)
        first = self.allocate(missing)
        with nogil:
            monitor_lock(&vsc.monitor)
            grown = <uint32_t *> realloc(vsc.free_pages, (vsc.page_count + missing) * sizeof(uint32_t))
            if grown != NULL:
                vsc.free_pages = grown
        if grown != NULL:
            for i in range(missing):
                grown[vsc.free_page_count + i] = <uint32_t> first + i
            vsc.free_page_count += missing
            vsc.page_count += missing
        with nogil:
            monitor_unlock(&vsc.monitor)
        if grown == NULL:
            raise MemoryError
        return 0

    def execute(self, cdb, data_out=b"", uint32_t allocation=0, int lun=0, timeout=None):
        """One SCSI command: (SRB status, SCSI status, sense, data).

        data_out goes to the device, or up to `allocation` bytes come.
        """
        cdef Py_buffer view
        cdef VstorPacket packet
        cdef uint8_t buffer[16]
        cdef uint32_t length
        cdef bint out
        cdef int64_t deadline = deadline_of(timeout)
        if not 1 <= len(cdb) <= 16:
            raise ValueError(f"a CDB has 1 to 16 bytes, not {len(cdb)}")
        for i in range(len(cdb)):
            buffer[i] = cdb[i]
        PyObject_GetBuffer(data_out, &view, PyBUF_SIMPLE)
        try:
            out = view.len > 0
            if view.len > self.vsc.max_transfer or allocation > self.vsc.max_transfer:
                raise ValueError(f"one request moves at most {self.vsc.max_transfer} bytes")
            length = <uint32_t> view.len if out else allocation
            result = b"" if out else bytearray(allocation)
            vsc_srb(&packet, buffer, len(cdb), length, 0 if out else 1 if length else 2)
            packet.u.scsi.lun = lun
            if out or not length:
                self.exchange(&packet, length, NULL, <const uint8_t *> view.buf if out else NULL, deadline)
            else:
                self.exchange(&packet, length, <uint8_t *> PyByteArray_AS_STRING(result), NULL, deadline)
        finally:
            PyBuffer_Release(&view)
        srb = &packet.u.scsi
        moved = min(srb.data_transfer_length, length)
        sense = bytes(srb.payload[:20]) if srb.srb_status & 0x80 else b""
        return srb.srb_status, srb.scsi_status, sense, bytes(result[:moved]) if not out else b""

    cdef object run(self, Transfer *transfer, uint64_t offset, uint64_t block, uint8_t *data, uint64_t length,
                    uint32_t sector_size, int lun, uint32_t queue_depth, int64_t deadline):
        """What transfer() returns. transfer.write and .offsets are set."""
        cdef Vsc *vsc = &self.vsc
        cdef int result = VSC_INTERRUPTED
        if length == 0:
            return None
        transfer.vsc = vsc
        transfer.offset = offset
        transfer.block = block
        transfer.blocks = length // block
        transfer.data = data
        transfer.part = <uint32_t> min(block, <uint64_t> (vsc.max_transfer // sector_size * sector_size))
        transfer.parts = (block + transfer.part - 1) // transfer.part
        transfer.sector_size = sector_size
        transfer.lun = lun
        transfer.depth = min(queue_depth if queue_depth else <uint32_t> DEPTH, vsc.depth)
        transfer.failed = transfer.blocks
        transfer.direct = data >= vsc.base and data + length <= vsc.base + vsc.size_bytes
        statuses = bytearray(b"\x01") * transfer.blocks if transfer.blocks > 1 else None
        if statuses is not None:
            transfer.statuses = <uint8_t *> PyByteArray_AS_STRING(statuses)
        if not transfer.direct:
            least = (transfer.part + PAGE_SIZE - 1) // PAGE_SIZE
            pages = least * min(<uint64_t> transfer.depth, transfer.blocks * transfer.parts)
            while True:
                try:
                    self.ensure_pages(pages)
                    break
                except MemoryError:
                    if queue_depth or pages == least:
                        raise
                    pages = max(pages // 2, least)       # nobody asked for a depth: fewer at once
        try:
            while result == VSC_INTERRUPTED:
                with nogil:
                    result = transfer_run(transfer, deadline)
                if result == VSC_INTERRUPTED:
                    PyErr_CheckSignals()
            raise_result(result)
        except BaseException:
            self.abandon(transfer)
            raise
        if transfer.failed == transfer.blocks:
            return None
        sense = bytes(transfer.sense[:20]) if transfer.srb_status & 0x80 else b""
        return (transfer.failed, transfer.srb_status, transfer.scsi_status, sense,
                bytes(statuses) if statuses is not None else bytes([transfer.srb_status]))

    def transfer(self, bint write, offsets, uint64_t offset, uint64_t block, data, uint32_t sector_size, *, int lun=0,
                 uint32_t queue_depth=0, timeout=None):
        """Moves blocks of `block` bytes between the disk and the buffer `data`, which holds them one after the other.

        offsets: a buffer of one uint64 byte offset for each block, or None for consecutive blocks from `offset`. The
        caller has checked offsets and sizes. queue_depth: 0 for as many requests at once as pay and as memory allows.
        Returns None when all succeeded, else (index of the first failed block, SRB status, SCSI status, sense, SRB
        status of each block as bytes). TimeoutError, GuestGone, RingCorrupt: the transfer is abandoned, and nothing is
        written into `data` afterwards unless it is guest memory.
        """
        cdef Transfer transfer
        cdef Py_buffer view
        cdef Py_buffer list_view
        memset(&transfer, 0, sizeof(transfer))
        transfer.write = write
        cdef int64_t deadline = deadline_of(timeout)
        if self.vsc.orphans == 0:
            self.held = []
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE if write else PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            if offsets is not None:
                PyObject_GetBuffer(offsets, &list_view, PyBUF_SIMPLE)
                transfer.offsets = <const uint64_t *> list_view.buf
            return self.run(&transfer, offset, block, <uint8_t *> view.buf, view.len, sector_size, lun, queue_depth,
                            deadline)
        except BaseException:
            if transfer.direct and transfer.in_flight:
                self.held.append(data)       # the host still has its pages: nobody else may get them yet
            raise
        finally:
            if transfer.offsets != NULL:
                PyBuffer_Release(&list_view)
            PyBuffer_Release(&view)

    def read(self, uint64_t offset, uint64_t length, uint32_t sector_size, *, int lun=0, timeout=None):
        """(`length` bytes from `offset`, what transfer() returns)."""
        cdef Transfer transfer
        memset(&transfer, 0, sizeof(transfer))
        cdef int64_t deadline = deadline_of(timeout)
        result = PyBytes_FromStringAndSize(NULL, length)
        failure = self.run(&transfer, offset, length, <uint8_t *> PyBytes_AS_STRING(result), length, sector_size, lun,
                           0, deadline)
        return result, failure

    @property
    def max_transfer(self):
        """Bytes of one request, as the host said."""
        return self.vsc.max_transfer

    def counters(self):
        """What this end cost so far."""
        cdef Vsc *vsc = &self.vsc
        return {"requests": vsc.requests, "bytes_copied": vsc.bytes_copied, "doorbells": vsc.doorbells,
                "blocking_waits": vsc.blocking_waits, "strays": vsc.strays}

    def end(self):
        """The host or the channel is gone: every wait ends with GuestGone, now and later."""
        with nogil:
            # Whoever rings does so with the monitor held: nobody does any more when the number is another file's.
            monitor_lock(&self.vsc.monitor)
            if self.vsc.doorbell >= 0:
                close(self.vsc.doorbell)
                self.vsc.doorbell = -1
            store_release32(&self.vsc.gone, 1)
            monitor_unlock(&self.vsc.monitor)
            # A leader may hold the sleep word. Both words change, so no waiter can miss it.
            fetch_add32(&self.vsc.progress, 1)
            futex_wake(&self.vsc.progress, 0x7fffffff)
            event_end_guest(self.vsc.events)

    @property
    def ended(self):
        return bool(self.vsc.gone)
