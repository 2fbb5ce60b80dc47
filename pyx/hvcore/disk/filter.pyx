"""A disk with rules in front of it: what a test does to a VM's disk while it runs (hvcore.disk.rules says how)."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from hvcore.disk.rules import OPERATIONS, STATUSES, parse

from hvcore.disk.ops cimport (
    DISK_IOV_MAX, DISK_NOWAIT, DISK_OK, DISK_READ_ERROR, DISK_WOULD_BLOCK, DISK_WRITE_ERROR, Backend, DiskOps,
    disk_read, disk_status, disk_write, iovec_bytes, iovec_span)
from hvcore.disk.span cimport Span, span_begin, span_next
from hvcore.linux.clock cimport clock_ns
from hvcore.linux.syscalls cimport iovec
from hvcore.linux.threads cimport (monitor_destroy, monitor_init, monitor_lock, monitor_unlock, monitor_wait,
                                   monitor_wake)

cdef enum:
    FILTER_IO_ERROR = 1          # as a rule's status: the read or the write error, as the operation is
    SECTOR_MAX = 4096


# The rules. All functions down to filter_judge are called under the lock.

cdef bint rule_matches(const FilterRule *rule, int operation, uint64_t offset, uint64_t length) noexcept nogil:
    if not rule.operations >> operation & 1:
        return False
    if rule.everywhere:
        return True
    if operation == FILTER_FLUSH or offset >= rule.end:
        return False
    return length > 0 if rule.first <= offset else rule.first - offset < length


cdef uint64_t rule_draw(uint64_t seed, uint64_t number) noexcept nogil:
    """32 bits that depend on both and on nothing else (the finaliser of splitmix64)."""
    cdef uint64_t x = seed + number * <uint64_t> 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t> 0x94D049BB133111EB
    return (x ^ (x >> 31)) >> 32


cdef bint rule_is_due(const FilterRule *rule) noexcept nogil:
    """Whether the rule acts on the request that `seen` counted last."""
    if rule.seen <= rule.after or (rule.times and rule.acted >= rule.times):
        return False
    if (rule.seen - rule.after) % rule.every:
        return False
    return rule_draw(rule.seed, rule.seen) < rule.chance


cdef bint space_taken(FilterRule *rule, uint64_t offset, uint64_t length) noexcept nogil:
    """Gives a write the blocks that it needs. False: they are not to be had, and none is given."""
    cdef uint64_t first = offset >> rule.block_shift, stop, n, needed = 0
    if length == 0 or offset >= rule.covers or rule.covers - offset < length:      # nothing, or beyond the disk
        return True
    stop = ((offset + length - 1) >> rule.block_shift) + 1
    for n in range(first, stop):
        if not rule.blocks[n >> 3] >> (n & 7) & 1:
            needed += <uint64_t> 1 << rule.block_shift
    if needed > rule.bytes - rule.used:
        return False
    for n in range(first, stop):
        rule.blocks[n >> 3] |= <uint8_t> (1 << (n & 7))
    rule.used += needed
    return True


cdef void space_given(FilterRule *rule, uint64_t offset, uint64_t length) noexcept nogil:
    """Takes back the blocks that lie wholly in a range that was trimmed."""
    cdef uint64_t block = <uint64_t> 1 << rule.block_shift, n
    if offset > rule.covers or rule.covers - offset < length:      # the disk has grown
        return
    for n in range((offset + block - 1) >> rule.block_shift, (offset + length) >> rule.block_shift):
        if rule.blocks[n >> 3] >> (n & 7) & 1:
            rule.blocks[n >> 3] &= <uint8_t> ~(1 << (n & 7))
            rule.used -= block


cdef inline int error_of(int status, int operation) noexcept nogil:
    if status != FILTER_IO_ERROR:
        return status
    return DISK_READ_ERROR if operation == FILTER_READ else DISK_WRITE_ERROR


cdef void filter_judge(
        FilterState *state, int operation, uint64_t offset, uint64_t length, FilterVerdict *verdict) noexcept nogil:
    """The rules in their order, each to the next, until one decides what becomes of the request."""
    cdef FilterRule *rule
    cdef int i
    cdef bint acts
    memset(verdict, 0, sizeof(FilterVerdict))
    verdict.generation = state.generation
    for i in range(state.rule_count):
        rule = &state.rules[i]
        if not rule_matches(rule, operation, offset, length):
            continue
        rule.seen += 1
        if rule.fate == FILTER_SPACE:
            acts = not space_taken(rule, offset, length)
        else:
            acts = rule_is_due(rule)
        if not acts:
            continue
        rule.acted += 1
        verdict.delay_ns += rule.delay_ns
        verdict.log = verdict.log or rule.log
        if rule.fate != FILTER_PASS:
            verdict.fate = FILTER_ERROR if rule.fate == FILTER_SPACE else rule.fate
            verdict.status = error_of(rule.status, operation)
            verdict.bytes = rule.bytes
            return


# Requests.

cdef int filter_look(FilterState *state, int operation, uint64_t offset, uint64_t length) noexcept nogil:
    """Under DISK_NOWAIT: DISK_OK when no rule is concerned. Else the request comes again where it may block, and is
    counted then."""
    cdef int i, status = DISK_OK
    monitor_lock(&state.monitor)
    if state.cut:
        status = DISK_WOULD_BLOCK
    for i in range(state.rule_count):
        if rule_matches(&state.rules[i], operation, offset, length):
            status = DISK_WOULD_BLOCK
            break
    monitor_unlock(&state.monitor)
    return status


cdef void filter_begin(
        FilterState *state, int operation, uint64_t offset, uint64_t length, FilterVerdict *verdict) noexcept nogil:
    """Judges the request, delays it, and leaves in the verdict what is to be done."""
    cdef uint64_t end
    monitor_lock(&state.monitor)
    filter_judge(state, operation, offset, length, verdict)
    if verdict.delay_ns:
        end = clock_ns() + verdict.delay_ns
        state.held += 1
        while state.generation == verdict.generation and not state.hurry and clock_ns() < end:
            monitor_wait(&state.monitor, <int64_t> end)
        state.held -= 1
        if state.generation != verdict.generation:     # its rule is no more, nor what it decided
            verdict.fate = FILTER_PASS
    if state.cut:
        verdict.fate = FILTER_ERROR
        verdict.status = error_of(FILTER_IO_ERROR, operation)
    elif verdict.fate == FILTER_CUT:
        state.cut = True
    monitor_unlock(&state.monitor)


cdef void filter_end(FilterState *state, const FilterVerdict *verdict, int operation, uint64_t started,
                     uint64_t offset, uint64_t length, int status) noexcept nogil:
    """Records the request, and gives back the space that a trim gave back."""
    cdef FilterRecord *record
    cdef int i
    if not verdict.log and (operation != FILTER_TRIM or status != DISK_OK):
        return
    monitor_lock(&state.monitor)
    if operation == FILTER_TRIM and status == DISK_OK and state.generation == verdict.generation:
        for i in range(state.rule_count):
            if state.rules[i].fate == FILTER_SPACE:
                space_given(&state.rules[i], offset, length)
    if verdict.log:
        record = &state.log[state.logged % FILTER_LOG_MAX]
        record.time_ns = started
        record.took_ns = clock_ns() - started
        record.offset = offset
        record.length = length
        record.operation = operation
        record.status = status
        state.logged += 1
    monitor_unlock(&state.monitor)


cdef int filter_tear(FilterState *state, uint64_t offset, const iovec *iov, int count, uint64_t keep) noexcept nogil:
    """Writes the first `keep` bytes of the buffers. The sector in which they end keeps the rest of what it held: all
    backends take whole sectors."""
    cdef iovec head[DISK_IOV_MAX]
    cdef uint8_t sector[SECTOR_MAX]
    cdef const DiskRef *disk = state.below
    cdef uint32_t size = disk.sector_size
    cdef int64_t total = iovec_span(disk.size_bytes, offset, iov, count)
    cdef uint64_t whole, part, left
    cdef uint8_t *data = NULL
    cdef Span span
    cdef iovec vector
    cdef int status = DISK_OK, pieces = 0
    if total < 0 or disk.read_only or offset % size:
        return disk_write(disk, offset, iov, count, 0)  # for the medium to refuse
    if keep > <uint64_t> total:
        keep = <uint64_t> total
    whole = keep - keep % size
    span_begin(&span, iov)
    left = whole
    while left:
        part = span_next(&span, left, &data)
        head[pieces].iov_base = data
        head[pieces].iov_len = part
        pieces += 1
        left -= part
    if whole:
        status = disk_write(disk, offset, head, pieces, 0)
    if status == DISK_OK and keep > whole:
        vector.iov_base = sector
        vector.iov_len = size
        status = disk_read(disk, offset + whole, &vector, 1, 0)
        left = keep - whole
        while status == DISK_OK and left:
            part = span_next(&span, left, &data)
            memcpy(&sector[keep - whole - left], data, part)
            left -= part
        if status == DISK_OK:
            status = disk_write(disk, offset + whole, &vector, 1, 0)
    return status


cdef int filter_read(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef FilterState *state = <FilterState *> pointer
    cdef uint64_t length = iovec_bytes(iov, count), started
    cdef FilterVerdict verdict
    cdef int status
    if flags & DISK_NOWAIT:
        status = filter_look(state, FILTER_READ, offset, length)
        return disk_read(state.below, offset, iov, count, flags) if status == DISK_OK else status
    started = clock_ns()
    filter_begin(state, FILTER_READ, offset, length, &verdict)
    if verdict.fate == FILTER_PASS:
        status = disk_read(state.below, offset, iov, count, flags)
    else:
        status = verdict.status
    filter_end(state, &verdict, FILTER_READ, started, offset, length, status)
    return status


cdef int filter_write(void *pointer, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    cdef FilterState *state = <FilterState *> pointer
    cdef uint64_t length = iovec_bytes(iov, count), started
    cdef FilterVerdict verdict
    cdef int status
    if flags & DISK_NOWAIT:
        status = filter_look(state, FILTER_WRITE, offset, length)
        return disk_write(state.below, offset, iov, count, flags) if status == DISK_OK else status
    started = clock_ns()
    filter_begin(state, FILTER_WRITE, offset, length, &verdict)
    if verdict.fate == FILTER_PASS:
        status = disk_write(state.below, offset, iov, count, flags)
    elif verdict.fate == FILTER_ERROR:
        status = verdict.status
    else:
        # What the medium itself refuses is said, whatever the rule would say.
        status = filter_tear(state, offset, iov, count, verdict.bytes)
        if status == DISK_OK:
            status = verdict.status
    filter_end(state, &verdict, FILTER_WRITE, started, offset, length, status)
    return status


cdef int filter_flush(void *pointer) noexcept nogil:
    cdef FilterState *state = <FilterState *> pointer
    cdef uint64_t started = clock_ns()
    cdef FilterVerdict verdict
    cdef int status
    filter_begin(state, FILTER_FLUSH, 0, 0, &verdict)
    if verdict.fate == FILTER_PASS:
        status = state.below.ops.flush(state.below.state)
    else:
        status = verdict.status
    filter_end(state, &verdict, FILTER_FLUSH, started, 0, 0, status)
    return status


cdef int filter_trim(void *pointer, uint64_t offset, uint64_t length) noexcept nogil:
    cdef FilterState *state = <FilterState *> pointer
    cdef uint64_t started = clock_ns()
    cdef FilterVerdict verdict
    cdef int status
    filter_begin(state, FILTER_TRIM, offset, length, &verdict)
    if verdict.fate == FILTER_PASS:
        status = state.below.ops.trim(state.below.state, offset, length)
    else:
        status = verdict.status
    filter_end(state, &verdict, FILTER_TRIM, started, offset, length, status)
    return status


cdef int64_t filter_status(void *pointer, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    return disk_status((<FilterState *> pointer).below, offset, length, mapped)


cdef DiskOps OPS
OPS.read = filter_read
OPS.write = filter_write
OPS.flush = filter_flush
OPS.trim = filter_trim
OPS.status = filter_status

cdef dict FATES = {"pass": FILTER_PASS, "error": FILTER_ERROR, "tear": FILTER_TEAR, "cut": FILTER_CUT,
                   "space": FILTER_SPACE}


cdef void rules_free(FilterRule *rules, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        free(rules[i].blocks)
        rules[i].blocks = NULL


@cython.final
cdef class FilterDisk(Backend):
    """The disk `below`, with rules in front of it (dicts, see hvcore.disk.rules); closes it.

    All may be called while requests run, except close(). A request under DISK_NOWAIT that concerns a rule is not done:
    it comes again where it may be held up.
    """

    def __cinit__(self, Backend below not None, rules=()):
        if below.ref.ops == NULL:
            raise ValueError("the disk is closed")
        if monitor_init(&self.state.monitor):
            raise MemoryError("no lock can be made")
        self.ready = True
        self.state.log = <FilterRecord *> malloc(FILTER_LOG_MAX * sizeof(FilterRecord))
        if self.state.log == NULL:
            raise MemoryError("no memory for the log")
        self.below = below
        self.state.below = &below.ref
        self.ref = below.ref
        self.ref.state = &self.state
        self.ref.ops = &OPS
        self.given = ()
        self.rules = rules

    @property
    def rules(self):
        """The rules, in their order. New ones take the place of all, with counts of their own, and restore the power;
        what the old ones delay goes on at once, untouched. ValueError names the rule and the key; the old ones stay.
        """
        return [dict(rule) for rule in self.given]

    @rules.setter
    def rules(self, rules):
        cdef FilterRule *new = <FilterRule *> calloc(FILTER_RULES_MAX, sizeof(FilterRule))
        cdef FilterRule *rule
        cdef FilterRule old
        cdef uint64_t size = self.below.ref.size_bytes
        cdef int count = 0, i
        if new == NULL:
            raise MemoryError("no memory for the rules")
        try:
            for each in parse(rules, size):
                rule = &new[count]
                count += 1
                rule.operations = each.operations
                rule.everywhere = each.range is None
                rule.first, rule.end = each.range or (0, 0)
                rule.after, rule.every, rule.times = each.after, each.every, each.times
                rule.chance, rule.seed = each.chance, each.seed
                rule.delay_ns = each.delay_ns
                rule.fate = FATES[each.fate]
                rule.status = each.status
                rule.bytes = each.bytes
                rule.log = each.log
                if rule.fate == FILTER_SPACE:
                    rule.block_shift = each.block.bit_length() - 1
                    rule.covers = size
                    rule.blocks = <uint8_t *> calloc((size >> rule.block_shift) // 8 + 1, 1)
                    if rule.blocks == NULL:
                        raise MemoryError("no memory for the blocks of a full disk")
            given = tuple(dict(each) for each in rules)
            with nogil:
                monitor_lock(&self.state.monitor)
                for i in range(FILTER_RULES_MAX):
                    old = self.state.rules[i]
                    self.state.rules[i] = new[i]
                    new[i] = old
                self.state.rule_count, count = count, self.state.rule_count
                self.state.generation += 1
                self.state.cut = False
                monitor_wake(&self.state.monitor)
                monitor_unlock(&self.state.monitor)
            self.given = given
        finally:
            rules_free(new, count)
            free(new)

    @property
    def counts(self):
        """For each rule: requests that it matched ("seen") and on which it acted ("acted"); those that an earlier rule
        decided it never saw.
        """
        cdef uint64_t seen[FILTER_RULES_MAX]
        cdef uint64_t acted[FILTER_RULES_MAX]
        cdef int count, i
        with nogil:
            monitor_lock(&self.state.monitor)
            count = self.state.rule_count
            for i in range(count):
                seen[i] = self.state.rules[i].seen
                acted[i] = self.state.rules[i].acted
            monitor_unlock(&self.state.monitor)
        return [{"seen": seen[i], "acted": acted[i]} for i in range(count)]

    def log(self):
        """(records, lost): what rules with "log" recorded since the last call, in the order of completion, and how many
        more there were. A record: time_ns (CLOCK_MONOTONIC), operation, offset, length (bytes), status ("ok", or as in
        a rule's "error"), took_ns.
        """
        cdef FilterRecord *copy = <FilterRecord *> malloc(FILTER_LOG_MAX * sizeof(FilterRecord))
        cdef uint64_t lost, n = 0, i
        if copy == NULL:
            raise MemoryError("no memory for the log")
        with nogil:
            monitor_lock(&self.state.monitor)
            lost = 0
            if self.state.logged - self.state.taken > FILTER_LOG_MAX:
                lost = self.state.logged - self.state.taken - FILTER_LOG_MAX
                self.state.taken += lost
            while self.state.taken < self.state.logged:
                copy[n] = self.state.log[self.state.taken % FILTER_LOG_MAX]
                self.state.taken += 1
                n += 1
            monitor_unlock(&self.state.monitor)
        names = {number: name for name, number in STATUSES.items()}
        names[DISK_OK] = "ok"
        try:
            records = [
                {
                    "time_ns": copy[i].time_ns,
                    "operation": OPERATIONS[copy[i].operation],
                    "offset": copy[i].offset,
                    "length": copy[i].length,
                    "status": names.get(copy[i].status, str(copy[i].status)),
                    "took_ns": copy[i].took_ns,
                }
                for i in range(n)
            ]
        finally:
            free(copy)
        return records, lost

    @property
    def held(self):
        """Requests that are being delayed at this moment."""
        cdef uint32_t held
        with nogil:
            monitor_lock(&self.state.monitor)
            held = self.state.held
            monitor_unlock(&self.state.monitor)
        return held

    @property
    def cut(self):
        """Whether a rule has cut the power."""
        cdef bint cut
        with nogil:
            monitor_lock(&self.state.monitor)
            cut = self.state.cut
            monitor_unlock(&self.state.monitor)
        return bool(cut)

    @property
    def delays(self):
        """False: nothing is delayed, whatever the rules say, and what is being delayed goes on. True at first."""
        return not self.state.hurry

    @delays.setter
    def delays(self, bint value):
        with nogil:
            monitor_lock(&self.state.monitor)
            self.state.hurry = not value
            monitor_wake(&self.state.monitor)
            monitor_unlock(&self.state.monitor)

    def resized(self):
        """The disk below has another size now. Rules with "space" do not know what it grew by."""
        self.ref.size_bytes = self.below.ref.size_bytes

    def extents(self):
        """Those of the disk below."""
        self.check(0, 0)
        return self.below.extents()

    def close(self):
        if self.ref.ops != NULL:
            Backend.close(self)
            self.below.close()

    def __dealloc__(self):
        rules_free(self.state.rules, self.state.rule_count)
        free(self.state.log)
        if self.ready:
            monitor_destroy(&self.state.monitor)
