"""Every rule for a VHDX file, and whether this file keeps it (disk-formats.md 2 to 9).

A reader stops at the first fault; a check goes on as far as what it needs can be trusted. A log that waits for its
replay is replayed in memory first: all that lies behind the headers is judged as it will be.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hvcore.disk.medium import ImageFile
from hvcore.disk.vhdx.layout import (
    Parameters,
    bat_entries,
    chunk_ratio,
    judge_parameters,
    parse_parameters,
    read_content,
)
from hvcore.disk.vhdx.locator import parse_locator
from hvcore.disk.vhdx.log import ENTRY_LAYOUT, LogPlan, overlay_of, plan_pieces, read_log, refuse_truncated
from hvcore.disk.vhdx.structures import (
    BAT_REGION,
    DISK_ID,
    DISK_SIZE,
    FILE_PARAMETERS,
    HEADER_BYTES,
    HEADERS,
    LOGICAL_SECTOR,
    MANDATORY,
    MAX_ITEM,
    METADATA_REGION,
    METADATA_TABLE_BYTES,
    MIB,
    NO_GUID,
    PAGE,
    PARENT_LOCATOR,
    PHYSICAL_SECTOR,
    REGION_NAMES,
    REGION_TABLE_BYTES,
    REGION_TABLES,
    REQUIRED,
    Header,
    MetadataItem,
    Region,
    RegionTable,
    judge_disjoint,
    judge_header,
    judge_metadata,
    judge_region_table,
    parse_header,
    parse_identifier,
    parse_metadata,
    parse_region_table,
    sealed,
)
from hvcore.errors import ImageDirty, ImageError
from hvcore.progress import Progress
from hvcore.vhd.finding import DAMAGE, NOTE, Finding
from hvcore.vhd.survey import DROP_OFFSETS, Survey

if TYPE_CHECKING:
    from hvcore.vhd.check_bat import Table

IDENTIFIER, HEADER, REPLAY, CLEAR, ENTRIES = "identifier", "headers", "replay", "clear log", "entries"
TABLE = ("region table 1", "region table 2")
WRITE_IDENTIFIER = "the signature is written again"
WRITE_HEADER = "both headers are written again from the current one"
WRITE_TABLE = "it is written again from the other one"
REPLAY_LOG = "the log is replayed"
CLEAR_LOG = "the log is declared empty: nothing of it was applied"
# Headers that a repair may have to write, with room to spare.
HEADERS_LEFT = 1 << 20


@dataclass
class VhdxSurvey(Survey):
    """header: the current one, as it stands in the file. plan: the log to replay. pages: places of BAT pages with
    zero blocks that have an offset. replayed_size: the file's size once the log is replayed."""

    header: Header | None = None
    plan: LogPlan | None = None
    table: "Table | None" = None
    pages: list[int] = field(default_factory=list)
    replayed_size: int = 0

    @property
    def settled(self) -> bool:
        """Whether the log is empty, or is once its own repair is done."""
        return self.log == "empty" or not self.steps.isdisjoint({REPLAY, CLEAR})


def survey_vhdx(file: ImageFile, file_size: int, progress: Progress) -> VhdxSurvey:
    """Judges all of the file; an overlay may be laid over it. DiskError: it cannot be read."""
    survey = VhdxSurvey(replayed_size=file_size)
    findings = survey.findings
    if file_size < MIB:
        findings.damage("file", None, f"truncated: a VHDX has at least {MIB} bytes, this file {file_size}")
        return survey
    header = survey_headers(file, file_size, survey)
    if parse_identifier(file.read(0, 8)) is None:
        # The eight bytes are the same in every file, and a header whose checksum is right says that this is one.
        repair = WRITE_IDENTIFIER if header is not None and survey.header is not None else None
        findings.damage("file identifier", 0, "not a VHDX: the file identifier is missing", repair)
        if repair:
            survey.steps.add(IDENTIFIER)
    if header is not None and survey_log(file, file_size, header, survey):
        survey_regions(file, survey.replayed_size, header, survey, progress)
    if ENTRIES in survey.steps and findings.hopeless:
        # Their repair needs the log, so all that is known of the file's space must be right.
        survey.steps.discard(ENTRIES)
        findings.withdraw(DROP_OFFSETS)
    return survey


# Headers and log


