"""The load generator on disks behind the guest's IDE controller, with host, worker and guest as they are."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.dispatch.load import LoadRun, run_loads
from hvcore.dispatch.pattern import KnownContent
from hvcore.dispatch.traced import run_traced_drive
from hvcore.errors import Error, GuestGone, HostError
from hvcore.partition.client import VirtualMachine
from hvcore.partition.guest import Guest
from hvcore.partition.trapped import TrappedDisk
from tests.reference.vms import IDE_MODES, MIB, content, raw, until

DATA = content(MIB)
HOUR = 3600 * 1_000_000
MIX = {"operations": {"read": 5, "write": 4, "flush": 1, "trim": 1}, "block_sizes": {4096: 3, 12288: 1}}
Running = tuple[VirtualMachine, Guest, list[TrappedDisk]]


class Stopped(Exception):
    pass


@contextmanager
def vm_with(tmp_path: Path, *disks: dict[str, Any]) -> Iterator[Running]:
    configs = [raw(tmp_path / str(n), DATA, path="trapped", **options) for n, options in enumerate(disks)]
    with hvcore.Host() as host, host.create_vm("load", "32M", configs) as vm:
        vm.start()
        with vm.attach() as guest:
            yield vm, guest, [disk for disk in guest.disks if isinstance(disk, TrappedDisk)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with vm_with(tmp_path_factory.mktemp("images"), *({"ide_mode": mode} for mode in IDE_MODES)) as made:
        yield made


def load(guest: Guest, disk: TrappedDisk, seed: int = 1, **options: Any) -> LoadRun:
    return LoadRun(disk.requester(), buffer=guest.alloc(12288), seed=seed, **options)


def verified(guest: Guest, disk: TrappedDisk, seed: int = 1) -> LoadRun:
    return load(guest, disk, seed, content=KnownContent(0, MIB, 4096), length=MIB, **MIX)


@pytest.mark.parametrize("number", range(4), ids=IDE_MODES)
def test_what_is_written_is_read_and_nothing_is_copied_twice(running: Running, number: int) -> None:
    vm, guest, disks = running
    disk = disks[number]
    host, before = vm.counters()["disks"][disk.number], disk.counters()
    (found,) = run_loads([verified(guest, disk)], requests=60 if number == 1 else 400)
    now = vm.counters()["disks"][disk.number]
    assert (found["errors"], found["wrong_blocks"]) == (0, 0) and found["verified_bytes"] > 0
    assert {name for name, each in found["operations"].items() if each["requests"]} == set(MIX["operations"])
    assert now["requests"] - host["requests"] == found["requests"]
    assert disk.counters()["bytes_copied"] == before["bytes_copied"]  # guest memory: no bounce


def test_all_at_once_also_two_of_one_channel(running: Running) -> None:
    _, guest, disks = running
    found = run_loads([verified(guest, disk, seed) for seed, disk in enumerate(disks) if seed != 1], requests=300)
    assert [(each["requests"], each["errors"], each["wrong_blocks"]) for each in found] == [(300, 0, 0)] * 3


def test_a_drive_takes_one_request_of_guest_memory(running: Running) -> None:
    _, guest, disks = running
    taker = disks[0].requester()
    assert (taker.depth, taker.size, taker.sector_size) == (1, MIB, 512)
    with pytest.raises(ValueError, match="queue depth 2 is not between 1 and 1"):
        LoadRun(taker, depth=2, buffer=guest.alloc(8192))
    with pytest.raises(ValueError, match="not guest memory"):
        LoadRun(taker, buffer=bytearray(4096))
    assert taker.describe(0x1_40_51) == "ATA status 0x51, error 0x40"
    assert taker.describe(0x5_00_50) == "dma error, ATA status 0x50, error 0x00"


def test_an_open_loop_counts_from_when_a_request_was_due(running: Running) -> None:
    _, guest, disks = running
    (found,) = run_loads([load(guest, disks[0], rate=2000.0, arrivals="poisson")], requests=200)
    assert (found["requests"], found["errors"], found["lag"].count) == (200, 0, 200)


def outcomes(guest: Guest, disk: TrappedDisk, operation: str) -> set[str]:
    (found,) = run_loads([load(guest, disk, operations={operation: 1})], requests=3)
    assert found["errors"] == found["requests"] == 3 and "ATA status 0x51" in found["error"]
    return {name for name, times in found["outcomes"].items() if times}


def test_errors_in_the_words_of_a_load(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(DATA)
    hvcore.vhd.convert(tmp_path / "image", tmp_path / "fixed.vhd", format="vhd", type="fixed", source_format="raw")
    disks = [
        raw(tmp_path / "image", path="trapped", read_only=True),
        hvcore.DiskConfig(str(tmp_path / "fixed.vhd"), path="trapped"),
    ]
    with hvcore.Host() as host, host.create_vm("errors", "16M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            read_only, fixed = guest.disks
            assert outcomes(guest, read_only, "write") == {"write protected"}
            assert outcomes(guest, fixed, "trim") == {"not supported"}
            vm.inject(1, [{"error": "io_error"}])
            assert outcomes(guest, fixed, "read") == {"read error"}
            assert outcomes(guest, fixed, "write") == {"write error"}
            assert outcomes(guest, fixed, "flush") == {"write error"}
            vm.inject(1, [])
            assert run_loads([load(guest, fixed)], requests=3)[0]["errors"] == 0


def costs(disk: TrappedDisk) -> tuple[int, int]:
    found = disk.drive.counters()
    return found["retries"], found["resets"]


@pytest.mark.parametrize("together", [1, 2])
def test_a_slow_disk_is_waited_for(tmp_path: Path, together: int) -> None:
    """Longer than the load looks away: the request is neither given up nor made again."""
    with vm_with(tmp_path, *[{"inject": [{"operations": "read", "delay_us": 250_000}]}] * together) as (
        _,
        guest,
        disks,
    ):
        before = [costs(disk) for disk in disks]
        found = run_loads([load(guest, disk) for disk in disks], requests=1)
        assert [(each["requests"], each["errors"]) for each in found] == [(1, 0)] * together
        assert all(each["latency"].min >= 250_000_000 for each in found)
        assert [costs(disk) for disk in disks] == before


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """`act` in another thread, whose failure is the test's."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert not failed


