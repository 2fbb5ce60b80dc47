"""Disks of VMs that are VHD and VHDX files: written on every path, killed with the host, checkpointed amid requests."""

import contextlib
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

import hvcore
from hvcore import vhd
from hvcore.disk.image import open_image
from hvcore.errors import Error, HostError
from hvcore.scsi.target import Target
from tests.conftest import descriptors
from tests.reference.vms import MIB

PATHS = ("synthetic", "emulated")
SIZE = 24 * MIB
KINDS = ["vhdx dynamic", "vhdx fixed", "vhdx child", "vhd dynamic", "vhd child"]


def image(folder: Path, kind: str) -> Path:
    """An image of SIZE; a child's parent holds "p" in its third MiB."""
    format, type = kind.split()
    path = folder / f"disk.{format}"
    if type == "child":
        base = folder / f"base.{format}"
        vhd.create(base, SIZE, format, block_size=MIB)
        with vhd.open(base, "r+") as parent:
            parent.write(2 * MIB, b"p" * MIB)
        vhd.create_child(base, path)
    else:
        vhd.create(path, SIZE, format, type, block_size=MIB if type == "dynamic" else None)
    return path


def sector(number: int) -> bytes:
    return number.to_bytes(8, "little") * 64


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_guest_writes_is_in_the_image(tmp_path: Path, kind: str, path: str) -> None:
    file = image(tmp_path, kind)
    expected = bytearray(SIZE)
    if kind.endswith("child"):
        expected[2 * MIB : 3 * MIB] = b"p" * MIB
    with hvcore.Host() as host, host.create_vm("v", disks=[hvcore.DiskConfig(file, path=path)]) as vm:
        vm.start()
        with vm.attach() as guest:
            disk = guest.disks[0]
            assert (disk.size, disk.read_only) == (SIZE, False)
            for number in range(0, SIZE // 512, 769):
                disk.write(number * 512, sector(number))
                expected[number * 512 : number * 512 + 512] = sector(number)
            disk.write(10 * MIB - 4096, b"x" * MIB)
            expected[10 * MIB - 4096 : 11 * MIB - 4096] = b"x" * MIB
            if kind != "vhdx fixed":
                disk.trim(4 * MIB, 2 * MIB)
                expected[4 * MIB : 6 * MIB] = bytes(2 * MIB)
            disk.flush()
            assert b"".join(disk.read(at, 4 * MIB) for at in range(0, SIZE, 4 * MIB)) == expected
    with vhd.open(file) as closed:
        assert closed.info.notes == ()
        assert closed.read(0, SIZE) == expected
    assert vhd.check(file).clean


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["vhdx dynamic", "vhdx child", "vhd dynamic", "vhd child"])
def test_flushed_blocks_survive_a_killed_host(tmp_path: Path, kind: str, path: str) -> None:
    file = image(tmp_path, kind)
    host = hvcore.Host()
    vm = host.create_vm("v", disks=[hvcore.DiskConfig(file, path=path)])
    vm.start()
    guest = vm.attach()
    for number in range(0, SIZE // 512, 1031):
        guest.disks[0].write(number * 512, sector(number))
    guest.disks[0].flush()
    os.kill(host.pid, signal.SIGKILL)
    for ended in (guest, host):
        with contextlib.suppress(Error):
            ended.close()
    with vhd.open(file, "r+") as opened:
        for number in range(0, SIZE // 512, 1031):
            assert opened.read(number * 512, 512) == sector(number)
    assert vhd.check(file).clean


@pytest.mark.parametrize("path", PATHS)
def test_checkpoint_amid_requests(tmp_path: Path, path: str) -> None:
    """What was written before a checkpoint began is in the image of before; nothing after it is; no request fails."""
    file = image(tmp_path, "vhdx dynamic")
    before = len(descriptors())
    with hvcore.Host() as host, host.create_vm("v", disks=[hvcore.DiskConfig(file, path=path)]) as vm:
        vm.start()
        with vm.attach() as guest:
            disk = guest.disks[0]
            disk.write(0, b"0" * 512)
            over = threading.Event()
            written: list[int] = []

            def work() -> None:
                number = 1
                while not over.is_set():
                    disk.write(number * 512, sector(number))
                    written.append(number)
                    number += 1

            worker = threading.Thread(target=work)
            worker.start()
            seen = []
            try:
                for turn in (1, 2, 3):
                    done = len(written)
                    vm.checkpoint(0, tmp_path / f"{turn}.vhdx")
                    seen.append(done)
                    disk.write(0, str(turn).encode() * 512)
            finally:
                over.set()
                worker.join()
            assert [disk["image"] for disk in host.list()[0]["disks"]] == [str(tmp_path / "3.vhdx")]
            assert all(disk.read(number * 512, 512) == sector(number) for number in written)
            with pytest.raises(HostError, match=r"3\.vhdx: exists already"):
                vm.checkpoint(0, tmp_path / "3.vhdx")
            with pytest.raises(HostError, match="has no disk 1"):
                vm.checkpoint(1, tmp_path / "4.vhdx")
            assert disk.read(0, 512) == b"3" * 512
        assert [event["disk"] for event in host.events() if event["event"] == "checkpoint"] == [0, 0, 0]
    for turn, name in enumerate(["disk.vhdx", "1.vhdx", "2.vhdx"]):
        assert vhd.check(tmp_path / name).clean
        with vhd.open(tmp_path / name) as held:
            assert held.read(0, 512) == str(turn).encode() * 512
            assert all(held.read(number * 512, 512) == sector(number) for number in written[: seen[turn]])
    assert len(vhd.chain(tmp_path / "3.vhdx")) == 4
    assert len(descriptors()) == before


@pytest.mark.parametrize("kind", ["vhdx dynamic", "vhd dynamic"])
def test_images_of_a_stopped_vm_are_clean(tmp_path: Path, kind: str) -> None:
    """They can be copied, and the VM goes on with them when it is started again."""
    file = image(tmp_path, kind)
    copy = tmp_path / f"copy.{kind.split()[0]}"
    with hvcore.Host() as host, host.create_vm("v", disks=[hvcore.DiskConfig(file)]) as vm:
        for turn in range(2):
            vm.start()
            with vm.attach() as guest:
                guest.disks[0].write(turn * MIB, sector(turn) * 2048)
                guest.disks[0].flush()
            vm.stop()
            shutil.copy(file, copy)
            with vhd.open(copy) as opened:
                assert opened.info.notes == ()
                assert [opened.read(n * MIB, 512) for n in range(turn + 1)] == [sector(n) for n in range(turn + 1)]
            assert vhd.check(copy).clean


def test_a_raw_disk_has_no_checkpoints(tmp_path: Path) -> None:
    vhd.create(tmp_path / "raw", MIB, "raw")
    disk = hvcore.DiskConfig(tmp_path / "raw", format="raw")
    with hvcore.Host() as host, host.create_vm("v", disks=[disk]) as vm:
        with pytest.raises(HostError, match="no raw image"):
            vm.checkpoint(0, tmp_path / "child.vhdx")
        assert not (tmp_path / "child.vhdx").exists()


def test_guests_learn_which_trims_give_space_back(tmp_path: Path) -> None:
    """The block limits page: an UNMAP granularity of one block (disk-formats.md 13)."""
    file = image(tmp_path, "vhdx dynamic")
    with open_image(file, mode="r+") as disk:
        answer = Target(disk).execute(bytes([0x12, 1, 0xB0, 0, 64, 0]), allocation=64)
    assert answer.status == 0
    assert int.from_bytes(answer.data_in[28:32], "big") == MIB // 512
    assert answer.data_in[32:36] == bytes([0x80, 0, 0, 0])
