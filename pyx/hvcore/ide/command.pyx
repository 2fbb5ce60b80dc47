"""The commands of a drive (ide.md sections 3 and 4).

Media are asked for in chunks of up to 128 sectors: PIO reads fetch ahead into the drive's buffer, PIO writes gather in
it and are stored a chunk at a time. The registers advance block by block all the same.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from hvcore.disk.ops cimport DISK_OK, DISK_RANGE
from hvcore.ide.abi cimport (
    BM_ERROR,
    COMMAND_FLUSH,
    COMMAND_IDENTIFY,
    DEVICE_LBA,
    ERROR_ABRT,
    ERROR_IDNF,
    ERROR_UNC,
    IDE_CHUNK_SECTORS,
    IDE_LBA28_SECTORS,
    IDE_MULTIPLE_MAX,
    IDE_SECTOR,
)
from hvcore.ide.channel cimport (
    ADDRESS_CHS,
    ADDRESS_LBA28,
    ADDRESS_LBA48,
    IDE_MEDIA_FLUSH,
    IDE_MEDIA_READ,
    IDE_MEDIA_TRIM,
    IDE_MEDIA_WRITE,
    OPERATION_FLUSH,
    OPERATION_IDENTIFY,
    OPERATION_NONE,
    OPERATION_READ,
    OPERATION_TRIM,
    OPERATION_VERIFY,
    OPERATION_WRITE,
    PHASE_DATA_IN,
    PHASE_DATA_OUT,
    PHASE_DMA,
    PHASE_IDLE,
    PHASE_MEDIA,
    IdeCommand,
    channel_line,
)
from hvcore.ide.dma cimport (
    PRD_BAD,
    PrdChunk,
    bm_to_memory,
    prd_collect,
    prd_drop_tail,
    prd_exhausted,
)
from hvcore.ide.identify cimport ide_identify


# Ends of a command (4.1)

cdef void finish(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    drive.phase = PHASE_IDLE
    drive.pending = True
    channel_line(channel)


cdef void fail(IdeChannel *channel, IdeDrive *drive, uint8_t error) noexcept nogil:
    drive.failed = True
    drive.regs.error = error
    # No DRQ, and no stale data behind it (section 8).
    drive.command.cursor = 0
    drive.command.block_end = 0
    finish(channel, drive)


cdef void command_abandon(IdeDrive *drive) noexcept nogil:
    if drive.phase == PHASE_MEDIA:
        # BSY until the access is over: guest memory must not change once the drive reports that it is idle (1.7).
        drive.abandoned = True
    else:
        drive.phase = PHASE_IDLE


# Addresses and counts in the registers (3.1)

cdef void set_count(IdeDrive *drive, uint32_t count) noexcept nogil:
    drive.regs.count[0] = count & 0xFF
    if drive.command.addressing == ADDRESS_LBA48:
        drive.regs.count[1] = count >> 8 & 0xFF


cdef void set_address(IdeDrive *drive, uint64_t lba) noexcept nogil:
    cdef uint64_t track
    cdef uint32_t head
    if drive.command.addressing == ADDRESS_CHS:
        if drive.geometry.sectors == 0:
            return
        track = lba // drive.geometry.sectors
        head = <uint32_t> (track % drive.geometry.heads)
        drive.regs.low[0] = <uint8_t> (lba % drive.geometry.sectors + 1)
        drive.regs.mid[0] = track // drive.geometry.heads & 0xFF
        drive.regs.high[0] = track // drive.geometry.heads >> 8 & 0xFF
        drive.regs.device = (drive.regs.device & 0xF0) | head
        return
    drive.regs.low[0] = lba & 0xFF
    drive.regs.mid[0] = lba >> 8 & 0xFF
    drive.regs.high[0] = lba >> 16 & 0xFF
    if drive.command.addressing == ADDRESS_LBA48:
        drive.regs.low[1] = lba >> 24 & 0xFF
        drive.regs.mid[1] = lba >> 32 & 0xFF
        drive.regs.high[1] = lba >> 40 & 0xFF
    else:
        drive.regs.device = (drive.regs.device & 0xF0) | (lba >> 24 & 0x0F)


cdef void set_position(IdeDrive *drive, uint64_t lba, uint32_t left) noexcept nogil:
    set_address(drive, lba)
    set_count(drive, left)


cdef uint64_t reach(const IdeDrive *drive) noexcept nogil:
    """The capacity that the command's kind of address can name."""
    cdef uint64_t chs
    if drive.command.addressing == ADDRESS_LBA48:
        return drive.sectors
    if drive.command.addressing == ADDRESS_LBA28:
        return drive.sectors if drive.sectors < IDE_LBA28_SECTORS else IDE_LBA28_SECTORS
    chs = drive.default_geometry.cylinders * drive.default_geometry.heads * drive.default_geometry.sectors
    return chs


