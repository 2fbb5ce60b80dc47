"""Headers, region tables and metadata by themselves: which copy counts, and all faults at once for a checker."""

import struct
from dataclasses import replace
from uuid import UUID

import pytest

from hvcore.disk.vhdx import layout, structures
from hvcore.disk.vhdx.structures import MIB, Header, MetadataItem, Region
from hvcore.errors import ImageDamaged
from tests.reference import vhdx
from tests.reference.vhdx import header, metadata, region_table, standard_items

OTHER = UUID("deadbeef-0000-4000-8000-000000000005")
HEADER = Header((1 << 64) - 1, OTHER, vhdx.DATA_WRITE, vhdx.LOG, 1, 2, 5 * MIB, 3 * MIB, 1)
REGIONS = (Region(structures.BAT_REGION, 2 * MIB, MIB), Region(structures.METADATA_REGION, 3 * MIB, MIB))


def test_header_round_trip() -> None:
    assert structures.parse_header(structures.build_header(HEADER), 1) == HEADER
    assert structures.parse_header(structures.build_header(HEADER)[:-1], 1) is None
    assert structures.parse_header(header(1)[:100] + b"x" + header(1)[101:], 0) is None


@pytest.mark.parametrize(
    ("copies", "copy"),
    [
        ((header(1), header(2)), 1),
        ((header(3), header(2)), 0),
        ((header(1), bytes(4096)), 0),
        ((bytes(4096), header(1)), 1),
        ((header(5), header(5)), 0),
    ],
)
def test_current_header(copies: tuple[bytes, bytes], copy: int) -> None:
    """disk-formats.md 3: the greater number; of two identical ones the first."""
    assert structures.select_header(copies).copy == copy


@pytest.mark.parametrize("copies", [(bytes(4096), bytes(4096)), (header(5), header(5, log_guid=vhdx.LOG))])
def test_no_current_header(copies: tuple[bytes, bytes]) -> None:
    with pytest.raises(ImageDamaged, match="both headers") as caught:
        structures.select_header(copies)
    assert caught.value.offset == 64 << 10


def test_all_faults_of_a_header() -> None:
    wrong = replace(HEADER, version=1, log_length=4096, log_offset=512)
    words = [str(fault) for fault in structures.judge_header(wrong, 1024)]
    assert [word.split(" ")[0:3] for word in words] == [
        ["the", "disk", "has"],
        ["the", "log", "length"],
        ["the", "log", "offset"],
        ["truncated:", "the", "log"],
    ]
    assert list(structures.judge_header(replace(HEADER, version=1, log_version=0), 8 * MIB)) == []
    # Another version of the log is tolerable while there is none (disk-formats.md 3).
    assert list(structures.judge_header(replace(HEADER, version=1, log_guid=structures.NO_GUID), 8 * MIB)) == []


def test_region_table_round_trip() -> None:
    regions = (*REGIONS, Region(OTHER, 1 << 50, 7 * MIB, 0))
    raw = structures.build_region_table(regions)
    assert structures.parse_region_table(raw) == structures.RegionTable(3, regions)
    with pytest.raises(ValueError, match="at most 2047"):
        structures.build_region_table(REGIONS * 1024)


def test_region_table_that_counts() -> None:
    good, other, bad = region_table(), region_table((OTHER, MIB, MIB, 0)), bytes(65536)
    assert structures.select_region_table((good, good))[1:] == (0, ())
    assert structures.select_region_table((bad, good))[1:] == (1, ("region table 1 is damaged",))
    assert structures.select_region_table((good, bad))[1:] == (0, ("region table 2 is damaged",))
    assert structures.select_region_table((good, other))[1:] == (
        0,
        ("the two region tables differ; the first is used",),
    )
    with pytest.raises(ImageDamaged, match="both region tables are damaged"):
        structures.select_region_table((bad, bad))


def test_all_faults_of_a_region_table() -> None:
    raw = region_table((OTHER, 512, MIB, 3), (OTHER, MIB, 0, 0), (structures.BAT_REGION, 2 * MIB, MIB, 1), count=3000)
    table = structures.parse_region_table(raw)
    assert table is not None and (table.count, len(table.regions)) == (3000, 2047)
    table = replace(table, regions=table.regions[:3])
    faults = list(structures.judge_region_table(table, 1, 2 * MIB))
    assert [str(fault) for fault in faults] == [
        "the region table has 3000 entries, more than 2047",
        f"region {OTHER} has reserved bits set",
        f"region {OTHER} is required but unknown",
        f"region {OTHER} is not placed in whole MiB (1048576 bytes at 512)",
        f"region {OTHER} is listed twice",
        f"region {OTHER} is not placed in whole MiB (0 bytes at 1048576)",
        "truncated: the BAT region ends at 3145728, the file at 2097152",
        "the region table has no metadata region",
    ]
    second = faults[4]
    assert isinstance(second, ImageDamaged)
    assert (second.structure, second.offset) == ("region table 2", (256 << 10) + 16 + 32)


