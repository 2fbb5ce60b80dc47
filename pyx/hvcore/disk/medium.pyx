"""Reads, writes, flushes and holes of an image file, in one place; for compiled callers only."""

from libc.errno cimport EAGAIN, EDQUOT, EFBIG, EINTR, ENOSPC, EOPNOTSUPP
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from hvcore.disk.ops cimport (DISK_NO_SPACE, DISK_NOWAIT, DISK_OK, DISK_READ_ERROR, DISK_UNSUPPORTED, DISK_WOULD_BLOCK,
                              DISK_WRITE_ERROR)
from hvcore.linux.atomics cimport load_acquire64, load_relaxed32, store_relaxed32, store_release64
from hvcore.linux.syscalls cimport RWF_NOWAIT, fdatasync, iovec, preadv2, pwritev2


cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <unistd.h>
    static inline int64_t hv_write_all(int fd, const void *data, uint64_t length) {
        const uint8_t *at = data;
        while (length) {
            ssize_t moved = write(fd, at, length);
            if (moved < 0 && errno == EINTR) continue;
            if (moved <= 0) return -1;
            at += moved;
            length -= (uint64_t) moved;
        }
        return 0;
    }
    static inline int hv_punch_hole(int fd, uint64_t offset, uint64_t length) {
        int flags = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        return fallocate(fd, flags, (off_t) offset, (off_t) length) < 0 ? -errno : 0;
    }
    """
    int64_t write_all "hv_write_all"(int fd, const void *data, uint64_t length) noexcept nogil
    int punch_hole "hv_punch_hole"(int fd, uint64_t offset, uint64_t length) noexcept nogil


cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef extern from "<unistd.h>" nogil:
    int close_fd "close"(int fd)


cdef void medium_init(Medium *medium, int fd) noexcept nogil:
    medium.fd = fd
    medium.journal_fd = -1
    medium.poison = medium.blocking_reads = medium.blocking_writes = 0
    medium.flushes = 0
    pthread_mutex_init(&medium.flush_lock, NULL)
    pthread_mutex_init(&medium.journal_lock, NULL)


cdef void medium_close(Medium *medium) noexcept nogil:
    if medium.fd >= 0:
        close_fd(medium.fd)
        medium.fd = -1
        pthread_mutex_destroy(&medium.flush_lock)
        pthread_mutex_destroy(&medium.journal_lock)


cdef int journal_put(Medium *medium, uint32_t kind, uint64_t offset, uint64_t length, const iovec *iov) noexcept nogil:
    """Appends a record, and for a write the first `length` bytes of the buffers. -1: the journal cannot be written."""
    cdef JournalRecord record
    cdef uint64_t part
    cdef int64_t result
    record.kind = kind
    record.reserved = 0
    record.offset = offset
    record.length = length
    pthread_mutex_lock(&medium.journal_lock)
    result = write_all(medium.journal_fd, &record, sizeof(record))
    while kind == JOURNAL_WRITE and length and result == 0:
        part = length if length < iov.iov_len else iov.iov_len
        result = write_all(medium.journal_fd, iov.iov_base, part)
        length -= part
        iov = iov + 1
    pthread_mutex_unlock(&medium.journal_lock)
    return -1 if result else 0


cdef int medium_read(Medium *medium, uint64_t offset, const iovec *iov, int count, uint64_t total,
                     uint32_t flags) noexcept nogil:
    cdef int nowait = RWF_NOWAIT if flags & DISK_NOWAIT else 0
    cdef uint64_t skip = 0
    cdef int64_t moved
    cdef iovec piece
    if nowait and load_relaxed32(&medium.blocking_reads):
        return DISK_WOULD_BLOCK
    while total:
        if skip:                                   # the rest of a buffer that was filled in part
            piece.iov_base = <uint8_t *> iov.iov_base + skip
            piece.iov_len = iov.iov_len - skip
            moved = preadv2(medium.fd, &piece, 1, offset, nowait)
        else:
            moved = preadv2(medium.fd, iov, count, offset, nowait)
        if moved == -EINTR:
            continue
        if nowait and moved == -EAGAIN:
            return DISK_WOULD_BLOCK
        if nowait and moved == -EOPNOTSUPP:
            store_relaxed32(&medium.blocking_reads, 1)
            return DISK_WOULD_BLOCK
        if moved <= 0:                             # 0: the file ends before the disk does
            return DISK_READ_ERROR
        total -= moved
        offset += moved
        skip += moved
        while total and skip >= iov.iov_len:
            skip -= iov.iov_len
            iov = iov + 1
            count -= 1
    return DISK_OK


cdef int write_status(int64_t code) noexcept nogil:
    if code == -ENOSPC or code == -EDQUOT or code == -EFBIG:
        return DISK_NO_SPACE
    return DISK_WRITE_ERROR


cdef int medium_write(Medium *medium, uint64_t offset, const iovec *iov, int count, uint64_t total,
                      uint32_t flags) noexcept nogil:
    cdef int nowait = RWF_NOWAIT if flags & DISK_NOWAIT else 0
    cdef uint64_t skip = 0
    cdef int64_t moved
    cdef iovec piece
    cdef const iovec *source
    if load_relaxed32(&medium.poison):
        return DISK_WRITE_ERROR
    if nowait and load_relaxed32(&medium.blocking_writes):
        return DISK_WOULD_BLOCK
    while total:
        if skip:
            piece.iov_base = <uint8_t *> iov.iov_base + skip
            piece.iov_len = iov.iov_len - skip
            source = &piece
            moved = pwritev2(medium.fd, source, 1, offset, nowait)
        else:
            source = iov
            moved = pwritev2(medium.fd, source, count, offset, nowait)
        if moved == -EINTR:
            continue
        # After a part was written this is still right: the caller comes again with all of it.
        if nowait and moved == -EAGAIN:
            return DISK_WOULD_BLOCK
        if nowait and moved == -EOPNOTSUPP:
            store_relaxed32(&medium.blocking_writes, 1)
            return DISK_WOULD_BLOCK
        if moved <= 0:
            return write_status(moved)
        if medium.journal_fd >= 0 and journal_put(medium, JOURNAL_WRITE, offset, moved, source):
            return DISK_WRITE_ERROR
        total -= moved
        offset += moved
        skip += moved
        while total and skip >= iov.iov_len:
            skip -= iov.iov_len
            iov = iov + 1
            count -= 1
    return DISK_OK


cdef int medium_flush(Medium *medium) noexcept nogil:
    """One fdatasync at a time: the kernel reports a write-back error once, to one caller; a parallel fdatasync might
    return success over lost data (disk-formats.md 11, rule 12). A failure is for ever: the page cache may call pages
    clean that never reached the disk.
    """
    # Acquire: the number is read after the caller's writes completed. A flush with a greater number began after that.
    cdef uint64_t seen = load_acquire64(&medium.flushes)
    cdef int result, status = DISK_OK
    pthread_mutex_lock(&medium.flush_lock)
    if medium.poison:
        status = -<int> medium.poison
    elif medium.flushes == seen:                   # else another caller's flush, begun after our writes, covered them
        store_release64(&medium.flushes, seen + 1)
        if medium.journal_fd >= 0 and journal_put(medium, JOURNAL_FLUSH, 0, 0, NULL):
            status = DISK_WRITE_ERROR
        else:
            result = fdatasync(medium.fd)
            while result == -EINTR:
                result = fdatasync(medium.fd)
            if result < 0:
                status = write_status(result)
            elif medium.journal_fd >= 0 and journal_put(medium, JOURNAL_FLUSHED, 0, 0, NULL):
                status = DISK_WRITE_ERROR
        if status != DISK_OK:
            store_relaxed32(&medium.poison, -status)
    pthread_mutex_unlock(&medium.flush_lock)
    return status


cdef int medium_punch(Medium *medium, uint64_t offset, uint64_t length) noexcept nogil:
    cdef int result
    if load_relaxed32(&medium.poison):
        return DISK_WRITE_ERROR
    result = punch_hole(medium.fd, offset, length)
    while result == -EINTR:
        result = punch_hole(medium.fd, offset, length)
    if result == -EOPNOTSUPP:
        return DISK_UNSUPPORTED
    if result < 0:
        return write_status(result)
    if medium.journal_fd >= 0 and journal_put(medium, JOURNAL_PUNCH, offset, length, NULL):
        return DISK_WRITE_ERROR
    return DISK_OK
