"""Waits that end before the answer: by timeout and by signals."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import hvcore
from hvcore.partition.client import VirtualMachine
from hvcore.partition.disk import Disk
from hvcore.partition.guest import Guest
from tests.reference.vms import MIB, PATIENCE, content, gone, raw, state, stopped, until

DATA = content(MIB)
SHORT = 0.05  # of a request that nobody answers


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VirtualMachine, Guest]]:
    folder = tmp_path_factory.mktemp("images")
    disks = [raw(folder / "a", DATA), raw(folder / "b", DATA, path="emulated")]
    disks += [raw(folder / "c", DATA, path="emulated", ide_mode="pio")]
    with hvcore.Host() as host, host.create_vm("timeouts", "32M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            yield vm, guest


def holder(vm: VirtualMachine, who: str) -> int:
    pid: int = vm.host.pid if who == "host" else vm.describe()["worker"]
    return pid


def answered(vm: VirtualMachine, disk: Disk) -> None:
    """Takes the late answers: they are all in the ring before that of one more read."""
    until(lambda: vm.counters()["disks"][disk.number]["channel"]["in_flight"] == 0, "the host answers all")
    assert disk.read(0, MIB) == DATA


CASES = [("host", 0), ("host", 1), ("worker", 1), ("worker", 2)]


@pytest.mark.parametrize(("who", "number"), CASES)
def test_the_buffer_is_not_written_later(running: tuple[VirtualMachine, Guest], who: str, number: int) -> None:
    vm, guest = running
    disk = guest.disks[number]
    target, out = bytearray(b"x" * 8192), np.full((40, 4096), 0x78, dtype=np.uint8)
    offsets = [4096 * n for n in range(40)]
    with stopped(holder(vm, who)):
        calls: list[Callable[[], object]] = [
            lambda: disk.read(4096, 4096, timeout=SHORT),
            lambda: disk.readinto(4096, target, timeout=SHORT),
            lambda: disk.readinto(4096, target, timeout=0),
            lambda: disk.read_batch(offsets, out, queue_depth=8, timeout=SHORT),
            lambda: disk.flush(timeout=SHORT),
            lambda: asyncio.run(disk.aread(0, 512, timeout=SHORT)),
        ]
        for call in calls:
            with pytest.raises(TimeoutError):
                call()
    answered(vm, disk)
    assert (target, set(out.tobytes())) == (b"x" * 8192, {0x78})
    disk.read_batch(offsets, out)
    assert out.tobytes() == DATA[: 40 * 4096]


@pytest.mark.parametrize(("who", "number"), CASES)
def test_more_timeouts_than_requests_fit(running: tuple[VirtualMachine, Guest], who: str, number: int) -> None:
    vm, guest = running
    disk = guest.disks[number]
    target = bytearray(b"x" * 512)
    with stopped(holder(vm, who)):
        for _ in range(300):
            with pytest.raises(TimeoutError):
                disk.readinto(512, target, timeout=0)
    answered(vm, disk)
    assert target == b"x" * 512


@pytest.mark.parametrize(("who", "number"), CASES)
def test_writes_that_timed_out(running: tuple[VirtualMachine, Guest], who: str, number: int) -> None:
    """Such a write may happen or not, with the data that it was given."""
    vm, guest = running
    disk = guest.disks[number]
    data = bytearray(b"w" * 4096)
    with stopped(holder(vm, who)):
        with pytest.raises(TimeoutError):
            disk.write(8192, data, timeout=SHORT)
        data[:] = b"later..." * 512
    disk.flush()
    assert disk.read(8192, 4096) in (b"w" * 4096, DATA[8192:12288])
    disk.write(8192, DATA[8192:12288])
    answered(vm, disk)


def test_one_waits_beside_one_that_times_out(running: tuple[VirtualMachine, Guest]) -> None:
    vm, guest = running
    disk = guest.disks[0]
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(disk.read(4096, 4096))) for _ in range(3)]
    with stopped(holder(vm, "host")):
        for thread in threads:
            thread.start()
        with pytest.raises(TimeoutError):
            disk.read(0, 4096, timeout=SHORT)
        with pytest.raises(TimeoutError):
            disk.read(0, 4096, timeout=SHORT)
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [DATA[4096:8192]] * 3


@pytest.mark.parametrize("others", [0, 2])
def test_signal_handlers_run_during_a_wait(running: tuple[VirtualMachine, Guest], others: int) -> None:
    """In the main thread, also when another thread does the waiting for all."""
    vm, guest = running
    disk = guest.disks[0]
    handled = threading.Event()
    in_time: list[bool] = []
    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, lambda *_: handled.set())
    threads = [threading.Thread(target=disk.read, args=(0, 512)) for _ in range(others)]

    def interrupt() -> None:
        try:
            until(lambda: state(Path(f"/proc/self/task/{native}")) == "S", "the main thread waits")
            signal.pthread_kill(main, signal.SIGUSR1)
            in_time.append(handled.wait(PATIENCE))
        finally:
            os.kill(vm.host.pid, signal.SIGCONT)

    native = threading.get_native_id()
    sent = disk.channel.counters()["requests"]
    try:
        with stopped(vm.host.pid):
            for thread in threads:
                thread.start()
            until(lambda: disk.channel.counters()["requests"] == sent + others, "their requests are on their way")
            helper = threading.Thread(target=interrupt)
            helper.start()
            assert disk.read(4096, 4096) == DATA[4096:8192]  # goes on after the handler
            helper.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
        for thread in threads:
            thread.join()
    assert in_time == [True]


def test_ctrl_c_ends_a_blocked_read(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(MIB))
    command = [sys.executable, "-m", "tests.reference.children", "read_for_ever", str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        host = int(process.stdout.readline())
        with stopped(host):
            process.stdin.write("now\n")
            process.stdin.flush()
            assert process.stdout.readline() == "reading\n"
            until(lambda: state(Path(f"/proc/{process.pid}")) == "S", "the read waits")
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
        assert process.wait(PATIENCE) == 0
    assert gone([host])