def test_metadata_round_trip() -> None:
    items = structures.pack_items(
        [
            MetadataItem(OTHER, 0, 0, 0, b"abc"),
            MetadataItem(OTHER, 1, 0, 0, b""),
            MetadataItem(vhdx.DISK, 2, 0, 0, b"d"),
        ]
    )
    assert [(item.offset, item.length) for item in items] == [(65536, 3), (0, 0), (65539, 1)]
    raw = structures.build_metadata(items)
    found = structures.parse_metadata(raw)
    assert found is not None and raw[65536:] == b"abcd"
    assert found.items == tuple(replace(item, content=None) for item in items)
    with pytest.raises(ValueError, match="has 3 bytes, its content 0"):
        structures.build_metadata(found.items)
    with pytest.raises(ValueError, match="without its content"):
        structures.pack_items(found.items)


def test_a_user_may_use_any_guid() -> None:
    item = MetadataItem(structures.DISK_SIZE, 1, 65536, 3, b"abc")
    assert not item.known and item.user and not item.required and not item.virtual_disk


def test_all_faults_of_metadata() -> None:
    wrong = [*standard_items(MIB, MIB)[:4], (OTHER, 5, b"x"), (OTHER, 13, b"y"), (structures.INCOMPLETE_FILE, 0, b"")]
    raw = bytearray(metadata(wrong))
    struct.pack_into("<I", raw, 32 + 32 * 4 + 16, 65536)  # its place is the first item's
    struct.pack_into("<I", raw, 32 + 32 * 1 + 20, 7)
    table = structures.parse_metadata(bytes(raw))
    assert table is not None
    faults = list(structures.judge_metadata(table, 3 * MIB, MIB))
    name = f"metadata item {OTHER}"
    assert [str(fault) for fault in faults] == [
        "the virtual disk size has 7 bytes, not 8",
        f"{name} is a user's and required at once",
        f"{name} is required but unknown",
        f"{name} has reserved bits set",
        f"{name} is listed twice",
        f"{name} is a user's and required at once",
        f"{name} is required but unknown",
        f"metadata item {structures.FILE_PARAMETERS} and {name} overlap",
        "the file is marked incomplete: its creation or merge did not finish",
        "the metadata has no physical sector size",
    ]
    assert isinstance(faults[0], ImageDamaged) and faults[0].offset == 3 * MIB + 32 + 32


def test_identifier() -> None:
    raw = structures.build_identifier("hvcore")
    assert len(raw) == 520 and structures.parse_identifier(raw.ljust(65536, b"\0")) == "hvcore"
    assert structures.parse_identifier(raw[:8]) == ""
    assert structures.parse_identifier(b"vhdxfile\x00\xd8") == "�"
    assert structures.parse_identifier(b"vhdxfilf") is None
    with pytest.raises(ValueError, match="more than 512"):
        structures.build_identifier("x" * 257)


def test_leave_allocated_means_nothing_in_a_child() -> None:
    """disk-formats.md 5"""
    for flags, expected in ((0, (False, False)), (1, (True, False)), (2, (False, True)), (3, (False, True))):
        items = [
            MetadataItem(guid, bits, 65536, len(content), content)
            for guid, bits, content in standard_items(MIB, MIB, flags=flags)
        ]
        found = layout.parse_parameters(items)
        assert (found.fixed, found.has_parent) == expected


def test_largest_table_is_accepted() -> None:
    """64 TiB in blocks of 1 MiB: 67,125,248 entries."""
    items = [
        MetadataItem(guid, bits, 65536, len(content), content) for guid, bits, content in standard_items(64 << 40, MIB)
    ]
    found = layout.parse_parameters(items)
    assert list(layout.judge_parameters(found, 513 * MIB, 0)) == []
    assert [str(fault) for fault in layout.judge_parameters(found, 512 * MIB, 0)] == [
        "the BAT region of 536870912 bytes is too small for 67125247 entries"
    ]
