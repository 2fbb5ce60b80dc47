"""Packets and rings that break the rules: what they do to their channel, and that others never notice (13, 9.2)."""

import random
import re
import struct
from collections import Counter
from pathlib import Path

import pytest

from hvcore.disk.ram import RamDisk
from hvcore.errors import RingFull
from tests.reference import guest as rig
from tests.reference.guest import DATA_PFN, FROM_GUEST, PAGE, Guest, direct, in_band, read10, srb, vstor, write10

MEMORY = 0x12400 * PAGE  # V09 names page 12345h; only what is touched takes memory
LAST_PFN = MEMORY // PAGE - 1
INVALID_FIELD = (0x05, 0x24, 0x00)
SECTOR = b"\xa5" * 512


def unhex(text):
    words = text.split()
    return b"".join(bytes(int(word[4:])) if word.startswith("+00x") else bytes.fromhex(word) for word in words)


def storvsp_vector(name):
    for line in Path(__file__).with_name("storvsp.txt").read_text().splitlines():
        if line.startswith(f"{name} |"):
            return unhex(line.split(" | ")[2])
    raise KeyError(name)


def vmbus_vectors():
    found = {}
    text = Path(__file__).with_name("packets.txt").read_text()
    for name, body in re.findall(r"^(N\d+) .*\|\n((?: .*\n)+)", text, re.M):
        found[name] = bytes.fromhex(re.sub(r"(\w\w)\*(\d+)", lambda run: run[1] * int(run[2]), body))
    return found


V09, V24a = storvsp_vector("V09"), storvsp_vector("V24a")
NEGATIVE = vmbus_vectors()


def changed(*changes):
    packet = bytearray(V09)
    for at, text in changes:
        value = bytes.fromhex(text)
        packet[at : at + len(value)] = value
    return bytes(packet)


@pytest.fixture
def guest():
    with Guest(MEMORY) as guest:
        yield guest


@pytest.fixture
def disk():
    return RamDisk(8 << 20)


@pytest.fixture
def other(guest):
    """A channel beside the one under attack, which must never notice."""
    return guest.add(RamDisk(1 << 20), open=False)


@pytest.fixture
def channel(guest, other, disk):
    channel = guest.add(disk)
    assert other.open()
    other.negotiate()
    return channel


@pytest.fixture
def ready(channel):
    channel.negotiate()
    return channel


def dead(channel, other, fault):
    """The channel faulted and says nothing more; others live; closing and opening it helps."""
    assert channel.fault() == fault
    other.answers()
    assert channel.inspect()["in_flight"] == 0
    channel.reopen()
    channel.negotiate()
    channel.answers()


# ---- negative vectors


