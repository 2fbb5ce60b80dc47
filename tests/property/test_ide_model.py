"""The controller against its plain-Python twin: the same accesses, the same answers, lines, memory and disks."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hvcore.ide import Controller
from tests.reference import ide as reference
from tests.reference.ide_disk import PatternDisk

SECTORS = 0x1000
MEMORY = 0x20000
TABLE = 0x1F000
BASES = (0x1F0, 0x170)
CONTROLS = (0x3F6, 0x376)
channels = st.integers(0, 1)
bytes_ = st.integers(0, 255)
# Interesting more often than a die would have it: valid commands, and everything else too.
commands = st.one_of(
    st.sampled_from(
        [*reference.TRANSFERS, 0xEC, 0xE7, 0xEA, 0xC6, 0xEF, 0x91, 0x90, 0x06, 0x27, 0xF8, 0x10, 0x70, 0xE5]
    ),
    bytes_,
)
ports = st.one_of(
    st.sampled_from([base + i for base in BASES for i in range(8)]),
    st.sampled_from([*CONTROLS, *range(0xC000, 0xC010)]),
    st.sampled_from([0x1E0, 0x160, 0x3F7, 0x1EF, 0x1F8, 0xBFFF, 0xC010, 0, 0xFFFF]),
)
counts = st.one_of(st.integers(0, 4), st.sampled_from([8, 100, 128, 129, 200, 255]), bytes_)
prds = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 0x10000), st.sampled_from([0x1FE00, 0x1FFFF, 0x20000, 0xF0000000, 0xFFFFFFFF])),
        st.sampled_from([0x200, 0x400, 0x1000, 0x203, 0x1FD, 2, 0, 0x8000, 0xFFFE]),
    ),
    min_size=1,
    max_size=6,
)


class Machine(RuleBasedStateMachine):
    @initialize(
        present=st.sampled_from([(1, 0, 0, 0), (1, 1, 0, 1), (0, 1, 1, 0)]),
        read_only=st.booleans(),
        bad=st.frozensets(st.integers(0, 40), max_size=3),
        silent=st.booleans(),
        trim=st.booleans(),
    )
    def start(self, present: Any, read_only: bool, bad: frozenset[int], silent: bool, trim: bool) -> None:
        def drives() -> list[PatternDisk | None]:
            return [
                PatternDisk(SECTORS, read_only=read_only and i == 1, bad=bad if i != 3 else frozenset())
                if here
                else None
                for i, here in enumerate(present)
            ]

        self.disks, self.twin_disks = drives(), drives()
        self.memory, self.twin_memory = bytearray(MEMORY), bytearray(MEMORY)
        options = {"short_table_interrupt": not silent, "trim": trim}
        self.ide = Controller(self.disks, self.memory, **options)
        self.twin = reference.Controller(self.twin_disks, self.twin_memory, **options)
        self.word = 0

    def out(self, port: int, value: int, width: int = 1) -> None:
        name = {1: "outb", 2: "outw", 4: "outl"}[width]
        getattr(self.ide, name)(port, value)
        getattr(self.twin, name)(port, value)

    def inp(self, port: int, width: int = 1) -> int:
        name = {1: "inb", 2: "inw", 4: "inl"}[width]
        value = getattr(self.ide, name)(port)
        assert value == getattr(self.twin, name)(port), f"{width} bytes of port {port:x}"
        return value

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "ide"):
            return
        for i in range(2):
            assert self.ide.irq(i) == self.twin.irq(i)
            assert self.ide.inb(0xC002 + 8 * i) == self.twin.inb(0xC002 + 8 * i)
            assert self.ide.inb(CONTROLS[i]) == self.twin.inb(CONTROLS[i])
        assert self.memory == self.twin_memory
        for disk, twin in zip(self.disks, self.twin_disks, strict=True):
            if disk is not None and twin is not None:
                assert (disk.written, disk.flushes, disk.trimmed) == (twin.written, twin.flushes, twin.trimmed)

    @rule(port=ports, width=st.sampled_from([1, 2, 4]), value=st.integers(0, 2**32 - 1))
    def nonsense_out(self, port: int, width: int, value: int) -> None:
        self.out(port, value & (1 << 8 * width) - 1, width)

    @rule(port=ports, width=st.sampled_from([1, 2, 4]))
    def read_any(self, port: int, width: int) -> None:
        self.inp(port, width)

    @rule(channel=channels, hob=st.booleans())
    def read_registers(self, channel: int, hob: bool) -> None:
        self.out(CONTROLS[channel], 0x80 if hob else 0)
        for i in range(1, 8):
            self.inp(BASES[channel] + i)

    @rule(channel=channels, code=commands)
    def command_alone(self, channel: int, code: int) -> None:
        self.out(BASES[channel] + 7, code)

    @rule(
        channel=channels,
        device=st.sampled_from([0x40, 0x40, 0x50, 0xE0, 0xF0, 0x00, 0x10]),
        count=counts,
        ext=st.booleans(),
        lba=st.one_of(st.integers(0, 60), st.integers(SECTORS - 3, SECTORS + 3), st.integers(0, 2**48 - 1)),
        code=commands,
        feature=st.sampled_from([1, 2, 3, 0x82, 0xAA, 0x77]),
    )
    def command(self, channel: int, device: int, count: int, ext: bool, lba: int, code: int, feature: int) -> None:
        base = BASES[channel]
        self.out(base + 6, device)
        self.out(base + 1, feature)
        for shift in (24, 0) if ext else (0,):
            self.out(base + 2, 0 if shift else count)
            for i in range(3):
                self.out(base + 3 + i, lba >> shift + 8 * i & 0xFF)
        self.out(base + 7, code)

    @rule(channel=channels, words=st.sampled_from([1, 255, 256, 257, 512, 4096]))
    def read_string(self, channel: int, words: int) -> None:
        mine, other = bytearray(2 * words), bytearray(2 * words)
        self.ide.insw(BASES[channel], mine)
        self.twin.insw(BASES[channel], other)
        assert mine == other

    @rule(channel=channels, words=st.sampled_from([1, 255, 256, 257, 512, 4096]))
    def write_string(self, channel: int, words: int) -> None:
        data = b"".join((self.word + i & 0xFFFF).to_bytes(2, "little") for i in range(words))
        self.word += words
        self.ide.outsw(BASES[channel], data)
        self.twin.outsw(BASES[channel], data)

    @rule(channel=channels)
    def drain(self, channel: int) -> None:
        """Runs the data phase to its end, whatever it is."""
        for _ in range(70):
            if not self.inp(BASES[channel] + 7) & 0x08:
                break
            self.read_string(channel, 512)
            self.write_string(channel, 512)

    @rule(channel=channels, entries=prds, end=st.booleans(), direction=st.sampled_from([0, 8]), start=st.booleans())
    def bus_master(self, channel: int, entries: list[tuple[int, int]], end: bool, direction: int, start: bool) -> None:
        table = b"".join(
            base.to_bytes(4, "little") + (count & 0xFFFF).to_bytes(2, "little") + (b"\0\x80" if last else b"\0\0")
            for base, count, last in [(*e, end and i == len(entries) - 1) for i, e in enumerate(entries)]
        )
        for memory in (self.memory, self.twin_memory):
            memory[TABLE : TABLE + len(table)] = table
        port = 0xC000 + 8 * channel
        self.out(port + 4, TABLE, 4)
        self.out(port, direction)
        self.out(port + 2, 6)
        self.out(port, direction | start)

    @rule(channel=channels, value=st.sampled_from([0, 1, 8, 9]))
    def bus_master_command(self, channel: int, value: int) -> None:
        self.out(0xC000 + 8 * channel, value)

    @rule(
        channel=channels,
        code=st.sampled_from([0xC8, 0xCA, 0x25, 0x35, 0x3D, 0x20]),
        device=st.sampled_from([0x40, 0x50]),
        lba=st.one_of(st.integers(0, 60), st.integers(SECTORS - 3, SECTORS + 3)),
        count=st.integers(1, 8),
    )
    def enlightened(self, channel: int, code: int, device: int, lba: int, count: int) -> None:
        packet = bytes([code, device, 0, 0]) + lba.to_bytes(6, "little") + count.to_bytes(2, "little") + bytes(4)
        packet += TABLE.to_bytes(4, "little") + bytes(4)
        for memory in (self.memory, self.twin_memory):
            memory[0x1E000 : 0x1E000 + 24] = packet
        self.out((0x1E0, 0x160)[channel], 0x1E000, 4)

    @rule(channel=channels, value=st.sampled_from([0, 2, 4, 6, 0x80]))
    def control(self, channel: int, value: int) -> None:
        self.out(CONTROLS[channel], value)

    @rule()
    def hard_reset(self) -> None:
        self.ide.reset()
        self.twin.reset()


Machine.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=100, stateful_step_count=30)
TestSameAsTwin = Machine.TestCase
