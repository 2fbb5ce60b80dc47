# The IDE driver: the register programme of one request on one channel (ide.md sections 4 and 6), resumable at each
# interrupt. It is the channel's only user: nothing else may touch the channel's ports between begin and done.
#
# The same programme runs beside the controller, by calls (ide_driver_init), and in a partition that reaches it through
# its ports alone (ide_driver_init_ports).
#
# The owner's loop: begin; then, until IDE_DRIVER_DONE, step, do and complete the channel's media request if there is
# one, and step again. A step without an interrupt does nothing.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.ide.controller cimport IdeController
from hvcore.ide.dma cimport IdeSegment

cdef enum IdeRequestKind:
    IDE_REQUEST_READ = 1
    IDE_REQUEST_WRITE = 2
    IDE_REQUEST_FLUSH = 3
    IDE_REQUEST_IDENTIFY = 4             # 512 bytes through the data port, whatever the mode
    IDE_REQUEST_TRIM = 5                 # one block of 64 ranges (3.3) by DMA: segments name its 512 bytes of memory

cdef enum IdeMode:
    IDE_MODE_DMA = 0
    IDE_MODE_PIO = 1                     # one sector per DRQ block, 16-bit IN and OUT
    IDE_MODE_PIO_STRING = 2              # one sector per DRQ block, one string transfer each
    IDE_MODE_PIO_MULTIPLE = 3            # READ/WRITE MULTIPLE, one string transfer per sector

cdef enum IdeDriverProgress:
    IDE_DRIVER_WAITING = 0
    IDE_DRIVER_DONE = 1

cdef enum IdeOutcome:
    IDE_OUTCOME_OK = 0
    IDE_OUTCOME_ERROR = 1                # the drive answered with ERR: see status and error
    IDE_OUTCOME_NOT_READY = 2            # no drive there, or it is busy: nothing was started
    IDE_OUTCOME_REFUSED = 3              # the request is malformed: no port was touched
    IDE_OUTCOME_UNEXPECTED = 4           # the drive left the protocol: see status
    IDE_OUTCOME_DMA = 5                  # the bus master reported an error: see bm_status

ctypedef struct IdeRequest:
    int kind                             # IdeRequestKind
    int mode                             # IdeMode
    uint32_t drive                       # 0, 1 on the channel
    uint64_t lba
    uint32_t sectors                     # READ, WRITE: 1 or more; split into commands of at most 65536
    uint8_t *data                        # READ, WRITE in the PIO modes: sectors * 512 bytes; IDENTIFY: 512 bytes
    # READ, WRITE in DMA mode: sectors * 512 bytes of memory in order, kept by the caller until done. Addresses and
    # lengths are even (5.2); a segment may cross 64 KiB, the driver splits it.
    const IdeSegment *segments
    uint32_t segment_count

ctypedef struct IdeDriverResult:
    int outcome                          # IdeOutcome
    uint8_t status                       # ATA status and error registers as last read; error only when ERR is set
    uint8_t error
    uint8_t bm_status
    uint32_t sectors_done                # of the blocks and DMA commands that ended well
    uint32_t commands
    uint32_t interrupts
    uint64_t port_accesses               # every one; a string transfer of one sector is one
    uint64_t bytes_copied                # through the data port

ctypedef struct IdePorts:                # of a controller that is elsewhere; every call is one access
    void *state
    uint32_t (*read)(void *state, uint32_t port, uint32_t width) noexcept nogil
    void (*write)(void *state, uint32_t port, uint32_t width, uint32_t value) noexcept nogil
    # REP INSW, REP OUTSW: all words are done on return.
    void (*read_string)(void *state, uint32_t port, void *buffer, uint32_t words) noexcept nogil
    void (*write_string)(void *state, uint32_t port, const void *buffer, uint32_t words) noexcept nogil
    bint (*irq)(void *state, uint32_t channel) noexcept nogil        # no access

ctypedef struct IdeDriver:
    IdeController *controller            # NULL: through the ports
    IdePorts ports
    uint32_t channel
    uint16_t command_block               # port bases
    uint16_t bus_master
    uint8_t *table                       # 4096 bytes, 4096-aligned on the bus: the PRD table
    uint32_t table_address
    uint32_t multiple                    # sectors per block of the MULTIPLE commands, as the drive is set
    IdeRequest request
    IdeDriverResult result
    int stage
    uint32_t command_sectors             # of the running command
    uint32_t command_done                # of these, moved through the data port
    uint32_t segment                     # DMA: the next byte of memory
    uint32_t segment_offset

# table may be NULL: DMA requests are then refused.
cdef void ide_driver_init(IdeDriver *driver, IdeController *controller, uint32_t channel, void *table,
                          uint32_t table_address) noexcept nogil
cdef void ide_driver_init_ports(IdeDriver *driver, const IdePorts *ports, uint32_t channel, uint16_t bus_master,
                                void *table, uint32_t table_address) noexcept nogil
cdef void ide_driver_begin(IdeDriver *driver, const IdeRequest *request) noexcept nogil
cdef int ide_driver_step(IdeDriver *driver) noexcept nogil           # IdeDriverProgress
