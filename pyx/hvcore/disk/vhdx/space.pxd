# Which MiB of a VHDX file are taken, and when space that was given up may be taken again.
#
# SPACE is one bit per MiB of the file, in pages that exist where something is claimed. It finds overlaps while the
# table is read and free space once all of it is. Its owner's lock guards it.
#
# EPOCH answers whether any request may still use a block that the table no longer names (disk-formats.md 11, rule 13).
# Requests take no lock, so a read may have looked up a block, and be on its way to the disk, while the block is
# trimmed, its trim made durable, and its space wanted by another block. Each request is therefore counted, from before
# its first lookup to after its last I/O, in one of two counters; the parity of `word` says which. To be sure that all
# requests that might know an old place are gone, the parity is flipped after the place was taken out of the table:
# later requests count elsewhere, and once the older counter is 0 nobody is left who looked before the flip. Nobody ever
# waits for that: space whose time has not come stays in its list.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.linux.atomics cimport fence_full, fetch_add32, load_acquire64

cdef enum:
    SPACE_PAGES = 8192           # of 32 GiB: 256 TiB of file
    SPACE_FOR_BLOCKS = 0         # hints
    SPACE_FOR_MIB = 1

cdef extern from *:
    """
    /* MiB */
    #define HV_SPACE_LIMIT ((uint64_t) 8192 << 15)
    """
    const uint64_t SPACE_LIMIT "HV_SPACE_LIMIT"

# Space that was given up, on its way to being free.
ctypedef struct Freed:
    Freed *next
    uint64_t start, width        # MiB

ctypedef struct Epoch:
    uint64_t word
    uint8_t[56] pad              # the word is only read, nearly always: its cache line stays with every core
    uint32_t[32] inside          # number 0 and 16 count, each on its own line

ctypedef struct Space:
    uint64_t *pages[SPACE_PAGES]
    uint64_t[2] hints            # no free space below, by the length looked for
    uint64_t end                 # nothing was ever claimed from here on
    # Stages of freed space, in this order (rules 7 and 13).
    Freed *fresh                 # its reference is gone from memory
    Freed *frozen                # and from the pages that a flush now makes durable
    Freed *durable               # and from the disk
    Freed *draining              # and the epoch was flipped since: free once the counter of that side is 0
    Epoch epoch


cdef inline uint32_t epoch_enter(Epoch *epoch) noexcept nogil:
    """Before a request looks anything up. Returns what epoch_leave wants back."""
    cdef uint64_t word
    cdef uint32_t side
    while True:
        word = load_acquire64(&epoch.word)
        side = 16 * <uint32_t> (word & 1)
        fetch_add32(&epoch.inside[side], 1)
        # Store, then load: either the flip is seen here, and with it the table as it was before the flip, or whoever
        # flipped sees the count (the pattern of Dekker, so acquire and release would not do).
        fence_full()
        if load_acquire64(&epoch.word) == word:
            return side
        fetch_add32(&epoch.inside[side], <uint32_t> -1)


cdef inline void epoch_leave(Epoch *epoch, uint32_t side) noexcept nogil:
    fetch_add32(&epoch.inside[side], <uint32_t> -1)


# 0, or -1: no memory. Afterwards the range can be claimed. The range ends at SPACE_LIMIT or before.
cdef int space_reserve(Space *space, uint64_t start, uint64_t width) noexcept nogil
# 0: all of the range is free, else the last claimed MiB in it, plus 1.
cdef uint64_t space_taken(const Space *space, uint64_t start, uint64_t width) noexcept nogil
cdef void space_claim(Space *space, uint64_t start, uint64_t width) noexcept nogil
cdef void space_release(Space *space, uint64_t start, uint64_t width) noexcept nogil
# The lowest free range from `start` on; SPACE_LIMIT: none. From 0 on, `width` is always 1 or always that of a block:
# the search then begins where the last one of its kind ended.
cdef uint64_t space_find(Space *space, uint64_t start, uint64_t width) noexcept nogil
# End of the last claimed MiB.
cdef uint64_t space_top(const Space *space) noexcept nogil
# A node for space_free; NULL: no memory.
cdef Freed *space_node() noexcept nogil
# The table no longer names the range. It stays claimed until the stages are passed.
cdef void space_free(Space *space, Freed *node, uint64_t start, uint64_t width) noexcept nogil
cdef void space_freeze(Space *space) noexcept nogil
cdef void space_durable(Space *space) noexcept nogil
# Moves on what can be.
cdef void space_drain(Space *space) noexcept nogil
# No request is running and all references are gone from the disk: everything freed is free.
cdef void space_settle(Space *space) noexcept nogil
cdef void space_destroy(Space *space) noexcept nogil
