"""VMs made, started, attached to, stopped and deleted, in and out of order; images that cannot be had."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvcore
from hvcore.errors import Error, GuestGone, HostError
from tests.conftest import descriptors, ended
from tests.reference import vhdx
from tests.reference.vms import MIB, PATIENCE, content, make_image, raw, stopped, until


@pytest.fixture(scope="module")
def host() -> Iterator[hvcore.Host]:
    with hvcore.Host() as made:
        yield made


def holdings(pid: int) -> tuple[list[str], int]:
    """Open files and threads of a process."""
    files = sorted(str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return files, len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_order_of_life(host: hvcore.Host, tmp_path: Path) -> None:
    with host.create_vm("life", "16M", [raw(tmp_path / "disk", path="emulated")]) as vm:
        assert (vm.describe()["state"], vm.describe()["worker"]) == ("stopped", None)
        for call in (vm.attach, lambda: vm.run("tests.reference.children:add", 1, 1)):
            with pytest.raises(HostError, match="life is not running"):
                call()
        vm.stop()  # is stopped: nothing happens
        vm.start()
        with pytest.raises(HostError, match="life is running already"):
            vm.start()
        with vm.attach():
            assert vm.describe()["guest"]
            with pytest.raises(HostError, match="life has a guest already"):
                vm.attach()
        vm.stop()
        vm.stop()
        with pytest.raises(HostError, match="there is a VM 'life' already"):
            host.create_vm("life")
    for call in (vm.start, vm.stop, vm.attach, vm.delete, vm.counters):
        with pytest.raises(HostError, match="there is no VM 'life'"):
            call()
    with pytest.raises(HostError, match="there is no VM 'life'"):
        host.vm("life")
    host.create_vm("life").delete()  # the name is free


def test_cycles_leave_nothing(host: hvcore.Host, tmp_path: Path) -> None:
    disks = [raw(tmp_path / "a"), raw(tmp_path / "b", path="emulated"), raw(tmp_path / "c", path="emulated")]
    before, own = holdings(host.pid), len(descriptors())
    for _ in range(2):
        with host.create_vm("cycles", "16M", disks) as vm:
            for turn in range(3):
                vm.start()
                worker = vm.describe()["worker"]
                for again in range(2):
                    with vm.attach() as guest:
                        for disk in guest.disks:
                            disk.write(512 * turn, bytes([turn + 1, again]) * 256)
                            assert disk.read(512 * turn, 512) == bytes([turn + 1, again]) * 256
                        if again:
                            vm.stop()  # with a guest, idle
                            with pytest.raises(GuestGone):
                                guest.disks[0].read(0, 512)
                assert ended(worker, 0)
    assert (holdings(host.pid), len(descriptors())) == (before, own)
    assert (tmp_path / "b").read_bytes()[:1536] == b"".join(bytes([turn, 1]) * 256 for turn in (1, 2, 3))


@pytest.mark.parametrize("how", ["stop", "delete", "close"])
@pytest.mark.parametrize("number", [0, 1], ids=["synthetic", "emulated"])
def test_stopped_under_a_waiting_guest(tmp_path: Path, number: int, how: str) -> None:
    """Requests without end from two threads: each ends with GuestGone, whoever ends the VM."""
    with hvcore.Host() as host:
        vm = host.create_vm("stop", "16M", [raw(tmp_path / "a"), raw(tmp_path / "b", path="emulated")])
        vm.start()
        guest = vm.attach()
        disk = guest.disks[number]
        errors: list[BaseException] = []

        def work() -> None:
            try:
                while True:
                    disk.read_batch([4096 * n for n in range(64)], bytearray(64 * 4096))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        before = disk.channel.counters()["requests"]
        for thread in threads:
            thread.start()
        until(lambda: disk.channel.counters()["requests"] > before + 200, "requests are served")
        {"stop": vm.stop, "delete": vm.delete, "close": host.close}[how]()
        for thread in threads:
            thread.join(PATIENCE)
        assert [type(error) for error in errors] == [GuestGone, GuestGone]
        guest.close()
        with pytest.raises(GuestGone):
            disk.read(0, 512)
        if how == "stop":
            vm.start()
            with vm.attach() as guest:
                assert guest.disks[number].read(0, 4096) == bytes(4096)


def test_stopped_while_the_worker_does_not_answer(tmp_path: Path) -> None:
    """A request in the hands of a stopped worker: the guest's wait ends, and the worker is ended."""
    with hvcore.Host() as host, host.create_vm("stop", "16M", [raw(tmp_path / "a", path="emulated")]) as vm:
        vm.start()
        worker = vm.describe()["worker"]
        with vm.attach() as guest:
            failed: list[BaseException] = []

            def read() -> None:
                try:
                    guest.disks[0].read(0, 4096)
                except BaseException as error:
                    failed.append(error)

            thread = threading.Thread(target=read)
            with stopped(worker):
                thread.start()
                until(lambda: vm.counters()["disks"][0]["channel"]["in_flight"], "the request is at the worker")
                vm.stop()
                assert ended(worker, PATIENCE)
            thread.join(PATIENCE)
        assert [type(error) for error in failed] == [GuestGone]
        vm.start()
        with vm.attach() as guest:
            assert guest.disks[0].read(0, 4096) == bytes(4096)


