"""The IDE controller model: what the register traces leave out."""

import gc
import random
import weakref
from types import SimpleNamespace

import pytest

from hvcore.disk.ops import Backend
from hvcore.ide import Controller
from tests.reference.ide_disk import PatternDisk

TABLE = 0x10000
DATA = 0x20000


def issue(ide, code, lba=5, count=1, device=0xE0):
    ide.outb(0x1F6, device)
    if code in (0x24, 0x25, 0x29, 0x34, 0x35, 0x39, 0x3D, 0x42):
        ide.outb(0x1F2, count >> 8 & 0xFF)
        for i in range(3):
            ide.outb(0x1F3 + i, lba >> 24 + 8 * i & 0xFF)
    ide.outb(0x1F2, count & 0xFF)
    for i in range(3):
        ide.outb(0x1F3 + i, lba >> 8 * i & 0xFF)
    ide.outb(0x1F7, code)


def set_table(memory, *entries, end=True):
    for i, (address, count) in enumerate(entries):
        last = 0x80 if end and i == len(entries) - 1 else 0
        memory[TABLE + 8 * i : TABLE + 8 * i + 8] = (
            address.to_bytes(4, "little") + (count & 0xFFFF).to_bytes(2, "little") + bytes([0, last])
        )


def dma(ide, code, lba=5, count=1):
    reading = code in (0xC8, 0x25)
    ide.outl(0xC004, TABLE)
    ide.outb(0xC000, 8 * reading)
    ide.outb(0xC002, 6)
    issue(ide, code, lba, count)
    ide.outb(0xC000, 8 * reading | 1)


@pytest.fixture
def disk():
    return PatternDisk()


@pytest.fixture
def memory():
    return bytearray(0x80000)


@pytest.fixture
def ide(disk, memory):
    return Controller([disk], memory)


@pytest.mark.parametrize(
    ("sectors", "current", "reported"),
    [
        (0xA000, (602, 4, 17), (602, 4, 17)),
        (0x20000, (963, 8, 17), (963, 8, 17)),
        (0x400000, (4161, 16, 63), (4161, 16, 63)),
        (0x10400000, (16384, 16, 63), (0x3FFF, 16, 63)),
    ],
)
def test_geometry(sectors, current, reported):
    """Section 2."""
    ide = Controller([PatternDisk(sectors)])
    ide.outb(0x1F7, 0xEC)
    words = [ide.inw(0x1F0) for _ in range(256)]
    assert tuple(words[54:57]) == current
    assert (words[1], words[3], words[6]) == reported
    assert words[57] | words[58] << 16 == current[0] * current[1] * current[2]
    assert words[60] | words[61] << 16 == min(sectors, 0x0FFFFFFF)
    assert words[100] | words[101] << 16 == sectors


def test_a_4_kib_physical_sector_is_reported(disk):
    disk.physical_sector_size = 4096
    ide = Controller([disk])
    ide.outb(0x1F7, 0xEC)
    assert [ide.inw(0x1F0) for _ in range(256)][106] == 0x6003


def test_sectors_of_4096_bytes_are_refused():
    image = SimpleNamespace(size=1 << 20, sector_size=4096)
    with pytest.raises(ValueError, match="drive 2: an IDE drive has sectors of 512 bytes, the image's are 4096"):
        Controller([None, None, image])


@pytest.mark.parametrize("size", [0, 2**57 + 512])
def test_sizes_that_no_drive_has_are_refused(size):
    with pytest.raises(ValueError, match="1 to 2\\*\\*48 sectors"):
        Controller([SimpleNamespace(size=size, sector_size=512)])


def test_more_than_four_drives_are_refused(disk):
    with pytest.raises(ValueError, match="at most 4 drives, not 5"):
        Controller([disk] * 5)


def test_a_crooked_bus_master_base_is_refused(disk):
    with pytest.raises(ValueError, match="multiple of 16, not at 0xc008"):
        Controller([disk], bus_master=0xC008)


def test_a_closed_backend_is_refused():
    with pytest.raises(ValueError, match="drive 0: the disk is closed"):
        Controller([Backend()])


