"""One pool of threads for the disks of all VMs: a disk that hangs holds up nothing but itself."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvcore.disk.ram import RamDisk
from hvcore.dispatch.host import Dispatch
from hvcore.dispatch.pool import MediaPool
from tests.reference.guest import FROM_GUEST, PAGE, Channel, Guest, direct, in_band, srb, until
from tests.reference.hanging import Gate

SIZE = 1 << 20
FLUSH = bytes([0x35]) + bytes(9)


def forced_write(lba: int) -> bytes:
    return bytes([0x2A, 0x08]) + lba.to_bytes(4, "big") + bytes([0, 0, 8, 0])


@pytest.fixture
def pool() -> Iterator[MediaPool]:
    pool = MediaPool(2)
    yield pool
    pool.close()


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[list[Gate]]:
    gates = [Gate(tmp_path / str(n), bytes(SIZE)) for n in range(8)]
    yield gates
    for gate in gates:
        gate.close()


@contextlib.contextmanager
def hanging(guest: Guest, gates: list[Gate], count: int) -> Iterator[None]:
    """Disks of the guest, each with `count` requests that wait."""
    try:
        for gate in gates:
            channel = guest.add(gate.disk, ring_pages=4)
            channel.negotiate()
            for tid in range(count):
                packet = srb(forced_write(8 * tid), PAGE, FROM_GUEST)
                channel.send(direct(packet, [600 + tid], PAGE, 0, tid))
            until(lambda channel=channel: channel.inspect()["in_flight"] == count)
        yield
    finally:
        for gate in gates:
            gate.open()


def flushes(channel: Channel) -> None:
    for tid in range(1, 20):
        channel.send(in_band(srb(FLUSH), tid))
        assert until(channel.poll).scsi_status == 0


def test_hanging_disks_delay_no_other_of_their_vm_or_another(gates: list[Gate], pool: MediaPool) -> None:
    with Guest(pool=pool) as one, Guest(pool=pool) as two:
        mine, others = one.add(RamDisk(SIZE), ring_pages=4), two.add(RamDisk(SIZE), ring_pages=4)
        mine.negotiate()
        others.negotiate()
        with hanging(one, gates[:4], 8), hanging(two, gates[4:], 8):
            # Two threads, eight disks that hang: each of them has one of its own by now, and this one gets one too.
            flushes(mine)
            flushes(others)
            found = pool.inspect()
            assert 8 <= found["threads"] <= 12
            assert 2 * 4 * 8 - found["waiting"] in (8, 9, 10)  # two threads anyone may have, one for each disk
    # What there was to wait for is done: nothing of it is left in the pool.
    assert pool.inspect()["waiting"] == 0


def test_threads_beyond_the_base_end_when_there_is_nothing_to_do(gates: list[Gate], pool: MediaPool) -> None:
    with Guest(pool=pool) as guest:
        with hanging(guest, gates, 2):
            assert pool.inspect()["threads"] > 2
        until(lambda: pool.inspect() == {"threads": 2, "idle": 2, "waiting": 0})


def test_a_dispatch_that_is_dropped_leaves_the_pool_usable(pool: MediaPool) -> None:
    Dispatch(pool)
    with Guest(pool=pool) as guest:
        channel = guest.add(RamDisk(SIZE))
        channel.negotiate()
        flushes(channel)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_a_pool_has_threads(threads: int) -> None:
    with pytest.raises(ValueError, match="between 1 and 1024"):
        MediaPool(threads)


def test_a_closed_pool_says_so() -> None:
    pool = MediaPool(1)
    pool.close()
    pool.close()
    assert pool.inspect() == {"threads": 0, "idle": 0, "waiting": 0}