def survey_headers(file: ImageFile, file_size: int, survey: VhdxSurvey) -> Header | None:
    """The current header if the log can be found by it."""
    findings = survey.findings
    raw = [file.read(offset, HEADER_BYTES) for offset in HEADERS]
    copies = [parse_header(each, copy) for copy, each in enumerate(raw)]
    valid = [each for each in copies if each is not None]
    if not valid:
        for copy in (0, 1):
            findings.damage(f"header {copy + 1}", HEADERS[copy], f"header {copy + 1} is damaged, like the other one")
        return None
    current = max(valid, key=lambda each: each.sequence)
    if len(valid) == 2 and valid[0].sequence == valid[1].sequence:
        if raw[0] != raw[1]:
            words = "both headers have the same sequence number but differ"
            findings.damage("headers", HEADERS[0], words)
            return None
        findings.note("headers", HEADERS[0], "both headers have the same sequence number; they are equal")
    name = f"header {current.copy + 1}"
    faults = list(judge_header(current, file_size))
    for fault in faults:
        findings.damage(name, HEADERS[current.copy], str(fault))
    repair: str | None = WRITE_HEADER
    if current.version != 1 or faults:
        repair = None
    if current.sequence >= (1 << 64) - HEADERS_LEFT:
        repair = None
        findings.warning(name, HEADERS[current.copy], "the header's sequence number cannot grow for long")
    else:
        survey.header = current
    other = copies[1 - current.copy]
    other_name, other_at = f"header {2 - current.copy}", HEADERS[1 - current.copy]
    if other is None:
        lost = survey_lost(file, raw[1 - current.copy], current) if not faults else False
        words = f"{other_name} is damaged"
        if lost:
            words += "; it may have been the newer one: it names a log that has valid entries"
        findings.damage(other_name, other_at, words, None if lost else repair)
        if lost:
            # Writing any header would end the doubt in favour of the older one.
            survey.header = repair = None
    else:
        for fault in judge_header(other, file_size):
            findings.damage(other_name, other_at, str(fault), repair)
        if other.log_guid != current.log_guid:
            words = f"{other_name}, the older one, names another log than the current one"
            findings.warning(other_name, other_at, words, repair)
    for copy, each in enumerate(raw):
        if copies[copy] is not None and each.count(0, 80) < HEADER_BYTES - 80:
            words = f"header {copy + 1} has reserved bytes set"
            findings.damage(f"header {copy + 1}", HEADERS[copy] + 80, words, repair)
    if repair is not None and any(each.repair == repair for each in findings.listed):
        survey.steps.add(HEADER)
    # An empty log is not read: its place may be wrong.
    return current if not faults or (current.version == 1 and current.log_guid == NO_GUID) else None


def survey_lost(file: ImageFile, raw: bytes, current: Header) -> bool:
    """Whether a damaged header was perhaps the current one, of a file whose log waits for its replay."""
    fields = parse_fields(raw)
    if fields is None or fields.log_guid in (NO_GUID, current.log_guid):
        return False
    try:
        plan = read_log(file, replace(current, log_guid=fields.log_guid), 0)
    except ImageError:
        return True
    return plan is not None and bool(plan.entries)


def parse_fields(raw: bytes) -> Header | None:
    """A header whatever its checksum; None: not even its signature is right."""
    return parse_header(sealed(raw), 0)


def survey_log(file: ImageFile, file_size: int, header: Header, survey: VhdxSurvey) -> bool:
    """Whether what lies behind the log can be judged; lays an overlay over the file for that."""
    findings = survey.findings
    if header.log_guid == NO_GUID:
        survey.log = "empty"
        return True
    survey.log = "to be replayed"
    writable = survey.header is not None
    try:
        plan = read_log(file, header, file_size)
        assert plan is not None
        if plan.entries:
            refuse_truncated(plan)
    except ImageError as error:
        findings.fault(error, "log", header.log_offset)
        return False
    if not plan.entries:
        survey.log = "without entries"
        traces = log_traces(file, header)
        words = "the headers name a log, but it has no valid sequence of entries"
        if traces:
            words += f"; {traces} damaged or unusable entries are in it, and how much of them was applied is unknown"
        repair = CLEAR_LOG if writable and not traces else None
        findings.damage("log", header.log_offset, words, repair)
        if repair:
            survey.steps.add(CLEAR)
        return True
    pages = zeros = 0
    for _, content in plan_pieces(file, plan):
        pages += isinstance(content, bytes)
        zeros += isinstance(content, int)
    changes = f"{pages} page{'s' if pages != 1 else ''}"
    changes += f" and {zeros} range{'s' if zeros != 1 else ''} of zeros" if zeros else ""
    entries = "1 log entry is" if len(plan.entries) == 1 else f"{len(plan.entries)} log entries are"
    words = f"the disk was not closed cleanly: {entries} to be replayed, {changes}"
    try:
        file.lay(overlay_of(file, plan))
    except ImageDirty:
        findings.note("log", header.log_offset, words)
        findings.warning("log", header.log_offset, "the log changes too much to be judged before it is replayed")
        return False
    findings.note("log", header.log_offset, words)
    survey.replayed_size = file.size()
    if writable:
        survey.plan = plan
        survey.steps.add(REPLAY)
    return True


