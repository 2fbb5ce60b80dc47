"""The child partition's IDE driver over port intercepts (see requester.pxd; ide.md is the source of every rule)."""

import os

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.errors import GuestGone
from hvcore.hypervisor.intercept cimport (
    INTERCEPT_BYTES, VP_GONE, VP_INTERRUPTED, VP_LOST, VP_OK, VP_TIMEOUT, InterceptPages, vp_begin, vp_end,
    vp_in, vp_init, vp_interrupt, vp_line, vp_out, vp_resume, vp_string)
from hvcore.ide.abi cimport (
    BM_COMMAND, BM_ERROR, BM_INTERRUPT, BM_STATUS, CONTROL_SRST, IDE_CONTROL_0, IDE_CONTROL_1,
    IDE_SECTOR, PCI_CONFIG_ADDRESS, PCI_CONFIG_BAR4, PCI_CONFIG_DATA, PCI_IDE_FUNCTION, STATUS_BSY)
from hvcore.ide.driver cimport (
    IDE_DRIVER_DONE, IDE_OUTCOME_NOT_READY, IDE_OUTCOME_OK, IDE_OUTCOME_UNEXPECTED, IDE_REQUEST_FLUSH,
    IDE_REQUEST_IDENTIFY, IDE_REQUEST_READ, IDE_REQUEST_TRIM,
    IDE_REQUEST_WRITE, IdePorts, ide_driver_begin, ide_driver_init_ports, ide_driver_step)
from hvcore.linux.atomics cimport load_acquire32, store_release32
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.cpu cimport spin_budget
from hvcore.linux.spin cimport SPIN_MAX_NS, spin_yield
from hvcore.linux.syscalls cimport futex_wait, futex_wake
from hvcore.linux.threads cimport monitor_destroy, monitor_init, monitor_lock, monitor_unlock

cdef enum:
    RETRIES = 5                  # of one request whose controller went away or left the protocol
    POLLS = 64                   # of a drive that resets, before each further one waits
    POLL_NS = 1000000
    SIGNAL_CHECK = 4096          # commands after which the interpreter may look for signals
    PAGE = 4096


# Turns: unlike a mutex, fair, with a deadline, and ended by a signal.

cdef int turn_take(Turn *turn, int64_t deadline_ns) noexcept nogil:
    """VP_OK, VP_TIMEOUT or VP_INTERRUPTED."""
    cdef Waiter self
    cdef Waiter *waiter
    cdef int64_t left = -1
    cdef int status = 0
    monitor_lock(&turn.monitor)
    if not turn.taken:
        turn.taken = True
        monitor_unlock(&turn.monitor)
        return VP_OK
    self.next = NULL
    self.asleep = 1
    if turn.last == NULL:
        turn.first = &self
    else:
        turn.last.next = &self
    turn.last = &self
    monitor_unlock(&turn.monitor)
    while load_acquire32(&self.asleep):
        if deadline_ns >= 0:
            left = deadline_ns - <int64_t> clock_ns()
        if status == -EINTR or (deadline_ns >= 0 and left <= 0):
            monitor_lock(&turn.monitor)
            if load_acquire32(&self.asleep) == 0:        # handed over in between: it is ours
                monitor_unlock(&turn.monitor)
                return VP_OK
            if turn.first == &self:
                turn.first = self.next
                waiter = NULL
            else:
                waiter = turn.first
                while waiter.next != &self:
                    waiter = waiter.next
                waiter.next = self.next
            if turn.last == &self:
                turn.last = waiter
            monitor_unlock(&turn.monitor)
            return VP_INTERRUPTED if status == -EINTR else VP_TIMEOUT
        status = futex_wait(&self.asleep, 1, left)
    return VP_OK


