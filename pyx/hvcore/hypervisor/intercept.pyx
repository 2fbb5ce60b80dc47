"""Port intercepts: which ports are intercepted, the virtual processor's half, and the host's (see intercept.pxd)."""

cimport cython
from libc.errno cimport EINTR, ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from hvcore.linux.atomics cimport (
    cpu_relax, exchange32, fence_full, load_acquire32, load_relaxed32, store_relaxed32, store_release32)
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.cpu cimport spin_budget
from hvcore.linux.spin cimport SPIN_MAX_NS, spin_begin, spin_end, spin_learn, spin_yield
from hvcore.linux.syscalls cimport futex_wait, futex_wake

cdef enum:
    PATIENCE_NS = 200000000          # for the answer to an access once a signal came: then Python's handlers must run
    LOOKS = 64                       # between two looks at the clock
    ACCESS_NS = 20000                # of waiting awake for an access: a worker that is awake takes no longer

INTERCEPT_SIZE = INTERCEPT_BYTES


cdef void intercept_ports(InterceptPages *pages, uint32_t first, uint32_t count, bint on) noexcept nogil:
    cdef uint32_t port
    for port in range(first, first + count):
        if port > 0xFFFF:
            break
        if on:
            pages.io_bitmap[port >> 3] |= <uint8_t> (1 << (port & 7))
        else:
            pages.io_bitmap[port >> 3] &= <uint8_t> ~(1 << (port & 7))


# The virtual processor.

cdef void vp_init(Vp *vp, InterceptPages *pages) noexcept nogil:
    memset(vp, 0, sizeof(Vp))
    vp.pages = pages
    vp.posted = load_relaxed32(&pages.vp.posted)
    vp.deadline_ns = -1
    vp.spinner.budget = spin_budget()
    vp.spinner.limit_ns = SPIN_MAX_NS
    # What is the same in every message. A process has neither segments nor an instruction pointer of the machine's.
    pages.vp.type = IO_PORT_INTERCEPT
    pages.vp.payload_size = sizeof(PortIntercept)
    pages.vp.body.vp_index = 0
    pages.vp.body.rflags = 2


cdef inline bint vp_answered(const Vp *vp) noexcept nogil:
    # Acquire: who sees the number sees the answer.
    return load_acquire32(&vp.pages.vp.answered) == vp.posted


cdef inline bint vp_ready(const Vp *vp, bint beginning) noexcept nogil:
    """Beginning: a worker is there and idle. Else: the access was answered, or its worker is gone."""
    cdef uint32_t epoch = load_acquire32(&vp.pages.worker_epoch)
    if load_relaxed32(&vp.gone):
        return True
    if beginning:
        return (epoch & 1 != 0 and vp_answered(vp)) or load_relaxed32(&vp.pages.no_worker) != 0
    return vp_answered(vp) or epoch != vp.epoch


cdef bint vp_spin(Vp *vp, bint beginning) noexcept nogil:
    cdef uint64_t end
    cdef int _i
    cdef bint found = False
    if vp.spinner.limit_ns < ACCESS_NS:
        vp.spinner.limit_ns = ACCESS_NS
    if not spin_begin(&vp.spinner):
        return False
    end = clock_ns() + vp.spinner.limit_ns
    while True:
        for _i in range(LOOKS):
            if vp_ready(vp, beginning):
                found = True
                break
            cpu_relax()
        if found or clock_ns() >= end:
            break
        spin_yield()                 # the worker may share this CPU
    spin_end(&vp.spinner)
    return found


cdef int futex_until(uint32_t *word, int64_t deadline_ns) noexcept nogil:
    """Sleeps on a word that is 1. VP_OK, VP_TIMEOUT or VP_INTERRUPTED."""
    cdef int64_t left = -1
    cdef int status
    if deadline_ns >= 0:
        left = deadline_ns - <int64_t> clock_ns()
        if left <= 0:
            return VP_TIMEOUT
    status = futex_wait(word, 1, left)
    if status == -EINTR:
        return VP_INTERRUPTED
    return VP_TIMEOUT if status == -ETIMEDOUT else VP_OK


cdef int vp_wait(Vp *vp, bint beginning) noexcept nogil:
    """VP_OK: vp_ready. A signal does not end the wait at once: half an access cannot be taken up again."""
    cdef uint32_t *word = &vp.pages.vp.sleep
    cdef int64_t limit = vp.deadline_ns
    cdef uint64_t slept
    cdef int status = VP_OK, ended = VP_TIMEOUT
    while not vp_ready(vp, beginning) and not vp_spin(vp, beginning):
        # The exchange is the full fence between the sleep word and the last look.
        exchange32(word, 1)
        if not vp_ready(vp, beginning):
            slept = clock_ns()
            vp.blocking_waits += 1
            status = futex_until(word, limit)
            spin_learn(&vp.spinner, clock_ns() - slept)
        store_relaxed32(word, 0)
        if status == VP_TIMEOUT and not vp_ready(vp, beginning):
            return ended
        if status == VP_INTERRUPTED and ended == VP_TIMEOUT:
            if beginning:
                return VP_INTERRUPTED
            slept = clock_ns() + PATIENCE_NS
            if limit < 0 or limit > <int64_t> slept:
                limit = <int64_t> slept
                ended = VP_INTERRUPTED
    return VP_GONE if load_relaxed32(&vp.gone) else VP_OK