def test_a_read_only_memory_is_refused(disk):
    with pytest.raises(BufferError):
        Controller([disk], bytes(4096))


def test_a_failed_controller_stays_closed():
    ide = Controller.__new__(Controller)
    with pytest.raises(ValueError, match="closed"):
        ide.inb(0x1F7)


def test_close_lets_go_of_the_memory(disk, memory):
    ide = Controller([disk], memory)
    with pytest.raises(BufferError):
        memory.extend(b"x")
    ide.close()
    ide.close()
    memory.extend(b"x")
    for call in (lambda: ide.inb(0x1F7), lambda: ide.irq(0), lambda: ide.port_accesses):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_a_cycle_through_an_image_is_collected(memory):
    disk = PatternDisk()
    disk.controller = Controller([disk], memory)
    gone = weakref.ref(disk)
    del disk
    gc.collect()
    assert gone() is None
    memory.extend(b"x")


def test_counters(ide):
    issue(ide, 0x20, count=2)
    assert (ide.port_accesses, ide.media_requests, ide.interrupts) == (6, 1, 1)
    buffer = bytearray(1024)
    ide.inb(0x1F7)
    ide.insw(0x1F0, buffer)
    assert (ide.port_accesses, ide.string_words, ide.interrupts) == (8, 512, 2)


def test_a_string_is_whole_words(ide):
    with pytest.raises(ValueError, match="3 bytes are not whole words"):
        ide.insw(0x1F0, bytearray(3))
    with pytest.raises(ValueError, match="5 bytes are not whole words"):
        ide.outsw(0x1F0, bytes(5))


def test_a_string_from_another_register_is_single_reads(ide):
    """1.3: a wide read of a byte register has ones above."""
    buffer = bytearray(4)
    ide.insw(0x1F7, buffer)
    assert buffer == b"\x50\xff\x50\xff"


def test_a_string_goes_on_over_media_accesses(ide, disk):
    """300 sectors are three chunks; one REP INSW reads them all and then what a port without data reads as."""
    issue(ide, 0x24, count=300)
    buffer = bytearray(300 * 512 + 4)
    ide.insw(0x1F0, buffer)
    assert buffer == b"".join(disk.sector(5 + i) for i in range(300)) + b"\x7f\xff\x7f\xff"
    assert ide.media_requests == 3
    issue(ide, 0x34, lba=0x100, count=300)
    ide.outsw(0x1F0, buffer)
    assert sorted(disk.written) == list(range(0x100, 0x100 + 300))
    assert disk.sector(0x100 + 299) == buffer[299 * 512 : 300 * 512]


def test_the_power_on_state_of_a_channel_without_drives(disk):
    """1.4: 7F for every register, 7F FF... for data."""
    ide = Controller([None, None, disk])
    assert {ide.inb(0x1F0 + i) for i in range(8)} | {ide.inb(0x3F6)} == {0x7F}
    assert (ide.inw(0x1F0), ide.inl(0x1F0), ide.inw(0x1F7)) == (0xFF7F, 0xFFFFFF7F, 0xFF7F)
    ide.outb(0x3F6, 4)
    ide.outb(0x1F7, 0x90)
    assert ide.inb(0x1F7) == 0x7F and not ide.irq(0)


def test_ports_that_are_not_the_controllers_read_as_ones(ide):
    """1.1, 7.2"""
    for port in (0, 0x3F7, 0x377, 0x1EF, 0x1F8, 0xBFFF, 0xC010, 0xFFFF, 0x1E0, 0x160):
        assert (ide.inb(port), ide.inw(port), ide.inl(port)) == (0xFF, 0xFFFF, 0xFFFFFFFF)


def test_a_bus_master_window_does_not_hide_legacy_ports(disk):
    """1.2: static regions win."""
    ide = Controller([disk], bus_master=0x1F0)
    assert ide.inb(0x1F7) == 0x50
    assert ide.inb(0x1F8) == 0
    assert Controller([disk], bus_master=0xFFF0).inb(0xFFFA) == 0


