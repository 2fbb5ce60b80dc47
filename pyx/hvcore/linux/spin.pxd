# Bounded, adaptive spinning before a wait blocks. Spinning saves the two context switches of a wait that ends soon and
# wastes a CPU otherwise, so each waiter learns: it spins as long as recent waits took, and not at all when they were
# longer than SPIN_MAX_NS. A process never has more spinners than its CPUs less one.

from libc.stdint cimport uint32_t, uint64_t

from hvcore.linux.atomics cimport fetch_add32, load_relaxed32

cdef extern from "<sched.h>" nogil:
    # Between looks: a peer that shares this CPU cannot answer while we spin. Returns at once when nobody else wants the
    # CPU; without it two waiters on one CPU each spin their whole time in vain.
    int spin_yield "sched_yield"()

cdef enum:
    SPIN_MAX_NS = 60000          # about the cost of blocking and being woken on a virtual machine
    SPIN_MIN_NS = 4000

ctypedef struct SpinBudget:
    uint32_t spinning            # spinners now
    uint32_t limit               # of this process

ctypedef struct Spinner:
    SpinBudget *budget
    uint64_t limit_ns            # what the last waits were worth


cdef inline bint spin_begin(Spinner *spinner) noexcept nogil:
    """Whether this waiter may spin now; spin_end must follow when it may."""
    if spinner.limit_ns == 0 or load_relaxed32(&spinner.budget.spinning) >= spinner.budget.limit:
        return False
    if fetch_add32(&spinner.budget.spinning, 1) >= spinner.budget.limit:
        fetch_add32(&spinner.budget.spinning, <uint32_t> -1)
        return False
    return True


cdef inline void spin_end(Spinner *spinner) noexcept nogil:
    fetch_add32(&spinner.budget.spinning, <uint32_t> -1)


cdef inline void spin_learn(Spinner *spinner, uint64_t waited_ns) noexcept nogil:
    """waited_ns: how long the wait that just ended has blocked, after spinning in vain."""
    if waited_ns <= SPIN_MAX_NS:
        spinner.limit_ns = min(<uint64_t> SPIN_MAX_NS, max(2 * spinner.limit_ns, <uint64_t> SPIN_MIN_NS))
    else:
        spinner.limit_ns //= 2
        if spinner.limit_ns < SPIN_MIN_NS:
            spinner.limit_ns = 0