cdef int vp_begin(Vp *vp, int64_t deadline_ns) noexcept nogil:
    vp.deadline_ns = deadline_ns
    vp.status = vp_wait(vp, True)
    vp.epoch = load_relaxed32(&vp.pages.worker_epoch)
    if vp.status == VP_OK and not vp.epoch & 1:
        vp.status = VP_LOST
    return vp.status


cdef void vp_resume(Vp *vp, uint32_t epoch, int64_t deadline_ns) noexcept nogil:
    vp.epoch = epoch
    vp.deadline_ns = deadline_ns
    vp.status = VP_OK


cdef int vp_exchange(Vp *vp, uint32_t port, uint32_t info, bint write) noexcept nogil:
    """One intercept: the rest of the message is written. VP_OK: the answer is there."""
    cdef VpSlot *slot = &vp.pages.vp
    # An access that was given up may still be with the worker: the slot is its own until it answers. (A worker that is
    # gone left its number behind; the next one answers it before the host says that it is there.)
    if not vp_answered(vp):
        vp.status = vp_wait(vp, False)
        if vp.status == VP_OK and not vp_answered(vp):
            vp.status = VP_LOST
    if vp.status == VP_OK and load_relaxed32(&vp.pages.worker_epoch) != vp.epoch:
        vp.status = VP_LOST
    if vp.status != VP_OK:
        return vp.status
    slot.body.access_type = ACCESS_WRITE if write else ACCESS_READ
    slot.body.port = <uint16_t> port
    slot.body.access_info = <uint8_t> info
    slot.epoch = vp.epoch
    vp.posted += 1
    vp.intercepts += 1
    # Release: the worker that sees the number sees the message. Full fence: against the worker, which sets its sleep
    # word and then looks at the number once more.
    store_release32(&slot.posted, vp.posted)
    fence_full()
    if intercept_wake(&vp.pages.worker_sleep):
        vp.doorbells += 1
    vp.status = vp_wait(vp, False)
    if vp.status == VP_OK and (not vp_answered(vp) or load_relaxed32(&slot.status) != INTERCEPT_DONE):
        vp.status = VP_LOST
    return vp.status


cdef inline void vp_instruction(VpSlot *slot, uint32_t width, bint write, bint string) noexcept nogil:
    """IN AL/AX/EAX, DX and OUT; REP INS, REP OUTS, in 32-bit code."""
    cdef uint32_t length = 0
    if string:
        slot.body.instruction_bytes[0] = 0xF3
        length = 1
    if width == 2:
        slot.body.instruction_bytes[length] = 0x66
        length += 1
    slot.body.instruction_bytes[length] = <uint8_t> (
        (0x6C if string else 0xEC) | (2 if write else 0) | (0 if width == 1 else 1))
    slot.body.instruction_byte_count = <uint8_t> (length + 1)
    slot.body.instruction_length = <uint8_t> (length + 1)


cdef uint32_t vp_in(Vp *vp, uint32_t port, uint32_t width) noexcept nogil:
    cdef uint32_t ones = <uint32_t> 0xFFFFFFFF >> (32 - 8 * width)
    vp.accesses += 1
    if vp.status != VP_OK or not access_intercepted(vp.pages, port, width):
        return ones
    vp_instruction(&vp.pages.vp, width, False, False)
    vp.pages.vp.body.rax = 0
    if vp_exchange(vp, port, width, False) != VP_OK:
        return ones
    return <uint32_t> vp.pages.vp.rax & ones


cdef void vp_out(Vp *vp, uint32_t port, uint32_t width, uint32_t value) noexcept nogil:
    vp.accesses += 1
    if vp.status != VP_OK or not access_intercepted(vp.pages, port, width):
        return
    vp_instruction(&vp.pages.vp, width, True, False)
    vp.pages.vp.body.rax = value
    vp_exchange(vp, port, width, True)


cdef uint64_t vp_string(Vp *vp, uint32_t port, uint32_t width, bint write, uint64_t address,
                        uint64_t count) noexcept nogil:
    cdef VpSlot *slot = &vp.pages.vp
    cdef uint64_t left = count, rcx
    vp.accesses += 1
    if vp.status != VP_OK or not access_intercepted(vp.pages, port, width):
        return 0
    vp_instruction(slot, width, write, True)
    while left:
        slot.body.rcx = left
        slot.body.rsi = slot.body.rdi = address
        if vp_exchange(vp, port, width | INFO_STRING | INFO_REP, write) != VP_OK:
            break
        # Only how far it came is taken from the answer, and only if it came further.
        rcx = slot.rcx
        if rcx >= left:
            vp.status = VP_LOST
            break
        address += (left - rcx) * width
        left = rcx
    return count - left


