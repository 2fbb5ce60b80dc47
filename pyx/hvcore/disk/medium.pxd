# The one place where disk backends touch an image file: every read, write, flush and hole goes through these functions,
# so that errors are judged alike and a journal sees everything that reached the file.
#
# Offsets are bytes in the file, already checked by the backend. Any number of threads may call at once.

from libc.stdint cimport uint32_t, uint64_t

from hvcore.linux.syscalls cimport iovec

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef enum JournalKind:
    JOURNAL_WRITE = 1            # completed write; its bytes follow the record
    JOURNAL_FLUSH = 2            # a flush begins: it covers the records before this one
    JOURNAL_FLUSHED = 3          # that flush succeeded
    JOURNAL_PUNCH = 4            # the range reads as zeros

# What is written to the journal, in host byte order.
ctypedef struct JournalRecord:
    uint32_t kind                # JournalKind
    uint32_t reserved            # 0
    uint64_t offset              # in the file
    uint64_t length              # bytes; of a write, also of the data that follows

ctypedef struct Medium:
    int fd                       # owned
    int journal_fd               # -1: no journal; not owned
    uint32_t poison              # 0, or the negated DiskStatus of the flush that failed: nothing is promised after it
    uint32_t blocking_reads      # the file cannot tell whether a read would block
    uint32_t blocking_writes
    uint64_t flushes             # flushes begun; written under flush_lock
    pthread_mutex_t flush_lock
    pthread_mutex_t journal_lock

cdef void medium_init(Medium *medium, int fd) noexcept nogil
cdef void medium_close(Medium *medium) noexcept nogil
# total: the bytes of all buffers. Returns a DiskStatus.
cdef int medium_read(Medium *medium, uint64_t offset, const iovec *iov, int count, uint64_t total,
                     uint32_t flags) noexcept nogil
cdef int medium_write(Medium *medium, uint64_t offset, const iovec *iov, int count, uint64_t total,
                      uint32_t flags) noexcept nogil
cdef int medium_flush(Medium *medium) noexcept nogil
cdef int medium_punch(Medium *medium, uint64_t offset, uint64_t length) noexcept nogil