cdef void turn_give(Turn *turn) noexcept nogil:
    cdef Waiter *waiter
    monitor_lock(&turn.monitor)
    waiter = turn.first
    if waiter == NULL:
        turn.taken = False
    else:
        turn.first = waiter.next
        if turn.first == NULL:
            turn.last = NULL
        # The waiter may be gone as soon as it sees this. A wake-up of a word that is no more disturbs nobody: whoever
        # has a futex there now looks again.
        store_release32(&waiter.asleep, 0)
        futex_wake(&waiter.asleep, 1)
    monitor_unlock(&turn.monitor)


# Ports of the driver: the processor's, whose turn the caller has.

cdef uint32_t port_read(void *state, uint32_t port, uint32_t width) noexcept nogil:
    return vp_in(&(<Processor *> state).vp, port, width)


cdef void port_write(void *state, uint32_t port, uint32_t width, uint32_t value) noexcept nogil:
    vp_out(&(<Processor *> state).vp, port, width, value)


cdef void port_read_string(void *state, uint32_t port, void *buffer, uint32_t words) noexcept nogil:
    cdef Processor *processor = <Processor *> state
    vp_string(&processor.vp, port, 2, False, <uint64_t> (<uint8_t *> buffer - processor.base), words)


cdef void port_write_string(void *state, uint32_t port, const void *buffer, uint32_t words) noexcept nogil:
    cdef Processor *processor = <Processor *> state
    vp_string(&processor.vp, port, 2, True, <uint64_t> (<const uint8_t *> buffer - processor.base), words)


cdef bint port_irq(void *state, uint32_t channel) noexcept nogil:
    return vp_line(&(<Processor *> state).vp, channel)


# One request.

cdef int pause(Requester *requester, int64_t deadline_ns) noexcept nogil:
    """Between two looks at a drive that resets: it has a media access to end first."""
    cdef uint32_t word = 0
    if deadline_ns >= 0 and <int64_t> clock_ns() >= deadline_ns:
        return VP_TIMEOUT
    if futex_wait(&word, 0, POLL_NS) == -EINTR:
        return VP_INTERRUPTED
    return VP_OK


cdef int reset(Requester *requester, int64_t deadline_ns) noexcept nogil:
    """SRST (1.7), with the bus master stopped first: whatever the channel was doing is over on VP_OK."""
    cdef Processor *processor = requester.processor
    cdef Vp *vp = &processor.vp
    cdef uint16_t control = IDE_CONTROL_1 if requester.channel else IDE_CONTROL_0
    cdef uint32_t looks = 0, status = STATUS_BSY
    cdef int result = turn_take(&processor.turn, deadline_ns)
    if result != VP_OK:
        return result
    result = vp_begin(vp, deadline_ns)
    requester.epoch = vp.epoch
    if result == VP_OK:
        requester.resets += 1
        vp_out(vp, requester.driver.bus_master + BM_COMMAND, 1, 0)
        vp_out(vp, requester.driver.bus_master + BM_STATUS, 1, BM_ERROR | BM_INTERRUPT)
        vp_out(vp, control, 1, CONTROL_SRST)
        vp_out(vp, control, 1, 0)
        result = vp.status
    turn_give(&processor.turn)
    while result == VP_OK:
        result = turn_take(&processor.turn, deadline_ns)
        if result != VP_OK:
            return result
        vp_resume(vp, requester.epoch, deadline_ns)
        status = vp_in(vp, control, 1)
        result = vp.status
        turn_give(&processor.turn)
        if result != VP_OK or not status & STATUS_BSY or status == 0xFF:
            break
        looks += 1
        if looks < POLLS:
            spin_yield()
        else:
            result = pause(requester, deadline_ns)
    if result == VP_OK:
        requester.reset_due = False
    return result


cdef inline int64_t patient(int64_t patience_ns, int64_t deadline_ns) noexcept nogil:
    return <int64_t> clock_ns() + patience_ns if patience_ns else deadline_ns


