"""The worker process's loop: the IDE emulator of one VM, which serves the host's requests (the emulated path) and, on a
controller of its own, the guest's port accesses (the trapped path, see intercept.pxd).
"""

import os

cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from hvcore.dispatch.handover cimport (
    HANDOVER_BYTES, HANDOVER_COMMAND, HANDOVER_MEDIA, HANDOVER_MEDIA_DONE, HANDOVER_PIO, HANDOVER_RESULT,
    HANDOVER_SEGMENTS, HANDOVER_TRACE_BYTES, HandOver, HandOverAnswer, HandOverChannel, HandOverRequest)
from hvcore.dispatch.intercept cimport (
    GuestIde, guest_ide_add, guest_ide_attach, guest_ide_init, guest_ide_poll, guest_ide_ready)
from hvcore.hypervisor.intercept cimport INTERCEPT_BYTES, InterceptPages
from hvcore.ide.abi cimport IDE_BUS_MASTER_BASE, STATUS_ERR
from hvcore.ide.channel cimport IdeMedia
from hvcore.ide.controller cimport (
    IDE_ATTACHED, IdeController, IdeDriveSetup, ide_attach, ide_init, ide_irq, ide_media_complete, ide_media_pending)
from hvcore.ide.dma cimport IdeMemory, IdeSegment
from hvcore.ide.driver cimport (
    IDE_DRIVER_DONE, IDE_MODE_DMA, IDE_OUTCOME_OK, IDE_REQUEST_IDENTIFY, IDE_REQUEST_READ, IDE_REQUEST_WRITE, IdeDriver,
    IdeRequest, ide_driver_begin, ide_driver_init, ide_driver_step)
from hvcore.linux.atomics cimport (
    cpu_relax, exchange32, load_acquire32, load_relaxed32, fence_full, store_relaxed32, store_release32)
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.cpu cimport spin_budget
from hvcore.linux.spin cimport SPIN_MAX_NS, Spinner, spin_begin, spin_end, spin_learn, spin_yield
from hvcore.linux.syscalls cimport eventfd_ring, futex_wait, futex_wake
from hvcore.linux.threads cimport (
    Monitor, Thread, monitor_destroy, monitor_init, monitor_lock, monitor_unlock, monitor_wait, monitor_wake,
    thread_join, thread_start)
from hvcore.memory.region cimport Region
from hvcore.metrics.trace cimport TraceRing, trace_create, trace_stamp
from hvcore.storage.hops cimport HOP_MEDIA_GIVEN, HOP_WORKER_STARTED

cdef enum:
    # Where the PRD tables are on the emulated bus: above all guest memory, in the worker's own pages. A table in guest
    # memory would be one more thing that a guest can change under the walk.
    TABLE_BYTES = 4096
    STAGING_BYTES = 0x40000      # the largest request (host: max_transfer)
    ACCESS_NS = 20000

cdef extern from *:
    """
    #define HV_TABLE_ADDRESS 0xffff0000u
    """
    enum:
        TABLE_ADDRESS "HV_TABLE_ADDRESS"

ctypedef struct WorkerChannel:
    IdeDriver driver
    HandOverChannel *shared
    HandOverRequest request      # private copy of the command at hand
    IdeSegment segments[72]
    uint8_t *staging             # PIO data of a request whose pages are not adjacent
    uint8_t identify[512]
    uint8_t *table
    uint64_t staged_bytes
    uint32_t seen
    uint32_t index

ctypedef struct WorkerGuest:     # NULL without a guest
    uint8_t *memory
    uint64_t memory_bytes
    InterceptPages *pages        # NULL: its ports are not intercepted
    uint32_t epoch

ctypedef struct WorkerLoop:
    HandOver *shared
    IdeController controller
    IdeMemory memory
    WorkerChannel channels[2]
    GuestIde ide
    uint8_t *guest               # guest memory, NULL without a guest
    uint64_t guest_bytes
    InterceptPages *pages
    WorkerGuest next
    uint32_t changed             # the owner left another guest in `next`; 0 once the loop serves that
    Monitor monitor              # of `next` and `changed`
    Thread thread
    Spinner spinner
    TraceRing trace
    int bell                     # eventfd that wakes the host


