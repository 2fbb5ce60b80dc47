# Event flags and doorbells of one child partition: one shared page (docs/vmbus-user.md), flags as in the SynIC (EV-1 to
# EV-6). Both ends wait alike (design: clear own flags, drain, unmask, fence, re-check, sleep word, fence, re-check,
# block) and signal alike (publish, fence, mask, flag, sleep word, wake).
#
# The page is in the guest's hands. Nothing the guest writes into it can do more than lose its own wake-ups.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from hvcore.linux.atomics cimport (
    exchange32, exchange64, fence_full, fetch_and64, fetch_or64, load_acquire32, load_relaxed32, load_relaxed64,
    store_relaxed32)
from hvcore.linux.syscalls cimport eventfd_ring, futex_wait, futex_wake

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #ifndef HV_EVENT_PAGE
    #define HV_EVENT_PAGE
    typedef struct {
        uint64_t to_guest[32];          /* bit relid: the host signals the channel */
        uint64_t to_host[32];           /* bit relid: the guest signals the channel */
        uint32_t guest_sleep;           /* odd: the guest sleeps on this word as a futex */
        uint32_t pad[15];
        uint32_t host_sleep;            /* 1: the host sleeps on the doorbell */
    } hv_event_page;
    _Static_assert(offsetof(hv_event_page, to_host) == 256, "event page");
    _Static_assert(offsetof(hv_event_page, guest_sleep) == 512, "event page");
    _Static_assert(offsetof(hv_event_page, host_sleep) == 576, "event page");
    static inline int hv_compare_exchange32(uint32_t *word, uint32_t expected, uint32_t value) {
        return __atomic_compare_exchange_n(word, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    #endif
    """
    ctypedef struct EventPage "hv_event_page":
        uint64_t to_guest[32]
        uint64_t to_host[32]
        uint32_t guest_sleep
        uint32_t host_sleep
    bint compare_exchange32 "hv_compare_exchange32"(uint32_t *word, uint32_t expected, uint32_t value) noexcept nogil

cdef enum:
    EVENT_RELIDS = 2048


# Host side.

cdef inline bint event_signal_guest(EventPage *page, uint32_t relid) noexcept nogil:
    """Raises the channel's flag and wakes a sleeping guest; True when a wake-up was sent.

    The caller has published its index and seen that the mask is clear. The locked OR is the full barrier between that
    and
    the load of the sleep word: either the sleeper's re-check sees the flag, or we see that it sleeps.
    """
    fetch_or64(&page.to_guest[relid // 64], <uint64_t> 1 << (relid % 64))
    return event_wake_guest(page)


cdef inline bint event_wake_guest(EventPage *page) noexcept nogil:
    cdef uint32_t word = load_acquire32(&page.guest_sleep)
    # One waker takes an odd word to the next even one. Several threads of a guest may wait: a word that only went back
    # to 0 could be set again by a second waiter before the first one blocks, which would then sleep through its
    # wake-up.
    if word & 1 and compare_exchange32(&page.guest_sleep, word, word + 1):
        futex_wake(&page.guest_sleep, 0x7fffffff)
        return True
    return False


cdef inline void event_host_sleeps(EventPage *page) noexcept nogil:
    """Before the host's last look at flags and rings."""
    exchange32(&page.host_sleep, 1)          # a locked store: also the full fence before the re-check


cdef inline void event_host_wakes(EventPage *page) noexcept nogil:
    store_relaxed32(&page.host_sleep, 0)


cdef inline bint event_host_pending(EventPage *page) noexcept nogil:
    cdef int i
    for i in range(32):
        if load_relaxed64(&page.to_host[i]):
            return True
    return False


cdef inline void event_host_clear(EventPage *page) noexcept nogil:
    """Takes all flags, before any ring is looked at (EV-1)."""
    cdef int i
    for i in range(32):
        if load_relaxed64(&page.to_host[i]):
            exchange64(&page.to_host[i], 0)


# Guest side.

cdef inline void event_end_guest(EventPage *page) noexcept nogil:
    """Wakes every waiter of the guest, whose host is gone."""
    cdef uint32_t word = load_acquire32(&page.guest_sleep)
    if word & 1:
        compare_exchange32(&page.guest_sleep, word, word + 1)
    # In any case: a host that died between changing the word and the wake-up has left an even word and a sleeper.
    futex_wake(&page.guest_sleep, 0x7fffffff)


cdef inline bint event_signal_host(EventPage *page, uint32_t relid, int doorbell) noexcept nogil:
    """Raises the channel's flag and rings the doorbell of a sleeping host; True when it was rung."""
    fetch_or64(&page.to_host[relid // 64], <uint64_t> 1 << (relid % 64))
    if load_relaxed32(&page.host_sleep) and exchange32(&page.host_sleep, 0):
        eventfd_ring(doorbell)
        return True
    return False


cdef inline void event_guest_clear(EventPage *page, uint32_t relid) noexcept nogil:
    """Takes the channel's flag, before its ring is looked at (EV-1)."""
    cdef uint64_t bit = <uint64_t> 1 << (relid % 64)
    if load_relaxed64(&page.to_guest[relid // 64]) & bit:
        fetch_and64(&page.to_guest[relid // 64], ~bit)


cdef inline bint event_guest_pending(EventPage *page, uint32_t relid) noexcept nogil:
    return (load_relaxed64(&page.to_guest[relid // 64]) >> (relid % 64)) & 1


cdef inline uint32_t event_guest_sleeps(EventPage *page) noexcept nogil:
    """Before the guest's last look; returns what to pass to event_guest_wait."""
    cdef uint32_t word = load_relaxed32(&page.guest_sleep)
    while not word & 1:
        if compare_exchange32(&page.guest_sleep, word, word | 1):
            word |= 1
            break
        word = load_relaxed32(&page.guest_sleep)
    fence_full()                             # the word before the re-check of flags and rings
    return word


cdef inline int event_guest_wait(EventPage *page, uint32_t word, int64_t timeout_ns) noexcept nogil:
    """Blocks until woken, signalled (-EINTR), or -ETIMEDOUT; at once (-EAGAIN) when a wake-up came in between."""
    return futex_wait(&page.guest_sleep, word, timeout_ns)
