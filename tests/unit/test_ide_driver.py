"""The IDE driver: every mode moves the right bytes at exactly the port accesses of ide.md section 6."""

import pytest

from hvcore.ide import Controller, Driver
from tests.reference.ide_disk import PatternDisk

MODES = ("dma", "pio", "pio-string", "pio-multiple")
MEMORY = 0x200000
TABLE = 0x1000
DATA = 0x10000


class Bench:
    def __init__(self, *disks: PatternDisk | None) -> None:
        self.disks = disks or (PatternDisk(),)
        self.memory = bytearray(MEMORY)
        self.ide = Controller(self.disks, self.memory)
        self.driver = Driver(self.ide, 0, TABLE)

    def read(self, mode, lba, sectors, drive=0, segments=None):
        data = bytearray(512 * sectors)
        segments = segments or [(DATA, 512 * sectors)]
        if mode == "dma":
            result = self.driver.execute("read", mode=mode, drive=drive, lba=lba, sectors=sectors, segments=segments)
            data = b"".join(self.memory[a : a + n] for a, n in segments)
        else:
            result = self.driver.execute("read", mode=mode, drive=drive, lba=lba, sectors=sectors, data=data)
        return result, bytes(data)

    def write(self, mode, lba, data, drive=0):
        self.memory[DATA : DATA + len(data)] = data
        sectors = len(data) // 512
        if mode == "dma":
            return self.driver.execute(
                "write", mode=mode, drive=drive, lba=lba, sectors=sectors, segments=[(DATA, len(data))]
            )
        return self.driver.execute("write", mode=mode, drive=drive, lba=lba, sectors=sectors, data=bytearray(data))


def pattern(disk, lba, sectors):
    return b"".join(disk.sector(lba + i) for i in range(sectors))


@pytest.mark.parametrize(("mode", "accesses"), [("dma", 15), ("pio", 2063), ("pio-string", 23), ("pio-multiple", 16)])
def test_port_accesses_of_a_4_kib_read(mode, accesses):
    """6.2, the minimal column; 48-bit addresses cost four more."""
    bench = Bench(PatternDisk(0x20000000))
    before = bench.ide.port_accesses
    result, data = bench.read(mode, 5, 8)
    assert (result.outcome, result.port_accesses) == ("ok", accesses)
    assert bench.ide.port_accesses - before == accesses
    assert data == pattern(bench.disks[0], 5, 8)
    result, data = bench.read(mode, 0x10000000, 8)
    assert (result.outcome, result.port_accesses) == ("ok", accesses + 4)
    assert data == pattern(bench.disks[0], 0x10000000, 8)


@pytest.mark.parametrize(("mode", "accesses"), [("dma", 15), ("pio", 2064), ("pio-string", 24), ("pio-multiple", 17)])
def test_port_accesses_of_a_4_kib_write(mode, accesses):
    """4.3: the first block comes without an interrupt, so one more status read than for a read."""
    bench = Bench()
    data = bytes(range(256)) * 16
    before = bench.ide.port_accesses
    result = bench.write(mode, 5, data)
    assert (result.outcome, result.port_accesses) == ("ok", accesses)
    assert bench.ide.port_accesses - before == accesses
    assert b"".join(bench.disks[0].written[5 + i] for i in range(8)) == data


@pytest.mark.parametrize(
    ("mode", "interrupts", "copied"),
    [("dma", 1, 0), ("pio", 8, 4096), ("pio-string", 8, 4096), ("pio-multiple", 1, 4096)],
)
def test_interrupts_and_copies_of_a_4_kib_read(mode, interrupts, copied):
    bench = Bench()
    result, _ = bench.read(mode, 5, 8)
    assert (result.interrupts, result.bytes_copied) == (interrupts, copied)
    assert bench.ide.interrupts == interrupts
    assert bench.ide.media_requests == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("lba", "sectors", "commands"),
    [
        (0, 1, 1),
        (7, 127, 1),
        (7, 129, 1),
        (0, 256, 1),
        (1, 257, 1),
        (0x0FFFFFFF - 8, 8, 1),
        (0x0FFFFFFF - 7, 8, 1),
        (0x1FFFFFFF, 1, 1),
    ],
)
def test_reads_and_writes(mode, lba, sectors, commands):
    bench = Bench(None, PatternDisk(0x20000000))
    disk = bench.disks[1]
    result, data = bench.read(mode, lba, sectors, drive=1)
    assert (result.outcome, result.sectors_done, result.commands) == ("ok", sectors, commands)
    assert data == pattern(disk, lba, sectors)
    new = bytes(i * 7 & 0xFF for i in range(512)) * sectors
    result = bench.write(mode, lba, new, drive=1)
    assert (result.outcome, result.sectors_done, result.commands) == ("ok", sectors, commands)
    assert sorted(disk.written) == list(range(lba, lba + sectors))
    assert pattern(disk, lba, sectors) == new


