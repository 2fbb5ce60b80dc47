# The data path of a storage VSC, the child's end of one storvsp channel (storvsp.md): the slots of requests in flight,
# packets to the host and completions from it, and the wait for them.
#
# Threads: everything marked [monitor] is called with vsc.monitor held. Of the threads that wait for completions one
# leads: it alone reads the host's ring, for all of them; the others wait on the word `progress`.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.linux.spin cimport Spinner
from hvcore.linux.threads cimport Monitor
from hvcore.storage.protocol cimport VstorPacket
from hvcore.vmbus.events cimport EventPage
from hvcore.vmbus.ring cimport RingView

cdef enum:
    VSC_PFNS = 4098              # pages of one request: 16 MiB that starts anywhere in a page
    VSC_PACKET_MAX = 65536       # bytes: completions and notifications, and room for what a later host may send

cdef enum VscResult:
    VSC_OK = 0
    VSC_INTERRUPTED = 1          # a signal: the interpreter's handlers may run, then go on waiting
    VSC_TIMEOUT = 2
    VSC_GONE = 3                 # host or channel ended: nothing will be answered
    VSC_CORRUPT = 4              # the host broke a rule of the ring

ctypedef struct VscSlot:
    VscSlot *next                # in the free list
    uint64_t transaction_id      # 0: free. Index and generation: never a pointer (PK-11)
    # Called with the monitor held when the completion is there; the slot is free afterwards. NULL: nobody waits any
    # more.
    void (*done)(VscSlot *slot) noexcept nogil
    void *owner
    uint64_t tag                 # the owner's
    uint64_t sent_ns
    uint32_t length              # bytes of data
    uint32_t page_count          # bounce pages in use
    uint32_t *pages              # their page numbers
    uint64_t generation
    VstorPacket reply

ctypedef struct Vsc:
    RingView outgoing
    RingView incoming
    EventPage *events
    uint8_t *base                # guest memory
    uint64_t size_bytes
    Monitor monitor
    Spinner spinner
    VscSlot *slots
    VscSlot *free
    uint32_t *page_lists         # of the slots
    uint32_t *free_pages         # stack of page numbers
    uint32_t free_page_count
    uint32_t page_count          # all pages given to this channel
    uint8_t *buffer              # for the packet at hand
    uint64_t *header             # GPA-direct header being built
    int doorbell                 # eventfd; owned
    uint32_t depth
    uint32_t in_flight
    uint32_t orphans             # of those: abandoned by their callers
    uint32_t max_transfer        # bytes; 0 before negotiation
    uint32_t pages_per_slot
    uint32_t relid
    uint32_t progress            # futex: changes whenever a waiter should look again
    uint32_t waiting             # threads on `progress`
    uint32_t gone
    bint leader
    bint corrupt
    bint staged
    bint spins                   # waiting awake is worth it
    # what it cost, one writer at a time [monitor]
    uint64_t requests
    uint64_t bytes_copied
    uint64_t doorbells
    uint64_t blocking_waits
    uint64_t strays              # completions that nobody waited for (PK-11)

# [monitor] A free slot, or NULL when all are in flight.
cdef VscSlot *vsc_slot(Vsc *vsc) noexcept nogil
# [monitor] Gives a slot back that was not sent.
cdef void vsc_slot_return(Vsc *vsc, VscSlot *slot) noexcept nogil
# [monitor] Takes bounce pages for `length` bytes; False when there are too few now.
cdef bint vsc_pages(Vsc *vsc, VscSlot *slot, uint32_t length) noexcept nogil
# [monitor] Copies between the slot's bounce pages and memory of this process.
cdef void vsc_copy_out(Vsc *vsc, VscSlot *slot, uint8_t *to, uint32_t length) noexcept nogil
cdef void vsc_copy_in(Vsc *vsc, VscSlot *slot, const uint8_t *data, uint32_t length) noexcept nogil
# [monitor] Puts a packet into the ring, unpublished. With data: `gpa` of `length` bytes, or the slot's bounce pages
# when it has some. RingStatus; RING_FULL asks the host for a signal when there is room.
cdef int vsc_send(Vsc *vsc, VscSlot *slot, const VstorPacket *packet, uint64_t gpa, uint32_t length) noexcept nogil
cdef void vsc_read_srb(VstorPacket *packet, uint64_t lba, uint32_t blocks, uint32_t length, bint write) noexcept nogil
cdef void vsc_srb(
    VstorPacket *packet, const uint8_t *cdb, uint32_t cdb_length, uint32_t length, uint8_t data_in) noexcept nogil
# [monitor] Publishes what was sent and signals the host where the rules ask for it.
cdef void vsc_publish(Vsc *vsc) noexcept nogil
# [monitor] Waits until something completed or `deadline_ns` (CLOCK_MONOTONIC, < 0 never). Runs done() of what
# completed.
cdef int vsc_wait(Vsc *vsc, int64_t deadline_ns) noexcept nogil

# [monitor] The owner goes away: its slots are orphans, freed when their completions come.
cdef void vsc_abandon(Vsc *vsc, void *owner) noexcept nogil