cdef int drive_request(Requester *requester, int64_t patience_ns, int64_t deadline_ns) noexcept nogil:
    """Runs what the driver was given to its end. Not VP_OK and no reset is due: it may be taken up again."""
    cdef Processor *processor = requester.processor
    cdef Vp *vp = &processor.vp
    cdef int result, progress
    while True:
        result = turn_take(&processor.turn, deadline_ns)
        if result != VP_OK:
            return result
        vp_resume(vp, requester.epoch, deadline_ns)
        progress = ide_driver_step(&requester.driver)
        result = vp.status
        turn_give(&processor.turn)
        if result != VP_OK:
            requester.reset_due = True       # the programme read ones that no controller answered
            return result
        if progress == IDE_DRIVER_DONE:
            return VP_OK
        result = vp_interrupt(vp, requester.channel, requester.epoch, &requester.spinner, processor.spins,
                              patient(patience_ns, deadline_ns), &requester.blocking_waits)
        if result != VP_OK:
            return result


cdef void job_prepare(Requester *requester, IdeJob *job, uint8_t *memory) noexcept nogil:
    cdef uint8_t *data = memory if memory != NULL else requester.bounce
    job.request.data = data
    job.segment.address = <uint32_t> (data - requester.processor.base)
    job.segment.bytes = <uint32_t> job.bytes
    job.request.segments = &job.segment
    job.request.segment_count = 1
    job.holding = False
    job.attempts = 0


cdef int job_attempt(Requester *requester, IdeJob *job, int64_t deadline_ns) noexcept nogil:
    cdef int status = VP_OK
    if not job.holding:
        # First the reset: an earlier command may still write into the bounce memory.
        if requester.reset_due:
            status = reset(requester, deadline_ns)
        if status != VP_OK:
            return status
        if job.source != NULL:
            memcpy(requester.bounce, job.source, job.bytes)
            requester.bytes_copied += job.bytes
        ide_driver_begin(&requester.driver, &job.request)
    job.holding = False
    status = drive_request(requester, job.patience_ns, deadline_ns)
    job.result = requester.driver.result
    if not requester.reset_due and (status == VP_INTERRUPTED or (job.patience_ns and status == VP_TIMEOUT)):
        job.holding = True
    elif status != VP_OK:
        requester.reset_due = True           # the command may still run: nobody uses the channel before it is reset
    elif job.result.outcome == IDE_OUTCOME_NOT_READY or job.result.outcome == IDE_OUTCOME_UNEXPECTED:
        requester.reset_due = True
        status = VP_LOST
    return status


cdef int job_run(Requester *requester, IdeJob *job, int64_t deadline_ns) noexcept nogil:
    cdef int status
    if not job.holding:
        status = turn_take(&requester.turn, patient(job.patience_ns, deadline_ns))
        if status != VP_OK:
            return status
    status = job_attempt(requester, job, deadline_ns)
    while status == VP_LOST and job.attempts < RETRIES:
        job.attempts += 1
        requester.retries += 1
        status = job_attempt(requester, job, deadline_ns)
    if job.holding:
        return status
    requester.requests += 1
    if status == VP_OK and job.result.outcome == IDE_OUTCOME_OK and job.target != NULL:
        memcpy(job.target, requester.bounce, job.bytes)
        requester.bytes_copied += job.bytes
    turn_give(&requester.turn)
    return status


cdef void job_abandon(Requester *requester, IdeJob *job) noexcept nogil:
    if job.holding:
        job.holding = False
        requester.reset_due = True
        turn_give(&requester.turn)


# Transfers.

