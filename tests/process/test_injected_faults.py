"""What a guest sees on each path when rules disturb its disks, and when a disk is a Python class."""

import contextlib
import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import hvcore
from hvcore.errors import HostError
from hvcore.partition.client import VirtualMachine
from hvcore.partition.config import PATHS
from hvcore.partition.disk import Disk
from tests.reference.vms import MIB, PATIENCE, content, until

DATA = content(MIB, 3)
OWN_CHANNEL = ("synthetic", "accelerated")  # paths on which no two disks share a cable
HOUR = 3600e6  # "delay_us": as good as for ever
AWKWARD = "tests.reference.disks:Awkward"
MEMORY = "tests.reference.disks:Memory"
# storvsp.md 10: sense key, ASC, ASCQ by the status of the medium. Where the VSP answers, on whatever path the media
# access came to it, an ATA error is what the medium said.
SENSE = {
    "read_error": (3, 0x11, 0),
    "write_error": (3, 0x03, 0),
    "no_space": (7, 0x27, 7),
}


class Place(NamedTuple):
    """One VM whose disks are all on one path: two raw images, two Python classes."""

    path: str
    host: hvcore.Host
    vm: VirtualMachine
    disks: list[Disk]
    fifo: Path


@pytest.fixture(scope="module", params=PATHS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("faults")
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    for name in ("a", "b"):
        (folder / name).write_bytes(DATA)
    disks = [hvcore.DiskConfig(folder / name, path=request.param, format="raw") for name in ("a", "b")]
    for name, options in ((MEMORY, {"size": MIB}), (AWKWARD, {"size": MIB, "fifo": str(fifo)})):
        disks.append(hvcore.DiskConfig(name, path=request.param, format="python", options=options))
    with hvcore.Host() as host, host.create_vm("v", "32M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            yield Place(request.param, host, vm, list(guest.disks), fifo)


@pytest.fixture
def place(made: Place) -> Iterator[Place]:
    yield made
    made.vm.inject(0, [])


def failure(place: Place, call: Any, kind: str) -> hvcore.DiskError:
    """The error that the call ends with, which has to be of this kind."""
    with pytest.raises(hvcore.DiskError) as caught:
        call()
    error: hvcore.DiskError = caught.value
    if place.path == "trapped":  # ATA has fewer words, and the guest's own driver finds them
        assert error.errno in (errno.EIO, errno.ENOSPC)
        return error
    assert (error.sense_key, error.asc, error.ascq) == SENSE[kind]
    assert (error.scsi_status, error.srb_status) == (2, 4)
    assert error.errno == (errno.ENOSPC if kind == "no_space" else errno.EIO)
    return error


@pytest.mark.parametrize(
    ("operation", "kind"), [("read", "read_error"), ("write", "write_error"), ("flush", "write_error")]
)
def test_an_error_of_the_medium_reaches_the_guest(place: Place, operation: str, kind: str) -> None:
    disk = place.disks[0]
    # One sector: of more an IDE drive would look for the bad one, and find none, as the rule acts once.
    calls = {"read": lambda: disk.read(4096, 512), "write": lambda: disk.write(4096, DATA[:512]), "flush": disk.flush}
    place.vm.inject(0, [{"operations": operation, "error": "io_error", "times": 1}])
    failure(place, calls[operation], kind)
    for call in calls.values():
        call()  # the others were not disturbed, and this one is not any more
    assert place.vm.injected(0)["rules"][0]["acted"] == 1
    disk.write(4096, DATA[4096:8192])


def test_errors_in_a_range_and_in_a_batch(place: Place) -> None:
    disk = place.disks[0]
    place.vm.inject(0, [{"operations": "read", "offset": 8192, "length": 512, "error": "read_error"}])
    out = bytearray(4 * 4096)
    with pytest.raises(hvcore.DiskError, match="request 2 of 4") as caught:
        disk.read_batch([0, 4096, 8192, 12288], out)
    assert caught.value.index == 2 and [status == 1 for status in caught.value.statuses or ()] == [1, 1, 0, 1]
    assert (out[:8192], out[12288:]) == (DATA[:8192], DATA[12288:16384])


def test_a_torn_write(place: Place) -> None:
    disk = place.disks[0]
    place.vm.inject(0, [{"tear": 1024 + 100}])
    failure(place, lambda: disk.write(65536, b"t" * 4096), "write_error")
    assert disk.read(65536, 4096) == b"t" * 1124 + DATA[66660:69632]
    place.vm.inject(0, [])
    disk.write(65536, DATA[65536:69632])


def test_the_power_of_a_disk(place: Place) -> None:
    disk = place.disks[0]
    place.vm.inject(0, [{"tear": 512, "then": "cut"}])
    failure(place, lambda: disk.write(0, b"c" * 1024), "write_error")
    assert place.vm.injected(0)["cut"] is True
    failure(place, lambda: disk.read(0, 512), "read_error")
    failure(place, disk.flush, "write_error")
    place.disks[1].write(0, DATA[:512])
    place.vm.inject(0, [])
    assert disk.read(0, 1024) == b"c" * 512 + DATA[512:1024]
    disk.write(0, DATA[:512])


def test_a_full_disk_and_then_space_again(place: Place) -> None:
    disk = place.disks[0]
    place.vm.inject(0, [{"space": 8192, "block": 4096}])
    disk.write(0, DATA[:4096])
    disk.write(4096, DATA[4096:8192])
    disk.write(0, DATA[:8192])
    failure(place, lambda: disk.write(8192, b"n" * 512), "no_space")
    assert disk.read(8192, 4096) == DATA[8192:12288]
    place.vm.inject(0, [{"space": 4096, "block": 4096}])
    disk.write(8192, DATA[8192:12288])
    disk.flush()


def test_a_delayed_disk_holds_up_no_other(place: Place) -> None:
    first, other = place.disks[:2]
    place.vm.inject(0, [{"operations": "read", "delay_us": HOUR}])
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(first.read, n * 4096, 4096) for n in range(8)]
        until(lambda: place.vm.injected(0)["held"], "reads are delayed")
        try:
            # On one IDE cable they would wait for each other, as on a real one: then it is the turn of the other cable.
            for disk in [other, place.disks[2]] if place.path in OWN_CHANNEL else [place.disks[2]]:
                disk.write(8192, DATA[8192:12288])
                disk.flush()
                assert disk.read(8192, 4096) == DATA[8192:12288]
            assert not any(each.done() for each in running)
        finally:
            place.vm.inject(0, [])
        assert b"".join(each.result(PATIENCE) for each in running) == DATA[: 8 * 4096]


def test_what_is_delayed_ends_when_the_guest_goes(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(DATA)
    for path in PATHS:
        config = hvcore.DiskConfig(tmp_path / "disk", path=path, format="raw", inject=[{"delay_us": HOUR}])
        with hvcore.Host() as host, host.create_vm("v", "32M", [config]) as vm:
            vm.start()
            with vm.attach() as guest, ThreadPoolExecutor(1) as pool:
                running = pool.submit(guest.disks[0].read, 0, 512)
                until(lambda vm=vm: vm.injected(0)["held"] == 1, "the read is delayed")
                guest.close()
                # It ends; what the disk had read by then may still arrive at a guest that drives its ports itself.
                with contextlib.suppress(hvcore.Error):
                    assert running.result(PATIENCE) == DATA[:512]
            until(lambda vm=vm: not vm.describe()["guest"], "the guest is gone")
            vm.inject(0, [])
            with vm.attach() as guest:
                assert guest.disks[0].read(0, 512) == DATA[:512]


def test_counts_and_log(place: Place) -> None:
    disk = place.disks[0]
    assert place.vm.injected(0)["rules"] == []
    rules = [{"log": True, "operations": ["read", "write"]}, {"operations": "write", "every": 2, "error": "no_space"}]
    place.vm.inject(0, rules)
    # One sector each: after an error an IDE drive looks for the bad one of several.
    disk.write(4096, DATA[4096:4608])
    failure(place, lambda: disk.write(4096, DATA[4096:4608]), "no_space")
    disk.read(0, 512)
    found = place.vm.injected(0)
    assert found["rules"] == [{"rule": rules[0], "seen": 3, "acted": 3}, {"rule": rules[1], "seen": 2, "acted": 1}]
    log = [(record["operation"], record["offset"], record["length"], record["status"]) for record in found["log"]]
    assert log == [("write", 4096, 512, "ok"), ("write", 4096, 512, "no_space"), ("read", 0, 512, "ok")]
    assert (found["held"], found["cut"], found["lost"], place.vm.injected(0)["log"]) == (0, False, 0, [])


def test_rules_that_cannot_be(place: Place) -> None:
    place.vm.inject(0, [{"operations": "read", "error": "read_error"}])
    with pytest.raises(HostError, match=r'rule 1: "every" is a whole number from 1 on, not 0'):
        place.vm.inject(0, [{"log": True}, {"log": True, "every": 0}])
    failure(place, lambda: place.disks[0].read(0, 512), "read_error")  # those before are still there
    with pytest.raises(HostError, match="has no disk 9"):
        place.vm.inject(9, [])
    with pytest.raises(HostError, match="has no disk -1"):
        place.vm.injected(-1)
    with pytest.raises(HostError, match="rules are a list of dicts, not 5"):
        place.host.call("inject", vm="v", disk=0, rules=5)
    with pytest.raises(ValueError, match=r"rule 0: there is no key 'eror'"):
        hvcore.DiskConfig("disk", inject=[{"eror": "closed"}])


# Python classes.


def test_a_python_disk_is_read_written_flushed_and_trimmed(place: Place) -> None:
    disk = place.disks[2]
    assert (disk.size, disk.sector_size, disk.read_only) == (MIB, 512, False)
    disk.write(0, DATA)
    disk.flush()
    assert disk.read(0, MIB) == DATA
    out = bytearray(64 * 4096)
    disk.read_batch([n * 8192 for n in range(64)], out, queue_depth=32)
    assert out == b"".join(DATA[n * 8192 : n * 8192 + 4096] for n in range(64))
    if place.path != "trapped":  # ATA without DATA SET MANAGEMENT
        disk.trim(4096, 8192)
        assert disk.read(0, 16384) == DATA[:4096] + bytes(8192) + DATA[12288:16384]
    place.vm.inject(2, [{"operations": "read", "error": "io_error", "times": 1}])
    failure(place, lambda: disk.read(0, 512), "read_error")
    place.vm.inject(2, [])


def test_exceptions_of_a_class_end_requests_and_are_told_once(place: Place) -> None:
    disk = place.disks[3]
    for _ in range(2):
        for sector in range(7):
            failure(place, lambda sector=sector: disk.read(sector * 512, 512), "read_error")
        failure(place, lambda: disk.write(0, bytes(512)), "no_space")
        failure(place, lambda: disk.write(3 * 512, bytes(512)), "write_error")
        failure(place, disk.flush, "write_error")
    disk.write(8192, DATA[:512])
    assert disk.read(8192, 512) == DATA[:512]
    told = [event["reason"] for event in place.host.events() if event["event"] == "disk class failed"]
    kinds = [line.split(": ")[1] for line in told]
    assert sorted(kinds) == sorted(
        ["OSError", "ValueError", "TypeError", "ZeroDivisionError", "SystemExit", "OSError", "RuntimeError"]
    )
    assert "Awkward.read(0, 512): OSError: [Errno 5] the platter is dented" in told[0]


def test_a_slow_class_holds_up_no_other_disk(place: Place) -> None:
    slow, others = place.disks[3], place.disks[:3] if place.path in OWN_CHANNEL else place.disks[:2]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(slow.read, 100 * 512, 512)
        fd = -1

        def waits() -> bool:
            nonlocal fd
            try:
                fd = os.open(place.fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                assert error.errno == errno.ENXIO
            return fd >= 0

        until(waits, "the class waits for the FIFO")
        for disk in others:
            disk.write(16384, DATA[16384:20480])
            disk.flush()
            assert disk.read(16384, 4096) == DATA[16384:20480]
        assert not running.done()
        os.close(fd)
        assert running.result(PATIENCE) == bytes(512)


def test_classes_that_cannot_be_opened() -> None:
    def config(name: str, **options: Any) -> hvcore.DiskConfig:
        return hvcore.DiskConfig(name, format="python", options=options)

    with hvcore.Host() as host:
        for disk, says in (
            (config("tests.reference.disks:Unborn"), r"disks:Unborn: RuntimeError: not today \(.*disks\.py:\d+\)"),
            (config("tests.reference.disks:Memory"), "disks:Memory: TypeError: .*'size'"),
            (config("tests.nowhere:Memory"), "nowhere:Memory: ModuleNotFoundError"),
        ):
            with pytest.raises(HostError, match=says):
                host.create_vm("v", disks=[disk])
        assert host.list() == []
        with host.create_vm("v", disks=[config("tests.reference.disks:Unclosable", size=MIB)]) as vm:
            assert vm.describe()["disks"][0]["image"] == "tests.reference.disks:Unclosable"
        events = [event for event in host.events() if event["event"] == "image not closed cleanly"]
        assert "Unclosable.close(): OSError" in events[0]["reason"]


def test_a_private_host_finds_the_callers_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "callers_disks.py").write_text("from tests.reference.disks import Memory as Mine\n")
    config = hvcore.DiskConfig("callers_disks:Mine", format="python", options={"size": MIB, "fill": 9})
    with hvcore.Host() as host:
        with pytest.raises(HostError, match="No module named 'callers_disks'"):
            host.create_vm("v", disks=[config])
        monkeypatch.syspath_prepend(str(tmp_path))
        with host.create_vm("v", disks=[config]) as vm:
            vm.start()
            with vm.attach() as guest:
                assert guest.disks[0].read(0, 512) == b"\x09" * 512
