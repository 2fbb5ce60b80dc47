"""The native thread of one VM's data path (see loop.pxd)."""

from libc.stdint cimport uint32_t, uint64_t

from hvcore.dispatch.emulated cimport emulated_idle, emulated_poll, emulated_ready
from hvcore.dispatch.pool cimport PoolJob, pool_has_done, pool_take_done
from hvcore.dispatch.trapped cimport trapped_poll, trapped_ready
from hvcore.linux.atomics cimport (
    count64, cpu_relax, exchange32, fetch_add32, load_acquire32, load_relaxed32, store_relaxed32)
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.spin cimport spin_begin, spin_end, spin_learn, spin_yield
from hvcore.linux.syscalls cimport eventfd_ring, futex_wait, futex_wake, timer_at
from hvcore.linux.threads cimport monitor_lock, monitor_unlock, monitor_wait, monitor_wake
from hvcore.metrics.events cimport events_minimum
from hvcore.storage.gate cimport (
    GATE_MISSED, GATE_NEVER, GATE_QUIET, GateItem, GateWindow, gate_next, gate_urgent, gate_window, gate_window_due)
from hvcore.storage.vsp cimport VspRequest, vsp_go, vsp_mask, vsp_notify, vsp_poll, vsp_publish, vsp_ready, vsp_unmask
from hvcore.vmbus.events cimport event_host_clear, event_host_pending, event_host_sleeps, event_host_wakes

cdef extern from "<sys/epoll.h>" nogil:
    struct epoll_event:
        uint32_t events
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)


cdef int loop_pass(HostLoop *loop) noexcept nogil:
    """Everything that can be done now; how much it was."""
    cdef int work = 0, i
    cdef PoolJob *jobs = pool_take_done(&loop.home)
    cdef PoolJob *job
    while jobs != NULL:
        job = jobs
        jobs = job.next          # before done(): it may submit the job again
        job.done(job)
        work += 1
    if loop.gated_count:
        work += loop_gates(loop)
    work += emulated_poll(&loop.emulated) + trapped_poll(&loop.trapped)
    for i in range(loop.channel_count):
        work += vsp_poll(&loop.channels[i].vsp)
    if work:
        loop_publish(loop)
        if loop.closing:
            monitor_wake(&loop.monitor)
        if loop.emulated.broken or loop.trapped.broken:
            loop.emulated.broken = loop.trapped.broken = False
            eventfd_ring(loop.broken_bell)
    return work


cdef int loop_gates(HostLoop *loop) noexcept nogil:
    """Lets go what may go by now, and measures minima; how much there was. Sets when to look again."""
    cdef uint64_t now = clock_ns(), wait, due
    cdef int i = 0, work = 0
    cdef HostDisk *disk
    cdef GateItem *item
    cdef GateWindow window
    loop.gate_due_ns = GATE_NEVER
    while i < loop.gated_count:
        disk = loop.gated[i]
        item = gate_next(&disk.unit.gate, now, &wait)
        while item != NULL:
            vsp_go(<VspRequest *> item)
            work += 1
            item = gate_next(&disk.unit.gate, now, &wait)
        if wait and now + wait < loop.gate_due_ns:
            loop.gate_due_ns = now + wait
        due = gate_window_due(&disk.unit.gate)
        if due <= now:
            loop_window(loop, disk, gate_window(&disk.unit.gate, now, &window), now, &window)
            due = gate_window_due(&disk.unit.gate)
        if due < loop.gate_due_ns:
            loop.gate_due_ns = due
        store_relaxed32(&disk.media.source.urgent, gate_urgent(&disk.unit.gate, now))
        if disk.unit.gate.limited or disk.unit.gate.waiting:
            i += 1
        else:
            loop_forget_gate(loop, disk)
    return work


cdef void loop_window(HostLoop *loop, HostDisk *disk, int news, uint64_t now, const GateWindow *window) noexcept nogil:
    if news != GATE_QUIET:
        events_minimum(&loop.log, news == GATE_MISSED, now, disk.unit.trace_base, window.wanted_iops, window.got_iops,
                       window.wanted_bandwidth, window.got_bandwidth, window.busy_percent)