@pytest.mark.parametrize("mode", MODES)
def test_lba28_ends_where_its_addresses_end(mode):
    """3.1: the last 28-bit address is 0FFFFFFE; what reaches beyond takes EXT, four accesses more."""
    bench = Bench(PatternDisk(0x20000000))
    short, _ = bench.read(mode, 0x0FFFFFFF - 8, 8)
    long, _ = bench.read(mode, 0x0FFFFFFF - 7, 8)
    assert long.port_accesses == short.port_accesses + 4


def test_a_request_beyond_one_command_is_split():
    bench = Bench(PatternDisk(0x20000))
    sectors = 65537
    data = bytearray(512 * sectors)
    result = bench.driver.execute("read", mode="pio-multiple", lba=3, sectors=sectors, data=data)
    assert (result.outcome, result.commands, result.sectors_done) == ("ok", 2, sectors)
    assert data[:512] == bench.disks[0].sector(3)
    assert data[-512:] == bench.disks[0].sector(3 + 65536)


def test_a_dma_request_beyond_one_table_is_split():
    """One page holds 512 entries, so 600 pieces of 512 bytes are two commands."""
    bench = Bench()
    segments = [(DATA + 1024 * i, 512) for i in range(600)]
    result, data = bench.read("dma", 9, 600, segments=segments)
    assert (result.outcome, result.commands, result.sectors_done) == ("ok", 2, 600)
    assert data == pattern(bench.disks[0], 9, 600)


def test_a_split_falls_on_a_sector():
    """Entries of 340 bytes: 512 of them end inside a sector, which then belongs to the second command."""
    bench = Bench()
    segments = [(DATA + 340 * i, 340) for i in range(768)]
    result, data = bench.read("dma", 9, 510, segments=segments)
    assert (result.outcome, result.commands, result.sectors_done) == ("ok", 2, 510)
    assert data == pattern(bench.disks[0], 9, 510)


def test_prds_do_not_cross_64_kib():
    """5.2"""
    bench = Bench()
    result, data = bench.read("dma", 0, 256, segments=[(0x1FE00, 0x20000)])
    assert result.outcome == "ok"
    assert data == pattern(bench.disks[0], 0, 256)
    entries = [bench.memory[TABLE + 8 * i : TABLE + 8 * i + 8].hex() for i in range(3)]
    assert entries == ["00fe010000020000", "0000020000000000", "0000030000fe0080"]


@pytest.mark.parametrize(
    "segments",
    [
        [(DATA + 1, 512)],
        [(DATA, 511), (DATA + 1024, 1)],
        [(DATA, 256)],
        [(DATA, 1024)],
        [(DATA, 512), (DATA, 0)],
        [(0xFFFFFF00, 512)],
        [],
    ],
)
def test_segments_that_no_prd_can_say_are_refused(segments):
    bench = Bench()
    result = bench.driver.execute("read", mode="dma", lba=0, sectors=1, segments=segments)
    assert (result.outcome, result.port_accesses) == ("refused", 0)


@pytest.mark.parametrize(
    ("kind", "request_"),
    [
        ("read", {"sectors": 0}),
        ("read", {"sectors": 1, "lba": 2**48}),
        ("read", {"sectors": 2, "lba": 2**48 - 1}),
        ("read", {"sectors": 1, "drive": 2}),
        ("flush", {"drive": 2}),
    ],
)
def test_malformed_requests_are_refused(kind, request_):
    bench = Bench()
    result = bench.driver.execute(kind, mode="pio", data=bytearray(1024), **request_)
    assert (result.outcome, result.port_accesses) == ("refused", 0)


def test_dma_without_a_table_is_refused():
    driver = Driver(Controller([PatternDisk()]))
    assert driver.execute("read", mode="dma", sectors=1, segments=[(0, 512)]).outcome == "refused"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("drive", [0, 1])
def test_an_absent_drive_is_not_ready(mode, drive):
    """1.4: status 00 beside a present drive, 7F on an empty channel; two accesses show it."""
    disks = [None, None, None, None]
    if drive:
        disks[0] = PatternDisk()
    bench = Bench(*disks)
    result, _ = bench.read(mode, 0, 1, drive=drive)
    assert (result.outcome, result.port_accesses) == ("not ready", 2)
    assert result.status == (0x00 if drive else 0x7F)


