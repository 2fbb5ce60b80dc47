"""Guest memory as requests use it: given back in time, never too early, and enough for disks larger than it is."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvcore
from hvcore.partition.client import VirtualMachine
from hvcore.partition.guest import Guest
from tests.conftest import descriptors
from tests.reference.vms import MIB, content, gone, raw, stopped

DATA = content(MIB)


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[VirtualMachine]:
    disks = [raw(tmp_path / "synthetic", DATA), raw(tmp_path / "emulated", DATA, path="emulated")]
    with hvcore.Host() as host, host.create_vm("x", "64M", disks) as vm:
        vm.start()
        yield vm


def sleeper(vm: VirtualMachine, disk: int) -> int:
    """The process whose stop keeps the disk from answering."""
    worker: int = vm.describe()["worker"]
    return worker if disk else vm.host.pid


@pytest.mark.parametrize("number", [0, 1])
def test_reserved_until_the_answer(vm: VirtualMachine, number: int) -> None:
    """A buffer given up after a timeout is nobody else's while the host may still write into it."""
    with vm.attach() as guest:
        disk = guest.disks[number]
        with stopped(sleeper(vm, number)):
            for _ in range(20):
                own = guest.alloc(65536)
                with pytest.raises(TimeoutError):
                    disk.readinto(0, memoryview(own), timeout=0)
                del own
            others = [guest.alloc(65536) for _ in range(40)]
            for other in others:
                memoryview(other)[:] = b"y" * 65536
        assert disk.read(0, MIB) == DATA  # answered after all of them
        assert all(bytes(other) == b"y" * 65536 for other in others)


def test_comes_back_after_timeouts(vm: VirtualMachine) -> None:
    """20 MiB at a time, of 64: only possible again and again when what timed out was given back."""
    with vm.attach() as guest:
        disk = guest.disks[0]
        for _ in range(4):
            with stopped(vm.host.pid):
                own = guest.alloc(20 * MIB)
                with pytest.raises(TimeoutError):
                    disk.readinto(0, memoryview(own)[:MIB], timeout=0)
                del own
            assert disk.read(0, MIB) == DATA
            own = guest.alloc(MIB)
            disk.readinto(0, own)
            assert bytes(own) == DATA
            del own


def test_goes_with_a_closed_guest(vm: VirtualMachine) -> None:
    """Neither the Host nor a request that was never answered keeps it."""
    before = descriptors()

    def attach() -> Guest:
        guest = vm.attach()
        with stopped(vm.host.pid):
            own = guest.alloc(4096)
            with pytest.raises(TimeoutError):
                guest.disks[0].readinto(0, own, timeout=0)
        guest.close()
        return guest

    guest = attach()
    memory = guest.memory
    del guest
    gc.collect()
    assert gc.get_referrers(memory) == []
    assert len(descriptors()) <= len(before)


def test_disk_larger_than_guest_memory(tmp_path: Path) -> None:
    """A call without a queue depth takes as much at once as there is room for."""
    data = content(12 * MIB)
    disks = [raw(tmp_path / name, data, path=path) for name, path in (("a", "synthetic"), ("b", "emulated"))]
    with hvcore.Host() as host, host.create_vm("x", "8M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            for disk in guest.disks:
                assert disk.read(0, 12 * MIB) == data
                target = bytearray(12 * MIB)
                disk.readinto(0, target)
                assert target == data
                disk.write(0, data[::-1])
                assert disk.read(0, 12 * MIB) == data[::-1]
                with pytest.raises(MemoryError, match="of guest memory"):
                    disk.read_batch([0] * 64, bytearray(64 * MIB // 4), queue_depth=64)


def test_next_guest_is_let_in_at_once(vm: VirtualMachine) -> None:
    """Whoever knows that a guest is gone need not wait until the host has seen it."""
    for _ in range(10):
        with vm.attach() as guest:
            assert guest.disks[1].read(0, 512) == DATA[:512]
        child = vm.run("tests.reference.children:vanish", 3)
        assert gone([child.pid])
        with vm.run("tests.reference.children:hang") as hanging:
            pass
        assert gone([hanging.pid])
        with pytest.raises(hvcore.HostError, match="exit status 3"):
            child.wait()
