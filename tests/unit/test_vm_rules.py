"""Rules of a VM's disks cost nothing where there are none: requests go straight to the image."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hvcore.disk.file import FileDisk
from hvcore.disk.filter import FilterDisk
from hvcore.hypervisor.partition import Hypervisor
from hvcore.partition.config import PATHS, DiskConfig, VmConfig
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
    vm = Vm(loop, Hypervisor(None), VmConfig.make("v", "1M", disks), 1, lambda *_, **__: None)
    yield vm
    vm.close()
    loop.close()


def test_without_rules_requests_go_to_the_image(vm: Vm) -> None:
    kinds = [type(vm.dispatch.backend(disk.index)) for disk in vm.disks]
    assert kinds == [FileDisk, FileDisk, FilterDisk]


def test_a_filter_comes_with_rules_and_goes_with_the_last(vm: Vm) -> None:
    disk = vm.disks[0]
    for _ in range(2):
        vm.inject(0, RULES)
        found = vm.dispatch.backend(disk.index)
        assert isinstance(found, FilterDisk) and found.below is disk.image.disk and found.rules == RULES
        vm.inject(0, [])
        assert vm.dispatch.backend(disk.index) is disk.image.disk
    assert vm.injected(0) == {"rules": [], "held": 0, "cut": False, "log": [], "lost": 0}


def test_bad_rules_change_nothing(vm: Vm) -> None:
    for number in range(3):
        before = vm.dispatch.backend(vm.disks[number].index)
        with pytest.raises(ValueError, match="rule 0"):
            vm.inject(number, [{"every": 2}])
        assert vm.dispatch.backend(vm.disks[number].index) is before