cdef int worker_fetch(void *context, uint32_t address, void *destination, uint32_t bytes_) noexcept nogil:
    """Reads the PRD tables, the only memory that the controller itself reads."""
    cdef WorkerLoop *loop = <WorkerLoop *> context
    cdef uint32_t offset
    cdef int i
    for i in range(2):
        if address >= TABLE_ADDRESS + <uint32_t> i * TABLE_BYTES:
            offset = address - TABLE_ADDRESS - <uint32_t> i * TABLE_BYTES
            if offset < TABLE_BYTES and bytes_ <= TABLE_BYTES - offset:
                memcpy(destination, loop.channels[i].table + offset, bytes_)
                return 0
    return -1


cdef int worker_store(void *context, uint32_t address, const void *source, uint32_t bytes_) noexcept nogil:
    return -1                    # nothing of the emulated path writes to memory but through media requests


cdef void worker_post(WorkerLoop *loop, WorkerChannel *channel, uint32_t operation) noexcept nogil:
    channel.shared.answer.operation = operation
    # Release: the host that sees the number sees the answer. Full fence: against the host, which writes its sleep word
    # and then looks at the number once more.
    store_release32(&channel.shared.answer.answered, channel.seen)
    fence_full()
    if load_relaxed32(&loop.shared.host_sleep) and exchange32(&loop.shared.host_sleep, 0):
        eventfd_ring(loop.bell)


cdef void worker_media(WorkerLoop *loop, WorkerChannel *channel, const IdeMedia *media) noexcept nogil:
    cdef HandOverAnswer *answer = &channel.shared.answer
    cdef uint32_t i
    answer.kind = <uint32_t> media.kind
    answer.drive = media.drive & 1
    answer.lba = media.lba
    answer.sectors = media.sectors
    answer.dma = media.buffer == NULL
    answer.segment_count = 0
    if answer.dma:
        for i in range(min(media.segment_count, <uint32_t> HANDOVER_SEGMENTS)):
            answer.segments[i].address = media.segments[i].address
            answer.segments[i].bytes = media.segments[i].bytes
        answer.segment_count = media.segment_count
    worker_post(loop, channel, HANDOVER_MEDIA)


cdef void worker_stage(WorkerLoop *loop, WorkerChannel *channel, bint to_guest) noexcept nogil:
    cdef uint64_t done = 0
    cdef uint32_t i
    cdef uint8_t *page
    for i in range(channel.request.segment_count):
        page = loop.guest + channel.segments[i].address
        if to_guest:
            memcpy(page, channel.staging + done, channel.segments[i].bytes)
        else:
            memcpy(channel.staging + done, page, channel.segments[i].bytes)
        done += channel.segments[i].bytes
    channel.staged_bytes += done


cdef void worker_result(WorkerLoop *loop, WorkerChannel *channel) noexcept nogil:
    cdef HandOverAnswer *answer = &channel.shared.answer
    cdef bint ok = channel.driver.result.outcome == IDE_OUTCOME_OK
    if ok and channel.driver.request.data == channel.staging and channel.request.kind == IDE_REQUEST_READ:
        worker_stage(loop, channel, True)
    answer.ata_status = channel.driver.result.status | (0 if ok else STATUS_ERR)
    answer.ata_error = channel.driver.result.error
    answer.port_accesses = channel.driver.result.port_accesses
    answer.bytes_copied = channel.driver.result.bytes_copied + channel.staged_bytes
    worker_post(loop, channel, HANDOVER_RESULT)


cdef void worker_advance(WorkerLoop *loop, WorkerChannel *channel) noexcept nogil:
    """Runs the register programme until the medium is needed or the command is over."""
    cdef IdeMedia *media
    while True:
        if ide_driver_step(&channel.driver) == IDE_DRIVER_DONE:
            worker_result(loop, channel)
            return
        media = ide_media_pending(&loop.controller, channel.index)
        if media != NULL:
            worker_media(loop, channel, media)
            return
        if not ide_irq(&loop.controller, channel.index):
            channel.driver.result.outcome = -1   # neither media nor interrupt: the programme cannot go on
            worker_result(loop, channel)
            return


