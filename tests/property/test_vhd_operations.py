"""Chains of images under random operations, each of which may be interrupted: every disk reads as it has to, always."""

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.vhd import compact, compare, create_child, merge, rebase, resize
from hvcore.vhd import open as open_vhd
from tests.reference.images import KINDS, MIB, Stop, Stopped, content, new, pattern

UNIT = 8192
MOST = 5 * MIB // UNIT
ranges = st.tuples(st.integers(0, MOST - 1), st.integers(1, MOST))
stops = st.none() | st.integers(1, 12)
steps = st.one_of(
    st.tuples(st.sampled_from(["write", "zeros", "trim"]), ranges, st.none()),
    st.tuples(st.just("resize"), st.tuples(st.integers(1, MOST), st.booleans()), stops),
    st.tuples(st.sampled_from(["child", "child", "compact", "merge", "rebase", "other"]), st.none(), stops),
)


class World:
    """A chain, first its bottom; `disks`: what each of its images reads as."""

    def __init__(self, folder: Path, format: str, sector_size: int) -> None:
        self.folder, self.format = folder, format
        self.made = 0
        self.paths: list[Path] = []
        self.disks: list[bytes] = []
        self.other = new(folder / f"other.{format}", 3 * MIB + UNIT, sector_size)
        with open_vhd(self.other, "r+") as image:
            image.write(MIB // 2, pattern(0, MIB, 77))
        self.begin(new(folder / f"bottom.{format}", 3 * MIB + UNIT, sector_size))

    def begin(self, path: Path) -> None:
        self.paths, self.disks = [path], [content(path)]

    def change(self, kind: str, start: int, count: int, tag: int) -> None:
        disk = self.disks[-1]
        offset = start * UNIT % len(disk)
        length = min(count * UNIT, len(disk) - offset)
        data = pattern(offset, length, tag) if kind == "write" else bytes(length)
        with open_vhd(self.paths[-1], "r+") as image:
            if kind == "trim":
                image.trim(offset, length)
            else:
                image.write(offset, data)
        self.disks[-1] = disk[:offset] + data + disk[offset + length :]

    def run(self, kind: str, argument: object, stop: Stop) -> None:
        """An operation on the top; afterwards, interrupted or not, the world knows how things are."""
        path, disk = self.paths[-1], self.disks[-1]
        if kind == "resize":
            units, force = argument  # type: ignore[misc]
            size = units * UNIT
            if self.format == "vhd" and (size < len(disk) or (len(self.paths) > 1 and len(self.disks[-2]) > len(disk))):
                return
            after = disk[:size].ljust(size, b"\0")
            with suppress(Stopped):
                if not force and disk[size:].strip(b"\0"):
                    with pytest.raises(OSError, match="there are data behind the new end"):
                        resize(path, size, progress=stop)
                    return
                resize(path, size, force=force, progress=stop)
            found = content(path)
            assert found in (disk, after) and (stop.at is not None or found == after)
            self.disks[-1] = found
        elif kind == "child":
            self.made += 1
            self.paths.append(self.folder / f"{self.made}.{self.format}")
            self.disks.append(disk)
            create_child(path, self.paths[-1])
        elif kind == "compact":
            with suppress(Stopped):
                compact(path, progress=stop)
        elif kind == "merge" and len(self.paths) > 1:
            if self.format == "vhd" and len(disk) < len(self.disks[-2]):
                return
            with suppress(Stopped):
                merge(path, progress=stop)
            if path.exists():
                # The parent may be half-written: only the child counts until the merge is completed.
                assert content(path) == disk
                merge(path)
            self.paths.pop()
            self.disks.pop()
            self.disks[-1] = disk
        elif kind in ("rebase", "other") and len(self.paths) > 1:
            target = self.other if kind == "other" else self.paths[max(0, len(self.paths) - 3)]
            with suppress(Stopped):
                rebase(path, target, progress=stop)
            if kind == "other":
                assert content(path) == disk
                rebase(path, target)
            else:
                rebase(path, target)
                del self.paths[max(0, len(self.paths) - 3) + 1 : -1], self.disks[max(0, len(self.disks) - 3) + 1 : -1]
            if kind == "other":
                self.paths, self.disks = [self.other, path], [content(self.other), disk]


@pytest.mark.parametrize(("format", "sector_size"), KINDS)
@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(steps, min_size=3, max_size=14))
def test_disks_read_as_they_must(
    format: str, sector_size: int, program: list[tuple[str, tuple[int, int] | None, int | None]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), format, sector_size)
        for tag, (kind, argument, at) in enumerate(program, 1):
            if kind in ("write", "zeros", "trim"):
                assert argument is not None
                world.change(kind, *argument, tag)
            else:
                world.run(kind, argument, Stop(at))
            assert content(world.paths[-1]) == world.disks[-1], kind
        copies = [content(path) for path in world.paths]
        assert copies == world.disks
        if len(world.paths) > 1:
            size = (len(world.disks[-1]), len(world.disks[-2]))
            assert compare(world.paths[-1], world.paths[-2]).equal == (world.disks[-1] == world.disks[-2])
            assert compare(world.paths[-1], world.paths[-2]).sizes == size
