"""The register traces of ide.md section 9 as intercepted port accesses, answered by a real worker process."""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hvcore.disk.file import FileDisk
from hvcore.disk.medium import ImageFile
from tests.reference.ide_disk import PatternDisk
from tests.reference.ide_traces import TRACES, Player, options
from tests.reference.trapped import GUEST_MEDIA, Bench, Ports

FLUSH = 3
HEADINGS = [heading for heading in TRACES if "short_table" not in heading]  # a worker's controller has no such switch


class SparseDisk:
    """A file with PatternDisk's content where the traces look, as PatternDisk shows it."""

    def __init__(self, path: Path, sectors: int) -> None:
        self.path = path
        self.pattern = PatternDisk(sectors)
        self.looked_at = [n for n in (*range(0x60), 0x1FFFE, 0x1FFFF, 0x10000003, 0x103FFFFF) if n < sectors]
        with path.open("wb") as file:
            file.truncate(sectors * 512)
        self.restore()

    def restore(self) -> None:
        with self.path.open("r+b") as file:
            for lba in self.looked_at:
                file.seek(lba * 512)
                file.write(self.pattern.sector(lba))

    def sector(self, lba: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(lba * 512)
            return file.read(512)

    @property
    def written(self) -> list[int]:
        return [lba for lba in self.looked_at if self.sector(lba) != self.pattern.sector(lba)]


Benches = dict[tuple[str, bool], tuple[Bench, SparseDisk]]


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Benches]:
    """One worker for each kind of disk that the traces want."""
    folder = tmp_path_factory.mktemp("traces")
    made: Benches = {}
    with ExitStack() as stack:
        for kind in {(options(heading)["disk"], "trim" in options(heading)) for heading in HEADINGS}:
            sectors, trim = kind
            sparse = SparseDisk(folder / f"{sectors}-{trim}", int(sectors, 16))
            image = ImageFile(os.open(sparse.path, os.O_RDWR | os.O_CLOEXEC))
            disk = stack.enter_context(FileDisk(image, int(sectors, 16) * 512, read_only=False, can_trim=True))
            made[kind] = stack.enter_context(Bench([disk], trim=trim)), sparse
        yield made


class InterceptedPlayer(Player):
    def __init__(self, heading: str, ports: Ports, disk: SparseDisk) -> None:
        super().__init__(heading, ports, disk, ports.memory)
        self.ports = ports

    def step(self, step: str) -> None:
        if step.startswith("flushed"):
            with memoryview(self.ports.bench.shared) as view:
                assert struct.unpack_from("<I", view, GUEST_MEDIA + 4) == (FLUSH,)
        else:
            super().step(step)


@pytest.mark.parametrize("heading", HEADINGS)
def test_trace(heading: str, benches: Benches) -> None:
    chosen = options(heading)
    bench, disk = benches[chosen["disk"], "trim" in chosen]
    disk.restore()
    with bench.guest() as ports:
        InterceptedPlayer(heading, ports, disk).play()
