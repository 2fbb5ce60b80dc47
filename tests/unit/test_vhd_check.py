"""hvcore.vhd.check: each single fault is found and named, and sound images have none."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import hvcore.vhd
from hvcore.errors import ImageError, ImageInUse
from hvcore.vhd.check import CheckResult, Finding, check
from hvcore.vhd.repair import repair
from tests.reference import damage, vhd, vhdx
from tests.reference.damage import BAT_AT, CHUNK, LOG_AT, METADATA_AT, MIB, PAYLOAD_AT, REGIONS, VHD_BLOCK, VHD_SIZE
from tests.reference.vhdx import BAT, DISK_SIZE, HEADERS, LOG, LOGICAL, METADATA, PHYSICAL, REGION_TABLES

qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def found(result: CheckResult, severity: str) -> list[Finding]:
    return [each for each in result.findings if each.severity == severity]


def judged(path: Path, change: damage.Mutation, format: str) -> CheckResult:
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)
    return check(path, format)


# What 20.3 lists, and more: mutation, structure that is named, severity, whether repair() can help.
VHDX_FAULTS = {
    "identifier": (damage.flip(0), "file identifier", "damage", True),
    "header 1": (damage.flip(HEADERS[0] + 20), "header 1", "damage", True),
    "header 2": (damage.flip(HEADERS[1] + 20), "header 2", "damage", True),
    "both headers": (damage.both(*(damage.flip(at + 9) for at in HEADERS)), "header 1", "damage", False),
    "equal numbers": (damage.put(HEADERS[1], vhdx.header(1, log_length=2 * MIB)), "headers", "damage", False),
    "header version": (damage.headers(version=2), "header 2", "damage", False),
    "older version": (damage.put(HEADERS[0], vhdx.header(1, version=2)), "header 1", "damage", True),
    "header reserved": (
        damage.put(HEADERS[1], vhdx.sealed(vhdx.header(2)[:4000] + b"x" * 96)),
        "header 2",
        "damage",
        True,
    ),
    "header numbers end": (damage.put(HEADERS[1], vhdx.header((1 << 64) - 1)), "header 2", "warning", False),
    "older header, other log": (damage.put(HEADERS[0], vhdx.header(1, log_guid=LOG)), "header 1", "warning", True),
    "log over BAT": (damage.headers(log_offset=BAT_AT), "BAT region", "damage", False),
    "log over metadata": (damage.headers(log_length=3 * MIB), "BAT region", "damage", False),
    "log length": (damage.headers(log_length=MIB + 4096), "header 2", "damage", False),
    "log outside": (damage.headers(log_offset=1 << 40), "header 2", "damage", False),
    "log without entries": (damage.headers(log_guid=LOG), "log", "damage", True),
    "log with a torn entry": (
        damage.both(damage.dirty((BAT_AT, bytes(4096))), damage.flip(LOG_AT + 5000)),
        "log",
        "damage",
        False,
    ),
    "log of a longer file": (damage.dirty((BAT_AT, bytes(4096)), flushed=7 * MIB), "log entry", "damage", False),
    "log over itself": (damage.dirty((LOG_AT, bytes(4096))), "log entry", "damage", False),
    "log over headers": (damage.dirty((HEADERS[0], bytes(4096))), "log entry", "damage", False),
    "log version": (damage.headers(log_guid=LOG, log_version=1), "header 2", "damage", False),
    "region table 1": (damage.flip(REGION_TABLES[0] + 100), "region table 1", "damage", True),
    "region table 2": (damage.flip(REGION_TABLES[1] + 100), "region table 2", "damage", True),
    "both region tables": (
        damage.both(*(damage.flip(a + 9) for a in REGION_TABLES)),
        "region table 2",
        "damage",
        False,
    ),
    "region tables differ": (
        damage.put(REGION_TABLES[1], vhdx.region_table(*REGIONS[::-1])),
        "region table 2",
        "damage",
        False,
    ),
    "region required": (damage.tables(*REGIONS, (damage.OTHER, 5 * MIB, MIB, 1)), "region table 1", "damage", False),
    "regions overlap": (damage.tables((BAT, BAT_AT, 2 * MIB, 1), REGIONS[1]), "metadata region", "damage", False),
    "region count": (damage.tables(*REGIONS, count=2048), "region table 1", "damage", False),
    "region twice": (damage.tables(*REGIONS, REGIONS[0]), "region table 1", "damage", False),
    "region missing": (damage.tables(REGIONS[1]), "region table 1", "damage", False),
    "region unaligned": (
        damage.tables(REGIONS[0], (METADATA, METADATA_AT, 4096, 1)),
        "region table 1",
        "damage",
        False,
    ),
    "region outside": (damage.tables(REGIONS[0], (METADATA, 1 << 40, MIB, 1)), "metadata region", "damage", False),
    "region reserved": (damage.tables((BAT, BAT_AT, MIB, 3), REGIONS[1]), "region table 1", "damage", False),
    "metadata signature": (damage.flip(METADATA_AT), "metadata table", "damage", False),
    "metadata reserved": (damage.flip(METADATA_AT + 20), "metadata table", "damage", False),
    "item missing": (damage.without(PHYSICAL), "metadata table", "damage", False),
    "item twice": (damage.added(PHYSICAL, 6, struct.pack("<I", 512)), "metadata table", "damage", False),
    "item required": (damage.added(damage.OTHER, 4, b"x" * 8), "metadata table", "damage", False),
    "item flags": (damage.item(DISK_SIZE, flags=4), "metadata table", "damage", False),
    "item flags, user": (damage.item(PHYSICAL, flags=1), "metadata table", "damage", False),
    "item flags, reserved": (damage.item(PHYSICAL, flags=14), "metadata table", "damage", False),
    "item size": (damage.item(DISK_SIZE, bytes(4)), "metadata table", "damage", False),
    "parameter bits": (damage.parameters(MIB, 4), "metadata items", "damage", False),
    "block size 3 MiB": (damage.parameters(3 * MIB), "metadata items", "damage", False),
    "block size 512 KiB": (damage.parameters(512 << 10), "metadata items", "damage", False),
    "block size 512 MiB": (damage.parameters(512 * MIB), "metadata items", "damage", False),
    "parent without locator": (damage.parameters(MIB, 2), "metadata items", "damage", False),
    "locator without parent": (
        damage.added(damage.LOCATOR, 4, damage.locator(LOG, ("relative_path", "a"))),
        "metadata items",
        "damage",
        False,
    ),
    "disk size": (damage.item(DISK_SIZE, struct.pack("<Q", damage.SIZE - 8)), "metadata items", "damage", False),
    "disk size 65 TiB": (damage.item(DISK_SIZE, struct.pack("<Q", 65 << 40)), "metadata items", "damage", False),
    "disk too large for its BAT": (
        damage.item(DISK_SIZE, struct.pack("<Q", 1 << 40)),
        "metadata items",
        "damage",
        False,
    ),
    "logical sector 1024": (damage.item(LOGICAL, struct.pack("<I", 1024)), "metadata items", "damage", False),
    "physical sector 1024": (damage.item(PHYSICAL, struct.pack("<I", 1024)), "metadata items", "damage", False),
    "block past the end": (damage.entry(1, 6 * MIB | 6), "BAT entry 1", "damage", False),
    "truncated": (damage.cut(6 * MIB - 512), "BAT entry 1", "damage", False),
    "block over header": (damage.entry(1, 6), "BAT entry 1", "damage", False),
    "block over the log": (damage.entry(1, LOG_AT | 6), "BAT entry 1", "damage", False),
    "block over the BAT": (damage.entry(1, BAT_AT | 6), "BAT entry 1", "damage", False),
    "blocks at one place": (damage.entry(1, PAYLOAD_AT | 6), "BAT entry 1", "damage", False),
    "anchor over a block": (damage.entry(3, PAYLOAD_AT | 3), "BAT entry 3", "damage", False),
    "entry reserved": (damage.entry(1, PAYLOAD_AT + MIB | 14), "BAT entry 1", "damage", False),
    "state 4": (damage.entry(3, 4), "BAT entry 3", "damage", False),
    "state 5": (damage.entry(3, 5), "BAT entry 3", "damage", False),
    "state 7": (damage.entry(1, PAYLOAD_AT + MIB | 7), "BAT entry 1", "damage", False),
    "zero with an offset": (damage.entry(2, PAYLOAD_AT | 2), "BAT entry 2", "warning", True),
    "absent with an offset": (damage.entry(3, PAYLOAD_AT), "BAT entry 3", "warning", False),
}

SMALL_FILE = (damage.cut(MIB - 1), "file", "damage", False)


@pytest.mark.parametrize("name", [*VHDX_FAULTS, "small file"])
def test_vhdx_fault_is_named(tmp_path: Path, name: str) -> None:
    change, structure, severity, repairable = VHDX_FAULTS.get(name, SMALL_FILE)
    damage.dynamic_vhdx(tmp_path / "disk.vhdx")
    result = judged(tmp_path / "disk.vhdx", change, "vhdx")
    named = [each for each in result.findings if each.structure == structure and each.severity == severity]
    assert named, result.findings
    assert (named[0].repair is not None) == repairable, named
    assert result.clean == (severity != "damage")
    if repairable:
        # Of a single fault nothing else may be said: no finding follows from another one.
        assert [each for each in result.findings if each.severity != "note"] == named


CHILD_FAULTS = {
    "no bitmap": (damage.entry(CHUNK, 0), "BAT entry 0", "damage"),
    "bitmap state": (damage.entry(CHUNK, PAYLOAD_AT | 7), f"BAT entry {CHUNK}", "damage"),
    "bitmap outside": (damage.entry(CHUNK, 1 << 40 | 6), f"BAT entry {CHUNK}", "damage"),
    "bitmap over a block": (damage.entry(CHUNK, PAYLOAD_AT + MIB | 6), f"BAT entry {CHUNK}", "damage"),
    "bitmap over a region": (damage.entry(CHUNK, BAT_AT | 6), f"BAT entry {CHUNK}", "damage"),
    "bitmap absent with an offset": (
        damage.both(damage.entry(0, 0), damage.entry(CHUNK, PAYLOAD_AT)),
        f"BAT entry {CHUNK}",
        "warning",
    ),
    "idle bitmap": (damage.entry(0, PAYLOAD_AT + MIB | 6), f"BAT entry {CHUNK}", "note"),
    "entry past the end": (damage.entry(4, 6 * MIB | 6), "BAT entry 4", "damage"),
    "bits past the end": (damage.put(PAYLOAD_AT + damage.SIZE // 512 // 8, b"\1"), f"BAT entry {CHUNK}", "note"),
    "locator type": (damage.flip(damage.ITEMS_AT + 40), "parent locator", "damage"),
}


@pytest.mark.parametrize("name", CHILD_FAULTS)
def test_differencing_fault_is_named(tmp_path: Path, name: str) -> None:
    change, structure, severity = CHILD_FAULTS[name]
    damage.dynamic_vhdx(tmp_path / "base.vhdx")
    damage.child_vhdx(tmp_path / "disk.vhdx")
    assert check(tmp_path / "disk.vhdx").findings == ()
    result = judged(tmp_path / "disk.vhdx", change, "vhdx")
    assert [each for each in found(result, severity) if each.structure == structure], result.findings
    assert result.clean == (severity != "damage")


def test_legal_oddities_are_no_findings(tmp_path: Path) -> None:
    damage.dynamic_vhdx(tmp_path / "disk.vhdx")
    # A log version that nobody will look at, regions that are not required, an old tool's equal headers.
    change = damage.both(damage.headers(log_version=1), damage.tables(*((*each[:3], 0) for each in REGIONS)))
    assert judged(tmp_path / "disk.vhdx", change, "vhdx").findings == ()
    result = judged(tmp_path / "disk.vhdx", damage.put(HEADERS[1], vhdx.header(1, log_version=1)), "vhdx")
    assert [each.severity for each in result.findings] == ["note"]


def test_unknown_optional_parts_are_notes(tmp_path: Path) -> None:
    damage.dynamic_vhdx(tmp_path / "disk.vhdx")
    with (tmp_path / "disk.vhdx").open("ab") as file:
        file.truncate(7 * MIB)
    change = damage.both(
        damage.tables(*REGIONS, (damage.OTHER, 6 * MIB, MIB, 0)), damage.added(damage.OTHER, 0, b"kept")
    )
    result = judged(tmp_path / "disk.vhdx", change, "vhdx")
    assert result.clean and len(result.findings) == len(found(result, "note")) == 2
    assert result.unreferenced_bytes == 0


def test_counts_and_unreferenced_space(tmp_path: Path) -> None:
    damage.dynamic_vhdx(tmp_path / "disk.vhdx")
    result = check(tmp_path / "disk.vhdx")
    assert result.findings == () and result.clean and result.log == "empty"
    assert (result.format, result.type, result.blocks, result.allocated_blocks) == ("vhdx", "dynamic", 4, 2)
    assert (result.unreferenced_bytes, result.file_size) == (0, 6 * MIB)
    # The first block is gone, an anchor keeps the second one's place, and something stands behind it all.
    change = damage.both(damage.entry(0, 0), damage.entry(1, PAYLOAD_AT + MIB | 3), lambda raw: raw.extend(b"x" * 100))
    result = judged(tmp_path / "disk.vhdx", change, "vhdx")
    assert (result.allocated_blocks, result.unreferenced_bytes) == (0, MIB + 100)
    assert [each.severity for each in result.findings] == ["note", "note"]


def test_short_last_block(tmp_path: Path) -> None:
    """Only what lies behind the disk's end may be missing (disk-formats.md 7)."""
    size = 2 * MIB - 4096
    vhdx.build(tmp_path / "disk.vhdx", size, {0: vhdx.pattern(0, MIB), 1: vhdx.pattern(1, MIB)})
    result = judged(tmp_path / "disk.vhdx", damage.cut(6 * MIB - 4096), "vhdx")
    assert result.clean and "BAT entry 1" in [each.structure for each in found(result, "note")]
    assert result.unreferenced_bytes == 0
    assert not judged(tmp_path / "disk.vhdx", damage.cut(6 * MIB - 4096 - 512), "vhdx").clean


