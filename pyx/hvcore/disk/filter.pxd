# Rules between a disk and whoever uses it: delays, errors, torn writes, a full disk, a power cut, a log. All of it is
# decided under one lock, so that a rule's numbers are those of the requests in one order; a disk without rules has no
# filter in its path, so the lock costs nobody who has none.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.disk.ops cimport Backend, DiskRef
from hvcore.linux.threads cimport Monitor

cdef enum:
    FILTER_RULES_MAX = 64
    FILTER_LOG_MAX = 4096        # records that are kept

cdef enum FilterOperation:
    FILTER_READ = 0
    FILTER_WRITE = 1
    FILTER_FLUSH = 2
    FILTER_TRIM = 3

cdef enum FilterFate:
    FILTER_PASS = 0              # the next rule looks at the request; after the last one it goes to the medium
    FILTER_ERROR = 1             # `status`; the medium is not touched
    FILTER_TEAR = 2              # the first `bytes` of a write reach the medium, then `status`
    FILTER_CUT = 3               # as FILTER_TEAR, and from then on nothing reaches the medium or comes from it
    FILTER_SPACE = 4             # DISK_NO_SPACE once the blocks first written take more than `bytes`

ctypedef struct FilterRule:
    uint32_t operations          # bit n: FilterOperation n
    bint everywhere              # any place; else requests that touch [first, end), hence no flush
    uint64_t first
    uint64_t end
    uint64_t after               # so many matching requests are let through first
    uint64_t every               # then it acts on each `every`-th, from 1 on
    uint64_t times               # at most so often; 0: no limit
    uint64_t chance              # of 2**32, drawn from seed and number of each; 2**32: always
    uint64_t seed
    uint64_t delay_ns
    int fate                     # FilterFate
    int status                   # DiskStatus; FILTER_IO_ERROR: the one of the operation
    uint64_t bytes
    uint32_t block_shift         # FILTER_SPACE: log2 of the bytes that are allocated together
    uint8_t *blocks              # a bit for each block of the disk that has space; owned
    uint64_t covers              # bytes of the disk that they stand for: its size when the rule came
    uint64_t used                # bytes, of all blocks that have it
    bint log
    uint64_t seen                # requests that matched
    uint64_t acted               # and on which it acted

ctypedef struct FilterRecord:
    uint64_t time_ns             # CLOCK_MONOTONIC when the request came
    uint64_t took_ns
    uint64_t offset
    uint64_t length
    int operation                # FilterOperation
    int status                   # DiskStatus

ctypedef struct FilterVerdict:
    int fate
    int status
    uint64_t bytes
    uint64_t delay_ns
    uint32_t generation
    bint log

ctypedef struct FilterState:
    Monitor monitor              # guards all below but `below`; wakes what is being delayed
    const DiskRef *below
    FilterRule rules[FILTER_RULES_MAX]
    int rule_count
    uint32_t generation          # of the rules
    uint32_t held                # requests being delayed
    bint hurry                   # nothing is delayed
    bint cut                     # the power is off
    FilterRecord *log            # FILTER_LOG_MAX of them, number n in place n % FILTER_LOG_MAX
    uint64_t logged              # records so far
    uint64_t taken               # records that were read, or lost
    uint64_t lost


cdef class FilterDisk(Backend):
    cdef FilterState state
    cdef bint ready              # the monitor is made
    cdef readonly Backend below
    cdef tuple given             # the rules, as they came