def test_pci_configuration(disk):
    """1.2, after power-on"""
    ide = Controller([disk], bus_master=0)
    known = {0x00: 0x71118086, 0x04: 0x02800000, 0x08: 0x01018001, 0x20: 1, 0x40: 0x80008000, 0xF8: 0x0F30}
    assert {offset: ide.config_read(offset) for offset in range(0, 256, 4)} == dict.fromkeys(
        range(0, 256, 4), 0
    ) | known
    for offset in range(0, 256, 4):
        ide.config_write(offset, 0xFFFFFFFF)
    changed = {0x04: 0x02800005, 0x20: 0xFFF1, 0x40: 0xFFFFFFFF, 0x44: 0xFFFFFFFF, 0x48: 0xFFFFFFFF}
    assert {offset: ide.config_read(offset) for offset in range(0, 256, 4)} == (
        dict.fromkeys(range(0, 256, 4), 0) | known | changed
    )


def test_bus_master_ports_need_both_command_bits(disk):
    """1.2"""
    ide = Controller([disk], bus_master=0)
    ide.config_write(0x20, 0xD000)
    for command, mapped in ((0, False), (1, False), (4, False), (5, True)):
        ide.config_write(0x04, command)
        assert ide.inb(0xD000) == (0x00 if mapped else 0xFF)
    ide.config_write(0x20, 0)
    assert ide.inb(0) == 0xFF


def test_decode_disable_removes_a_channels_ports(disk):
    """1.2"""
    ide = Controller([disk, None, disk])
    ide.config_write(0x40, 0x8000)
    assert (ide.inb(0x1F7), ide.inb(0x177), ide.inw(0x170), ide.inb(0x376), ide.inb(0xC008)) == (
        0x50, 0xFF, 0xFFFF, 0xFF, 0x00
    )  # fmt: skip
    ide.config_write(0x40, 0x80000000)
    assert (ide.inb(0x1F7), ide.inb(0x177)) == (0xFF, 0x50)


def test_write_cache_feature_shows_in_identify(ide, disk):
    ide.outb(0x1F1, 0x82)
    ide.outb(0x1F7, 0xEF)
    assert disk.flushes == 1
    ide.outb(0x1F7, 0xEC)
    assert [ide.inw(0x1F0) for _ in range(256)][85] == 0x0008


def test_geometry_of_zero_sectors_makes_chs_invalid(ide):
    """Section 8: no division by zero."""
    ide.outb(0x1F6, 0xA0)
    ide.outb(0x1F2, 0)
    ide.outb(0x1F7, 0x91)
    assert (ide.inb(0x1F7), ide.inb(0x1F1)) == (0x51, 0x04)
    for code in (0x20, 0x70, 0x10):
        issue(ide, code, lba=1, device=0xA0)
        assert (ide.inb(0x1F7), ide.inb(0x1F1)) == ((0x50, 0x00) if code == 0x10 else (0x51, 0x10))
    ide.outb(0x1F6, 0xA3)
    ide.outb(0x1F2, 10)
    ide.outb(0x1F7, 0x91)
    issue(ide, 0x20, lba=1 | 2 << 8, device=0xA1)
    ide.inb(0x1F7)
    assert ide.inl(0x1F0) == (2 * 4 + 1) * 10


def test_a_command_of_65536_sectors_streams(memory):
    """Section 8: 32 MiB in chunks of 128 sectors; the table covers it with one 64 KiB page again and again."""
    disk = PatternDisk(0x20000)
    memory = bytearray(0x80000)
    ide = Controller([disk], memory)
    set_table(memory, *[(DATA, 0)] * 512)
    dma(ide, 0x25, lba=0, count=0)
    assert (ide.inb(0xC002), ide.inb(0x1F7), ide.media_requests) == (0x04, 0x50, 512)
    assert memory[DATA : DATA + 512] == disk.sector(65536 - 128)


def test_a_sector_in_512_pieces(ide, disk, memory):
    """5.2: byte-exact entries; a request that would not fit the segments is asked for in parts."""
    set_table(memory, *[(DATA + 2 * i, 1) for i in range(4 * 512)])
    dma(ide, 0xC8, count=4)
    assert (ide.inb(0xC002), ide.inb(0x1F7)) == (0x04, 0x50)
    assert memory[DATA : DATA + 4096 : 2] == b"".join(disk.sector(5 + i) for i in range(4))
    assert ide.media_requests == 2


