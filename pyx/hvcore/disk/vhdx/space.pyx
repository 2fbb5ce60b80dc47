"""Free space of a VHDX file and the way of freed blocks to it (disk-formats.md 11, rules 7 and 13); see the .pxd."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc

from hvcore.linux.atomics cimport exchange64, fence_full, load_relaxed32


cdef extern from *:
    """
    #define hv_ones(word) ((word) == ~(uint64_t) 0 ? 64 : __builtin_ctzll(~(word)))
    #define hv_top_bit(word) (63 - __builtin_clzll(word))
    """
    uint64_t ones "hv_ones"(uint64_t word) noexcept nogil          # how many from bit 0 on
    uint64_t top_bit "hv_top_bit"(uint64_t word) noexcept nogil    # word is not 0

cdef enum:
    PAGE_SHIFT = 15              # bits of a page


cdef uint64_t part_mask(uint64_t at, uint64_t end) noexcept nogil:
    """The bits of the word of MiB `at` that belong to the range from there to `end`, which is beyond it."""
    cdef uint64_t bit = at & 63
    cdef uint64_t count = end - at
    if count >= 64 - bit:
        return ~<uint64_t> 0 << bit
    return ((<uint64_t> 1 << count) - 1) << bit


cdef uint64_t *word_of(const Space *space, uint64_t at) noexcept nogil:
    """NULL: nothing is claimed there."""
    cdef uint64_t *page = space.pages[at >> PAGE_SHIFT]
    if page == NULL:
        return NULL
    return page + ((at & ((1 << PAGE_SHIFT) - 1)) >> 6)


cdef int space_reserve(Space *space, uint64_t start, uint64_t width) noexcept nogil:
    cdef uint64_t page
    for page in range(start >> PAGE_SHIFT, ((start + width - 1) >> PAGE_SHIFT) + 1):
        if space.pages[page] == NULL:
            space.pages[page] = <uint64_t *> calloc(1, 4096)
            if space.pages[page] == NULL:
                return -1
    return 0


cdef uint64_t space_taken(const Space *space, uint64_t start, uint64_t width) noexcept nogil:
    cdef uint64_t at = start, end = start + width, last = 0, mask
    cdef const uint64_t *word
    while at < end:
        mask = part_mask(at, end)
        word = word_of(space, at)
        if word != NULL and word[0] & mask:
            last = (at & ~<uint64_t> 63) + top_bit(word[0] & mask) + 1
        at = (at & ~<uint64_t> 63) + 64
    return last


cdef void space_claim(Space *space, uint64_t start, uint64_t width) noexcept nogil:
    cdef uint64_t at = start, end = start + width
    while at < end:
        word_of(space, at)[0] |= part_mask(at, end)
        at = (at & ~<uint64_t> 63) + 64
    if end > space.end:
        space.end = end


cdef void space_release(Space *space, uint64_t start, uint64_t width) noexcept nogil:
    cdef uint64_t at = start, end = start + width
    cdef int hint
    while at < end:
        word_of(space, at)[0] &= ~part_mask(at, end)
        at = (at & ~<uint64_t> 63) + 64
    for hint in range(2):
        if start < space.hints[hint]:
            # Free space before it may be too short alone, and long enough now.
            space.hints[hint] = 0


cdef uint64_t space_find(Space *space, uint64_t start, uint64_t width) noexcept nogil:
    cdef int hint = SPACE_FOR_MIB if width == 1 else SPACE_FOR_BLOCKS
    cdef uint64_t at = start if start else space.hints[hint]
    cdef uint64_t taken, run
    cdef const uint64_t *word
    while at + width <= SPACE_LIMIT:
        word = word_of(space, at)
        run = ones(word[0] >> (at & 63)) if word != NULL else 0
        if run:
            at += run
            continue
        taken = space_taken(space, at, width)
        if taken == 0:
            if start == 0:
                space.hints[hint] = at
            return at
        at = taken
    return SPACE_LIMIT


cdef uint64_t space_top(const Space *space) noexcept nogil:
    cdef uint64_t at = space.end
    cdef uint64_t *word
    while at:
        at = (at - 1) & ~<uint64_t> 63
        word = word_of(space, at)
        if word != NULL and word[0]:
            return at + top_bit(word[0]) + 1
    return 0


cdef Freed *space_node() noexcept nogil:
    return <Freed *> malloc(sizeof(Freed))


cdef void space_free(Space *space, Freed *node, uint64_t start, uint64_t width) noexcept nogil:
    # Blocks that lie one after the other, as most do, share a node: a disk is often trimmed as a whole.
    if space.fresh != NULL and space.fresh.start + space.fresh.width == start:
        space.fresh.width += width
        free(node)
        return
    node.start = start
    node.width = width
    node.next = space.fresh
    space.fresh = node


cdef Freed *joined(Freed *list, Freed *tail) noexcept nogil:
    """`list` with `tail` behind it."""
    cdef Freed *last = list
    if list == NULL:
        return tail
    while last.next != NULL:
        last = last.next
    last.next = tail
    return list


cdef void space_freeze(Space *space) noexcept nogil:
    space.frozen = joined(space.fresh, space.frozen)
    space.fresh = NULL


cdef void space_durable(Space *space) noexcept nogil:
    space.durable = joined(space.frozen, space.durable)
    space.frozen = NULL


cdef Freed *release_all(Space *space, Freed *node) noexcept nogil:
    cdef Freed *following
    while node != NULL:
        following = node.next
        space_release(space, node.start, node.width)
        free(node)
        node = following
    return NULL


cdef void space_drain(Space *space) noexcept nogil:
    cdef Epoch *epoch = &space.epoch
    cdef int _round
    for _round in range(2):
        # The side that requests counted on before the last flip.
        if space.draining != NULL:
            if load_relaxed32(&epoch.inside[16 * ((epoch.word & 1) ^ 1)]):
                return
            # Orders the last I/O of those that left before whatever is done with the space.
            fence_full()
            space.draining = release_all(space, space.draining)
        if space.durable == NULL:
            return
        # The older side must be empty before it takes the new requests, or theirs would be mixed with older ones.
        if load_relaxed32(&epoch.inside[16 * ((epoch.word & 1) ^ 1)]):
            return
        space.draining = space.durable
        space.durable = NULL
        exchange64(&epoch.word, epoch.word + 1)    # a full fence too: the count below is read after the flip
        fence_full()


cdef void space_settle(Space *space) noexcept nogil:
    space.fresh = release_all(space, space.fresh)
    space.frozen = release_all(space, space.frozen)
    space.durable = release_all(space, space.durable)
    space.draining = release_all(space, space.draining)


cdef Freed *discard(Freed *node) noexcept nogil:
    cdef Freed *following
    while node != NULL:
        following = node.next
        free(node)
        node = following
    return NULL


cdef void space_destroy(Space *space) noexcept nogil:
    cdef int i
    space.fresh = discard(space.fresh)
    space.frozen = discard(space.frozen)
    space.durable = discard(space.durable)
    space.draining = discard(space.draining)
    for i in range(SPACE_PAGES):
        free(space.pages[i])
        space.pages[i] = NULL
