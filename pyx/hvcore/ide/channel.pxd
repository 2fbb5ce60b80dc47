# The state of the controller: plain structs, so that a controller may live anywhere (also in shared memory's owner).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.ide.abi cimport (
    BM_INTERRUPT,
    CONTROL_NIEN,
    CONTROL_SRST,
    STATUS_BSY,
    STATUS_DRDY,
    STATUS_DRQ,
    STATUS_DSC,
    STATUS_ERR,
)
from hvcore.ide.dma cimport BusMaster, IdeMemory, IdeSegment, PrdCursor

cdef enum IdeMediaKind:
    IDE_MEDIA_READ = 1
    IDE_MEDIA_WRITE = 2
    IDE_MEDIA_FLUSH = 3
    IDE_MEDIA_TRIM = 4

cdef enum IdePhase:
    PHASE_IDLE = 0
    PHASE_MEDIA = 1                  # BSY: the media request is outstanding
    PHASE_DATA_IN = 2                # DRQ: a block waits to be read through the data port
    PHASE_DATA_OUT = 3               # DRQ: a block waits to be written
    PHASE_DMA = 4                    # DRQ: a DMA command waits for the bus master

cdef enum IdeOperation:
    OPERATION_NONE = 0
    OPERATION_READ = 1
    OPERATION_WRITE = 2
    OPERATION_VERIFY = 3
    OPERATION_FLUSH = 4
    OPERATION_TRIM = 5
    OPERATION_IDENTIFY = 6

cdef enum IdeAddressing:             # 3.1
    ADDRESS_CHS = 0
    ADDRESS_LBA28 = 1
    ADDRESS_LBA48 = 2

# One media access that a command waits for. Whoever finds it does it and completes it, exactly once. READ and WRITE
# move sectors * 512 bytes: into or out of `buffer` when that is not NULL, else the guest memory of the segments in
# their order. A READ whose segments fall short by tail_bytes drops that many bytes of its last sector.
ctypedef struct IdeMedia:
    int kind                         # IdeMediaKind
    uint32_t drive                   # 0 .. 3
    uint32_t generation              # names the request to ide_media_complete
    uint64_t lba
    uint32_t sectors                 # READ, WRITE: 1 .. 128; TRIM: 1 .. 65535
    uint8_t *buffer
    uint32_t tail_bytes
    uint32_t segment_count
    IdeSegment segments[1024]

ctypedef struct TaskFile:            # the deep registers are [current, previous] (1.5)
    uint8_t features[2]
    uint8_t count[2]
    uint8_t low[2]
    uint8_t mid[2]
    uint8_t high[2]
    uint8_t device
    uint8_t error

ctypedef struct IdeGeometry:
    uint32_t cylinders
    uint32_t heads
    uint32_t sectors                 # per track; 0: no translation (91h refused it), CHS addresses are IDNF

ctypedef struct IdeCommand:          # the command captures its own copy of the registers (section 8)
    int operation                    # IdeOperation
    int addressing                   # IdeAddressing
    bint dma
    bint fua                         # flush after the last write
    bint probe                       # a chunk failed: single sectors from here, to name the bad one
    uint32_t block                   # sectors per DRQ block
    uint64_t lba                     # first sector that is not yet handed over (read) or stored (write)
    uint32_t left                    # sectors from there
    uint32_t chunk                   # sectors that the buffer is to take (write)
    uint32_t filled                  # sectors in the buffer
    uint32_t stored                  # of these, on the medium (write)
    uint32_t cursor                  # byte offset of the data port in the buffer
    uint32_t block_end
    PrdCursor restart                # table position of the outstanding media request
    uint32_t trim_next
    uint64_t trim_entries[64]

ctypedef struct IdeDrive:
    bint present
    bint read_only
    bint can_trim
    bint physical_4096
    uint32_t number                  # 0 .. 3
    uint64_t sectors
    uint8_t serial[20]
    uint8_t *buffer                  # IDE_BUFFER_BYTES; perhaps shared, so content only, never control
    IdeGeometry default_geometry
    IdeGeometry geometry             # as 91h set it
    uint32_t multiple                # sectors per block, 0: disabled
    bint write_cache
    TaskFile regs
    bint failed                      # ERR
    bint pending                     # interrupt pending
    int phase                        # IdePhase
    bint abandoned                   # reset or stopped while the media request is outstanding: its result is dropped
    IdeCommand command
    uint64_t commands                # accepted since the drive was attached
    IdeMedia media

ctypedef struct IdeChannel:
    uint32_t number
    const IdeMemory *memory
    IdeDrive drives[2]
    uint32_t selected
    uint8_t control                  # HOB, SRST, nIEN
    bint line                        # INTRQ as the interrupt controller sees it
    bint short_table_silent          # 5.2 "table ends early": the BMIDE alternative, no interrupt
    bint held                        # an enlightened request runs; its OUT is held (7.2)
    uint32_t held_drive              # 0, 1
    uint32_t held_packet             # its guest address
    uint64_t interrupts              # rises of the line
    uint64_t media_requests
    BusMaster bm


cdef inline uint8_t drive_status(const IdeChannel *channel, const IdeDrive *drive) noexcept nogil:
    """1.4. DSC is always set; nothing else is meaningful beside BSY."""
    if channel.control & CONTROL_SRST or drive.phase == PHASE_MEDIA:
        return STATUS_BSY | STATUS_DSC
    if drive.phase != PHASE_IDLE:
        return STATUS_DRDY | STATUS_DSC | STATUS_DRQ
    return STATUS_DRDY | STATUS_DSC | (STATUS_ERR if drive.failed else 0)


cdef inline void channel_line(IdeChannel *channel) noexcept nogil:
    """1.6: recomputes INTRQ; each rise is latched in the bus-master status, whatever its cause."""
    cdef bint line = (
        channel.drives[channel.selected].pending
        and channel.control & (CONTROL_NIEN | CONTROL_SRST) == 0
        and not channel.held
    )
    if line and not channel.line:
        channel.bm.status |= BM_INTERRUPT
        channel.interrupts += 1
    channel.line = line