def test_guest_closed_under_its_own_waits(host: hvcore.Host, tmp_path: Path) -> None:
    with host.create_vm("closed", "16M", [raw(tmp_path / "disk")]) as vm:
        vm.start()
        guest = vm.attach()
        failed: list[BaseException] = []

        def work() -> None:
            try:
                while True:
                    guest.disks[0].write_batch([4096 * n for n in range(64)], bytes(64 * 4096))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        until(lambda: guest.disks[0].channel.counters()["requests"] > 200, "requests are served")
        guest.close()
        thread.join(PATIENCE)
        assert [type(error) for error in failed] == [GuestGone]
        guest.close()
        with vm.attach() as guest:
            assert guest.disks[0].read(0, 512) == bytes(512)


def test_guest_memory_is_zero_for_the_next_guest(host: hvcore.Host, tmp_path: Path) -> None:
    with host.create_vm("zero", "4M", [raw(tmp_path / "disk", content(MIB))]) as vm:
        vm.start()
        with vm.attach() as guest:
            first = guest.alloc(MIB)
            guest.disks[0].readinto(0, first)
            secret = bytes(memoryview(first)[:16])
            assert secret in bytes(memoryview(guest.memory))
            del first
        with vm.attach() as guest:
            assert secret not in bytes(memoryview(guest.memory))
        del guest


def test_two_vms_at_once(host: hvcore.Host, tmp_path: Path) -> None:
    """Each with its guest, its worker and its disks; one ends and the other does not see it."""
    made = []
    for name in ("one", "two"):
        disks = [raw(tmp_path / f"{name}-a"), raw(tmp_path / f"{name}-b", path="emulated")]
        made.append(host.create_vm(name, "16M", disks))
        made[-1].start()
    guests = [vm.attach() for vm in made]
    for number, guest in enumerate(guests):
        for disk in guest.disks:
            disk.write(0, bytes([number + 1]) * 4096)
            disk.flush()
    assert sorted(vm["name"] for vm in host.list()) == ["one", "two"]
    assert len({vm["worker"] for vm in host.list()} | {vm["id"] for vm in host.list()}) == 4
    os.kill(made[0].describe()["worker"], signal.SIGKILL)
    made[0].delete()
    with pytest.raises(GuestGone):
        guests[0].disks[0].read(0, 512)
    for disk in guests[1].disks:
        assert disk.read(0, 4096) == b"\2" * 4096
    for guest in guests:
        guest.close()
    made[1].delete()
    assert host.list() == []


