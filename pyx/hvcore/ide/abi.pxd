# IDE ports, registers, bits and wire structures (ide.md sections 1, 5, 7.2).

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #ifndef HV_IDE_ABI
    #define HV_IDE_ABI
    /* ide.md 5.2: one entry of a physical region descriptor table. */
    typedef struct { uint32_t base; uint16_t count, flags; } hv_ide_prd;
    _Static_assert(sizeof(hv_ide_prd) == 8, "PRD entry");
    /* ide.md 7.2: the packet whose address is written to the enlightened port. */
    typedef struct {
        uint8_t command, device, flags, result;
        uint32_t lba_low;
        uint16_t lba_high, block_count;
        uint32_t byte_count, data_buffer;
        uint16_t skip_head, skip_tail;
    } hv_ide_packet;
    _Static_assert(sizeof(hv_ide_packet) == 24, "enlightened INT 13 packet");
    _Static_assert(offsetof(hv_ide_packet, result) == 3, "enlightened INT 13 packet result");
    #endif
    """
    ctypedef struct Prd "hv_ide_prd":
        uint32_t base
        uint16_t count               # 0 = 65536
        uint16_t flags
    ctypedef struct EnlightenedPacket "hv_ide_packet":
        uint8_t command
        uint8_t device
        uint8_t flags
        uint8_t result
        uint32_t lba_low
        uint16_t lba_high
        uint16_t block_count
        uint32_t byte_count
        uint32_t data_buffer
        uint16_t skip_head
        uint16_t skip_tail

cdef enum:                           # 1.1: bases of the two channels
    IDE_COMMAND_BLOCK_0 = 0x1F0
    IDE_COMMAND_BLOCK_1 = 0x170
    IDE_CONTROL_0 = 0x3F6
    IDE_CONTROL_1 = 0x376
    IDE_ENLIGHTENED_0 = 0x1E0
    IDE_ENLIGHTENED_1 = 0x160
    IDE_BUS_MASTER_BASE = 0xC000     # what BAR4 holds unless the owner says otherwise
    IDE_BUS_MASTER_PORTS = 16

cdef enum:                           # 1.3: offsets in the command block
    IDE_DATA = 0
    IDE_ERROR = 1                    # read; features when written
    IDE_FEATURES = 1
    IDE_COUNT = 2
    IDE_LBA_LOW = 3
    IDE_LBA_MID = 4
    IDE_LBA_HIGH = 5
    IDE_DEVICE = 6
    IDE_STATUS = 7                   # read; command when written
    IDE_COMMAND = 7

cdef enum:                           # 1.4
    STATUS_BSY = 0x80
    STATUS_DRDY = 0x40
    STATUS_DSC = 0x10
    STATUS_DRQ = 0x08
    STATUS_ERR = 0x01
    ERROR_UNC = 0x40
    ERROR_IDNF = 0x10
    ERROR_ABRT = 0x04
    ERROR_DIAGNOSTIC_OK = 0x01       # after a reset: a diagnostic code, not a failure
    CONTROL_HOB = 0x80
    CONTROL_SRST = 0x04
    CONTROL_NIEN = 0x02
    DEVICE_LBA = 0x40
    DEVICE_DEV = 0x10

cdef enum:                           # 5.1: offsets in a channel's bus-master block and their bits
    BM_COMMAND = 0
    BM_STATUS = 2
    BM_TABLE = 4
    BM_START = 0x01
    BM_TO_MEMORY = 0x08              # 1: the device's data goes to memory, an ATA read
    BM_ACTIVE = 0x01
    BM_ERROR = 0x02
    BM_INTERRUPT = 0x04
    BM_CAPABLE = 0x60                # drive 0 / 1 DMA capable: stored, no effect
    PRD_END_OF_TABLE = 0x8000

cdef enum:                           # 1.1: the function's place on the bus, and PCI configuration mechanism 1
    PCI_CONFIG_ADDRESS = 0xCF8
    PCI_CONFIG_DATA = 0xCFC
    PCI_IDE_FUNCTION = 0x800039      # address bits 31:8 of bus 0, device 7, function 1, enabled
    PCI_CONFIG_BAR4 = 0x20

cdef enum:                           # 1.2: PCI command and timing bits
    PCI_IO = 1
    PCI_BUS_MASTER = 4
    PCI_COMMAND_RESET = 0x02800000
    PCI_DECODE = 0x8000              # of a channel's half of the timing register

cdef enum:                           # section 3, those that hvcore's own driver and the enlightened port name
    COMMAND_DATA_SET_MANAGEMENT = 0x06
    COMMAND_READ = 0x20
    COMMAND_READ_EXT = 0x24
    COMMAND_READ_DMA_EXT = 0x25
    COMMAND_READ_MULTIPLE_EXT = 0x29
    COMMAND_WRITE = 0x30
    COMMAND_WRITE_EXT = 0x34
    COMMAND_WRITE_DMA_EXT = 0x35
    COMMAND_WRITE_MULTIPLE_EXT = 0x39
    COMMAND_WRITE_DMA_FUA_EXT = 0x3D
    COMMAND_EXECUTE_DIAGNOSTIC = 0x90
    COMMAND_READ_MULTIPLE = 0xC4
    COMMAND_WRITE_MULTIPLE = 0xC5
    COMMAND_READ_DMA = 0xC8
    COMMAND_WRITE_DMA = 0xCA
    COMMAND_FLUSH = 0xE7
    COMMAND_IDENTIFY = 0xEC

cdef enum:
    IDE_SECTOR = 512
    IDE_SECTOR_WORDS = 256
    IDE_LBA28_SECTORS = 0x0FFFFFFF   # 3.1: what 28-bit commands reach
    IDE_CHS_SECTORS = 0xFC0000       # section 2: 16383 or more cylinders of 16 * 63
    IDE_MULTIPLE_MAX = 128           # sectors per DRQ block of READ/WRITE MULTIPLE, and the power-on default
    IDE_CHUNK_SECTORS = 128          # most sectors of one media request
    IDE_BUFFER_BYTES = 65536         # a drive's PIO buffer: one chunk
    IDE_SEGMENTS = 1024              # of one media request: 512 of earlier sectors and at most 512 of the last one
    IDE_PRD_ENTRIES = 8192           # 5.2: a longer table without an end is an error

cdef extern from *:
    """
    #define HV_IDE_LBA48_SECTORS (UINT64_C(1) << 48)
    """
    const unsigned long long IDE_LBA48_SECTORS "HV_IDE_LBA48_SECTORS"
