"""The IDE controller that the guest sees, in the worker (see intercept.pxd)."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.dispatch.handover cimport GuestMedia, guest_counters
from hvcore.hypervisor.intercept cimport (
    ACCESS_WRITE, INFO_REP, INFO_SIZE, INFO_STRING, INTERCEPT_DONE, INTERCEPT_LOST, IO_PORT_INTERCEPT, VpSlot,
    intercept_answer, intercept_line, intercept_ports, intercept_posted)
from hvcore.ide.abi cimport (
    DEVICE_DEV, IDE_BUS_MASTER_BASE, IDE_BUS_MASTER_PORTS, IDE_COMMAND_BLOCK_0, IDE_COMMAND_BLOCK_1, IDE_CONTROL_0,
    IDE_CONTROL_1, IDE_DEVICE,
    IDE_ENLIGHTENED_0, IDE_ENLIGHTENED_1, PCI_CONFIG_ADDRESS, PCI_CONFIG_DATA, PCI_IDE_FUNCTION)
from hvcore.ide.channel cimport PHASE_DATA_IN, PHASE_DATA_OUT, IdeChannel, IdeDrive, IdeMedia
from hvcore.ide.controller cimport (
    IDE_ATTACHED, ide_attach, ide_held, ide_init, ide_irq, ide_media_complete, ide_media_pending, ide_read,
    ide_read_string, ide_write, ide_write_string)
from hvcore.ide.pci cimport ide_pci_read, ide_pci_write
from hvcore.linux.atomics cimport (
    count64, exchange32, fence_full, load_acquire32, load_relaxed32, store_relaxed64, store_release32)
from hvcore.linux.syscalls cimport eventfd_ring
from hvcore.metrics.trace cimport trace_stamp
from hvcore.storage.hops cimport HOP_ACCESS_ANSWERED, HOP_ACCESS_TAKEN, HOP_MEDIA_GIVEN, HOP_MEDIA_POSTED

cdef extern from *:
    """
    #define HV_TRACE_SEQUENCE ((UINT64_C(1) << 40) - 1)
    """
    const uint64_t SEQUENCE "HV_TRACE_SEQUENCE"      # the part of a trace id that counts a disk's requests

cdef enum:
    STRING_MOST = 1024               # elements of one intercept (ide.md 6.3)
    PIO = 65536                      # of a drive's buffer
    NO_CHANNEL = 2


# Guest memory, as the controller reaches it: PRD tables and enlightened packets.

cdef int memory_fetch(void *context, uint32_t address, void *destination, uint32_t bytes_) noexcept nogil:
    cdef GuestIde *ide = <GuestIde *> context
    if address > ide.guest_bytes or ide.guest_bytes - address < bytes_:
        return -1
    memcpy(destination, ide.guest + address, bytes_)
    return 0


cdef int memory_store(void *context, uint32_t address, const void *source, uint32_t bytes_) noexcept nogil:
    cdef GuestIde *ide = <GuestIde *> context
    if address > ide.guest_bytes or ide.guest_bytes - address < bytes_:
        return -1
    memcpy(ide.guest + address, source, bytes_)
    return 0


# Which ports are intercepted: the fixed ones by the host, the bus master's as its PCI function says.

cdef inline bint fixed_port(uint32_t port) noexcept nogil:
    return (
        port & ~<uint32_t> 7 == IDE_COMMAND_BLOCK_0 or port & ~<uint32_t> 7 == IDE_COMMAND_BLOCK_1
        or port == IDE_CONTROL_0 or port == IDE_CONTROL_1
        or port == IDE_ENLIGHTENED_0 or port == IDE_ENLIGHTENED_1
        or port & ~<uint32_t> 7 == PCI_CONFIG_ADDRESS
    )


cdef void route_bus_master(GuestIde *ide, bint on) noexcept nogil:
    cdef uint32_t port
    if not ide.controller.bus_master_mapped:
        return
    for port in range(ide.controller.bus_master, <uint32_t> ide.controller.bus_master + IDE_BUS_MASTER_PORTS):
        if not fixed_port(port):             # 1.2: static regions win
            intercept_ports(ide.pages, port, 1, on)


cdef uint32_t config_read(GuestIde *ide, uint32_t port, uint32_t width) noexcept nogil:
    """Configuration mechanism 1: a dword address at CF8, its bytes at CFC to CFF; functions that are not there read
    ones."""
    cdef uint32_t ones = <uint32_t> 0xFFFFFFFF >> (32 - 8 * width)
    cdef uint32_t offset = port - PCI_CONFIG_DATA, value
    if port == PCI_CONFIG_ADDRESS and width == 4:
        return ide.config_address
    if port < PCI_CONFIG_DATA or offset + width > 4 or ide.config_address >> 8 != PCI_IDE_FUNCTION:
        return ones
    value = ide_pci_read(&ide.controller, ide.config_address & 0xFC)
    return value >> 8 * offset & ones


cdef void config_write(GuestIde *ide, uint32_t port, uint32_t width, uint32_t value) noexcept nogil:
    cdef uint32_t ones = <uint32_t> 0xFFFFFFFF >> (32 - 8 * width)
    cdef uint32_t offset = port - PCI_CONFIG_DATA, dword
    if port == PCI_CONFIG_ADDRESS and width == 4:
        ide.config_address = value & <uint32_t> 0x80FFFFFC
        return
    if port < PCI_CONFIG_DATA or offset + width > 4 or ide.config_address >> 8 != PCI_IDE_FUNCTION:
        return
    dword = ide_pci_read(&ide.controller, ide.config_address & 0xFC)
    dword = (dword & ~(ones << 8 * offset)) | (value & ones) << 8 * offset
    route_bus_master(ide, False)
    ide_pci_write(&ide.controller, ide.config_address & 0xFC, dword)
    route_bus_master(ide, True)


cdef uint32_t channel_of(const GuestIde *ide, uint32_t port) noexcept nogil:
    """The IDE channel that the port belongs to, NO_CHANNEL: none."""
    cdef uint32_t base = ide.controller.bus_master
    if port & ~<uint32_t> 7 == IDE_COMMAND_BLOCK_0 or port == IDE_CONTROL_0 or port == IDE_ENLIGHTENED_0:
        return 0
    if port & ~<uint32_t> 7 == IDE_COMMAND_BLOCK_1 or port == IDE_CONTROL_1 or port == IDE_ENLIGHTENED_1:
        return 1
    if ide.controller.bus_master_mapped and port >= base and port - base < IDE_BUS_MASTER_PORTS:
        return (port - base) // 8
    return NO_CHANNEL


# Interrupt lines and media.

cdef void show_lines(GuestIde *ide) noexcept nogil:
    cdef uint32_t i, high
    for i in range(2):
        high = ide_irq(&ide.controller, i)
        if high != load_relaxed32(&ide.pages.interrupts[i].line):
            intercept_line(ide.pages, i, high)


cdef void post_media(GuestIde *ide, uint32_t number, const IdeMedia *media) noexcept nogil:
    cdef GuestMedia *block = &ide.shared.guest_media[number]
    cdef GuestChannel *channel = &ide.channels[number]
    cdef uint32_t drive = media.drive & 1, i
    cdef Counters *counters = guest_counters(ide.shared, media.drive)
    block.kind = <uint32_t> media.kind
    block.drive = drive
    block.lba = media.lba
    block.sectors = media.sectors
    block.sequence = ide.controller.channels[number].drives[drive].commands
    block.dma = media.buffer == NULL
    block.tail_bytes = media.tail_bytes
    block.segment_count = media.segment_count
    block.buffer_offset = 0
    if media.buffer != NULL:
        block.buffer_offset = <uint32_t> (media.buffer - &block.pio[drive * PIO])
    for i in range(media.segment_count):
        block.segments[i].address = media.segments[i].address
        block.segments[i].bytes = media.segments[i].bytes
    channel.generation = media.generation
    channel.outstanding = True
    channel.stale = False
    channel.trace_id = ide.trace_base[media.drive] | (block.sequence & SEQUENCE)
    trace_stamp(ide.trace, channel.trace_id, 0, HOP_MEDIA_POSTED, number)
    count64(&counters.media_accesses, 1)
    channel.posted += 1
    # Release: the host that sees the number sees the request. Full fence: against the host, which writes its sleep word
    # and then looks at the number once more.
    store_release32(&block.posted, channel.posted)
    fence_full()
    if load_relaxed32(&ide.shared.host_sleep) and exchange32(&ide.shared.host_sleep, 0):
        count64(&counters.doorbells, 1)
        eventfd_ring(ide.bell)


cdef void ask_media(GuestIde *ide) noexcept nogil:
    cdef IdeMedia *media
    cdef uint32_t i
    for i in range(2):
        if not ide.channels[i].outstanding:
            media = ide_media_pending(&ide.controller, i)
            if media != NULL:
                post_media(ide, i, media)


cdef inline bint media_answered(const GuestIde *ide, uint32_t number) noexcept nogil:
    # Acquire: who sees the number sees the status, and the data.
    return (
        ide.channels[number].outstanding
        and load_acquire32(&ide.shared.guest_media[number].answered) == ide.channels[number].posted
    )


# Accesses.

cdef inline bint busy(GuestIde *ide) noexcept nogil:
    """Whether the channel of the access at hand waits for its medium."""
    return ide.channel < NO_CHANNEL and ide_media_pending(&ide.controller, ide.channel) != NULL


cdef bint run_string(GuestIde *ide, uint32_t port, uint32_t width, bint write) noexcept nogil:
    """Goes on with the string; False: it ran into a busy drive.

    A string that reaches the end of a DRQ block waits for the drive, as the processor does on a bus that is not ready.
    """
    cdef uint64_t address = ide.message.rsi if write else ide.message.rdi
    cdef uint64_t bytes_ = <uint64_t> ide.most * width, at
    cdef uint32_t value
    cdef bint inside = address <= ide.guest_bytes and ide.guest_bytes - address >= bytes_
    while ide.done < ide.most:
        at = address + ide.done * width
        if inside and width == 2:
            if write:
                ide.done += ide_write_string(&ide.controller, port, ide.guest + at, ide.most - <uint32_t> ide.done)
            else:
                ide.done += ide_read_string(&ide.controller, port, ide.guest + at, ide.most - <uint32_t> ide.done)
        else:
            # Element by element; where there is no memory nothing is written, and ones are read.
            value = 0xFFFFFFFF
            if write:
                if inside or (at <= ide.guest_bytes and ide.guest_bytes - at >= width):
                    memcpy(&value, ide.guest + at, width)
                ide_write(&ide.controller, port, width, value)
            else:
                value = ide_read(&ide.controller, port, width)
                if inside or (at <= ide.guest_bytes and ide.guest_bytes - at >= width):
                    memcpy(ide.guest + at, &value, width)
            ide.done += 1
        if ide.done < ide.most and busy(ide):
            return False
    return True


cdef void publish(GuestIde *ide) noexcept nogil:
    """What the drives have counted themselves, before the guest can see what was counted."""
    cdef uint32_t i
    for i in range(4):
        store_relaxed64(&guest_counters(ide.shared, i).requests,
                        ide.commands[i] + ide.controller.channels[i // 2].drives[i % 2].commands)


cdef void finish_access(GuestIde *ide) noexcept nogil:
    """Answers the access at hand, unless it is held: by an enlightened request (7.2), or a string by a busy drive."""
    cdef VpSlot *slot = &ide.pages.vp
    cdef uint32_t width = ide.message.access_info & INFO_SIZE
    cdef bint write = ide.message.access_type == ACCESS_WRITE
    cdef bint string = ide.message.access_info & INFO_STRING != 0
    if string and ide.done < ide.most and (
            (ide.done and busy(ide)) or not run_string(ide, ide.message.port, width, write)):
        ask_media(ide)
        return
    ask_media(ide)
    if ide.channel < NO_CHANNEL and ide_held(&ide.controller, ide.channel):
        return
    if string:
        slot.rcx = ide.message.rcx - ide.done
        slot.rsi = ide.message.rsi + (ide.done * width if write else 0)
        slot.rdi = ide.message.rdi + (0 if write else ide.done * width)
        if ide.counters != NULL:
            count64(&ide.counters.bytes_copied, ide.done * width)
    ide.held = False
    publish(ide)
    show_lines(ide)
    slot.status = INTERCEPT_DONE
    trace_stamp(ide.trace, ide.trace_id, 0, HOP_ACCESS_ANSWERED, ide.message.port)
    intercept_answer(ide.pages, ide.seen)


cdef void count_access(GuestIde *ide, uint32_t port, uint32_t width, bint write) noexcept nogil:
    """By the drive that is selected, or that the access selects: a register programme's first access is its own."""
    cdef IdeChannel *channel = &ide.controller.channels[ide.channel]
    cdef uint32_t selected = channel.selected
    if write and port & 7 == IDE_DEVICE and port < IDE_CONTROL_1:
        selected = 1 if ide.message.rax & DEVICE_DEV else 0
    cdef IdeDrive *drive = &channel.drives[selected]
    cdef int moving = PHASE_DATA_OUT if write else PHASE_DATA_IN
    ide.counters = guest_counters(ide.shared, drive.number)
    count64(&ide.counters.port_accesses, 1)
    count64(&ide.counters.intercepts, 1)
    if port & 7 == 0 and port < IDE_BUS_MASTER_BASE and drive.phase == moving:
        if not ide.message.access_info & INFO_STRING:
            count64(&ide.counters.bytes_copied, width)
    ide.trace_id = ide.trace_base[drive.number] | (drive.commands & SEQUENCE)
    trace_stamp(ide.trace, ide.trace_id, 0, HOP_ACCESS_TAKEN, port)


