# The IDE controller: two channels of two drives, seen through port accesses.
#
# The controller never touches a medium. A command that needs it makes the drive busy and publishes an IdeMedia; the
# owner finds it with ide_media_pending after any call that may start one (write, string, complete), does it, and hands
# the status to ide_media_complete. One thread at a time.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from hvcore.ide.channel cimport IdeChannel, IdeDrive, IdeMedia
from hvcore.ide.dma cimport IdeMemory

cdef enum IdeAttachStatus:
    IDE_ATTACHED = 0
    IDE_BAD_SECTOR_SIZE = -1         # the ATA drive has sectors of 512 bytes
    IDE_BAD_SIZE = -2                # no sectors, or more than 2**48

ctypedef struct IdeDriveSetup:
    uint64_t sectors
    uint32_t sector_size
    uint32_t physical_sector_size
    bint read_only
    bint can_trim                    # advertise and accept DATA SET MANAGEMENT
    uint8_t serial[20]               # NUL-padded ASCII; empty: spaces
    uint8_t *buffer                  # IDE_BUFFER_BYTES of its own, valid as long as the controller

ctypedef struct IdePci:              # 1.2; see pci.pxd
    uint32_t command
    uint32_t bar4
    uint32_t timing
    uint32_t secondary_timing
    uint32_t udma

ctypedef struct IdeController:       # not to be moved: its channels point into it
    IdeChannel channels[2]
    IdeMemory memory
    IdePci pci
    uint16_t bus_master              # base of its 16 ports
    bint bus_master_mapped
    bint decoded[2]                  # the channel answers at its command and control ports
    uint64_t port_accesses           # a string transfer is one
    uint64_t string_words

# bus_master: a multiple of 16; the PCI function is then set up as firmware leaves it. 0: as after power-on, without
# bus-master ports. memory may be NULL: every PRD table is then unreadable.
cdef void ide_init(IdeController *controller, uint16_t bus_master, const IdeMemory *memory) noexcept nogil
# Maps the ports as the PCI configuration says.
cdef void ide_pci_apply(IdeController *controller) noexcept nogil
cdef int ide_attach(IdeController *controller, uint32_t drive, const IdeDriveSetup *setup) noexcept nogil
# Power-on or hard reset (1.7). Outstanding media requests keep their drives busy until they are completed.
cdef void ide_reset(IdeController *controller) noexcept nogil

# width: 1, 2 or 4 bytes. Any port may be named; those that are not the controller's read as ones.
cdef uint32_t ide_read(IdeController *controller, uint32_t port, uint32_t width) noexcept nogil
cdef void ide_write(IdeController *controller, uint32_t port, uint32_t width, uint32_t value) noexcept nogil
# REP INSW, REP OUTSW. Returns the words done: fewer than asked when a media request appeared on the way; complete it
# and call again for the rest.
cdef uint32_t ide_read_string(IdeController *controller, uint32_t port, void *buffer, uint32_t words) noexcept nogil
cdef uint32_t ide_write_string(IdeController *controller, uint32_t port, const void *buffer,
                               uint32_t words) noexcept nogil

cdef bint ide_irq(const IdeController *controller, uint32_t channel) noexcept nogil
# The outstanding media request of the channel, or NULL; also one whose command was reset meanwhile. Valid until it is
# completed.
cdef IdeMedia *ide_media_pending(IdeController *controller, uint32_t channel) noexcept nogil
# disk_status: a DiskStatus. False, and nothing changes, when `generation` is not that of an outstanding request. The
# outcome of an abandoned one is dropped.
cdef bint ide_media_complete(IdeController *controller, uint32_t channel, uint32_t generation,
                             int disk_status) noexcept nogil
# An enlightened request runs: the OUT that started it must not complete yet (7.2).
cdef bint ide_held(const IdeController *controller, uint32_t channel) noexcept nogil