@pytest.mark.parametrize("mode", MODES)
def test_a_read_error_names_the_sectors_before_it(mode):
    bench = Bench(PatternDisk(bad=frozenset({14})))
    result, _ = bench.read(mode, 5, 20)
    assert (result.outcome, result.status, result.error) == ("error", 0x51, 0x40)
    assert result.sectors_done == {"dma": 0, "pio": 9, "pio-string": 9, "pio-multiple": 0}[mode]
    assert [bench.ide.inb(0x1F3), bench.ide.inb(0x1F2)] == [14, {"pio-multiple": 20}.get(mode, 11)]


@pytest.mark.parametrize("mode", MODES)
def test_a_write_error_stores_what_is_before_it(mode):
    bench = Bench(PatternDisk(bad=frozenset({14})))
    result = bench.write(mode, 5, bytes(512 * 20))
    assert (result.outcome, result.status, result.error) == ("error", 0x51, 0x04)
    assert sorted(bench.disks[0].written) == list(range(5, 14))
    assert [bench.ide.inb(0x1F3), bench.ide.inb(0x1F2)] == [14, 11]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lba", [0x20000 - 1, 0x20000, 2**47])
def test_out_of_range(mode, lba):
    bench = Bench()
    result, _ = bench.read(mode, lba, 2)
    assert (result.outcome, result.status, result.error, result.sectors_done) == ("error", 0x51, 0x10, 0)
    result = bench.write(mode, lba, bytes(1024))
    assert (result.outcome, result.status, result.error) == ("error", 0x51, 0x10)
    assert not bench.disks[0].written
    result, data = bench.read(mode, 3, 1)
    assert (result.outcome, data) == ("ok", bench.disks[0].sector(3))


@pytest.mark.parametrize("mode", MODES)
def test_a_read_only_drive_aborts_writes(mode):
    bench = Bench(PatternDisk(read_only=True))
    result = bench.write(mode, 5, bytes(1024))
    assert (result.outcome, result.status, result.error) == ("error", 0x51, 0x04)
    assert bench.read(mode, 5, 2)[1] == pattern(bench.disks[0], 5, 2)


def test_memory_that_is_not_there_is_a_dma_error():
    """5.2: status 06, device 51/04."""
    bench = Bench()
    result = bench.driver.execute("read", mode="dma", sectors=2, segments=[(MEMORY - 512, 1024)])
    assert (result.outcome, result.status, result.error, result.bm_status) == ("dma error", 0x51, 0x04, 0x06)


def test_flush():
    bench = Bench()
    result = bench.driver.execute("flush")
    assert (result.outcome, result.port_accesses, bench.disks[0].flushes) == ("ok", 4, 1)
    bench.disks[0].flush_fails = True
    result = bench.driver.execute("flush")
    assert (result.outcome, result.status, result.error) == ("error", 0x51, 0x04)


def test_identify():
    bench = Bench()
    data = bytearray(512)
    result = bench.driver.execute("identify", data=data)
    assert (result.outcome, result.port_accesses, result.bytes_copied) == ("ok", 5, 512)
    assert int.from_bytes(data[200:208], "little") == 0x20000
    assert data[54:64] == b"iVtrau lDH"
    assert bench.driver.execute("identify", data=data, mode="pio").port_accesses == 4 + 256


def test_the_secondary_channel():
    bench = Bench(None, None, PatternDisk(), None)
    driver = Driver(bench.ide, 1, TABLE)
    for mode in MODES:
        data = bytearray(1024)
        result = driver.execute(
            "read", mode=mode, lba=5, sectors=2, data=data, segments=[(DATA, 1024)] if mode == "dma" else ()
        )
        assert result.outcome == "ok"
        assert bytes(bench.memory[DATA : DATA + 1024] if mode == "dma" else data) == pattern(bench.disks[2], 5, 2)


def test_arguments():
    bench = Bench()
    with pytest.raises(ValueError, match="channels 0 and 1"):
        Driver(bench.ide, 2)
    with pytest.raises(ValueError, match="not the address of a page"):
        Driver(bench.ide, 0, MEMORY)
    with pytest.raises(ValueError, match="no such IDE request"):
        bench.driver.execute("erase")
    with pytest.raises(ValueError, match="the buffer has 512 bytes, the request 1024"):
        bench.driver.execute("read", mode="pio", sectors=2, data=bytearray(512))
