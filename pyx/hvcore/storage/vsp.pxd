# The storage VSP: the host's end of a storvsp controller (storvsp.md). A controller has a primary channel, on which it
# negotiates, and perhaps sub-channels; each channel takes vstor packets from its ring, has the SCSI engine plan each
# SRB and gives what needs the medium to the executor of the unit that was addressed; it completes what comes back. It
# does no media access and no waiting of its own.
#
# One thread at a time may call these functions for one controller and its channels. Nothing of guest memory is read
# twice.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.linux.syscalls cimport iovec
from hvcore.memory.guest cimport GuestMemory
from hvcore.metrics.counters cimport Counters, LatencyStamp, Sampler
from hvcore.metrics.events cimport EventLog
from hvcore.metrics.trace cimport TraceRing
from hvcore.scsi.target cimport ScsiPlan, ScsiUnit
from hvcore.storage.gate cimport Gate, GateItem
from hvcore.storage.protocol cimport VstorPacket
from hvcore.vmbus.events cimport EventPage
from hvcore.vmbus.ring cimport RingView

cdef enum:
    VSP_LUNS = 64                # units of one controller
    VSP_UNIT_LEAST = 32          # requests that a unit may always have in flight, if its channels have room
    VSP_PACKET_MAX = 36864       # bytes of the largest packet: 4097 PFNs (16 MiB), the vstor packet, room to spare
    VSP_BUDGET = 64              # packets taken from one channel before others have their turn (VA-8)

    VSP_PUBLISH = 8              # packets after which completions are published while more are waiting
    VSP_IDENTIFY = 64            # beside the ScsiActions: the drive identifies itself, then plan.data is the answer

cdef enum VspState:              # storvsp.md 4.1
    VSP_BEGIN = 0
    VSP_QUERY_VERSION = 1
    VSP_QUERY_PROPERTIES = 2
    VSP_END_INIT = 3
    VSP_READY = 4

cdef enum VspFault:              # why a channel is dead (section 13); 0 = it is not
    VSP_NO_FAULT = 0
    VSP_FAULT_RING = 1           # indices or a packet descriptor broke a rule
    VSP_FAULT_PACKET = 2         # packet type, flags or length
    VSP_FAULT_RANGE = 3          # the GPA-direct header
    VSP_FAULT_LENGTH = 4         # transfer length beyond the range
    VSP_FAULT_OPERATION = 5

ctypedef struct VspRequest:
    GateItem item                # first: the gate's item is its request
    VspRequest *next             # in the free list, or in a list of the executor's
    void *owner                  # the Vsp
    void *executor_data          # the executor's own
    VspUnit *unit                # NULL: the request was for none
    uint64_t transaction_id      # the guest's; opaque, perhaps repeated
    uint64_t trace_id
    uint32_t reply_length        # bytes of the completion's payload (storvsp.md 3.3)
    int status                   # DiskStatus, for an executor that finishes in another thread
    int kind                     # IoKind of a request of the medium
    uint32_t medium_bytes        # what it moves or covers there
    uint64_t medium_offset
    LatencyStamp stamp
    uint8_t *list                # copy of the parameter list, or an answer that comes later; NULL for none
    int iov_count
    iovec *iov                   # the guest's pages, after scsi_plan cut to the plan's length
    VstorPacket packet           # private copy of the request
    ScsiPlan plan

# Does the media access that request.plan asks for, now or later, and then calls vsp_finish (in the controller's
# thread) exactly once.
ctypedef void (*VspExecutor)(VspUnit *unit, VspRequest *request) noexcept nogil

ctypedef struct VspUnit:         # one LUN
    ScsiUnit *scsi
    VspExecutor execute
    void *context                # the executor's
    Counters *counters
    Gate gate
    Sampler sampler
    uint64_t trace_base          # VM and disk, in the upper bits of each trace id
    uint64_t sequence
    uint32_t in_flight           # over all channels
    uint32_t limit               # of in_flight: with more the unit answers TASK SET FULL, and others have room
    bint identify                # INQUIRY goes through the executor, as VSP_IDENTIFY

cdef enum VspNotice:             # storvsp.md 4.4
    VSP_NOTICE_ENUMERATE = 1     # units came, went or changed
    VSP_NOTICE_REMOVE = 2        # the controller is going away

ctypedef struct VspController:
    VspUnit *units[64]
    uint8_t luns[32]             # bitmap of units
    Counters *counters           # of what concerns no unit
    TraceRing *trace
    EventLog *log                # of slow and failed requests
    uint32_t iov_max             # buffers of one request
    uint32_t max_transfer        # bytes
    uint32_t notices             # VspNotices to be sent when the guest is ready for them
    uint16_t max_version
    uint16_t version             # negotiated, 0 before
    uint16_t sub_channels_max    # beside the primary
    uint16_t sub_channels        # that the guest asked for
    int sub_channel_bell         # eventfd rung when that changed; not owned
    int state                    # VspState
    bint strict_alloc
    bint single_disk             # accelerator channel: addresses are ignored (section 1)

ctypedef struct Vsp:             # one channel
    RingView incoming
    RingView outgoing
    VspController *controller
    GuestMemory memory
    EventPage *events
    Counters *counters           # who pays for signals: the unit of the last completion
    VspRequest *requests         # `depth` of them, allocated by the owner
    VspRequest *free
    uint8_t *buffer              # VSP_PACKET_MAX bytes for the packet at hand
    uint8_t answer[4096]         # plan.data of the request at hand
    int64_t room                 # bytes known to be free in the outgoing ring
    uint32_t relid
    uint32_t depth
    uint32_t in_flight
    int fault                    # VspFault
    bint primary
    bint open
    bint staged                  # something to publish in the outgoing ring
    bint taken                   # something to release in the incoming ring
    bint starved                 # the outgoing ring has no room: nothing is taken

# The rings are open; the primary channel starts negotiation anew.
cdef void vsp_open(Vsp *vsp) noexcept nogil
# Takes and starts up to VSP_BUDGET packets; their number.
cdef int vsp_poll(Vsp *vsp) noexcept nogil
# The media access of a request is done.
cdef void vsp_finish(VspRequest *request, int disk_status) noexcept nogil
# The request is lost with what executed it: SRB aborted, 0B/00/00.
cdef void vsp_abort(VspRequest *request) noexcept nogil
# Publishes what vsp_poll and vsp_finish left, and signals the guest where the rules ask for it.
cdef void vsp_publish(Vsp *vsp) noexcept nogil
# Whether vsp_poll would find something: for spinning, and before and after the ring is unmasked.
cdef bint vsp_ready(Vsp *vsp) noexcept nogil
cdef void vsp_mask(Vsp *vsp) noexcept nogil
cdef bint vsp_unmask(Vsp *vsp) noexcept nogil          # True: there is something to do, do not sleep
# The primary channel was closed (4.1): nothing is negotiated any more.
cdef void vsp_reset(VspController *controller) noexcept nogil
# Puts the unit at a LUN, or with NULL takes away what is there, and tells the guest when it can be told.
cdef void vsp_set_unit(VspController *controller, uint32_t lun, VspUnit *unit) noexcept nogil
# The request's turn has come (gate_next): it goes to its executor.
cdef void vsp_go(VspRequest *request) noexcept nogil
# Aborts what waits at the unit's gate: the requests of one channel, or (NULL) all.
cdef void vsp_drop_waiting(VspUnit *unit, const Vsp *vsp) noexcept nogil
# Sends the notices that are due, on the primary channel.
cdef void vsp_notify(Vsp *vsp) noexcept nogil