cdef void start_access(GuestIde *ide) noexcept nogil:
    cdef VpSlot *slot = &ide.pages.vp
    cdef PortIntercept *message = &ide.message
    cdef uint32_t port, width
    cdef bint write
    # Fetched once. A message of another kind, or meant for an earlier worker, is none for this one.
    if slot.type != IO_PORT_INTERCEPT or slot.payload_size != sizeof(PortIntercept) or slot.epoch != ide.epoch:
        slot.status = INTERCEPT_LOST
        intercept_answer(ide.pages, ide.seen)
        return
    message.access_type = slot.body.access_type
    message.port = slot.body.port
    message.access_info = slot.body.access_info
    message.rax = slot.body.rax
    port = message.port
    width = message.access_info & INFO_SIZE
    write = message.access_type == ACCESS_WRITE
    ide.channel = channel_of(ide, port)
    ide.counters = NULL
    if ide.channel < NO_CHANNEL:
        count_access(ide, port, width, write)
    slot.rax = 0xFFFFFFFF
    ide.held = True
    if width != 1 and width != 2 and width != 4:
        message.access_info = 0              # no such instruction: section 8, never an error of the VM
    elif message.access_info & INFO_STRING:
        message.rcx = slot.body.rcx
        message.rsi = slot.body.rsi
        message.rdi = slot.body.rdi
        if not message.access_info & INFO_REP:
            message.rcx = 1
        ide.done = 0
        ide.most = <uint32_t> message.rcx if message.rcx < STRING_MOST else STRING_MOST
    elif port & ~<uint32_t> 7 == PCI_CONFIG_ADDRESS:
        if write:
            config_write(ide, port, width, <uint32_t> message.rax)
        else:
            slot.rax = config_read(ide, port, width)
    elif write:
        ide_write(&ide.controller, port, width, <uint32_t> message.rax)
    else:
        slot.rax = ide_read(&ide.controller, port, width)
    finish_access(ide)


