"""The main job on an image that hvcore did not make: a VHDX of qemu-img, filled by qemu-io."""

import json
import shutil
import subprocess
import sys

import pytest

import hvcore
from hvcore.partition.config import PATHS


@pytest.fixture
def vhdx(tmp_path):
    if not (shutil.which("qemu-img") and shutil.which("qemu-io")):
        pytest.skip("needs qemu-img and qemu-io (package qemu-utils)")
    path = tmp_path / "some.vhdx"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vhdx", path, "64M"], check=True)
    fill = ["-c", "write -P 0x5a 0 8M", "-c", "write -P 0x11 40M 4M"]
    subprocess.run(["qemu-io", "-f", "vhdx", *fill, path], check=True, capture_output=True)
    return path


def test_compare_as_json(vhdx):
    before = vhdx.read_bytes()
    command = [sys.executable, "-m", "hvcore", "compare", vhdx, "--runtime", "0.2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    report = json.loads(done.stdout)
    assert report["schema"] == "hvcore.compare/1"
    assert report["image"]["format"] == "vhdx" and report["image"]["size_bytes"] == 64 << 20
    assert [run["path"] for run in report["runs"]] == ["local", *PATHS]
    assert all(run["errors"] == 0 and run["requests"] > 0 for run in report["runs"])
    assert [ratio["path"] for ratio in report["ratios"]] == ["local", *PATHS[1:]]
    assert vhdx.read_bytes() == before


@pytest.mark.parametrize("path", ["synthetic", "emulated"])
def test_what_qemu_wrote_is_what_a_guest_reads(vhdx, path):
    with hvcore.Host() as host, host.create_vm("q", disks=[hvcore.DiskConfig(vhdx, path=path, read_only=True)]) as vm:
        vm.start()
        with vm.attach() as guest:
            disk = guest.disks[0]
            assert disk.read_only
            for offset, byte in ((0, 0x5A), ((8 << 20) - 4096, 0x5A), (8 << 20, 0), (40 << 20, 0x11), (63 << 20, 0)):
                assert disk.read(offset, 4096) == bytes([byte]) * 4096
            with pytest.raises(hvcore.DiskError):
                disk.write(0, bytes(512))


@pytest.mark.parametrize("path", ["synthetic", "emulated"])
def test_what_a_guest_writes_is_what_qemu_reads(vhdx, path):
    with hvcore.Host() as host, host.create_vm("q", disks=[hvcore.DiskConfig(vhdx, path=path)]) as vm:
        vm.start()
        with vm.attach() as guest:
            disk = guest.disks[0]
            disk.write(20 << 20, b"\x77" * (1 << 20))
            disk.write(4096, b"\x78" * 512)
            disk.trim(40 << 20, 4 << 20)
            disk.flush()
    subprocess.run(["qemu-img", "check", "-q", "-f", "vhdx", vhdx], check=True)
    reads = [
        "read -P 0x77 20M 1M",
        "read -P 0x78 4096 512",
        "read -P 0x5a 8k 1M",
        "read -P 0 21M 1M",
        "read -P 0 40M 512",
    ]
    commands = [part for read in reads for part in ("-c", read)]
    done = subprocess.run(["qemu-io", "-r", "-f", "vhdx", *commands, vhdx], check=True, capture_output=True, text=True)
    assert "failed" not in done.stdout