cdef bint take_address(IdeDrive *drive, bint ext) noexcept nogil:
    """Captures the address; False when the registers hold none (IDNF)."""
    cdef IdeCommand *command = &drive.command
    cdef uint64_t low = drive.regs.low[0], mid = drive.regs.mid[0], high = drive.regs.high[0]
    cdef uint64_t head = drive.regs.device & 0x0F
    if ext:
        command.addressing = ADDRESS_LBA48
        command.lba = (
            low | mid << 8 | high << 16 | <uint64_t> drive.regs.low[1] << 24
            | <uint64_t> drive.regs.mid[1] << 32 | <uint64_t> drive.regs.high[1] << 40
        )
        return (drive.regs.device & DEVICE_LBA) != 0
    if drive.regs.device & DEVICE_LBA:
        command.addressing = ADDRESS_LBA28
        command.lba = low | mid << 8 | high << 16 | head << 24
        return True
    command.addressing = ADDRESS_CHS
    if low == 0 or drive.geometry.sectors == 0:
        command.lba = 0
        return False
    command.lba = ((mid | high << 8) * drive.geometry.heads + head) * drive.geometry.sectors + low - 1
    return True


cdef bint take_range(IdeDrive *drive, bint ext, bint single) noexcept nogil:
    """Captures address and count; False when they are not within reach, before any data moves (IDNF)."""
    cdef IdeCommand *command = &drive.command
    cdef uint64_t limit
    if not take_address(drive, ext):
        return False
    command.left = drive.regs.count[0]
    if ext:
        command.left |= <uint32_t> drive.regs.count[1] << 8
    if command.left == 0:
        command.left = 65536 if ext else 256
    if single:
        command.left = 1
    limit = reach(drive)
    return command.lba <= limit and limit - command.lba >= command.left      # by subtraction (section 8)


# Media requests

cdef void ask(IdeChannel *channel, IdeDrive *drive, int kind, uint64_t lba, uint32_t sectors,
              uint8_t *buffer) noexcept nogil:
    drive.media.kind = kind
    drive.media.drive = drive.number
    drive.media.lba = lba
    drive.media.sectors = sectors
    drive.media.buffer = buffer
    drive.media.tail_bytes = 0
    drive.media.segment_count = 0
    drive.phase = PHASE_MEDIA
    channel.media_requests += 1
    drive.media.generation = <uint32_t> channel.media_requests       # one count for both drives, so it tells them apart


cdef inline uint32_t chunk_of(const IdeCommand *command) noexcept nogil:
    if command.probe:
        return 1
    return command.left if command.left < IDE_CHUNK_SECTORS else IDE_CHUNK_SECTORS


