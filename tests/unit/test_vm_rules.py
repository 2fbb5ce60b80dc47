"""Rules of a VM's disks cost nothing where there are none: requests go straight to the image."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hvcore.disk.file import FileDisk
from hvcore.disk.filter import FilterDisk
from hvcore.dispatch.pool import MediaPool
from hvcore.hypervisor.partition import Hypervisor
from hvcore.partition.config import PATHS, DiskConfig, VmConfig
from hvcore.partition.images import Images
from hvcore.partition.loop import Loop
from hvcore.partition.vm import Vm

RULES = [{"operations": "read", "log": True}]


@pytest.fixture(params=PATHS)
def vm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vm]:
    for name in "abc":
        (tmp_path / name).write_bytes(bytes(1 << 20))
    disks = [
        DiskConfig(str(tmp_path / name), path=request.param, format="raw", inject=inject)
        for name, inject in (("a", None), ("b", []), ("c", RULES))
    ]
    loop = Loop()
    pool = MediaPool()
    vm = Vm(loop, Hypervisor(None), Images(), pool, VmConfig.make("v", "1M", disks), 1, lambda *_, **__: None)
    yield vm
    vm.close()
    pool.close()
    loop.close()


def test_without_rules_requests_go_to_the_image(vm: Vm) -> None:
    kinds = [type(vm.dispatch.backend(disk.index)) for disk in vm.storage]
    assert kinds == [FileDisk, FileDisk, FilterDisk]


def test_a_filter_comes_with_rules_and_goes_with_the_last(vm: Vm) -> None:
    disk = vm.storage.find(0)
    for _ in range(2):
        vm.inject(0, RULES)
        found = vm.dispatch.backend(disk.index)
        assert isinstance(found, FilterDisk) and found.below is disk.image.disk and found.rules == RULES
        vm.inject(0, [])
        assert vm.dispatch.backend(disk.index) is disk.image.disk
    assert vm.injected(0) == {"rules": [], "held": 0, "cut": False, "log": [], "lost": 0}


def test_bad_rules_change_nothing(vm: Vm) -> None:
    for number in range(3):
        before = vm.dispatch.backend(vm.storage.find(number).index)
        with pytest.raises(ValueError, match="rule 0"):
            vm.inject(number, [{"every": 2}])
        assert vm.dispatch.backend(vm.storage.find(number).index) is before


def test_rules_follow_a_disk_that_grows_and_moves(vm: Vm) -> None:
    vm.resize_disk(2, 2 << 20)
    disk = vm.storage.find(2)
    found = vm.dispatch.backend(disk.index)
    assert isinstance(found, FilterDisk) and found.size == disk.image.disk.size == 2 << 20
    vm.inject(2, [])
    vm.inject(2, RULES)
    other = next(path for path in PATHS if path != disk.config.path)
    vm.move_disk(2, other)
    assert vm.storage.find(2).rules == RULES and vm.storage.find(2).config.path == other
