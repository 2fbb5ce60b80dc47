"""hvcore vhd: disk images, made, looked at, put in order and changed. See docs/vhd-command.md.

Exit codes: 0 done, 1 the work failed, 2 bad usage; check: 3 damaged; compare: 1 also when the disks differ.
"""

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvcore.cli.common import DAMAGED, FAILED, Format, Json, emit, emit_all, emit_json, reported, show
from hvcore.report.options import FORMATS, SECTOR_SIZES, OptionError, size_option

if TYPE_CHECKING:
    from hvcore.vhd import ImageInfo

TYPES = ("dynamic", "fixed")
EXTENSIONS = {".vhdx": "vhdx", ".avhdx": "vhdx", ".vhd": "vhd", ".avhd": "vhd", ".raw": "raw", ".img": "raw"}

commands = typer.Typer(rich_markup_mode=None, help="Disk images: VHDX, VHD and raw files.")

Path_ = Annotated[str, typer.Argument(metavar="PATH", help="Disk image.")]
Type = Annotated[
    str,
    typer.Option(metavar="TYPE", help="dynamic: the file grows with its content; fixed: all its space is taken now."),
]
BlockSize = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Bytes that are allocated together: 1M to 256M; VHD from 4k.")
]
NoPreallocate = Annotated[
    bool, typer.Option("--no-preallocate", help="A fixed image takes its space when it is written, not now.")
]
NEW_FORMAT = (
    f"Format of the new image: {', '.join(FORMATS)}. By default what its name ends in says "
    f"({', '.join(EXTENSIONS)}), else vhdx."
)


def failing() -> AbstractContextManager[None]:
    """A ValueError of the library says that the arguments make no sense."""
    return reported(usage=ValueError)


def format_option(option: str, format: str | None) -> str | None:
    if format is not None and format not in FORMATS:
        raise OptionError(option, f"{format!r} is not one of {', '.join(FORMATS)}")
    return format


def named_format(path: str) -> str | None:
    """The format that the name of a new file stands for. Never asked of an existing one: only its content tells."""
    return EXTENSIONS.get(Path(path).suffix.lower())


def type_option(type: str) -> str:
    if type not in TYPES:
        raise OptionError("--type", f"{type!r} is not one of {', '.join(TYPES)}")
    return type


def block_size_option(text: str | None) -> int | None:
    return None if text is None else size_option("--block-size", text)


def sector_size_option(size: int | None) -> int | None:
    if size is not None and size not in SECTOR_SIZES:
        raise OptionError("--sector-size", f"{size} is not one of {', '.join(map(str, SECTOR_SIZES))}")
    return size


def show_image(name: str, info: "ImageInfo", json: bool, **more: object) -> None:
    """What an image is, as each command that makes or changes one says it."""
    from hvcore.report.facts import image_facts, plain_facts

    facts = image_facts(info)
    notes = facts.pop("notes")
    facts |= more | {"notes": notes}
    if json:
        emit_json(f"hvcore.vhd-{name}/1", facts)
    elif not sys.stdout.isatty() and (text := plain_facts(facts)) is not None:
        emit(text)
    else:
        from hvcore.report.images import info_table

        show(info_table(facts))


@commands.command("create")
def create(
    path: Annotated[str, typer.Argument(metavar="PATH", help="File to make; it must not exist.")],
    size: Annotated[
        str | None,
        typer.Argument(metavar="SIZE", help="Size of the disk: 64M, 10G; with --parent by default the parent's."),
    ] = None,
    format: Annotated[str | None, typer.Option(metavar="FORMAT", help=NEW_FORMAT)] = None,
    type: Type = "dynamic",
    block_size: BlockSize = None,
    sector_size: Annotated[
        int | None, typer.Option(metavar="BYTES", help="512 (default) or, for VHDX and raw, 4096.")
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Make a differencing disk of the parent's format, based on this image."),
    ] = None,
    no_preallocate: NoPreallocate = False,
    json: Json = False,
) -> None:
    """Make an image of zeros, or one that is based on another."""
    with failing():
        asked = format_option("--format", format) or named_format(path)
        size_bytes = None if size is None else size_option("SIZE", size)
        block_bytes, sector_bytes = block_size_option(block_size), sector_size_option(sector_size)
        type_option(type)
        from hvcore import vhd as images

        if parent is None:
            if size_bytes is None:
                raise OptionError("SIZE", "how large the disk is must be said, unless --parent does")
            info = images.create(
                path,
                size_bytes,
                asked or "vhdx",
                type,
                block_bytes,
                sector_bytes or 512,
                preallocate=not no_preallocate,
            )
        else:
            if type != "dynamic" or sector_bytes is not None or no_preallocate:
                option = "--type" if type != "dynamic" else "--sector-size" if sector_bytes else "--no-preallocate"
                raise OptionError(option, "not with --parent: a child goes by its parent")
            info = make_child(parent, path, asked, size_bytes, block_bytes)
        show_image("create", info, json)


