# The parent partition's data path of one VM: a native thread that serves every open channel of the VM, its worker's
# answers and the pool's results. It spins for a bounded time when there is nothing, and then blocks on the doorbells.
# It never runs the interpreter. Its owner changes what it serves under the loop's monitor, which the thread holds
# whenever it works.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.dispatch.emulated cimport EmulatedDisk, EmulatedHost
from hvcore.dispatch.pool cimport PoolHome
from hvcore.dispatch.synthetic cimport MediaDisk, MediaJob
from hvcore.dispatch.trapped cimport TrappedHost
from hvcore.linux.spin cimport Spinner
from hvcore.linux.syscalls cimport iovec
from hvcore.linux.threads cimport Monitor, Thread
from hvcore.metrics.counters cimport Counters
from hvcore.metrics.events cimport EventLog
from hvcore.metrics.trace cimport TraceRing
from hvcore.storage.vsp cimport Vsp, VspController, VspUnit
from hvcore.vmbus.events cimport EventPage

cdef enum:
    CHANNELS_MAX = 256           # open at a time

ctypedef struct HostDisk:
    VspUnit unit
    MediaDisk media
    EmulatedDisk emulated
    Counters counters

ctypedef struct HostController:
    VspController vsp
    Counters counters
    uint32_t depth               # of each channel

ctypedef struct HostChannel:
    Vsp vsp
    MediaJob *jobs
    iovec *iov
    uint8_t **pages              # of the two rings

ctypedef struct HostLoop:
    Monitor monitor
    Thread thread
    PoolHome home
    EmulatedHost emulated
    TrappedHost trapped
    Spinner spinner
    TraceRing trace
    EventLog log
    Counters counters
    EventPage *events            # NULL without a guest
    HostChannel *channels[256]   # the open ones
    int channel_count
    HostDisk *gated[256]         # disks with limits, or with requests that still wait for one
    int gated_count
    uint64_t gate_due_ns         # when to look at them again; GATE_NEVER: no need to
    int timer                    # timerfd: wakes the thread for that
    int epoll
    int broken_bell              # eventfd: a worker broke the protocol
    int control_bell             # eventfd: wakes the thread for its owner
    uint32_t control_wanted      # threads that wait for the monitor; also their futex
    uint32_t stopping
    bint closing                 # somebody waits for requests in flight

cdef void *loop_thread(void *argument) noexcept nogil
# The monitor: the thread gives it up as soon as it sees that somebody wants it.
cdef void loop_lock(HostLoop *loop) noexcept nogil
cdef void loop_unlock(HostLoop *loop) noexcept nogil
# [locked] Lets the thread work until `count` is 0 or the deadline (CLOCK_MONOTONIC ns, < 0 never) passed; locked again.
cdef void loop_drain(HostLoop *loop, const uint32_t *count, long deadline_ns) noexcept nogil
# [locked] The disk's limits were set.
cdef void loop_gate(HostLoop *loop, HostDisk *disk) noexcept nogil
# [locked] The disk goes away.
cdef void loop_forget_gate(HostLoop *loop, HostDisk *disk) noexcept nogil
# [locked] Publishes what was completed outside the thread.
cdef void loop_publish(HostLoop *loop) noexcept nogil