cdef void media_done(GuestIde *ide, uint32_t number) noexcept nogil:
    cdef GuestChannel *channel = &ide.channels[number]
    channel.outstanding = False
    if ide.pages == NULL:
        return
    if channel.stale:                        # of a guest that is gone; its successor's request may have waited for it
        ask_media(ide)
        return
    trace_stamp(ide.trace, channel.trace_id, 0, HOP_MEDIA_GIVEN, number)
    ide_media_complete(&ide.controller, number, channel.generation, ide.shared.guest_media[number].status)
    if ide.held:
        finish_access(ide)
    else:
        ask_media(ide)
        show_lines(ide)


# Entry points.

cdef void guest_ide_init(GuestIde *ide, HandOver *shared, int bell, TraceRing *trace) noexcept nogil:
    memset(ide, 0, sizeof(GuestIde))
    ide.shared = shared
    ide.bell = bell
    ide.trace = trace
    ide.memory.context = ide
    ide.memory.fetch = memory_fetch
    ide.memory.store = memory_store


cdef int guest_ide_add(GuestIde *ide, uint32_t place, const IdeDriveSetup *setup, uint64_t trace_base) noexcept nogil:
    cdef IdeDriveSetup *kept = &ide.setups[place]
    cdef int status
    kept[0] = setup[0]
    kept.buffer = &ide.shared.guest_media[place // 2].pio[place % 2 * PIO]
    # Into a controller that nobody uses yet, to hear whether it fits.
    status = ide_attach(&ide.controller, place, kept)
    if status == IDE_ATTACHED:
        ide.trace_base[place] = trace_base
        ide.present[place] = True
        ide.any = True
    return status


cdef void guest_ide_attach(GuestIde *ide, InterceptPages *pages, uint8_t *guest, uint64_t guest_bytes,
                           uint32_t epoch) noexcept nogil:
    cdef uint32_t i
    ide.pages = pages
    ide.guest = guest
    ide.guest_bytes = guest_bytes
    ide.epoch = epoch
    ide.held = False
    ide.config_address = 0
    for i in range(2):
        ide.channels[i].stale = ide.channels[i].outstanding
    for i in range(4):
        ide.commands[i] += ide.controller.channels[i // 2].drives[i % 2].commands
        ide.controller.channels[i // 2].drives[i % 2].commands = 0
    if pages == NULL:
        return
    # The bus master reaches no more than 32 bits; what lies above is not memory to it.
    ide.memory.size_bytes = guest_bytes
    ide_init(&ide.controller, IDE_BUS_MASTER_BASE, &ide.memory)
    for i in range(4):
        if ide.present[i]:
            ide_attach(&ide.controller, i, &ide.setups[i])
    route_bus_master(ide, True)
    show_lines(ide)
    # What an earlier worker had in hand is answered, and nothing was done.
    ide.seen = intercept_posted(pages)
    pages.vp.status = INTERCEPT_LOST
    intercept_answer(pages, ide.seen)


cdef bint guest_ide_ready(const GuestIde *ide) noexcept nogil:
    return (
        (ide.pages != NULL and not ide.held and intercept_posted(ide.pages) != ide.seen)
        or media_answered(ide, 0) or media_answered(ide, 1)
    )


cdef bint guest_ide_poll(GuestIde *ide) noexcept nogil:
    cdef bint work = False
    cdef uint32_t posted = ide.seen, i
    # The guest's number first: what the host had answered before the access came is then seen before it is served.
    if ide.pages != NULL:
        posted = intercept_posted(ide.pages)
    for i in range(2):
        if media_answered(ide, i):
            media_done(ide, i)
            work = True
    if posted != ide.seen and not ide.held:
        ide.seen = posted
        start_access(ide)
        work = True
    return work