def test_log_is_replayed_in_memory(tmp_path: Path) -> None:
    """What waits in the log is judged as it will be, and the file stays as it is."""
    path = tmp_path / "disk.vhdx"
    damage.dynamic_vhdx(path)
    page = damage.bat_page(PAYLOAD_AT | 6, PAYLOAD_AT + MIB | 6, 2, 6 * MIB | 6)
    change = damage.dirty((BAT_AT, page), (6 * MIB, MIB), last=7 * MIB)
    result = judged(path, change, "vhdx")
    raw = path.read_bytes()
    assert (result.log, result.allocated_blocks, result.clean) == ("to be replayed", 3, True)
    [note] = result.findings
    assert note.structure == "log" and "1 log entry" in note.message and "1 page and" in note.message
    assert result.file_size == 6 * MIB and path.read_bytes() == raw
    # A fault that replay will bring, and one that it will take away.
    page = damage.bat_page(PAYLOAD_AT | 6, PAYLOAD_AT | 6)
    assert not judged(path, damage.dirty((BAT_AT, page)), "vhdx").clean
    page = damage.bat_page(PAYLOAD_AT | 6, PAYLOAD_AT + MIB | 6)
    change = damage.both(damage.entry(1, 4), damage.dirty((BAT_AT, page)))
    assert judged(path, change, "vhdx").clean


