"""The parent partition's data path of one VM: a native thread that serves every channel of the VM.

It polls the channels' rings, the worker's answers and the pool's results, spins for a bounded time when there is
nothing,
and then blocks on the doorbells. The thread never runs the interpreter. Its owner changes what it serves under the
loop's monitor, which the thread holds whenever it works.
"""

import os
import select

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from hvcore.dispatch.emulated cimport (
    EmulatedDisk, EmulatedHost, emulated_drop, emulated_execute, emulated_idle, emulated_init, emulated_poll,
    emulated_ready, emulated_unavailable, emulated_worker, emulated_worker_lost)
from hvcore.dispatch.handover cimport HANDOVER_BYTES, HandOver
from hvcore.dispatch.pool cimport Pool, PoolJob, pool_start, pool_stop, pool_take_done
from hvcore.dispatch.synthetic cimport MediaJob, synthetic_execute
from hvcore.linux.atomics cimport (
    count64, cpu_relax, exchange32, fetch_add32, load_acquire32, load_relaxed32, load_relaxed64, store_relaxed32,
    store_release32)
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.cpu cimport spin_budget
from hvcore.linux.spin cimport SPIN_MAX_NS, Spinner, spin_begin, spin_end, spin_learn, spin_yield
from hvcore.linux.syscalls cimport eventfd_ring, futex_wait, futex_wake, iovec
from hvcore.linux.threads cimport (
    Monitor, Thread, monitor_destroy, monitor_init, monitor_lock, monitor_unlock, monitor_wait, monitor_wake,
    thread_join, thread_start)
from hvcore.memory.region cimport Region
from hvcore.metrics.counters cimport Counters
from hvcore.metrics.trace cimport TraceRing, trace_create, trace_off
from hvcore.scsi.target cimport Target
from hvcore.storage.vsp cimport (
    VSP_PACKET_MAX, Vsp, VspRequest, vsp_mask, vsp_open, vsp_poll, vsp_publish, vsp_ready, vsp_unmask)
from hvcore.vmbus.abi cimport PAGE_SIZE, RingControl
from hvcore.vmbus.events cimport EventPage, event_host_clear, event_host_pending, event_host_sleeps, event_host_wakes
from hvcore.vmbus.ring cimport RING_HOST, ring_open_reader, ring_open_writer

cdef extern from "<sys/epoll.h>" nogil:
    struct epoll_event:
        uint32_t events
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef enum:
    DISKS_MAX = 64

HANDOVER_SIZE = (HANDOVER_BYTES + 4095) // 4096 * 4096       # of the memory shared with a worker
FAULTS = ("", "ring", "packet", "range", "length", "operation")
STATES = ("begin", "query version", "query properties", "end initialization", "ready")

ctypedef struct HostDisk:
    Vsp vsp
    EmulatedDisk emulated
    MediaJob *jobs
    iovec *iov
    uint8_t **pages              # of the open channel's two rings
    Counters counters

ctypedef struct HostLoop:
    Monitor monitor
    Thread thread
    Pool pool
    EmulatedHost emulated
    Spinner spinner
    TraceRing trace
    Counters counters
    EventPage *events            # NULL without a guest
    HostDisk *disks[64]
    int disk_count
    int epoll
    int broken_bell              # eventfd: a worker broke the protocol
    uint32_t control_wanted      # threads that wait for the monitor; also their futex
    uint32_t stopping
    bint closing                 # somebody waits for requests in flight


cdef int loop_pass(HostLoop *loop) noexcept nogil:
    """Everything that can be done now; how much it was."""
    cdef int work = 0, i
    cdef PoolJob *jobs = pool_take_done(&loop.pool)
    cdef PoolJob *job
    while jobs != NULL:
        job = jobs
        jobs = job.next          # before done(): it may submit the job again
        job.done(job)
        work += 1
    work += emulated_poll(&loop.emulated)
    for i in range(loop.disk_count):
        work += vsp_poll(&loop.disks[i].vsp)
    if work:
        for i in range(loop.disk_count):
            vsp_publish(&loop.disks[i].vsp)
        if loop.closing:
            monitor_wake(&loop.monitor)
        if loop.emulated.broken:
            loop.emulated.broken = False
            eventfd_ring(loop.broken_bell)
    return work


cdef bint loop_ready(HostLoop *loop) noexcept nogil:
    cdef int i
    if load_relaxed32(&loop.pool.done_count) or load_relaxed32(&loop.control_wanted) or load_relaxed32(&loop.stopping):
        return True
    for i in range(loop.disk_count):
        if vsp_ready(&loop.disks[i].vsp):
            return True
    return emulated_ready(&loop.emulated)