def make_child(parent: str, path: str, asked: str | None, size: int | None, block_size: int | None) -> "ImageInfo":
    from hvcore import vhd as images

    of_parent = images.info(parent).format
    if asked not in (None, of_parent):
        raise OptionError("--format", f"a child has the format of its parent, {of_parent}, not {asked}")
    info = images.create_child(parent, path, block_size=block_size)
    if size is None or size == info.size:
        return info
    try:
        return images.resize(path, size)
    except BaseException:
        Path(path).unlink()  # ours, and not what was asked for
        raise


@commands.command("info")
def info(path: Path_, format: Format = None, json: Json = False) -> None:
    """Say what an image is: format, type, sizes, parent, notes."""
    with failing():
        format_option("--format", format)
        from hvcore import vhd as images

        found = images.chain(path, format)
        show_image("info", found[0], json, chain_length=len(found))


@commands.command("check")
def check(
    path: Path_,
    format: Format = None,
    no_chain: Annotated[
        bool, typer.Option("--no-chain", help="Do not look whether the parents are there and are the ones meant.")
    ] = False,
    json: Json = False,
) -> None:
    """Look for damage; nothing is changed. Exit code 3: there is some."""
    with failing():
        format_option("--format", format)
        from hvcore import vhd as images
        from hvcore.report.facts import plain
        from hvcore.report.images import check_table, check_verdict
        from hvcore.report.progress import terminal_progress

        with terminal_progress() as progress:
            result = images.check(path, format, chain=not no_chain, progress=progress)
        if json:
            emit_json("hvcore.vhd-check/1", plain(result) | {"clean": result.clean})
        else:
            show(check_table(result))
            emit("", check_verdict(result))
        if not result.clean:
            raise typer.Exit(DAMAGED)


@commands.command("repair")
def repair(
    path: Path_,
    format: Format = None,
    backup: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where to keep what is overwritten; by default beside the image.")
    ] = None,
    restore: Annotated[
        str | None,
        typer.Option(metavar="BACKUP", help="Do not repair: put back what BACKUP kept, an earlier repair's."),
    ] = None,
    trust_head: Annotated[
        bool,
        typer.Option(
            "--trust-head",
            help="Believe a differencing VHD without a footer at its end: the copy at its start is used.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Mend what can be mended without loss. What is overwritten is kept in a backup. Exit code 1: damage remains."""
    with failing():
        format_option("--format", format)
        if restore is not None:
            if backup is not None or trust_head or format is not None:
                raise OptionError("--restore", "goes without other options: nothing is repaired")
            put_back(restore, path, json)
            return
        from hvcore import vhd as images
        from hvcore.report.facts import plain
        from hvcore.report.images import remains, repair_table, repair_verdict
        from hvcore.report.progress import terminal_progress

        with terminal_progress() as progress:
            result = images.repair(path, format, trust_head=trust_head, backup=backup, progress=progress)
        if json:
            emit_json("hvcore.vhd-repair/1", plain(result) | {"clean": not remains(result)})
        else:
            show(repair_table(result))
            emit("", repair_verdict(result))
        if remains(result):
            raise typer.Exit(FAILED)


def put_back(backup: str, path: str, json: bool) -> None:
    from hvcore.vhd.backup import restore

    restore(backup, path)
    if json:
        emit_json("hvcore.vhd-repair/1", {"path": path, "restored": backup})
    else:
        emit(f"{path}: as it was when {backup} was made")


@commands.command("convert")
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Disk image; what its parents hold is copied too.")],
    destination: Annotated[str, typer.Argument(metavar="DESTINATION", help="File to make; it must not exist.")],
    to: Annotated[str | None, typer.Option(metavar="FORMAT", help=NEW_FORMAT)] = None,
    type: Type = "dynamic",
    block_size: BlockSize = None,
    sector_size: Annotated[
        int | None, typer.Option(metavar="BYTES", help="512 or 4096; by default that of the source.")
    ] = None,
    no_preallocate: NoPreallocate = False,
    format: Format = None,
    json: Json = False,
) -> None:
    """Copy a disk into a new image of any format."""
    with failing():
        wanted = format_option("--to", to) or named_format(destination) or "vhdx"
        format_option("--format", format)
        type_option(type)
        block_bytes, sector_bytes = block_size_option(block_size), sector_size_option(sector_size)
        from hvcore import vhd as images
        from hvcore.report.progress import terminal_progress

        with terminal_progress() as progress:
            made = images.convert(
                source,
                destination,
                wanted,
                type,
                source_format=format,
                block_size=block_bytes,
                sector_size=sector_bytes,
                preallocate=not no_preallocate,
                progress=progress,
            )
        show_image("convert", made, json)


@commands.command("resize")
def resize(
    path: Path_,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="New size of the disk: 20G, or how much larger: +1G.")],
    force: Annotated[bool, typer.Option("--force", help="Give up what the disk holds beyond a smaller size.")] = False,
    format: Format = None,
    json: Json = False,
) -> None:
    """Make a disk larger or smaller."""
    with failing():
        format_option("--format", format)
        size_bytes = size_option("SIZE", size.removeprefix("+"))
        from hvcore import vhd as images
        from hvcore.report.progress import terminal_progress

        before = images.info(path, format).size
        with terminal_progress() as progress:
            resized = images.resize(
                path,
                before + size_bytes if size.startswith("+") else size_bytes,
                format=format,
                force=force,
                progress=progress,
            )
        show_image("resize", resized, json, previous_size=before)


