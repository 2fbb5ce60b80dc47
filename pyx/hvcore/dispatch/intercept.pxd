# The worker's half of the trapped path: the IDE controller that the guest sees, reached through port intercepts.
#
# Nothing of the guest's pages or memory is believed: the message is fetched once, addresses are checked against guest
# memory, and whatever the ports are told is the controller's to judge. One thread at a time.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.dispatch.handover cimport HandOver
from hvcore.hypervisor.intercept cimport InterceptPages, PortIntercept
from hvcore.ide.controller cimport IdeController, IdeDriveSetup
from hvcore.ide.dma cimport IdeMemory
from hvcore.metrics.counters cimport Counters
from hvcore.metrics.trace cimport TraceRing

ctypedef struct GuestChannel:        # its media request
    uint32_t posted                  # our own copy of the sequence
    uint32_t generation              # of the request that is with the host
    uint64_t trace_id
    bint outstanding
    bint stale                       # it belongs to a controller that was reset meanwhile: the answer is dropped

ctypedef struct GuestIde:
    HandOver *shared
    int bell                         # eventfd that wakes the host
    TraceRing *trace
    InterceptPages *pages            # NULL without a guest
    uint8_t *guest                   # its memory
    uint64_t guest_bytes
    uint32_t epoch                   # ours, as the host counts
    uint32_t seen                    # number of the last access taken
    bint held                        # it is not answered yet
    uint32_t channel                 # that its port belongs to, 2: none
    PortIntercept message            # private copy of the access
    uint64_t done                    # elements of its string
    uint32_t most                    # of these, in this intercept
    Counters *counters               # of the drive that it is for, or NULL
    uint64_t trace_id
    uint32_t config_address          # PCI configuration mechanism 1
    IdeController controller
    IdeMemory memory
    IdeDriveSetup setups[4]
    uint64_t trace_base[4]
    uint64_t commands[4]             # of earlier guests
    bint present[4]
    bint any
    GuestChannel channels[2]

# The drives follow by guest_ide_add: 0 or an IdeAttachStatus. Its buffer is the one in `shared`.
cdef void guest_ide_init(GuestIde *ide, HandOver *shared, int bell, TraceRing *trace) noexcept nogil
cdef int guest_ide_add(GuestIde *ide, uint32_t place, const IdeDriveSetup *setup, uint64_t trace_base) noexcept nogil
# A guest with its pages, memory and the worker's epoch: the controller as after power-on. pages NULL: no guest.
cdef void guest_ide_attach(GuestIde *ide, InterceptPages *pages, uint8_t *guest, uint64_t guest_bytes,
                           uint32_t epoch) noexcept nogil
# Whether guest_ide_poll would find something.
cdef bint guest_ide_ready(const GuestIde *ide) noexcept nogil
# Takes an access of the guest and the host's answers; whether there were any.
cdef bint guest_ide_poll(GuestIde *ide) noexcept nogil
