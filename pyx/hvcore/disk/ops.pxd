# What every disk backend offers to the floors above: a table of nogil functions and a state pointer.
#
# Contract. Offsets and lengths are bytes. The caller may pass any value (they come from a guest): the backend checks
# the range by subtraction, never asserts, and touches nothing on a refused call. Calls may run concurrently from any
# number of threads. A read delivers all its bytes or fails: what was in the buffers is then undefined, and nothing
# beyond them is touched. A write that failed may have written a part. After a flush returned DISK_OK every write that
# had completed before the flush began survives a power cut.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from hvcore.linux.syscalls cimport iovec

cdef enum DiskStatus:
    DISK_OK = 0
    DISK_RANGE = -1              # not within the disk
    DISK_READ_ONLY = -2          # a write, trim or flush of a disk that is opened for reading
    DISK_READ_ERROR = -3         # the medium could not be read (I/O error, image file shorter than it says)
    DISK_WRITE_ERROR = -4        # the medium could not be written or flushed
    DISK_NO_SPACE = -5           # the file system is full or a quota or file size limit is reached
    DISK_WOULD_BLOCK = -6        # under DISK_NOWAIT: nothing was done; call again without it where the call may block
    DISK_UNSUPPORTED = -7        # the backend has no such operation (trim)
    DISK_CLOSED = -8
    DISK_CORRUPT = -9            # metadata of the image that was read later proved damaged

# Few file systems can tell a write into the page cache that would wait from one that would not: with DISK_NOWAIT alone
# they refuse every write. Who can afford such a wait, but none for a flush or another request, says DISK_CACHED too.
cdef enum DiskFlag:
    DISK_NOWAIT = 1              # return DISK_WOULD_BLOCK rather than wait for the medium, where that can be told
    DISK_CACHED = 2              # of writes, beside it: a copy into the page cache is no wait, all else is

cdef enum:
    DISK_IOV_MAX = 1024          # most buffers in one call; more is DISK_RANGE

ctypedef struct DiskOps:
    int (*read)(void *state, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil
    int (*write)(void *state, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil
    int (*flush)(void *state) noexcept nogil
    int (*trim)(void *state, uint64_t offset, uint64_t length) noexcept nogil
    # How many of the `length` bytes (> 0) from `offset` on are alike: mapped, or without space and all zeros. That
    # number (> 0), or a DiskStatus. It may block, and what it says may have changed since. NULL: the backend cannot
    # tell.
    int64_t (*status)(void *state, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil

ctypedef struct DiskRef:
    const DiskOps *ops
    void *state                  # owned by the Backend object, valid until its close()
    uint64_t size_bytes          # a multiple of sector_size
    uint32_t sector_size         # logical: 512 or 4096
    uint32_t physical_sector_size
    bint read_only
    bint can_trim
    uint32_t trim_unit           # bytes whose trim gives space back, aligned to it; 0: any sector


cdef inline uint64_t iovec_bytes(const iovec *iov, int count) noexcept nogil:
    cdef uint64_t total = 0
    cdef int i
    for i in range(count):
        total += iov[i].iov_len
    return total


cdef inline int64_t iovec_span(uint64_t size, uint64_t offset, const iovec *iov, int count) noexcept nogil:
    """Bytes of the buffers; DISK_RANGE: too many buffers, or more bytes than lie between offset and size."""
    cdef uint64_t left, total = 0
    cdef int i
    if count < 0 or count > DISK_IOV_MAX or offset > size:
        return DISK_RANGE
    left = size - offset
    for i in range(count):
        if iov[i].iov_len > left - total:
            return DISK_RANGE
        total += iov[i].iov_len
    return <int64_t> total


cdef inline int disk_check(const DiskRef *disk, uint64_t offset, uint64_t length) noexcept nogil:
    """DISK_OK when the range lies within the disk; subtraction, so nothing wraps."""
    if offset > disk.size_bytes or disk.size_bytes - offset < length:
        return DISK_RANGE
    return DISK_OK


cdef inline int disk_read(
        const DiskRef *disk, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    return disk.ops.read(disk.state, offset, iov, count, flags)


cdef inline int disk_write(
        const DiskRef *disk, uint64_t offset, const iovec *iov, int count, uint32_t flags) noexcept nogil:
    return disk.ops.write(disk.state, offset, iov, count, flags)


cdef inline int disk_flush(const DiskRef *disk) noexcept nogil:
    return disk.ops.flush(disk.state)


cdef inline int64_t disk_status(
        const DiskRef *disk, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil:
    """See DiskOps.status; a backend that cannot tell has everything mapped."""
    if disk_check(disk, offset, length) != DISK_OK:
        return DISK_RANGE
    if disk.ops.status != NULL:
        return disk.ops.status(disk.state, offset, length, mapped)
    mapped[0] = True
    return <int64_t> length


cdef class Backend:
    """Owner of one disk backend; subclasses fill `ref` in their constructor."""
    cdef DiskRef ref             # ops is NULL once closed
    cdef object __weakref__
    cdef int check(self, uint64_t offset, uint64_t length) except -1


cdef object disk_error(int status)