def log_traces(file: ImageFile, header: Header) -> int:
    """Sectors of the log that begin like an entry of its GUID, valid or not."""
    found = 0
    for at in range(0, header.log_length, MIB):
        raw = file.read(header.log_offset + at, min(MIB, header.log_length - at))
        for sector in range(0, len(raw), PAGE):
            if raw[sector : sector + 4] == b"loge":
                found += ENTRY_LAYOUT.unpack_from(raw, sector)[7] == header.log_guid.bytes_le
    return found


# Regions and metadata


def survey_regions(file: ImageFile, file_size: int, header: Header, survey: VhdxSurvey, progress: Progress) -> None:
    findings = survey.findings
    raw = [file.read(offset, REGION_TABLE_BYTES) for offset in REGION_TABLES]
    tables = [parse_region_table(each) for each in raw]
    used = next((copy for copy in (0, 1) if tables[copy] is not None), None)
    if used is None:
        for copy in (0, 1):
            findings.damage(TABLE[copy], REGION_TABLES[copy], f"{TABLE[copy]} is damaged, like the other one")
        return
    table = tables[used]
    assert table is not None
    log = ("the log", header.log_offset, max(1, header.log_length))
    places = [log, *((each.name, each.offset, each.length) for each in table.regions if each.length)]
    faults = findings.faults(judge_region_table(table, used, file_size), TABLE[used], REGION_TABLES[used])
    faults |= findings.faults(judge_disjoint(places), TABLE[used], REGION_TABLES[used])
    for copy, other in enumerate(tables):
        if other is None:
            # A twin that breaks rules itself is no source.
            repair = WRITE_TABLE if survey.header is not None and survey.settled and not faults else None
            findings.damage(TABLE[copy], REGION_TABLES[copy], f"{TABLE[copy]} is damaged", repair)
            if repair:
                survey.steps.add(TABLE[copy])
        elif raw[copy][12:16] != bytes(4) or raw[copy].count(0, 16 + 32 * other.count) < max(
            0, REGION_TABLE_BYTES - 16 - 32 * other.count
        ):
            findings.damage(TABLE[copy], REGION_TABLES[copy], f"{TABLE[copy]} has reserved bytes set")
    if None not in tables and raw[0] != raw[1]:
        findings.damage(TABLE[1], REGION_TABLES[1], "the two region tables differ; the first is used")
        findings.faults(judge_region_table(tables[1] or table, 1, file_size), TABLE[1], REGION_TABLES[1])
    for region in table.regions:
        if region.guid not in REGION_NAMES and not region.required:
            words = f"{region.name} is unknown here and left alone: {region.length} bytes"
            findings.many("region", Finding(region.name, region.offset, words, NOTE))
    findings.summarise("region table")
    survey_metadata(file, file_size, table, places, survey, progress)


def usable(table: RegionTable, guid: object, file_size: int) -> Region | None:
    """The first region of that GUID, if it can be read."""
    region = next((each for each in table.regions if each.guid == guid), None)
    if region is None or region.offset % MIB or region.offset < MIB or region.length % MIB or not region.length:
        return None
    return region if region.offset + region.length <= file_size else None