def test_a_table_without_end_is_an_error(disk):
    """5.2: after 8192 entries."""
    memory = bytearray(0x80000)
    ide = Controller([disk], memory)
    memory[TABLE : TABLE + 8 * 8300] = ((DATA).to_bytes(4, "little") + b"\x02\0\0\0") * 8300
    dma(ide, 0x25, lba=0, count=33)
    assert (ide.inb(0xC002), ide.inb(0x1F7), ide.inb(0x1F1)) == (0x06, 0x51, 0x04)


def test_a_table_beyond_memory_is_an_error(ide):
    ide.outl(0xC004, 0xFFFFFFFC)
    ide.outb(0xC000, 9)
    issue(ide, 0xC8)
    assert (ide.inb(0xC002), ide.inb(0x1F7), ide.inb(0x1F1)) == (0x06, 0x51, 0x04)


def test_without_memory_every_table_is_unreadable(disk):
    ide = Controller([disk])
    dma(ide, 0xC8)
    assert (ide.inb(0xC002), ide.inb(0x1F7), ide.inb(0x1F1)) == (0x06, 0x51, 0x04)


def test_a_direction_mismatch_waits_for_stop(ide, disk, memory):
    """5.2"""
    set_table(memory, (DATA, 512))
    ide.outl(0xC004, TABLE)
    ide.outb(0xC000, 1)
    issue(ide, 0xC8)
    assert (ide.inb(0x1F7), ide.inb(0xC002), ide.inb(0xC000)) == (0x58, 0x01, 0x01)
    assert ide.inw(0x1F0) == 0xFF7F
    ide.outb(0xC000, 9)
    assert ide.inb(0xC000) == 0x01
    ide.outb(0xC000, 0)
    assert (ide.inb(0x1F7), ide.inb(0xC002)) == (0x50, 0x00)
    assert not ide.irq(0) and not any(memory[DATA : DATA + 512])


def test_a_partial_sector_is_read_but_not_written(ide, disk, memory):
    """5.2: a table that ends inside a sector."""
    set_table(memory, (DATA, 700))
    dma(ide, 0xC8, count=2)
    assert memory[DATA : DATA + 700] == (disk.sector(5) + disk.sector(6))[:700]
    assert not any(memory[DATA + 700 : DATA + 1024])
    ide.outb(0xC000, 0)
    dma(ide, 0xCA, lba=0x20, count=2)
    assert (ide.inb(0xC002), ide.inb(0x1F7)) == (0x04, 0x50)
    assert sorted(disk.written) == [0x20]


def test_fua_flushes(ide, disk, memory):
    set_table(memory, (DATA, 512))
    dma(ide, 0x35)
    assert disk.flushes == 0
    ide.outb(0xC000, 0)
    dma(ide, 0x3D)
    assert disk.flushes == 1


def test_flush_of_a_read_only_drive_does_nothing():
    disk = PatternDisk(read_only=True)
    disk.flush_fails = True
    ide = Controller([disk])
    for code in (0xE7, 0xEA, 0xE0):
        ide.outb(0x1F7, code)
        assert ide.irq(0) and ide.inb(0x1F7) == 0x50


def test_an_image_that_returns_too_little_is_a_read_error(disk):
    disk.read = lambda offset, length: b"short"
    ide = Controller([disk])
    issue(ide, 0x20)
    assert (ide.inb(0x1F7), ide.inb(0x1F1)) == (0x51, 0x40)


def test_an_exception_of_the_image_is_raised_and_ends_the_command(disk):
    def read(offset, length):
        raise KeyError("a defect")

    disk.read = read
    ide = Controller([disk])
    with pytest.raises(KeyError):
        issue(ide, 0x20)
    assert (ide.inb(0x1F7), ide.inb(0x1F1)) == (0x51, 0x40)