cdef bint loop_spin(HostLoop *loop) noexcept nogil:
    """Waits awake for a bounded time; whether there is something to do. The rings' masks stay set: nobody signals."""
    cdef uint64_t end
    cdef int _i
    cdef bint ready = False
    if not spin_begin(&loop.spinner):
        return False
    end = clock_ns() + loop.spinner.limit_ns
    while True:
        for _i in range(32):
            if loop_ready(loop):
                ready = True
                break
            cpu_relax()
        if ready or clock_ns() >= end:
            break
        if emulated_idle(&loop.emulated):    # else the CPU is better kept for the worker's answer than given to a guest
            spin_yield()
    spin_end(&loop.spinner)
    return ready


cdef void loop_mask(HostLoop *loop) noexcept nogil:
    cdef int i
    for i in range(loop.disk_count):
        vsp_mask(&loop.disks[i].vsp)


cdef bint loop_prepare_sleep(HostLoop *loop) noexcept nogil:
    """The waiter's half of the protocol in hvcore/vmbus/events.pxd. False: something came, do not block."""
    cdef int i
    cdef bint idle = True
    for i in range(loop.disk_count):
        if vsp_unmask(&loop.disks[i].vsp):
            idle = False
    if idle:
        # The exchanges are full fences: each sleep word is set before the re-check below, so that a signaller that does
        # not see it has published what the re-check finds.
        if loop.emulated.shared != NULL:
            exchange32(&loop.emulated.shared.host_sleep, 1)
        if loop.events != NULL:
            event_host_sleeps(loop.events)
            idle = not event_host_pending(loop.events)
        idle = idle and not loop_ready(loop)
    if not idle:
        loop_woken(loop)
    return idle


cdef void loop_woken(HostLoop *loop) noexcept nogil:
    if loop.emulated.shared != NULL:
        store_relaxed32(&loop.emulated.shared.host_sleep, 0)
    if loop.events != NULL:
        event_host_wakes(loop.events)
        event_host_clear(loop.events)        # flags before rings (EV-1)
    loop_mask(loop)


cdef void *loop_thread(void *argument) noexcept nogil:
    cdef HostLoop *loop = <HostLoop *> argument
    cdef epoll_event event
    cdef uint64_t slept
    cdef uint32_t wanted
    monitor_lock(&loop.monitor)
    while not load_acquire32(&loop.stopping):
        wanted = load_acquire32(&loop.control_wanted)
        if wanted:
            # The owner goes first: a mutex alone would let this thread take it again and again.
            monitor_unlock(&loop.monitor)
            while wanted:
                futex_wait(&loop.control_wanted, wanted, -1)
                wanted = load_acquire32(&loop.control_wanted)
            monitor_lock(&loop.monitor)
            continue
        if loop_pass(loop) or loop_spin(loop) or not loop_prepare_sleep(loop):
            continue
        count64(&loop.counters.blocking_waits, 1)
        slept = clock_ns()
        monitor_unlock(&loop.monitor)
        epoll_wait(loop.epoll, &event, 1, -1)
        monitor_lock(&loop.monitor)
        spin_learn(&loop.spinner, clock_ns() - slept)
        loop_woken(loop)
    monitor_unlock(&loop.monitor)
    return NULL


