# A child partition's IDE driver over port intercepts: its virtual processor, and one request at a time per channel. The
# counterpart of storage/vsc on the trapped path.
#
# What the controller, or whoever plays it, answers is believed as far as a driver must: data go nowhere but into the
# request's own memory.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.hypervisor.intercept cimport Vp
from hvcore.ide.dma cimport IdeSegment
from hvcore.ide.driver cimport IdeDriver, IdeDriverResult, IdeRequest
from hvcore.linux.spin cimport Spinner
from hvcore.linux.threads cimport Monitor
from hvcore.memory.region cimport Region

ctypedef struct Waiter:              # on the waiting thread's stack
    Waiter *next
    uint32_t asleep                  # 1 until it is its turn; also the futex

ctypedef struct Turn:                # one user at a time, in the order in which they came
    Monitor monitor
    bint taken
    Waiter *first
    Waiter *last

ctypedef struct Processor:           # of the partition: every access goes through it
    Vp vp
    Turn turn
    uint8_t *base                    # guest memory
    uint64_t size_bytes
    bint spins

ctypedef struct Requester:           # one IDE channel
    Processor *processor
    Turn turn
    IdeDriver driver
    Spinner spinner                  # of the interrupt
    uint32_t channel
    uint32_t epoch                   # of the worker that the channel was set up with
    bint reset_due                   # its state is unknown: a command was given up, or the worker is another
    uint8_t *bounce                  # guest memory for data that is not
    uint32_t bounce_bytes
    uint64_t requests
    uint64_t bytes_copied
    uint64_t retries
    uint64_t resets
    uint64_t blocking_waits

# One request of the driver, and how far it is.
ctypedef struct IdeJob:
    IdeRequest request
    IdeSegment segment               # of a request in bus-master DMA
    uint64_t bytes                   # of its data
    const uint8_t *source            # copied into the bounce memory first, or NULL
    uint8_t *target                  # copied from the bounce memory at the end, on success, or NULL
    int64_t patience_ns              # of one look for the channel's turn and for the interrupt; 0: the deadline's
    bint holding                     # it has the channel: the wait for the interrupt ended early
    int attempts
    IdeDriverResult result

# Reads or writes of any length on one drive: `blocks` of `block` bytes each.
ctypedef struct IdeTransfer:
    Requester *requester
    IdeJob job
    uint32_t drive
    int mode                         # IdeMode
    bint write
    bint direct                      # data is guest memory that the bus master reaches
    const uint64_t *offsets          # bytes, one per block; NULL: one block at `offset`
    uint64_t offset
    uint64_t blocks
    uint64_t block
    uint8_t *data
    uint8_t *statuses                # per block, or NULL: 1 when it failed
    # How far it is.
    uint64_t next                    # block
    uint64_t into                    # bytes of it that are done
    uint64_t failed                  # first block that failed; `blocks`: none
    IdeDriverResult result           # of that

# request.kind, drive, mode, lba and sectors are set; data and segments are the requester's to fill in: from `memory`,
# or from the bounce memory (NULL), whose data source and target name.
cdef void job_prepare(Requester *requester, IdeJob *job, uint8_t *memory) noexcept nogil
# Runs it to its end (VpStatus; job.result on VP_OK). After VP_INTERRUPTED call it again, or job_abandon; also after the
# VP_TIMEOUT of a job with patience, which it lost without a deadline.
cdef int job_run(Requester *requester, IdeJob *job, int64_t deadline_ns) noexcept nogil
cdef void job_abandon(Requester *requester, IdeJob *job) noexcept nogil
# Until all blocks are through, or the wait ends otherwise (VpStatus). After VP_INTERRUPTED call it again, or
# job_abandon.
cdef int ide_transfer_run(IdeTransfer *transfer, int64_t deadline_ns) noexcept nogil


cdef enum:
    IDE_COMMAND_BYTES = 0x2000000    # 65536 sectors: what one command moves


cdef class VirtualProcessor:
    cdef Processor core
    cdef readonly Region memory
    cdef readonly Region intercepts
    cdef bint ready

    cdef int enter(self, timeout) except -1
    cdef object read(self, uint32_t port, uint32_t width, timeout)
    cdef object write(self, uint32_t port, uint32_t width, uint32_t value, timeout)
    cdef object string(self, uint32_t port, uint32_t width, bint write, uint64_t address, uint64_t count, timeout)


cdef class Channel:
    cdef Requester core
    cdef readonly VirtualProcessor processor
    cdef list held                   # guest memory of requests that were given up, until the channel is reset
    cdef bint ready

    cdef object run(self, IdeJob *job, timeout)
    cdef object run_transfer(self, IdeTransfer *transfer, timeout, statuses)