def test_an_image_cannot_call_back(disk):
    disk.read = lambda offset, length: ide.inb(0x1F7)
    ide = Controller([disk])
    with pytest.raises(RuntimeError, match="media access of this controller is running"):
        issue(ide, 0x20)
    with pytest.raises(RuntimeError):
        disk.read = lambda offset, length: ide.close()
        issue(ide, 0x20)


def test_a_write_over_the_end_of_the_block_stops_there(ide, disk):
    """4.5: of a 32-bit write with two bytes left, two bytes are taken."""
    issue(ide, 0x30, lba=0x20)
    for _ in range(255):
        ide.outw(0x1F0, 0x1111)
    ide.outl(0x1F0, 0x33332222)
    assert (ide.irq(0), ide.inb(0x1F7)) == (True, 0x50)
    assert disk.written == {0x20: b"\x11" * 510 + b"\x22\x22"}


def test_a_stop_leaves_the_other_drive_waiting(disk, memory):
    """5.1: a stop is for the selected drive's command, also when 7.2 left the other one in its DMA wait."""
    ide = Controller([disk, PatternDisk()], memory)
    set_table(memory, (DATA, 0))
    issue(ide, 0xC8)
    memory[0x5000:0x5018] = bytes([0xC8, 0xF0, 0, 0, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    ide.outl(0x1E0, 0x5000)
    assert memory[DATA : DATA + 512] == disk.sector(5)
    ide.outb(0xC000, 1)
    ide.outb(0xC000, 0)
    ide.outb(0x1F6, 0xE0)
    assert ide.inb(0x1F7) == 0x58


# Media that take their time


@pytest.fixture
def held(ide):
    ide.media_held = True
    return ide


def test_busy_until_the_medium_answers(held, disk):
    """4.2 step 2: 90, no interrupt, registers that cannot be written, no data."""
    issue(held, 0x20)
    assert (held.inb(0x1F7), held.irq(0), held.inw(0x1F0)) == (0x90, False, 0xFF7F)
    held.outb(0x1F3, 0x77)
    held.outb(0x1F6, 0xF0)
    held.outb(0x1F7, 0xEC)
    assert (held.inb(0x1F3), held.inb(0x1F6)) == (5, 0xE0)
    assert held.run_media(0)
    assert not held.run_media(0)
    assert (held.irq(0), held.inb(0x1F7)) == (True, 0x58)
    assert held.inl(0x1F0) == 5


def test_reset_while_the_medium_works(held, disk):
    """1.7: the outcome is dropped; BSY until then, because memory could still change."""
    issue(held, 0x20)
    held.outb(0x3F6, 4)
    held.outb(0x3F6, 0)
    assert held.inb(0x3F6) == 0x90
    held.outb(0x1F7, 0xEC)
    assert held.run_media(0)
    assert (held.inb(0x3F6), held.irq(0), held.inw(0x1F0)) == (0x50, False, 0xFF7F)
    assert [held.inb(0x1F1 + i) for i in range(6)] == [1, 1, 1, 0, 0, 0]
    issue(held, 0x20, lba=9)
    held.run_media(0)
    assert (held.inb(0x1F7), held.inl(0x1F0)) == (0x58, 9)


@pytest.mark.parametrize("code", [0xC8, 0xCA])
def test_stop_while_the_medium_works(held, disk, memory, code):
    """5.1: the drive goes idle after its chunk, without an interrupt."""
    set_table(memory, (DATA, 0), (DATA, 0))
    dma(held, code, count=200)
    assert held.inb(0x3F6) == 0x90 and held.inb(0xC002) == 0x01
    held.outb(0xC000, 0)
    assert held.inb(0x3F6) == 0x90 and held.inb(0xC002) == 0x00
    assert held.run_media(0) and not held.run_media(0)
    assert (held.inb(0x3F6), held.irq(0), held.inb(0xC002)) == (0x50, False, 0x00)


def test_power_on_reset_while_the_medium_works(held):
    issue(held, 0x30)
    for _ in range(256):
        held.outw(0x1F0, 0x1234)
    assert held.inb(0x3F6) == 0x90
    held.reset()
    assert held.inb(0x3F6) == 0x90
    held.run_media(0)
    assert held.inb(0x3F6) == 0x50 and not held.irq(0)


def test_an_enlightened_request_holds_its_out(held, disk, memory):
    """7.2 steps 6 to 9: no line meanwhile, and the guest's device control is as it was."""
    set_table(memory, (DATA, 0))
    memory[0x5000:0x5018] = bytes([0xC8, 0xE0, 0, 0, 5, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    held.outl(0x1E0, 0x5000)
    assert held.inb(0x3F6) == 0x90
    held.outl(0x1E0, 0x5000)
    held.run_media(0)
    assert (held.inb(0x3F6), held.irq(0), held.inb(0xC000)) == (0x50, False, 0)
    assert memory[DATA : DATA + 1024] == disk.sector(5) + disk.sector(6)
    assert held.media_requests == 1


def test_an_enlightened_request_passes_a_drive_in_drq(disk, memory):
    """7.2 step 2: the other drive's data phase is neither in the way nor disturbed."""
    other = PatternDisk()
    ide = Controller([disk, other], memory)
    issue(ide, 0x20, lba=9)
    assert ide.inl(0x1F0) == 9
    set_table(memory, (DATA, 0))
    memory[0x5000:0x5018] = bytes([0xC8, 0xF0, 0, 0, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    ide.outl(0x1E0, 0x5000)
    assert memory[DATA : DATA + 512] == other.sector(5)
    issue(ide, 0x20, lba=7, device=0xF0)
    assert ide.inl(0x1F0) == 7
    for _ in range(127):
        ide.inl(0x1F0)
    ide.outb(0x1F6, 0xE0)
    assert ide.inb(0x1F7) == 0x58
    rest = bytearray(508)
    ide.insw(0x1F0, rest)
    assert rest == disk.sector(9)[4:]


@pytest.mark.parametrize("seed", range(8))
def test_random_accesses_leave_a_working_controller(seed):
    """Section 8: any traffic, media that answer late; afterwards a reset brings everything back."""
    dice = random.Random(seed)
    disks = [
        PatternDisk(0x1000, bad=frozenset({3, 40})),
        None,
        PatternDisk(0x1000),
        PatternDisk(0x1000, read_only=True),
    ]
    memory = bytearray(dice.randbytes(0x20000))
    ide = Controller(disks, memory, trim=True)
    ide.media_held = True
    block = [*range(0x1F0, 0x1F8), *range(0x170, 0x178)]
    others = [0x3F6, 0x376, 0x1E0, 0x160, *range(0xC000, 0xC010)]
    for _ in range(20000):
        port = dice.choice(block if dice.random() < 0.7 else others)
        match dice.randrange(9):
            case 0 | 1:
                ide.outb(
                    port, dice.choice([0x20, 0x30, 0xC8, 0xCA, 0xC4, 0xC5, 0xEC, 0xE0, 0x09, 1, dice.randrange(256)])
                )
            case 2:
                ide.outw(port, dice.randrange(65536))
            case 3:
                ide.outl(port, dice.choice([dice.randrange(0x20000), dice.randrange(2**32)]))
            case 4:
                ide.inb(port)
            case 5:
                ide.inl(port)
            case 6:
                ide.insw(port, bytearray(2 * dice.randrange(600)))
            case 7:
                ide.outsw(port, dice.randbytes(2 * dice.randrange(600)))
            case 8:
                ide.run_media(dice.randrange(2))
    ide.media_held = False
    for channel, base, control in ((0, 0x1F0, 0x3F6), (1, 0x170, 0x376)):
        ide.outb(control, 4)
        ide.outb(control, 0)
        assert ide.inb(control) == 0x50 and not ide.irq(channel)
        ide.outb(base + 6, 0x40)
        for i, value in enumerate((1, 9, 0, 0)):
            ide.outb(base + 2 + i, value)
        ide.outb(base + 7, 0x20)
        data = bytearray(512)
        assert ide.irq(channel) and ide.inb(base + 7) == 0x58
        ide.insw(base, data)
        assert data == disks[2 * channel].sector(9)