cdef void worker_command(WorkerLoop *loop, WorkerChannel *channel) noexcept nogil:
    cdef HandOverRequest *message = &channel.request
    cdef IdeRequest request
    cdef uint64_t total = 0
    cdef uint32_t i
    cdef bint valid = True
    memset(&request, 0, sizeof(request))
    request.kind = <int> message.kind
    request.mode = <int> message.mode
    request.drive = message.drive
    request.lba = message.lba
    request.sectors = message.sectors
    channel.staged_bytes = 0
    for i in range(message.segment_count):
        if (loop.guest == NULL or channel.segments[i].address > loop.guest_bytes
                or loop.guest_bytes - channel.segments[i].address < channel.segments[i].bytes):
            valid = False
        total += channel.segments[i].bytes
    if message.kind == IDE_REQUEST_IDENTIFY:
        request.data = channel.identify
    elif message.kind == IDE_REQUEST_READ or message.kind == IDE_REQUEST_WRITE:
        if not valid or total != <uint64_t> message.sectors * 512 or total > STAGING_BYTES:
            request.sectors = 0                  # the driver refuses it
        elif message.mode == IDE_MODE_DMA:
            request.segments = channel.segments
            request.segment_count = message.segment_count
        elif message.segment_count == 1:
            request.data = loop.guest + channel.segments[0].address
        else:
            request.data = channel.staging
            if message.kind == IDE_REQUEST_WRITE:
                worker_stage(loop, channel, False)
    trace_stamp(&loop.trace, message.trace_id, 0, HOP_WORKER_STARTED, channel.index)
    ide_driver_begin(&channel.driver, &request)
    worker_advance(loop, channel)


cdef void worker_message(WorkerLoop *loop, WorkerChannel *channel) noexcept nogil:
    cdef HandOverRequest *shared = &channel.shared.request
    cdef IdeMedia *media
    cdef uint32_t i, operation = shared.operation
    if operation == HANDOVER_COMMAND:
        channel.request.kind = shared.kind
        channel.request.mode = shared.mode
        channel.request.drive = shared.drive
        channel.request.sectors = shared.sectors
        channel.request.lba = shared.lba
        channel.request.trace_id = shared.trace_id
        channel.request.segment_count = min(shared.segment_count, <uint32_t> HANDOVER_SEGMENTS)
        for i in range(channel.request.segment_count):
            channel.segments[i].address = shared.segments[i].address
            channel.segments[i].bytes = shared.segments[i].bytes
        worker_command(loop, channel)
    elif operation == HANDOVER_MEDIA_DONE:
        media = ide_media_pending(&loop.controller, channel.index)
        if media != NULL:
            trace_stamp(&loop.trace, channel.request.trace_id, 0, HOP_MEDIA_GIVEN, channel.index)
            ide_media_complete(&loop.controller, channel.index, media.generation, shared.media_status)
            worker_advance(loop, channel)


cdef inline bint worker_ready(WorkerLoop *loop) noexcept nogil:
    # Acquire: who sees the number sees the message.
    return (load_acquire32(&loop.channels[0].shared.request.posted) != loop.channels[0].seen
            or load_acquire32(&loop.channels[1].shared.request.posted) != loop.channels[1].seen
            or guest_ide_ready(&loop.ide) or load_acquire32(&loop.changed) != 0
            or load_relaxed32(&loop.shared.stop) != 0)


cdef bint worker_spin(WorkerLoop *loop) noexcept nogil:
    cdef uint64_t end
    cdef int _i
    cdef bint ready = False
    if not spin_begin(&loop.spinner):
        return False
    end = clock_ns() + loop.spinner.limit_ns
    while not ready:
        for _i in range(32):
            if worker_ready(loop):
                ready = True
                break
            cpu_relax()
        if clock_ns() >= end:
            break
        if loop.pages != NULL:
            spin_yield()                         # the guest may share this CPU
    spin_end(&loop.spinner)
    return ready


