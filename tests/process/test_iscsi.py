"""Foreign initiators and a conformance suite (libiscsi's) against the SCSI engine, through the iSCSI front end."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hvcore.disk.null import NullDisk
from hvcore.disk.ram import RamDisk
from tests.reference.iscsi import NAME, Server

MIB = 1 << 20
SUITE = "iscsi-test-cu"

# Families of the suite that ask for what the engine does not offer: nothing would be tested.
ABSENT = {
    "ExtendedCopy": "copies between disks are the host's",
    "NoMedia": "the medium cannot be removed",
    "OrWrite": "not a command of storvsp's disks",
    "PreventAllow": "the medium cannot be removed",
    "ReadDefectData10": "not a command of storvsp's disks",
    "ReadDefectData12": "not a command of storvsp's disks",
    "ReceiveCopyResults": "copies between disks are the host's",
    "Sanitize": "not a command of storvsp's disks",
    "WriteAtomic16": "not a command of storvsp's disks",
}
# Single cases that fail, and are right to.
REFUSED = {
    "CompareAndWrite.Simple": "asks for 256 blocks, which the CDB's one byte says as none: no error",
    "CompareAndWrite.Miscompare": "as CompareAndWrite.Simple",
    "Inquiry.BlockLimits": "wants a claim of SBC-3 in the INQUIRY data, whose bytes are Hyper-V's (V11)",
    "WriteSame10.UnmapUntilEnd": "a block that is not zeros is to be written, UNMAP or not",
    "iSCSIResiduals.Read10Invalid": "a READ whose buffer goes the other way is refused (storvsp.md 5.3, check 9)",
}
FAMILIES = [
    "CompareAndWrite", "GetLBAStatus", "Inquiry", "Mandatory", "ModeSense6", "Prefetch10", "Prefetch16",
    "PrinReadKeys", "PrinServiceactionRange", "PrinReportCapabilities", "ProutRegister", "ProutReserve", "ProutClear",
    "ProutPreempt", "Read6", "Read10", "Read12", "Read16", "ReadCapacity10", "ReadCapacity16", "ReadOnly",
    "ReportSupportedOpcodes", "Reserve6", "StartStopUnit", "TestUnitReady", "Unmap", "Verify10", "Verify12",
    "Verify16", "Write10", "Write12", "Write16", "WriteSame10", "WriteSame16", "WriteVerify10", "WriteVerify12",
    "WriteVerify16", "MultipathIO", "iSCSIcmdsn", "iSCSIdatasn", "iSCSIResiduals", "iSCSITMF",
]  # fmt: skip
QUICK = {"CompareAndWrite", "Inquiry", "Mandatory", "ProutPreempt", "ReportSupportedOpcodes", "Unmap", "WriteSame16"}
# Cases that run on disks of physical sectors of several blocks alone, and fail.
LARGER = "a buffer larger than the command asks for is no error (storvsp.md 5.8)"
REFUSED_4096 = {
    "CompareAndWrite.InvalidDataOutSize": LARGER,
    "GetLBAStatus.UnmapSingle": "compares the answer with another block than the one it asked for",
    "WriteSame10.InvalidDataOutSize": LARGER,
    "WriteSame16.InvalidDataOutSize": LARGER,
}


def tool(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*arguments, ok=True):
    done = subprocess.run(arguments, capture_output=True, encoding="latin-1", timeout=120)
    assert done.returncode == 0 or not ok, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def server():
    with Server(RamDisk(64 * MIB)) as found:
        yield found


def outcomes(text):
    """{case: passed} of the suite's report."""
    found, family, case = {}, "", ""
    for line in text.splitlines():
        if match := re.match(r"Suite: (\S+)", line):
            family = match[1]
        elif match := re.match(r"\s*Test: (\S+) \.\.\.", line):
            case = f"{family}.{match[1]}"
            found[case] = True
        if re.search(r"(^|\.\.\.|\s)FAILED\s*$", line):
            found[case] = False
    return found


