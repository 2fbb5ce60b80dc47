"""Images and what guests do to them, for tests that cut the power or break the medium at every moment.

Each is named in ALL once; the tests run over all of them.
"""

import struct
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from hvcore.disk.image import open_image
from hvcore.disk.vhdx.disk import VhdxDisk
from hvcore.vhd import create
from tests.reference import vhdx
from tests.reference.crash import Disk, Scenario, Step, fresh
from tests.reference.vhdx import MIB
from tests.reference.writer import Writer

W, T, F = "write", "trim", "flush"
FLUSH: Step = (F, 0, 0)
REOPEN: Step = ("reopen", 0, 0)
HERE: Step = ("here", 0, 0)


def flat(format: str) -> Scenario:
    sectors = 64

    def build(folder: Path) -> bytes:
        path = folder / "disk"
        create(path, sectors * 512, format=format, type="fixed")
        content = fresh(0, 0, sectors // 2) + bytes(sectors // 2 * 512)
        with path.open("r+b") as file:
            file.write(content)
        return content

    trim: tuple[Step, ...] = ((T, 8, 16),) if format == "raw" else ()
    return Scenario(
        name={"raw": "raw", "vhd": "fixed VHD"}[format],
        disk="disk",
        build=build,
        trims=format == "raw",
        steps=(
            (W, 0, 8),
            (W, 4, 1),
            FLUSH,
            (W, 4, 8),
            *trim,
            (W, 20, 3),
            FLUSH,
            FLUSH,
            (W, 62, 2),
            (W, 0, 64),
            *trim,
            (W, 9, 2),
            REOPEN,
            (W, 1, 1),
            FLUSH,
            (W, 2, 30),
        ),
    )


BLOCK = MIB // 512  # sectors
PARENT_LOCATOR = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")
VHDX_PARENT = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")


def block(number: int) -> bytes:
    return fresh(0, number * BLOCK, BLOCK)


def build_vhdx(
    path: Path, size: int, present: tuple[int, ...], *, fixed: bool = False, sector_size: int = 512
) -> bytes:
    content: dict[int, bytes | int] = {number: block(number) for number in present}
    vhdx.build(path, size, content, fixed=fixed, sector_size=sector_size)
    return b"".join(block(n) if n in present else bytes(MIB) for n in range(-(-size // MIB)))[:size]


def locator(name: str) -> bytes:
    """Of a parent that the builder made, in the same folder."""
    pairs = [("parent_linkage", f"{{{vhdx.DATA_WRITE}}}"), ("relative_path", f".\\{name}")]
    texts = [text.encode("utf-16-le") for pair in pairs for text in pair]
    places = [20 + 12 * len(pairs) + sum(map(len, texts[:n])) for n in range(len(texts))]
    head = VHDX_PARENT.bytes_le + struct.pack("<HH", 0, len(pairs))
    for n in range(0, len(texts), 2):
        head += struct.pack("<IIHH", places[n], places[n + 1], len(texts[n]), len(texts[n + 1]))
    return head + b"".join(texts)


def build_child(path: Path, size: int, parent: str) -> None:
    """An empty child of a parent in the same folder."""
    with path.open("wb") as file:
        file.write(b"vhdxfile" + "builder".encode("utf-16-le"))
        for sequence, at in enumerate(vhdx.HEADERS, 1):
            file.seek(at)
            file.write(vhdx.header(sequence))
        for at in vhdx.REGION_TABLES:
            file.seek(at)
            file.write(vhdx.region_table())
        file.seek(vhdx.METADATA_AT)
        items = vhdx.standard_items(size, MIB, flags=2)
        file.write(vhdx.metadata([*items, (PARENT_LOCATOR, 4, locator(parent))]))
        file.truncate(vhdx.PAYLOAD_AT)


def growth(sector_size: int = 512) -> Scenario:
    """Blocks appear one by one, two at once, whole, and the partial one at the end."""
    size = 6 * MIB + 16 * 512  # 7-Zip knows no odd number of sectors
    small = sector_size // 512
    return Scenario(
        name="dynamic VHDX" + (", sectors of 4096" if sector_size == 4096 else ""),
        disk="disk.vhdx",
        block=BLOCK,
        grain=small,
        build=lambda folder: build_vhdx(folder / "disk.vhdx", size, (1,), sector_size=sector_size),
        steps=(
            (W, 0, 8),
            (W, BLOCK - 8, 16),
            FLUSH,
            (W, 0, small),
            (W, 3 * BLOCK + 800, 8),
            FLUSH,
            (W, 8, small),
            (W, 6 * BLOCK, 8),
            (W, 2 * BLOCK, BLOCK),
            FLUSH,
            FLUSH,
            (W, 5 * BLOCK - 8, 16),
            (W, 3 * BLOCK + 800, 16),
            FLUSH,
            (W, 4 * BLOCK, 8),
            REOPEN,
            (W, 5 * BLOCK + 80, 8),
            FLUSH,
            (W, 5 * BLOCK + 88, 8),
        ),
    )


def trims() -> Scenario:
    """Space changes hands."""
    size = 6 * MIB
    return Scenario(
        name="dynamic VHDX with trim",
        disk="disk.vhdx",
        block=BLOCK,
        build=lambda folder: build_vhdx(folder / "disk.vhdx", size, (0, 1, 2)),
        steps=(
            (T, BLOCK, BLOCK),
            (W, 3 * BLOCK, 8),
            FLUSH,
            (W, 4 * BLOCK + 100, 4),
            (W, 1, 2),
            FLUSH,
            (T, 0, BLOCK),
            (T, 2 * BLOCK, BLOCK),
            (W, BLOCK + 5, 3),
            FLUSH,
            (W, 5 * BLOCK + 16, 8),
            (W, 2 * BLOCK + 100, 4),
            (T, 3 * BLOCK, 4),
            FLUSH,
            (T, BLOCK, BLOCK),
            (W, BLOCK, 2),
            (T, 4 * BLOCK, 2 * BLOCK),
            FLUSH,
            (W, 3, 2),
            (W, 4 * BLOCK + 2, 2),
        ),
    )


def build_chain(folder: Path) -> bytes:
    content = build_vhdx(folder / "base.vhdx", 5 * MIB, (0, 1, 2, 4))
    build_child(folder / "disk.vhdx", 5 * MIB, "base.vhdx")
    return content


def differencing() -> Scenario:
    """Blocks in parts over a parent, bitmaps, zeros that hide the parent."""
    return Scenario(
        name="differencing VHDX",
        disk="disk.vhdx",
        block=BLOCK,
        build=build_chain,
        steps=(
            (W, 10, 3),
            FLUSH,
            (W, 20, 5),
            (W, 2 * BLOCK + 7, 9),
            FLUSH,
            (W, 12, 1),
            (W, BLOCK, BLOCK),
            (T, 2 * BLOCK, BLOCK),
            FLUSH,
            (W, 2 * BLOCK + 1, 2),
            (W, 4 * BLOCK - 2, 4),
            FLUSH,
            (W, 4 * BLOCK + 9, 2),
            (T, 3 * BLOCK, BLOCK),
            (W, 11, 1),
            FLUSH,
            (T, 4 * BLOCK + 1, 4),
            (W, 30, 2),
        ),
    )


def restart() -> Scenario:
    """So many flushes that the log of 1 MiB is full once and begins anew; only that part is cut."""
    many = tuple(step for n in range(121) for step in ((W, 2 * n, 1), FLUSH))
    more = tuple(step for n in range(121, 131) for step in ((W, 2 * n, 1), FLUSH))
    return Scenario(
        name="log restart",
        disk="disk.vhdx",
        block=BLOCK,
        build=build_chain,
        steps=(*many, HERE, *more, (W, 4 * BLOCK, 8)),
    )


def fixed() -> Scenario:
    return Scenario(
        name="fixed VHDX",
        disk="disk.vhdx",
        block=BLOCK,
        trims=False,
        build=lambda folder: build_vhdx(folder / "disk.vhdx", 2 * MIB, (0, 1), fixed=True),
        steps=((W, 0, 8), FLUSH, (W, BLOCK - 4, 8), FLUSH, (W, 2, 2), REOPEN, (W, 3, 2), FLUSH, (W, 5, 5)),
    )


def build_dirty_chain(folder: Path) -> bytes:
    """A child that was never closed: several entries of its log wait for their replay."""
    content = bytearray(build_chain(folder))
    disk = Writer(folder / "disk.vhdx", "r+", parent=Writer(folder / "base.vhdx", "r"), lazy=True)
    for number, (sector, length) in enumerate(
        ((3, 2), (2 * BLOCK - 4, 8), (4 * BLOCK, 1), (5, 6), (BLOCK, BLOCK)), 900
    ):
        data = fresh(number, sector, length)
        content[sector * 512 : sector * 512 + len(data)] = data
        disk.write(sector * 512, data)
        disk.flush()
    disk.release()
    return bytes(content)


def replay() -> Scenario:
    """Opening is what is cut: it replays a log, again and again."""
    return Scenario(
        name="replay of a log",
        disk="disk.vhdx",
        block=BLOCK,
        build=build_dirty_chain,
        steps=((W, 9, 1), FLUSH, (W, 4, 1)),
    )


SMALL = 16 << 10  # block size of the VHDs; 128 of their blocks fill one sector of the table
UNIT = SMALL // 512
VHD_BLOCKS = 132
PARENT_ID, CHILD_ID = UUID(int=0xA), UUID(int=0xB)


def summed(data: bytes, at: int) -> bytes:
    """With the checksum of a VHD structure at `at`."""
    value = ~sum(data[:at] + data[at + 4 :]) & 0xFFFFFFFF
    return data[:at] + struct.pack(">I", value) + data[at + 4 :]


def build_vhd(
    path: Path, present: tuple[int, ...], parent: str = "", *, blocks: int = VHD_BLOCKS, block_size: int = SMALL
) -> bytes:
    """A dynamic VHD with these blocks (of SMALL), or a child without any (disk-formats.md 15)."""
    size = blocks * block_size
    kind, disk_id = (4, CHILD_ID) if parent else (3, PARENT_ID)
    fields = (b"conectix", 2, 1 << 16, 512, 0, b"win ", 0xA0000, b"Wi2k", size, size, 0x005A0411, kind, 0)
    footer = struct.pack(">8sIIQI4sI4sQQIII", *fields) + disk_id.bytes
    footer = summed(footer.ljust(512, b"\0"), 64)
    table_bytes = -(-4 * blocks // 512) * 512
    locator_at = 1536 + table_bytes
    head = struct.pack(">8sQQIII", b"cxsparse", (1 << 64) - 1, 1536, 1 << 16, blocks, block_size) + bytes(4)
    text = f".\\{parent}".encode("utf-16-le")
    if parent:
        head += PARENT_ID.bytes + bytes(8) + parent.encode("utf-16-be")
        head = head.ljust(576, b"\0") + struct.pack(">4sIIIQ", b"W2ru", 512, len(text), 0, locator_at)
    table = [0xFFFFFFFF] * (table_bytes // 4)
    place = 3584 + (locator_at - 1) // 4096 * 4096
    with path.open("wb") as file:
        file.write(footer + summed(head.ljust(1024, b"\0"), 36))
        for number in present:
            table[number] = place // 512
            file.seek(place)
            file.write(b"\xff" * (UNIT // 8) + bytes(512 - UNIT // 8) + fresh(0, number * UNIT, UNIT))
            place += 4096 + SMALL
        file.seek(1536)
        file.write(struct.pack(f">{len(table)}I", *table))
        if parent:
            file.write(text)
        file.seek(place)
        file.write(footer)
    return b"".join(fresh(0, n * UNIT, UNIT) if n in present else bytes(block_size) for n in range(blocks))


def vhd_growth() -> Scenario:
    """Blocks appear in both sectors of the table."""
    return Scenario(
        name="dynamic VHD",
        disk="disk.vhd",
        block=UNIT,
        build=lambda folder: build_vhd(folder / "disk.vhd", (1,)),
        steps=(
            (W, 0, 4),
            (W, UNIT - 2, 4),
            FLUSH,
            (W, 2, 1),
            (W, 128 * UNIT - 1, 2),
            FLUSH,
            (W, 3 * UNIT, UNIT),
            (W, 0, 4),
            FLUSH,
            FLUSH,
            (W, 131 * UNIT, 1),
            (W, 132 * UNIT - 1, 1),
            (T, 3 * UNIT, UNIT),
            (T, 0, 3),
            REOPEN,
            (W, 129 * UNIT + 5, 3),
            (W, UNIT + 3, 1),
            FLUSH,
            (W, 3 * UNIT + 4, 2),
            (T, UNIT, 2 * UNIT),
            FLUSH,
            (W, 9 * UNIT, 1),
        ),
    )


def build_vhd_chain(folder: Path) -> bytes:
    content = build_vhd(folder / "base.vhd", (0, 1, 2, 127, 128))
    build_vhd(folder / "disk.vhd", (), "base.vhd")
    return content


def vhd_differencing() -> Scenario:
    """Blocks in parts over a parent; bits that appear later."""
    return Scenario(
        name="differencing VHD",
        disk="disk.vhd",
        block=UNIT,
        build=build_vhd_chain,
        steps=(
            (W, 3, 2),
            FLUSH,
            (W, 8, 1),
            (W, UNIT + 1, 2),
            FLUSH,
            (W, 3, 1),
            (W, 2 * UNIT, UNIT),
            (W, UNIT + 9, 9),
            FLUSH,
            (W, 128 * UNIT - 1, 2),
            (W, 20, 4),
            REOPEN,
            (W, 131 * UNIT, 1),
            (T, UNIT + 8, UNIT),
            (T, 128 * UNIT, UNIT),
            FLUSH,
            (W, 4, 20),
            (W, 3 * UNIT + 3, 3),
        ),
    )


def build_large_chain(folder: Path) -> bytes:
    large = 4 * MIB
    content = build_vhd(folder / "base.vhd", (0, 1, 255), blocks=2 * large // SMALL)
    build_vhd(folder / "disk.vhd", (), "base.vhd", blocks=2, block_size=large)
    return content


def vhd_bitmaps() -> Scenario:
    """Blocks whose bitmap has two sectors."""
    middle, block = 4096, 8192
    return Scenario(
        name="differencing VHD, large blocks",
        disk="disk.vhd",
        block=block,
        build=build_large_chain,
        steps=(
            (W, middle - 2, 4),
            FLUSH,
            (W, middle - 6, 3),
            (W, middle + 6, 3),
            FLUSH,
            (W, block - 1, 2),
            (T, middle - 1, 4),
            (W, middle - 12, 24),
            FLUSH,
            (W, block + middle - 1, 2),
        ),
    )


def checked(scenario: Scenario, format: str) -> Scenario:
    """Opened as an image of this format, and judged by hvcore.vhd.check."""

    def open_format(path: Path, mode: str) -> Disk:
        return open_image(path, mode=mode, format=format)

    def judged(path: Path) -> str:
        result = import_module("hvcore.vhd.check").check(path, format)
        return "" if result.clean else "; ".join(map(str, result.findings))

    check: Callable[[Path], str] = judged if find_spec("hvcore.vhd.check") else scenario.check
    return replace(scenario, open=open_format, check=check)


def of_format(format: str, *scenarios: Scenario) -> tuple[Scenario, ...]:
    return tuple(replace(checked(each, format), lacks=lacking(each, format)) for each in scenarios)


def lacking(scenario: Scenario, format: str) -> str:
    """What hvcore cannot do yet, in words."""
    if format == "vhdx" and not (hasattr(VhdxDisk, "commit") and find_spec("hvcore.disk.vhdx.log")):
        return "a writer of VHDX and the replay of its log"
    if format == "vhd" and not find_spec("hvcore.disk.vhd.disk"):
        return "dynamic VHDs"
    if scenario.build in CHAINS and not find_spec("hvcore.disk.chain"):
        return "differencing disks"
    return ""


class Tool(NamedTuple):
    """Something that works on an image by its path, in place; `more`: zeros that it appends to the content."""

    name: str
    scenario: Scenario
    function: Callable[[Path], object]
    more: int = 0


def build_holes(folder: Path) -> bytes:
    """Blocks of zeros among others, none in its order."""
    content: dict[int, bytes | int] = {0: bytes(MIB), 3: block(3), 1: bytes(MIB), 2: block(2)}
    vhdx.build(folder / "disk.vhdx", 4 * MIB, content)
    return b"".join(block(n) if n in (2, 3) else bytes(MIB) for n in range(4))


def build_clean_child(folder: Path) -> bytes:
    content = build_dirty_chain(folder)
    Writer(folder / "disk.vhdx", "r+", parent=Writer(folder / "base.vhdx", "r")).close()
    return content


def build_vhd_child(folder: Path) -> bytes:
    content = bytearray(build_vhd_chain(folder))
    with open_image(folder / "disk.vhd", mode="r+", format="vhd") as disk:
        for number, (sector, length) in enumerate(((3, 2), (40, 40), (128 * UNIT, 1), (131 * UNIT, 4)), 700):
            data = fresh(number, sector, length)
            content[sector * 512 : sector * 512 + len(data)] = data
            disk.write(sector * 512, data)
        disk.flush()
    return bytes(content)


def tool(
    name: str, module: str, format: str, build: Callable[[Path], bytes], *arguments: object, more: int = 0
) -> Tool:
    """hvcore.vhd.<module>.<module>(path, *arguments)."""

    def function(path: Path) -> object:
        return getattr(import_module(f"hvcore.vhd.{module}"), module)(path, *arguments)

    scenario = Scenario(name, f"disk.{format}", build, block=BLOCK if format == "vhdx" else UNIT)
    (ready,) = of_format(format, scenario)
    if not find_spec(f"hvcore.vhd.{module}"):
        ready = replace(ready, lacks=f"hvcore.vhd.{module}")
    return Tool(name, ready, function, more)


CHAINS = (
    build_chain,
    build_dirty_chain,
    build_clean_child,
    build_vhd_chain,
    build_vhd_child,
    build_large_chain,
)
FLAT = (checked(flat("raw"), "raw"), checked(flat("vhd"), "vhd"))
REPLAYS = of_format("vhdx", replay())
VHDX = of_format("vhdx", growth(), growth(4096), trims(), differencing(), restart(), replay(), fixed())
VHD = of_format("vhd", vhd_growth(), vhd_differencing(), vhd_bitmaps())
ALL = (*FLAT, *VHDX, *VHD)
TOOLS = (
    *(Tool("opening after a cut", each, lambda path: open_image(path, mode="r+").close()) for each in REPLAYS),
    tool("compact VHDX", "compact", "vhdx", build_holes),
    tool("merge VHDX", "merge", "vhdx", build_clean_child),
    tool("merge VHD", "merge", "vhd", build_vhd_child),
    tool("grow VHDX", "resize", "vhdx", build_holes, 7 * MIB, more=3 * MIB),
    tool("grow differencing VHDX", "resize", "vhdx", build_clean_child, 7 * MIB, more=2 * MIB),
)
