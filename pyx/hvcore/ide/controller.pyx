"""The ports of the IDE controller (ide.md sections 1, 4.5, 7.2)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.ide.abi cimport (
    COMMAND_EXECUTE_DIAGNOSTIC,
    CONTROL_HOB,
    CONTROL_NIEN,
    CONTROL_SRST,
    DEVICE_DEV,
    ERROR_DIAGNOSTIC_OK,
    IDE_COMMAND,
    IDE_COMMAND_BLOCK_0,
    IDE_COMMAND_BLOCK_1,
    IDE_CONTROL_0,
    IDE_CONTROL_1,
    IDE_COUNT,
    IDE_DATA,
    IDE_DEVICE,
    IDE_ENLIGHTENED_0,
    IDE_ENLIGHTENED_1,
    IDE_ERROR,
    IDE_FEATURES,
    IDE_LBA48_SECTORS,
    IDE_LBA_HIGH,
    IDE_LBA_LOW,
    IDE_LBA_MID,
    IDE_MULTIPLE_MAX,
    IDE_SECTOR,
    IDE_STATUS,
    PCI_BUS_MASTER,
    PCI_COMMAND_RESET,
    PCI_DECODE,
    PCI_IO,
    STATUS_ERR,
    EnlightenedPacket,
)
from hvcore.ide.channel cimport (
    IDE_MEDIA_READ,
    IDE_MEDIA_WRITE,
    PHASE_DATA_IN,
    PHASE_DATA_OUT,
    PHASE_DMA,
    PHASE_IDLE,
    PHASE_MEDIA,
    TaskFile,
    channel_line,
    drive_status,
)
from hvcore.ide.command cimport (
    command_abandon,
    command_block_done,
    command_dma,
    command_media_done,
    command_start,
)
from hvcore.ide.dma cimport BM_STARTED, BM_STOPPED, bm_read, bm_start, bm_write
from hvcore.ide.identify cimport ide_default_geometry

# Where a port leads: a register of the command block is its offset, the rest follows.
cdef enum:
    PORT_CONTROL = 8
    PORT_ENLIGHTENED = 9
    PORT_BUS_MASTER = 16             # + offset
    PORT_NONE = -1

ctypedef struct Port:
    IdeChannel *channel
    int offset


cdef Port decode(IdeController *controller, uint32_t port) noexcept nogil:
    cdef Port result
    cdef uint32_t base = controller.bus_master
    result.channel = &controller.channels[0]
    result.offset = PORT_NONE
    # Legacy ports first: a bus-master window over them must not hide them (1.2).
    if port & ~<uint32_t> 7 == IDE_COMMAND_BLOCK_0:
        result.offset = port & 7
    elif port & ~<uint32_t> 7 == IDE_COMMAND_BLOCK_1:
        result.channel = &controller.channels[1]
        result.offset = port & 7
    elif port == IDE_CONTROL_0:
        result.offset = PORT_CONTROL
    elif port == IDE_CONTROL_1:
        result.channel = &controller.channels[1]
        result.offset = PORT_CONTROL
    elif port == IDE_ENLIGHTENED_0:
        result.offset = PORT_ENLIGHTENED
    elif port == IDE_ENLIGHTENED_1:
        result.channel = &controller.channels[1]
        result.offset = PORT_ENLIGHTENED
    elif controller.bus_master_mapped and port >= base and port - base < 16:
        result.channel = &controller.channels[(port - base) // 8]
        result.offset = PORT_BUS_MASTER + (port - base) % 8
    if PORT_NONE < result.offset <= PORT_CONTROL and not controller.decoded[result.channel.number]:
        result.offset = PORT_NONE
    return result


cdef inline uint32_t widen(uint32_t value, uint32_t width) noexcept nogil:
    """1.3: a byte-wide register read wider has ones in the other bytes."""
    return value | (<uint32_t> 0xFFFFFF00 & <uint32_t> 0xFFFFFFFF >> (32 - 8 * width))


cdef inline bint empty(const IdeChannel *channel) noexcept nogil:
    return not channel.drives[0].present and not channel.drives[1].present


# Resets (1.7)

cdef void set_signature(IdeDrive *drive) noexcept nogil:
    cdef TaskFile *regs = &drive.regs
    regs.count[0] = 1
    regs.low[0] = 1
    regs.mid[0] = 0
    regs.high[0] = 0
    regs.device = 0
    regs.error = ERROR_DIAGNOSTIC_OK


cdef void drop_command(IdeDrive *drive) noexcept nogil:
    command_abandon(drive)
    drive.failed = False
    drive.pending = False


cdef void reset_drive(IdeDrive *drive) noexcept nogil:
    drop_command(drive)
    memset(&drive.regs, 0, sizeof(TaskFile))
    set_signature(drive)
    drive.geometry = drive.default_geometry
    drive.multiple = IDE_MULTIPLE_MAX
    drive.write_cache = True


cdef void ide_reset(IdeController *controller) noexcept nogil:
    cdef IdeChannel *channel
    cdef int i
    for i in range(2):
        channel = &controller.channels[i]
        reset_drive(&channel.drives[0])
        reset_drive(&channel.drives[1])
        channel.selected = 0
        channel.control = 0
        channel.line = False
        channel.held = False
        memset(&channel.bm, 0, sizeof(channel.bm))


cdef int no_memory(void *context, uint32_t address, void *destination, uint32_t bytes) noexcept nogil:
    return -1


cdef int no_store(void *context, uint32_t address, const void *source, uint32_t bytes) noexcept nogil:
    return -1


cdef void ide_init(IdeController *controller, uint16_t bus_master, const IdeMemory *memory) noexcept nogil:
    cdef uint32_t i
    memset(controller, 0, sizeof(IdeController))
    if memory != NULL:
        controller.memory = memory[0]
    else:
        controller.memory.fetch = no_memory
        controller.memory.store = no_store
    controller.pci.command = PCI_COMMAND_RESET | (PCI_IO | PCI_BUS_MASTER if bus_master else 0)
    controller.pci.bar4 = (bus_master & 0xFFF0) | 1
    controller.pci.timing = PCI_DECODE | <uint32_t> PCI_DECODE << 16
    ide_pci_apply(controller)
    for i in range(4):
        controller.channels[i // 2].number = i // 2
        controller.channels[i // 2].memory = &controller.memory
        controller.channels[i // 2].drives[i % 2].number = i
    ide_reset(controller)


cdef void ide_pci_apply(IdeController *controller) noexcept nogil:
    cdef uint32_t enabled = PCI_IO | PCI_BUS_MASTER
    controller.bus_master = controller.pci.bar4 & 0xFFF0
    # 1.2: both bits are needed. A BAR of 0 is one that nobody assigned.
    controller.bus_master_mapped = controller.bus_master != 0 and controller.pci.command & enabled == enabled
    controller.decoded[0] = controller.pci.timing & PCI_DECODE != 0
    controller.decoded[1] = controller.pci.timing >> 16 & PCI_DECODE != 0


cdef int ide_attach(IdeController *controller, uint32_t number, const IdeDriveSetup *setup) noexcept nogil:
    cdef IdeDrive *drive = &controller.channels[number // 2 % 2].drives[number % 2]
    if setup.sector_size != IDE_SECTOR:
        return IDE_BAD_SECTOR_SIZE
    if setup.sectors == 0 or setup.sectors > IDE_LBA48_SECTORS:
        return IDE_BAD_SIZE
    drive.present = True
    drive.read_only = setup.read_only
    drive.can_trim = setup.can_trim
    drive.physical_4096 = setup.physical_sector_size == 4096
    drive.sectors = setup.sectors
    memcpy(drive.serial, setup.serial, sizeof(drive.serial))
    drive.buffer = setup.buffer
    ide_default_geometry(setup.sectors, &drive.default_geometry)
    reset_drive(drive)
    return IDE_ATTACHED


# Data port (4.5)

cdef inline void block_moved(IdeChannel *channel, IdeDrive *drive) noexcept nogil:
    if drive.command.cursor == drive.command.block_end:
        command_block_done(channel, drive)


cdef uint32_t read_data(IdeChannel *channel, uint32_t width) noexcept nogil:
    cdef IdeDrive *drive = &channel.drives[channel.selected]
    cdef uint32_t value = <uint32_t> 0xFFFFFFFF >> (32 - 8 * width)
    cdef uint32_t bytes
    if not drive.present or drive.phase != PHASE_DATA_IN:
        return value & ~<uint32_t> 0x80          # 7F FF FF FF
    bytes = drive.command.block_end - drive.command.cursor
    if bytes > width:
        bytes = width
    memcpy(&value, drive.buffer + drive.command.cursor, bytes)
    drive.command.cursor += bytes
    block_moved(channel, drive)
    return value


cdef void write_data(IdeChannel *channel, uint32_t width, uint32_t value) noexcept nogil:
    cdef IdeDrive *drive = &channel.drives[channel.selected]
    cdef uint32_t bytes
    if not drive.present or drive.phase != PHASE_DATA_OUT:
        return
    bytes = drive.command.block_end - drive.command.cursor
    if bytes > width:
        bytes = width
    memcpy(drive.buffer + drive.command.cursor, &value, bytes)
    drive.command.cursor += bytes
    block_moved(channel, drive)


# Registers

cdef uint8_t read_register(IdeChannel *channel, int offset) noexcept nogil:
    cdef IdeDrive *drive = &channel.drives[channel.selected]
    cdef uint32_t previous = 1 if channel.control & CONTROL_HOB else 0
    if empty(channel):
        return 0x7F
    if not drive.present:
        return 0                                 # 1.4: the other device does not answer for it
    if offset == IDE_ERROR:
        return drive.regs.error
    if offset == IDE_COUNT:
        return drive.regs.count[previous]
    if offset == IDE_LBA_LOW:
        return drive.regs.low[previous]
    if offset == IDE_LBA_MID:
        return drive.regs.mid[previous]
    if offset == IDE_LBA_HIGH:
        return drive.regs.high[previous]
    if offset == IDE_DEVICE:
        return drive.regs.device
    return drive_status(channel, drive)          # status and alternate status


cdef inline void push(uint8_t *deep, uint8_t value) noexcept nogil:
    deep[1] = deep[0]
    deep[0] = value


cdef void write_task_file(IdeChannel *channel, int offset, uint8_t value) noexcept nogil:
    """1.5: both devices take the byte, each unless it is busy with a command of its own."""
    cdef IdeDrive *drive
    cdef int i
    for i in range(2):
        drive = &channel.drives[i]
        if drive.phase != PHASE_IDLE:
            continue
        if offset == IDE_FEATURES:
            push(drive.regs.features, value)
        elif offset == IDE_COUNT:
            push(drive.regs.count, value)
        elif offset == IDE_LBA_LOW:
            push(drive.regs.low, value)
        elif offset == IDE_LBA_MID:
            push(drive.regs.mid, value)
        elif offset == IDE_LBA_HIGH:
            push(drive.regs.high, value)
        elif offset == IDE_DEVICE:
            drive.regs.device = value


cdef void select(IdeChannel *channel, uint8_t device) noexcept nogil:
    write_task_file(channel, IDE_DEVICE, device)
    channel.selected = 1 if device & DEVICE_DEV else 0
    channel_line(channel)


cdef void diagnose(IdeChannel *channel) noexcept nogil:
    """EXECUTE DIAGNOSTIC: both devices run it, device 0 reports (section 3)."""
    cdef int i
    for i in range(2):
        drop_command(&channel.drives[i])
        set_signature(&channel.drives[i])
    channel.selected = 0
    channel_line(channel)
    channel.drives[0].pending = channel.drives[0].present
    channel_line(channel)


cdef void write_command(IdeChannel *channel, uint8_t code) noexcept nogil:
    cdef IdeDrive *drive = &channel.drives[channel.selected]
    if drive.phase != PHASE_IDLE:
        return                                   # 1.5, CVE-2018-0959: no command restarts while one runs
    if code == COMMAND_EXECUTE_DIAGNOSTIC:
        diagnose(channel)
    elif drive.present:
        command_start(channel, drive, code)


cdef void write_register(IdeChannel *channel, int offset, uint8_t value) noexcept nogil:
    if empty(channel):
        return
    channel.control &= ~CONTROL_HOB & 0xFF
    if channel.control & CONTROL_SRST or channel.drives[channel.selected].phase != PHASE_IDLE:
        return
    if offset == IDE_COMMAND:
        write_command(channel, value)
    elif offset == IDE_DEVICE:
        select(channel, value)
    else:
        write_task_file(channel, offset, value)


cdef void write_control(IdeChannel *channel, uint8_t value) noexcept nogil:
    cdef bint was_reset = (channel.control & CONTROL_SRST) != 0
    cdef int i
    if empty(channel):
        return
    channel.control = value & (CONTROL_HOB | CONTROL_SRST | CONTROL_NIEN)
    if value & CONTROL_SRST and not was_reset:
        for i in range(2):
            drop_command(&channel.drives[i])
    elif was_reset and not value & CONTROL_SRST:
        for i in range(2):
            set_signature(&channel.drives[i])
        channel.selected = 0
    channel_line(channel)


# Bus master (5.1)

cdef inline bint dma_outstanding(const IdeDrive *drive) noexcept nogil:
    return (
        drive.phase == PHASE_MEDIA and drive.command.dma
        and (drive.media.kind == IDE_MEDIA_READ or drive.media.kind == IDE_MEDIA_WRITE)
    )


cdef void write_bus_master(IdeChannel *channel, uint32_t offset, uint32_t width, uint32_t value) noexcept nogil:
    cdef IdeDrive *drive
    cdef int i
    cdef int event = bm_write(&channel.bm, offset, width, value)
    if event == BM_STARTED:
        command_dma(channel, &channel.drives[channel.selected])
    elif event == BM_STOPPED:
        for i in range(2):
            drive = &channel.drives[i]
            # The drive that the transfer served goes idle, after the chunk in hand, without an interrupt.
            if dma_outstanding(drive) or (drive.phase == PHASE_DMA and channel.selected == <uint32_t> i):
                command_abandon(drive)


# Enlightened INT 13 port (7.2)

cdef bint enlightened_command(uint8_t code) noexcept nogil:
    return code in (0xC8, 0xC9, 0xCA, 0xCB, 0x25, 0x35, 0x3D)


cdef bint is_ext(uint8_t code) noexcept nogil:
    return code in (0x25, 0x35, 0x3D)


cdef void end_enlightened(IdeChannel *channel) noexcept nogil:
    """Steps 8 and 9, once the drive is idle."""
    cdef IdeDrive *drive = &channel.drives[channel.held_drive]
    cdef uint8_t status
    if not channel.held or drive.phase != PHASE_IDLE or channel.control & CONTROL_SRST:
        return
    bm_write(&channel.bm, 0, 1, 0)
    status = drive_status(channel, drive)
    drive.pending = False
    if status & STATUS_ERR:
        channel.memory.store(channel.memory.context, channel.held_packet + 3, &status, 1)
    channel.held = False
    channel_line(channel)


cdef void start_enlightened(IdeChannel *channel, uint32_t address) noexcept nogil:
    cdef EnlightenedPacket packet
    cdef IdeDrive *drive
    cdef uint64_t lba
    cdef bint reading
    if empty(channel) or channel.held or channel.control & CONTROL_SRST:
        return
    # Copied once: what the guest changes afterwards is not looked at.
    if channel.memory.fetch(channel.memory.context, address, &packet, sizeof(packet)) != 0:
        return
    channel.control &= ~CONTROL_HOB & 0xFF
    # Before the busy check, and although another drive may be in DRQ: that one must not block this one.
    select(channel, packet.device)
    drive = &channel.drives[channel.selected]
    if not drive.present or drive.phase != PHASE_IDLE or drive.failed or not enlightened_command(packet.command):
        return
    if dma_outstanding(&channel.drives[channel.selected ^ 1]):
        return                                   # the bus master is taken: one DMA per channel (section 8)
    lba = packet.lba_low | <uint64_t> packet.lba_high << 32
    if is_ext(packet.command):
        write_task_file(channel, IDE_COUNT, packet.block_count >> 8)
        write_task_file(channel, IDE_LBA_LOW, lba >> 24 & 0xFF)
        write_task_file(channel, IDE_LBA_MID, lba >> 32 & 0xFF)
        write_task_file(channel, IDE_LBA_HIGH, lba >> 40 & 0xFF)
    write_task_file(channel, IDE_COUNT, packet.block_count & 0xFF)
    write_task_file(channel, IDE_LBA_LOW, lba & 0xFF)
    write_task_file(channel, IDE_LBA_MID, lba >> 8 & 0xFF)
    write_task_file(channel, IDE_LBA_HIGH, lba >> 16 & 0xFF)
    channel.bm.table = packet.data_buffer & ~<uint32_t> 3
    reading = packet.command in (0xC8, 0xC9, 0x25)
    # While held the line stays low, as with nIEN = 1; the guest's own nIEN is not touched.
    channel.held = True
    channel.held_drive = channel.selected
    channel.held_packet = address
    channel_line(channel)
    bm_start(&channel.bm, reading)
    command_start(channel, drive, packet.command)
    end_enlightened(channel)


# Ports

cdef bint valid_width(uint32_t width) noexcept nogil:
    return width == 1 or width == 2 or width == 4


cdef uint32_t read_port(Port port, uint32_t width) noexcept nogil:
    cdef IdeDrive *drive
    cdef uint8_t value
    if port.offset == IDE_DATA:
        return read_data(port.channel, width)
    if port.offset >= PORT_BUS_MASTER:
        return bm_read(&port.channel.bm, port.offset - PORT_BUS_MASTER, width)
    if port.offset == PORT_NONE or port.offset == PORT_ENLIGHTENED:
        return <uint32_t> 0xFFFFFFFF >> (32 - 8 * width)
    value = read_register(port.channel, port.offset)
    if port.offset == IDE_STATUS:
        # 1.6: the value is that from before the clearing.
        drive = &port.channel.drives[port.channel.selected]
        drive.pending = False
        channel_line(port.channel)
    return widen(value, width)


cdef void write_port(Port port, uint32_t width, uint32_t value) noexcept nogil:
    if port.offset == IDE_DATA:
        port.channel.control &= ~CONTROL_HOB & 0xFF
        write_data(port.channel, width, value)
    elif port.offset >= PORT_BUS_MASTER:
        write_bus_master(port.channel, port.offset - PORT_BUS_MASTER, width, value)
    elif port.offset == PORT_ENLIGHTENED:
        if width == 4:
            start_enlightened(port.channel, value)
    elif port.offset == PORT_CONTROL:
        write_control(port.channel, value & 0xFF)
    elif port.offset != PORT_NONE:
        write_register(port.channel, port.offset, value & 0xFF)
    end_enlightened(port.channel)


cdef uint32_t ide_read(IdeController *controller, uint32_t port, uint32_t width) noexcept nogil:
    controller.port_accesses += 1
    if not valid_width(width):
        return <uint32_t> 0xFFFFFFFF                        # section 8: never an error of the VM
    return read_port(decode(controller, port), width)


cdef void ide_write(IdeController *controller, uint32_t port, uint32_t width, uint32_t value) noexcept nogil:
    controller.port_accesses += 1
    if valid_width(width):
        write_port(decode(controller, port), width, value)


cdef inline bint media_outstanding(const IdeChannel *channel) noexcept nogil:
    return channel.drives[0].phase == PHASE_MEDIA or channel.drives[1].phase == PHASE_MEDIA


cdef inline uint32_t run_words(IdeDrive *drive, int phase, uint32_t words) noexcept nogil:
    """6.3: how many whole words of a string the drive's DRQ block takes at once."""
    cdef uint32_t block
    if not drive.present or drive.phase != phase:
        return 0
    block = (drive.command.block_end - drive.command.cursor) // 2
    return block if block < words else words


