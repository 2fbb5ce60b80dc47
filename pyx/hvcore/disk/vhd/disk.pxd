# A dynamic or differencing VHD (disk-formats.md 15): block allocation table, sector bitmaps, and the order in which
# changes of them reach the file. The format has no log: what keeps a crash harmless is order alone.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.disk.medium cimport ImageFile, Medium
from hvcore.disk.ops cimport Backend, DiskRef
from hvcore.disk.vhd.table cimport VhdBitmap, VhdPage, VhdTable
from hvcore.linux.threads cimport Monitor

cdef enum VhdKind:
    VHD_ZERO
    VHD_PARENT
    VHD_DATA

# A block that is being allocated; lives on the stack of the thread that does it.
cdef struct VhdBusy:
    uint64_t block
    VhdBusy *next

# A place in the file that was taken for a block whose allocation failed.
cdef struct VhdSpare:
    uint64_t place
    VhdSpare *next

# Sectors as a flush found them dirty.
cdef struct VhdFrozen:
    uint64_t *places
    uint8_t *data
    uint64_t count

# A run of the disk that lies in one piece.
cdef struct VhdRun:
    VhdKind kind
    uint64_t length
    uint64_t at                  # VHD_DATA: in the file

# Locks: `space` and flush_lock are held over reads and writes of metadata, `meta` over none; both nest around it, and
# neither in the other.
ctypedef struct VhdState:
    Medium *medium               # of the ImageFile that the disk keeps
    const DiskRef *parent        # NULL: none
    uint64_t size
    uint64_t block_size          # a power of two
    uint64_t bitmap_bytes        # before each block's data
    uint64_t slot                # bitmap and data
    bint differencing
    bint read_only
    VhdTable table
    # What waits for a flush, and who allocates.
    Monitor meta
    VhdPage *dirty_pages
    VhdBitmap *dirty_bitmaps
    VhdBusy *busy
    uint64_t top                 # end of the highest structure or block
    uint64_t allocated           # blocks
    Monitor flush_lock
    uint64_t flushes             # begun; written under flush_lock
    # Space at the end of the file.
    Monitor space
    uint32_t begun               # the copies of the footer agree: changes may follow
    bint scanned                 # top and allocated count all blocks
    bint aligned                 # new blocks' data begin at multiples of 4096
    uint64_t free                # where the next new block may begin
    uint64_t fresh               # what lies from here on was added since; it reads as zeros, but for the footer
    uint64_t tail                # where the footer at the end begins
    uint64_t end                 # of the file
    bint tail_lost               # there is no footer at the end
    bint head_differs            # the copy at the start is another
    VhdSpare *spares
    uint8_t[512] footer


cdef class VhdDisk(Backend):
    cdef VhdState state
    cdef ImageFile file
    cdef readonly Backend parent  # None: there is none, or it is not at hand
    cdef object layout
    cdef int load_table(self) except -1
