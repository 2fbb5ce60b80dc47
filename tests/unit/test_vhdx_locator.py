"""The parent locator: round trips, and every fault that must be named (disk-formats.md 8)."""

import struct
from dataclasses import replace
from uuid import UUID

import pytest

from hvcore.disk.vhdx.locator import MAX_PAIRS, ParentLocator, parse_locator
from hvcore.errors import ImageDamaged
from tests.reference.vhdx import LINKAGE, LOCATOR, RELATIVE, locator

PARENT, OTHER = UUID(LINKAGE[1].strip("{}")), UUID("deadbeef-0000-4000-8000-000000000003")
FULL = ParentLocator(
    PARENT,
    OTHER,
    "..\\grün\\base.vhdx",
    "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\base.vhdx",
    "C:\\d\\\U0001f4be.vhdx",
    (("own_key", "own value"), ("Parent_Linkage", "keys know their case"), ("empty", "")),
)


@pytest.mark.parametrize("wanted", [FULL, ParentLocator(PARENT, absolute_win32_path="C:\\b.vhdx")])
def test_round_trip(wanted: ParentLocator) -> None:
    raw = wanted.build()
    assert parse_locator(raw) == wanted
    assert parse_locator(raw + b"excess").build() == raw


def test_linkage_in_any_case_and_order() -> None:
    found = parse_locator(locator(RELATIVE, ("parent_linkage2", f"{{{OTHER}}}"), (LINKAGE[0], LINKAGE[1].upper())))
    assert found == ParentLocator(PARENT, OTHER, RELATIVE[1])
    assert found.accepts(PARENT) and found.accepts(OTHER) and not found.accepts(UUID(int=0))
    assert not replace(found, linkage2=None).accepts(OTHER)


FAULTS = {
    "empty": (b"", "has 0 bytes, fewer than 20"),
    "type": (locator(LINKAGE, RELATIVE, kind=LOCATOR), "unknown type a8d35f2d"),
    "reserved": (locator(LINKAGE, RELATIVE, reserved=1), "reserved bits"),
    "no keys": (locator(), "has 0 keys"),
    "many keys": (locator(LINKAGE, RELATIVE, *((f"k{n}", "") for n in range(255))), "has 257 keys, not 1 to 256"),
    "count too large": (locator(LINKAGE, count=100), "is too small for 100 keys"),
    "cut": (locator(LINKAGE, RELATIVE)[:-1], "has value 1 outside of itself"),
    "key beyond": (struct.pack("<16sHHIIHH", locator()[:16], 0, 1, 0xFFFFFFFF, 0, 0xFFFF, 0), "has key 0 outside"),
    "odd length": (struct.pack("<16sHHIIHH", locator()[:16], 0, 1, 20, 20, 3, 2), "key 0 that is not UTF-16"),
    "half a surrogate": (
        struct.pack("<16sHHIIHH", locator()[:16], 0, 1, 32, 32, 2, 2) + b"\x00\xd8",
        "key 0 that is not UTF-16",
    ),
    "empty key": (locator(LINKAGE, RELATIVE, ("", "x")), "an empty key 2"),
    "key twice": (locator(LINKAGE, RELATIVE, LINKAGE), "the key 'parent_linkage' twice"),
    "NUL": (locator(LINKAGE, ("relative_path", "a\0b")), "NUL in value 1"),
    "no linkage": (locator(RELATIVE), "has no parent_linkage"),
    "no path": (locator(LINKAGE, ("own", "x")), "has no path"),
    "empty path": (locator(LINKAGE, ("relative_path", "")), "has no path"),
    "linkage without braces": (locator((LINKAGE[0], str(PARENT)), RELATIVE), "no GUID in braces"),
    "linkage of another form": (locator((LINKAGE[0], f"{{{PARENT.hex}}}"), RELATIVE), "no GUID in braces"),
    "bad linkage2": (locator(LINKAGE, RELATIVE, ("parent_linkage2", "x")), "parent_linkage2 that is no GUID"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(name: str) -> None:
    raw, words = FAULTS[name]
    with pytest.raises(ImageDamaged, match=words) as caught:
        parse_locator(raw, 12345)
    assert (caught.value.structure, caught.value.offset) == ("parent locator", 12345)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        ParentLocator(PARENT),
        ParentLocator(PARENT, relative_path=""),
        ParentLocator(PARENT, relative_path="a\0b"),
        ParentLocator(PARENT, relative_path="x" * 32768),
        ParentLocator(PARENT, relative_path="x", unknown=(("a", "1"), ("a", "2"))),
        ParentLocator(PARENT, relative_path="x", unknown=(("relative_path", "y"),)),
        ParentLocator(PARENT, relative_path="x", unknown=tuple((f"k{n}", "") for n in range(MAX_PAIRS - 1))),
    ],
)
def test_what_cannot_be_stored(wrong: ParentLocator) -> None:
    with pytest.raises(ValueError, match=r"needs a path|at most 256 keys|cannot be stored"):
        wrong.build()
