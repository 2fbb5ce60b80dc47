# The data path of a storage VSC, the child's end of one storvsp channel (storvsp.md): the slots of requests in flight,
# packets to the host and completions from it, and the wait for them.
#
# Threads: everything marked [monitor] is called with vsc.monitor held. Of the threads that wait for completions one
# leads: it alone reads the host's ring, for all of them; the others wait on the word `progress`.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.linux.clock cimport clock_ns
from hvcore.linux.spin cimport Spinner
from hvcore.linux.threads cimport Monitor
from hvcore.storage.protocol cimport VstorPacket
from hvcore.vmbus.events cimport EventPage
from hvcore.vmbus.ring cimport RingView

cdef enum:
    VSC_UNITS = 256              # LUNs that an SRB can name
    VSC_ATTENTIONS = 8           # remembered of each unit
    VSC_CHANNELS = 16            # of one controller
    VSC_PFNS = 4098              # pages of one request: 16 MiB that starts anywhere in a page
    VSC_PACKET_MAX = 65536       # bytes: completions and notifications, and room for what a later host may send

cdef enum VscResult:
    VSC_OK = 0
    VSC_INTERRUPTED = 1          # a signal: the interpreter's handlers may run, then go on waiting
    VSC_TIMEOUT = 2
    VSC_GONE = 3                 # host or channel ended: nothing will be answered
    VSC_CORRUPT = 4              # the host broke a rule of the ring

cdef enum VscNotice:             # for whoever looks after the units
    VSC_NOTICE_ENUMERATE = 1     # units came, went or changed (storvsp.md 4.4)
    VSC_NOTICE_REMOVE = 2        # the controller is going away
    VSC_NOTICE_ATTENTION = 4     # a unit attention is among `attentions` of a unit

ctypedef struct VscUnit:         # one LUN as this channel sees it
    uint32_t in_flight
    uint32_t limit               # of in_flight, learnt from the host's refusals; 0: none known
    uint32_t executed            # requests since the limit was last raised
    uint32_t refusals            # in a row, with nothing in flight whose end could say when to try again
    int64_t refused_ns           # when the first of those came
    int64_t retry_ns             # and when the next try is due
    uint32_t pages               # bounce pages that its requests may have at a time
    uint32_t pages_used
    uint32_t attentions          # unit attentions so far
    uint32_t attentions_in_row   # without an executed command in between
    uint16_t[8] attention        # ASC << 8 | ASCQ of number n at n % VSC_ATTENTIONS

ctypedef struct VscSlot:
    VscSlot *next                # in the free list
    VscUnit *unit                # that the request is for
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
    VscUnit *units               # VSC_UNITS of them
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
    uint32_t wanted              # threads that wait for the monitor
    uint32_t gone
    bint leader
    bint corrupt
    bint staged
    bint spins                   # waiting awake is worth it
    bint watched                 # idle: the ring is unmasked, and the watcher sleeps on the event page (watch.pxd)
    uint32_t spread              # threads that wait for several channels, of which another thread leads this one
    int64_t patience_ns          # with a unit that refuses everything
    uint32_t notices             # VscNotices that nobody has taken yet
    uint32_t *watch_word         # futex of the watcher; NULL: none
    uint64_t watch_requests      # the watcher's: requests when it last looked
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
cdef bint vsc_pages(Vsc *vsc, VscUnit *unit, VscSlot *slot, uint32_t length) noexcept nogil
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

# Refusals. The host takes a limited number of requests of one unit (TASK SET FULL, BUSY): a caller asks vsc_admits
# before it sends, has vsc_again judge each completion, sends again what that says, and waits by vsc_wait_for.

# [monitor] Whether the unit takes one more request now, as far as is known.
cdef inline bint vsc_admits(const VscUnit *unit) noexcept nogil:
    return unit.limit == 0 or (
        unit.in_flight < unit.limit and (unit.refusals == 0 or <int64_t> clock_ns() >= unit.retry_ns))

# [monitor, in done()] Whether the SRB was not executed and is to be sent again when the unit admits it: it was refused,
# or got a unit attention, which is noted.
cdef inline bint vsc_again(Vsc *vsc, VscSlot *slot) noexcept nogil:
    if slot.reply.u.scsi.srb_status == 0x01 and slot.unit.limit == 0:
        slot.unit.attentions_in_row = 0
        return False
    return vsc_judge(vsc, slot)

cdef bint vsc_judge(Vsc *vsc, VscSlot *slot) noexcept nogil
# [monitor] vsc_wait, but no longer than until a unit that refused everything is to be asked again (VSC_OK).
cdef int vsc_wait_for(Vsc *vsc, const VscUnit *unit, int64_t deadline_ns) noexcept nogil

# Waits until something completed on one of several channels, none of whose monitors the caller holds; as vsc_wait.
# seen: each channel's `progress` when the caller last looked at it under its monitor.
cdef int vsc_wait_any(Vsc **channels, const uint32_t *seen, uint32_t count, int64_t deadline_ns) noexcept nogil

# [monitor] For the watcher: takes what the host said while nobody waits. True: the channel is in use, look again soon;
# False: the host's next packet is signalled.
cdef bint vsc_attend(Vsc *vsc) noexcept nogil
# [monitor] Wakes the watcher.
cdef void vsc_call_watcher(Vsc *vsc) noexcept nogil
