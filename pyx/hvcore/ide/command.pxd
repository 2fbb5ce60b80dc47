# The commands of a drive (ide.md sections 3 and 4). The ports call in here; nothing here knows a port.

from libc.stdint cimport uint8_t

from hvcore.ide.channel cimport IdeChannel, IdeDrive

# A command byte accepted by an idle drive; everything but EXECUTE DIAGNOSTIC.
cdef void command_start(IdeChannel *channel, IdeDrive *drive, uint8_t code) noexcept nogil
# The data port reached the end of the DRQ block.
cdef void command_block_done(IdeChannel *channel, IdeDrive *drive) noexcept nogil
# A drive in PHASE_DMA whose bus master may have started: moves on when it has, in the right direction.
cdef void command_dma(IdeChannel *channel, IdeDrive *drive) noexcept nogil
# The outstanding media request ended with this DiskStatus; not called for abandoned ones.
cdef void command_media_done(IdeChannel *channel, IdeDrive *drive, int disk_status) noexcept nogil
# The running command, if any, is dropped; its media request, if outstanding, keeps the drive busy until it ends.
cdef void command_abandon(IdeDrive *drive) noexcept nogil
