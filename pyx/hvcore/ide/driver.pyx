"""The IDE driver: register programmes with as few port accesses as the hardware allows (ide.md 6.1).

A 4 KiB read at a 28-bit address costs 15 accesses in mode dma, 2063 in pio, 23 in pio-string, 16 in pio-multiple; 48
bits cost four more. A PIO write costs one more than the read: its first block comes without an interrupt (4.3), so the
driver looks at the status once.
"""

from collections import namedtuple

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from hvcore.ide.abi cimport (
    BM_COMMAND,
    BM_ERROR,
    BM_INTERRUPT,
    BM_START,
    BM_STATUS,
    BM_TABLE,
    BM_TO_MEMORY,
    COMMAND_DATA_SET_MANAGEMENT,
    COMMAND_FLUSH,
    COMMAND_IDENTIFY,
    COMMAND_READ,
    COMMAND_READ_DMA,
    COMMAND_READ_DMA_EXT,
    COMMAND_READ_EXT,
    COMMAND_READ_MULTIPLE,
    COMMAND_READ_MULTIPLE_EXT,
    COMMAND_WRITE,
    COMMAND_WRITE_DMA,
    COMMAND_WRITE_DMA_EXT,
    COMMAND_WRITE_EXT,
    COMMAND_WRITE_MULTIPLE,
    COMMAND_WRITE_MULTIPLE_EXT,
    DEVICE_DEV,
    DEVICE_LBA,
    IDE_COMMAND,
    IDE_COMMAND_BLOCK_0,
    IDE_COMMAND_BLOCK_1,
    IDE_COUNT,
    IDE_DATA,
    IDE_DEVICE,
    IDE_ERROR,
    IDE_FEATURES,
    IDE_LBA28_SECTORS,
    IDE_LBA48_SECTORS,
    IDE_LBA_HIGH,
    IDE_LBA_LOW,
    IDE_LBA_MID,
    IDE_MULTIPLE_MAX,
    IDE_SECTOR,
    IDE_SECTOR_WORDS,
    IDE_STATUS,
    PRD_END_OF_TABLE,
    STATUS_BSY,
    STATUS_DRDY,
    STATUS_DRQ,
    STATUS_ERR,
    Prd,
)
from hvcore.ide.controller cimport ide_irq, ide_read, ide_read_string, ide_write, ide_write_string
from hvcore.ide.device cimport Controller

cdef enum:
    STAGE_DONE = 0
    STAGE_ISSUE = 1
    STAGE_DATA_IN = 2
    STAGE_DATA_OUT = 3
    STAGE_DMA = 4
    STAGE_NO_DATA = 5

cdef enum:
    TABLE_ENTRIES = 512              # one page
    COMMAND_SECTORS = 65536          # 3.1: the most that one EXT command names


# Port accesses: each caller counts

cdef inline uint32_t port_read(IdeDriver *driver, uint32_t port, uint32_t width) noexcept nogil:
    if driver.controller != NULL:
        return ide_read(driver.controller, port, width)
    return driver.ports.read(driver.ports.state, port, width)


cdef inline void port_write(IdeDriver *driver, uint32_t port, uint32_t width, uint32_t value) noexcept nogil:
    if driver.controller != NULL:
        ide_write(driver.controller, port, width, value)
    else:
        driver.ports.write(driver.ports.state, port, width, value)


cdef inline void port_read_string(IdeDriver *driver, uint32_t port, uint8_t *data, uint32_t words) noexcept nogil:
    if driver.controller != NULL:
        ide_read_string(driver.controller, port, data, words)
    else:
        driver.ports.read_string(driver.ports.state, port, data, words)


cdef inline void port_write_string(IdeDriver *driver, uint32_t port, const uint8_t *data,
                                   uint32_t words) noexcept nogil:
    if driver.controller != NULL:
        ide_write_string(driver.controller, port, data, words)
    else:
        driver.ports.write_string(driver.ports.state, port, data, words)


cdef inline bint interrupt(IdeDriver *driver) noexcept nogil:
    if driver.controller != NULL:
        return ide_irq(driver.controller, driver.channel)
    return driver.ports.irq(driver.ports.state, driver.channel)


cdef inline uint8_t get(IdeDriver *driver, uint32_t port) noexcept nogil:
    driver.result.port_accesses += 1
    return port_read(driver, port, 1) & 0xFF


