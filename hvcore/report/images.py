"""Disk images and what was done with them, as people read it: facts in two columns, then one line that sums up."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hvcore.report.facts import NONE, about, exact_size, plain, plural
from hvcore.report.table import fact_grid, facts_table

if TYPE_CHECKING:
    from hvcore.disk.image import ImageInfo
    from hvcore.vhd.check import CheckResult, Finding
    from hvcore.vhd.compact import CompactResult
    from hvcore.vhd.compare import Difference
    from hvcore.vhd.extents import Extent
    from hvcore.vhd.repair import RepairResult

HELD = ("data", "zero", "parent")
MARKS = {"damage": "bold red", "warning": "bold yellow", "note": "dim"}


def kind(format: str, type: str | None) -> str:
    """ "vhdx, dynamic"; raw images have no type."""
    return f"{format}, {type}" if type else format


def byte(offset: int) -> str:
    """A place in a file, as people read it and as hex dumps count."""
    return f"byte {offset:,} ({offset:#x})"


def info_table(facts: Mapping[str, object]) -> RenderableType:
    return facts_table(facts)


def chain_table(images: Sequence["ImageInfo"]) -> RenderableType:
    """Each image in two lines, the child first: nothing is cut on a narrow terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim")
    table.add_column()
    for depth, image in enumerate(images):
        facts = [kind(image.format, image.type), about(image.size)]
        if image.identity is not None:
            facts.append(f"id {image.identity}")
        table.add_row(str(depth), Text(image.path, style="bold"))
        table.add_row("", Text("; ".join(facts)))
    return table


def finding_rows(findings: Iterable["Finding"]) -> Iterator[tuple[Text, Text]]:
    """Where each finding is, what it is, and what can be done about it."""
    for finding in findings:
        yield Text(""), Text("")
        place = finding.structure if finding.offset is None else f"{finding.structure}, {byte(finding.offset)}"
        yield Text(finding.severity, style=MARKS[finding.severity]), Text(place, style="bold")
        yield Text(""), Text(finding.message)
        if finding.repair is not None:
            yield Text(""), Text(f"repair: {finding.repair}")
        elif finding.severity == "damage":
            yield Text(""), Text("repair: cannot mend this")


def check_table(result: "CheckResult") -> RenderableType:
    facts: list[tuple[str | Text, str | Text]] = [
        ("image", result.path),
        ("format", kind(result.format, result.type)),
        ("file size", exact_size(result.file_size)),
    ]
    if result.blocks:
        facts.append(("blocks", f"{result.allocated_blocks:,} of {result.blocks:,} allocated"))
        facts.append(("unreferenced", exact_size(result.unreferenced_bytes)))
    if result.log is not None:
        facts.append(("log", result.log))
    return fact_grid([*facts, *finding_rows(result.findings)])


def check_verdict(result: "CheckResult") -> str:
    """The one line after the findings."""
    damage = [finding for finding in result.findings if finding.severity == "damage"]
    if not damage:
        warnings = sum(finding.severity == "warning" for finding in result.findings)
        return f"{result.path}: clean" + (f", {plural(warnings, 'warning')}" if warnings else "")
    mendable = sum(finding.repair is not None for finding in damage)
    if mendable == len(damage):
        return f"{result.path}: damaged; repair can mend it without loss"
    if mendable:
        return f"{result.path}: damaged; repair can mend {mendable} of {len(damage)} findings without loss"
    return f"{result.path}: damaged; repair cannot mend it"


def repair_table(result: "RepairResult") -> RenderableType:
    facts: list[tuple[str | Text, str | Text]] = [("image", result.path), ("backup", result.backup or NONE)]
    for number, action in enumerate(result.actions):
        facts.append(("" if number else "done", action))
    return fact_grid([*facts, *finding_rows(result.remaining)])


def remains(result: "RepairResult") -> bool:
    """Whether there is damage that repair left."""
    return any(finding.severity == "damage" for finding in result.remaining)


def repair_verdict(result: "RepairResult") -> str:
    if remains(result):
        damage = sum(finding.severity == "damage" for finding in result.remaining)
        return f"{result.path}: damage remains, {plural(damage, 'finding')}"
    return f"{result.path}: " + ("repaired" if result.actions else "nothing to repair")


def compact_table(result: "CompactResult") -> RenderableType:
    return fact_grid(
        [
            ("image", result.path),
            ("before", exact_size(result.before)),
            ("after", exact_size(result.after)),
            ("freed", plural(result.freed_blocks, "block")),
            ("moved", plural(result.moved_blocks, "block")),
        ]
    )


def compare_verdict(first: str, second: str, found: "Difference") -> str:
    if found.equal:
        return f"identical: both disks hold the same {about(found.sizes[0])}"
    if found.offset is not None:
        return f"different: the first difference is at {byte(found.offset)} of the disks"
    larger, smaller = (first, second) if found.sizes[0] > found.sizes[1] else (second, first)
    return (
        f"different in size only: {larger} has {max(found.sizes):,} bytes, {smaller} {min(found.sizes):,}; "
        "what only the larger one has reads as zeros"
    )


def map_lines(extents: Iterable["Extent"], size: int, file_size: int, chain: bool) -> Iterator[str]:
    """A line for each piece, as they come: there may be millions. file_size: of the largest file of the chain."""
    wide = max(len("offset"), len(f"{size:,}"))
    in_file = max(len("in file"), len(f"{file_size:,}"))
    head = f"{'offset':>{wide}}  {'length':>{wide}}  {'state':<6}  {'in file':>{in_file}}"
    yield head + ("  depth" if chain else "")
    totals: dict[str, int] = {}
    pieces = 0
    for piece in extents:
        place = NONE if piece.file_offset is None else f"{piece.file_offset:,}"
        line = f"{piece.offset:>{wide},}  {piece.length:>{wide},}  {piece.state:<6}  {place:>{in_file}}"
        yield line + (f"  {piece.depth:>5}" if chain else "")
        totals[piece.state] = totals.get(piece.state, 0) + piece.length
        pieces += 1
    held = ", ".join(f"{about(totals[state])} {state}" for state in HELD if state in totals)
    yield f"{plural(pieces, 'extent')}: {held}"


def map_json(extents: Iterable["Extent"], path: str, size: int, chain: bool) -> Iterator[str]:
    """The lines of one JSON object, as the pieces come."""
    yield "{"
    for name, value in (("schema", "hvcore.vhd-map/1"), ("path", path), ("size", size), ("chain", chain)):
        yield f"  {json.dumps(name)}: {json.dumps(value)},"
    line = '  "extents": ['
    for piece in extents:
        yield line
        line = "    " + json.dumps(plain(piece)) + ","
    yield line.rstrip(",")
    yield "  ]\n}"
