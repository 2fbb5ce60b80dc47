"""Every rule for a VHD file, and whether this file keeps it (disk-formats.md 15)."""

from dataclasses import dataclass
from itertools import pairwise

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhd.footer import (
    COOKIE,
    DIFFERENCING,
    FIXED,
    FOOTER_BYTES,
    MAX_SIZE,
    NO_OFFSET,
    TYPES,
    Footer,
    build,
    geometry,
    parse,
)
from hvcore.disk.vhd.header import (
    ENCODINGS,
    HEADER_BYTES,
    MAX_BLOCK,
    MIN_BLOCK,
    NO_ID,
    DynamicHeader,
    decode_locator,
    parse_header,
)
from hvcore.disk.vhd.layout import MAX_LOCATOR, bitmap_bytes
from hvcore.errors import ImageDamaged, ImageError
from hvcore.progress import Progress
from hvcore.vhd.finding import Findings
from hvcore.vhd.holes import last_data
from hvcore.vhd.survey import Survey

TAIL, HEAD, TRUNCATE = "tail footer", "head footer", "truncate"
WRITE_TAIL = "it is written again from the copy at the start"
TRUST_HEAD = "with trust_head it is written again from the copy at the start"
WRITE_HEAD = "it is written again from the footer at the end"
CUT_GROWTH = "the zeros behind the footer are cut off: the disk's growth had not become valid"
ZEROS_AT_ONCE = 1 << 20


@dataclass
class VhdSurvey(Survey):
    """footer: what repair() writes; place: where the footer at the end belongs, or for a cut where the file ends."""

    footer: Footer | None = None
    place: int = 0


