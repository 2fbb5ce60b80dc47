# What the parts of an open VHDX share (disk-formats.md 6, 7, 10, 11, 13): lookup finds blocks, session writes headers
# and flushes, allocate gives blocks a place and takes it away, requests does what a disk is asked.
#
# Locks, in this order: `flushing` (headers, log, all flushes: one at a time), then `meta` (table, bitmaps, space, busy
# list, size of the file). `meta` is never held over payload I/O or a flush. Requests for blocks that are there take
# neither.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.disk.medium cimport Medium
from hvcore.disk.ops cimport DiskRef
from hvcore.disk.vhdx.log_writer cimport LogWriter
from hvcore.disk.vhdx.space cimport Space
from hvcore.disk.vhdx.table cimport Table
from hvcore.linux.threads cimport Monitor

cdef enum:
    MIB = 1 << 20

# What somebody allocates at this moment, on that thread's stack.
ctypedef struct Busy:
    Busy *next
    uint64_t what                # block, or BUSY_BITMAP and a chunk

ctypedef struct VhdxState:
    Medium *medium               # of the ImageFile that the disk keeps
    const DiskRef *parent        # NULL: none, or not at hand
    uint64_t size
    uint64_t block_size
    uint32_t block_shift
    uint32_t sector_shift
    bint read_only
    bint differencing
    bint fixed
    bint regular                 # a file that can be cut
    uint32_t begun               # the header says that this session writes (O1, O2)
    uint64_t flushes             # begun; under `flushing`, read with acquire
    uint64_t covered             # number of the last one that succeeded
    uint64_t file_size           # bytes; changed under `meta` by release stores
    uint64_t clean_from          # MiB: never used from here on, so it reads as zeros
    uint64_t most                # MiB: the file needs no more, were all blocks present
    int transparent              # 1: a block went to state 0; 2: and a flush is making that durable
    Busy *busy
    Table table
    LogWriter log
    Monitor meta
    Monitor flushing
    bint locks                   # both exist
    Space space
