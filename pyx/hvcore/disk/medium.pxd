# The one place where hvcore touches an image file: every read, write, flush, hole and change of size goes through these
# functions, so that errors are judged alike, a log that waits for its replay is seen by every reader, and tests can
# watch and disturb all that reaches the file.
#
# Offsets are bytes in the file, already checked by the backend. Any number of threads may call at once.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from hvcore.linux.syscalls cimport iovec

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum JournalKind:
    JOURNAL_WRITE = 1            # completed write; its bytes follow the record
    JOURNAL_FLUSH = 2            # a flush begins: it covers the records of this file before this one
    JOURNAL_FLUSHED = 3          # that flush succeeded
    JOURNAL_PUNCH = 4            # the range reads as zeros
    JOURNAL_RESIZE = 5           # the file ends at `offset` now

# What is written to the journal, in host byte order.
ctypedef struct JournalRecord:
    uint32_t kind                # JournalKind
    uint32_t file                # number of the file in the order of opening under this probe
    uint64_t offset              # in the file
    uint64_t length              # bytes; of a write, also of the data that follows

# What a test does to the files that it watches.
ctypedef struct ProbeState:
    int journal_fd               # -1: no journal; not owned
    int error                    # errno that the call `fault_at` fails with; 0: a write of it stops half-way, once
    bint stays                   # all later calls fail as well
    uint64_t fault_at            # the call to disturb, from 1 on; 0: none
    uint64_t calls               # reads, writes, flushes, holes and changes of size so far
    pthread_mutex_t lock

# A piece of a file as it will be once its log is replayed; disjoint and ascending in an overlay.
ctypedef struct OverlayPiece:
    uint64_t offset
    uint64_t length
    const uint8_t *data          # NULL: zeros

ctypedef struct OverlayState:
    OverlayPiece *pieces
    uint64_t count
    uint64_t file_size           # of the file itself
    uint64_t size                # as replay would leave it: not less; what lies between reads as zeros

ctypedef struct Medium:
    int fd                       # owned; -1: closed
    uint32_t file                # number for the journal
    uint32_t poison              # 0, or the negated DiskStatus of the flush that failed: nothing is promised after it
    uint32_t blocking_reads      # the file cannot tell whether a read would block
    uint32_t blocking_writes
    uint64_t flushes             # flushes begun; written under flush_lock
    const OverlayState *overlay  # NULL: none; a file with one is only read
    ProbeState *probe            # NULL outside tests
    pthread_mutex_t flush_lock

# total: the bytes of all buffers. All return a DiskStatus.
cdef int medium_read(Medium *medium, uint64_t offset, const iovec *iov, int count, uint64_t total,
                     uint32_t flags) noexcept nogil
cdef int medium_write(Medium *medium, uint64_t offset, const iovec *iov, int count, uint64_t total,
                      uint32_t flags) noexcept nogil
# All writes, holes and changes of size that completed before are durable.
cdef int medium_flush(Medium *medium) noexcept nogil
# DISK_UNSUPPORTED: the file system cannot.
cdef int medium_punch(Medium *medium, uint64_t offset, uint64_t length) noexcept nogil
# How many of `length` bytes (> 0) are alike: data, or a hole of the file. That number, or a DiskStatus.
cdef int64_t medium_mapped(Medium *medium, uint64_t offset, uint64_t length, bint *mapped) noexcept nogil
# New bytes read as zeros.
cdef int medium_resize(Medium *medium, uint64_t size) noexcept nogil
# Nothing that is written from now on is kept or promised: a write that other writes depend on has failed.
cdef void medium_poison(Medium *medium, int status) noexcept nogil
cdef int medium_read_bytes(Medium *medium, uint64_t offset, void *data, uint64_t length) noexcept nogil
cdef int medium_write_bytes(Medium *medium, uint64_t offset, const void *data, uint64_t length) noexcept nogil


cdef class Probe:
    cdef ProbeState state
    cdef readonly list names     # of the files, by number


cdef class Overlay:
    cdef OverlayState state
    cdef object kept             # owner of the pieces' data


cdef class ImageFile:
    cdef Medium medium
    cdef Probe probe
    cdef Overlay overlay
    cdef int check(self) except -1
