"""hvcore.vhd.repair: what can be proved is put right, nothing else is touched, and all of it can be taken back."""

import errno
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import hvcore.vhd
from hvcore.disk.medium import Probe
from hvcore.disk.probe import probing
from hvcore.errors import ImageError, ImageInUse
from hvcore.vhd.backup import restore
from hvcore.vhd.check import Finding, check
from hvcore.vhd.repair import repair
from tests.reference import damage, journal, vhd, vhdx
from tests.reference.damage import BAT_AT, LOG_AT, MIB, PAYLOAD_AT, VHD_BLOCK, VHD_SIZE
from tests.reference.vhdx import HEADERS, LOG, PHYSICAL, REGION_TABLES

PAGE = damage.bat_page(PAYLOAD_AT | 6, PAYLOAD_AT + MIB | 6, 2, 6 * MIB | 6)
VHDX = {
    "identifier": (damage.flip(0), "file identifier"),
    "header 1": (damage.flip(HEADERS[0] + 20), "headers"),
    "header 2": (damage.flip(HEADERS[1] + 20), "headers"),
    "header reserved": (damage.put(HEADERS[1], vhdx.sealed(vhdx.header(2)[:4000] + b"x" * 96)), "headers"),
    "older header, other log": (damage.put(HEADERS[0], vhdx.header(1, log_guid=LOG)), "headers"),
    "log without entries": (damage.headers(log_guid=LOG), "log"),
    "log to be replayed": (damage.dirty((BAT_AT, PAGE), (6 * MIB, MIB), last=7 * MIB), "log"),
    "log with a header": (
        damage.both(damage.dirty((BAT_AT, PAGE), last=7 * MIB), damage.flip(HEADERS[0] + 20)),
        "log",
    ),
    "log with a region table": (
        damage.both(damage.dirty((BAT_AT, PAGE), last=7 * MIB), damage.flip(REGION_TABLES[0] + 20)),
        "region table 1",
    ),
    "region table 1": (damage.flip(REGION_TABLES[0] + 100), "region table 1"),
    "region table 2": (damage.flip(REGION_TABLES[1] + 100), "region table 2"),
    "zero with an offset": (damage.entry(2, PAYLOAD_AT | 2), "zero blocks"),
    "log that brings a zero with an offset": (
        damage.dirty((BAT_AT, damage.bat_page(PAYLOAD_AT | 6, PAYLOAD_AT + MIB | 6, 9 * MIB | 2))),
        "zero blocks",
    ),
}


def damaged(path: Path, change: damage.Mutation) -> bytes:
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)
    return bytes(raw)


def index_of(backup: str | None) -> dict[str, list[tuple[int, int]]]:
    assert backup is not None
    first, line, _ = Path(backup).read_bytes().split(b"\n", 2)
    assert first == b"hvcore metadata backup 1"
    return json.loads(line)


def same_outside(before: bytes, after: bytes, backup: str | None) -> bool:
    """Whether only bytes that the backup holds differ; what is behind the old end of the file is new."""
    index = index_of(backup)
    left, right = bytearray(before), bytearray(after[: len(before)].ljust(len(before), b"\0"))
    for offset, length in index["ranges"] + index["zeros"]:
        left[offset : offset + length] = right[offset : offset + length] = bytes(length)
    return left == right


@pytest.mark.parametrize("name", VHDX)
def test_vhdx_is_put_right(tmp_path: Path, name: str) -> None:
    change, done = VHDX[name]
    path = tmp_path / "disk.vhdx"
    damage.dynamic_vhdx(path)
    content = damage.vhdx_content(path.read_bytes())
    before = damaged(path, change)
    result = repair(path, "vhdx")
    assert result.remaining == () and any(done in each for each in result.actions), result
    found = check(path)
    assert not [each for each in found.findings if each.severity != "note"] and found.log == "empty"
    assert damage.vhdx_content(path.read_bytes()) == content
    assert same_outside(before, path.read_bytes(), result.backup)
    # A child must still match; whoever kept the file open elsewhere must not.
    sequence, write, data = struct.unpack_from("<8xQ16s16s", path.read_bytes(), HEADERS[0])
    assert data == vhdx.DATA_WRITE.bytes_le and write != vhdx.FILE_WRITE.bytes_le and sequence > 2
    # Once more changes nothing, and the backup takes all of it back.
    after = path.read_bytes()
    again = repair(path)
    assert (again.backup, again.actions, path.read_bytes()) == (None, (), after)
    assert result.backup is not None
    restore(result.backup, path)
    assert path.read_bytes() == before


