"""A plain-Python twin of the IDE controller, written from ide.md: slow, one sector at a time, no reading ahead."""

from typing import Any

IDLE, DATA_IN, DATA_OUT, DMA = "idle", "in", "out", "dma"
UNC, IDNF, ABRT = 0x40, 0x10, 0x04
# code -> (operation, ext, dma, block: 1 or "multiple", single sector, flush afterwards); section 3
TRANSFERS: dict[int, tuple[str, bool, bool, Any, bool, bool]] = {
    **dict.fromkeys((0x20, 0x21), ("read", False, False, 1, False, False)),
    **dict.fromkeys((0x22, 0x23), ("read", False, False, 1, True, False)),
    0x24: ("read", True, False, 1, False, False),
    0x25: ("read", True, True, 1, False, False),
    0x29: ("read", True, False, "multiple", False, False),
    **dict.fromkeys((0x30, 0x31), ("write", False, False, 1, False, False)),
    **dict.fromkeys((0x32, 0x33), ("write", False, False, 1, True, False)),
    0x34: ("write", True, False, 1, False, False),
    0x35: ("write", True, True, 1, False, False),
    0x39: ("write", True, False, "multiple", False, False),
    0x3D: ("write", True, True, 1, False, True),
    0xCE: ("write", True, False, "multiple", False, True),
    **dict.fromkeys((0x40, 0x41), ("verify", False, False, 1, False, False)),
    0x42: ("verify", True, False, 1, False, False),
    0xC4: ("read", False, False, "multiple", False, False),
    0xC5: ("write", False, False, "multiple", False, False),
    **dict.fromkeys((0xC8, 0xC9), ("read", False, True, 1, False, False)),
    **dict.fromkeys((0xCA, 0xCB), ("write", False, True, 1, False, False)),
}
QUIET = {0xE1, 0x95, 0xE2, 0x96, 0xE3, 0x97, 0xE6, 0x99}
QUIET_FEATURES = {0x05, 0x85, 0x42, 0xC2, 0x55, 0xAA, 0x66, 0xCC}
MODES = {0, 1, *range(0x08, 0x0D), *range(0x10, 0x13), *range(0x20, 0x23)}
IMAGE = """
045a 03c3 0000 0008 2200 0200 0011 abcd dcba 0123 2020*10 0003 0080 0000 312e 312e 3020 2020 5669 7274 7561 6c20 4844
2020*15 8080 0000 0f00 0000 0200 0200 0003 03c3 0008 0011 ff98 0001 0180 0000 0002 0007 0407 0003 0078 0078 014d 0078
0000*11 01f0 0000 0028 7400 4040 0028 3400 4040 0000*13 0002 0000*4 4000 0000*102 4000 0000*46
"""


def identify_image() -> list[int]:
    """The 64 MiB disk's IDENTIFY data, word by word as ide.md section 2 prints it."""
    words = []
    for token in IMAGE.split():
        value, _, times = token.partition("*")
        words += [int(value, 16)] * int(times or 1)
    assert len(words) == 256
    return words