@pytest.mark.parametrize("together", [1, 2])
def test_a_signal_handler_ends_a_load_that_waits(tmp_path: Path, together: int) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    with vm_with(tmp_path, {}, {}) as (vm, guest, disks):
        vm.inject(0, [{"operations": "read", "delay_us": HOUR}])

        def interrupt() -> None:
            until(lambda: vm.injected(0)["held"], "a read is delayed")
            os.kill(os.getpid(), signal.SIGUSR1)

        handler = signal.signal(signal.SIGUSR1, stop)
        try:
            with meanwhile(interrupt), pytest.raises(Stopped):
                run_loads([load(guest, disk) for disk in disks[:together]], seconds=3600)
        finally:
            signal.signal(signal.SIGUSR1, handler)
        vm.inject(0, [])
        assert [each["errors"] for each in run_loads([load(guest, disk) for disk in disks], requests=5)] == [0, 0]
        assert disks[0].read(0, MIB) == DATA


@pytest.mark.parametrize("mode", ["dma", "pio-string"])
def test_worker_killed_under_a_load(tmp_path: Path, mode: str) -> None:
    """The driver does again what it had not seen completed: the load sees no error, and what it wrote is there."""
    with vm_with(tmp_path, {"ide_mode": mode}) as (vm, guest, (disk,)):

        def kill() -> None:
            for _ in range(2):
                done, worker = vm.counters()["disks"][0]["media_accesses"], vm.describe()["worker"]
                until(lambda done=done: vm.counters()["disks"][0]["media_accesses"] > done + 50, "requests are made")
                os.kill(worker, signal.SIGKILL)
                until(lambda worker=worker: vm.describe()["worker"] not in (None, worker), "another worker")

        with meanwhile(kill):
            (found,) = run_loads([verified(guest, disk)], seconds=1.0)
        assert (found["errors"], found["wrong_blocks"]) == (0, 0) and found["verified_bytes"] > 0
        assert costs(disk)[1] >= 2


def test_host_killed_under_a_load(tmp_path: Path) -> None:
    ended = False
    with suppress(HostError), vm_with(tmp_path, {}) as (vm, guest, (disk,)):

        def kill() -> None:
            until(lambda: vm.counters()["disks"][0]["requests"] > 100, "requests are made")
            os.kill(vm.host.pid, signal.SIGKILL)

        with meanwhile(kill), pytest.raises(GuestGone):
            run_loads([load(guest, disk)], seconds=3600)
        ended = True
    assert ended


def test_traced_reads_say_when_and_how_often(running: Running) -> None:
    _, guest, disks = running
    disk = disks[0]
    channel, buffer = disk.drive.channel, guest.alloc(4096)
    stamps = memoryview(run_traced_drive(channel, disk.drive.number, 0, buffer, MIB, requests=20)).cast("Q")
    assert list(stamps[3::4]) == [15] * 20
    assert all(stamps[n] <= stamps[n + 1] < stamps[n + 2] for n in range(0, 80, 4))
    with pytest.raises(Error, match="did not bring what the image holds"):
        run_traced_drive(channel, disk.drive.number, 0, buffer, MIB, pattern_seed=5)
    with pytest.raises(ValueError, match="not guest memory"):
        run_traced_drive(channel, disk.drive.number, 0, bytearray(4096), MIB)
    with pytest.raises(ValueError, match="do not fit"):
        run_traced_drive(channel, disk.drive.number, 0, buffer, MIB, block=1000)