cdef void flush(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    drive.command.operation = OPERATION_FLUSH
    if drive.read_only:
        finish(channel, drive)
    else:
        ask(channel, drive, IDE_MEDIA_FLUSH, 0, 0, NULL)


cdef void written(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    """All sectors of a write are on the medium."""
    if drive.command.fua:
        flush(channel, drive)
    else:
        finish(channel, drive)


# PIO data-in (4.2)

cdef void read_chunk(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    command.filled = 0
    command.cursor = 0
    command.block_end = 0
    ask(channel, drive, IDE_MEDIA_READ, command.lba, chunk_of(command), drive.buffer)


cdef void present_in(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    """The next block of the buffer becomes readable; the registers count it as handed over (3.1)."""
    cdef IdeCommand *command = &drive.command
    cdef uint32_t sectors = command.block if command.block < command.left else command.left
    command.block_end = command.cursor + sectors * IDE_SECTOR
    command.filled -= sectors
    command.lba += sectors
    command.left -= sectors
    set_position(drive, command.lba, command.left)
    drive.phase = PHASE_DATA_IN
    drive.pending = True
    channel_line(channel)


cdef void read_done(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    command.filled += drive.media.sectors
    # Only single sectors, after a failure, can leave a block incomplete: a full chunk is a multiple of the block.
    if command.filled < command.block and command.filled < command.left:
        ask(channel, drive, IDE_MEDIA_READ, command.lba + command.filled, 1, drive.buffer + command.filled * IDE_SECTOR)
    else:
        present_in(channel, drive)


# PIO data-out (4.3)

cdef void present_out(IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    cdef uint32_t sectors = command.chunk - command.filled
    if sectors > command.block:
        sectors = command.block
    command.block_end = command.cursor + sectors * IDE_SECTOR
    drive.phase = PHASE_DATA_OUT


cdef void write_chunk(IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    command.chunk = command.left if command.left < IDE_CHUNK_SECTORS else IDE_CHUNK_SECTORS
    command.filled = 0
    command.stored = 0
    command.cursor = 0
    present_out(drive)


cdef void store_chunk(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    ask(channel, drive, IDE_MEDIA_WRITE, command.lba, 1 if command.probe else command.filled,
        drive.buffer + command.stored * IDE_SECTOR)


cdef void write_done(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    command.lba += drive.media.sectors
    command.left -= drive.media.sectors
    command.stored += drive.media.sectors
    if command.stored < command.filled:
        store_chunk(channel, drive)
        return
    set_position(drive, command.lba, command.left)
    if command.left == 0:
        written(channel, drive)
        return
    write_chunk(drive)
    drive.pending = True
    channel_line(channel)


cdef void command_block_done(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    if drive.phase == PHASE_DATA_IN:
        if command.left == 0:
            drive.phase = PHASE_IDLE             # 4.2 5': no interrupt after the last block
        elif command.filled:
            present_in(channel, drive)
        else:
            read_chunk(channel, drive)
        return
    command.filled = command.cursor // IDE_SECTOR
    if command.filled == command.chunk:
        store_chunk(channel, drive)
        return
    set_position(drive, command.lba + command.filled, command.left - command.filled)
    present_out(drive)
    drive.pending = True
    channel_line(channel)


# DMA (4.4, 5.2)

cdef void dma_broken(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    """A table or an entry that is not memory: nothing of this chunk moves."""
    channel.bm.active = False
    channel.bm.status |= BM_ERROR
    fail(channel, drive, ERROR_ABRT)


cdef void dma_short(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    """The table ended early: what was moved stays, the command ends well."""
    channel.bm.active = False
    if channel.short_table_silent:
        drive.phase = PHASE_IDLE
    elif drive.command.operation == OPERATION_WRITE:
        written(channel, drive)
    else:
        finish(channel, drive)


cdef void command_dma(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    cdef bint reading = command.operation == OPERATION_READ
    cdef PrdChunk chunk
    cdef int status
    if drive.phase != PHASE_DMA or not channel.bm.active or bm_to_memory(&channel.bm) != reading:
        return                                   # 5.2: a direction mismatch moves nothing
    if command.operation == OPERATION_TRIM:
        trim_dma(channel, drive)
        return
    command.restart = channel.bm.cursor
    status = prd_collect(&channel.bm, channel.memory, chunk_of(command), drive.media.segments, &chunk)
    if status == PRD_BAD:
        dma_broken(channel, drive)
        return
    if not reading:
        prd_drop_tail(drive.media.segments, &chunk)
    if chunk.sectors == 0:
        dma_short(channel, drive)
        return
    ask(channel, drive, IDE_MEDIA_READ if reading else IDE_MEDIA_WRITE, command.lba, chunk.sectors, NULL)
    drive.media.segment_count = chunk.segment_count
    drive.media.tail_bytes = chunk.tail_bytes


cdef void dma_done(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    cdef uint32_t whole = drive.media.sectors - (1 if drive.media.tail_bytes else 0)
    command.lba += whole
    command.left -= whole
    set_position(drive, command.lba, command.left)
    if command.left:
        drive.phase = PHASE_DMA
        command_dma(channel, drive)
        return
    if prd_exhausted(&channel.bm):
        channel.bm.active = False                # else the table has room left: active stays until the stop
    if command.operation == OPERATION_WRITE:
        written(channel, drive)
    else:
        finish(channel, drive)


# DATA SET MANAGEMENT (3.3): one block of 64 ranges, as word 105 announces

cdef void next_trim(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    cdef uint64_t entry
    while command.trim_next < 64:
        entry = command.trim_entries[command.trim_next]
        command.trim_next += 1
        if entry >> 48:
            ask(channel, drive, IDE_MEDIA_TRIM, entry & <uint64_t> 0xFFFFFFFFFFFF, <uint32_t> (entry >> 48), NULL)
            return
    finish(channel, drive)


cdef void trim_dma(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    cdef PrdChunk chunk
    cdef uint8_t *to = <uint8_t *> command.trim_entries
    cdef uint32_t i
    cdef uint64_t lba, sectors
    if prd_collect(&channel.bm, channel.memory, 1, drive.media.segments, &chunk) == PRD_BAD:
        dma_broken(channel, drive)
        return
    if chunk.sectors == 0 or chunk.tail_bytes:
        channel.bm.active = False
        fail(channel, drive, ERROR_ABRT)         # no whole block: nothing may be discarded
        return
    for i in range(chunk.segment_count):
        # Copied once; the copy is what is validated and used.
        if channel.memory.fetch(channel.memory.context, drive.media.segments[i].address, to,
                                drive.media.segments[i].bytes) != 0:
            dma_broken(channel, drive)
            return
        to += drive.media.segments[i].bytes
    if prd_exhausted(&channel.bm):
        channel.bm.active = False
    for i in range(64):                          # all of them before the first discard
        lba = command.trim_entries[i] & <uint64_t> 0xFFFFFFFFFFFF
        sectors = command.trim_entries[i] >> 48
        if sectors and (lba > drive.sectors or drive.sectors - lba < sectors):
            fail(channel, drive, ERROR_ABRT)
            return
    command.trim_next = 0
    next_trim(channel, drive)


# READ VERIFY

cdef void verify_chunk(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    ask(channel, drive, IDE_MEDIA_READ, drive.command.lba, chunk_of(&drive.command), drive.buffer)


cdef void verify_done(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    command.lba += drive.media.sectors
    command.left -= drive.media.sectors
    set_position(drive, command.lba, command.left)
    if command.left:
        verify_chunk(channel, drive)
    else:
        finish(channel, drive)


# The end of a media request

cdef void media_failed(IdeChannel *channel, IdeDrive *drive, int disk_status) noexcept nogil:
    cdef IdeCommand *command = &drive.command
    cdef uint8_t error
    if command.operation == OPERATION_FLUSH:
        command.addressing = ADDRESS_LBA28
        drive.regs.low[0] = drive.regs.mid[0] = drive.regs.high[0] = 0
        drive.regs.device &= 0xF0
        fail(channel, drive, ERROR_ABRT)
        return
    if command.operation == OPERATION_TRIM:
        fail(channel, drive, ERROR_ABRT)
        return
    if drive.media.sectors > 1 and not command.probe:
        # A chunk's status does not say which sector is bad, the registers must (3.1): look for it one by one.
        command.probe = True
        if command.dma:
            channel.bm.cursor = command.restart
            drive.phase = PHASE_DMA
            command_dma(channel, drive)
        elif command.operation == OPERATION_READ:
            read_chunk(channel, drive)
        elif command.operation == OPERATION_WRITE:
            store_chunk(channel, drive)
        else:
            verify_chunk(channel, drive)
        return
    if command.dma:
        channel.bm.cursor = command.restart      # the bad sector's memory was not used: active stays
    if disk_status == DISK_RANGE:
        error = ERROR_IDNF                       # the image is smaller than it was
    else:
        error = ERROR_ABRT if command.operation == OPERATION_WRITE else ERROR_UNC
    # A block that is not complete is not handed over, so its sectors still count.
    set_position(drive, drive.media.lba, command.left)
    fail(channel, drive, error)


cdef void command_media_done(IdeChannel *channel, IdeDrive *drive, int disk_status) noexcept nogil:
    cdef int operation = drive.command.operation
    if disk_status != DISK_OK:
        media_failed(channel, drive, disk_status)
    elif drive.command.dma and (operation == OPERATION_READ or operation == OPERATION_WRITE):
        dma_done(channel, drive)
    elif operation == OPERATION_READ:
        read_done(channel, drive)
    elif operation == OPERATION_WRITE:
        write_done(channel, drive)
    elif operation == OPERATION_VERIFY:
        verify_done(channel, drive)
    elif operation == OPERATION_TRIM:
        next_trim(channel, drive)
    else:
        finish(channel, drive)


# Command decode (section 3)

cdef void transfer(IdeChannel *channel, IdeDrive *drive, int operation, bint ext, bint dma, uint32_t block,
                   bint single) noexcept nogil:
    """READ, WRITE and VERIFY of any kind; block 0: multiple mode is disabled."""
    cdef IdeCommand *command = &drive.command
    command.dma = dma
    command.block = block
    if block == 0:
        fail(channel, drive, ERROR_ABRT)
        return
    if not take_range(drive, ext, single):
        fail(channel, drive, ERROR_IDNF)         # registers unchanged
        return
    if operation == OPERATION_WRITE and drive.read_only:
        fail(channel, drive, ERROR_ABRT)
        return
    command.operation = operation
    if dma:
        drive.phase = PHASE_DMA
        command_dma(channel, drive)
    elif operation == OPERATION_READ:
        read_chunk(channel, drive)
    elif operation == OPERATION_WRITE:
        write_chunk(drive)                       # 4.3: no interrupt for the first block
    else:
        verify_chunk(channel, drive)


cdef void identify(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    ide_identify(drive, drive.buffer)
    drive.command.operation = OPERATION_IDENTIFY
    drive.command.left = 0
    drive.command.filled = 0
    drive.command.cursor = 0
    drive.command.block_end = IDE_SECTOR
    drive.phase = PHASE_DATA_IN
    drive.pending = True
    channel_line(channel)


cdef void recalibrate(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    drive.command.addressing = ADDRESS_LBA28 if drive.regs.device & DEVICE_LBA else ADDRESS_CHS
    set_address(drive, 0)
    finish(channel, drive)


cdef void seek(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    if take_address(drive, False) and drive.command.lba < reach(drive):
        finish(channel, drive)
    else:
        fail(channel, drive, ERROR_IDNF)


cdef void read_native_max(IdeChannel *channel, IdeDrive *drive, bint ext) noexcept nogil:
    drive.command.addressing = ADDRESS_LBA48 if ext else ADDRESS_LBA28
    set_address(drive, reach(drive) - 1)
    finish(channel, drive)


cdef void initialize_parameters(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    drive.geometry.heads = (drive.regs.device & 0x0F) + 1
    drive.geometry.sectors = drive.regs.count[0]
    if drive.geometry.sectors:
        finish(channel, drive)
    else:
        fail(channel, drive, ERROR_ABRT)         # and CHS addresses are IDNF until a valid one (section 8)


cdef void set_multiple(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef uint32_t count = drive.regs.count[0]
    if count > IDE_MULTIPLE_MAX or count & (count - 1):
        fail(channel, drive, ERROR_ABRT)
        return
    drive.multiple = count
    finish(channel, drive)


cdef void set_features(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    """3.2"""
    cdef uint8_t feature = drive.regs.features[0]
    cdef uint8_t mode = drive.regs.count[0]
    if feature == 0x02:
        drive.write_cache = True
        finish(channel, drive)
    elif feature == 0x82:
        drive.write_cache = False
        flush(channel, drive)
    elif feature == 0x03:
        if mode <= 1 or 0x08 <= mode <= 0x0C or 0x10 <= mode <= 0x12 or 0x20 <= mode <= 0x22:
            finish(channel, drive)
        else:
            fail(channel, drive, ERROR_ABRT)
    elif feature in (0x05, 0x85, 0x42, 0xC2, 0x55, 0xAA, 0x66, 0xCC):
        finish(channel, drive)
    else:
        fail(channel, drive, ERROR_ABRT)


cdef void data_set_management(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    cdef bint one = drive.regs.count[0] == 1 and drive.regs.count[1] == 0
    if not drive.can_trim or drive.read_only or not drive.regs.features[0] & 1 or not one:
        fail(channel, drive, ERROR_ABRT)
        return
    drive.command.operation = OPERATION_TRIM
    drive.command.dma = True
    drive.phase = PHASE_DMA
    command_dma(channel, drive)


cdef void command_start(IdeChannel *channel, IdeDrive *drive, uint8_t code) noexcept nogil:
    cdef uint32_t multiple = drive.multiple
    drive.commands += 1
    drive.command.operation = OPERATION_NONE
    drive.command.addressing = ADDRESS_LBA28
    drive.command.dma = False
    drive.command.fua = False
    drive.command.probe = False
    drive.pending = False                        # 1.6: an accepted command clears what was pending
    drive.failed = False
    drive.regs.error = 0
    channel_line(channel)
    if code in (0x20, 0x21):
        transfer(channel, drive, OPERATION_READ, False, False, 1, False)
    elif code in (0x22, 0x23):                   # READ LONG
        transfer(channel, drive, OPERATION_READ, False, False, 1, True)
    elif code == 0x24:
        transfer(channel, drive, OPERATION_READ, True, False, 1, False)
    elif code == 0x25:
        transfer(channel, drive, OPERATION_READ, True, True, 1, False)
    elif code == 0x29:
        transfer(channel, drive, OPERATION_READ, True, False, multiple, False)
    elif code in (0x30, 0x31):
        transfer(channel, drive, OPERATION_WRITE, False, False, 1, False)
    elif code in (0x32, 0x33):                   # WRITE LONG
        transfer(channel, drive, OPERATION_WRITE, False, False, 1, True)
    elif code == 0x34:
        transfer(channel, drive, OPERATION_WRITE, True, False, 1, False)
    elif code in (0x35, 0x3D):
        drive.command.fua = code == 0x3D
        transfer(channel, drive, OPERATION_WRITE, True, True, 1, False)
    elif code in (0x39, 0xCE):
        drive.command.fua = code == 0xCE
        transfer(channel, drive, OPERATION_WRITE, True, False, multiple, False)
    elif code in (0x40, 0x41, 0x42):
        transfer(channel, drive, OPERATION_VERIFY, code == 0x42, False, 1, False)
    elif code == 0xC4:
        transfer(channel, drive, OPERATION_READ, False, False, multiple, False)
    elif code == 0xC5:
        transfer(channel, drive, OPERATION_WRITE, False, False, multiple, False)
    elif code in (0xC8, 0xC9):
        transfer(channel, drive, OPERATION_READ, False, True, 1, False)
    elif code in (0xCA, 0xCB):
        transfer(channel, drive, OPERATION_WRITE, False, True, 1, False)
    elif code in (COMMAND_FLUSH, 0xEA, 0xE0, 0x94):          # STANDBY IMMEDIATE flushes
        flush(channel, drive)
    elif code == COMMAND_IDENTIFY:
        identify(channel, drive)
    elif code in (0xE1, 0x95, 0xE2, 0x96, 0xE3, 0x97, 0xE6, 0x99):       # power states: it never sleeps
        finish(channel, drive)
    elif code in (0xE5, 0x98):                   # CHECK POWER MODE
        drive.regs.count[0] = 0xFF
        finish(channel, drive)
    elif code == 0xEF:
        set_features(channel, drive)
    elif code == 0xC6:
        set_multiple(channel, drive)
    elif code == 0x91:
        initialize_parameters(channel, drive)
    elif code in (0x27, 0xF8):
        read_native_max(channel, drive, code == 0x27)
    elif code == 0x06:
        data_set_management(channel, drive)
    elif 0x10 <= code <= 0x1F:
        recalibrate(channel, drive)
    elif 0x70 <= code <= 0x7F:
        seek(channel, drive)
    else:
        fail(channel, drive, ERROR_ABRT)
