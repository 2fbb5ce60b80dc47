"""The storage VSC (see vsc.pxd; storvsp.md is the source of every rule)."""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

from hvcore.errors import GuestGone, ProtocolError, RingCorrupt
from hvcore.linux.atomics cimport fetch_add32, store_release32
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.cpu cimport spin_budget
from hvcore.linux.spin cimport SPIN_MAX_NS
from hvcore.linux.syscalls cimport futex_wake
from hvcore.linux.threads cimport monitor_destroy, monitor_enter, monitor_init, monitor_unlock
from hvcore.storage.protocol cimport (
    NT_SUCCESS, VSTOR_BEGIN_INITIALIZATION, VSTOR_COMPLETE_IO, VSTOR_CREATE_SUB_CHANNELS, VSTOR_END_INITIALIZATION,
    VSTOR_MULTI_CHANNEL, VSTOR_QUERY_PROPERTIES, VSTOR_QUERY_PROTOCOL_VERSION, VSTOR_REQUEST_COMPLETION,
    VSTOR_RESET_BUS, VSTOR_RESET_LUN)
from hvcore.storage.queue cimport (
    VSC_ATTENTIONS, VSC_CHANNELS, VSC_NOTICE_REMOVE, VSC_UNITS, VscUnit, vsc_call_watcher, vsc_wait)
from hvcore.storage.transfer cimport Command, Spread, Transfer, command_run, spread_run, transfer_run
from hvcore.vmbus.abi cimport PAGE_SIZE, RingControl
from hvcore.vmbus.events cimport EventPage, event_end_guest
from hvcore.vmbus.ring cimport RING_GUEST, ring_mask, ring_open_reader, ring_open_writer

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef enum:
    SHARED_PAGES = 256           # of a unit, for calls of several threads at once
    VSC_VERSIONS = 5
    DEPTH = 32                   # of a transfer whose caller does not care
    PATIENCE = 30                # seconds with a unit that refuses everything

cdef uint16_t[5] VERSIONS = [0x0602, 0x0600, 0x0501, 0x0402, 0x0200]


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


cdef object failure_of(const Transfer *transfer, statuses):
    if transfer.failed == transfer.blocks:
        return None
    sense = bytes(transfer.sense[:20]) if transfer.srb_status & 0x80 else b""
    return (transfer.failed, transfer.srb_status, transfer.scsi_status, sense,
            bytes(statuses) if statuses is not None else bytes([transfer.srb_status]))