def test_replay_is_the_bytes_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    damage.dynamic_vhdx(path)
    page = bytes(range(256)) * 16
    change = damage.dirty((BAT_AT, PAGE), (PAYLOAD_AT + 8192, page), (PAYLOAD_AT + 4096, 4096), last=8 * MIB)
    before = damaged(path, change)
    result = repair(path)
    expected = bytearray(before.ljust(8 * MIB, b"\0"))
    expected[BAT_AT : BAT_AT + 4096] = PAGE
    expected[PAYLOAD_AT + 4096 : PAYLOAD_AT + 12288] = bytes(4096) + page
    after = path.read_bytes()
    assert (
        after[3 * MIB :] == expected[3 * MIB :] and after[REGION_TABLES[0] : 3 * MIB] == expected[192 << 10 : 3 * MIB]
    )
    assert same_outside(before, after, result.backup)


def test_many_zero_blocks(tmp_path: Path) -> None:
    """More table pages than one log entry takes, each across its own chunk; bitmap entries and true blocks stay."""
    path = tmp_path / "disk.vhdx"
    blocks = 300 * 512
    vhdx.build(path, blocks * MIB, {0: vhdx.pattern(0, MIB)})
    with path.open("r+b") as file:
        file.seek(BAT_AT)
        raw = bytearray(file.read(8 * (blocks + blocks // 4096)))
        for index in range(100, len(raw) // 8, 512):
            struct.pack_into("<Q", raw, 8 * index, 5 * MIB | 2)
        expected = raw.replace(struct.pack("<Q", 5 * MIB | 2), struct.pack("<Q", 2))
        file.seek(BAT_AT)
        file.write(raw)
    before = check(path)
    assert before.clean and {each.severity for each in before.findings} == {"warning"}
    result = repair(path)
    assert result.remaining == () and result.actions == ("set the offsets of 300 zero blocks to 0",)
    assert path.read_bytes()[BAT_AT : BAT_AT + len(raw)] == expected


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize("name", VHDX)
def test_qemu_takes_what_was_put_right(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk.vhdx"
    damage.dynamic_vhdx(path)
    (tmp_path / "raw").write_bytes(damage.vhdx_content(path.read_bytes()))
    damaged(path, VHDX[name][0])
    repair(path, "vhdx")
    subprocess.run(["qemu-img", "check", "-q", "-f", "vhdx", str(path)], check=True)
    files = [str(path), str(tmp_path / "raw")]
    subprocess.run(["qemu-img", "compare", "-q", "-f", "vhdx", "-F", "raw", *files], check=True)


SEVEN_ZIP = shutil.which("7zz")


@pytest.mark.skipif(SEVEN_ZIP is None, reason="7-Zip is not installed")
@pytest.mark.parametrize("format", ["VHDX", "VHD"])
def test_7zip_takes_what_was_put_right(tmp_path: Path, format: str) -> None:
    assert SEVEN_ZIP is not None
    for number, fault in enumerate([each[0] for each in VHDX.values()] if format == "VHDX" else VHD.values()):
        path = tmp_path / f"{number}.{format.lower()}"
        damage.dynamic_vhdx(path) if format == "VHDX" else damage.dynamic_vhd(path)
        damaged(path, fault)
        repair(path, format.lower())
        done = subprocess.run([SEVEN_ZIP, "t", f"-t{format}", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, (number, done.stdout)


UNREPAIRABLE = {
    "both headers": damage.both(*(damage.flip(at + 9) for at in HEADERS)),
    "both region tables": damage.both(*(damage.flip(at + 9) for at in REGION_TABLES)),
    "region tables differ": damage.put(REGION_TABLES[1], vhdx.region_table(*damage.REGIONS[::-1])),
    "overlap": damage.entry(1, PAYLOAD_AT | 6),
    "overlap, and zero with an offset": damage.both(damage.entry(1, PAYLOAD_AT | 6), damage.entry(2, MIB | 2)),
    "sector size": damage.item(PHYSICAL, bytes(4)),
    "log with a torn entry": damage.both(damage.dirty((BAT_AT, bytes(4096))), damage.flip(LOG_AT + 5000)),
    "hostile log": damage.dirty((LOG_AT, bytes(4096))),
    "number at its end": damage.both(
        damage.put(HEADERS[0], vhdx.header((1 << 64) - 1)), damage.flip(REGION_TABLES[0] + 100)
    ),
}


@pytest.mark.parametrize("name", UNREPAIRABLE)
def test_what_cannot_be_proved_is_left(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk.vhdx"
    damage.dynamic_vhdx(path)
    before = damaged(path, UNREPAIRABLE[name])
    result = repair(path)
    assert (result.backup, result.actions) == (None, ()) and path.read_bytes() == before
    assert "damage" in {each.severity for each in result.remaining}
    assert [each.name for each in tmp_path.iterdir()] == ["disk.vhdx"]


def test_one_repair_does_not_wait_for_another(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    damage.dynamic_vhdx(path)
    before = damaged(path, damage.both(damage.flip(HEADERS[1] + 20), damage.entry(1, PAYLOAD_AT | 6)))
    result = repair(path)
    assert result.actions == ("wrote both headers again",)
    assert [each.structure for each in result.remaining] == ["BAT entry 1"]
    assert same_outside(before, path.read_bytes(), result.backup)


VHD = {
    "tail checksum": damage.flip(-100),
    "tail lost": lambda raw: raw.__delitem__(slice(-512, None)),
    "tail cut": lambda raw: raw.__delitem__(slice(-200, None)),
    "tail zeros": lambda raw: raw.__setitem__(slice(-512, None), bytes(512)),
    "tail behind new space": lambda raw: raw.__setitem__(slice(-512, None), bytes(8192)),
    "head checksum": damage.flip(100),
    "head lost": damage.put(0, bytes(512)),
    "head differs": damage.put(0, vhd.footer(VHD_SIZE, time=(24, ">I", 7))),
}


@pytest.mark.parametrize("name", VHD)
def test_vhd_is_put_right(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk.vhd"
    damage.dynamic_vhd(path)
    content = vhd.read(path)
    before = damaged(path, VHD[name])
    result = repair(path, "vhd")
    assert result.remaining == () and len(result.actions) == 1
    after = path.read_bytes()
    assert after[:512] == after[-512:] == vhd.footer(VHD_SIZE) and vhd.read(path) == content
    assert same_outside(before, after, result.backup)
    assert check(path).clean and repair(path).actions == ()
    with hvcore.vhd.open(path) as image:
        assert image.read(0, VHD_SIZE) == content
    assert result.backup is not None
    restore(result.backup, path)
    assert path.read_bytes() == before


def test_footer_of_a_broken_disk_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    damage.dynamic_vhd(path)
    before = damaged(path, damage.both(damage.flip(-100), damage.vhd_entry(1, 4)))
    assert repair(path).actions == () and path.read_bytes() == before


def test_head_of_a_differencing_disk_must_be_trusted(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    damage.child_vhd(path)
    sound = path.read_bytes()
    before = damaged(path, damage.flip(-100))
    result = repair(path)
    assert (result.actions, path.read_bytes()) == ((), before)
    [finding] = result.remaining
    assert finding.repair is not None and "trust_head" in finding.repair
    result = repair(path, trust_head=True)
    assert result.remaining == () and path.read_bytes() == sound


def test_sector_0_of_a_fixed_disk_is_never_trusted(tmp_path: Path) -> None:
    """Whatever the guest wrote there: a damaged footer that says it is a fixed disk's stays damaged."""
    path = tmp_path / "disk.vhd"
    damage.fixed_vhd(path)
    guest = vhd.footer(VHD_SIZE, vhd.DIFFERENCING) + vhd.header(4, VHD_BLOCK, parent_id=vhd.ID, name=b"\0x")
    before = damaged(path, damage.both(damage.put(0, guest), damage.flip(-50)))
    assert repair(path, "vhd", trust_head=True).actions == () and path.read_bytes() == before


@pytest.mark.parametrize("grown", [512, VHD_SIZE, 5 * MIB])
def test_cut_growth_of_a_fixed_disk(tmp_path: Path, grown: int) -> None:
    """15.5: the file is longer, its new footer is not there, the old one still is."""
    path = tmp_path / "disk.vhd"
    damage.fixed_vhd(path)
    sound = path.read_bytes()
    before = damaged(path, lambda raw: raw.extend(bytes(grown)))
    assert not check(path, "vhd").clean
    result = repair(path, "vhd")
    assert result.remaining == () and path.read_bytes() == sound
    assert result.backup is not None
    restore(result.backup, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", [1000, VHD_SIZE + 512])
def test_zeros_behind_no_footer_stay(tmp_path: Path, place: int) -> None:
    """The last thing that is not zero is data, or a footer that is not where it says."""
    path = tmp_path / "disk.vhd"
    damage.fixed_vhd(path)
    before = damaged(path, damage.both(damage.put(VHD_SIZE, bytes(4096)), damage.put(place, vhd.footer(VHD_SIZE, 2))))
    assert repair(path, "vhd").actions == () and path.read_bytes() == before


def test_nothing_to_repair(tmp_path: Path) -> None:
    for format in ("vhdx", "vhd", "raw"):
        path = tmp_path / format
        hvcore.vhd.create(path, MIB, format)
        before = path.stat().st_mtime_ns
        result = repair(path, format, backup=tmp_path / "backup")
        assert (result.path, result.backup, result.actions, result.remaining) == (str(path), None, (), ())
        assert path.stat().st_mtime_ns == before
    assert len(list(tmp_path.iterdir())) == 3


def test_image_in_use(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    damage.fixed_vhd(path)
    with hvcore.vhd.open(path), pytest.raises(ImageInUse, match=r"disk\.vhd: in use"):
        repair(path)


def test_name_of_the_backup(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    damage.dynamic_vhd(path)
    sound = path.read_bytes()
    for _ in range(2):  # perhaps within one second
        path.write_bytes(sound[:-512])
        result = repair(path)
        assert result.backup is not None
        assert re.fullmatch(r"disk\.vhd\.repair-\d{8}-\d{6}(-\d+)?\.backup", Path(result.backup).name)
    assert len(list(tmp_path.iterdir())) == 3
    path.write_bytes(sound[:-512])
    result = repair(path, backup=tmp_path / "kept")
    assert result.backup == str(tmp_path / "kept")
    assert index_of(result.backup)["image"] == "disk.vhd"


@pytest.mark.parametrize("place", ["there", "no/folder"])
def test_no_backup_no_change(tmp_path: Path, place: str) -> None:
    path = tmp_path / "disk.vhd"
    (tmp_path / "there").write_bytes(b"precious")
    damage.dynamic_vhd(path)
    before = damaged(path, damage.flip(-100))
    with pytest.raises(ImageError, match=place):
        repair(path, backup=tmp_path / place)
    assert path.read_bytes() == before and (tmp_path / "there").read_bytes() == b"precious"


@pytest.mark.parametrize("change", [damage.flip(0), damage.flip(40), damage.flip(-1), damage.flip(-40), damage.cut(90)])
def test_damaged_backup_is_refused(tmp_path: Path, change: damage.Mutation) -> None:
    path = tmp_path / "disk.vhd"
    damage.dynamic_vhd(path)
    damaged(path, damage.flip(-100))
    repair(path, backup=tmp_path / "kept")
    after = path.read_bytes()
    damaged(tmp_path / "kept", change)
    with pytest.raises(ImageError, match=r"kept: (the backup is damaged|not a backup)"):
        restore(tmp_path / "kept", path)
    assert path.read_bytes() == after


CRASHES = ["header 2", "log without entries", "log to be replayed", "log with a region table", "zero with an offset"]


@pytest.mark.parametrize("name", CRASHES)
def test_cut_at_any_moment(tmp_path: Path, name: str) -> None:
    """Whatever a power cut leaves of a repair can be repaired, to the same disk; the backup was durable before."""
    path = tmp_path / "disk.vhdx"
    damage.dynamic_vhdx(path)
    content = damage.vhdx_content(path.read_bytes())
    start = damaged(path, VHDX[name][0])
    records = recorded(path, tmp_path)
    patterns = [[False], [True], [True, False, False], [False, True, True, False, True]]
    states = {
        bytes(journal.cut(start.ljust(len(path.read_bytes()), b"\0"), records[:count], pattern))
        for count, pattern in itertools.product(range(len(records) + 1), patterns)
    }
    assert len(states) >= 3
    faults = {each.structure for each in check_bytes(tmp_path, start)}
    for number, state in enumerate(sorted(states)):
        assert {each.structure for each in check_bytes(tmp_path, state)} <= faults  # no worse, if no better
        (tmp_path / f"{number}.vhdx").write_bytes(state)
        result = repair(tmp_path / f"{number}.vhdx", "vhdx")
        assert result.remaining == (), (number, result)
        assert damage.vhdx_content((tmp_path / f"{number}.vhdx").read_bytes()) == content
        (tmp_path / f"{number}.vhdx").unlink()


def check_bytes(folder: Path, raw: bytes) -> list[Finding]:
    (folder / "state.vhdx").write_bytes(raw)
    return [each for each in check(folder / "state.vhdx", "vhdx").findings if each.severity == "damage"]


def recorded(path: Path, folder: Path) -> list[journal.Record]:
    """Repairs the image; what reached it, in order."""
    with (folder / "journal").open("w+b") as file:
        probe = Probe(file.fileno())
        with probing(probe):
            repair(path, "vhdx")
        number = probe.names.index(str(path))
        records = journal.parse((folder / "journal").read_bytes())
    backup = next(index for index, record in enumerate(records) if record.file == number)
    # All of the backup came first, its file being made durable by other means than this journal.
    assert {record.file for record in records[:backup]} == {number + 1}
    assert {record.file for record in records[backup:]} == {number}
    return records[backup:]


@pytest.mark.parametrize("name", ["log with a region table", "zero with an offset"])
def test_failure_of_any_call(tmp_path: Path, name: str) -> None:
    path = tmp_path / "disk.vhdx"
    damage.dynamic_vhdx(path)
    content = damage.vhdx_content(path.read_bytes())
    start = damaged(path, VHDX[name][0])
    failed = 0
    for call in itertools.count(1):
        path.write_bytes(start)
        probe = Probe()
        probe.fail(call, errno.EIO, True)
        with probing(probe):
            try:
                repair(path)
            except ImageError as error:
                assert str(path) in str(error) and error.errno == errno.EIO
                failed += 1
            else:
                break
        result = repair(path)
        assert result.remaining == () and damage.vhdx_content(path.read_bytes()) == content
    assert failed > 5


def test_holes_are_kept_as_holes(tmp_path: Path) -> None:
    """A log that zeroes a large hole makes no large backup."""
    path = tmp_path / "disk.vhdx"
    damage.dynamic_vhdx(path)
    damaged(path, damage.dirty((16 * MIB, 64 * MIB)))
    os.truncate(path, 80 * MIB)
    size = path.stat().st_size
    result = repair(path)
    assert result.backup is not None and Path(result.backup).stat().st_size < MIB
    assert index_of(result.backup)["zeros"][-1] == [16 * MIB, 64 * MIB]
    restore(result.backup, path)
    assert path.stat().st_size == size