def check_family(server, family, refused):
    group = "iSCSI" if family.startswith("iSCSI") else "SCSI"
    paths = [server.url] * (2 if family == "MultipathIO" else 1)
    report = run(tool(SUITE), "--dataloss", "--test", f"{group}.{family}", *paths, ok=False)
    found = outcomes(report)
    assert found, report
    assert {case for case, passed in found.items() if not passed} == found.keys() & refused.keys(), report


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FAMILIES]
)
def test_conformance(server, family):
    check_family(server, family, REFUSED)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted({case.split(".")[0] for case in REFUSED_4096} | {"Unmap", "Write16"}))
def test_conformance_of_larger_physical_sectors(family):
    with Server(RamDisk(64 * MIB, physical_sector_size=4096)) as server:
        check_family(server, family, REFUSED | REFUSED_4096)


def test_every_family_is_run_or_has_a_reason():
    known = {line.split(".")[1] for line in run(tool(SUITE), "-l").splitlines() if line.count(".") == 1}
    assert known <= set(FAMILIES) | ABSENT.keys()
    assert not set(FAMILIES) & ABSENT.keys()


def test_read_only_disk():
    with Server(RamDisk(MIB, read_only=True)) as server:
        report = run(tool(SUITE), "--dataloss", "--test", "SCSI.ReadOnly", server.url)
        assert outcomes(report) == {"ReadOnly.ReadOnlySBC": True}, report
        assert "not write-protected" not in report


def test_discovery_and_capacity():
    with Server(NullDisk(3 << 40, sector_size=4096)) as server:
        listed = run(tool("iscsi-ls"), "-s", f"iscsi://{server.address}")
        assert NAME in listed
        assert "DIRECT_ACCESS" in listed
        capacity = run(tool("iscsi-readcapacity16"), server.url)
        assert f"RETURNED LOGICAL BLOCK ADDRESS:{(3 << 40) // 4096 - 1}" in capacity
        assert "LBPRZ:1" in capacity


def test_vital_pages(server):
    assert "Msft" in run(tool("iscsi-inq"), server.url)
    for page in (0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2):
        assert run(tool("iscsi-inq"), "-e", "1", "-c", str(page), server.url)


def test_write_protection_is_switched(server):
    assert "SWP:0" in run(tool("iscsi-swp"), server.url)
    run(tool("iscsi-swp"), "--swp=on", server.url)
    assert "SWP:1" in run(tool("iscsi-swp"), server.url)
    run(tool("iscsi-swp"), "--swp=off", server.url)
    assert "SWP:0" in run(tool("iscsi-swp"), server.url)


def qemu(name):
    program = tool(name)
    if "iscsi" not in run(tool("qemu-img"), "--help"):
        pytest.skip("qemu has no iscsi driver")
    return program


def test_qemu_copies_an_image_to_the_disk_and_back(server, tmp_path):
    program = qemu("qemu-img")
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(MIB) + bytes(MIB) + os.urandom(2 * MIB + 512) + bytes(60 * MIB - 512))
    run(program, "convert", "-n", "-f", "raw", "-O", "raw", str(source), server.url)
    assert server.image.read(0, 64 * MIB) == source.read_bytes()
    run(program, "convert", "-f", "raw", "-O", "raw", server.url, str(back))
    assert Path(back).read_bytes() == source.read_bytes()


def test_qemu_writes_zeros_discards_and_flushes(server):
    program = qemu("qemu-io")
    server.image.write(0, b"\xaa" * 4 * MIB)
    steps = [
        "write -P 0x55 0 64k",
        "write -z 64k 64k",
        "write -z -u 128k 64k",
        "discard 192k 64k",
        "read -P 0x55 0 64k",
    ]
    run(program, "-f", "raw", *(word for step in [*steps, "flush"] for word in ("-c", step)), server.url)
    assert server.image.read(0, 65536) == b"\x55" * 65536
    assert server.image.read(65536, 3 * 65536) == bytes(3 * 65536)
    assert server.image.status(131072, 131072) == (131072, False)
    assert server.image.read(4 * 65536, 65536) == b"\xaa" * 65536
