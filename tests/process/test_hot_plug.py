"""Disks that come, go and change under a guest, its sub-channels, and many units of several controllers."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

import hvcore
from hvcore.errors import DiskError, GuestGone
from hvcore.partition.client import VirtualMachine
from hvcore.partition.disk import Disk
from hvcore.partition.guest import Guest
from tests.reference.vms import MIB, PATIENCE, content, raw, until

BLOCK = 4096
OFFSETS = numpy.arange(0, MIB, BLOCK, dtype=numpy.uint64)
POLICIES = ("thread", "round-robin", "least-busy")


@pytest.fixture(scope="module")
def host() -> Iterator[hvcore.Host]:
    with hvcore.Host() as host:
        yield host


def kinds(guest: Guest, count: int = 1) -> list[tuple[str, int]]:
    """The next `count` changes: what, and of which disk."""
    seen: list[tuple[str, int]] = []
    while len(seen) < count:
        changes = guest.wait_for_change(PATIENCE)
        assert changes
        seen += [(change.kind, change.disk.number) for change in changes if change.kind != "attention"]
    return seen


def holds(disk: Disk, data: bytes) -> bool:
    out = numpy.empty((len(OFFSETS), BLOCK), numpy.uint8)
    disk.read_batch(OFFSETS, out, timeout=PATIENCE)
    return out.tobytes() == data


def test_added_and_removed(host: hvcore.Host, tmp_path: Path) -> None:
    data = [content(MIB, seed) for seed in range(3)]
    with host.create_vm("plug", "64M", [raw(tmp_path / "0", data[0])], controllers=2) as vm:
        vm.start()
        with vm.attach() as guest:
            assert guest.wait_for_change(0) == []
            for number, where in ((1, 0), (2, 1)):
                assert vm.add_disk(raw(tmp_path / str(number), data[number], controller=where)) == number
                assert kinds(guest) == [("added", number)]
            assert [(disk.number, disk.lun, disk.path) for disk in guest.disks] == [
                (0, 0, "synthetic"), (1, 1, "synthetic"), (2, 0, "synthetic"),
            ]  # fmt: skip
            assert all(holds(disk, data[disk.number]) for disk in guest.disks)
            gone = guest.disks[1]
            vm.remove_disk(1)
            assert kinds(guest) == [("removed", 1)]
            assert [disk.number for disk in guest.disks] == [0, 2]
            for call in (lambda: gone.read(0, 512), gone.flush, gone.ready, lambda: gone.execute(bytes(6))):
                with pytest.raises(DiskError, match="disk 1: the disk was removed") as caught:
                    call()
                assert caught.value.srb_status == 0x20
            # The next one takes the same LUN, and the old disk does not become the new one.
            assert vm.add_disk(raw(tmp_path / "0b", data[1])) == 3
            assert kinds(guest) == [("added", 3)]
            assert (guest.disks[-1].lun, gone.removed) == (1, True)
            assert holds(guest.disks[-1], data[1])
            with pytest.raises(DiskError, match="removed"):
                gone.read(0, 512)
        with pytest.raises(GuestGone):
            guest.wait_for_change()


def test_swapped_before_the_guest_looks(host: hvcore.Host, tmp_path: Path) -> None:
    """Another disk at the same LUN is another disk, also when both notices are one."""
    with host.create_vm("swap", "32M", [raw(tmp_path / "a"), raw(tmp_path / "b", content(MIB, 1))]) as vm:
        vm.start()
        with vm.attach() as guest:
            vm.remove_disk(1)
            vm.add_disk(raw(tmp_path / "c", content(MIB, 2), lun=1))
            assert sorted(kinds(guest, 2)) == [("added", 2), ("removed", 1)]
            assert holds(guest.disks[1], content(MIB, 2))


def test_a_request_finds_out_first(host: hvcore.Host, tmp_path: Path) -> None:
    with host.create_vm("first", "32M", [raw(tmp_path / "a"), raw(tmp_path / "b")]) as vm:
        vm.start()
        with vm.attach() as guest:
            disk = guest.disks[1]
            vm.remove_disk(1)
            with pytest.raises(DiskError, match="removed"):
                disk.read(0, 512)
            assert (disk.removed, len(guest.disks)) == (True, 1)
            assert kinds(guest) == [("removed", 1)]
            assert guest.wait_for_change(0) == []


def test_waiting_ends_with_the_host(tmp_path: Path) -> None:
    with hvcore.Host() as host:
        vm = host.create_vm("end", "32M", [raw(tmp_path / "a")])
        vm.start()
        guest = vm.attach()
        os.kill(host.pid, signal.SIGKILL)
        with pytest.raises(GuestGone):
            guest.wait_for_change(PATIENCE)
        with pytest.raises(GuestGone):
            guest.disks[0].read(0, 512)
        guest.close()


def test_asyncio_twin(host: hvcore.Host, tmp_path: Path) -> None:
    with host.create_vm("twin", "32M") as vm:
        vm.start()
        with vm.attach() as guest:

            async def hear() -> list[str]:
                waiting = asyncio.ensure_future(guest.await_for_change(PATIENCE))
                await asyncio.to_thread(vm.add_disk, raw(tmp_path / "a"))
                return [change.kind for change in await waiting]

            assert asyncio.run(hear()) == ["added"]
            assert [disk.size for disk in guest.disks] == [MIB]


@pytest.mark.parametrize("policy", POLICIES)
def test_removed_during_io(host: hvcore.Host, tmp_path: Path, policy: str) -> None:
    """Each request ends with success or a clear error, none hangs, and the other disk hears nothing of it."""
    data = [content(MIB, seed) for seed in range(2)]
    disks = [raw(tmp_path / str(seed), data[seed]) for seed in range(2)]
    with host.create_vm("during", "64M", disks, sub_channels=2) as vm:
        vm.start()
        with vm.attach(sub_channels=2, queue_policy=policy) as guest:
            stay, go = guest.disks
            rounds = [0, 0]
            wrong: list[object] = []

            def work(index: int, disk: Disk) -> None:
                try:
                    while not disk.removed and not stop.is_set():
                        if not holds(disk, data[index]):
                            wrong.append("data")
                        disk.write(0, data[index][:BLOCK], timeout=PATIENCE)
                        rounds[index] += 1
                except DiskError as error:
                    if disk is stay or error.srb_status != 0x20:
                        wrong.append(error)
                except BaseException as error:
                    wrong.append(error)

            stop = threading.Event()
            threads = [threading.Thread(target=work, args=(n % 2, guest.disks[n % 2])) for n in range(4)]
            for thread in threads:
                thread.start()
            try:
                until(lambda: min(rounds) >= 3 or wrong, "both disks are read")
                vm.remove_disk(1)
                before = rounds[0]
                until(lambda: rounds[0] >= before + 3 or wrong, "the other goes on")
            finally:
                stop.set()
                for thread in threads:
                    thread.join(PATIENCE)
            assert not wrong
            assert not any(thread.is_alive() for thread in threads)
            assert go.removed
            assert [channel.in_flight for channel in guest.adapters[0].channels] == [0, 0, 0]
            assert holds(stay, data[0])
        assert [disk["number"] for disk in vm.describe()["disks"]] == [0]


def test_comes_and_goes_under_load(host: hvcore.Host, tmp_path: Path) -> None:
    data = content(MIB)
    with host.create_vm("load", "64M", [raw(tmp_path / "a", data)]) as vm:
        vm.start()
        with vm.attach() as guest:
            stop, rounds, wrong = threading.Event(), [0], []

            def work() -> None:
                while not stop.is_set():
                    if not holds(guest.disks[0], data):
                        wrong.append(rounds[0])
                    rounds[0] += 1

            thread = threading.Thread(target=work)
            thread.start()
            try:
                for number in range(1, 6):
                    assert vm.add_disk(raw(tmp_path / "b", content(MIB, 1))) == number
                    assert kinds(guest) == [("added", number)]
                    assert holds(guest.disks[1], content(MIB, 1))
                    vm.remove_disk(number)
                    assert kinds(guest) == [("removed", number)]
            finally:
                stop.set()
                thread.join(PATIENCE)
            assert rounds[0]
            assert not wrong


# ---- sub-channels


def requests(guest: Guest) -> list[int]:
    return [channel.counters()["requests"] for channel in guest.adapters[0].channels]


@pytest.fixture
def wide(host: hvcore.Host, tmp_path: Path) -> Iterator[VirtualMachine]:
    with host.create_vm("wide", "64M", [raw(tmp_path / "wide", content(MIB))], sub_channels=3) as vm:
        vm.start()
        yield vm


@pytest.mark.parametrize("asked", [0, 1, 3, 15])
def test_as_many_as_asked_and_allowed(wide: VirtualMachine, asked: int) -> None:
    with wide.attach(sub_channels=asked) as guest:
        assert len(guest.adapters[0].channels) == 1 + min(asked, 3)
        assert holds(guest.disks[0], content(MIB))


@pytest.mark.parametrize("policy", POLICIES)
def test_policies(wide: VirtualMachine, policy: str) -> None:
    with wide.attach(sub_channels=3, queue_policy=policy) as guest:
        disk = guest.disks[0]
        before = requests(guest)
        for _ in range(8):
            disk.read(0, BLOCK)
        single = [now - then for now, then in zip(requests(guest), before, strict=True)]
        before = requests(guest)
        assert holds(disk, content(MIB))
        batch = [now - then for now, then in zip(requests(guest), before, strict=True)]
        assert (sum(single), sum(batch)) == (8, len(OFFSETS))
        if policy == "thread":
            assert (sorted(single), sorted(batch)) == ([0, 0, 0, 8], [0, 0, 0, len(OFFSETS)])
        else:
            assert all(batch)
        if policy == "round-robin":
            assert single == [2, 2, 2, 2]


def test_each_thread_has_its_own(wide: VirtualMachine) -> None:
    with wide.attach(sub_channels=3) as guest:
        before = requests(guest)
        for _ in range(4):
            thread = threading.Thread(target=lambda: [guest.disks[0].read(0, BLOCK) for _ in range(5)])
            thread.start()
            thread.join()
        assert sum(now > then for now, then in zip(requests(guest), before, strict=True)) >= 3


def test_unknown_policy(wide: VirtualMachine) -> None:
    with pytest.raises(ValueError, match="a queue policy is one of thread, round-robin, least-busy, not 'fast'"):
        wide.attach(queue_policy="fast")
    with wide.attach() as guest, pytest.raises(ValueError, match="queue policy"):
        guest.disks[0].queue_policy = "slow"


def test_closed_and_opened_again(wide: VirtualMachine) -> None:
    with wide.attach(sub_channels=2, queue_policy="round-robin") as guest:
        adapter = guest.adapters[0]
        for count in (0, 3, 1, 2):
            guest.set_sub_channels(adapter, count)
            assert len(adapter.channels) == 1 + count
            assert holds(guest.disks[0], content(MIB))
        with pytest.raises(ValueError, match="0 to 3 sub-channels, not 4"):
            guest.set_sub_channels(adapter, 4)
    with wide.attach(sub_channels=3) as guest:  # and the host has forgotten those of before
        assert holds(guest.disks[0], content(MIB))


# ---- many


def test_64_units_of_one_controller(host: hvcore.Host, tmp_path: Path) -> None:
    images = [raw(tmp_path / str(n), content(BLOCK, n)) for n in range(64)]
    with host.create_vm("many", "64M", images) as vm:
        vm.start()
        with vm.attach() as guest:
            assert [disk.lun for disk in guest.disks] == list(range(64))
            assert all(disk.read(0, BLOCK) == content(BLOCK, disk.number) for disk in guest.disks)
            assert len({disk.channel.relid for disk in guest.disks}) == 1


def test_four_controllers(host: hvcore.Host, tmp_path: Path) -> None:
    images = [raw(tmp_path / str(n), content(BLOCK, n), controller=n % 4, lun=63 - n) for n in range(12)]
    with host.create_vm("four", "64M", images, controllers=4, sub_channels=1) as vm:
        vm.start()
        with vm.attach(sub_channels=1, queue_policy="round-robin") as guest:
            assert len(guest.adapters) == 4
            for disk in guest.disks:
                assert (disk.read(0, BLOCK), disk.lun) == (content(BLOCK, disk.number), 63 - disk.number)
            assert len({disk.channel.relid for disk in guest.disks}) == 4


def test_moved_between_paths(host: hvcore.Host, tmp_path: Path) -> None:
    """The content goes with the disk, and so does what each path wrote."""
    data = bytearray(content(MIB))
    with host.create_vm("move", "32M", [raw(tmp_path / "disk", bytes(data))]) as vm:
        for turn, path in enumerate(("synthetic", "emulated", "accelerated", "synthetic")):
            vm.move_disk(0, path)
            vm.start()
            with vm.attach() as guest:
                (disk,) = guest.disks
                assert (disk.path, disk.number) == (path, 0)
                assert holds(disk, bytes(data))
                data[turn * BLOCK : (turn + 1) * BLOCK] = bytes([turn]) * BLOCK
                disk.write(turn * BLOCK, bytes([turn]) * BLOCK)
                disk.flush()
            vm.stop()


@pytest.mark.parametrize("options", [{"read_only": True}, {"shared": True}, {"read_only": True, "shared": True}])
def test_two_vms_share_an_image(host: hvcore.Host, tmp_path: Path, options: dict[str, bool]) -> None:
    data = content(MIB)
    image = tmp_path / "image"
    with (
        host.create_vm("one", "32M", [raw(image, data, **options)]) as one,
        host.create_vm("two", "32M", [raw(image, data, **options)]) as two,
    ):
        one.start()
        two.start()
        with one.attach() as first, two.attach() as second:
            assert holds(first.disks[0], data)
            assert holds(second.disks[0], data)
            if not options.get("read_only"):
                first.disks[0].write(BLOCK, bytes(BLOCK))
                assert second.disks[0].read(BLOCK, BLOCK) == bytes(BLOCK)