cdef inline void put(IdeDriver *driver, uint32_t port, uint8_t value) noexcept nogil:
    driver.result.port_accesses += 1
    port_write(driver, port, 1, value)


cdef inline uint8_t get_status(IdeDriver *driver) noexcept nogil:
    driver.result.status = get(driver, driver.command_block + IDE_STATUS)
    return driver.result.status


cdef int done(IdeDriver *driver, int outcome) noexcept nogil:
    driver.result.outcome = outcome
    driver.stage = STAGE_DONE
    return IDE_DRIVER_DONE


cdef int failed(IdeDriver *driver) noexcept nogil:
    driver.result.error = get(driver, driver.command_block + IDE_ERROR)
    return done(driver, IDE_OUTCOME_ERROR)


# PRD table

cdef uint32_t piece(const IdeDriver *driver, uint32_t segment, uint32_t offset, uint64_t limit) noexcept nogil:
    """Bytes of one entry: to the end of the segment, not across 64 KiB, at most `limit`."""
    cdef const IdeSegment *memory = &driver.request.segments[segment]
    cdef uint32_t bytes = memory.bytes - offset
    cdef uint32_t room = 0x10000 - (memory.address + offset & 0xFFFF)
    if bytes > room:
        bytes = room
    return bytes if bytes < limit else <uint32_t> limit