# Interrupts.

cdef inline int line_ready(const Vp *vp, uint32_t number, uint32_t epoch) noexcept nogil:
    """VP_OK: high. 1: not yet."""
    if load_relaxed32(&vp.gone):
        return VP_GONE
    if load_acquire32(&vp.pages.worker_epoch) != epoch:
        return VP_LOST
    return VP_OK if vp_line(vp, number) else 1


cdef int vp_interrupt(Vp *vp, uint32_t number, uint32_t epoch, Spinner *spinner, bint spins, int64_t deadline_ns,
                      uint64_t *waits) noexcept nogil:
    cdef uint32_t *word = &vp.pages.interrupts[number].sleep
    cdef int ready = line_ready(vp, number, epoch), status
    cdef uint64_t end, slept
    cdef int _i
    if ready <= 0:
        return ready
    if spins and spin_begin(spinner):
        end = clock_ns() + spinner.limit_ns
        while True:
            for _i in range(LOOKS):
                ready = line_ready(vp, number, epoch)
                if ready <= 0:
                    break
                cpu_relax()
            if ready <= 0 or clock_ns() >= end:
                break
            spin_yield()             # host and worker have work to do, perhaps on this CPU
        spin_end(spinner)
    while ready > 0:
        exchange32(word, 1)          # the full fence between the sleep word and the last look
        ready = line_ready(vp, number, epoch)
        if ready > 0:
            slept = clock_ns()
            waits[0] += 1
            status = futex_until(word, deadline_ns)
            spin_learn(spinner, clock_ns() - slept)
            ready = line_ready(vp, number, epoch)
            if ready > 0 and status != VP_OK:
                ready = status
        store_relaxed32(word, 0)
    return ready


cdef void wake_all(InterceptPages *pages) noexcept nogil:
    """Each waiter looks again. In any case: who died between changing a word and the wake-up has left a 0 and a
    sleeper. The exchanges are full fences: what the waiters are to see was published before them."""
    cdef int i
    exchange32(&pages.vp.sleep, 0)
    futex_wake(&pages.vp.sleep, 0x7fffffff)
    for i in range(2):
        exchange32(&pages.interrupts[i].sleep, 0)
        futex_wake(&pages.interrupts[i].sleep, 0x7fffffff)


cdef void vp_end(Vp *vp) noexcept nogil:
    store_release32(&vp.gone, 1)
    wake_all(vp.pages)


@cython.final
cdef class Intercepts:
    """The intercept pages of one child partition as the hypervisor keeps them: which ports are intercepted, and
    whether a worker answers.

    ports: name -> [(first port, count), ...] of the devices whose ports are intercepted. The pages (`region`) are for
    the child and for the worker; the worker moves the intercepts of ports that a PCI function decodes.
    """

    def __init__(self, dict ports):
        cdef uint32_t first, count
        for name, ranges in ports.items():
            for first, count in ranges:
                if count == 0 or first > 0xFFFF or count > 0x10000 - first:
                    raise ValueError(f"{name}: there are no {count} ports from {first:#x} on")
        self.ports = ports
        self.region = Region.create(INTERCEPT_BYTES, "hvcore-intercepts")
        self.pages = <InterceptPages *> self.region.base
        for ranges in ports.values():
            for first, count in ranges:
                intercept_ports(self.pages, first, count, True)

    def intercepted(self, uint16_t port):
        """Whether an access to the port leaves the child."""
        return bool(intercepted(self.pages, port))

    @property
    def epoch(self):
        """Odd while a worker answers; it changes with every worker that comes or goes."""
        return self.current

    def next_epoch(self):
        """The epoch that worker_attached() will begin."""
        return (self.current + 1 | 1) & 0xFFFFFFFF

    def worker_attached(self):
        """A worker that was told next_epoch() answers from now on."""
        if self.pages == NULL:
            return
        self.current = self.next_epoch()
        store_relaxed32(&self.pages.no_worker, 0)
        store_release32(&self.pages.worker_epoch, self.current)
        wake_all(self.pages)

    def worker_lost(self):
        """No worker answers: what is outstanding, and what comes, reads ones in the child. Idempotent."""
        if self.current & 1 and self.pages != NULL:
            self.current += 1
            store_release32(&self.pages.worker_epoch, self.current)
            wake_all(self.pages)

    def worker_unavailable(self):
        """There is no worker and none will come: every access reads ones at once, until worker_attached()."""
        if self.pages != NULL:
            store_release32(&self.pages.no_worker, 1)
            wake_all(self.pages)

    def close(self):
        """Gives the pages back. Idempotent."""
        self.pages = NULL
        self.region.close()