def test_newer_header_lost_with_its_log(tmp_path: Path) -> None:
    """The older header says that the log is empty; what is left of the newer one says otherwise."""
    damage.dynamic_vhdx(tmp_path / "disk.vhdx")
    change = damage.both(
        damage.dirty((BAT_AT, damage.bat_page(PAYLOAD_AT | 6))),
        damage.put(HEADERS[0], vhdx.header(1)),
        damage.flip(HEADERS[1] + 3000),
    )
    [finding] = found(judged(tmp_path / "disk.vhdx", change, "vhdx"), "damage")
    assert (finding.structure, finding.repair) == ("header 2", None)


def test_all_faults_are_listed(tmp_path: Path) -> None:
    damage.dynamic_vhdx(tmp_path / "disk.vhdx")
    change = damage.both(
        damage.flip(HEADERS[0] + 20),
        damage.flip(REGION_TABLES[1] + 20),
        damage.item(PHYSICAL, struct.pack("<I", 1024)),
        damage.entry(0, PAYLOAD_AT + MIB | 6),
        damage.entry(3, 5),
    )
    result = judged(tmp_path / "disk.vhdx", change, "vhdx")
    places = {"header 1", "region table 2", "metadata items", "BAT entry 1", "BAT entry 3"}
    assert {each.structure for each in found(result, "damage")} == places