@pytest.mark.parametrize(
    "changes, fault",
    [
        pytest.param([(20, "00000000")], "range", id="N01"),
        pytest.param([(20, "02000000")], "range", id="N02"),
        pytest.param([(24, "00000000")], "range", id="N03"),
        pytest.param([(28, "00100000")], "range", id="N04"),
        pytest.param([(24, "00100000"), (28, "01000000")], "range", id="N05"),
        pytest.param([(24, "ffffffff")], "range", id="N06"),
        pytest.param([(2, "0e00")], "ring", id="N07"),
        pytest.param([(6, "0000")], "packet", id="N08"),
        pytest.param([(64, "25000000")], "length", id="N10"),
        pytest.param([(40, "63000000")], "operation", id="N14"),
        pytest.param([(20, "ffffffff")], "range", id="all ranges there are"),
        pytest.param([(28, "ffffffff")], "range", id="offset at 4 GiB"),
        pytest.param([(24, "ffffffff"), (28, "ff0f0000")], "range", id="wrap in 32 bits"),
        pytest.param([(64, "ffffffff")], "length", id="transfer of 4 GiB"),
        pytest.param([(6, "0300")], "ring", id="flag that does not exist"),
        pytest.param([(0, "0700")], "packet", id="transfer pages"),
        pytest.param([(0, "0b00")], "packet", id="completion"),
        pytest.param([(0, "0a00")], "ring", id="type that does not exist"),
        pytest.param([(0, "0600")], "length", id="data in band"),
        pytest.param([(4, "0500")], "packet", id="no vstor packet"),
        pytest.param([(4, "0a00")], "packet", id="40 bytes of vstor packet"),
    ],
)
def test_packets_that_kill_the_channel(guest, ready, other, changes, fault):
    guest.write(0x12345 * PAGE, b"\xee" * PAGE)
    ready.scribble(changed(*changes))
    assert ready.fault() == fault
    assert ready.poll() is None
    assert guest.read(0x12345 * PAGE, PAGE) == b"\xee" * PAGE
    dead(ready, other, fault)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([(32, "ffffffffffffffff")], id="N09"),
        pytest.param([(62, "00")], id="N11"),
        pytest.param([(72, "ff")], id="N12"),
        pytest.param([(60, "11")], id="N15"),
        pytest.param([(60, "00")], id="no CDB"),
        pytest.param([(60, "ff")], id="CDB of 255 bytes"),
    ],
)
def test_packets_that_fail_the_request(guest, ready, changes):
    guest.write(0x12345 * PAGE, b"\xee" * PAGE)
    ready.scribble(changed(*changes))
    answer = ready.receive()
    assert (answer.tid, answer.status, answer.srb_status, answer.scsi_status) == (1, 0xC0000185, 0x86, 2)
    assert (answer.key, answer.length) == (INVALID_FIELD, 0)
    assert guest.read(0x12345 * PAGE, PAGE) == b"\xee" * PAGE
    ready.answers()


def test_absent_lun_is_probed(guest, ready):
    """N13."""
    ready.scribble(changed((59, "09")))
    answer = ready.receive()
    assert (answer.srb_status, answer.scsi_status, answer.length) == (1, 0, 36)
    assert guest.read(0x12345 * PAGE, 36) == V24a


@pytest.mark.parametrize("length, srb_status", [(0, 0x15), (0x23, 0x15), (0x24, 0x15), (0x33, 0x15), (0xFFFF, 0x15)])
def test_wrong_struct_length_fails_the_request(ready, length, srb_status):
    answer = ready.ask(in_band(srb(rig.TEST_UNIT_READY, struct_length=length)))
    assert (answer.srb_status, answer.scsi_status, answer.status) == (srb_status, 2, 0xC0000010)
    ready.answers()


@pytest.mark.parametrize("room", [0, 1, 17, 18, 20, 21, 255])
def test_sense_length_is_a_cap(ready, room):
    answer = ready.ask(in_band(srb(b"\xff" * 6, sense_length=room)))
    whole = struct.pack("BBBBBBBB", 0x70, 0, 5, 0, 0, 0, 0, 10) + bytes(4) + b"\x20" + bytes(5)
    assert answer.packet.payload[28:48] == whole[: min(room, 18)].ljust(20, b"\0")
    assert answer.srb_status == (0x86 if room else 0x06)


@pytest.mark.parametrize("field", ["lun", "target", "path"])
@pytest.mark.parametrize("value", [1, 63, 64, 255])
def test_addresses_without_a_disk(ready, field, value):
    answer = ready.ask(in_band(srb(rig.TEST_UNIT_READY, **{field: value})))
    assert (answer.srb_status, answer.scsi_status, answer.length) == (0x20, 2, 0)
    ready.answers()


@pytest.mark.parametrize("name", [f"N{n}" for n in range(1, 13)])
@pytest.mark.parametrize("state", ["begin", "ready"])
def test_vmbus_vectors_kill_the_channel(channel, other, name, state):
    """N8 to N10 fail only the request where there is one: these have no vstor packet."""
    if state == "ready":
        channel.negotiate()
    channel.scribble(NEGATIVE[name])
    fault = "ring" if name in ("N1", "N2", "N3", "N4", "N5", "N11") else "packet"
    dead(channel, other, fault)


@pytest.mark.parametrize("operation", [4, 5, 6, 7, 8, 9, 10, 12, 13])
def test_ranges_are_checked_whatever_the_operation(ready, other, operation):
    """2.2 comes before the operation is looked at."""
    good = direct(vstor(operation), [DATA_PFN], 512)
    assert ready.ask(good).operation == 1
    ready.scribble(good[:20] + bytes(4) + good[24:])
    dead(ready, other, "range")


