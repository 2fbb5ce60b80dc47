"""Limits, counters and events of disks in a host: set, changed and reported while a guest works."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import hvcore
from hvcore.errors import DiskError, HostError
from hvcore.metrics.windows import STORAGE_DEVICE, Rates, counters_of
from hvcore.metrics.windows import Disk as Limits
from hvcore.partition.client import VirtualMachine
from hvcore.partition.guest import Guest
from tests.reference.vms import MIB, PATIENCE, content, raw, until

DATA = content(MIB)
HOUR = 3600 * 10**6
BLOCKS = numpy.arange(0, 256, dtype=numpy.uint64) * 4096


@pytest.fixture(scope="module")
def host() -> Iterator[hvcore.Host]:
    with hvcore.Host() as host:
        yield host


@pytest.fixture
def vm(host: hvcore.Host, tmp_path: Path) -> Iterator[VirtualMachine]:
    with host.create_vm(tmp_path.name, "64M", [raw(tmp_path / "0", DATA, max_iops=100_000)]) as vm:
        vm.start()
        yield vm


@pytest.fixture
def guest(vm: VirtualMachine) -> Iterator[Guest]:
    with vm.attach() as guest:
        yield guest


def counted(vm: VirtualMachine) -> dict[str, Any]:
    found: dict[str, Any] = vm.counters()["disks"][0]
    return found


def events(vm: VirtualMachine, kind: str) -> list[dict[str, Any]]:
    return [event for event in vm.host.events() if event["event"] == kind and event["vm"] == vm.name]


def test_what_goes_beyond_a_limit_waits_and_arrives(vm: VirtualMachine, guest: Guest) -> None:
    assert vm.set_qos(0, max_iops=2000, max_bandwidth=0) == {
        "max_iops": 2000, "max_bandwidth": 0, "min_iops": 0, "min_bandwidth": 0,
    }  # fmt: skip
    before = counted(vm)
    out = numpy.empty((256, 4096), numpy.uint8)
    guest.disks[0].read_batch(BLOCKS, out, queue_depth=64, timeout=PATIENCE)
    after = counted(vm)
    assert out.tobytes() == DATA
    assert after["io_units"] - before["io_units"] == 256
    # What may go at once is 20 ms of the limit and one request: the rest has waited.
    assert after["throttled"] - before["throttled"] >= 256 - 41 - 64
    assert after["throttle_wait_ns"] > before["throttle_wait_ns"]
    found = counters_of(STORAGE_DEVICE, Rates(before, after, 1.0), Limits(max_iops=2000))
    assert (found["Read Operations/Sec"], found["Read Bytes/sec"], found["Maximum IO Rate"]) == (256, MIB, 2000)
    vm.set_qos(0, max_iops=0)
    guest.disks[0].read_batch(BLOCKS, out, timeout=PATIENCE)
    assert counted(vm)["throttled"] == after["throttled"]


def test_a_new_limit_frees_what_waits_for_the_old_one(vm: VirtualMachine, guest: Guest) -> None:
    vm.set_qos(0, max_iops=1)  # the second request's turn comes in a second, the last one's in minutes
    for number in range(3):
        guest.submit(lambda number=number: guest.disks[0].read(4096 * number, 4096))
    until(lambda: counted(vm)["queue_length"] >= 2, "requests wait")
    vm.set_qos(0, max_iops=0)
    until(lambda: counted(vm)["queue_length"] == 0, "they go")
    assert guest.disks[0].read(0, 4096) == DATA[:4096]


def test_what_waits_for_a_limit_ends_with_its_guest(vm: VirtualMachine) -> None:
    vm.set_qos(0, max_iops=1)
    with vm.attach() as guest:
        calls = [guest.submit(lambda: guest.disks[0].read(0, 4096)) for _ in range(4)]
        until(lambda: counted(vm)["queue_length"] >= 2, "requests wait")
        guest.close()
        ended = [isinstance(call.exception(PATIENCE), hvcore.Error) for call in calls]
        assert sum(ended) >= 2
    until(lambda: counted(vm)["queue_length"] == 0, "nothing waits any more")


def test_a_missed_minimum_is_an_event_and_that_it_is_met_again(vm: VirtualMachine, guest: Guest) -> None:
    vm.inject(0, [{"operations": "read", "delay_us": HOUR}])
    vm.set_qos(0, min_iops=1000)
    waiting = guest.submit(lambda: guest.disks[0].read(0, 4096))  # the disk has work all the time and does nothing
    until(lambda: events(vm, "minimum missed"), "the minimum is missed")
    [missed] = events(vm, "minimum missed")
    assert (missed["disk"], missed["wanted_iops"], missed["got_iops"]) == (0, 1000, 0)
    assert 90 <= missed["busy_percent"] <= 100
    vm.inject(0, [])
    assert waiting.result(PATIENCE) == DATA[:4096]
    until(lambda: events(vm, "minimum met"), "nobody asks for it any more")


def test_slow_and_failed_requests_are_events(vm: VirtualMachine, guest: Guest) -> None:
    vm.report_slow(0.02)
    vm.inject(
        0,
        [
            {"operations": "read", "offset": 0, "length": 4096, "delay_us": 60_000},
            {"operations": "read", "offset": 8192, "length": 4096, "error": "read_error"},
        ],
    )
    guest.disks[0].read(0, 4096)
    with pytest.raises(DiskError):
        guest.disks[0].read(8192, 512)
    [slow], [failed] = events(vm, "slow"), events(vm, "failed")
    assert (slow["disk"], slow["opcode"], slow["lba"], slow["length"]) == (0, 0x28, 0, 4096)
    assert slow["latency_ns"] >= 20_000_000
    assert (failed["lba"], failed["sense_key"], failed["asc"], failed["srb_status"]) == (16, 3, 0x11, 0x84)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"max_iops": -1}, "max_iops"),
        ({"max_iops": 2.5}, "max_iops"),
        ({"max_iops": 10, "min_iops": 20}, "above"),
        ({"max_speed": 1}, "max_speed"),
    ],
)
def test_limits_that_are_none(vm: VirtualMachine, limits: dict[str, Any], why: str) -> None:
    with pytest.raises((HostError, ValueError), match=why):
        vm.set_qos(0, **limits)
    with pytest.raises((HostError, ValueError)):
        vm.report_slow(-1)