def test_findings_of_a_kind_are_counted(tmp_path: Path) -> None:
    """A table that is all wrong makes no endless list."""
    vhdx.build(tmp_path / "disk.vhdx", 16384 * MIB, {})
    raw = struct.pack("<Q", 4) * (16384 + 3)
    result = judged(tmp_path / "disk.vhdx", damage.put(BAT_AT, raw), "vhdx")
    damaged = found(result, "damage")
    # Four of the entries are bitmaps', which may not be either.
    assert len(damaged) == 64 + 1 + 3 and f"{16384 - 64} more" in damaged[-1].message


def test_large_table_is_read_in_pieces(tmp_path: Path) -> None:
    """Across pieces and chunks each entry is judged by its own number; holes are passed over."""
    path = tmp_path / "disk.vhdx"
    blocks = (1 << 21) + 5
    last = blocks - 1
    data = PAYLOAD_AT + 32 * MIB
    vhdx.build(path, blocks * MIB, {0: data | 6, last: data + MIB | 6, last - 1: data + MIB | 6})
    with path.open("r+b") as file:
        file.truncate(data + 2 * MIB)
    result = check(path)
    [finding] = found(result, "damage")
    index = last + last // CHUNK
    assert finding.structure == f"BAT entry {index}" and finding.offset == BAT_AT + 8 * index
    assert f"block {last - 1}, BAT entry {index - 1}" in finding.message
    assert (result.blocks, result.allocated_blocks) == (blocks, 3)


