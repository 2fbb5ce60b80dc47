# System calls that the data path makes. Each returns the call's result, or -errno: no errno travels between frames.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <linux/futex.h>
    #include <stdint.h>
    #include <sys/epoll.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <sys/timerfd.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    #ifndef HV_SYSCALLS
    #define HV_SYSCALLS
    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 8
    #endif
    /* Shared futexes (no PRIVATE flag): the word lies in memory of two processes. timeout_ns < 0 waits for ever. */
    static inline int hv_futex_wait(uint32_t *word, uint32_t expected, int64_t timeout_ns) {
        struct timespec limit = { timeout_ns / 1000000000, timeout_ns % 1000000000 };
        long result = syscall(SYS_futex, word, FUTEX_WAIT, expected, timeout_ns < 0 ? NULL : &limit, NULL, 0);
        return result < 0 ? -errno : 0;
    }
    static inline int hv_futex_wake(uint32_t *word, int waiters) {
        long result = syscall(SYS_futex, word, FUTEX_WAKE, waiters, NULL, NULL, 0);
        return result < 0 ? -errno : (int) result;
    }
    static inline int64_t hv_preadv2(int fd, const struct iovec *iov, int count, uint64_t offset, int flags) {
        ssize_t result = preadv2(fd, iov, count, (off_t) offset, flags);
        return result < 0 ? -errno : result;
    }
    static inline int64_t hv_pwritev2(int fd, const struct iovec *iov, int count, uint64_t offset, int flags) {
        ssize_t result = pwritev2(fd, iov, count, (off_t) offset, flags);
        return result < 0 ? -errno : result;
    }
    static inline int hv_fdatasync(int fd) { return fdatasync(fd) < 0 ? -errno : 0; }
    /* Adds one to an eventfd; EAGAIN (a full counter) still leaves it readable, which is all a doorbell says. */
    static inline int hv_eventfd_ring(int fd) {
        uint64_t one = 1;
        return write(fd, &one, sizeof one) < 0 ? -errno : 0;
    }
    /* A timer that is never read: each timer_at makes it unreadable until its time (CLOCK_MONOTONIC ns) has come. */
    static inline int hv_timer_new(void) {
        int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        return fd < 0 ? -errno : fd;
    }
    static inline int hv_timer_at(int fd, uint64_t ns) {
        struct itimerspec when = { .it_value = { (time_t) (ns / 1000000000), (long) (ns % 1000000000) } };
        return timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL) < 0 ? -errno : 0;
    }
    #endif
    """
    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len
    enum:
        RWF_NOWAIT
    int futex_wait "hv_futex_wait"(uint32_t *word, uint32_t expected, int64_t timeout_ns) noexcept nogil
    int futex_wake "hv_futex_wake"(uint32_t *word, int waiters) noexcept nogil
    int64_t preadv2 "hv_preadv2"(int fd, const iovec *iov, int count, uint64_t offset, int flags) noexcept nogil
    int64_t pwritev2 "hv_pwritev2"(int fd, const iovec *iov, int count, uint64_t offset, int flags) noexcept nogil
    int fdatasync "hv_fdatasync"(int fd) noexcept nogil
    int eventfd_ring "hv_eventfd_ring"(int fd) noexcept nogil
    int timer_new "hv_timer_new"() noexcept nogil
    int timer_at "hv_timer_at"(int fd, uint64_t ns) noexcept nogil
