"""The parent partition's data path of one VM, as its host's control path sees it: disks, controllers, channels, guest
and worker come and go while the native thread (loop.pxd) serves them.
"""

import os
import select

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from hvcore.disk.ops cimport Backend
from hvcore.dispatch.emulated cimport (
    emulated_drop, emulated_execute, emulated_init, emulated_unavailable, emulated_worker, emulated_worker_lost)
from hvcore.dispatch.handover cimport HANDOVER_BYTES, HandOver
from hvcore.dispatch.loop cimport (
    CHANNELS_MAX, HostChannel, HostController, HostDisk, HostLoop, loop_drain, loop_lock, loop_publish, loop_thread,
    loop_forget_gate, loop_gate, loop_unlock)
from hvcore.dispatch.pool cimport MediaPool, pool_leave, pool_source
from hvcore.dispatch.synthetic cimport MediaJob, synthetic_execute
from hvcore.dispatch.trapped cimport (
    TrappedDrive, trapped_counters, trapped_guest, trapped_init, trapped_worker, trapped_worker_lost)
from hvcore.hypervisor.intercept cimport Intercepts
from hvcore.linux.atomics cimport load_relaxed64, store_release32, store_release64
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.cpu cimport spin_budget
from hvcore.linux.spin cimport SPIN_MAX_NS
from hvcore.linux.syscalls cimport eventfd_ring, iovec, timer_new
from hvcore.linux.threads cimport monitor_destroy, monitor_init, thread_join, thread_start
from hvcore.memory.region cimport Region
from hvcore.metrics.counters cimport Counters, counters_dict
from hvcore.metrics.events cimport EventLog, events_create, events_off
from hvcore.metrics.trace cimport TraceRing, trace_create, trace_off
from hvcore.scsi.target cimport Target
from hvcore.storage.gate cimport GATE_NEVER, GateLimits, gate_init, gate_set
from hvcore.storage.vsp cimport (
    VSP_LUNS, VSP_NOTICE_ENUMERATE, VSP_NOTICE_REMOVE, VSP_PACKET_MAX, VSP_UNIT_LEAST, Vsp, VspController, VspRequest,
    VspUnit, vsp_drop_waiting, vsp_open, vsp_reset, vsp_set_unit)
from hvcore.vmbus.abi cimport PAGE_SIZE, RingControl
from hvcore.vmbus.events cimport EventPage
from hvcore.vmbus.ring cimport RING_HOST, ring_open_reader, ring_open_writer

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef enum:
    DISKS_MAX = 256              # of one VM
    CONTROLLERS_MAX = 16
    SUB_CHANNELS_MAX = 15        # of one controller
    TRANSFER_MAX = 0x1000000     # bytes of one request
    TRANSFER_MAX_EMULATED = 0x40000

HANDOVER_SIZE = (HANDOVER_BYTES + 4095) // 4096 * 4096       # of the memory shared with a worker
FAULTS = ("", "ring", "packet", "range", "length", "operation")
STATES = ("begin", "query version", "query properties", "end initialization", "ready")