def test_packet_larger_than_any_request(guest, other, disk):
    channel = guest.add(disk, ring_pages=16)
    assert other.open()
    other.negotiate()
    channel.negotiate()
    channel.send(direct(srb(read10(0, 1), 512), [DATA_PFN], 512, surplus=4000))
    assert channel.receive().srb_status == 1
    channel.send(direct(srb(read10(0, 1), 512), [DATA_PFN], 512, surplus=5000))
    dead(channel, other, "ring")


def test_range_beyond_max_transfer(guest, ready, disk):
    pages = [DATA_PFN] * 65
    answer = ready.ask(direct(srb(read10(0, 513), 513 * 512), pages, 513 * 512))
    assert (answer.srb_status, answer.key) == (0x86, INVALID_FIELD)
    # A longer range is cut to the transfer, and what lies behind that is not looked at (5.3 check 5).
    answer = ready.ask(direct(srb(read10(0, 1), 512), [DATA_PFN] * 500, 500 * PAGE))
    assert (answer.srb_status, answer.length) == (1, 512)
    answer = ready.ask(direct(srb(read10(0, 1), 512), [DATA_PFN, LAST_PFN + 1], 2 * PAGE))
    assert (answer.srb_status, answer.length) == (1, 512)
    assert ready.ask(direct(srb(read10(0, 512), 512 * 512), pages[:64], 512 * 512)).srb_status == 1


# ---- before END_INITIALIZATION


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_no_medium_before_the_end_of_initialization(guest, channel, other, disk, steps):
    for operation, union in ((7, b""), (9, struct.pack("<H", 0x600)), (10, b""))[:steps]:
        channel.ask(in_band(vstor(operation, union)))
    guest.write(DATA_PFN * PAGE, SECTOR)
    answer = channel.write_disk(0, 1, [DATA_PFN])
    assert answer.status == 0xC0000184 and not any(answer.packet.payload[12:])
    assert disk.read(0, 512) == bytes(512)
    assert channel.read_disk(0, 1, [DATA_PFN]).status == 0xC0000184
    assert guest.read(DATA_PFN * PAGE, 512) == SECTOR
    channel.scribble(changed((20, "00000000")))
    dead(channel, other, "range")


def test_nothing_is_taken_from_a_closed_channel(guest, ready, disk):
    assert ready.close()
    guest.write(DATA_PFN * PAGE, SECTOR)
    ready.send(direct(srb(write10(0, 1), 512, FROM_GUEST), [DATA_PFN], 512))
    assert ready.open()
    ready.negotiate()
    assert disk.read(0, 512) == bytes(512)


# ---- page numbers