def survey_metadata(
    file: ImageFile,
    file_size: int,
    table: RegionTable,
    places: list[tuple[str, int, int]],
    survey: VhdxSurvey,
    progress: Progress,
) -> None:
    from hvcore.vhd.check_bat import Table, judge_table  # not before it is needed: numpy is slow to load

    findings = survey.findings
    region = usable(table, METADATA_REGION, file_size)
    if region is None:
        return  # a finding already
    raw = file.read(region.offset, METADATA_TABLE_BYTES)
    metadata = parse_metadata(raw)
    if metadata is None:
        findings.damage("metadata table", region.offset, "the metadata table's signature is missing")
        return
    findings.faults(judge_metadata(metadata, region.offset, region.length), "metadata table", region.offset)
    rest = raw[8:10] + raw[12:32] + raw[32 + 32 * metadata.count :]
    if rest.count(0) < len(rest):
        findings.damage("metadata table", region.offset, "the metadata table has reserved bytes set")
    for entry, item in enumerate(metadata.items):
        place = region.offset + 32 + 32 * entry
        expected = REQUIRED if item.guid == PARENT_LOCATOR else MANDATORY.get(item.guid, ("", 0, item.flags))[2]
        if item.known and item.flags & 7 != expected:
            name = "parent locator" if item.guid == PARENT_LOCATOR else item.name
            words = f"the {name} has the flags {item.flags & 7}, not {expected}"
            findings.many("flags", Finding("metadata table", place, words, DAMAGE))
        elif not item.known and not item.required:
            words = f"{item.name} is unknown here and left alone: {item.length} bytes"
            findings.many("item", Finding("metadata table", place, words, NOTE))
    findings.summarise("metadata table")
    parameters = survey_items(file, region, metadata.items, survey)
    bat = usable(table, BAT_REGION, file_size)
    if parameters is None:
        return
    for fault in judge_parameters(parameters, bat.length if bat is not None else 1 << 62, region.offset):
        findings.fault(fault, "metadata items", region.offset)
    kind = "differencing" if parameters.has_parent else "fixed" if parameters.fixed else "dynamic"
    survey.type = kind
    if parameters.locator is not None:
        at = region.offset + (parameters.locator_at or 0)
        try:
            parse_locator(parameters.locator, at)
        except ImageError as error:
            findings.fault(error, "parent locator", at)
    # Sizes that are no sizes are damage already; nothing can be counted by them.
    if bat is None or not countable(parameters, bat.length):
        return
    blocks = -(-parameters.size // parameters.block_size)
    ratio = chunk_ratio(parameters.block_size, parameters.sector_size)
    survey.blocks = blocks
    survey.table = Table(
        offset=bat.offset,
        entries=bat_entries(blocks, ratio, parameters.has_parent),
        blocks=blocks,
        ratio=ratio,
        block_size=parameters.block_size,
        size=parameters.size,
        sector_size=parameters.sector_size,
        has_parent=parameters.has_parent,
        fixed=parameters.fixed,
        file_size=file_size,
        used=places,
        holes=survey.log != "to be replayed",
    )
    if file_size % MIB:
        findings.note("file", None, f"the file has {file_size} bytes, not a multiple of 1 MiB")
    space = judge_table(file, survey.table, findings, progress)
    survey.allocated_blocks = space.allocated
    survey.unreferenced_bytes = space.unreferenced
    survey.pages = space.pages
    if space.pages:
        if survey.header is not None and survey.settled:
            survey.steps.add(ENTRIES)
        else:
            findings.withdraw(DROP_OFFSETS)


def countable(found: Parameters, bat_length: int) -> bool:
    """Whether the block allocation table can be laid out by these sizes and fits its region."""
    harmless = replace(found, flags=found.flags & 2, locator=b"" if found.has_parent else None)
    return not any(judge_parameters(replace(harmless, physical_sector_size=4096), bat_length, 0))


def survey_items(
    file: ImageFile, region: Region, items: tuple[MetadataItem, ...], survey: VhdxSurvey
) -> Parameters | None:
    """What the known items say; None: one that everything else depends on cannot be read."""
    contents: dict[object, MetadataItem] = {}
    for item in items:
        if not item.known or item.guid in contents:
            continue
        length = MANDATORY[item.guid][1] if item.guid in MANDATORY else item.length
        inside = item.offset >= METADATA_TABLE_BYTES and item.offset + item.length <= region.length
        if item.length == length and item.length <= MAX_ITEM and (inside or not length):
            contents[item.guid] = read_content(file, region.offset, item)
    if not {FILE_PARAMETERS, DISK_SIZE, LOGICAL_SECTOR} <= contents.keys():
        return None
    # The other two are damage when they are missing, but nothing is laid out by them.
    for guid, content in ((DISK_ID, bytes(16)), (PHYSICAL_SECTOR, PAGE.to_bytes(4, "little"))):
        contents.setdefault(guid, MetadataItem(guid, 6, 0, len(content), content))
    return parse_parameters(list(contents.values()))
