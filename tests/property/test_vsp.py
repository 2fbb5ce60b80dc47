"""The storage VSP against a flat model of disk and buffer, and against packets with wrong bytes (storvsp.md 17)."""

import struct

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hvcore.disk.ram import RamDisk
from tests.reference.guest import (
    DATA_PFN,
    FROM_GUEST,
    NO_DATA,
    PAGE,
    TEST_UNIT_READY,
    TO_GUEST,
    Guest,
    direct,
    in_band,
    read10,
    srb,
    until,
    vstor,
    write10,
)

DISK_BYTES = 1 << 20
PAGES = 96
AREA = slice(DATA_PFN * PAGE, (DATA_PFN + PAGES) * PAGE)
CONTENT = b"".join(struct.pack(">I", word * 2654435761 & 0xFFFFFFFF) for word in range(DISK_BYTES // 4))


def pattern(seed, length):
    return (CONTENT * 2)[seed * 4 : seed * 4 + length]


class Rig:
    """One guest for all examples: each leaves the channel as it found it."""

    def __init__(self):
        self.guest = Guest()
        self.disk = RamDisk(DISK_BYTES)
        self.channel = self.guest.add(self.disk, open=False)
        self.other = self.guest.add(RamDisk(1 << 20), open=False)
        for channel in (self.channel, self.other):
            assert channel.open()
            channel.negotiate()

    def memory(self):
        return self.guest.read(AREA.start, AREA.stop - AREA.start)

    def fill(self, data):
        self.guest.write(AREA.start, data)


@pytest.fixture(scope="module")
def rig():
    rig = Rig()
    with rig.guest:
        yield rig


def buffer_bytes(pfns, offset, length):
    """Offsets into the data area of the bytes of a range, in order."""
    places = []
    for page, pfn in enumerate(pfns):
        start = offset if page == 0 else 0
        here = min(PAGE - start, length)
        places.append(((pfn - DATA_PFN) * PAGE + start, here))
        length -= here
    return places


def gather(memory, places):
    return b"".join(memory[start : start + length] for start, length in places)


def scatter(memory, places, data):
    memory = bytearray(memory)
    for start, length in places:
        memory[start : start + length] = data[:length]
        data = data[length:]
    return bytes(memory)


@st.composite
def transfers(draw):
    """A request within the disk: (lba, blocks, offset into the first page, pages, bytes of buffer behind the data)."""
    blocks = draw(st.one_of(st.integers(1, 40), st.integers(1, 512)))
    lba = draw(st.integers(0, DISK_BYTES // 512 - blocks))
    offset = draw(st.one_of(st.integers(0, PAGE - 1), st.sampled_from([0, 1, 511, 512, 4094, 4095])))
    slack = draw(st.sampled_from([0, 0, 0, 1, 7, 513]))
    if blocks * 512 + slack > 0x40000:
        slack = 0
    count = (offset + blocks * 512 + slack + PAGE - 1) // PAGE
    order = draw(st.sampled_from(["forward", "backward", "shuffled"]))
    pages = list(range(DATA_PFN, DATA_PFN + PAGES))
    if order == "backward":
        pages = pages[::-1]
    elif order == "shuffled":
        draw(st.randoms(use_true_random=False)).shuffle(pages)
    return lba, blocks, offset, pages[:count], slack


@settings(max_examples=150)
@given(data=st.data())
def test_transfers_equal_a_flat_copy(rig, data):
    """Checklist 4 and 8: bytes beyond the transfer are unchanged, in memory and on the disk."""
    lba, blocks, offset, pages, slack = data.draw(transfers())
    writes = data.draw(st.booleans())
    memory, medium = pattern(data.draw(st.integers(0, 1000)), PAGES * PAGE), CONTENT
    rig.fill(memory)
    rig.disk.write(0, medium)
    size = blocks * 512 + slack
    cdb, way = (write10(lba, blocks), FROM_GUEST) if writes else (read10(lba, blocks), TO_GUEST)
    answer = rig.channel.ask(direct(srb(cdb, size, way), pages, size, offset))
    assert (answer.srb_status, answer.scsi_status, answer.length) == (1, 0, blocks * 512)
    places = buffer_bytes(pages, offset, blocks * 512)
    start, end = lba * 512, (lba + blocks) * 512
    if writes:
        medium = medium[:start] + gather(memory, places) + medium[end:]
    else:
        memory = scatter(memory, places, medium[start:end])
    assert rig.memory() == memory
    assert rig.disk.read(0, DISK_BYTES) == medium


@settings(max_examples=60)
@given(
    blocks=st.integers(1, 512),
    offset=st.integers(0, PAGE - 1),
    form=st.sampled_from(["minimal", "32 PFNs", "surplus"]),
    writes=st.booleans(),
)
def test_descriptor_forms_are_the_same_request(rig, blocks, offset, form, writes):
    """Checklist 3: what Linux sends for up to 32 pages, for more, and what the newest kernels always send."""
    rig.fill(pattern(3, PAGES * PAGE))
    rig.disk.write(0, CONTENT)
    size = blocks * 512
    count = (offset + size + PAGE - 1) // PAGE
    pages = list(range(DATA_PFN, DATA_PFN + count))[::-1]
    surplus = {"minimal": 0, "32 PFNs": max(0, 32 - count), "surplus": 100}[form]
    cdb, way = (write10(0, blocks), FROM_GUEST) if writes else (read10(0, blocks), TO_GUEST)
    answer = rig.channel.ask(direct(srb(cdb, size, way), pages, size, offset, surplus=surplus))
    assert (answer.srb_status, answer.length) == (1, size)
    places = buffer_bytes(pages, offset, size)
    assert gather(rig.memory(), places) == rig.disk.read(0, size)
    assert (rig.disk.read(0, size) == CONTENT[:size]) == (not writes)


VALID = (
    direct(srb(read10(5, 9), 9 * 512), [DATA_PFN, DATA_PFN + 7], 9 * 512, 0x100),
    direct(srb(write10(5, 9), 9 * 512, FROM_GUEST), [DATA_PFN, DATA_PFN + 7], 9 * 512, 0x100),
    direct(srb(bytes.fromhex("120000002400"), 36), [DATA_PFN], 36, surplus=31),
    direct(srb(bytes.fromhex("42000000000000001800"), 24, FROM_GUEST), [DATA_PFN], 24),
    in_band(srb(TEST_UNIT_READY)),
    in_band(vstor(6)),
)


@settings(max_examples=300)
@given(
    packet=st.sampled_from(VALID),
    flips=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 255)), min_size=1, max_size=3),
)
def test_flipped_bytes_hurt_only_their_channel(rig, packet, flips):
    """Checklist 7: an answer or a dead channel; the disk beside it goes on either way."""
    packet = bytearray(packet)
    for at, bits in flips:
        packet[at % len(packet)] ^= bits
    # A guest that has its disk write into another channel's rings does that to itself.
    pfns = [pfn for (pfn,) in struct.iter_unpack("<Q", packet[32 : len(packet) - 64])]
    assume(all(pfn >= DATA_PFN - PAGES for pfn in pfns if pfn))
    rig.channel.scribble(bytes(packet))
    answer = until(lambda: rig.channel.poll() or rig.channel.inspect()["fault"])
    rig.other.answers()
    if not isinstance(answer, str):
        assert (answer.packet.type, answer.operation) == (0xB, 1)
        assert answer.tid == struct.unpack_from("<Q", packet, 8)[0]
    rig.channel.reopen()
    assert rig.channel.inspect()["in_flight"] == 0
    rig.channel.negotiate()
    rig.channel.answers()


OPCODES = bytes.fromhex("00 03 12 1a 1b 25 28 2a 2e 2f 35 41 42 55 5a 88 8a 93 9e a0")


@settings(max_examples=200)
@given(
    cdb=st.one_of(
        st.binary(min_size=1, max_size=16),
        st.builds(
            lambda op, rest: bytes([op]) + rest,
            st.sampled_from(
                [0x00, 0x03, 0x12, 0x1A, 0x25, 0x28, 0x2A, 0x35, 0x41, 0x42, 0x5A, 0x88, 0x8A, 0x93, 0x9E, 0xA0]
            ),
            st.binary(max_size=15),
        ),
    ),
    size=st.one_of(st.integers(1, 64), st.integers(1, 3 * PAGE)),
    part=st.integers(0, 100),
    offset=st.integers(0, PAGE - 1),
    way=st.sampled_from([FROM_GUEST, TO_GUEST, NO_DATA, 255]),
    seed=st.integers(0, 1000),
)
def test_no_command_claims_or_touches_more_than_it_was_given(rig, cdb, size, part, offset, way, seed):
    """Checklist 8: the length of the answer is at most the transfer length; bytes beyond it are unchanged."""
    memory = pattern(seed, PAGES * PAGE)
    rig.fill(memory)
    asked = size * part // 100
    count = (offset + size + PAGE - 1) // PAGE
    pages = list(range(DATA_PFN, DATA_PFN + count))
    answer = rig.channel.ask(direct(srb(cdb, asked, way), pages, size, offset))
    assert answer.length <= asked
    assert (answer.srb_status & 0x3F == 1) == (answer.scsi_status == 0)
    after = rig.memory()
    moved = answer.length if answer.srb_status == 1 and way != FROM_GUEST else 0
    assert after[:offset] == memory[:offset]
    assert after[offset + moved :] == memory[offset + moved :]
    rig.channel.answers()