def geometry(sectors: int) -> tuple[int, int, int]:
    n = min(sectors, 0xFC0000)
    spt, cth = 17, n // 17
    heads = max(-(-cth // 1024), 4)
    if cth >= heads * 1024 or heads > 16:
        spt, heads, cth = 31, 16, n // 31
    if cth >= heads * 1024:
        spt, cth = 63, n // 63
    return cth // heads, heads, spt


class PrdError(Exception):
    pass


class TableEnd(Exception):
    def __init__(self, pieces: list[tuple[int, int]]) -> None:
        self.pieces = pieces


class BusMaster:
    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.command = self.stored = self.table = 0
        self.active = False
        self.cursor: tuple[int, int, int, int, bool] = (0, 0, 0, 0, False)

    @property
    def status(self) -> int:
        return self.stored | self.active

    def read(self, offset: int, width: int) -> int:
        ones = (1 << 8 * width) - 1
        match offset, width:
            case 0, 4:
                return self.command | self.status << 16
            case 4, 4:
                return self.table
            case 4 | 6, 2:
                return self.table >> 8 * (offset - 4) & 0xFFFF
            case 0, 1 | 2:
                return self.command
            case 2, 1 | 2:
                return self.status
            case 1 | 3, 1:
                return 0
        return ones

    def write(self, offset: int, width: int, value: int) -> str:
        match offset, width:
            case 0, 4:
                self.write_status(value >> 16 & 0xFF)
                return self.write_command(value & 0xFF)
            case 4, 4:
                self.table = value & ~3
            case 4, 2:
                self.table = self.table & 0xFFFF0000 | value & 0xFFFC
            case 6, 2:
                self.table = self.table & 0xFFFF | value << 16
            case 0, 1 | 2:
                return self.write_command(value & 0xFF)
            case 2, 1 | 2:
                self.write_status(value & 0xFF)
        return ""

    def write_command(self, value: int) -> str:
        running = self.command & 1
        if value & 1:
            if running:
                return ""
            self.start(value & 8)
            return "started"
        self.command = value & 8
        self.active = False
        return "stopped" if running else ""

    def start(self, direction: int) -> None:
        self.command = 1 | direction
        self.active = True
        self.cursor = (self.table, 0, 0, 0, False)

    def write_status(self, value: int) -> None:
        self.stored = self.stored & ~value & 6 | value & 0x60

    def sector(self) -> list[tuple[int, int]]:
        """The memory of one sector: (address, bytes)."""
        following, entries, address, count, last = self.cursor
        pieces: list[tuple[int, int]] = []
        missing = 512
        while missing:
            if count == 0:
                if last:
                    self.cursor = (following, entries, address, count, last)
                    raise TableEnd(pieces)
                if self.memory is None or following + 8 > len(self.memory) or entries == 8192:
                    raise PrdError
                entry = self.memory[following : following + 8]
                following = (following + 8) & 0xFFFFFFFF
                entries += 1
                address = int.from_bytes(entry[:4], "little")
                count = int.from_bytes(entry[4:6], "little") or 65536
                last = bool(entry[7] & 0x80)
                if address + count > len(self.memory):
                    raise PrdError
            step = min(count, missing)
            pieces.append((address, step))
            address, count, missing = address + step, count - step, missing - step
        self.cursor = (following, entries, address, count, last)
        return pieces

    @property
    def exhausted(self) -> bool:
        return self.cursor[3] == 0 and self.cursor[4]


class Drive:
    def __init__(self, number: int, image: Any, trim: bool) -> None:
        self.number, self.image, self.trim = number, image, trim
        self.sectors = image.size // 512 if image else 0
        self.default = geometry(self.sectors) if image else (0, 1, 0)
        self.hard_reset()

    def hard_reset(self) -> None:
        self.registers = {name: [0, 0] for name in ("features", "count", "low", "mid", "high")}
        self.heads, self.spt = self.default[1:]
        self.multiple = 128
        self.cache = True
        self.operation = self.kind = ""
        self.fua = False
        self.drop()
        self.signature()

    def drop(self) -> None:
        self.phase = IDLE
        self.failed = self.pending = False
        self.data = bytearray()
        self.position = 0

    def signature(self) -> None:
        for name, value in (("count", 1), ("low", 1), ("mid", 0), ("high", 0)):
            self.registers[name][0] = value
        self.device, self.error = 0, 1

    @property
    def status(self) -> int:
        return 0x50 | (8 if self.phase != IDLE else self.failed)

    def push(self, name: str, value: int) -> None:
        self.registers[name] = [value, self.registers[name][0]]

    def set_address(self, lba: int) -> None:
        r = self.registers
        if self.kind == "chs":
            track, sector = divmod(lba, self.spt) if self.spt else (0, -1)
            if sector < 0:
                return
            cylinder, head = divmod(track, self.heads)
            r["low"][0], r["mid"][0], r["high"][0] = sector + 1, cylinder & 0xFF, cylinder >> 8 & 0xFF
            self.device = self.device & 0xF0 | head
            return
        for i, name in enumerate(("low", "mid", "high")):
            r[name][0] = lba >> 8 * i & 0xFF
            if self.kind == "ext":
                r[name][1] = lba >> 24 + 8 * i & 0xFF
        if self.kind == "lba":
            self.device = self.device & 0xF0 | lba >> 24 & 0x0F

    def set_position(self, lba: int, left: int) -> None:
        self.set_address(lba)
        self.registers["count"][0] = left & 0xFF
        if self.kind == "ext":
            self.registers["count"][1] = left >> 8 & 0xFF

    @property
    def reach(self) -> int:
        if self.kind == "ext":
            return self.sectors
        if self.kind == "lba":
            return min(self.sectors, 0x0FFFFFFF)
        cylinders, heads, spt = self.default
        return cylinders * heads * spt

    def address(self, ext: bool) -> int | None:
        r = self.registers
        current = r["low"][0] | r["mid"][0] << 8 | r["high"][0] << 16
        if ext:
            self.kind = "ext"
            previous = r["low"][1] | r["mid"][1] << 8 | r["high"][1] << 16
            return current | previous << 24 if self.device & 0x40 else None
        if self.device & 0x40:
            self.kind = "lba"
            return current | (self.device & 0x0F) << 24
        self.kind = "chs"
        if r["low"][0] == 0 or self.spt == 0:
            return None
        return ((current >> 8) * self.heads + (self.device & 0x0F)) * self.spt + r["low"][0] - 1

    def identify(self) -> bytes:
        words = identify_image()
        cylinders, heads, spt = self.default
        capacity = cylinders * heads * spt
        words[1] = 0x3FFF if capacity >= 0xFC0000 else cylinders
        words[3], words[4], words[6] = heads, 512 * spt, spt
        per_cylinder = self.heads * self.spt
        now = min(capacity // per_cylinder, 0xFFFF) if per_cylinder else 0
        words[54:57] = [now, self.heads, self.spt] if per_cylinder else [0, 0, 0]
        words[57:59] = [now * per_cylinder & 0xFFFF, now * per_cylinder >> 16]
        if self.number >= 2:
            words[25] = 0x3120  # "1.1.1": the characters of a word are swapped
        words[59] = 0x100 | self.multiple if self.multiple else 0
        reach = min(self.sectors, 0x0FFFFFFF)
        words[60:62] = [reach & 0xFFFF, reach >> 16]
        words[85] = 0x28 if self.cache else 0x08
        words[100:104] = [self.sectors >> 16 * i & 0xFFFF for i in range(4)]
        if self.trim:
            words[69], words[105], words[169] = 0x4000, 1, 1
        return b"".join(word.to_bytes(2, "little") for word in words)


class Channel:
    def __init__(self, number: int, drives: list[Any], memory: Any, short_table_interrupt: bool, trim: bool) -> None:
        self.drives = [Drive(2 * number + i, image, trim) for i, image in enumerate(drives)]
        self.memory = memory
        self.short_table_interrupt = short_table_interrupt
        self.empty = not any(drives)
        self.hard_reset()

    def hard_reset(self) -> None:
        for drive in self.drives:
            drive.hard_reset()
        self.bm = BusMaster(self.memory)
        self.selected = self.control = 0
        self.line = self.held = False

    @property
    def drive(self) -> Drive:
        return self.drives[self.selected]

    def update(self) -> None:
        line = self.drive.pending and not self.control & 6 and not self.held
        if line and not self.line:
            self.bm.stored |= 4
        self.line = line

    # Command block

    def read(self, offset: int) -> int:
        drive = self.drive
        if self.empty:
            return 0x7F
        if drive.image is None:
            return 0
        previous = int(bool(self.control & 0x80))
        if offset == 1:
            return drive.error
        if offset in (2, 3, 4, 5):
            return drive.registers[("count", "low", "mid", "high")[offset - 2]][previous]
        if offset == 6:
            return drive.device
        status = 0x90 if self.control & 4 else drive.status
        if offset == 7:
            drive.pending = False
            self.update()
        return status

    def push(self, offset: int, value: int) -> None:
        for drive in self.drives:
            if drive.phase == IDLE:
                if offset == 6:
                    drive.device = value
                else:
                    drive.push(("features", "count", "low", "mid", "high")[offset - 1], value)

    def select(self, value: int) -> None:
        self.push(6, value)
        self.selected = value >> 4 & 1
        self.update()

    def write(self, offset: int, value: int) -> None:
        if self.empty:
            return
        self.control &= ~0x80
        if self.control & 4 or self.drive.phase != IDLE:
            return
        if offset == 6:
            self.select(value)
        elif offset < 6:
            self.push(offset, value)
        elif value == 0x90:
            for drive in self.drives:
                drive.drop()
                drive.signature()
            self.selected = 0
            self.update()
            self.drive.pending = self.drive.image is not None
            self.update()
        elif self.drive.image is not None:
            self.start(self.drive, value)

    def write_control(self, value: int) -> None:
        if self.empty:
            return
        was, self.control = self.control, value & 0x86
        if value & 4 and not was & 4:
            for drive in self.drives:
                drive.drop()
        if was & 4 and not value & 4:
            for drive in self.drives:
                drive.signature()
            self.selected = 0
        self.update()

    # Data port

    def read_data(self, width: int) -> int:
        drive = self.drive
        if drive.image is None or drive.phase != DATA_IN:
            return (1 << 8 * width) - 1 & ~0x80
        piece = bytes(drive.data[drive.position : drive.position + width])
        drive.position += len(piece)
        if drive.position == len(drive.data):
            self.next_block(drive)
        return int.from_bytes(piece + b"\xff" * (width - len(piece)), "little")

    def write_data(self, width: int, value: int) -> None:
        drive = self.drive
        self.control &= ~0x80
        if drive.image is None or drive.phase != DATA_OUT:
            return
        drive.data += value.to_bytes(width, "little")[: drive.expected - len(drive.data)]
        if len(drive.data) == drive.expected:
            self.block_written(drive)

    # Commands

    def finish(self, drive: Drive) -> None:
        drive.phase = IDLE
        drive.pending = True
        self.update()

    def fail(self, drive: Drive, error: int) -> None:
        drive.failed, drive.error = True, error
        self.finish(drive)

    def flush(self, drive: Drive) -> None:
        if not drive.image.read_only:
            try:
                drive.image.flush()
            except OSError:
                for name in ("low", "mid", "high"):
                    drive.registers[name][0] = 0
                drive.device &= 0xF0
                return self.fail(drive, ABRT)
        self.finish(drive)

    def start(self, drive: Drive, code: int) -> None:
        drive.pending = drive.failed = False
        drive.error = 0
        self.update()
        count, features = drive.registers["count"], drive.registers["features"]
        if code in TRANSFERS:
            self.start_transfer(drive, *TRANSFERS[code])
        elif code in (0xE7, 0xEA, 0xE0, 0x94):
            self.flush(drive)
        elif code == 0xEC:
            drive.phase, drive.data, drive.position, drive.left = DATA_IN, bytearray(drive.identify()), 0, 0
            drive.pending = True
            self.update()
        elif code in QUIET:
            self.finish(drive)
        elif code in (0xE5, 0x98):
            count[0] = 0xFF
            self.finish(drive)
        elif code == 0xEF:
            if features[0] in (0x02, 0x82):
                drive.cache = features[0] == 0x02
                self.finish(drive) if drive.cache else self.flush(drive)
            elif features[0] in QUIET_FEATURES or (features[0] == 3 and count[0] in MODES):
                self.finish(drive)
            else:
                self.fail(drive, ABRT)
        elif code == 0xC6:
            if count[0] in (0, 1, 2, 4, 8, 16, 32, 64, 128):
                drive.multiple = count[0]
                self.finish(drive)
            else:
                self.fail(drive, ABRT)
        elif code == 0x91:
            drive.heads, drive.spt = (drive.device & 0x0F) + 1, count[0]
            self.finish(drive) if drive.spt else self.fail(drive, ABRT)
        elif code in (0x27, 0xF8):
            drive.kind = "ext" if code == 0x27 else "lba"
            drive.set_address(drive.reach - 1)
            self.finish(drive)
        elif code == 0x06:
            if not drive.trim or drive.image.read_only or not features[0] & 1 or count != [1, 0]:
                return self.fail(drive, ABRT)
            drive.phase, drive.operation = DMA, "trim"
            self.dma(drive)
        elif code & 0xF0 == 0x10:
            drive.kind = "lba" if drive.device & 0x40 else "chs"
            drive.set_address(0)
            self.finish(drive)
        elif code & 0xF0 == 0x70:
            lba = drive.address(False)
            self.finish(drive) if lba is not None and lba < drive.reach else self.fail(drive, IDNF)
        else:
            self.fail(drive, ABRT)

    def start_transfer(
        self, drive: Drive, operation: str, ext: bool, dma: bool, block: Any, single: bool, fua: bool
    ) -> None:
        drive.operation, drive.fua = operation, fua
        drive.block = drive.multiple if block == "multiple" else block
        if not drive.block:
            return self.fail(drive, ABRT)
        lba = drive.address(ext)
        low, high = drive.registers["count"]
        count = (low | high << 8 or 65536) if ext else low or 256
        if single:
            count = 1
        if lba is None or lba + count > drive.reach:
            return self.fail(drive, IDNF)
        if operation == "write" and drive.image.read_only:
            return self.fail(drive, ABRT)
        drive.lba, drive.left = lba, count
        if dma:
            drive.phase = DMA
            self.dma(drive)
        elif operation == "read":
            self.next_block(drive)
        elif operation == "write":
            self.begin_chunk(drive)
        else:
            self.verify(drive)

    def advance(self, drive: Drive, sectors: int) -> None:
        drive.lba += sectors
        drive.left -= sectors
        drive.set_position(drive.lba, drive.left)

    def next_block(self, drive: Drive) -> None:
        if drive.left == 0:
            drive.phase = IDLE
            return
        data = bytearray()
        for i in range(min(drive.block, drive.left)):
            try:
                data += drive.image.read((drive.lba + i) * 512, 512)
            except OSError:
                drive.set_position(drive.lba + i, drive.left)
                return self.fail(drive, UNC)
        drive.data, drive.position, drive.phase = data, 0, DATA_IN
        self.advance(drive, len(data) // 512)
        drive.pending = True
        self.update()

    def begin_chunk(self, drive: Drive) -> None:
        """Written data is gathered and stored 128 sectors at a time."""
        drive.phase, drive.data = DATA_OUT, bytearray()
        drive.chunk = min(128, drive.left)
        drive.expected = 512 * min(drive.block, drive.chunk)

    def block_written(self, drive: Drive) -> None:
        gathered = len(drive.data) // 512
        if gathered < drive.chunk:
            drive.set_position(drive.lba + gathered, drive.left - gathered)
            drive.expected += 512 * min(drive.block, drive.chunk - gathered)
        else:
            for i in range(gathered):
                try:
                    drive.image.write(drive.lba * 512, bytes(drive.data[512 * i : 512 * i + 512]))
                except OSError:
                    drive.set_position(drive.lba, drive.left)
                    return self.fail(drive, ABRT)
                self.advance(drive, 1)
            if not drive.left:
                return self.flush(drive) if drive.fua else self.finish(drive)
            self.begin_chunk(drive)
        drive.pending = True
        self.update()

    def verify(self, drive: Drive) -> None:
        while drive.left:
            try:
                drive.image.read(drive.lba * 512, 512)
            except OSError:
                drive.set_position(drive.lba, drive.left)
                return self.fail(drive, UNC)
            self.advance(drive, 1)
        self.finish(drive)

    # DMA

    def dma(self, drive: Drive) -> None:
        reading = drive.operation == "read"
        if drive.phase != DMA or not self.bm.active or bool(self.bm.command & 8) != reading:
            return
        try:
            if drive.operation == "trim":
                return self.discard(drive)
            while drive.left:
                self.chunk(drive, reading)
        except PrdError:
            self.bm.active = False
            self.bm.stored |= 2
            if drive.operation != "trim":
                drive.set_position(drive.lba, drive.left)
            return self.fail(drive, ABRT)
        except TableEnd:
            self.bm.active = False
            drive.set_position(drive.lba, drive.left)
            if not self.short_table_interrupt:
                drive.phase = IDLE
                return
        except OSError:
            drive.set_position(drive.lba, drive.left)
            return self.fail(drive, UNC if reading else ABRT)
        else:
            if self.bm.exhausted:
                self.bm.active = False
        if drive.fua:
            self.flush(drive)
        else:
            self.finish(drive)

    def chunk(self, drive: Drive, reading: bool) -> None:
        """Up to 128 sectors; their table entries are looked at before any of them moves."""
        count = min(128, drive.left)
        start = self.bm.cursor
        sectors: list[list[tuple[int, int]]] = []
        end: TableEnd | None = None
        try:
            for _ in range(count):
                sectors.append(self.bm.sector())
        except TableEnd as short:
            end = short
        touched = len(sectors) + (reading and end is not None and bool(end.pieces))
        try:
            for i in range(touched):
                drive.image.check((drive.lba + i) * 512, 512)
        except OSError:
            # One by one up to the bad sector, whose table entries are then as good as unused.
            self.bm.cursor = start
            while True:
                before = self.bm.cursor
                try:
                    pieces = self.bm.sector()
                except TableEnd as short:
                    if not reading or not short.pieces:
                        raise
                    pieces = short.pieces
                try:
                    drive.image.check(drive.lba * 512, 512)
                except OSError:
                    self.bm.cursor = before
                    raise
                self.move(drive, pieces, reading)
                if sum(size for _, size in pieces) < 512:
                    raise TableEnd([]) from None
                self.advance(drive, 1)
        for pieces in sectors:
            self.move(drive, pieces, reading)
            self.advance(drive, 1)
        if end is not None:
            if reading and end.pieces:
                self.move(drive, end.pieces, reading)
            raise end

    def move(self, drive: Drive, pieces: list[tuple[int, int]], reading: bool) -> None:
        if reading:
            data = drive.image.read(drive.lba * 512, 512)
            for address, size in pieces:
                self.memory[address : address + size] = data[:size]
                data = data[size:]
        else:
            drive.image.write(drive.lba * 512, b"".join(self.memory[a : a + n] for a, n in pieces))

    def discard(self, drive: Drive) -> None:
        try:
            block = b"".join(self.memory[a : a + n] for a, n in self.bm.sector())
        except TableEnd:
            self.bm.active = False
            return self.fail(drive, ABRT)
        if self.bm.exhausted:
            self.bm.active = False
        entries = [int.from_bytes(block[i : i + 8], "little") for i in range(0, 512, 8)]
        ranges = [(entry & (1 << 48) - 1, entry >> 48) for entry in entries if entry >> 48]
        if any(lba + sectors > drive.sectors for lba, sectors in ranges):
            return self.fail(drive, ABRT)
        try:
            for lba, sectors in ranges:
                drive.image.trim(lba * 512, sectors * 512)
        except OSError:
            return self.fail(drive, ABRT)
        self.finish(drive)

    def write_bus_master(self, offset: int, width: int, value: int) -> None:
        event = self.bm.write(offset, width, value)
        if event == "started":
            self.dma(self.drive)
        elif event == "stopped" and self.drive.phase == DMA:
            self.drive.phase = IDLE

    # Enlightened port (7.2)

    def enlightened(self, address: int) -> None:
        if self.empty or self.control & 4 or self.memory is None or address + 24 > len(self.memory):
            return
        packet = bytes(self.memory[address : address + 24])
        self.control &= ~0x80
        self.select(packet[1])
        drive = self.drive
        if drive.image is None or drive.phase != IDLE or drive.failed:
            return
        if packet[0] not in (0xC8, 0xC9, 0xCA, 0xCB, 0x25, 0x35, 0x3D):
            return
        ext = packet[0] in (0x25, 0x35, 0x3D)
        if ext:
            for offset, value in ((2, packet[11]), (3, packet[7]), (4, packet[8]), (5, packet[9])):
                self.push(offset, value)
        for offset, value in ((2, packet[10]), (3, packet[4]), (4, packet[5]), (5, packet[6])):
            self.push(offset, value)
        self.bm.table = int.from_bytes(packet[16:20], "little") & ~3
        self.held = True
        self.update()
        self.bm.start(8 if packet[0] in (0xC8, 0xC9, 0x25) else 0)
        self.start(drive, packet[0])
        self.bm.write_command(0)
        drive.pending = False
        if drive.failed:
            self.memory[address + 3] = drive.status
        self.held = False
        self.update()


class Controller:
    def __init__(
        self,
        drives: list[Any],
        memory: bytearray | None = None,
        *,
        bus_master: int = 0xC000,
        short_table_interrupt: bool = True,
        trim: bool = False,
    ) -> None:
        drives = list(drives) + [None] * (4 - len(drives))
        self.bus_master = bus_master
        self.channels = [Channel(i, drives[2 * i : 2 * i + 2], memory, short_table_interrupt, trim) for i in (0, 1)]

    def decode(self, port: int) -> tuple[Channel | None, str, int]:
        for channel, base, control, enlightened in zip(
            self.channels, (0x1F0, 0x170), (0x3F6, 0x376), (0x1E0, 0x160), strict=True
        ):
            if base <= port < base + 8:
                return channel, "block", port - base
            if port == control:
                return channel, "control", 8
            if port == enlightened:
                return channel, "enlightened", 0
        if self.bus_master <= port < self.bus_master + 16:
            return self.channels[(port - self.bus_master) // 8], "bus master", (port - self.bus_master) % 8
        return None, "", 0

    def read(self, port: int, width: int) -> int:
        channel, what, offset = self.decode(port)
        ones = (1 << 8 * width) - 1
        if channel is None or what == "enlightened":
            return ones
        if what == "bus master":
            return channel.bm.read(offset, width)
        if what == "block" and offset == 0:
            return channel.read_data(width)
        return channel.read(offset) | ones & ~0xFF

    def write(self, port: int, width: int, value: int) -> None:
        channel, what, offset = self.decode(port)
        if channel is None:
            return
        if what == "bus master":
            channel.write_bus_master(offset, width, value)
        elif what == "enlightened":
            if width == 4:
                channel.enlightened(value)
        elif what == "control":
            channel.write_control(value & 0xFF)
        elif offset == 0:
            channel.write_data(width, value)
        else:
            channel.write(offset, value & 0xFF)

    def inb(self, port: int) -> int:
        return self.read(port, 1)

    def inw(self, port: int) -> int:
        return self.read(port, 2)

    def inl(self, port: int) -> int:
        return self.read(port, 4)

    def outb(self, port: int, value: int) -> None:
        self.write(port, 1, value)

    def outw(self, port: int, value: int) -> None:
        self.write(port, 2, value)

    def outl(self, port: int, value: int) -> None:
        self.write(port, 4, value)

    def insw(self, port: int, buffer: Any) -> None:
        for i in range(0, len(buffer), 2):
            buffer[i : i + 2] = self.inw(port).to_bytes(2, "little")

    def outsw(self, port: int, buffer: Any) -> None:
        for i in range(0, len(buffer), 2):
            self.outw(port, int.from_bytes(buffer[i : i + 2], "little"))

    def irq(self, channel: int) -> bool:
        return self.channels[channel].line

    def reset(self) -> None:
        for channel in self.channels:
            channel.hard_reset()
