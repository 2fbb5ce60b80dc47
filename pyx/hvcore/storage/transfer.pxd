# What callers of a storvsp channel wait for: single commands, and transfers of many blocks that keep a queue full.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from hvcore.storage.protocol cimport VstorPacket
from hvcore.storage.queue cimport Vsc

# What a caller waits for. One of these is on the caller's stack while its slots are in flight; whoever leaves early
# abandons them first.

ctypedef struct Command:
    Vsc *vsc
    uint8_t *data                # of this process; NULL for none, or for data that goes to the device
    uint32_t length
    bint patient                 # sent again when it was refused, or got a unit attention
    bint again                   # that is to be done
    bint done
    VstorPacket reply

ctypedef struct Transfer:
    Vsc *vsc
    bint write
    bint fua                     # a write that is durable when it is done
    bint direct                  # data is guest memory
    const uint64_t *offsets      # bytes, one for each block; NULL: one after the other from `offset`
    uint64_t offset
    uint64_t blocks
    uint64_t block               # bytes; block n is at data + n * block
    uint8_t *data
    uint8_t *statuses            # SRB status of each block; NULL for one block
    uint32_t part                # bytes of one SRB; a block is cut into parts
    uint64_t parts               # of one block
    uint32_t sector_size
    uint32_t lun
    uint32_t depth
    uint64_t *cursor             # SRBs given out: `next`, or one that several transfers share
    uint64_t next
    uint64_t *again              # SRBs to be sent again; allocated with the first, freed by the owner
    uint32_t again_count
    uint64_t finished
    uint32_t in_flight
    uint64_t failed              # block of the first failure (lowest index); `blocks`: none
    uint8_t srb_status
    uint8_t scsi_status
    uint8_t sense[20]

# One batch over several channels: a transfer on each, and blocks to whichever has room. Only the thread that runs it
# gives them out.
ctypedef struct Spread:
    Transfer *transfers          # `count` of them, with a common cursor
    Vsc *channels[16]
    uint32_t count
    uint32_t first               # where to begin

# Until all is finished or the wait ends otherwise (VscResult); may be called again after VSC_INTERRUPTED.
cdef int transfer_run(Transfer *transfer, int64_t deadline_ns) noexcept nogil
# Sends the packet, unless `sent`, and waits for its completion; as transfer_run.
cdef int command_run(Vsc *vsc, Command *command, const VstorPacket *packet, uint32_t length, const uint8_t *data_out,
                     bint *sent, int64_t deadline_ns) noexcept nogil
cdef int spread_run(Spread *spread, int64_t deadline_ns) noexcept nogil