cdef void worker_adopt(WorkerLoop *loop) noexcept nogil:
    """Serves the guest that the owner left, or none."""
    monitor_lock(&loop.monitor)
    loop.guest = loop.next.memory
    loop.guest_bytes = loop.next.memory_bytes
    loop.pages = loop.next.pages
    guest_ide_attach(&loop.ide, loop.pages, loop.guest, loop.guest_bytes, loop.next.epoch)
    store_release32(&loop.changed, 0)
    monitor_wake(&loop.monitor)
    monitor_unlock(&loop.monitor)


cdef void worker_sleep(WorkerLoop *loop) noexcept nogil:
    """Until the host or the guest wakes it. Both words say that it sleeps; it waits on the one that both may wake."""
    cdef uint32_t *word = &loop.shared.worker_sleep
    cdef uint64_t slept
    # The exchanges are full fences between the sleep words and the last look: who does not see its word has posted what
    # is found here. The host that takes its own changes the guest's too: what it posted is found, or the wait ends.
    exchange32(&loop.shared.worker_sleep, 1)
    if loop.pages != NULL:
        word = &loop.pages.worker_sleep
        exchange32(word, 1)
    if not worker_ready(loop):
        slept = clock_ns()
        futex_wait(word, 1, -1)
        spin_learn(&loop.spinner, clock_ns() - slept)
    store_relaxed32(word, 0)
    store_relaxed32(&loop.shared.worker_sleep, 0)


cdef void worker_kick(WorkerLoop *loop) noexcept nogil:
    """From another thread of this process: the loop looks at everything again."""
    exchange32(&loop.shared.worker_sleep, 0)
    futex_wake(&loop.shared.worker_sleep, 1)
    if loop.pages != NULL:
        exchange32(&loop.pages.worker_sleep, 0)
        futex_wake(&loop.pages.worker_sleep, 1)


cdef void *worker_thread(void *argument) noexcept nogil:
    cdef WorkerLoop *loop = <WorkerLoop *> argument
    cdef uint32_t posted
    cdef int i
    cdef bint work
    while not load_acquire32(&loop.shared.stop):
        if load_acquire32(&loop.changed):
            worker_adopt(loop)
        work = False
        for i in range(2):
            posted = load_acquire32(&loop.channels[i].shared.request.posted)
            if posted != loop.channels[i].seen:
                loop.channels[i].seen = posted
                worker_message(loop, &loop.channels[i])
                work = True
        if loop.ide.any and guest_ide_poll(&loop.ide):
            # A register programme's next access is not far: worth to wait awake for, whatever the last wait was.
            loop.spinner.limit_ns = max(loop.spinner.limit_ns, <uint64_t> ACCESS_NS)
            work = True
        if not work and not worker_spin(loop):
            worker_sleep(loop)
    return NULL


cdef int fits(int status) except -1:
    if status != IDE_ATTACHED:
        raise ValueError(f"the disk does not fit an IDE drive (status {status})")
    return 0