cdef void loop_gate(HostLoop *loop, HostDisk *disk) noexcept nogil:
    cdef int i
    for i in range(loop.gated_count):
        if loop.gated[i] == disk:
            return
    loop.gated[loop.gated_count] = disk
    loop.gated_count += 1


cdef void loop_forget_gate(HostLoop *loop, HostDisk *disk) noexcept nogil:
    cdef int i
    for i in range(loop.gated_count):
        if loop.gated[i] == disk:
            loop.gated_count -= 1
            loop.gated[i] = loop.gated[loop.gated_count]
            store_relaxed32(&disk.media.source.urgent, 0)
            if loop.gated_count == 0:
                loop.gate_due_ns = GATE_NEVER
            return


cdef void loop_publish(HostLoop *loop) noexcept nogil:
    cdef int i
    for i in range(loop.channel_count):
        if loop.channels[i].vsp.controller.notices:
            vsp_notify(&loop.channels[i].vsp)
        vsp_publish(&loop.channels[i].vsp)


cdef bint loop_ready(HostLoop *loop) noexcept nogil:
    cdef int i
    if pool_has_done(&loop.home) or load_relaxed32(&loop.control_wanted) or load_relaxed32(&loop.stopping):
        return True
    for i in range(loop.channel_count):
        if vsp_ready(&loop.channels[i].vsp):
            return True
    return emulated_ready(&loop.emulated) or trapped_ready(&loop.trapped)


cdef bint loop_spin(HostLoop *loop) noexcept nogil:
    """Waits awake for a bounded time; whether there is something to do. The rings' masks stay set: nobody signals."""
    cdef uint64_t end, now
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
        now = clock_ns()
        if now >= loop.gate_due_ns:
            ready = True
        if ready or now >= end:
            break
        if emulated_idle(&loop.emulated):    # else the CPU is better kept for the worker's answer than given to a guest
            spin_yield()
    spin_end(&loop.spinner)
    return ready


cdef void loop_mask(HostLoop *loop) noexcept nogil:
    cdef int i
    for i in range(loop.channel_count):
        vsp_mask(&loop.channels[i].vsp)


cdef bint loop_prepare_sleep(HostLoop *loop) noexcept nogil:
    """The waiter's half of the protocol in hvcore/vmbus/events.pxd. False: something came, do not block."""
    cdef int i
    cdef bint idle = True
    for i in range(loop.channel_count):
        if vsp_unmask(&loop.channels[i].vsp):
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
        if event_host_pending(loop.events):
            count64(&loop.counters.interrupts_received, 1)
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
        if loop.gate_due_ns != GATE_NEVER:
            timer_at(loop.timer, loop.gate_due_ns)
        count64(&loop.counters.blocking_waits, 1)
        slept = clock_ns()
        monitor_unlock(&loop.monitor)
        epoll_wait(loop.epoll, &event, 1, -1)
        monitor_lock(&loop.monitor)
        spin_learn(&loop.spinner, clock_ns() - slept)
        loop_woken(loop)
    monitor_unlock(&loop.monitor)
    return NULL


cdef void loop_lock(HostLoop *loop) noexcept nogil:
    fetch_add32(&loop.control_wanted, 1)
    monitor_lock(&loop.monitor)


cdef void loop_unlock(HostLoop *loop) noexcept nogil:
    monitor_unlock(&loop.monitor)
    fetch_add32(&loop.control_wanted, <uint32_t> -1)
    futex_wake(&loop.control_wanted, 1)
    eventfd_ring(loop.control_bell)          # what changed may be work for a thread that sleeps


cdef void loop_drain(HostLoop *loop, const uint32_t *count, long deadline_ns) noexcept nogil:
    loop.closing = True
    # The thread must run for this: the monitor is no longer wanted, only waited on.
    fetch_add32(&loop.control_wanted, <uint32_t> -1)
    futex_wake(&loop.control_wanted, 1)
    eventfd_ring(loop.control_bell)
    while count[0] and monitor_wait(&loop.monitor, deadline_ns) == 0:
        pass
    fetch_add32(&loop.control_wanted, 1)
    loop.closing = False
