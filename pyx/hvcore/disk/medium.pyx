"""Reads, writes, flushes, holes and sizes of an image file, in one place; compiled callers use the .pxd."""

import os
from bisect import bisect_right

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EDQUOT, EFBIG, EINTR, EINVAL, EIO, ENOSPC, ENXIO, EOPNOTSUPP
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from hvcore.disk.ops cimport (DISK_CACHED, DISK_NO_SPACE, DISK_NOWAIT, DISK_OK, DISK_READ_ERROR, DISK_UNSUPPORTED,
                              DISK_WOULD_BLOCK, DISK_WRITE_ERROR, disk_error)
from hvcore.disk.span cimport SPAN_PIECES, Span, span_begin, span_fill, span_take, span_zero
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
    /* SEEK_DATA or SEEK_HOLE; the descriptor's own position is used by nothing else. */
    static inline int64_t hv_seek(int fd, uint64_t offset, int whence) {
        off_t found = lseek(fd, (off_t) offset, whence);
        return found < 0 ? -errno : (int64_t) found;
    }
    static inline int hv_truncate(int fd, uint64_t size) {
        return ftruncate(fd, (off_t) size) < 0 ? -errno : 0;
    }
    """
    int64_t write_all "hv_write_all"(int fd, const void *data, uint64_t length) noexcept nogil
    enum:
        SEEK_DATA
        SEEK_HOLE
    int64_t seek "hv_seek"(int fd, uint64_t offset, int whence) noexcept nogil
    int punch_hole "hv_punch_hole"(int fd, uint64_t offset, uint64_t length) noexcept nogil
    int truncate_file "hv_truncate"(int fd, uint64_t size) noexcept nogil


cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef extern from "<unistd.h>" nogil:
    int close_fd "close"(int fd)


cdef int journal_put(Medium *medium, uint32_t kind, uint64_t offset, uint64_t length, const iovec *iov) noexcept nogil:
    """Appends a record, and for a write the first `length` bytes of the buffers. -1: the journal cannot be written."""
    cdef ProbeState *probe = medium.probe
    cdef JournalRecord record
    cdef uint64_t part
    cdef int64_t result
    if probe == NULL or probe.journal_fd < 0:
        return 0
    record.kind = kind
    record.file = medium.file
    record.offset = offset
    record.length = length
    pthread_mutex_lock(&probe.lock)
    result = write_all(probe.journal_fd, &record, sizeof(record))
    while kind == JOURNAL_WRITE and length and result == 0:
        part = length if length < iov.iov_len else iov.iov_len
        result = write_all(probe.journal_fd, iov.iov_base, part)
        length -= part
        iov = iov + 1
    pthread_mutex_unlock(&probe.lock)
    return -1 if result else 0


cdef int probe_call(Medium *medium, bint *half) noexcept nogil:
    """Counts a call. Returns 0, or the negated errno that it shall fail with; half: a write shall stop half-way."""
    cdef ProbeState *probe = medium.probe
    cdef int result = 0
    half[0] = False
    if probe == NULL:
        return 0
    pthread_mutex_lock(&probe.lock)
    probe.calls += 1
    if probe.fault_at and (probe.calls == probe.fault_at or (probe.stays and probe.calls > probe.fault_at)):
        result = -probe.error
        half[0] = probe.error == 0
    pthread_mutex_unlock(&probe.lock)
    return result


cdef int overlay_read(Medium *medium, uint64_t offset, const iovec *iov, uint64_t total, uint32_t flags) noexcept nogil:
    """A read that pieces of the overlay may cover, or that may pass the end of the file itself."""
    cdef const OverlayState *overlay = medium.overlay
    cdef uint64_t low = 0, high = overlay.count, middle, run
    cdef Span span
    cdef iovec[SPAN_PIECES] pieces
    cdef const OverlayPiece *piece
    cdef int n, status
    while low < high:                              # the first piece that ends behind offset
        middle = (low + high) // 2
        if overlay.pieces[middle].offset + overlay.pieces[middle].length <= offset:
            low = middle + 1
        else:
            high = middle
    span_begin(&span, iov)
    while total:
        piece = overlay.pieces + low
        run = total
        if low < overlay.count and piece.offset <= offset:
            if run >= piece.offset + piece.length - offset:
                run = piece.offset + piece.length - offset
                low += 1
            if piece.data == NULL:
                span_zero(&span, run)
            else:
                span_fill(&span, piece.data + (offset - piece.offset), run)
        else:
            if low < overlay.count and run > piece.offset - offset:
                run = piece.offset - offset
            if offset >= overlay.size:
                return DISK_READ_ERROR
            if offset >= overlay.file_size:
                if run > overlay.size - offset:
                    run = overlay.size - offset
                span_zero(&span, run)
            else:
                if run > overlay.file_size - offset:
                    run = overlay.file_size - offset
                run = span_take(&span, pieces, &n, run)
                status = file_read(medium, offset, pieces, n, run, flags)
                if status != DISK_OK:
                    return status
        offset += run
        total -= run
    return DISK_OK


cdef int medium_read(Medium *medium, uint64_t offset, const iovec *iov, int count, uint64_t total,
                     uint32_t flags) noexcept nogil:
    if medium.overlay != NULL:
        return overlay_read(medium, offset, iov, total, flags)
    return file_read(medium, offset, iov, count, total, flags)


cdef int file_read(Medium *medium, uint64_t offset, const iovec *iov, int count, uint64_t total,
                   uint32_t flags) noexcept nogil:
    cdef int nowait = RWF_NOWAIT if flags & DISK_NOWAIT else 0
    cdef uint64_t skip = 0
    cdef int64_t moved
    cdef iovec piece
    cdef bint half
    if nowait and load_relaxed32(&medium.blocking_reads):
        return DISK_WOULD_BLOCK
    if medium.probe != NULL and probe_call(medium, &half):
        return DISK_READ_ERROR
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
    cdef int nowait = RWF_NOWAIT if flags & (DISK_NOWAIT | DISK_CACHED) == DISK_NOWAIT else 0
    cdef uint64_t skip = 0
    cdef int64_t moved
    cdef iovec piece
    cdef const iovec *source
    cdef bint half = False
    if load_relaxed32(&medium.poison):
        return DISK_WRITE_ERROR
    if nowait and load_relaxed32(&medium.blocking_writes):
        return DISK_WOULD_BLOCK
    if medium.probe != NULL:
        moved = probe_call(medium, &half)
        if moved < 0:
            return write_status(moved)
    while total:
        if half:
            piece.iov_base = iov.iov_base
            piece.iov_len = (iov.iov_len + 1) // 2
            source = &piece
            moved = pwritev2(medium.fd, source, 1, offset, nowait)
            half = False
        elif skip:
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
        if medium.probe != NULL and journal_put(medium, JOURNAL_WRITE, offset, moved, source):
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
        result = sync(medium)
        if result < 0:
            status = write_status(result)
            store_relaxed32(&medium.poison, -status)
    pthread_mutex_unlock(&medium.flush_lock)
    return status


cdef int sync(Medium *medium) noexcept nogil:
    """fdatasync with its records in the journal. Returns 0 or a negated errno."""
    cdef bint half
    cdef int result = probe_call(medium, &half)
    if result == 0 and journal_put(medium, JOURNAL_FLUSH, 0, 0, NULL):
        result = -EIO
    if result == 0:
        result = fdatasync(medium.fd)
        while result == -EINTR:
            result = fdatasync(medium.fd)
    if result == 0 and journal_put(medium, JOURNAL_FLUSHED, 0, 0, NULL):
        result = -EIO
    return result


cdef int medium_punch(Medium *medium, uint64_t offset, uint64_t length) noexcept nogil:
    cdef bint half
    cdef int result
    if load_relaxed32(&medium.poison):
        return DISK_WRITE_ERROR
    result = probe_call(medium, &half)
    if result == 0:
        result = punch_hole(medium.fd, offset, length)
        while result == -EINTR:
            result = punch_hole(medium.fd, offset, length)
    if result == -EOPNOTSUPP:
        return DISK_UNSUPPORTED
    if result < 0:
        return write_status(result)
    return DISK_WRITE_ERROR if journal_put(medium, JOURNAL_PUNCH, offset, length, NULL) else DISK_OK


cdef int64_t medium_mapped(Medium *medium, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    cdef int64_t at
    cdef bint half
    cdef int result = probe_call(medium, &half)
    if result:
        return DISK_READ_ERROR
    mapped[0] = True
    if medium.overlay != NULL:                     # what a log will change is not in the file
        return <int64_t> length
    at = seek(medium.fd, offset, SEEK_DATA)
    if at == -ENXIO:                               # nothing but a hole from here to the end of the file
        mapped[0] = False
        return <int64_t> length
    if at == -EINVAL:                              # the file system, or a device, knows no holes
        return <int64_t> length
    if at < 0:
        return DISK_READ_ERROR
    mapped[0] = <uint64_t> at == offset
    if mapped[0]:
        at = seek(medium.fd, offset, SEEK_HOLE)
        if at < 0:
            return DISK_READ_ERROR
    if <uint64_t> at <= offset:                    # a hole was made, or filled, between the two questions
        return <int64_t> length
    return at - <int64_t> offset if <uint64_t> at - offset < length else <int64_t> length


cdef int medium_resize(Medium *medium, uint64_t size) noexcept nogil:
    cdef bint half
    cdef int result
    if load_relaxed32(&medium.poison):
        return DISK_WRITE_ERROR
    result = probe_call(medium, &half)
    if result == 0:
        result = truncate_file(medium.fd, size)
        while result == -EINTR:
            result = truncate_file(medium.fd, size)
    if result < 0:
        return write_status(result)
    return DISK_WRITE_ERROR if journal_put(medium, JOURNAL_RESIZE, size, 0, NULL) else DISK_OK


cdef void medium_poison(Medium *medium, int status) noexcept nogil:
    store_relaxed32(&medium.poison, -status)


cdef int medium_read_bytes(Medium *medium, uint64_t offset, void *data, uint64_t length) noexcept nogil:
    cdef iovec vector
    vector.iov_base = data
    vector.iov_len = length
    return medium_read(medium, offset, &vector, 1, length, 0)


cdef int medium_write_bytes(Medium *medium, uint64_t offset, const void *data, uint64_t length) noexcept nogil:
    cdef iovec vector
    vector.iov_base = <void *> data
    vector.iov_len = length
    return medium_write(medium, offset, &vector, 1, length, 0)


@cython.final
cdef class Probe:
    """Watches and disturbs the files that are opened under it (hvcore.disk.probe), for tests of durability.

    journal: a descriptor that receives a JournalRecord (medium.pxd), and for a write its bytes, of all that reached a
    file; -1: none. It stays the caller's. A write is recorded from its buffers after it completed: nobody may change
    them before.
    """

    def __cinit__(self, int journal=-1):
        pthread_mutex_init(&self.state.lock, NULL)
        self.state.journal_fd = journal
        self.names = []

    @property
    def journal(self):
        """The descriptor; set it while no request runs."""
        return self.state.journal_fd

    @journal.setter
    def journal(self, int fd):
        self.state.journal_fd = fd

    @property
    def calls(self):
        """Reads, writes, flushes, holes and changes of size so far, in all files."""
        return self.state.calls

    def fail(self, uint64_t at, int error, bint stays=False):
        """Call number `at` from now on (1: the next) fails with the errno `error`, and with `stays` all calls after it.

        error 0: if the call is a write it stops half-way, as the kernel may; the rest is another write.
        """
        pthread_mutex_lock(&self.state.lock)
        self.state.error = error
        self.state.stays = stays
        self.state.fault_at = self.state.calls + at if at else 0
        pthread_mutex_unlock(&self.state.lock)

    def __dealloc__(self):
        pthread_mutex_destroy(&self.state.lock)


@cython.final
cdef class Overlay:
    """What replay would change in a file: `pieces` in the order of writing, each (offset, bytes) or (offset, number of
    zeros); `file_size`: bytes that the file has, `size`: that it will have (bytes).
    """

    def __cinit__(self, pieces, uint64_t file_size, uint64_t size):
        cdef uint64_t i
        starts, kept = [], []                      # disjoint, ascending; kept: (bytes or None, first byte used, length)
        for offset, content in pieces:
            length = content if isinstance(content, int) else len(content)
            data = None if isinstance(content, int) else content
            if length:
                overlay_put(starts, kept, offset, data, length)
        self.kept = [data for data, _, _ in kept]
        self.state.file_size = file_size
        self.state.size = max(size, file_size)
        self.state.count = len(starts)
        self.state.pieces = <OverlayPiece *> calloc(len(starts) + 1, sizeof(OverlayPiece))
        if self.state.pieces == NULL:
            raise MemoryError(f"no memory for {len(starts)} pieces of an overlay")
        for i in range(self.state.count):
            data, first, length = kept[i]
            self.state.pieces[i].offset = starts[i]
            self.state.pieces[i].length = length
            if data is not None:
                self.state.pieces[i].data = <const uint8_t *> PyBytes_AS_STRING(data) + <uint64_t> first

    def __dealloc__(self):
        free(self.state.pieces)


cdef int overlay_put(list starts, list kept, offset, data, length) except -1:
    """Lays a piece over those that are there."""
    end = offset + length
    index = bisect_right(starts, offset)
    if index and starts[index - 1] + kept[index - 1][2] > offset:
        index -= 1
    new_starts, new_kept = [], []
    stop = index
    while stop < len(starts) and starts[stop] < end:
        old, first, old_length = kept[stop]
        if starts[stop] < offset:
            new_starts.append(starts[stop])
            new_kept.append((old, first, offset - starts[stop]))
        stop += 1
    new_starts.append(offset)
    new_kept.append((data, 0, length))
    if stop > index and starts[stop - 1] + old_length > end:
        skipped = end - starts[stop - 1]
        new_starts.append(end)
        new_kept.append((old, first + skipped, old_length - skipped))
    starts[index:stop] = new_starts
    kept[index:stop] = new_kept
    return 0


@cython.final
cdef class ImageFile:
    """Owner of an open image file or block device, and of its locks.

    Backends keep it and use its medium; code that reads and writes structures uses its methods. They raise DiskError,
    and ValueError once it is closed. Offsets and lengths: bytes. Owns `fd` once the constructor has succeeded;
    close() may be called while no other call runs.
    """

    def __cinit__(self, int fd, *, Probe probe=None, str name=""):
        self.medium.fd = -1
        if fd < 0:
            raise ValueError(f"{fd} is no file descriptor")
        pthread_mutex_init(&self.medium.flush_lock, NULL)
        self.medium.fd = fd
        if probe is not None:
            self.probe = probe
            self.medium.probe = &probe.state
            self.medium.file = len(probe.names)
            probe.names.append(name)

    cdef int check(self) except -1:
        if self.medium.fd < 0:
            raise ValueError("the file is closed")
        return 0

    def fileno(self):
        self.check()
        return self.medium.fd

    def size(self):
        """Bytes of a regular file as it will be once an overlay is applied."""
        self.check()
        if self.overlay is not None:
            return self.overlay.state.size
        return os.fstat(self.medium.fd).st_size

    def lay(self, Overlay overlay not None):
        """From now on reads see the overlay; nobody may read at this moment. The file must not be written."""
        self.check()
        self.overlay = overlay
        self.medium.overlay = &overlay.state

    def read(self, uint64_t offset, uint64_t length):
        """Exactly `length` bytes; DiskError: the file is shorter, or fails."""
        self.check()
        result = PyBytes_FromStringAndSize(NULL, length)
        cdef char *data = PyBytes_AS_STRING(result)
        cdef int status
        with nogil:
            status = medium_read_bytes(&self.medium, offset, data, length)
        if status != DISK_OK:
            raise disk_error(status)
        return result

    def write(self, uint64_t offset, data):
        self.check()
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        cdef int status
        with nogil:
            status = medium_write_bytes(&self.medium, offset, view.buf, view.len)
        PyBuffer_Release(&view)
        if status != DISK_OK:
            raise disk_error(status)

    def flush(self):
        """All that was written before is durable. After a failure nothing is, and no call succeeds but reads."""
        self.check()
        cdef int status
        with nogil:
            status = medium_flush(&self.medium)
        if status != DISK_OK:
            raise disk_error(status)

    def punch(self, uint64_t offset, uint64_t length):
        """The range reads as zeros and takes no space; DiskError with EOPNOTSUPP where the file system cannot."""
        self.check()
        cdef int status
        with nogil:
            status = medium_punch(&self.medium, offset, length)
        if status != DISK_OK:
            raise disk_error(status)

    def resize(self, uint64_t size):
        """Cuts or extends the file, with zeros."""
        self.check()
        cdef int status
        with nogil:
            status = medium_resize(&self.medium, size)
        if status != DISK_OK:
            raise disk_error(status)

    def close(self):
        """Idempotent. Does not flush."""
        if self.medium.fd >= 0:
            close_fd(self.medium.fd)
            self.medium.fd = -1
            pthread_mutex_destroy(&self.medium.flush_lock)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __dealloc__(self):
        if self.medium.fd >= 0:
            close_fd(self.medium.fd)
            pthread_mutex_destroy(&self.medium.flush_lock)