@cython.final
cdef class Worker:
    """The IDE emulator of one VM and its thread.

    shared: the memory that the host made for this worker (handover.pxd), zeroed. bell: eventfd that wakes the host,
    duplicated. drives: (channel, drive, sectors of 512 bytes, read_only, serial, physical sector size) of each disk
    that the host's requests go to. guest_drives: the same, then whether it can trim, and the upper bits of its trace
    ids, of each disk that the guest reaches through its ports. start() ... close(); memory(region) tells it the guest's
    memory, None that there is no guest.
    """
    cdef WorkerLoop loop
    cdef Region shared
    cdef Region guest
    cdef Region intercepts
    cdef uint8_t *memory_block
    cdef bint running
    cdef bint monitored

    def __cinit__(self, Region shared not None, int bell, drives, guest_drives=()):
        cdef IdeDriveSetup setup
        cdef WorkerChannel *channel
        cdef int i
        self.loop.bell = -1
        if shared.size < HANDOVER_BYTES:
            raise ValueError("the shared memory is too small")
        # Per channel: one page for the PRD table, and the staging buffer.
        self.memory_block = <uint8_t *> calloc(2, TABLE_BYTES + STAGING_BYTES)
        if self.memory_block == NULL or monitor_init(&self.loop.monitor) < 0:
            raise MemoryError
        self.monitored = True
        self.shared = shared
        self.loop.bell = os.dup(bell)
        os.set_inheritable(self.loop.bell, False)
        self.loop.shared = <HandOver *> shared.base
        self.loop.spinner.budget = spin_budget()
        self.loop.spinner.limit_ns = SPIN_MAX_NS
        trace_create(&self.loop.trace, self.loop.shared.trace, HANDOVER_TRACE_BYTES)
        self.loop.memory.context = &self.loop
        self.loop.memory.fetch = worker_fetch
        self.loop.memory.store = worker_store
        self.loop.memory.size_bytes = 0xffffffffu        # the host checks each segment against the request's own pages
        ide_init(&self.loop.controller, IDE_BUS_MASTER_BASE, &self.loop.memory)
        for i in range(2):
            channel = &self.loop.channels[i]
            channel.index = i
            channel.shared = &self.loop.shared.channels[i]
            channel.table = self.memory_block + i * (TABLE_BYTES + STAGING_BYTES)
            channel.staging = channel.table + TABLE_BYTES
        guest_ide_init(&self.loop.ide, self.loop.shared, self.loop.bell, &self.loop.trace)
        for place, drive, sectors, read_only, name, physical in drives:
            self.setup(&setup, sectors, read_only, name, physical)
            setup.buffer = self.loop.shared.channels[place].pio + <size_t> drive * HANDOVER_PIO
            fits(ide_attach(&self.loop.controller, 2 * place + drive, &setup))
        for place, drive, sectors, read_only, name, physical, can_trim, trace_base in guest_drives:
            self.setup(&setup, sectors, read_only, name, physical)
            setup.can_trim = can_trim
            fits(guest_ide_add(&self.loop.ide, 2 * place + drive, &setup, trace_base))
        for i in range(2):
            channel = &self.loop.channels[i]
            ide_driver_init(&channel.driver, &self.loop.controller, i, channel.table, TABLE_ADDRESS + i * TABLE_BYTES)

    cdef int setup(self, IdeDriveSetup *setup, sectors, read_only, name, physical) except -1:
        cdef bytes serial = name.encode("ascii")[:20]
        memset(setup, 0, sizeof(IdeDriveSetup))
        setup.sectors = sectors
        setup.sector_size = 512
        setup.physical_sector_size = physical
        setup.read_only = read_only
        memcpy(setup.serial, <const char *> serial, len(serial))
        return 0

    def start(self):
        """Starts serving."""
        cdef int status = thread_start(&self.loop.thread, worker_thread, &self.loop)
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        self.running = True

    def memory(self, Region guest, Region intercepts=None, uint32_t epoch=0):
        """The guest's memory from now on (PIO moves data to and from it), or None.

        intercepts: the pages of its port intercepts, where `epoch` will name this worker; the controller that the guest
        sees is then as after power-on. None: its ports are not intercepted. No request may be in flight.
        """
        cdef WorkerLoop *loop = &self.loop
        if not self.running:
            raise ValueError("the worker does not run")
        if intercepts is not None and (guest is None or intercepts.size < INTERCEPT_BYTES):
            raise ValueError("intercept pages without a guest, or too small")
        with nogil:
            monitor_lock(&loop.monitor)
            memset(&loop.next, 0, sizeof(WorkerGuest))
            if guest is not None:
                loop.next.memory = guest.base
                loop.next.memory_bytes = guest.size
            if intercepts is not None:
                loop.next.pages = <InterceptPages *> intercepts.base
                loop.next.epoch = epoch
            store_release32(&loop.changed, 1)
            worker_kick(loop)
            while load_acquire32(&loop.changed):
                monitor_wait(&loop.monitor, -1)
            monitor_unlock(&loop.monitor)
        # The mappings of the guest before may go now.
        self.guest = guest
        self.intercepts = intercepts

    def close(self):
        """Ends the thread. Idempotent."""
        if self.running:
            self.running = False
            with nogil:
                store_release32(&self.loop.shared.stop, 1)
                worker_kick(&self.loop)
                thread_join(self.loop.thread)
        if self.loop.bell >= 0:
            os.close(self.loop.bell)
            self.loop.bell = -1

    def __dealloc__(self):
        self.close()
        if self.monitored:
            monitor_destroy(&self.loop.monitor)
        free(self.memory_block)