def test_two_disks_of_one_image(host: hvcore.Host, tmp_path: Path) -> None:
    """One VM may show an image twice; what one disk writes the other reads."""
    disks = [raw(tmp_path / "disk"), raw(tmp_path / "disk", path="emulated")]
    with host.create_vm("twice", "16M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            guest.disks[0].write(0, b"0" * 512)
            assert guest.disks[1].read(0, 512) == b"0" * 512
            guest.disks[1].write(512, b"1" * 512)
            assert guest.disks[0].read(0, 1024) == b"0" * 512 + b"1" * 512


def bad_images(folder: Path) -> dict[str, tuple[hvcore.DiskConfig, str]]:
    make_image(folder / "cut.vhd", "vhd", content(MIB))
    os.truncate(folder / "cut.vhd", MIB)
    vhdx.build(folder / "cut.vhdx", 4 * MIB, {0: b"x" * MIB})
    os.truncate(folder / "cut.vhdx", 2 * MIB + 4096)
    (folder / "text").write_text("no image" * 512)
    (folder / "odd").write_bytes(bytes(1000))
    (folder / "empty").write_bytes(b"")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")

    def disk(name: str, **options: object) -> hvcore.DiskConfig:
        return hvcore.DiskConfig(str(folder / name), **options)  # type: ignore[arg-type]

    return {
        "missing": (disk("nowhere", format="raw"), "no such file or directory"),
        "folder": (disk("folder", format="raw"), "a directory, not an image file"),
        "fifo": (disk("fifo", format="raw"), "neither a regular file nor a block device"),
        "loop": (disk("loop", format="raw"), "too many levels of symbolic links"),
        "below a file": (disk("text/x"), "not a directory"),
        "empty": (disk("empty", format="raw"), "the file is empty"),
        "truncated vhd": (disk("cut.vhd"), "the format is not recognised"),
        "truncated vhd, named": (disk("cut.vhd", format="vhd"), "not a VHD"),
        "truncated vhdx": (disk("cut.vhdx", read_only=True), ""),
        "unrecognised": (disk("text"), "the format is not recognised"),
        "not what is said": (disk("text", format="vhdx", read_only=True), ""),
        "odd size": (disk("odd", format="raw"), "not a multiple of the sector size"),
    }


def test_bad_images(host: hvcore.Host, tmp_path: Path) -> None:
    """One clear line that begins with the file's name; nothing is left open, also of the disks before it."""
    before = holdings(host.pid)
    good = raw(tmp_path / "good")
    for what, (config, reason) in bad_images(tmp_path).items():
        for disks in ([config], [good, config]):
            with pytest.raises(HostError) as caught:
                host.create_vm("bad", "16M", disks)
            text = str(caught.value)
            assert text.lower().startswith(f"{config.image}: {reason}".lower()) or reason in text, what
            assert text.startswith(f"{config.image}: ") and "\n" not in text and len(text) < 1000, what
    assert holdings(host.pid) == before
    assert host.list() == []
    host.create_vm("good", "16M", [good]).delete()


def test_read_only_file(host: hvcore.Host) -> None:
    """One that root may not write either."""
    with pytest.raises(HostError, match=r"^/proc/sys/kernel/ostype: permission denied$"):
        host.create_vm("refused", "16M", [hvcore.DiskConfig("/proc/sys/kernel/ostype", format="raw")])
    assert host.list() == []


def test_image_in_use(host: hvcore.Host, tmp_path: Path) -> None:
    """By another host or another VM: one writer, or any number of readers."""
    disk, read_only = raw(tmp_path / "disk"), raw(tmp_path / "disk", read_only=True)
    with hvcore.Host() as other:
        vm = other.create_vm("holder", "16M", [disk])
        for one, wanted in ((host, disk), (host, read_only), (other, disk)):
            with pytest.raises(HostError, match=r"disk: .*in use") as caught:
                one.create_vm("second", "16M", [wanted])
            assert "\n" not in str(caught.value)
        vm.delete()
        vm = other.create_vm("reader", "16M", [read_only])
        host.create_vm("second", "16M", [read_only]).delete()
        with pytest.raises(HostError, match="in use"):
            host.create_vm("second", "16M", [disk])
        os.kill(other.pid, signal.SIGKILL)
        assert ended(other.pid, PATIENCE)
        host.create_vm("second", "16M", [disk]).delete()
        with pytest.raises(Error):
            vm.start()
