"""Random port accesses in every state of the controller, as intercepts that a worker answers, against the plain-Python
twin: the same answers, lines, memory and disks."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from hvcore.disk.ram import RamDisk
from tests.reference import ide as reference
from tests.reference.ide_disk import PatternDisk
from tests.reference.trapped import Bench

SECTORS = 0x400
PLACES = (0, 1, 3)
MEMORY = 0x20000
TABLE = 0x1F000
PACKET = 0x1E000
SCRATCH = 0x1C000  # where strings go
BASES = (0x1F0, 0x170)
CONTROLS = (0x3F6, 0x376)
channels = st.integers(0, 1)
commands = st.one_of(
    st.sampled_from([*reference.TRANSFERS, 0xEC, 0xE7, 0xC6, 0xEF, 0x91, 0x90, 0x27, 0x10, 0x70, 0xE5]),
    st.integers(0, 255),
)
ports = st.one_of(
    st.sampled_from([base + i for base in BASES for i in range(8)]),
    st.sampled_from([*CONTROLS, *range(0xC000, 0xC010)]),
    st.sampled_from([0x1E0, 0x160, 0x3F7, 0x1EF, 0x1F8, 0xBFFF, 0xC010, 0, 0xFFFF]),
)
lbas = st.one_of(st.integers(0, 60), st.integers(SECTORS - 3, SECTORS + 3), st.integers(0, 2**48 - 1))
prds = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 0x10000), st.sampled_from([0x1FE00, 0x1FFFF, 0x20000, 0xF0000000, 0xFFFFFFFF])),
        st.sampled_from([0x200, 0x400, 0x1000, 0x203, 0x1FD, 2, 0, 0x8000, 0xFFFE]),
    ),
    min_size=1,
    max_size=6,
)
PATTERN = b"".join(PatternDisk(SECTORS).sector(lba) for lba in range(SECTORS))


class Machine(RuleBasedStateMachine):
    bench: Bench
    disks: list[RamDisk]

    @initialize()
    def start(self) -> None:
        self.stack = ExitStack()
        for disk in self.disks:
            disk.write(0, PATTERN)
        self.twins = [PatternDisk(SECTORS) if place in PLACES else None for place in range(4)]
        self.ide = self.stack.enter_context(self.bench.guest(MEMORY))
        self.ide.scratch = SCRATCH
        self.twin_memory = bytearray(MEMORY)
        self.twin = reference.Controller(self.twins, self.twin_memory)
        self.word = 0

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            for disk, twin in zip(self.disks, filter(None, self.twins), strict=True):
                expected = bytearray(PATTERN)
                for lba, data in twin.written.items():
                    expected[512 * lba : 512 * lba + 512] = data
                assert disk.read(0, disk.size) == expected
            self.stack.close()

    def poke(self, address: int, data: bytes) -> None:
        for memory in (self.ide.memory, self.twin_memory):
            memory[address : address + len(data)] = data

    def out(self, port: int, value: int, width: int = 1) -> None:
        name = {1: "outb", 2: "outw", 4: "outl"}[width]
        getattr(self.ide, name)(port, value)
        getattr(self.twin, name)(port, value)

    def inp(self, port: int, width: int = 1) -> int:
        name = {1: "inb", 2: "inw", 4: "inl"}[width]
        value: int = getattr(self.ide, name)(port)
        assert value == getattr(self.twin, name)(port), f"{width} bytes of port {port:x}"
        return value

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "ide"):
            return
        for i in range(2):
            assert self.ide.irq(i) == self.twin.irq(i)
            self.inp(0xC002 + 8 * i)
            self.inp(CONTROLS[i])
        assert self.ide.memory == self.twin_memory

    @rule(port=ports, width=st.sampled_from([1, 2, 4]), value=st.integers(0, 2**32 - 1))
    def nonsense_out(self, port: int, width: int, value: int) -> None:
        self.out(port, value & (1 << 8 * width) - 1, width)

    @rule(port=ports, width=st.sampled_from([1, 2, 4]))
    def read_any(self, port: int, width: int) -> None:
        self.inp(port, width)

    @rule(channel=channels, code=commands)
    def command_alone(self, channel: int, code: int) -> None:
        self.out(BASES[channel] + 7, code)

    @rule(
        channel=channels,
        device=st.sampled_from([0x40, 0x40, 0x50, 0xE0, 0xF0, 0x00, 0x10]),
        count=st.one_of(st.integers(0, 4), st.sampled_from([8, 128, 129, 255])),
        ext=st.booleans(),
        lba=lbas,
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

    @rule(channel=channels, words=st.sampled_from([1, 255, 256, 257, 512, 1500]))
    def read_string(self, channel: int, words: int) -> None:
        mine, other = bytearray(2 * words), bytearray(2 * words)
        self.ide.insw(BASES[channel], mine)
        self.twin.insw(BASES[channel], other)
        assert mine == other
        self.twin_memory[SCRATCH : SCRATCH + 2 * words] = bytes(2 * words)  # as the ports leave theirs

    @rule(channel=channels, words=st.sampled_from([1, 255, 256, 257, 512, 1500]))
    def write_string(self, channel: int, words: int) -> None:
        data = b"".join((self.word + i & 0xFFFF).to_bytes(2, "little") for i in range(words))
        self.word += words
        self.ide.outsw(BASES[channel], data)
        self.twin.outsw(BASES[channel], data)
        self.twin_memory[SCRATCH : SCRATCH + 2 * words] = bytes(2 * words)

    @rule(channel=channels, entries=prds, end=st.booleans(), direction=st.sampled_from([0, 8]), start=st.booleans())
    def bus_master(self, channel: int, entries: list[tuple[int, int]], end: bool, direction: int, start: bool) -> None:
        table = b"".join(
            base.to_bytes(4, "little") + (count & 0xFFFF).to_bytes(2, "little") + (b"\0\x80" if last else b"\0\0")
            for base, count, last in [(*e, end and i == len(entries) - 1) for i, e in enumerate(entries)]
        )
        self.poke(TABLE, table)
        port = 0xC000 + 8 * channel
        self.out(port + 4, TABLE, 4)
        self.out(port, direction)
        self.out(port + 2, 6)
        self.out(port, direction | start)

    @rule(
        channel=channels,
        code=st.sampled_from([0xC8, 0xCA, 0x25, 0x35, 0x3D, 0x20]),
        device=st.sampled_from([0x40, 0x50]),
        lba=st.one_of(st.integers(0, 60), st.integers(SECTORS - 3, SECTORS + 3)),
        count=st.integers(1, 8),
    )
    def enlightened(self, channel: int, code: int, device: int, lba: int, count: int) -> None:
        packet = bytes([code, device, 0, 0]) + lba.to_bytes(6, "little") + count.to_bytes(2, "little") + bytes(4)
        self.poke(PACKET, packet + TABLE.to_bytes(4, "little") + bytes(4))
        self.out((0x1E0, 0x160)[channel], PACKET, 4)

    @rule(channel=channels, value=st.sampled_from([0, 2, 4, 6, 0x80]))
    def control(self, channel: int, value: int) -> None:
        self.out(CONTROLS[channel], value)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    Machine.disks = [RamDisk(SECTORS * 512) for _ in PLACES]
    drives = dict(zip(PLACES, Machine.disks, strict=True))
    with Bench([drives.get(place) for place in range(4)], process=False) as bench:
        yield bench


def play(bench: Bench, examples: int, steps: int) -> None:
    class Machined(Machine):
        pass

    Machined.bench = bench
    run_state_machine_as_test(
        Machined,
        settings=settings(derandomize=True, deadline=None, max_examples=examples, stateful_step_count=steps),
    )


def test_same_as_the_twin(bench: Bench) -> None:
    play(bench, 30, 25)


@pytest.mark.slow
def test_same_as_the_twin_for_long(bench: Bench) -> None:
    play(bench, 200, 40)