@commands.command("compact")
def compact(
    path: Path_,
    keep_zeros: Annotated[
        bool, typer.Option("--keep-zeros", help="Keep blocks that hold only zeros: nothing is read, less is freed.")
    ] = False,
    json: Json = False,
) -> None:
    """Make the file of an image as small as what it holds."""
    with failing():
        from hvcore import vhd as images
        from hvcore.report.facts import plain
        from hvcore.report.images import compact_table
        from hvcore.report.progress import terminal_progress

        with terminal_progress() as progress:
            result = images.compact(path, zeros=not keep_zeros, progress=progress)
        if json:
            emit_json("hvcore.vhd-compact/1", plain(result))
        else:
            show(compact_table(result))


@commands.command("chain")
def chain(path: Path_, format: Format = None, json: Json = False) -> None:
    """List an image and all that it is based on, the child first."""
    with failing():
        format_option("--format", format)
        from hvcore import vhd as images
        from hvcore.report.facts import image_facts
        from hvcore.report.images import chain_table

        found = images.chain(path, format)
        if json:
            emit_json("hvcore.vhd-chain/1", {"images": [image_facts(each) for each in found]})
        else:
            show(chain_table(found))


@commands.command("merge")
def merge(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Differencing disk; its file is deleted at the end.")],
    json: Json = False,
) -> None:
    """Put a differencing disk into its parent, and delete it."""
    with failing():
        from hvcore import vhd as images
        from hvcore.report.progress import terminal_progress

        with terminal_progress() as progress:
            parent = images.merge(path, progress=progress)
        show_image("merge", parent, json, merged=path)


@commands.command("rebase")
def rebase(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Differencing disk.")],
    parent: Annotated[str, typer.Argument(metavar="PARENT", help="The image that it is to be based on.")],
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Only change the link: the disk reads as the new parent decides.")
    ] = False,
    json: Json = False,
) -> None:
    """Base a differencing disk on another parent. It reads as before, unless --unsafe is given."""
    with failing():
        from hvcore import vhd as images
        from hvcore.report.progress import terminal_progress

        with terminal_progress() as progress:
            rebased = images.rebase(path, parent, copy=not unsafe, progress=progress)
        show_image("rebase", rebased, json)


@commands.command("map")
def map_(
    path: Path_,
    format: Format = None,
    chain: Annotated[bool, typer.Option("--chain", help="Ask the parents for what is theirs.")] = False,
    json: Json = False,
) -> None:
    """List which parts of the disk are there, and where in the file."""
    with failing():
        format_option("--format", format)
        from hvcore import vhd as images
        from hvcore.report.images import map_json, map_lines

        with images.open(path, format=format) as image:
            extents = image.extents(chain=chain)
            if json:
                emit_all(map_json(extents, path, image.size, chain))
            else:
                largest = max(each.file_size for each in (images.chain(path, format) if chain else [image.info]))
                emit_all(map_lines(extents, image.size, largest, chain))


@commands.command("compare")
def compare(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="Disk image.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="Disk image, of any format.")],
    format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Format of FIRST where its content does not tell.")
    ] = None,
    second_format: Annotated[str | None, typer.Option(metavar="FORMAT", help="The same of SECOND.")] = None,
    json: Json = False,
) -> None:
    """Say whether two images hold the same disk. Exit code 1: they do not."""
    with failing():
        format_option("--format", format)
        format_option("--second-format", second_format)
        from hvcore import vhd as images
        from hvcore.report.facts import plain
        from hvcore.report.images import compare_verdict
        from hvcore.report.progress import terminal_progress

        with terminal_progress() as progress:
            found = images.compare(first, second, first_format=format, second_format=second_format, progress=progress)
        if json:
            emit_json("hvcore.vhd-compare/1", {"first": first, "second": second} | plain(found))
        else:
            emit(compare_verdict(first, second, found))
        if not found.equal:
            raise typer.Exit(FAILED)