VHD_FAULTS = {
    "tail checksum": (damage.flip(-100), "tail footer", "damage", True),
    "tail lost": (lambda raw: raw.__delitem__(slice(-512, None)), "tail footer", "damage", True),
    "tail zeros": (lambda raw: raw.__setitem__(slice(-512, None), bytes(512)), "tail footer", "damage", True),
    "head checksum": (damage.flip(100), "head footer", "damage", True),
    "head lost": (damage.put(0, bytes(512)), "head footer", "damage", True),
    "head differs": (damage.put(0, vhd.footer(VHD_SIZE, time=(24, ">I", 7))), "head footer", "damage", True),
    "head of another disk": (damage.put(0, vhd.footer(VHD_SIZE, disk_id=vhd.CHILD_ID)), "head footer", "damage", False),
    "both footers": (damage.both(damage.flip(-100), damage.flip(100)), "tail footer", "damage", False),
    "version": (damage.vhd_tail(version=(12, ">I", 2)), "tail footer", "damage", False),
    "features": (damage.vhd_tail(features=(8, ">I", 0)), "tail footer", "warning", False),
    "reserved": (damage.vhd_tail(reserved=(300, ">I", 1)), "tail footer", "warning", False),
    "saved state": (damage.vhd_tail(saved=(84, ">B", 1)), "tail footer", "warning", False),
    "disk type": (damage.vhd_tail(type=(60, ">I", 5)), "tail footer", "damage", False),
    "disk size": (damage.vhd_tail(current=(48, ">Q", VHD_SIZE + 1)), "tail footer", "damage", False),
    "disk size 0": (damage.vhd_tail(current=(48, ">Q", 0)), "tail footer", "damage", False),
    "disk larger than its table": (damage.vhd_tail(current=(48, ">Q", 1 << 30)), "dynamic header", "damage", False),
    "header place": (damage.vhd_tail(place=(16, ">Q", 1 << 40)), "dynamic header", "damage", False),
    "header checksum": (damage.flip(600), "dynamic header", "damage", False),
    "header version": (damage.vhd_header(version=(24, ">I", 2)), "dynamic header", "damage", False),
    "header reserved": (damage.vhd_header(reserved=(900, ">I", 2)), "dynamic header", "warning", False),
    "block size": (damage.vhd_header(size=(32, ">I", 3 * VHD_BLOCK)), "dynamic header", "damage", False),
    "table unaligned": (damage.vhd_header(table=(16, ">Q", 1537)), "dynamic header", "damage", False),
    "table outside": (damage.vhd_header(table=(16, ">Q", 1 << 40)), "BAT", "damage", False),
    "table over header": (damage.vhd_header(table=(16, ">Q", 1024)), "dynamic header", "damage", False),
    "block past the end": (damage.vhd_entry(1, 1 << 20), "BAT entry 1", "damage", False),
    "block over the footer": (damage.vhd_entry(1, 4 + 129 + 1), "BAT entry 1", "damage", False),
    "block over the header": (damage.vhd_entry(1, 1), "BAT entry 1", "damage", False),
    "block over the copy": (damage.vhd_entry(1, 0), "BAT entry 1", "damage", False),
    "block over the table": (damage.vhd_entry(1, 3), "BAT entry 1", "damage", False),
    "blocks at one place": (damage.vhd_entry(1, 4), "BAT entry 1", "damage", False),
    "data behind clear bits": (damage.put(2048, b"\xfe"), "bitmap of block 0", "warning", False),
}


