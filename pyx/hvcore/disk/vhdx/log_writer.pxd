# Headers and log of a VHDX that is open for writing (disk-formats.md 3, 9, 10). Every call here is one after the other:
# the owner's flush lock is held.
#
# The log never wraps: when an entry would pass the ring's end the log is closed and opened anew (O7), because other
# readers mistake entries of an earlier lap (17). The tail of every entry is the entry itself: the pages of the entry
# before it are applied at once, and its owner flushes before it appends.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.disk.medium cimport Medium

cdef enum:
    LOG_PAGE = 4096
    LOG_PAGES_MAX = 252          # in one entry: 2 sectors of descriptors, and rule 20's two sectors in a ring of 1 MiB

ctypedef struct LogWriter:
    Medium *medium
    const uint64_t *file_size    # where the file ends now; words loaded with acquire
    uint64_t durable_size        # where it ended, at least, when the last flush began
    # The current header.
    uint64_t header_sequence
    uint8_t[16] file_write_guid  # as on disk, like the other two
    uint8_t[16] data_write_guid
    uint8_t[16] log_guid         # zero: the log is closed
    uint64_t log_offset
    uint32_t log_length
    uint32_t copy                # 0 or 1
    # The log, once it is open.
    bint is_open
    uint64_t sequence            # of the last entry
    uint32_t position            # in the ring, of the next entry
    uint8_t *buffer              # one entry


# A new random GUID (version 4) as on disk. False: there is no randomness.
cdef bint random_guid(uint8_t *guid) noexcept nogil
# All of these return a DiskStatus; a failure poisons the medium (rule 12).
# The flush of the order of operations: everything written before it is durable.
cdef int log_sync(LogWriter *log) noexcept nogil
# Twice, so that both copies say the same (HU x 2 of O1, O2, O10).
cdef int header_update(LogWriter *log) noexcept nogil
# O1. end: where the last structure of the file ends. Its flush covers all that was written before the call.
cdef int log_open(LogWriter *log, uint64_t end) noexcept nogil
# O10. All pages of all entries have been applied. Its flush covers all that was written before the call.
cdef int log_close(LogWriter *log) noexcept nogil
# Whether an entry of so many pages can be appended.
cdef bint log_fits(const LogWriter *log, uint64_t count) noexcept nogil
# Makes an entry durable. The caller has flushed after it applied the entry before.
cdef int log_append(LogWriter *log, const uint64_t *places, const uint8_t *pages, uint64_t count,
                    uint64_t end) noexcept nogil
cdef void log_free(LogWriter *log) noexcept nogil
# Writes the pages of a durable entry to their places.
cdef int log_apply(LogWriter *log, const uint64_t *places, const uint8_t *pages, uint64_t count) noexcept nogil