cdef uint32_t table_reach(const IdeDriver *driver, uint32_t sectors) noexcept nogil:
    """How many of these sectors one page of entries can name."""
    cdef uint64_t wanted = <uint64_t> sectors * IDE_SECTOR, bytes = 0
    cdef uint32_t segment = driver.segment, offset = driver.segment_offset, entries = 0, taken
    while entries < TABLE_ENTRIES and bytes < wanted:
        taken = piece(driver, segment, offset, wanted - bytes)
        bytes += taken
        offset += taken
        entries += 1
        if offset == driver.request.segments[segment].bytes:
            segment += 1
            offset = 0
    return <uint32_t> (bytes // IDE_SECTOR)


cdef void fill_table(IdeDriver *driver, uint32_t sectors) noexcept nogil:
    cdef uint64_t missing = <uint64_t> sectors * IDE_SECTOR
    cdef uint32_t entries = 0, taken
    cdef Prd entry
    while missing:
        taken = piece(driver, driver.segment, driver.segment_offset, missing)
        missing -= taken
        entry.base = driver.request.segments[driver.segment].address + driver.segment_offset
        entry.count = taken & 0xFFFF             # 65536 is written as 0
        entry.flags = 0 if missing else PRD_END_OF_TABLE
        memcpy(driver.table + entries * sizeof(Prd), &entry, sizeof(Prd))
        entries += 1
        driver.segment_offset += taken
        if driver.segment_offset == driver.request.segments[driver.segment].bytes:
            driver.segment += 1
            driver.segment_offset = 0


cdef bint valid_segments(const IdeDriver *driver) noexcept nogil:
    cdef const IdeRequest *request = &driver.request
    cdef uint64_t total = 0
    cdef uint32_t i
    if driver.table == NULL:
        return False
    for i in range(request.segment_count):
        if request.segments[i].bytes == 0 or (request.segments[i].address | request.segments[i].bytes) & 1:
            return False
        if <uint64_t> request.segments[i].address + request.segments[i].bytes > <uint64_t> 1 << 32:
            return False
        total += request.segments[i].bytes
    return total == <uint64_t> request.sectors * IDE_SECTOR


cdef bint valid(const IdeDriver *driver) noexcept nogil:
    cdef const IdeRequest *request = &driver.request
    if request.drive > 1:
        return False
    if request.kind == IDE_REQUEST_FLUSH:
        return True
    if request.kind == IDE_REQUEST_IDENTIFY:
        return request.data != NULL
    if request.kind == IDE_REQUEST_TRIM:
        return valid_segments(driver)
    if request.kind != IDE_REQUEST_READ and request.kind != IDE_REQUEST_WRITE:
        return False
    if request.sectors == 0 or request.lba > IDE_LBA48_SECTORS or IDE_LBA48_SECTORS - request.lba < request.sectors:
        return False
    if request.mode == IDE_MODE_DMA:
        return valid_segments(driver)
    return IDE_MODE_PIO <= request.mode <= IDE_MODE_PIO_MULTIPLE and request.data != NULL


# Issue (6.1)

cdef uint8_t command_code(const IdeDriver *driver, bint ext) noexcept nogil:
    cdef int mode = driver.request.mode
    if driver.request.kind == IDE_REQUEST_READ:
        if mode == IDE_MODE_DMA:
            return COMMAND_READ_DMA_EXT if ext else COMMAND_READ_DMA
        if mode == IDE_MODE_PIO_MULTIPLE:
            return COMMAND_READ_MULTIPLE_EXT if ext else COMMAND_READ_MULTIPLE
        return COMMAND_READ_EXT if ext else COMMAND_READ
    if mode == IDE_MODE_DMA:
        return COMMAND_WRITE_DMA_EXT if ext else COMMAND_WRITE_DMA
    if mode == IDE_MODE_PIO_MULTIPLE:
        return COMMAND_WRITE_MULTIPLE_EXT if ext else COMMAND_WRITE_MULTIPLE
    return COMMAND_WRITE_EXT if ext else COMMAND_WRITE


cdef bint select_drive(IdeDriver *driver, uint8_t device) noexcept nogil:
    cdef uint8_t status
    put(driver, driver.command_block + IDE_DEVICE, device | (DEVICE_DEV if driver.request.drive else 0))
    status = get_status(driver)
    # An empty channel reads 7F, an absent drive 00 (1.4): neither is ready.
    return status & (STATUS_BSY | STATUS_DRQ) == 0 and status & STATUS_DRDY != 0


cdef void put_count_and_address(IdeDriver *driver, uint32_t count, uint64_t lba) noexcept nogil:
    put(driver, driver.command_block + IDE_COUNT, count & 0xFF)
    put(driver, driver.command_block + IDE_LBA_LOW, lba & 0xFF)
    put(driver, driver.command_block + IDE_LBA_MID, lba >> 8 & 0xFF)
    put(driver, driver.command_block + IDE_LBA_HIGH, lba >> 16 & 0xFF)


cdef void prepare_dma(IdeDriver *driver) noexcept nogil:
    fill_table(driver, driver.command_sectors)
    driver.result.port_accesses += 1
    port_write(driver, driver.bus_master + BM_TABLE, 4, driver.table_address)
    put(driver, driver.bus_master + BM_COMMAND, dma_direction(driver))
    put(driver, driver.bus_master + BM_STATUS, BM_ERROR | BM_INTERRUPT)


cdef inline uint8_t dma_direction(const IdeDriver *driver) noexcept nogil:
    return BM_TO_MEMORY if driver.request.kind == IDE_REQUEST_READ else 0


cdef int issue_transfer(IdeDriver *driver) noexcept nogil:
    cdef IdeRequest *request = &driver.request
    cdef uint64_t lba = request.lba + driver.result.sectors_done
    cdef uint32_t count = request.sectors - driver.result.sectors_done
    cdef bint ext, reading = request.kind == IDE_REQUEST_READ
    cdef bint dma = request.mode == IDE_MODE_DMA
    if count > COMMAND_SECTORS:
        count = COMMAND_SECTORS
    if dma:
        count = table_reach(driver, count)
        if count == 0:
            return done(driver, IDE_OUTCOME_REFUSED)         # a sector in more pieces than a table holds
    ext = count > 256 or lba + count > IDE_LBA28_SECTORS
    driver.command_sectors = count
    driver.command_done = 0
    if not select_drive(driver, DEVICE_LBA if ext else DEVICE_LBA | <uint8_t> (lba >> 24)):
        return done(driver, IDE_OUTCOME_NOT_READY)
    if ext:
        put_count_and_address(driver, count >> 8, lba >> 24)
    put_count_and_address(driver, count, lba)
    if dma:
        prepare_dma(driver)
    put(driver, driver.command_block + IDE_COMMAND, command_code(driver, ext))
    driver.result.commands += 1
    if dma:
        put(driver, driver.bus_master + BM_COMMAND, BM_START | dma_direction(driver))
        driver.stage = STAGE_DMA
    elif reading:
        driver.stage = STAGE_DATA_IN
    else:
        driver.stage = STAGE_DATA_OUT
        return first_block(driver)
    return IDE_DRIVER_WAITING


cdef int issue_trim(IdeDriver *driver) noexcept nogil:
    """DATA SET MANAGEMENT (3.3). The count is 16 bits deep: its high byte first."""
    if table_reach(driver, 1) == 0:
        return done(driver, IDE_OUTCOME_REFUSED)
    driver.command_sectors = 1
    if not select_drive(driver, DEVICE_LBA):
        return done(driver, IDE_OUTCOME_NOT_READY)
    put(driver, driver.command_block + IDE_FEATURES, 1)
    put(driver, driver.command_block + IDE_COUNT, 0)
    put(driver, driver.command_block + IDE_COUNT, 1)
    prepare_dma(driver)
    put(driver, driver.command_block + IDE_COMMAND, COMMAND_DATA_SET_MANAGEMENT)
    driver.result.commands += 1
    put(driver, driver.bus_master + BM_COMMAND, BM_START)
    driver.stage = STAGE_DMA
    return IDE_DRIVER_WAITING


cdef int issue(IdeDriver *driver) noexcept nogil:
    if driver.request.kind == IDE_REQUEST_READ or driver.request.kind == IDE_REQUEST_WRITE:
        return issue_transfer(driver)
    if driver.request.kind == IDE_REQUEST_TRIM:
        return issue_trim(driver)
    if not select_drive(driver, DEVICE_LBA):
        return done(driver, IDE_OUTCOME_NOT_READY)
    driver.command_done = 0
    driver.result.commands += 1
    if driver.request.kind == IDE_REQUEST_FLUSH:
        driver.stage = STAGE_NO_DATA
        put(driver, driver.command_block + IDE_COMMAND, COMMAND_FLUSH)
    else:
        driver.command_sectors = 1
        driver.stage = STAGE_DATA_IN
        put(driver, driver.command_block + IDE_COMMAND, COMMAND_IDENTIFY)
    return IDE_DRIVER_WAITING


cdef int command_ended(IdeDriver *driver) noexcept nogil:
    """One command is through; the next one, or the end."""
    if driver.result.sectors_done < driver.request.sectors:
        driver.stage = STAGE_ISSUE
        return IDE_DRIVER_WAITING
    return done(driver, IDE_OUTCOME_OK)


# Data port

cdef uint32_t block_sectors(const IdeDriver *driver) noexcept nogil:
    cdef uint32_t left = driver.command_sectors - driver.command_done
    cdef uint32_t block = 1
    if driver.request.mode == IDE_MODE_PIO_MULTIPLE and driver.request.kind != IDE_REQUEST_IDENTIFY:
        block = driver.multiple
    return block if block < left else left


cdef void move_block(IdeDriver *driver, bint reading) noexcept nogil:
    cdef uint32_t port = driver.command_block + IDE_DATA
    cdef uint32_t sectors = block_sectors(driver), left = sectors, i
    cdef uint8_t *data = driver.request.data + <uint64_t> driver.result.sectors_done * IDE_SECTOR
    cdef uint16_t word
    while left:
        left -= 1
        if driver.request.mode != IDE_MODE_PIO:
            if reading:
                port_read_string(driver, port, data, IDE_SECTOR_WORDS)
            else:
                port_write_string(driver, port, data, IDE_SECTOR_WORDS)
            driver.result.port_accesses += 1
        else:
            for i in range(<uint32_t> IDE_SECTOR_WORDS):
                if reading:
                    word = port_read(driver, port, 2) & 0xFFFF
                    memcpy(data + 2 * i, &word, 2)
                else:
                    memcpy(&word, data + 2 * i, 2)
                    port_write(driver, port, 2, word)
            driver.result.port_accesses += IDE_SECTOR_WORDS
        data += IDE_SECTOR
    driver.command_done += sectors
    driver.result.sectors_done += sectors
    driver.result.bytes_copied += <uint64_t> sectors * IDE_SECTOR


cdef int first_block(IdeDriver *driver) noexcept nogil:
    """4.3: the drive asks for the first block without an interrupt."""
    cdef uint8_t status = get_status(driver)
    if status & STATUS_ERR:
        return failed(driver)
    if not status & STATUS_DRQ:
        return done(driver, IDE_OUTCOME_UNEXPECTED)
    move_block(driver, False)
    return IDE_DRIVER_WAITING


cdef int data_in(IdeDriver *driver) noexcept nogil:
    cdef uint8_t status = get_status(driver)
    if status & STATUS_ERR:
        return failed(driver)
    if not status & STATUS_DRQ:
        return done(driver, IDE_OUTCOME_UNEXPECTED)
    move_block(driver, True)
    if driver.command_done < driver.command_sectors:
        return IDE_DRIVER_WAITING
    return command_ended(driver)


cdef int data_out(IdeDriver *driver) noexcept nogil:
    cdef uint8_t status = get_status(driver)
    cdef bint more = driver.command_done < driver.command_sectors
    if status & STATUS_ERR:
        return failed(driver)
    if more != (status & STATUS_DRQ != 0):
        return done(driver, IDE_OUTCOME_UNEXPECTED)
    if not more:
        return command_ended(driver)
    move_block(driver, False)
    return IDE_DRIVER_WAITING


cdef int dma_end(IdeDriver *driver) noexcept nogil:
    cdef uint8_t status
    driver.result.bm_status = get(driver, driver.bus_master + BM_STATUS)
    put(driver, driver.bus_master + BM_COMMAND, dma_direction(driver))
    status = get_status(driver)
    put(driver, driver.bus_master + BM_STATUS, BM_ERROR | BM_INTERRUPT)
    if driver.result.bm_status & BM_ERROR:
        driver.result.error = get(driver, driver.command_block + IDE_ERROR)
        return done(driver, IDE_OUTCOME_DMA)
    if status & STATUS_ERR:
        return failed(driver)
    if status & (STATUS_BSY | STATUS_DRQ):
        return done(driver, IDE_OUTCOME_UNEXPECTED)
    driver.result.sectors_done += driver.command_sectors
    return command_ended(driver)


cdef int no_data_end(IdeDriver *driver) noexcept nogil:
    if get_status(driver) & STATUS_ERR:
        return failed(driver)
    return done(driver, IDE_OUTCOME_OK)


# Entry points

cdef void init(IdeDriver *driver, uint32_t channel, void *table, uint32_t table_address) noexcept nogil:
    driver.channel = channel
    driver.command_block = IDE_COMMAND_BLOCK_1 if channel else IDE_COMMAND_BLOCK_0
    driver.table = <uint8_t *> table
    driver.table_address = table_address
    driver.multiple = IDE_MULTIPLE_MAX
    driver.stage = STAGE_DONE


cdef void ide_driver_init(IdeDriver *driver, IdeController *controller, uint32_t channel, void *table,
                          uint32_t table_address) noexcept nogil:
    memset(driver, 0, sizeof(IdeDriver))
    driver.controller = controller
    driver.bus_master = controller.bus_master + 8 * channel
    init(driver, channel, table, table_address)


cdef void ide_driver_init_ports(IdeDriver *driver, const IdePorts *ports, uint32_t channel, uint16_t bus_master,
                                void *table, uint32_t table_address) noexcept nogil:
    memset(driver, 0, sizeof(IdeDriver))
    driver.ports = ports[0]
    driver.bus_master = bus_master + 8 * channel
    init(driver, channel, table, table_address)


cdef void ide_driver_begin(IdeDriver *driver, const IdeRequest *request) noexcept nogil:
    driver.request = request[0]
    memset(&driver.result, 0, sizeof(IdeDriverResult))
    driver.segment = 0
    driver.segment_offset = 0
    if request.kind != IDE_REQUEST_READ and request.kind != IDE_REQUEST_WRITE:
        driver.request.sectors = 0 if request.kind == IDE_REQUEST_FLUSH else 1
    driver.stage = STAGE_ISSUE
    if not valid(driver):
        done(driver, IDE_OUTCOME_REFUSED)


cdef int ide_driver_step(IdeDriver *driver) noexcept nogil:
    cdef int progress = IDE_DRIVER_WAITING
    while driver.stage != STAGE_DONE:
        if driver.stage == STAGE_ISSUE:
            progress = issue(driver)
            continue
        if not interrupt(driver):
            return IDE_DRIVER_WAITING
        driver.result.interrupts += 1
        if driver.stage == STAGE_DATA_IN:
            progress = data_in(driver)
        elif driver.stage == STAGE_DATA_OUT:
            progress = data_out(driver)
        elif driver.stage == STAGE_DMA:
            progress = dma_end(driver)
        else:
            progress = no_data_end(driver)
    return IDE_DRIVER_DONE


# Python

Result = namedtuple("Result", [
    "outcome", "status", "error", "bm_status", "sectors_done", "commands", "interrupts", "port_accesses",
    "bytes_copied",
])
cdef dict KINDS = {
    "read": IDE_REQUEST_READ,
    "write": IDE_REQUEST_WRITE,
    "flush": IDE_REQUEST_FLUSH,
    "identify": IDE_REQUEST_IDENTIFY,
    "trim": IDE_REQUEST_TRIM,
}
cdef dict MODES = {
    "dma": IDE_MODE_DMA,
    "pio": IDE_MODE_PIO,
    "pio-string": IDE_MODE_PIO_STRING,
    "pio-multiple": IDE_MODE_PIO_MULTIPLE,
}
cdef tuple OUTCOMES = ("ok", "error", "not ready", "refused", "unexpected", "dma error")


@cython.final
cdef class Driver:
    """Drives one channel of a Controller; the controller's memory holds the PRD table and the DMA data.

    table: guest address of a page of that memory for the PRD table, a multiple of 4096; None: no DMA.
    """

    cdef IdeDriver core
    cdef readonly Controller controller

    def __init__(self, Controller controller not None, uint32_t channel=0, table=None):
        cdef uint64_t size, address = 0
        cdef void *page = NULL
        controller.check()
        if channel > 1:
            raise ValueError(f"an IDE controller has channels 0 and 1, not {channel}")
        if table is not None:
            address = table
            size = controller.view.len if controller.has_memory else 0
            if address % 4096 or address + 4096 > min(size, <uint64_t> 1 << 32):
                raise ValueError(f"{table:#x} is not the address of a page of the controller's memory")
            page = <uint8_t *> controller.view.buf + address
        self.controller = controller
        ide_driver_init(&self.core, controller.core, channel, page, <uint32_t> address)

    def execute(self, str kind, *, uint32_t drive=0, str mode="dma", uint64_t lba=0, uint32_t sectors=0, data=None,
                segments=()):
        """Runs one request to its end -> Result.

        kind: read, write, flush, identify, trim; mode: dma, pio, pio-string, pio-multiple. data: a writable buffer of
        sectors * 512 bytes (identify: 512) for the PIO modes; segments: (address, bytes) pairs of the controller's
        memory for dma (trim: those of its 512 bytes). Result.outcome: "ok", or what went wrong; a request that cannot
        be is "refused".
        """
        cdef IdeRequest request
        cdef Py_buffer view
        cdef IdeSegment *memory = NULL
        cdef uint64_t needed
        cdef uint32_t count = 0
        self.controller.check()
        if kind not in KINDS or mode not in MODES:
            raise ValueError(f"no such IDE request: {kind} in mode {mode}")
        memset(&request, 0, sizeof(request))
        request.kind = KINDS[kind]
        request.mode = MODES[mode]
        request.drive = drive
        request.lba = lba
        request.sectors = sectors
        pieces = list(segments)
        try:
            if pieces:
                memory = <IdeSegment *> PyMem_Malloc(len(pieces) * sizeof(IdeSegment))
                if memory == NULL:
                    raise MemoryError("no memory for the segments")
                for address, length in pieces:
                    memory[count].address = address
                    memory[count].bytes = length
                    count += 1
            request.segments = memory
            request.segment_count = count
            if data is None:
                self.run(&request)
            else:
                PyObject_GetBuffer(data, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
                try:
                    needed = <uint64_t> IDE_SECTOR * (1 if request.kind == IDE_REQUEST_IDENTIFY else sectors)
                    if <uint64_t> view.len < needed:
                        raise ValueError(f"the buffer has {view.len} bytes, the request {needed}")
                    request.data = <uint8_t *> view.buf
                    self.run(&request)
                finally:
                    PyBuffer_Release(&view)
        finally:
            PyMem_Free(memory)
        return Result(
            OUTCOMES[self.core.result.outcome], self.core.result.status, self.core.result.error,
            self.core.result.bm_status, self.core.result.sectors_done, self.core.result.commands,
            self.core.result.interrupts, self.core.result.port_accesses, self.core.result.bytes_copied,
        )

    cdef int run(self, const IdeRequest *request) except -1:
        ide_driver_begin(&self.core, request)
        while ide_driver_step(&self.core) != IDE_DRIVER_DONE:
            if self.controller.run(self.core.channel) or ide_irq(self.controller.core, self.core.channel):
                continue
            raise RuntimeError("the drive neither interrupts nor waits for its medium")
        return 0