@pytest.mark.parametrize("name", VHD_FAULTS)
def test_vhd_fault_is_named(tmp_path: Path, name: str) -> None:
    change, structure, severity, repairable = VHD_FAULTS[name]
    damage.dynamic_vhd(tmp_path / "disk.vhd")
    assert check(tmp_path / "disk.vhd").clean and not found(check(tmp_path / "disk.vhd"), "warning")
    result = judged(tmp_path / "disk.vhd", change, "vhd")
    named = [each for each in result.findings if each.structure == structure and each.severity == severity]
    assert named, result.findings
    assert (named[0].repair is not None) == repairable
    assert result.clean == (severity != "damage")
    if repairable:
        assert [each for each in result.findings if each.severity != "note"] == named


def test_clear_bits_over_zeros_are_sound(tmp_path: Path) -> None:
    content = {0: (bytes(4096) + vhd.pattern(0, VHD_BLOCK - 4096), set(range(8, 128)))}
    vhd.build(tmp_path / "disk.vhd", VHD_SIZE, content, block_size=VHD_BLOCK)
    assert not found(check(tmp_path / "disk.vhd"), "warning")


@pytest.mark.parametrize("change", [damage.cut(VHD_SIZE + 511), damage.put(VHD_SIZE + 48, struct.pack(">Q", 512))])
def test_fixed_vhd_fault(tmp_path: Path, change: damage.Mutation) -> None:
    damage.fixed_vhd(tmp_path / "disk.vhd")
    assert check(tmp_path / "disk.vhd").clean
    # 511 bytes are a footer (15.1), so that only the second one is a fault.
    result = judged(tmp_path / "disk.vhd", change, "vhd")
    assert result.clean == (result.file_size == VHD_SIZE + 511)
    assert result.findings and result.findings[0].structure == "tail footer"