def survey_vhd(file: ImageFile, file_size: int, progress: Progress, trust_head: bool) -> VhdSurvey:
    """Judges all of the file. trust_head: the copy of a differencing disk's footer may be put back. DiskError: the file
    cannot be read."""
    survey = VhdSurvey()
    findings = survey.findings
    tail, tail_at, state = survey_tail(file, file_size, findings)
    if tail is not None and tail.disk_type == FIXED:
        survey.type = "fixed"
        survey_fixed(tail, tail_at, findings)
        return survey
    if tail is not None and tail.disk_type not in TYPES:
        findings.damage("tail footer", tail_at, f"disk type {tail.disk_type} is not supported")
        return survey
    head = None
    if state != "fixed":  # else sector 0 is the guest's, and decides nothing
        head = survey_head(file, file_size, tail, tail_at, survey)
    footer = tail or head
    if footer is None:
        survey_lost(file, file_size, state, survey, progress)
        return survey
    survey.type = TYPES[footer.disk_type]
    if tail is None:
        words = f"the footer at the end is {'damaged' if state == 'damaged' else 'missing'}"
        repair = WRITE_TAIL if footer.disk_type != DIFFERENCING else TRUST_HEAD
        findings.damage("tail footer", max(0, file_size - FOOTER_BYTES), words, repair)
        survey.steps.add(TAIL)
        survey.footer = footer
    limit = tail_at if tail is not None else file_size
    in_place = state in ("damaged", "zeros") and file_size % 512 == 0
    end = survey_dynamic(file, file_size, footer, limit, in_place and tail is None, survey, progress)
    if tail is None:
        # Never over anything that may be data: over what is plainly left of a footer, or else behind the file.
        survey.place = file_size - FOOTER_BYTES if in_place and end <= file_size - FOOTER_BYTES else file_size
        survey.place = -(-survey.place // 512) * 512
        if footer.disk_type == DIFFERENCING and not trust_head:
            survey.steps.discard(TAIL)
    if findings.hopeless:
        # A footer vouches for the rest: none is made for what is known to be broken.
        survey.steps.clear()
        for repair in (WRITE_TAIL, TRUST_HEAD, WRITE_HEAD):
            findings.withdraw(repair)
    return survey


# Footers


def survey_tail(file: ImageFile, file_size: int, findings: Findings) -> tuple[Footer | None, int, str]:
    """The footer at the end, where it begins, and the state of the end when there is none: "damaged", "fixed" (damaged,
    and says that it is a fixed disk's), "zeros" or "missing"."""
    for length in (FOOTER_BYTES, FOOTER_BYTES - 1):
        if file_size < length:
            continue
        at = file_size - length
        raw = file.read(at, length)
        if raw[:8] != COOKIE:
            continue
        if length < FOOTER_BYTES:
            findings.note("tail footer", at, "the footer has 511 bytes, as tools before 2004 wrote it")
        try:
            footer = parse(raw, at)
        except ImageError as error:
            fixed = raw[60:64] == FIXED.to_bytes(4, "big")
            if fixed or not isinstance(error, ImageDamaged):
                findings.damage("tail footer", at, str(error))
            return None, at, "fixed" if fixed or not isinstance(error, ImageDamaged) else "damaged"
        assert footer is not None
        judge_footer(footer, "tail footer", at, findings)
        return footer, at, ""
    zeros = file_size >= FOOTER_BYTES and not any(file.read(file_size - FOOTER_BYTES, FOOTER_BYTES))
    return None, file_size, "zeros" if zeros else "missing"


def judge_footer(footer: Footer, name: str, at: int, findings: Findings) -> None:
    if not 0 < footer.size <= MAX_SIZE or footer.size % 512:
        findings.damage(name, at, f"the disk size {footer.size} is not a multiple of 512 up to 2040 GiB")
    elif geometry(footer.size) != footer.geometry:
        words = "the geometry {}/{}/{} is not the one of its size".format(*footer.geometry)
        findings.note(name, at + 56, f"{words}: readers that go by it see another size")
    if footer.features & ~1 != 2:
        findings.warning(name, at + 8, f"the features are {footer.features:#x}, not 2")
    if footer.saved_state:
        findings.warning(name, at + 84, "the disk belongs to a machine with a saved state: its content may change")
    if any(footer.reserved):
        findings.warning(name, at + 85, "the footer has reserved bytes set")
    if (footer.disk_type == FIXED) != (footer.data_offset == NO_OFFSET) and footer.disk_type in (FIXED, *TYPES):
        words = f"the data offset {footer.data_offset:#x} does not go with the disk type {footer.disk_type}"
        if footer.disk_type == FIXED:
            findings.warning(name, at + 16, words)
        else:
            findings.damage(name, at + 16, words)


def survey_fixed(footer: Footer, at: int, findings: Findings) -> None:
    if footer.size != at:
        words = f"the footer says that the disk has {footer.size} bytes, the file holds {at}"
        findings.damage("tail footer", at, words)


def survey_head(file: ImageFile, file_size: int, tail: Footer | None, tail_at: int, survey: VhdSurvey) -> Footer | None:
    """The copy at the start, if it can stand for the footer; tail: of a disk that has a copy."""
    findings = survey.findings
    words = "the copy of the footer at the start is"
    raw = file.read(0, FOOTER_BYTES) if file_size >= FOOTER_BYTES else b""
    fault = f"{words} missing"
    try:
        head = parse(raw, 0)
    except ImageError:
        head, fault = None, f"{words} damaged"
    if tail is None:
        if head is None or head.disk_type not in TYPES:
            return None
        judge_footer(head, "head footer", 0, findings)
        return head
    repair = True
    if head is not None:
        if build(head) == raw and raw == build(tail):
            return None
        fault = f"{words} another one than that at the end"
        for field in ("disk_type", "disk_id", "data_offset"):
            if getattr(head, field) != getattr(tail, field):
                fault = f"{words} of another disk than the one at the end"
                repair = False
    findings.damage("head footer", 0, fault, WRITE_HEAD if repair else None)
    if repair:
        survey.steps.add(HEAD)
        survey.footer = tail
    return None


def survey_lost(file: ImageFile, file_size: int, state: str, survey: VhdSurvey, progress: Progress) -> None:
    """A file without any footer that could count: perhaps a fixed disk whose growth was cut (15.5)."""
    findings = survey.findings
    if state == "zeros":
        end = content_end(file, file_size, progress)
        at = end - FOOTER_BYTES
        if at >= 0:
            try:
                footer = parse(file.read(at, FOOTER_BYTES), at)
            except ImageError:
                footer = None
            if footer is not None and footer.disk_type == FIXED and footer.size == at and at <= MAX_SIZE:
                words = f"the footer lies at {at}, and nothing but zeros up to the end of the file"
                judge_footer(footer, "tail footer", at, findings)
                findings.damage("tail footer", at, words, CUT_GROWTH)
                survey.type = "fixed"
                survey.footer, survey.place = footer, end
                survey.steps.add(TRUNCATE)
                return
    if state == "damaged":
        findings.damage("tail footer", file_size - FOOTER_BYTES, "the footer is damaged, and there is no copy of it")
    elif state != "fixed":
        findings.damage("tail footer", None, "not a VHD: there is no footer at its end (truncated?)")


def content_end(file: ImageFile, file_size: int, progress: Progress) -> int:
    """Where the last sector ends that is not all zeros."""
    end = min(file_size, -(-last_data(file.fileno(), file_size) // 512) * 512)
    first = end
    while end:
        progress("looking for the footer", (first - end) / first)
        begin = max(0, (end - 1) // ZEROS_AT_ONCE * ZEROS_AT_ONCE)
        raw = file.read(begin, end - begin).rstrip(b"\0")
        if raw:
            return begin + -(-len(raw) // 512) * 512
        end = begin
    return 0


# Dynamic and differencing disks


def survey_dynamic(
    file: ImageFile,
    file_size: int,
    footer: Footer,
    limit: int,
    in_place: bool,
    survey: VhdSurvey,
    progress: Progress,
) -> int:
    """Judges all but the footers; limit: where the content must end. Returns where it does end.

    in_place: the last sector is what is left of a footer, and no content, unless something refers to it.
    """
    from hvcore.vhd.check_blocks import Blocks, judge_blocks  # not before it is needed: numpy is slow to load

    findings = survey.findings
    at = footer.data_offset
    if at % 512 or at < FOOTER_BYTES or at > limit - HEADER_BYTES:
        if at != NO_OFFSET:
            findings.damage("dynamic header", None, f"the footer places the dynamic header at {at}")
        return limit
    raw = file.read(at, HEADER_BYTES)
    try:
        header = parse_header(raw, at)
    except ImageError as error:
        findings.fault(error, "dynamic header", at)
        return limit
    if header.data_offset != NO_OFFSET:
        findings.warning("dynamic header", at + 8, f"the data offset {header.data_offset:#x} is not all ones")
    if any(header.reserved[0]) or any(header.reserved[1]):
        findings.warning("dynamic header", at, "the dynamic header has reserved bytes set")
    differencing = footer.disk_type == DIFFERENCING
    if differencing and header.parent_id == NO_ID:
        findings.damage("parent", at + 40, "a differencing disk that names no parent: its id is zero")
    parts = [
        ("the copy of the footer", 0, FOOTER_BYTES),
        ("the dynamic header", at, HEADER_BYTES),
    ]
    if differencing:
        parts += survey_locators(file, header, limit, at, findings)
    block_size, table = header.block_size, header.table_offset
    sound = True
    if not MIN_BLOCK <= block_size <= MAX_BLOCK or block_size & (block_size - 1):
        words = f"the block size {block_size} is not a power of two from 4 KiB to 256 MiB"
        findings.damage("dynamic header", at + 32, words)
        sound = False
    if not 0 < footer.size <= MAX_SIZE:
        sound = False  # a finding already
    if sound:
        survey.blocks = -(-footer.size // block_size)
        if header.entries < survey.blocks:
            words = f"the block allocation table has {header.entries} entries, the disk {survey.blocks} blocks"
            findings.damage("dynamic header", at + 28, words)
            sound = False
    table_bytes = -(-header.entries * 4 // 512) * 512
    if table % 512:
        words = f"the block allocation table's offset {table} is not a multiple of 512"
        findings.damage("dynamic header", at + 16, words)
    if table + table_bytes > limit:
        words = f"truncated: the block allocation table ends at {table + table_bytes}, the content at {limit}"
        findings.damage("BAT", table, words)
        sound = False
    elif table_bytes:
        parts.append(("the block allocation table", table, table_bytes))
    for (left, start, length), (right, following, _) in pairwise(sorted(parts, key=lambda part: part[1])):
        if start + length > following:
            findings.damage("dynamic header", at, f"{left} and {right} overlap")
    end = max(start + length for _, start, length in parts)
    if not sound:
        return limit
    blocks = Blocks(
        table_offset=table,
        blocks=survey.blocks,
        block_size=block_size,
        bitmap_bytes=bitmap_bytes(block_size),
        size=footer.size,
        differencing=differencing,
        limit=limit,
        used=parts,
    )
    space = judge_blocks(file, blocks, findings, progress)
    survey.allocated_blocks = space.allocated
    footer_bytes = file_size - limit if limit < file_size else FOOTER_BYTES if in_place else 0
    survey.unreferenced_bytes = max(0, file_size - footer_bytes - space.referenced)
    if survey.unreferenced_bytes:
        words = f"nothing refers to {survey.unreferenced_bytes} bytes of the file"
        findings.note("file", None, words)
    return max(end, space.end)


def survey_locators(
    file: ImageFile, header: DynamicHeader, limit: int, at: int, findings: Findings
) -> list[tuple[str, int, int]]:
    """The places of the parent locators that there are."""
    parts = []
    paths = 0
    for number, each in enumerate(header.locators):
        if each.code == bytes(4) or each.length == 0:
            continue
        name, place = f"parent locator {number}", at + 576 + 24 * number
        if any(each.reserved):
            findings.warning("parent locator", place, f"{name} has reserved bytes set")
        if each.length > MAX_LOCATOR:
            words = f"{name} has {each.length} bytes, more than {MAX_LOCATOR}"
            findings.damage("parent locator", place, words)
            continue
        if each.offset + each.length > limit:
            words = f"truncated: {name} ends at {each.offset + each.length}, the file's content at {limit}"
            findings.damage("parent locator", place, words)
            continue
        parts.append((name, each.offset, each.length))
        code = each.code.decode("latin-1")
        if code in ENCODINGS:
            text = decode_locator(code, file.read(each.offset, each.length))
            paths += bool(text)
            if "\N{REPLACEMENT CHARACTER}" in text:
                findings.warning("parent locator", each.offset, f"{name} is not text in its encoding")
    if not paths and not any(header.name):
        findings.damage("parent locator", at + 64, "the disk has a parent, but no path and no name of it")
    return parts