cdef void transfer_begin(IdeTransfer *transfer) noexcept nogil:
    """The next part of the block at hand as a job."""
    cdef Requester *requester = transfer.requester
    cdef IdeJob *job = &transfer.job
    cdef uint64_t left = transfer.block - transfer.into
    cdef uint64_t most = IDE_COMMAND_BYTES if transfer.direct else requester.bounce_bytes
    cdef uint64_t at = transfer.into + (
        transfer.offset if transfer.offsets == NULL else transfer.offsets[transfer.next])
    cdef uint8_t *data = transfer.data + transfer.next * transfer.block + transfer.into
    memset(&job.request, 0, sizeof(IdeRequest))
    job.bytes = left if left < most else most
    job.request.kind = IDE_REQUEST_WRITE if transfer.write else IDE_REQUEST_READ
    job.request.mode = transfer.mode
    job.request.drive = transfer.drive
    job.request.lba = at // IDE_SECTOR
    job.request.sectors = <uint32_t> (job.bytes // IDE_SECTOR)
    job.source = NULL
    job.target = NULL
    if not transfer.direct:
        if transfer.write:
            job.source = data
        else:
            job.target = data
    job_prepare(requester, job, data if transfer.direct else NULL)


cdef int ide_transfer_run(IdeTransfer *transfer, int64_t deadline_ns) noexcept nogil:
    cdef IdeJob *job = &transfer.job
    cdef int status
    cdef uint32_t jobs = 0
    while transfer.next < transfer.blocks:
        if not job.holding:
            jobs += 1
            if jobs == SIGNAL_CHECK:
                return VP_INTERRUPTED        # a wait that never blocks never sees EINTR
            transfer_begin(transfer)
        status = job_run(transfer.requester, job, deadline_ns)
        if status == VP_LOST:
            job.result.outcome = IDE_OUTCOME_UNEXPECTED
        elif status != VP_OK:
            return status
        if job.result.outcome != IDE_OUTCOME_OK:
            if transfer.statuses != NULL:
                transfer.statuses[transfer.next] = 1
            if transfer.next < transfer.failed:
                transfer.failed = transfer.next
                transfer.result = job.result
            transfer.into = transfer.block
        else:
            transfer.into += job.bytes
        if transfer.into == transfer.block:
            transfer.into = 0
            transfer.next += 1
    return VP_OK


# Python.

OUTCOMES = ("ok", "error", "not ready", "refused", "unexpected", "dma error")


cdef int64_t deadline_of(timeout) except? -2:
    """CLOCK_MONOTONIC ns, or -1 for None."""
    if timeout is None:
        return -1
    if not timeout >= 0:
        raise ValueError(f"timeout {timeout} is not a number of seconds")
    return <int64_t> clock_ns() + <int64_t> (min(<double> timeout, 1e9) * 1e9)


cdef int raise_status(int status) except -1:
    if status == VP_GONE:
        raise GuestGone("the host has ended the partition")
    if status == VP_TIMEOUT:
        raise TimeoutError("the IDE controller did not answer in time")
    return 0


cdef int turn_init(Turn *turn) except -1:
    cdef int status = monitor_init(&turn.monitor)
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    return 0


@cython.final
cdef class VirtualProcessor:
    """The partition's one virtual processor: port accesses, each of which the worker answers if it is intercepted.

    memory: the guest's; intercepts: its intercept pages, mapped. spins: waiting awake for an interrupt may pay. Several
    threads may use it; an access that nothing answers reads ones. GuestGone once end() was called.
    """

    def __cinit__(self, Region memory not None, Region intercepts not None, bint spins=True):
        if intercepts.size < INTERCEPT_BYTES:
            raise ValueError("the intercept pages are too small")
        turn_init(&self.core.turn)
        self.ready = True
        self.memory = memory
        self.intercepts = intercepts
        self.core.base = memory.base
        self.core.size_bytes = memory.size
        self.core.spins = spins
        vp_init(&self.core.vp, <InterceptPages *> intercepts.base)

    def __dealloc__(self):
        if self.ready:
            monitor_destroy(&self.core.turn.monitor)

    cdef int enter(self, timeout) except -1:
        """Takes the processor for one access."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef int status = VP_INTERRUPTED
        while status == VP_INTERRUPTED:
            with nogil:
                status = turn_take(&self.core.turn, deadline)
                if status == VP_OK:
                    status = vp_begin(&self.core.vp, deadline)
                    if status != VP_OK and status != VP_LOST:
                        turn_give(&self.core.turn)
            if status == VP_INTERRUPTED:
                PyErr_CheckSignals()
        return raise_status(status)

    cdef object read(self, uint32_t port, uint32_t width, timeout):
        cdef uint32_t value
        self.enter(timeout)
        with nogil:
            value = vp_in(&self.core.vp, port, width)
            turn_give(&self.core.turn)
        return value

    cdef object write(self, uint32_t port, uint32_t width, uint32_t value, timeout):
        self.enter(timeout)
        with nogil:
            vp_out(&self.core.vp, port, width, value)
            turn_give(&self.core.turn)

    def inb(self, uint16_t port, timeout=None):
        """An 8-bit IN."""
        return self.read(port, 1, timeout)

    def inw(self, uint16_t port, timeout=None):
        """A 16-bit IN."""
        return self.read(port, 2, timeout)

    def inl(self, uint16_t port, timeout=None):
        """A 32-bit IN."""
        return self.read(port, 4, timeout)

    def outb(self, uint16_t port, uint8_t value, timeout=None):
        """An 8-bit OUT."""
        self.write(port, 1, value, timeout)

    def outw(self, uint16_t port, uint16_t value, timeout=None):
        """A 16-bit OUT."""
        self.write(port, 2, value, timeout)

    def outl(self, uint16_t port, uint32_t value, timeout=None):
        """A 32-bit OUT."""
        self.write(port, 4, value, timeout)

    def ins(self, uint16_t port, uint64_t address, uint64_t count, uint32_t width=2, timeout=None):
        """REP INS of `count` elements to guest address `address`; how many were done."""
        return self.string(port, width, False, address, count, timeout)

    def outs(self, uint16_t port, uint64_t address, uint64_t count, uint32_t width=2, timeout=None):
        """REP OUTS of `count` elements from guest address `address`; how many were done."""
        return self.string(port, width, True, address, count, timeout)

    cdef object string(self, uint32_t port, uint32_t width, bint write, uint64_t address, uint64_t count, timeout):
        cdef uint64_t done
        if width not in (1, 2, 4):
            raise ValueError(f"elements have 1, 2 or 4 bytes, not {width}")
        self.enter(timeout)
        with nogil:
            done = vp_string(&self.core.vp, port, width, write, address, count)
            turn_give(&self.core.turn)
        return done

    def irq(self, uint32_t channel):
        """The interrupt line of IDE channel 0 (IRQ 14) or 1 (IRQ 15)."""
        if channel > 1:
            raise ValueError(f"an IDE controller has channels 0 and 1, not {channel}")
        return bool(vp_line(&self.core.vp, channel))

    def config_read(self, uint32_t offset):
        """A dword of the IDE function's PCI configuration space (mechanism 1); offset: 0, 4, .. 252."""
        self.outl(PCI_CONFIG_ADDRESS, <uint32_t> PCI_IDE_FUNCTION << 8 | (offset & 0xFC))
        return self.inl(PCI_CONFIG_DATA)

    def config_write(self, uint32_t offset, uint32_t value):
        """Writes a dword of the IDE function's PCI configuration space."""
        self.outl(PCI_CONFIG_ADDRESS, <uint32_t> PCI_IDE_FUNCTION << 8 | (offset & 0xFC))
        self.outl(PCI_CONFIG_DATA, value)

    def end(self):
        """Every wait of the processor ends with GuestGone, now and later. Any thread."""
        with nogil:
            vp_end(&self.core.vp)

    def counters(self):
        """Accesses of the program, what of them was intercepted, and what the waits have cost."""
        return {
            "port_accesses": self.core.vp.accesses,
            "intercepts": self.core.vp.intercepts,
            "doorbells": self.core.vp.doorbells,
            "blocking_waits": self.core.vp.blocking_waits,
        }


@cython.final
cdef class Channel:
    """One IDE channel (0 or 1) and its drives 0 and 1, one request at a time. Several threads may use it.

    allocate(pages) gives the number of the first of so many adjacent pages of guest memory: the PRD table and
    `bounce_bytes` for data that is not guest memory, below 4 GiB. The bus master is where the function's BAR 4 says.
    """

    def __cinit__(self, VirtualProcessor processor not None, uint32_t number, allocate, uint32_t bounce_bytes=0x20000):
        cdef Requester *core = &self.core
        cdef IdePorts ports
        cdef uint64_t first
        if number > 1:
            raise ValueError(f"an IDE controller has channels 0 and 1, not {number}")
        if bounce_bytes == 0 or bounce_bytes % PAGE or bounce_bytes > 0x2000000:
            raise ValueError(f"bounce memory of {bounce_bytes} bytes is not whole pages of at most 32 MiB")
        turn_init(&core.turn)
        self.ready = True
        self.processor = processor
        self.held = []
        core.processor = &processor.core
        core.channel = number
        core.spinner.budget = spin_budget()
        core.spinner.limit_ns = SPIN_MAX_NS
        core.reset_due = True
        core.bounce_bytes = bounce_bytes
        first = allocate(1 + bounce_bytes // PAGE)
        if (first + 1) * PAGE + bounce_bytes > min(<uint64_t> processor.memory.size, <uint64_t> 1 << 32):
            raise ValueError("the channel's pages are not in guest memory below 4 GiB")
        core.bounce = core.processor.base + (first + 1) * PAGE
        ports.state = core.processor
        ports.read = port_read
        ports.write = port_write
        ports.read_string = port_read_string
        ports.write_string = port_write_string
        ports.irq = port_irq
        ide_driver_init_ports(&core.driver, &ports, number, processor.config_read(PCI_CONFIG_BAR4) & 0xFFF0,
                              core.processor.base + first * PAGE, <uint32_t> (first * PAGE))

    def __dealloc__(self):
        if self.ready:
            monitor_destroy(&self.core.turn.monitor)

    cdef object run(self, IdeJob *job, timeout):
        """-> None, or what failed."""
        cdef int64_t deadline = deadline_of(timeout)
        cdef int status = VP_INTERRUPTED
        while status == VP_INTERRUPTED:
            with nogil:
                status = job_run(&self.core, job, deadline)
            if status == VP_INTERRUPTED:
                try:
                    PyErr_CheckSignals()
                except BaseException:
                    job_abandon(&self.core, job)
                    raise
        raise_status(status)
        if status == VP_LOST:
            job.result.outcome = IDE_OUTCOME_UNEXPECTED
        return failure(&job.result, 0, b"")

    def identify(self, uint32_t drive, timeout=10.0):
        """IDENTIFY DEVICE: 512 bytes, or None when no drive answers."""
        cdef IdeJob job
        cdef uint8_t[512] data
        memset(&job, 0, sizeof(job))
        job.request.kind = IDE_REQUEST_IDENTIFY
        job.request.drive = drive
        job.bytes = 512
        job.target = data
        job_prepare(&self.core, &job, NULL)
        if self.run(&job, timeout) is not None:
            return None
        return PyBytes_FromStringAndSize(<char *> data, 512)

    def flush(self, uint32_t drive, timeout=None):
        """FLUSH CACHE -> None, or what failed."""
        cdef IdeJob job
        memset(&job, 0, sizeof(job))
        job.request.kind = IDE_REQUEST_FLUSH
        job.request.drive = drive
        job_prepare(&self.core, &job, NULL)
        return self.run(&job, timeout)

    def trim(self, uint32_t drive, bytes ranges not None, timeout=None):
        """DATA SET MANAGEMENT with one block of 64 ranges (3.3), always by DMA -> None, or what failed."""
        cdef IdeJob job
        if len(ranges) != 512:
            raise ValueError(f"one block of ranges has 512 bytes, not {len(ranges)}")
        memset(&job, 0, sizeof(job))
        job.request.kind = IDE_REQUEST_TRIM
        job.request.drive = drive
        job.bytes = 512
        job.source = <const uint8_t *> PyBytes_AS_STRING(ranges)
        job_prepare(&self.core, &job, NULL)
        return self.run(&job, timeout)

    def read(self, uint32_t drive, int mode, uint64_t offset, uint64_t length, timeout=None):
        """-> (bytes, None), or (None, what failed)."""
        data = PyBytes_FromStringAndSize(NULL, length)
        cdef IdeTransfer transfer
        memset(&transfer, 0, sizeof(transfer))
        transfer.drive = drive
        transfer.mode = mode
        transfer.offset = offset
        transfer.blocks = 1
        transfer.block = length
        transfer.data = <uint8_t *> PyBytes_AS_STRING(data)
        found = self.run_transfer(&transfer, timeout, None)
        return (None, found) if found is not None else (data, None)

    def transfer(self, uint32_t drive, int mode, bint write, offsets, uint64_t offset, uint64_t block, buffer,
                 timeout=None):
        """Reads or writes blocks of `block` bytes -> None, or (index, outcome, status, error, BM status, statuses) of
        the first that failed, with one byte per block: 0, or 1 for each that failed.

        offsets: a buffer of uint64 bytes, one per block; None: one block at `offset`. All are whole sectors within the
        disk, and `buffer` holds the blocks one after the other.
        """
        cdef IdeTransfer transfer
        cdef Py_buffer view, places
        cdef bint has_places = False
        cdef uint64_t low, high
        if block == 0 or block % IDE_SECTOR:
            raise ValueError(f"blocks of {block} bytes are not whole sectors")
        memset(&transfer, 0, sizeof(transfer))
        transfer.drive = drive
        transfer.mode = mode
        transfer.write = write
        transfer.offset = offset
        transfer.blocks = 1
        transfer.block = block
        statuses = None
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE if write else PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            if offsets is not None:
                PyObject_GetBuffer(offsets, &places, PyBUF_SIMPLE)
                has_places = True
                transfer.offsets = <const uint64_t *> places.buf
                transfer.blocks = places.len // 8
                statuses = bytearray(transfer.blocks)
                transfer.statuses = <uint8_t *> PyByteArray_AS_STRING(statuses)
            if <uint64_t> view.len // block < transfer.blocks:
                raise ValueError(f"the buffer has {view.len} bytes, not {transfer.blocks} blocks of {block}")
            transfer.data = <uint8_t *> view.buf
            low = <uint64_t> (<uint8_t *> view.buf - self.core.processor.base)
            high = low + <uint64_t> view.len
            # Memory of the guest, where the bus master reaches it (5.2: even addresses of 32 bits).
            transfer.direct = (
                <uint8_t *> view.buf >= self.core.processor.base and high <= self.core.processor.size_bytes
                and high <= <uint64_t> 1 << 32 and low % 2 == 0
            )
            return self.run_transfer(&transfer, timeout, statuses)
        finally:
            PyBuffer_Release(&view)
            if has_places:
                PyBuffer_Release(&places)

    cdef object run_transfer(self, IdeTransfer *transfer, timeout, statuses):
        cdef int64_t deadline = deadline_of(timeout)
        cdef int status = VP_INTERRUPTED
        transfer.requester = &self.core
        transfer.failed = transfer.blocks
        while status == VP_INTERRUPTED:
            with nogil:
                status = ide_transfer_run(transfer, deadline)
            if status == VP_INTERRUPTED:
                try:
                    PyErr_CheckSignals()
                except BaseException:
                    job_abandon(&self.core, &transfer.job)
                    raise
        raise_status(status)
        if transfer.failed == transfer.blocks:
            return None
        return failure(&transfer.result, transfer.failed, bytes(statuses) if statuses is not None else b"")

    def counters(self):
        """Requests of this channel and what they cost beyond their port accesses."""
        return {
            "requests": self.core.requests,
            "bytes_copied": self.core.bytes_copied,
            "retries": self.core.retries,
            "resets": self.core.resets,
            "blocking_waits": self.core.blocking_waits,
        }


cdef object failure(const IdeDriverResult *result, uint64_t index, bytes statuses):
    if result.outcome == IDE_OUTCOME_OK:
        return None
    return index, OUTCOMES[result.outcome], result.status, result.error, result.bm_status, statuses