def test_sector_0_of_a_fixed_disk_decides_nothing(tmp_path: Path) -> None:
    """A guest that writes a footer and a dynamic header into its fixed disk changes nothing, damaged tail or not."""
    damage.fixed_vhd(tmp_path / "disk.vhd")
    guest = vhd.footer(VHD_SIZE) + vhd.header(4, VHD_BLOCK)
    assert judged(tmp_path / "disk.vhd", damage.put(0, guest), "vhd").type == "fixed"
    result = judged(tmp_path / "disk.vhd", damage.flip(-50), "vhd")
    [finding] = found(result, "damage")
    assert (finding.structure, finding.repair, result.type) == ("tail footer", None, None)


def test_differencing_vhd(tmp_path: Path) -> None:
    damage.dynamic_vhd(tmp_path / "base.vhd")
    damage.child_vhd(tmp_path / "disk.vhd")
    result = check(tmp_path / "disk.vhd")
    assert result.clean and result.type == "differencing" and not found(result, "warning")
    damage.child_vhd(tmp_path / "disk.vhd", parent=damage.OTHER)
    [finding] = found(check(tmp_path / "disk.vhd"), "damage")
    assert finding.structure == "parent" and "not the parent that its child was made for" in finding.message
    assert check(tmp_path / "disk.vhd", chain=False).clean


def test_chain_of_vhdx(tmp_path: Path) -> None:
    damage.dynamic_vhdx(tmp_path / "base.vhdx")
    damage.child_vhdx(tmp_path / "middle.vhdx")
    damage.child_vhdx(tmp_path / "leaf.vhdx", parent="middle.vhdx")
    assert check(tmp_path / "leaf.vhdx").findings == ()
    # Identity, two files up.
    damage.child_vhdx(tmp_path / "middle.vhdx", linkage=damage.OTHER)
    [finding] = found(check(tmp_path / "leaf.vhdx"), "damage")
    assert finding.structure == "parent" and str(damage.OTHER) in finding.message and "base.vhdx" in finding.message
    assert not check(tmp_path / "middle.vhdx").clean and check(tmp_path / "base.vhdx").clean
    # A circle.
    damage.child_vhdx(tmp_path / "middle.vhdx", parent="leaf.vhdx")
    [finding] = found(check(tmp_path / "leaf.vhdx"), "damage")
    assert finding.structure == "parent" and "in a circle" in finding.message
    # Nothing there.
    (tmp_path / "middle.vhdx").unlink()
    [finding] = found(check(tmp_path / "leaf.vhdx"), "damage")
    assert finding.structure == "parent" and "cannot be opened" in finding.message
    assert check(tmp_path / "leaf.vhdx", chain=False).clean


def test_chain_of_other_sectors(tmp_path: Path) -> None:
    vhdx.build(tmp_path / "base.vhdx", 4 * MIB, {}, sector_size=4096)
    damage.child_vhdx(tmp_path / "leaf.vhdx")
    [finding] = found(check(tmp_path / "leaf.vhdx"), "damage")
    assert finding.structure == "parent" and "of 512" in finding.message


@pytest.mark.parametrize("size", [MIB, 5 * MIB + 512, 300 * MIB])
@pytest.mark.parametrize("type", ["dynamic", "fixed"])
@pytest.mark.parametrize("format", ["vhdx", "vhd", "raw"])
def test_new_images_are_clean(tmp_path: Path, format: str, type: str, size: int) -> None:
    hvcore.vhd.create(tmp_path / "disk", size, format, type, preallocate=False)
    result = check(tmp_path / "disk", format)
    assert result.clean and not found(result, "warning")
    assert (result.format, result.file_size) == (format, (tmp_path / "disk").stat().st_size)