@cython.final
cdef class Dispatch:
    """The data path of one VM in the host. All methods may block for as long as a disk access takes, and are for one
    thread.

    pool: the host's threads for disk calls, closed after this. add_disk, add_controller and attach_unit make what a
    guest will find; attach, open_channel ... close_channel, detach follow a guest; detach_unit, remove_disk and
    remove_controller take away again; close. `broken_fd` is an eventfd that becomes readable when a worker broke the
    protocol of its shared memory: it must be ended. `sub_channel_fd` becomes readable when a guest asked for
    sub-channels (sub_channels()).
    """
    cdef HostLoop loop
    cdef bint running
    cdef MediaPool pool
    cdef HostDisk *disks[DISKS_MAX]
    cdef HostController *controllers[CONTROLLERS_MAX]
    cdef HostChannel *channels[CONTROLLERS_MAX][SUB_CHANNELS_MAX + 1]
    cdef dict targets            # of each disk: keeps the SCSI target, and through it the image, alive
    cdef Region memory
    cdef Region event_region
    cdef Region worker_region
    cdef Region trace_region
    cdef Region event_log_region
    cdef int guest_bell
    cdef readonly int worker_bell
    cdef readonly int sub_channel_fd
    cdef int home_bell
    cdef object epoll

    def __cinit__(self, MediaPool pool not None):
        self.pool = pool
        self.loop.epoll = self.loop.broken_bell = self.loop.control_bell = self.loop.timer = -1
        self.guest_bell = self.worker_bell = self.home_bell = self.sub_channel_fd = -1

    def __init__(self, MediaPool pool not None):
        cdef int status
        self.targets = {}
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.home_bell, self.loop.control_bell = os.eventfd(0, flags), os.eventfd(0, flags)
        self.worker_bell, self.loop.broken_bell = os.eventfd(0, flags), os.eventfd(0, flags)
        self.sub_channel_fd = os.eventfd(0, flags)
        self.loop.home.doorbell = self.home_bell
        self.loop.timer = timer_new()
        if self.loop.timer < 0:
            raise OSError(-self.loop.timer, os.strerror(-self.loop.timer))
        self.loop.gate_due_ns = GATE_NEVER
        events_off(&self.loop.log)
        self.epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self.loop.epoll = self.epoll.fileno()
        # Edge-triggered, and none is ever read: a counter and flags that a peer holds cannot block this thread.
        for fd in (self.home_bell, self.loop.control_bell, self.worker_bell, self.loop.timer):
            self.epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        trace_off(&self.loop.trace)
        self.loop.spinner.budget = spin_budget()
        self.loop.spinner.limit_ns = SPIN_MAX_NS
        emulated_init(&self.loop.emulated)
        trapped_init(&self.loop.trapped, &self.loop.trace)
        status = monitor_init(&self.loop.monitor)
        if status == 0:
            status = thread_start(&self.loop.thread, loop_thread, &self.loop)
            if status < 0:
                monitor_destroy(&self.loop.monitor)
        if status < 0:
            raise OSError(-status, os.strerror(-status))
        self.running = True

    @property
    def broken_fd(self):
        return self.loop.broken_bell

    # Disks.

    def add_disk(self, Target target not None, str path, *, uint32_t channel=0, uint32_t drive=0, uint32_t mode=0,
                 uint64_t vm=0):
        """A disk, not yet at any controller; returns its number.

        path: how the requests of a controller are executed: "synthetic", or "emulated" through drive 0 or 1 of IDE
        channel 0 or 1 in the given mode (an IdeMode). vm: number in trace ids.
        """
        cdef HostDisk *disk
        cdef int index = 0
        if path not in ("synthetic", "emulated"):
            raise ValueError(f"there is no path {path!r}")
        while index < DISKS_MAX and self.disks[index] != NULL:
            index += 1
        if index == DISKS_MAX:
            raise ValueError(f"a VM has at most {DISKS_MAX} disks")
        disk = <HostDisk *> calloc(1, sizeof(HostDisk))
        if disk == NULL:
            raise MemoryError
        disk.media.pool = &self.pool.pool
        pool_source(&disk.media.source, &self.loop.home)
        disk.unit.scsi = &target.unit
        disk.unit.counters = &disk.counters
        disk.unit.trace_base = vm << 48 | <uint64_t> (index & 0xff) << 40
        disk.unit.limit = <uint32_t> -1
        gate_init(&disk.unit.gate, &disk.counters)
        if path == "synthetic":
            disk.unit.execute = synthetic_execute
            disk.unit.context = &disk.media
        else:
            disk.emulated.host = &self.loop.emulated
            disk.emulated.media = &disk.media
            disk.emulated.channel = channel & 1
            disk.emulated.drive = drive & 1
            disk.emulated.mode = mode
            disk.unit.execute = emulated_execute
            disk.unit.context = &disk.emulated
            disk.unit.identify = True
        self.disks[index] = disk
        self.targets[index] = target
        return index

    def exchange_disk(self, int index, Backend image not None):
        """The disk goes on with another backend: see Target.exchange."""
        cdef HostDisk *disk = self.disk(index)
        cdef Target target = self.targets[index]
        cdef int place = self.place_of(disk)
        target.exchange(image)
        if place >= 0:
            store_release64(<uint64_t *> &self.loop.trapped.drives[place].disk, <uint64_t> target.unit.disk)

    def backend(self, int index):
        """Where the disk's requests go: the Backend whose DiskRef they use."""
        cdef HostDisk *disk = self.disk(index)
        cdef Target target = self.targets[index]
        cdef int place = self.place_of(disk)
        cdef bint other = place >= 0 and self.loop.trapped.drives[place].disk != target.unit.disk
        if other or target.unit.disk != &target.image.ref:
            raise SystemError("a path of the disk has another backend than its target")
        return target.image

    def remove_disk(self, int index):
        """Forgets a disk that is at no controller any more. Its image may be closed afterwards."""
        cdef HostDisk *disk = self.disk(index)
        cdef int controller, lun
        for controller in range(CONTROLLERS_MAX):
            for lun in range(VSP_LUNS):
                if self.controllers[controller] != NULL and self.controllers[controller].vsp.units[lun] == &disk.unit:
                    raise ValueError(f"disk {index} is at controller {controller}, LUN {lun}")
        self.detach_drive(index)
        with nogil:
            loop_lock(&self.loop)
            loop_forget_gate(&self.loop, disk)
            loop_unlock(&self.loop)
            pool_leave(&self.pool.pool, &disk.media.source)
        free(disk)
        self.disks[index] = NULL
        del self.targets[index]

    def set_limits(self, int index, uint64_t max_iops, uint64_t max_bandwidth, uint64_t min_iops,
                   uint64_t min_bandwidth):
        """Limits of a disk, in force at once: normalised operations of 8 KiB and bytes, per second; 0 for none."""
        cdef HostDisk *disk = self.disk(index)
        cdef GateLimits limits
        limits.max_iops, limits.max_bandwidth = max_iops, max_bandwidth
        limits.min_iops, limits.min_bandwidth = min_iops, min_bandwidth
        with nogil:
            loop_lock(&self.loop)
            gate_set(&disk.unit.gate, &limits, clock_ns())
            loop_gate(&self.loop, disk)
            loop_unlock(&self.loop)

    cdef HostDisk *disk(self, int index) except NULL:
        if not 0 <= index < DISKS_MAX or self.disks[index] == NULL:
            raise IndexError(f"there is no disk {index}")
        return self.disks[index]

    # The IDE controller that the guest sees.

    def attach_drive(self, int index, uint32_t channel, uint32_t drive):
        """Puts a disk at drive 0 or 1 of channel 0 or 1, for the guest's port accesses, beside its LUN if any."""
        cdef HostDisk *disk = self.disk(index)
        cdef Target target = self.targets[index]
        cdef TrappedDrive *place
        if channel > 1 or drive > 1 or self.loop.trapped.drives[2 * channel + drive].disk != NULL:
            raise ValueError(f"drive {drive} of IDE channel {channel} is not free")
        place = &self.loop.trapped.drives[2 * channel + drive]
        with nogil:
            loop_lock(&self.loop)
            memset(place, 0, sizeof(TrappedDrive))
            place.media = &disk.media
            place.counters = &disk.counters
            place.trace_base = disk.unit.trace_base
            place.disk = target.unit.disk
            loop_unlock(&self.loop)

    def detach_drive(self, int index):
        """Takes the disk away from the IDE controller, while no worker serves it."""
        cdef int place = self.place_of(self.disk(index))
        if place < 0:
            return
        with nogil:
            loop_lock(&self.loop)
            loop_drain(&self.loop, &self.loop.trapped.busy, -1)
            self.loop.trapped.drives[place].disk = NULL
            loop_unlock(&self.loop)

    cdef int place_of(self, HostDisk *disk) noexcept:
        """2 * IDE channel + drive, or -1."""
        cdef int place
        for place in range(4):
            if self.loop.trapped.drives[place].disk != NULL and self.loop.trapped.drives[place].media == &disk.media:
                return place
        return -1

    def trace_base(self, int index):
        """The upper 24 bits of the disk's trace ids."""
        return self.disk(index).unit.trace_base

    # Controllers.

    def add_controller(self, *, uint32_t depth=256, uint32_t max_transfer=0x40000, uint32_t max_version=0x0602,
                       uint32_t sub_channels=0, bint single_disk=False, bint strict_alloc=True):
        """A storvsp controller without units; returns its number.

        depth: requests of one channel in flight. max_transfer: bytes of one request, a multiple of 4096. sub_channels:
        how many a guest may have beside the primary channel. single_disk: addresses are ignored (storvsp.md 1).
        """
        cdef HostController *controller
        cdef int index = 0
        if max_transfer < 0x1000 or max_transfer > TRANSFER_MAX or max_transfer % PAGE_SIZE:
            raise ValueError(f"max_transfer {max_transfer} is not a multiple of 4096 between 4 KiB and 16 MiB")
        if not 1 <= depth <= 4096:
            raise ValueError(f"depth {depth} is not between 1 and 4096")
        if sub_channels > SUB_CHANNELS_MAX:
            raise ValueError(f"sub_channels {sub_channels} is not between 0 and {SUB_CHANNELS_MAX}")
        while index < CONTROLLERS_MAX and self.controllers[index] != NULL:
            index += 1
        if index == CONTROLLERS_MAX:
            raise ValueError(f"a VM has at most {CONTROLLERS_MAX} controllers")
        controller = <HostController *> calloc(1, sizeof(HostController))
        if controller == NULL:
            raise MemoryError
        controller.depth = depth
        controller.vsp.counters = &controller.counters
        controller.vsp.trace = &self.loop.trace
        controller.vsp.log = &self.loop.log
        controller.vsp.iov_max = max_transfer // PAGE_SIZE + 1
        controller.vsp.max_transfer = max_transfer
        controller.vsp.max_version = max_version
        controller.vsp.sub_channels_max = sub_channels
        controller.vsp.sub_channel_bell = self.sub_channel_fd
        controller.vsp.strict_alloc = strict_alloc
        controller.vsp.single_disk = single_disk
        self.controllers[index] = controller
        return index

    def remove_controller(self, int index):
        """Forgets a controller whose channels are closed."""
        cdef HostController *controller = self.controller(index)
        cdef int sub
        for sub in range(SUB_CHANNELS_MAX + 1):
            if self.channels[index][sub] != NULL:
                raise ValueError(f"channel {sub} of controller {index} is open")
        free(controller)
        self.controllers[index] = NULL

    cdef HostController *controller(self, int index) except NULL:
        if not 0 <= index < CONTROLLERS_MAX or self.controllers[index] == NULL:
            raise IndexError(f"there is no controller {index}")
        return self.controllers[index]

    def attach_unit(self, int index, uint32_t lun, int disk):
        """Puts a disk at a free LUN of a controller; a guest that is there is told."""
        cdef HostController *controller = self.controller(index)
        cdef HostDisk *unit = self.disk(disk)
        cdef Target target = self.targets[disk]
        if lun >= VSP_LUNS or controller.vsp.units[lun] != NULL:
            raise ValueError(f"LUN {lun} of controller {index} is not free")
        if unit.unit.identify and controller.vsp.max_transfer > TRANSFER_MAX_EMULATED:
            raise ValueError("max_transfer is at most 256 KiB on the emulated path")
        with nogil:
            loop_lock(&self.loop)
            target.unit.max_transfer = controller.vsp.max_transfer
            vsp_set_unit(&controller.vsp, lun, &unit.unit)
            self.share(controller)
            loop_publish(&self.loop)
            loop_unlock(&self.loop)

    def detach_unit(self, int index, uint32_t lun):
        """Takes a disk away from its controller and tells a guest that is there. Its requests under way end as they
        would; drain_disk() waits for them.
        """
        cdef HostController *controller = self.controller(index)
        cdef VspUnit *unit
        if lun >= VSP_LUNS or controller.vsp.units[lun] == NULL:
            raise IndexError(f"controller {index} has no LUN {lun}")
        unit = controller.vsp.units[lun]
        with nogil:
            loop_lock(&self.loop)
            vsp_set_unit(&controller.vsp, lun, NULL)
            self.share(controller)
            vsp_drop_waiting(unit, NULL)
            emulated_drop(&self.loop.emulated, NULL, unit)
            loop_publish(&self.loop)
            loop_unlock(&self.loop)

    def drain_disk(self, int index, double timeout=-1):
        """Waits until no request of a detached disk is in flight.

        timeout: seconds, < 0 for ever. False: some are still (a worker that does not answer); call again when that was
        ended.
        """
        cdef HostDisk *disk = self.disk(index)
        cdef int64_t deadline = -1 if timeout < 0 else <int64_t> clock_ns() + <int64_t> (timeout * 1e9)
        cdef bint drained
        with nogil:
            loop_lock(&self.loop)
            loop_drain(&self.loop, &disk.unit.in_flight, deadline)
            drained = disk.unit.in_flight == 0
            loop_unlock(&self.loop)
        return drained

    cdef void share(self, HostController *controller) noexcept nogil:
        """[locked] No unit may have so much in flight that the others find no request free (vsp.pxd, limit)."""
        cdef uint32_t units = 0, limit = <uint32_t> -1
        cdef int i
        for i in range(VSP_LUNS):
            units += controller.vsp.units[i] != NULL
        if units > 1:
            limit = max(<uint32_t> VSP_UNIT_LEAST, controller.depth // units)
        for i in range(VSP_LUNS):
            if controller.vsp.units[i] != NULL:
                controller.vsp.units[i].limit = limit

    def notify(self, int index, *, bint removed=False):
        """Tells a guest that units of a controller changed, or that the controller is going away (storvsp.md 4.4)."""
        cdef HostController *controller = self.controller(index)
        with nogil:
            loop_lock(&self.loop)
            controller.vsp.notices |= VSP_NOTICE_REMOVE if removed else VSP_NOTICE_ENUMERATE
            loop_publish(&self.loop)
            loop_unlock(&self.loop)

    def sub_channels(self, int index):
        """How many sub-channels the guest asked a controller for, since its primary channel was opened."""
        return self.controller(index).vsp.sub_channels

    # Guests.

    def attach(self, Region memory not None, Region events not None, int doorbell, Intercepts intercepts=None):
        """A guest is there: its memory, its event page (4096 bytes), the eventfd that it rings (duplicated), and its
        port intercepts, if it has any.
        """
        if self.memory is not None:
            raise ValueError("a guest is attached already")
        self.guest_bell = os.dup(doorbell)
        os.set_inheritable(self.guest_bell, False)
        self.epoll.register(self.guest_bell, select.EPOLLIN | select.EPOLLET)
        self.memory = memory
        self.event_region = events
        with nogil:
            loop_lock(&self.loop)
            self.loop.events = <EventPage *> self.event_region.base
            if intercepts is not None:
                trapped_guest(&self.loop.trapped, memory.base, memory.size, intercepts.pages)
                self.loop.emulated.intercepts = intercepts.pages
            loop_unlock(&self.loop)

    def detach(self):
        """Closes every channel and forgets the guest; its memory is not touched afterwards. Idempotent."""
        cdef int i, sub
        for i in range(CONTROLLERS_MAX):
            for sub in range(SUB_CHANNELS_MAX, -1, -1):
                if self.channels[i][sub] != NULL:
                    self.close_channel(i, sub)
        with nogil:
            loop_lock(&self.loop)
            self.loop.events = NULL
            # What the guest's controller has asked for ends; what it asks for now fails.
            trapped_guest(&self.loop.trapped, NULL, 0, self.loop.trapped.pages)
            loop_drain(&self.loop, &self.loop.trapped.busy, -1)
            trapped_guest(&self.loop.trapped, NULL, 0, NULL)
            self.loop.emulated.intercepts = NULL
            loop_unlock(&self.loop)
        if self.guest_bell >= 0:
            self.epoll.unregister(self.guest_bell)
            os.close(self.guest_bell)
            self.guest_bell = -1
        self.memory = self.event_region = None

    def open_channel(self, int index, int sub, uint32_t relid, pfns, uint32_t downstream_offset):
        """Opens a controller's primary channel (sub 0) or a sub-channel: the rings in the guest pages `pfns`, the
        host-to-guest ring from page `downstream_offset` on.

        False when the guest's values break a rule (vmbus.md 1.1, RB-7, VA-4).
        """
        cdef HostController *controller = self.controller(index)
        cdef HostChannel *channel
        cdef Vsp *vsp
        cdef uint32_t count = len(pfns), i
        cdef uint64_t pfn, pages
        cdef int status
        if not 0 <= sub <= controller.vsp.sub_channels_max:
            raise IndexError(f"there is no channel {sub} of controller {index}")
        if self.memory is None or self.channels[index][sub] != NULL or self.loop.channel_count == CHANNELS_MAX:
            return False
        if downstream_offset < 2 or count < <uint64_t> downstream_offset + 2:     # in 64 bits (VA-3)
            return False
        channel = channel_new(controller, sub, count)
        if channel == NULL:
            raise MemoryError
        pages = self.memory.size // PAGE_SIZE
        for i in range(count):
            pfn = pfns[i]
            if pfn >= pages:
                channel_free(channel)
                return False
            channel.pages[i] = self.memory.base + pfn * PAGE_SIZE
        vsp = &channel.vsp
        with nogil:
            loop_lock(&self.loop)
            vsp.memory.base = self.memory.base
            vsp.memory.size_bytes = self.memory.size
            vsp.events = self.loop.events
            vsp.relid = relid
            status = ring_open_reader(&vsp.incoming, <RingControl *> channel.pages[0], &channel.pages[1],
                                      (downstream_offset - 1) * PAGE_SIZE, RING_HOST)
            if status == 0:
                status = ring_open_writer(&vsp.outgoing, <RingControl *> channel.pages[downstream_offset],
                                          &channel.pages[downstream_offset + 1],
                                          (count - downstream_offset - 1) * PAGE_SIZE, RING_HOST)
            if status == 0:
                vsp_open(vsp)
                self.loop.channels[self.loop.channel_count] = channel
                self.loop.channel_count += 1
            loop_unlock(&self.loop)
        if status < 0:
            channel_free(channel)
            return False
        self.channels[index][sub] = channel
        return True

    def close_channel(self, int index, int sub=0, double timeout=-1):
        """Stops serving the channel and waits until no request of it is in flight: its memory is then unreferenced
        (VA-15).

        timeout: seconds, < 0 for ever. False: something is still in flight (a worker that does not answer); call again
        when that was ended.
        """
        cdef HostController *controller = self.controller(index)
        cdef HostChannel *channel = self.channels[index][sub]
        cdef int64_t deadline = -1 if timeout < 0 else <int64_t> clock_ns() + <int64_t> (timeout * 1e9)
        cdef bint drained
        cdef int i
        if channel == NULL:
            return True
        with nogil:
            loop_lock(&self.loop)
            if sub == 0 and channel.vsp.open:
                vsp_reset(&controller.vsp)
            channel.vsp.open = False         # takes nothing and answers nothing from here on
            for i in range(DISKS_MAX):       # also what waits for disks that are detached by now
                if self.disks[i] != NULL and self.disks[i].unit.gate.waiting:
                    vsp_drop_waiting(&self.disks[i].unit, &channel.vsp)
            emulated_drop(&self.loop.emulated, &channel.vsp, NULL)
            loop_drain(&self.loop, &channel.vsp.in_flight, deadline)
            drained = channel.vsp.in_flight == 0
            if drained:
                for i in range(self.loop.channel_count):
                    if self.loop.channels[i] == channel:
                        self.loop.channel_count -= 1
                        self.loop.channels[i] = self.loop.channels[self.loop.channel_count]
                        break
            loop_unlock(&self.loop)
        if drained:
            channel_free(channel)
            self.channels[index][sub] = NULL
        return drained

    # Workers.

    def worker_attached(self, Region shared not None):
        """A worker process serves the zeroed memory `shared` (handover.pxd)."""
        if shared.size < HANDOVER_BYTES:
            raise ValueError("the memory is too small")
        self.worker_region = shared
        with nogil:
            loop_lock(&self.loop)
            emulated_worker(&self.loop.emulated, <HandOver *> self.worker_region.base)
            trapped_worker(&self.loop.trapped, <HandOver *> self.worker_region.base)
            loop_unlock(&self.loop)

    def worker_unavailable(self):
        """There is no worker and none will come: emulated requests are aborted at once, until worker_attached()."""
        with nogil:
            loop_lock(&self.loop)
            emulated_unavailable(&self.loop.emulated)
            loop_publish(&self.loop)
            loop_unlock(&self.loop)

    def worker_lost(self):
        """The worker process ended. What it had in hand is aborted; what waits goes to the next worker. Idempotent."""
        with nogil:
            loop_lock(&self.loop)
            emulated_worker_lost(&self.loop.emulated)
            trapped_worker_lost(&self.loop.trapped)
            loop_publish(&self.loop)
            loop_unlock(&self.loop)
        self.worker_region = None

    # What it cost.

    def counters(self, int index):
        """A disk's counters since it was added, as a dict."""
        cdef HostDisk *disk = self.disk(index)
        cdef int place = self.place_of(disk)
        cdef Counters counters
        memset(&counters, 0, sizeof(Counters))
        if place >= 0:
            with nogil:
                loop_lock(&self.loop)
                trapped_counters(&self.loop.trapped, place, &counters)
                loop_unlock(&self.loop)
        found = counters_dict(&disk.counters)
        for name, more in counters_dict(&counters).items():
            found[name] += more
        return found | {
            # Of the thread that serves all the VM's disks.
            "blocking_waits": load_relaxed64(&self.loop.counters.blocking_waits),
            "interrupts_received": load_relaxed64(&self.loop.counters.interrupts_received),
        }

    def inspect(self, int index, int sub=0):
        """A channel's state, for people: negotiation, faults, requests in flight."""
        cdef VspController *controller = &self.controller(index).vsp
        cdef HostChannel *channel = self.channels[index][sub]
        return {
            "open": channel != NULL and bool(channel.vsp.open),
            "state": STATES[controller.state],
            "version": f"{controller.version >> 8}.{controller.version & 0xff}" if controller.version else None,
            "fault": (FAULTS[channel.vsp.fault] or None) if channel != NULL else None,
            "in_flight": channel.vsp.in_flight if channel != NULL else 0,
        }

    def events(self, Region region not None):
        """Tells slow and failed requests and missed minima in an event log (hvcore.metrics.events) in `region`."""
        cdef EventLog log
        if events_create(&log, region.base, region.size) < 0:
            raise ValueError("the memory is too small for an event log")
        with nogil:
            loop_lock(&self.loop)
            self.loop.log = log
            loop_unlock(&self.loop)
        self.event_log_region = region

    def trace(self, Region region not None):
        """Stamps requests into a trace ring (hvcore.metrics.trace) that fills `region`; the ring is off at first."""
        cdef TraceRing ring
        if trace_create(&ring, region.base, region.size) < 0:
            raise ValueError("the memory is too small for a trace ring")
        with nogil:
            loop_lock(&self.loop)
            self.loop.trace = ring
            loop_unlock(&self.loop)
        self.trace_region = region

    def close(self):
        """Closes the channels, ends the thread and closes the descriptors. The images stay open. Idempotent."""
        if self.running:
            self.worker_lost()
            self.detach()
        self.end()
        self.targets = {}
        if self.epoll is not None:
            self.epoll.close()
            self.epoll = None

    cdef void end(self) noexcept:
        """Stops the thread, which uses this memory, waits for the pool, which does too, and gives all back."""
        cdef int i, sub
        cdef int *fd
        cdef int *fds[7]
        if self.running:
            self.running = False
            with nogil:                      # a thread of the pool may need the interpreter to end (disk/python.pyx)
                store_release32(&self.loop.stopping, 1)
                eventfd_ring(self.loop.control_bell)
                thread_join(self.loop.thread)
                monitor_destroy(&self.loop.monitor)
                for i in range(DISKS_MAX):
                    if self.disks[i] != NULL:
                        pool_leave(&self.pool.pool, &self.disks[i].media.source)
        for i in range(DISKS_MAX):
            free(self.disks[i])
            self.disks[i] = NULL
        for i in range(CONTROLLERS_MAX):
            free(self.controllers[i])
            self.controllers[i] = NULL
            for sub in range(SUB_CHANNELS_MAX + 1):
                if self.channels[i][sub] != NULL:
                    channel_free(self.channels[i][sub])
                    self.channels[i][sub] = NULL
        fds = [&self.guest_bell, &self.home_bell, &self.loop.control_bell, &self.worker_bell, &self.loop.broken_bell,
               &self.sub_channel_fd, &self.loop.timer]
        for i in range(7):
            fd = fds[i]
            if fd[0] >= 0:
                close(fd[0])
                fd[0] = -1

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __dealloc__(self):
        self.end()                           # of an owner that forgot close(): the interpreter may be half gone here


cdef HostChannel *channel_new(HostController *controller, int sub, uint32_t pages) noexcept nogil:
    """A channel's memory, allocated when it is opened: most disks of most VMs never have more than one."""
    cdef HostChannel *channel = <HostChannel *> calloc(1, sizeof(HostChannel))
    cdef uint32_t depth = controller.depth, i
    cdef Vsp *vsp
    if channel == NULL:
        return NULL
    vsp = &channel.vsp
    vsp.controller = &controller.vsp
    vsp.primary = sub == 0
    vsp.depth = depth
    vsp.requests = <VspRequest *> calloc(depth, sizeof(VspRequest))
    vsp.buffer = <uint8_t *> malloc(VSP_PACKET_MAX)
    channel.jobs = <MediaJob *> calloc(depth, sizeof(MediaJob))
    # One more than the pages: each request's list, cut out of one allocation.
    channel.iov = <iovec *> calloc(<size_t> depth * controller.vsp.iov_max, sizeof(iovec))
    channel.pages = <uint8_t **> calloc(pages, sizeof(uint8_t *))
    if (vsp.requests == NULL or vsp.buffer == NULL or channel.jobs == NULL or channel.iov == NULL
            or channel.pages == NULL):
        channel_free(channel)
        return NULL
    for i in range(depth):
        vsp.requests[i].iov = &channel.iov[<size_t> i * controller.vsp.iov_max]
        vsp.requests[i].executor_data = &channel.jobs[i]
    return channel


cdef void channel_free(HostChannel *channel) noexcept nogil:
    free(channel.vsp.requests)
    free(channel.vsp.buffer)
    free(channel.jobs)
    free(channel.iov)
    free(channel.pages)
    free(channel)
