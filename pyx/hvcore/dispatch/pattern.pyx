"""Known content of disks: a pattern of offset and seed, and generations of blocks that a load wrote (pattern.pxd)."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

UNITS_MAX = 1 << 26              # 512 MiB of bookkeeping
FAULTS = ("none", "stale", "torn", "wrong")              # by Fault

cdef enum:
    USER_SHIFT = GENERATION_BITS
    USER_WRITE = 0xffff


def fill_pattern(buffer, uint64_t offset, uint64_t seed, uint64_t generation=0):
    """Fills a buffer (a multiple of 8 bytes) with the content of the disk from byte `offset` on."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    if view.len % 8 == 0:
        pattern_fill(<uint8_t *> view.buf, offset, view.len, generation_seed(seed, generation))
    PyBuffer_Release(&view)


def holds_pattern(buffer, uint64_t offset, uint64_t seed, uint64_t generation=0):
    """Whether a buffer (a multiple of 8 bytes) has that content."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    cdef bint holds = view.len % 8 == 0 and pattern_holds(<const uint8_t *> view.buf, offset, view.len,
                                                          generation_seed(seed, generation))
    PyBuffer_Release(&view)
    return holds


cdef bint content_claim(Content *content, uint64_t offset, uint32_t length, bint write) noexcept nogil:
    cdef uint64_t first = (offset - content.first) // content.unit, count = length // content.unit, i, users
    for i in range(first, first + count):
        users = content.units[i] >> USER_SHIFT
        if users == USER_WRITE or (write and users):
            return False
    for i in range(first, first + count):
        content.units[i] += <uint64_t> (USER_WRITE if write else 1) << USER_SHIFT
    return True


cdef void content_release(
        Content *content, uint64_t offset, uint32_t length, bint write, uint64_t generation) noexcept nogil:
    cdef uint64_t first = (offset - content.first) // content.unit, count = length // content.unit, i
    for i in range(first, first + count):
        if write:
            content.units[i] = generation
        else:
            content.units[i] -= <uint64_t> 1 << USER_SHIFT


cdef void content_drop(Content *content, uint64_t offset, uint32_t length, bint write) noexcept nogil:
    cdef uint64_t first = (offset - content.first) // content.unit, count = length // content.unit, i
    for i in range(first, first + count):
        if write:
            content.units[i] &= generation_unknown()
        else:
            content.units[i] -= <uint64_t> 1 << USER_SHIFT


cdef int unit_fault(Content *content, const uint8_t *data, uint64_t offset, uint64_t expected) noexcept nogil:
    """What a unit that does not hold `expected` holds."""
    cdef uint64_t at, found
    cdef uint64_t old = 0, new = 0
    for at in range(0, content.unit, 8):
        found = pattern_generation(data + at, offset + at, content.seed)
        if found == expected:
            new += 1
        elif found < expected and (found or content.known):
            old += 1
        else:
            return FAULT_WRONG
    return FAULT_TORN if new else FAULT_STALE


cdef int content_check(Content *content, const uint8_t *data, uint64_t offset, uint32_t length,
                       uint64_t *wrong_offset, uint64_t *checked) noexcept nogil:
    cdef uint64_t unit = (offset - content.first) // content.unit
    cdef uint64_t expected, before = generation_unknown()
    cdef uint32_t at = 0, i
    cdef int fault, last = FAULT_NONE, worst = FAULT_NONE
    for i in range(length // content.unit):
        at = i * content.unit
        expected = content.units[unit] & generation_unknown()
        unit += 1
        if expected == generation_unknown() or (expected == 0 and not content.known):
            before = generation_unknown()
            continue
        checked[0] += content.unit
        fault = FAULT_NONE
        if not pattern_holds(data + at, offset + at, content.unit, generation_seed(content.seed, expected)):
            fault = unit_fault(content, data + at, offset + at, expected)
        # Two units of one write, of which one has it and the other has not: the write was torn between them.
        if expected == before and expected and (fault == FAULT_STALE) != (last == FAULT_STALE):
            fault = max(fault, <int> FAULT_TORN)
        if fault and not worst:
            wrong_offset[0] = offset + at
        worst = max(worst, fault)
        before, last = expected, fault
    return worst


@cython.final
cdef class KnownContent:
    """What the blocks of a range of a disk hold, kept over several loads so that lost, torn and wrong blocks are found.

    A read is compared with the last write of its block; an older generation there is "stale", a mixture of the last and
    older ones "torn", everything else "wrong". first, length: the range in bytes; unit: the smallest block size.
    pattern_seed: the range holds the pattern of that seed; None: nothing is known of a block before it is written.
    Blocks whose write failed, and trimmed ones, are not compared until they are written again. 8 bytes of memory for
    each unit that is used. One load at a time.
    """

    def __cinit__(self, uint64_t first, uint64_t length, uint32_t unit, pattern_seed=None):
        if unit < 8 or unit % 8 or length % unit:
            raise ValueError(f"{length} bytes are not a number of units of {unit} bytes, a multiple of 8")
        if length // unit > UNITS_MAX:
            raise ValueError(f"a range of {length} bytes has more than {UNITS_MAX} blocks of {unit} bytes to keep "
                             "account of: give a smaller range or larger blocks")
        self.content.units = <uint64_t *> calloc(length // unit, sizeof(uint64_t))
        if self.content.units == NULL:
            raise MemoryError
        self.content.first = first
        self.content.count = length // unit
        self.content.unit = unit
        self.content.known = pattern_seed is not None
        self.content.seed = pattern_seed or 0

    def __dealloc__(self):
        free(self.content.units)

    def settle(self):
        """After a load that was abandoned: what was being written is unknown, nothing is in flight."""
        cdef uint64_t i
        for i in range(self.content.count):
            if self.content.units[i] >> USER_SHIFT == USER_WRITE:
                self.content.units[i] = generation_unknown()
            self.content.units[i] &= generation_unknown()

    def generation(self, uint64_t offset):
        """Of the block at byte `offset`: the number of the write whose content it holds; 0: none yet; None: unknown."""
        if (offset < self.content.first
                or offset - self.content.first >= self.content.count * self.content.unit):
            raise ValueError(f"byte {offset} is not in the range")
        held = self.content.units[(offset - self.content.first) // self.content.unit] & generation_unknown()
        return None if held == generation_unknown() else held

    def check(self, data, uint64_t offset):
        """(fault, offset of the first wrong unit or None, bytes compared) of what a read from `offset` on brought."""
        cdef Py_buffer view
        cdef uint64_t wrong = 0, checked = 0
        cdef int fault
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            end = self.content.first + self.content.count * self.content.unit
            if offset < self.content.first or offset + view.len > end or view.len % self.content.unit:
                raise ValueError(f"{view.len} bytes from byte {offset} are not units of the range")
            fault = content_check(&self.content, <const uint8_t *> view.buf, offset, view.len, &wrong, &checked)
        finally:
            PyBuffer_Release(&view)
        return FAULTS[fault], wrong if fault else None, checked