@qemu
@pytest.mark.parametrize(
    "options",
    [
        ("vhdx",),
        ("vhdx", "-o", "subformat=fixed"),
        ("vhdx", "-o", "subformat=fixed,block_state_zero=off"),
        ("vpc",),
        ("vpc", "-o", "force_size=on"),
        ("vpc", "-o", "subformat=fixed"),
    ],
)
def test_images_of_qemu_are_clean(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", *options, str(path), "64M"], check=True)
    for command in ("write -P 7 1M 20M", "write -P 9 60M 4k", "write -P 1 33M 512"):
        subprocess.run(["qemu-io", "-f", options[0], "-c", command, str(path)], check=True, stdout=subprocess.DEVNULL)
    result = check(path)
    assert result.clean and not found(result, "warning")
    assert result.allocated_blocks > 0 or result.blocks == 0


def test_raw_has_only_a_size(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"vhdxfile" + bytes(1016))
    result = check(tmp_path / "disk", "raw")
    assert (result.findings, result.type, result.log) == ((), None, None)
    (tmp_path / "disk").write_bytes(bytes(1000))
    assert not check(tmp_path / "disk", "raw").clean


def test_image_in_use(tmp_path: Path) -> None:
    damage.fixed_vhd(tmp_path / "disk.vhd")
    with hvcore.vhd.open(tmp_path / "disk.vhd"):
        assert check(tmp_path / "disk.vhd").clean
    with hvcore.vhd.open(tmp_path / "disk.vhd", "r+"), pytest.raises(ImageInUse, match=r"disk\.vhd: in use"):
        check(tmp_path / "disk.vhd")


def test_what_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        check(tmp_path / "none")
    (tmp_path / "disk").write_bytes(bytes(4096))
    with pytest.raises(ImageError, match="not recognised"):
        check(tmp_path / "disk")
    (tmp_path / "empty").touch()
    for format in (None, "raw", "vhdx"):
        with pytest.raises(ImageError, match="empty"):
            check(tmp_path / "empty", format)
    with pytest.raises(ValueError, match="format is one of"):
        check(tmp_path / "disk", "qcow2")


def test_check_changes_nothing(tmp_path: Path) -> None:
    damage.dynamic_vhdx(tmp_path / "disk.vhdx")
    (tmp_path / "disk.vhdx").chmod(0o444)
    before = (tmp_path / "disk.vhdx").stat()
    check(tmp_path / "disk.vhdx")
    after = (tmp_path / "disk.vhdx").stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


def test_progress_ends_the_work(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(text: str, fraction: float) -> None:
        assert 0 <= fraction <= 1
        raise StopError

    damage.dynamic_vhdx(tmp_path / "disk.vhdx")
    with pytest.raises(StopError):
        check(tmp_path / "disk.vhdx", progress=stop)


@pytest.mark.parametrize("format", ["vhdx", "vhd"])
@pytest.mark.parametrize("child", [False, True])
def test_written_images_are_clean(tmp_path: Path, format: str, child: bool) -> None:
    """After each session, and after a flush in the middle of one, when a log waits for its replay."""
    path = tmp_path / f"disk.{format}"
    size = damage.SIZE if format == "vhdx" else VHD_SIZE
    if child and format == "vhdx":
        damage.dynamic_vhdx(tmp_path / "base.vhdx")
        damage.child_vhdx(path)
    elif child:
        damage.dynamic_vhd(tmp_path / "base.vhd")
        damage.child_vhd(path)
    else:
        hvcore.vhd.create(path, size, format, block_size=size // 4)
    for start in range(0, size, size // 4):
        with hvcore.vhd.open(path, "r+") as image:
            image.write(start + 512, b"x" * 4096)
            image.flush()
            shutil.copy(path, tmp_path / "copy")  # as a crash leaves it, all written
            if start and format == "vhdx":
                image.trim(0, size // 4)
        for each in (path, tmp_path / "copy"):
            result = check(each, format, chain=each == path)
            assert result.clean and not found(result, "warning"), result.findings
    copied = check(tmp_path / "copy", format, chain=False)
    assert copied.log == ("to be replayed" if format == "vhdx" else None)
    assert repair(tmp_path / "copy", format).remaining == ()