cdef class Channel:
    """One open storvsp channel of a child partition, negotiated and ready. Its calls may run in several threads.

    memory, events: the guest's memory and event page. ring_pages: page numbers of the two rings, which the host has
    already opened; downstream_offset: where the second begins. allocate(pages) gives the number of the first of
    so many adjacent pages, or raises. depth: most requests in flight. spins: waiting awake may pay. patience: seconds
    for which a unit is asked again that refuses every request (TASK SET FULL, BUSY); then its answer is the caller's.
    """

    def __cinit__(self, Region memory not None, Region events not None, int doorbell, relid, ring_pages,
                  uint32_t downstream_offset, allocate, uint32_t depth=256, bint spins=True,
                  double patience=PATIENCE):
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
        vsc.buffer = <uint8_t *> malloc(VSC_PACKET_MAX)
        vsc.header = <uint64_t *> malloc((2 + VSC_PFNS) * 8)
        vsc.slots = <VscSlot *> calloc(depth, sizeof(VscSlot))
        vsc.units = <VscUnit *> calloc(VSC_UNITS, sizeof(VscUnit))
        vsc.patience_ns = <int64_t> (patience * 1e9)
        self.ring_pages = <uint8_t **> calloc(count, sizeof(uint8_t *))
        if (vsc.buffer == NULL or vsc.header == NULL or vsc.slots == NULL or vsc.units == NULL
                or self.ring_pages == NULL):
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
        free(self.vsc.units)
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
            if self.exchange(&packet, 0, NULL, NULL, False, deadline) == NT_SUCCESS:
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
        if packet.u.properties.flags & VSTOR_MULTI_CHANNEL:
            self.sub_channels_max = packet.u.properties.max_sub_channels
        self.limit_transfers(min(<uint32_t> limit, <uint32_t> 0x1000000))
        memset(&packet, 0, sizeof(packet))
        packet.operation = VSTOR_END_INITIALIZATION
        self.negotiate(&packet, deadline)

    def inherit(self, Channel primary not None):
        """Instead of start(), for a sub-channel: there is nothing to negotiate (storvsp.md 4.3)."""
        self.version = primary.version
        self.limit_transfers(primary.vsc.max_transfer)

    cdef int limit_transfers(self, uint32_t limit) except -1:
        cdef Vsc *vsc = &self.vsc
        cdef uint32_t i
        vsc.max_transfer = limit
        vsc.pages_per_slot = limit // PAGE_SIZE
        vsc.page_lists = <uint32_t *> calloc(<size_t> vsc.depth * vsc.pages_per_slot, 4)
        if vsc.page_lists == NULL:
            raise MemoryError
        for i in range(vsc.depth):
            vsc.slots[i].pages = &vsc.page_lists[<size_t> i * vsc.pages_per_slot]
        return 0

    def create_sub_channels(self, uint16_t count, double timeout=10):
        """Asks the host to offer that many sub-channels, which it then does over VMBus. ProtocolError: it refuses."""
        cdef VstorPacket packet
        memset(&packet, 0, sizeof(packet))
        packet.operation = VSTOR_CREATE_SUB_CHANNELS
        packet.u.sub_channel_count = count
        self.negotiate(&packet, deadline_of(timeout))

    def reset(self, *, lun=None, double timeout=10):
        """Resets a unit, or with None the bus (storvsp.md 12): success, and what is in flight runs on."""
        cdef VstorPacket packet
        memset(&packet, 0, sizeof(packet))
        packet.operation = VSTOR_RESET_BUS if lun is None else VSTOR_RESET_LUN
        packet.u.scsi.lun = <uint8_t> (0 if lun is None else lun)
        self.negotiate(&packet, deadline_of(timeout))

    cdef int negotiate(self, VstorPacket *packet, int64_t deadline) except -1:
        """Sends and waits; the reply replaces the packet."""
        operation = packet.operation
        if self.exchange(packet, 0, NULL, NULL, False, deadline) != NT_SUCCESS:
            raise ProtocolError(f"the host answered storage operation {operation} with status {packet.status:#010x}")
        return 0

    cdef int64_t exchange(self, VstorPacket *packet, uint32_t length, uint8_t *data_in, const uint8_t *data_out,
                          bint patient, int64_t deadline) except -1:
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
        command.patient = patient
        packet.flags = VSTOR_REQUEST_COMPLETION
        self.ensure_pages(packet.u.scsi.lun, (length + PAGE_SIZE - 1) // PAGE_SIZE)
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
            monitor_enter(&self.vsc.monitor, &self.vsc.wanted)
            vsc_abandon(&self.vsc, owner)
            monitor_unlock(&self.vsc.monitor)

    cdef int ensure_pages(self, uint32_t lun, uint64_t pages) except -1:
        """Lets a unit have `pages` bounce pages of this channel at a time, and as many more, up to SHARED_PAGES, as its
        other calls hold now. MemoryError names what is missing."""
        cdef Vsc *vsc = &self.vsc
        cdef VscUnit *unit = &vsc.units[lun]
        cdef uint32_t *grown
        cdef uint32_t missing, i
        cdef uint64_t wanted = pages
        # Read beside other threads: a page too many or too few is no harm, a call without pages waits.
        if pages + unit.pages_used > unit.pages:
            wanted = max(pages, min(pages + unit.pages_used, <uint64_t> SHARED_PAGES))
        if wanted <= unit.pages:
            return 0
        missing = <uint32_t> (wanted - unit.pages)
        try:
            first = self.allocate(missing)
        except MemoryError:
            if pages <= unit.pages:
                return 0                                 # it waits for those of the other calls
            if pages > vsc.page_count:
                raise
            unit.pages = <uint32_t> pages                # those of other units too, as they are free
            return 0
        with nogil:
            monitor_enter(&vsc.monitor, &vsc.wanted)
            grown = <uint32_t *> realloc(vsc.free_pages, (vsc.page_count + missing) * sizeof(uint32_t))
            if grown != NULL:
                vsc.free_pages = grown
        if grown != NULL:
            for i in range(missing):
                grown[vsc.free_page_count + i] = <uint32_t> first + i
            vsc.free_page_count += missing
            vsc.page_count += missing
            unit.pages += missing
        with nogil:
            monitor_unlock(&vsc.monitor)
        if grown == NULL:
            raise MemoryError
        return 0

    def execute(self, cdb, data_out=b"", uint32_t allocation=0, uint8_t lun=0, timeout=None, *,
                bint patient=False):
        """One SCSI command: (SRB status, SCSI status, sense, data).

        data_out goes to the device, or up to `allocation` bytes come. patient: a command that was not executed, because
        the unit had too many or a unit attention to report, is sent again.
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
                self.exchange(&packet, length, NULL, <const uint8_t *> view.buf if out else NULL, patient,
                              deadline)
            else:
                self.exchange(&packet, length, <uint8_t *> PyByteArray_AS_STRING(result), NULL, patient, deadline)
        finally:
            PyBuffer_Release(&view)
        srb = &packet.u.scsi
        moved = min(srb.data_transfer_length, length)
        sense = bytes(srb.payload[:20]) if srb.srb_status & 0x80 else b""
        return srb.srb_status, srb.scsi_status, sense, bytes(result[:moved]) if not out else b""

    cdef object run(self, Transfer *transfer, uint64_t offset, uint64_t block, uint8_t *data, uint64_t length,
                    uint32_t sector_size, uint8_t lun, uint32_t queue_depth, int64_t deadline):
        """What transfer() returns. transfer.write, .fua and .offsets are set."""
        cdef int result = VSC_INTERRUPTED
        if length == 0:
            return None
        self.prepare(transfer, offset, block, data, length, sector_size, lun, queue_depth)
        statuses = bytearray(b"\x01") * transfer.blocks if transfer.blocks > 1 else None
        if statuses is not None:
            transfer.statuses = <uint8_t *> PyByteArray_AS_STRING(statuses)
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
        finally:
            free(transfer.again)
        return failure_of(transfer, statuses)

    cdef int prepare(self, Transfer *transfer, uint64_t offset, uint64_t block, uint8_t *data, uint64_t length,
                     uint32_t sector_size, uint8_t lun, uint32_t queue_depth) except -1:
        """Everything of a transfer on this channel but what its caller set, and pages for it."""
        cdef Vsc *vsc = &self.vsc
        cdef uint64_t least, pages
        transfer.vsc = vsc
        transfer.cursor = &transfer.next
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
        if not transfer.direct:
            least = (transfer.part + PAGE_SIZE - 1) // PAGE_SIZE
            pages = least * min(<uint64_t> transfer.depth, transfer.blocks * transfer.parts)
            while True:
                try:
                    self.ensure_pages(lun, pages)
                    break
                except MemoryError:
                    if queue_depth or pages == least:
                        raise
                    pages = max(pages // 2, least)       # nobody asked for a depth: fewer at once
        return 0

    cdef object run_spread(self, Transfer *model, tuple also, uint64_t offset, uint64_t block, uint8_t *data,
                           uint64_t length, uint32_t sector_size, uint8_t lun, uint32_t queue_depth, int64_t deadline):
        """As run(), on this channel and those of `also`, which share the depth. Several blocks."""
        cdef Spread spread
        cdef Channel channel
        cdef Transfer *transfer
        cdef uint64_t cursor = 0
        cdef uint32_t i
        cdef int result = VSC_INTERRUPTED
        channels = [self, *also][:VSC_CHANNELS]
        depth = queue_depth if queue_depth else <uint32_t> DEPTH
        channels = channels[:depth]
        statuses = bytearray(b"\x01") * (length // block)
        memset(&spread, 0, sizeof(spread))
        spread.count = len(channels)
        spread.transfers = <Transfer *> calloc(spread.count, sizeof(Transfer))
        if spread.transfers == NULL:
            raise MemoryError
        try:
            for i in range(spread.count):
                channel = channels[i]
                transfer = &spread.transfers[i]
                transfer[0] = model[0]
                channel.prepare(transfer, offset, block, data, length, sector_size, lun,
                                depth // spread.count + (i < depth % spread.count))
                transfer.cursor = &cursor
                transfer.statuses = <uint8_t *> PyByteArray_AS_STRING(statuses)
                spread.channels[i] = &channel.vsc
            while result == VSC_INTERRUPTED:
                with nogil:
                    result = spread_run(&spread, deadline)
                if result == VSC_INTERRUPTED:
                    PyErr_CheckSignals()
            raise_result(result)
        except BaseException:
            for i in range(spread.count):
                if spread.channels[i] != NULL:
                    channel = channels[i]
                    if spread.transfers[i].direct and spread.transfers[i].in_flight:
                        model.direct = True
                        model.in_flight += spread.transfers[i].in_flight
                    channel.abandon(&spread.transfers[i])
            raise
        else:
            for i in range(1, spread.count):
                if spread.transfers[i].failed < spread.transfers[0].failed:
                    spread.transfers[0] = spread.transfers[i]
            return failure_of(spread.transfers, statuses)
        finally:
            for i in range(spread.count):
                free(spread.transfers[i].again)
            free(spread.transfers)

    cdef object run_on(self, Transfer *transfer, uint64_t offset, uint64_t block, data, Py_buffer *view,
                       uint32_t sector_size, uint8_t lun, uint32_t queue_depth, int64_t deadline):
        """run() on the buffer that `view` is of `data`, which outlives what the host still has of it."""
        if self.held and self.vsc.orphans == 0:
            self.held = []
        try:
            return self.run(transfer, offset, block, <uint8_t *> view.buf, view.len, sector_size, lun, queue_depth,
                            deadline)
        except BaseException:
            if transfer.direct and transfer.in_flight:
                self.held.append(data)       # the host still has its pages: nobody else may get them yet
            raise

    def transfer(self, bint write, offsets, uint64_t offset, uint64_t block, data, uint32_t sector_size, *,
                 uint8_t lun=0, uint32_t queue_depth=0, timeout=None, bint fua=False, tuple also=()):
        """Moves blocks of `block` bytes between the disk and the buffer `data`, which holds them one after the other.

        offsets: a buffer of one uint64 byte offset for each block, or None for consecutive blocks from `offset`. The
        caller has checked offsets and sizes. queue_depth: 0 for as many requests at once as pay and as memory allows.
        fua: written blocks are durable when the call returns. also: other channels of the controller, to spread several
        blocks over. Returns None when all succeeded, else (index of the first failed block, SRB status, SCSI status,
        sense, SRB status of each block as bytes). TimeoutError, GuestGone, RingCorrupt: the transfer is abandoned, and
        nothing is written into `data` afterwards unless it is guest memory.
        """
        cdef Transfer transfer
        cdef Py_buffer view
        cdef Py_buffer list_view
        cdef Channel channel
        memset(&transfer, 0, sizeof(transfer))
        transfer.write = write
        transfer.fua = fua and write
        cdef int64_t deadline = deadline_of(timeout)
        if self.vsc.orphans == 0:
            self.held = []
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE if write else PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            if offsets is not None:
                PyObject_GetBuffer(offsets, &list_view, PyBUF_SIMPLE)
                transfer.offsets = <const uint64_t *> list_view.buf
            if also and <uint64_t> view.len > block:
                return self.run_spread(&transfer, also, offset, block, <uint8_t *> view.buf, view.len, sector_size, lun,
                                       queue_depth, deadline)
            return self.run(&transfer, offset, block, <uint8_t *> view.buf, view.len, sector_size, lun, queue_depth,
                            deadline)
        except BaseException:
            if transfer.direct and transfer.in_flight:
                # The host still has its pages: nobody else may get them yet.
                for channel in (self, *also):
                    channel.held.append(data)
            raise
        finally:
            if transfer.offsets != NULL:
                PyBuffer_Release(&list_view)
            PyBuffer_Release(&view)

    def read(self, uint64_t offset, uint64_t length, uint32_t sector_size, *, uint8_t lun=0, timeout=None):
        """(`length` bytes from `offset`, what transfer() returns)."""
        cdef Transfer transfer
        memset(&transfer, 0, sizeof(transfer))
        cdef int64_t deadline = deadline_of(timeout)
        result = PyBytes_FromStringAndSize(NULL, length)
        failure = self.run(&transfer, offset, length, <uint8_t *> PyBytes_AS_STRING(result), length, sector_size, lun,
                           0, deadline)
        return result, failure

    # What the host says unasked.

    def notices(self):
        """The VscNotices since the last call, as a number."""
        with nogil:
            monitor_enter(&self.vsc.monitor, &self.vsc.wanted)
        found = self.vsc.notices
        self.vsc.notices = 0
        with nogil:
            monitor_unlock(&self.vsc.monitor)
        return found

    def attentions(self, uint8_t lun):
        """How many unit attentions a unit has reported, and (ASC, ASCQ) of the last few, oldest first."""
        cdef VscUnit *unit = &self.vsc.units[lun]
        with nogil:
            monitor_enter(&self.vsc.monitor, &self.vsc.wanted)
        count = unit.attentions
        first = count - VSC_ATTENTIONS if count > VSC_ATTENTIONS else 0
        codes = [divmod(unit.attention[n % VSC_ATTENTIONS], 256) for n in range(first, count)]
        with nogil:
            monitor_unlock(&self.vsc.monitor)
        return count, codes

    @property
    def in_flight(self):
        """Requests now, also those that nobody waits for any more."""
        return self.vsc.in_flight

    @property
    def max_transfer(self):
        """Bytes of one request, as the host said."""
        return self.vsc.max_transfer

    def counters(self):
        """What this end cost so far."""
        cdef Vsc *vsc = &self.vsc
        return {"requests": vsc.requests, "bytes_copied": vsc.bytes_copied, "doorbells": vsc.doorbells,
                "blocking_waits": vsc.blocking_waits, "strays": vsc.strays}

    def drain(self, timeout=None):
        """Waits until nothing is in flight on this channel. TimeoutError."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef int result = VSC_INTERRUPTED
        while result == VSC_INTERRUPTED:
            with nogil:
                monitor_enter(&self.vsc.monitor, &self.vsc.wanted)
                result = VSC_OK
                while self.vsc.in_flight and result == VSC_OK:
                    result = vsc_wait(&self.vsc, deadline)
                monitor_unlock(&self.vsc.monitor)
            PyErr_CheckSignals()
        raise_result(result)

    def end(self):
        """The host or the channel is gone: every wait ends with GuestGone, now and later."""
        with nogil:
            # Whoever rings does so with the monitor held: nobody does any more when the number is another file's.
            monitor_enter(&self.vsc.monitor, &self.vsc.wanted)
            if self.vsc.doorbell >= 0:
                close(self.vsc.doorbell)
                self.vsc.doorbell = -1
            store_release32(&self.vsc.gone, 1)
            self.vsc.notices |= VSC_NOTICE_REMOVE
            vsc_call_watcher(&self.vsc)
            monitor_unlock(&self.vsc.monitor)
            # A leader may hold the sleep word. Both words change, so no waiter can miss it.
            fetch_add32(&self.vsc.progress, 1)
            futex_wake(&self.vsc.progress, 0x7fffffff)
            event_end_guest(self.vsc.events)

    @property
    def ended(self):
        return bool(self.vsc.gone)
