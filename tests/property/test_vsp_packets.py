"""Packets that no guest sends over a real channel: the verdict where there is one, and no harm to another disk
(checklist 7 of storvsp.md)."""

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.disk.ram import RamDisk
from tests.reference.guest import (
    DATA_PFN,
    FROM_GUEST,
    PAGE,
    Guest,
    direct,
    in_band,
    read10,
    srb,
    vstor,
    write10,
)

DISK_BYTES = 1 << 18
FLUSH_CDB = bytes.fromhex("35") + bytes(9)
ANY = settings(max_examples=150, deadline=None, derandomize=True)


class Machine(Guest):
    """`channel` under test, and another disk that goes on whatever happens there."""

    def __init__(self) -> None:
        super().__init__(memory=4 << 20)
        self.disk = RamDisk(DISK_BYTES)
        self.channel, self.bystander = self.add(self.disk, open=False), self.add(RamDisk(DISK_BYTES), open=False)
        for channel in (self.channel, self.bystander):
            assert channel.open()
            channel.negotiate()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """One for all examples: each leaves a channel that works, or opens it anew."""
    with Machine() as machine:
        yield machine


PACKETS = {
    "read": direct(srb(read10(3, 16), 8192), [DATA_PFN, DATA_PFN + 3, DATA_PFN + 1], 8192, 0x200, 7),
    "write": direct(srb(write10(3, 16), 8192, FROM_GUEST), [DATA_PFN, DATA_PFN + 3, DATA_PFN + 1], 8192, 0x200, 7),
    "list": direct(srb(bytes.fromhex("42000000000000001800"), 24, FROM_GUEST), [DATA_PFN], 24, 0, 7, surplus=31),
    "inquiry": direct(srb(bytes.fromhex("120000002400"), 36), [DATA_PFN], 36, 0, 7),
    "flush": in_band(srb(FLUSH_CDB), 7),
    "reset": in_band(vstor(6), 7),
}


def consumed(machine: Machine) -> None:
    """The host has looked at what lies in the channel: it visits the channels in their order, this one first."""
    machine.bystander.answers()


def renewed(machine: Machine) -> None:
    consumed(machine)
    machine.channel.reopen()
    machine.channel.negotiate()
    machine.channel.answers()


@pytest.mark.parametrize("name", PACKETS)
def test_each_byte_of_a_packet_inverted(machine, name):
    """One byte at a time; surplus PFNs left out, which nobody reads."""
    packet = PACKETS[name]
    end = len(packet) if name != "list" else 48
    for at in range(end):
        machine.channel.scribble(packet[:at] + bytes([packet[at] ^ 0xFF]) + packet[at + 1 :])
        renewed(machine)


@ANY
@given(
    noise=st.binary(min_size=1, max_size=600), published=st.one_of(st.none(), st.integers(0, 600).map(lambda n: 8 * n))
)
def test_noise_as_packets(machine, noise, published):
    machine.channel.scribble(noise, published=published)
    renewed(machine)


@ANY
@given(
    header=st.tuples(*[st.sampled_from([0, 1, 2, 3, 4, 5, 13, 36, 0xFFFF])] * 2), kind=st.sampled_from([6, 7, 9, 11])
)
def test_any_sizes_in_a_descriptor(machine, header, kind):
    offset8, length8 = header
    machine.channel.scribble(struct.pack("<4HQ", kind, offset8, length8, 1, 7) + PACKETS["read"][16:])
    renewed(machine)


@ANY
@given(
    ranges=st.integers(0, 3) | st.just(0xFFFFFFFF),
    count=st.sampled_from([0, 1, 8191, 8192, 8193, 0xFFFFF000, 0xFFFFFFFF]),
    offset=st.sampled_from([0, 1, 0x200, 0xFFF, 0x1000, 0xFFFFFFFF]),
    pfns=st.lists(st.sampled_from([0, DATA_PFN, DATA_PFN + 3, 1023, 1024, 1 << 52, (1 << 64) - 1]), max_size=5),
    wanted=st.sampled_from([0, 512, 8192, 8193, 0xFFFFFFFF]),
)
def test_any_range_header(machine, ranges, count, offset, pfns, wanted):
    header = struct.pack(f"<4I{len(pfns)}Q", 0, ranges, count, offset, *pfns)
    payload = srb(read10(3, 16), wanted)
    offset8 = 2 + len(header) // 8
    packet = struct.pack("<4HQ", 9, offset8, offset8 + 8, 1, 7) + header + payload
    pages = -(-(offset + count) // PAGE)
    good = ranges == 1 and count and offset < PAGE and offset + count + 4095 < 1 << 32 and pages <= len(pfns)
    machine.channel.scribble(packet)
    if not good or wanted > count:
        assert machine.channel.fault() == ("length" if good else "range")
    elif 0 in pfns:
        consumed(machine)  # page 0 is memory too, and no ring's
    else:
        answer = machine.channel.receive()
        touched = pfns[: -(-(offset + wanted) // PAGE)] if wanted else []
        reachable = all(pfn < 1024 for pfn in touched)
        assert answer.srb_status == (1 if reachable and wanted >= 8192 else 0x86)
    renewed(machine)