@cython.final
cdef class Dispatch:
    """The data path of one VM in the host. All methods may block for as long as a disk access takes, and are for one
    thread.

    add_disk (before anything else), attach, open_channel ... close_channel, detach, close. `broken_fd` is an eventfd
    that becomes readable when a worker broke the protocol of its shared memory: it must be ended.
    """
    cdef HostLoop loop
    cdef bint running
    cdef object targets          # keeps the SCSI targets, and through them the images, alive
    cdef Region memory
    cdef Region event_region
    cdef Region worker_region
    cdef Region trace_region
    cdef int guest_bell
    cdef readonly int worker_bell
    cdef int pool_bell
    cdef int control_bell
    cdef object epoll

    def __cinit__(self):
        self.loop.epoll = self.loop.broken_bell = -1
        self.guest_bell = self.worker_bell = self.pool_bell = self.control_bell = -1

    def __init__(self, int pool_threads=4):
        cdef int status
        self.targets = []
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.pool_bell, self.control_bell = os.eventfd(0, flags), os.eventfd(0, flags)
        self.worker_bell, self.loop.broken_bell = os.eventfd(0, flags), os.eventfd(0, flags)
        self.epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self.loop.epoll = self.epoll.fileno()
        # Edge-triggered, and none is ever read: a counter and flags that a peer holds cannot block this thread.
        for fd in (self.pool_bell, self.control_bell, self.worker_bell):
            self.epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        trace_off(&self.loop.trace)
        self.loop.spinner.budget = spin_budget()
        self.loop.spinner.limit_ns = SPIN_MAX_NS
        emulated_init(&self.loop.emulated, &self.loop.pool)
        status = pool_start(&self.loop.pool, pool_threads, self.pool_bell)
        if status == 0:
            status = monitor_init(&self.loop.monitor)
            if status == 0:
                status = thread_start(&self.loop.thread, loop_thread, &self.loop)
                if status < 0:
                    monitor_destroy(&self.loop.monitor)
            if status < 0:
                pool_stop(&self.loop.pool)
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        self.running = True

    @property
    def broken_fd(self):
        return self.loop.broken_bell

    # The monitor: the thread gives it up as soon as it sees that somebody wants it.

    cdef void lock(self) noexcept nogil:
        fetch_add32(&self.loop.control_wanted, 1)
        monitor_lock(&self.loop.monitor)

    cdef void unlock(self) noexcept nogil:
        monitor_unlock(&self.loop.monitor)
        fetch_add32(&self.loop.control_wanted, <uint32_t> -1)
        futex_wake(&self.loop.control_wanted, 1)
        eventfd_ring(self.control_bell)      # what changed may be work for a thread that sleeps

    # Disks.

    def add_disk(self, Target target not None, str path, *, uint32_t depth=256, uint32_t max_transfer=0x40000,
                 uint32_t max_version=0x0602, uint32_t channel=0, uint32_t drive=0, uint32_t mode=0, uint64_t vm=0):
        """A disk on a controller of its own, as LUN 0; returns its index.

        path: "synthetic", or "emulated" through drive 0 or 1 of IDE channel 0 or 1 in the given mode (an IdeMode).
        max_transfer: bytes of one request, a multiple of 4096, at most 256 KiB on the emulated path.
        """
        cdef HostDisk *disk
        cdef Vsp *vsp
        cdef uint32_t i
        if self.loop.disk_count == DISKS_MAX:
            raise ValueError(f"a VM has at most {DISKS_MAX} disks")
        if max_transfer < 0x1000 or max_transfer > 0x1000000 or max_transfer % PAGE_SIZE:
            raise ValueError(f"max_transfer {max_transfer} is not a multiple of 4096 between 4 KiB and 16 MiB")
        if not 1 <= depth <= 4096:
            raise ValueError(f"depth {depth} is not between 1 and 4096")
        if path == "emulated" and max_transfer > 0x40000:
            raise ValueError("max_transfer is at most 256 KiB on the emulated path")
        disk = <HostDisk *> calloc(1, sizeof(HostDisk))
        if disk == NULL:
            raise MemoryError
        vsp = &disk.vsp
        vsp.depth = depth
        vsp.iov_max = max_transfer // PAGE_SIZE + 1
        vsp.requests = <VspRequest *> calloc(depth, sizeof(VspRequest))
        vsp.buffer = <uint8_t *> malloc(VSP_PACKET_MAX)
        disk.jobs = <MediaJob *> calloc(depth, sizeof(MediaJob))
        # One more than the pages: each request's list, cut out of one allocation.
        disk.iov = <iovec *> calloc(<size_t> depth * vsp.iov_max, sizeof(iovec))
        if vsp.requests == NULL or vsp.buffer == NULL or disk.jobs == NULL or disk.iov == NULL:
            disk_free(disk)
            raise MemoryError
        for i in range(depth):
            vsp.requests[i].iov = &disk.iov[<size_t> i * vsp.iov_max]
            vsp.requests[i].executor_data = &disk.jobs[i]
        target.unit.max_transfer = max_transfer
        vsp.max_transfer = max_transfer
        vsp.max_version = max_version
        vsp.strict_alloc = target.unit.strict_alloc
        vsp.units[0] = &target.unit
        vsp.luns[0] = 1
        vsp.counters = &disk.counters
        vsp.trace = &self.loop.trace
        vsp.trace_base = vm << 48 | <uint64_t> (self.loop.disk_count & 0xff) << 40
        if path == "synthetic":
            vsp.execute = synthetic_execute
            vsp.context = &self.loop.pool
        elif path == "emulated":
            disk.emulated.host = &self.loop.emulated
            disk.emulated.disk = target.unit.disk
            disk.emulated.channel = channel & 1
            disk.emulated.drive = drive & 1
            disk.emulated.mode = mode
            vsp.execute = emulated_execute
            vsp.context = &disk.emulated
            vsp.identify = True
        else:
            disk_free(disk)
            raise ValueError(f"there is no path {path!r}")
        with nogil:
            self.lock()
            self.loop.disks[self.loop.disk_count] = disk
            self.loop.disk_count += 1
            self.unlock()
        self.targets.append(target)
        return self.loop.disk_count - 1

    cdef HostDisk *disk(self, int index) except NULL:
        if not 0 <= index < self.loop.disk_count:
            raise IndexError(f"there is no disk {index}")
        return self.loop.disks[index]

    # Guests.

    def attach(self, Region memory not None, Region events not None, int doorbell):
        """A guest is there: its memory, its event page (4096 bytes) and the eventfd that it rings (duplicated)."""
        if self.memory is not None:
            raise ValueError("a guest is attached already")
        self.guest_bell = os.dup(doorbell)
        os.set_inheritable(self.guest_bell, False)
        self.epoll.register(self.guest_bell, select.EPOLLIN | select.EPOLLET)
        self.memory = memory
        self.event_region = events
        with nogil:
            self.lock()
            self.loop.events = <EventPage *> self.event_region.base
            self.unlock()

    def detach(self):
        """Closes every channel and forgets the guest; its memory is not touched afterwards. Idempotent."""
        cdef int i
        for i in range(self.loop.disk_count):
            self.close_channel(i)
        with nogil:
            self.lock()
            self.loop.events = NULL
            self.unlock()
        if self.guest_bell >= 0:
            self.epoll.unregister(self.guest_bell)
            os.close(self.guest_bell)
            self.guest_bell = -1
        self.memory = self.event_region = None

    def open_channel(self, int index, uint32_t relid, pfns, uint32_t downstream_offset):
        """Opens the rings in the guest pages `pfns`, the host-to-guest ring from page `downstream_offset` on.

        False when the guest's values break a rule (vmbus.md 1.1, RB-7, VA-4).
        """
        cdef HostDisk *disk = self.disk(index)
        cdef Vsp *vsp = &disk.vsp
        cdef uint32_t count = len(pfns), i
        cdef uint64_t pfn, pages
        cdef int status
        if self.memory is None or disk.pages != NULL:
            return False
        if downstream_offset < 2 or count < <uint64_t> downstream_offset + 2:     # in 64 bits (VA-3)
            return False
        pages = self.memory.size // PAGE_SIZE
        disk.pages = <uint8_t **> calloc(count, sizeof(uint8_t *))
        if disk.pages == NULL:
            raise MemoryError
        for i in range(count):
            pfn = pfns[i]
            if pfn >= pages:
                free(disk.pages)
                disk.pages = NULL
                return False
            disk.pages[i] = self.memory.base + pfn * PAGE_SIZE
        with nogil:
            self.lock()
            vsp.memory.base = self.memory.base
            vsp.memory.size_bytes = self.memory.size
            vsp.events = self.loop.events
            vsp.relid = relid
            status = ring_open_reader(&vsp.incoming, <RingControl *> disk.pages[0], &disk.pages[1],
                                      (downstream_offset - 1) * PAGE_SIZE, RING_HOST)
            if status == 0:
                status = ring_open_writer(&vsp.outgoing, <RingControl *> disk.pages[downstream_offset],
                                          &disk.pages[downstream_offset + 1],
                                          (count - downstream_offset - 1) * PAGE_SIZE, RING_HOST)
            if status == 0:
                vsp_open(vsp)
            self.unlock()
        if status < 0:
            free(disk.pages)
            disk.pages = NULL
        return status == 0

    def close_channel(self, int index, double timeout=-1):
        """Stops serving the channel and waits until no request of it is in flight: its memory is then unreferenced
        (VA-15).

        timeout: seconds, < 0 for ever. False: something is still in flight (a worker that does not answer); call again
        when that was ended.
        """
        cdef HostDisk *disk = self.disk(index)
        cdef Vsp *vsp = &disk.vsp
        cdef int64_t deadline = -1 if timeout < 0 else <int64_t> clock_ns() + <int64_t> (timeout * 1e9)
        cdef bint drained
        if disk.pages == NULL:
            return True
        with nogil:
            self.lock()
            vsp.open = False                 # takes nothing and answers nothing from here on
            emulated_drop(&self.loop.emulated, vsp)
            self.loop.closing = True
            # The thread must run for this: no longer wanted, only waiting.
            fetch_add32(&self.loop.control_wanted, <uint32_t> -1)
            futex_wake(&self.loop.control_wanted, 1)
            eventfd_ring(self.control_bell)
            while vsp.in_flight and monitor_wait(&self.loop.monitor, deadline) == 0:
                pass
            drained = vsp.in_flight == 0
            fetch_add32(&self.loop.control_wanted, 1)
            self.loop.closing = False
            self.unlock()
        if drained:
            free(disk.pages)
            disk.pages = NULL
        return drained

    # Workers.

    def worker_attached(self, Region shared not None):
        """A worker process serves the zeroed memory `shared` (handover.pxd)."""
        if shared.size < HANDOVER_BYTES:
            raise ValueError("the memory is too small")
        self.worker_region = shared
        with nogil:
            self.lock()
            emulated_worker(&self.loop.emulated, <HandOver *> self.worker_region.base)
            self.unlock()

    def worker_unavailable(self):
        """There is no worker and none will come: emulated requests are aborted at once, until worker_attached()."""
        cdef int i
        with nogil:
            self.lock()
            emulated_unavailable(&self.loop.emulated)
            for i in range(self.loop.disk_count):
                vsp_publish(&self.loop.disks[i].vsp)
            self.unlock()

    def worker_lost(self):
        """The worker process ended. What it had in hand is aborted; what waits goes to the next worker. Idempotent."""
        cdef int i
        with nogil:
            self.lock()
            emulated_worker_lost(&self.loop.emulated)
            for i in range(self.loop.disk_count):
                vsp_publish(&self.loop.disks[i].vsp)
            self.unlock()
        self.worker_region = None

    # What it cost.

    def counters(self, int index):
        """The disk's counters since it was added, as a dict."""
        cdef Counters *counters = &self.disk(index).counters
        return {
            "requests": load_relaxed64(&counters.requests),
            "hand_overs": load_relaxed64(&counters.hand_overs),
            "ring_packets": load_relaxed64(&counters.ring_packets),
            "port_accesses": load_relaxed64(&counters.port_accesses),
            "intercepts": load_relaxed64(&counters.intercepts),
            "bytes_copied": load_relaxed64(&counters.bytes_copied),
            "doorbells": load_relaxed64(&counters.doorbells),
            "media_accesses": load_relaxed64(&counters.media_accesses),
            "errors": load_relaxed64(&counters.errors),
            "blocking_waits": load_relaxed64(&self.loop.counters.blocking_waits),
        }

    def inspect(self, int index):
        """The channel's state, for people: negotiation, faults, requests in flight."""
        cdef Vsp *vsp = &self.disk(index).vsp
        return {
            "open": bool(vsp.open),
            "state": STATES[vsp.state],
            "version": f"{vsp.version >> 8}.{vsp.version & 0xff}" if vsp.version else None,
            "fault": FAULTS[vsp.fault] or None,
            "in_flight": vsp.in_flight,
        }

    def trace(self, Region region not None):
        """Stamps requests into a trace ring (hvcore.metrics.trace) that fills `region`; the ring is off at first."""
        cdef TraceRing ring
        if trace_create(&ring, region.base, region.size) < 0:
            raise ValueError("the memory is too small for a trace ring")
        with nogil:
            self.lock()
            self.loop.trace = ring
            self.unlock()
        self.trace_region = region

    def close(self):
        """Closes the channels, ends the threads and closes the descriptors. The images stay open. Idempotent."""
        cdef int i
        if self.running:
            self.worker_lost()
            self.detach()
            self.running = False
            with nogil:
                store_release32(&self.loop.stopping, 1)
                eventfd_ring(self.control_bell)
                thread_join(self.loop.thread)
                pool_stop(&self.loop.pool)
                monitor_destroy(&self.loop.monitor)
        for i in range(self.loop.disk_count):
            disk_free(self.loop.disks[i])
        self.loop.disk_count = 0
        self.targets = []
        if self.epoll is not None:
            self.epoll.close()
            self.epoll = None
        for fd in (self.pool_bell, self.control_bell, self.worker_bell, self.loop.broken_bell):
            if fd >= 0:
                os.close(fd)
        self.pool_bell = self.control_bell = self.worker_bell = self.loop.broken_bell = -1

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __dealloc__(self):
        # The interpreter may be half gone here: an owner that forgot close() at least stops the threads, which use
        # this memory.
        cdef int i
        if self.running:
            store_release32(&self.loop.stopping, 1)
            eventfd_ring(self.control_bell)
            thread_join(self.loop.thread)
            pool_stop(&self.loop.pool)
        for i in range(self.loop.disk_count):
            disk_free(self.loop.disks[i])


cdef void disk_free(HostDisk *disk) noexcept nogil:
    free(disk.vsp.requests)
    free(disk.vsp.buffer)
    free(disk.jobs)
    free(disk.iov)
    free(disk.pages)
    free(disk)