cdef uint32_t ide_read_string(IdeController *controller, uint32_t port, void *buffer, uint32_t words) noexcept nogil:
    cdef Port at = decode(controller, port)
    cdef uint8_t *to = <uint8_t *> buffer
    cdef bint busy = media_outstanding(at.channel)
    cdef IdeDrive *drive
    cdef uint32_t done = 0, run
    cdef uint16_t word
    controller.port_accesses += 1
    while done < words:
        drive = &at.channel.drives[at.channel.selected]
        run = run_words(drive, PHASE_DATA_IN, words - done) if at.offset == IDE_DATA else 0
        if run:
            memcpy(to + 2 * done, drive.buffer + drive.command.cursor, 2 * run)
            drive.command.cursor += 2 * run
            done += run
            block_moved(at.channel, drive)
        else:
            word = read_port(at, 2) & 0xFFFF
            memcpy(to + 2 * done, &word, 2)
            done += 1
        if not busy and media_outstanding(at.channel):
            break
    controller.string_words += done
    return done


cdef uint32_t ide_write_string(IdeController *controller, uint32_t port, const void *buffer,
                               uint32_t words) noexcept nogil:
    cdef Port at = decode(controller, port)
    cdef const uint8_t *source = <const uint8_t *> buffer
    cdef bint busy = media_outstanding(at.channel)
    cdef IdeDrive *drive
    cdef uint32_t done = 0, run
    cdef uint16_t word
    controller.port_accesses += 1
    while done < words:
        drive = &at.channel.drives[at.channel.selected]
        run = run_words(drive, PHASE_DATA_OUT, words - done) if at.offset == IDE_DATA else 0
        if run:
            at.channel.control &= ~CONTROL_HOB & 0xFF
            memcpy(drive.buffer + drive.command.cursor, source + 2 * done, 2 * run)
            drive.command.cursor += 2 * run
            done += run
            block_moved(at.channel, drive)
        else:
            memcpy(&word, source + 2 * done, 2)
            write_port(at, 2, word)
            done += 1
        if not busy and media_outstanding(at.channel):
            break
    controller.string_words += done
    return done


# Interrupts and media

cdef bint ide_irq(const IdeController *controller, uint32_t channel) noexcept nogil:
    return controller.channels[channel].line


cdef bint ide_held(const IdeController *controller, uint32_t channel) noexcept nogil:
    return controller.channels[channel].held


cdef IdeMedia *ide_media_pending(IdeController *controller, uint32_t number) noexcept nogil:
    cdef IdeChannel *channel = &controller.channels[number]
    cdef int i
    for i in range(2):
        if channel.drives[i].phase == PHASE_MEDIA:
            return &channel.drives[i].media
    return NULL


cdef bint ide_media_complete(IdeController *controller, uint32_t number, uint32_t generation,
                             int disk_status) noexcept nogil:
    cdef IdeChannel *channel = &controller.channels[number]
    cdef IdeDrive *drive
    cdef int i
    for i in range(2):
        drive = &channel.drives[i]
        if drive.phase != PHASE_MEDIA or drive.media.generation != generation:
            continue
        if drive.abandoned:
            drive.abandoned = False
            drive.phase = PHASE_IDLE
        else:
            command_media_done(channel, drive, disk_status)
        end_enlightened(channel)
        return True
    return False