@pytest.mark.parametrize("pfn", [LAST_PFN + 1, 1 << 32, 1 << 51, 1 << 52, (1 << 52) + DATA_PFN, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_pages_outside_memory_fail_the_request_whole(guest, ready, disk, pfn, place):
    pages = [DATA_PFN, DATA_PFN + 1, DATA_PFN + 2]
    guest.write(DATA_PFN * PAGE, b"\xee" * 3 * PAGE)
    pages[place] = pfn
    for ask in (ready.read_disk, ready.write_disk):
        answer = ask(0, 24, pages)
        assert (answer.status, answer.srb_status, answer.key) == (0xC0000185, 0x86, INVALID_FIELD)
        assert answer.length == 0
    assert guest.read(DATA_PFN * PAGE, 3 * PAGE) == b"\xee" * 3 * PAGE
    assert disk.read(0, 3 * PAGE) == bytes(3 * PAGE)


def test_last_page_of_memory_can_be_used(guest, ready, disk):
    disk.write(0, SECTOR)
    assert ready.read_disk(0, 8, [LAST_PFN]).srb_status == 1
    assert guest.read(LAST_PFN * PAGE, 512) == SECTOR


@pytest.mark.parametrize("pfn", [LAST_PFN + 1, 1 << 52, (1 << 64) - 1])
def test_rings_outside_memory_are_refused(guest, other, disk, pfn):
    channel = guest.add(disk, open=False)
    guest.attach()
    for place in range(len(channel.pfns)):
        pages = [*channel.pfns[:place], pfn, *channel.pfns[place + 1 :]]
        assert not guest.dispatch.open_channel(channel.index, 0, channel.relid, pages, channel.downstream)
    assert channel.open()


@pytest.mark.parametrize(
    "count, downstream", [(0, 0), (3, 2), (4, 1), (4, 3), (4, 0), (18, 17), (18, 1 << 31), (18, 0xFFFFFFFF)]
)
def test_rings_without_data_pages_are_refused(guest, disk, count, downstream):
    channel = guest.add(disk, open=False)
    guest.attach()
    assert not guest.dispatch.open_channel(channel.index, 0, 1, channel.pfns[:count], downstream)
    assert channel.open()


@pytest.mark.parametrize("word", ["in_", "out"])
@pytest.mark.parametrize("ring", [0, 1])
@pytest.mark.parametrize("value", [8 * PAGE, 4, 0xFFFFFFF8])
def test_rings_with_bad_indices_are_refused(guest, disk, ring, word, value):
    channel = guest.add(disk, open=False)
    guest.attach()
    channel.words(ring, **{word: value})
    assert not guest.dispatch.open_channel(channel.index, 0, 1, channel.pfns, channel.downstream)
    assert channel.open()


# ---- indices and words in use


@pytest.mark.parametrize("value", [8 * PAGE, 8 * PAGE - 4, 8 * PAGE + 8, 0xFFFFFFFF, 0xFFFFFFF8, 1, 0x80000000])
def test_write_index_that_is_no_offset(guest, channel, other, value):
    channel.words(0, in_=value)
    dead(channel, other, "ring")


@pytest.mark.parametrize("step", [-8, -24, 8, 16])
def test_write_index_moved_by_no_packet(guest, ready, other, step):
    ready.words(0, in_=(guest.load32(ready.control[0]) + step) % ready.size)
    dead(ready, other, "ring")


@pytest.mark.parametrize("value", [8 * PAGE, 8 * PAGE - 4, 0xFFFFFFFF, 0xFFFFFFF8, 1])
def test_read_index_that_is_no_offset(guest, ready, other, value):
    ready.words(1, out=value)
    ready.send(in_band(srb(rig.TEST_UNIT_READY)))
    dead(ready, other, "ring")


@pytest.mark.parametrize("value", [0, 8, 0x1000, 8 * PAGE - 8])
def test_host_keeps_its_own_indices(guest, ready, value):
    """RB-42, VA-2: what the guest writes into the host's words is overwritten, never believed."""
    for tid in range(20):
        was = guest.load32(ready.control[1])
        ready.words(0, out=value)
        ready.words(1, in_=value if value != was else was + 8)
        scribbled = guest.load32(ready.control[1])
        ready.send(in_band(srb(rig.TEST_UNIT_READY), tid))
        rig.until(lambda scribbled=scribbled: guest.load32(ready.control[1]) != scribbled)
        assert ready.receive().tid == tid
    assert ready.inspect()["fault"] is None


@pytest.mark.parametrize("value", [0, 1, 7, 88, 8 * PAGE - 1, 8 * PAGE, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("word", ["mask", "pending", "features"])
def test_hints_may_be_anything(ready, word, value):
    """VA-13, RB-4."""
    for tid in range(10):
        for ring in (0, 1):
            ready.words(ring, **{word: value})
        ready.answers(tid)


def test_pages_listed_twice_are_harmless(guest, ready, other, disk):
    """VA-6: rings that alias each other, their control pages, or both."""
    shuffle = random.Random(1)
    for _ in range(40):
        assert ready.close()
        pages = [shuffle.choice(ready.pfns) for _ in ready.pfns]
        for page in ready.pfns:
            guest.write(page * PAGE, bytes(PAGE))
        if guest.dispatch.open_channel(ready.index, 0, ready.relid, pages, ready.downstream):
            guest.write(pages[1] * PAGE, in_band(vstor(7)))
            guest.store32(pages[0] * PAGE, 88)
            ready.signal()
        other.answers()
    ready.reopen()
    ready.negotiate()
    ready.answers()


def test_buffers_may_be_the_rings_themselves(guest, ready, other, disk):
    disk.write(0, bytes(range(256)) * 16)
    for page in ready.pfns:
        ready.send(direct(srb(read10(0, 8), PAGE), [page], PAGE))
        other.answers()
        ready.reopen()
        ready.negotiate()
    ready.answers()


# ---- transaction ids (checklist 5)


def test_repeated_transaction_ids_lose_nothing(guest, ready):
    choice = random.Random(5)
    asked, answered, outstanding = Counter(), Counter(), 0
    for _ in range(600):
        tid = choice.choice([0, 1, 1, 2, 3, (1 << 64) - 1, (1 << 64) - 3])
        kind = choice.randrange(3)
        if kind == 0:
            packet = direct(srb(read10(0, 1), 512), [DATA_PFN], 512, tid=tid)
        else:
            packet = in_band(srb(rig.TEST_UNIT_READY if kind == 1 else bytes.fromhex("35000000000000000000")), tid)
        ready.send(packet)
        asked[tid] += 1
        outstanding += 1
        while outstanding and choice.randrange(8) == 0:
            answered[ready.receive().tid] += 1
            outstanding -= 1
        while outstanding > 60:
            answered[ready.receive().tid] += 1
            outstanding -= 1
    for _ in range(outstanding):
        answered[ready.receive().tid] += 1
    assert asked == answered
    assert ready.poll() is None


# ---- a guest that does not read (checklist 6)


def fill(channel, start=0):
    """Sends until the host takes nothing more; how many went in."""
    sent = start
    while True:
        try:
            channel.send(in_band(srb(rig.TEST_UNIT_READY), sent))
            sent += 1
        except RingFull:
            # The host asks for room, with its own ring full of answers: it takes nothing before it has that.
            if channel.guest.load32(channel.control[1] + rig.WORDS["pending"]):
                return sent


@pytest.mark.parametrize("ring_pages", [1, 3, 8])
def test_a_stalled_ring_holds_the_host_and_loses_nothing(guest, other, disk, ring_pages):
    channel = guest.add(disk, ring_pages=ring_pages)
    assert other.open()
    other.negotiate()
    channel.negotiate()
    before = guest.dispatch.counters(channel.index)["requests"]
    expected = 0
    for _ in range(3):
        sent = fill(channel, expected)
        taken = guest.dispatch.counters(channel.index)["requests"] - before
        assert taken - expected <= ring_pages * PAGE // 88
        assert channel.inspect()["in_flight"] == 0
        other.answers()
        while expected < sent:
            assert channel.receive().tid == expected
            expected += 1
    assert channel.poll() is None
    channel.answers()


def test_a_stalled_ring_with_a_bad_index_kills_the_channel(guest, ready, other):
    fill(ready)
    ready.words(1, out=4)
    dead(ready, other, "ring")


def test_a_stalled_channel_can_be_closed(ready, other):
    fill(ready)
    ready.reopen()
    ready.negotiate()
    ready.answers()
    other.answers()


def test_more_requests_in_flight_than_the_ring_has_answers_for(guest, other, disk):
    """Section 14: the host takes no request that it could not answer, and that is no fault of the guest."""
    channel = guest.add(disk, "emulated", ring_pages=1)
    assert other.open()
    other.negotiate()
    channel.negotiate()
    # Nobody answers: no worker is there. What the host cannot take stays in the ring, until that is full too.
    sent = 0
    while channel.inspect()["fault"] is None:
        all_taken = channel.inspect()["in_flight"] == PAGE // 88
        try:
            channel.send(direct(srb(read10(0, 1), 512), [DATA_PFN], 512, tid=sent))
            sent += 1
        except RingFull:
            if all_taken:
                break
    other.answers()
    assert channel.inspect()["fault"] is None
    assert sent > PAGE // 88
    guest.dispatch.worker_unavailable()
    for tid in range(sent):
        answer = channel.receive()
        assert (answer.tid, answer.srb_status, answer.key) == (tid, 0x82, (0x0B, 0, 0))
    channel.answers()
