"""The log of a VHDX: its entries as bytes and as objects, which of them count, and their replay (disk-formats.md 9).

A log may be an enemy's: an entry is believed only after all of it was checked, and it never changes the headers, the
log itself, or a place beyond what any file needs. Offsets and lengths are bytes; a position is an offset in the ring.
"""

import errno
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from hvcore.disk.crc import crc32c
from hvcore.disk.medium import ImageFile, Overlay
from hvcore.disk.vhdx.structures import HEADERS, MIB, NO_GUID, PAGE, REGION_TABLES, Header, build_header, sealed
from hvcore.errors import DiskError, ImageDamaged, ImageDirty, ImageError

# signature, checksum, length, tail, sequence number, descriptors, 0, LogGuid, FlushedFileOffset, LastFileOffset
ENTRY_LAYOUT = struct.Struct("<4sIIIQII16sQQ")
# signature, last 4 bytes of the page, its first 8 bytes or the number of zeros, offset in the file, sequence number
DESCRIPTOR_LAYOUT = struct.Struct("<4sIQQQ")
# signature, upper half of the sequence number, the rest of the page, lower half
DATA_LAYOUT = struct.Struct("<4sI4084sI")

LOGGED_FROM = REGION_TABLES[0]  # what lies before is never logged
# Twice the largest disk: what a log says must not make a file of any size.
MAX_FILE = 128 << 40
MAX_OVERLAY = 64 * MIB  # of pages that a read-only open keeps in memory
ZEROS_AT_ONCE = MIB

# What a log entry changes, in the order of writing: (offset in the file, its new bytes or a number of zeros)
Piece = tuple[int, bytes | int]


@dataclass(frozen=True)
class LogEntry:
    """A valid entry. descriptors: how many; fault: the reason why a file that holds it is refused, "": none."""

    length: int
    tail: int
    sequence: int
    descriptors: int
    log_guid: UUID
    flushed_file_offset: int
    last_file_offset: int
    fault: str = ""
    position: int = 0


def descriptor_sectors(descriptors: int) -> int:
    return -(-(ENTRY_LAYOUT.size + DESCRIPTOR_LAYOUT.size * descriptors) // PAGE)


def build_entry(
    pieces: Sequence[Piece],
    *,
    sequence: int,
    tail: int,
    log_guid: UUID,
    flushed_file_offset: int,
    last_file_offset: int,
) -> bytes:
    """An entry that makes these changes; pages have 4096 bytes, zeros a multiple of it (else ValueError)."""
    descriptors, data = bytearray(), bytearray()
    for offset, content in pieces:
        if offset % PAGE or (content % PAGE or not content if isinstance(content, int) else len(content) != PAGE):
            raise ValueError(f"a log entry changes whole pages of {PAGE} bytes, also at {offset}")
        if isinstance(content, int):
            descriptors += DESCRIPTOR_LAYOUT.pack(b"zero", 0, content, offset, sequence)
        else:
            leading, trailing = (int.from_bytes(part, "little") for part in (content[:8], content[-4:]))
            descriptors += DESCRIPTOR_LAYOUT.pack(b"desc", trailing, leading, offset, sequence)
            data += DATA_LAYOUT.pack(b"data", sequence >> 32, content[8:-4], sequence & 0xFFFFFFFF)
    area = PAGE * descriptor_sectors(len(pieces))
    head = ENTRY_LAYOUT.pack(
        b"loge",
        0,
        area + len(data),
        tail,
        sequence,
        len(pieces),
        0,
        log_guid.bytes_le,
        flushed_file_offset,
        last_file_offset,
    )
    return sealed((head + bytes(descriptors)).ljust(area, b"\0") + bytes(data))


def parse_entry(raw: bytes, header: Header) -> LogEntry | None:
    """The entry at the beginning of `raw`, which may go on behind it. None: there is no valid one (9.2)."""
    return scan_entry(lambda index: raw[PAGE * index : PAGE * index + PAGE], header)


def scan_entry(sector: Callable[[int], bytes], header: Header) -> LogEntry | None:
    """The entry whose n-th sector is sector(n); None: it is not valid (9.2).

    Each sector is looked at once and the scan stops at the first that breaks a rule, the checksum being the last one.
    No sector of a valid entry but its first can begin like an entry, so a scan never goes on past the place where
    another could begin: all scans of a log together read little more than the log, whatever an enemy nests in it.
    """
    first = sector(0)
    if len(first) != PAGE or first[:4] != b"loge":
        return None
    _, checksum, length, tail, sequence, count, _, guid, flushed, last = ENTRY_LAYOUT.unpack_from(first)
    if guid != header.log_guid.bytes_le or not sequence:
        return None
    if length % PAGE or not PAGE <= length < header.log_length or tail % PAGE or tail >= header.log_length:
        return None
    sectors = descriptor_sectors(count)
    if PAGE * sectors > length:
        return None
    crc = crc32c(first[8:], crc32c(first[:4] + bytes(4)))
    area = first[ENTRY_LAYOUT.size :]
    left, pages, fault = count, 0, ""
    for index in range(sectors):
        if index:
            area = sector(index)
            if len(area) != PAGE:
                return None
            crc = crc32c(area, crc)
        here = min(left, len(area) // DESCRIPTOR_LAYOUT.size)
        left -= here
        for signature, _, value, offset, number in DESCRIPTOR_LAYOUT.iter_unpack(area[: DESCRIPTOR_LAYOUT.size * here]):
            if signature not in (b"desc", b"zero") or number != sequence:
                return None
            page = signature == b"desc"
            pages += page
            fault = fault or judge_target(offset, PAGE if page else value, header)
    if length != PAGE * (sectors + pages):
        return None
    upper, lower = b"data" + (sequence >> 32).to_bytes(4, "little"), (sequence & 0xFFFFFFFF).to_bytes(4, "little")
    for index in range(sectors, sectors + pages):
        data = sector(index)
        if len(data) != PAGE or data[:8] != upper or data[-4:] != lower:
            return None
        crc = crc32c(data, crc)
    if crc != checksum:
        return None
    if not fault and last > MAX_FILE:
        fault = f"makes a file of {last} bytes"
    return LogEntry(length, tail, sequence, count, UUID(bytes_le=guid), flushed, last, fault)


def judge_target(offset: int, length: int, header: Header) -> str:
    """What is wrong with a change of `length` bytes at `offset` in the file; "": nothing."""
    if offset % PAGE or length % PAGE or not length:
        return f"changes {length} bytes at {offset}, not whole pages"
    if offset < LOGGED_FROM:
        return f"changes the headers, at {offset}"
    if offset + length > MAX_FILE:
        return f"changes {length} bytes at {offset}, beyond any file"
    if offset < header.log_offset + header.log_length and header.log_offset < offset + length:
        return f"changes the log itself, at {offset}"
    return ""


def entry_pieces(raw: bytes, entry: LogEntry) -> Iterator[Piece]:
    """What the valid entry changes; raw: its bytes."""
    data = PAGE * descriptor_sectors(entry.descriptors)
    stop = ENTRY_LAYOUT.size + DESCRIPTOR_LAYOUT.size * entry.descriptors
    for signature, trailing, value, offset, _ in DESCRIPTOR_LAYOUT.iter_unpack(raw[ENTRY_LAYOUT.size : stop]):
        if signature == b"zero":
            yield offset, value
        else:
            rest = raw[data + 8 : data + PAGE - 4]
            yield offset, value.to_bytes(8, "little") + rest + trailing.to_bytes(4, "little")
            data += PAGE


def read_ring(file: ImageFile, header: Header, position: int, length: int) -> bytes:
    """Bytes of the log; behind its end it goes on at its beginning."""
    position %= header.log_length
    before = min(length, header.log_length - position)
    raw = file.read(header.log_offset + position, before)
    return raw + file.read(header.log_offset, length - before) if before < length else raw


def find_sequence(file: ImageFile, header: Header) -> list[LogEntry]:
    """The active sequence (9.3), entries before its head's tail included; empty: there is none.

    ImageDamaged: a valid entry changes what no entry may change; such a file is refused, not read without the entry.
    """
    known: dict[int, LogEntry | None] = {}

    def entry_at(position: int) -> LogEntry | None:
        if position not in known:
            entry = scan_entry(lambda index: read_ring(file, header, position + PAGE * index, PAGE), header)
            if entry is not None and entry.fault:
                words = f"the log entry at {header.log_offset + position} {entry.fault}"
                raise ImageDamaged(words, structure="log entry", offset=header.log_offset + position)
            known[position] = replace(entry, position=position) if entry is not None else None
        return known[position]

    best: list[LogEntry] = []
    # Entries of runs that were no candidates: a run that begins inside of such a one ends with the same entry, whose
    # tail is outside of the shorter run as well. Going through each of them again would take a hostile log's square.
    failed: set[int] = set()
    start = 0
    while True:
        run: list[LogEntry] = []
        position, total = start, 0
        while start not in failed:
            entry = entry_at(position)
            if entry is None or (run and entry.sequence != run[-1].sequence + 1):
                break
            total += entry.length
            if total > header.log_length:
                break
            run.append(entry)
            position = (position + entry.length) % header.log_length
        places = {entry.position for entry in run}
        if run and run[-1].tail in places:
            if not best or run[-1].sequence > best[-1].sequence:
                best = run
            following = position
        else:
            failed |= places
            following = (start + PAGE) % header.log_length
        if following <= start:
            return best
        start = following


@dataclass(frozen=True)
class LogPlan:
    """What a log that is not empty asks for. entries: from the head's tail to the head; none: LogGuid is set, but
    nothing in the log is usable, and nothing of it was ever applied."""

    header: Header
    file_size: int
    entries: tuple[LogEntry, ...]

    @property
    def head(self) -> LogEntry:
        return self.entries[-1]


def read_log(file: ImageFile, header: Header, file_size: int) -> LogPlan | None:
    """header: the current one, judged (hvcore.disk.vhdx.layout.read_header). None: the log is empty."""
    if header.log_guid == NO_GUID:
        return None
    run = find_sequence(file, header)
    if not run:
        return LogPlan(header, file_size, ())
    places = [entry.position for entry in run]
    return LogPlan(header, file_size, tuple(run[places.index(run[-1].tail) :]))


def plan_pieces(file: ImageFile, plan: LogPlan) -> Iterator[Piece]:
    """All changes in the order of writing. One entry at a time is in memory."""
    for entry in plan.entries:
        raw = read_ring(file, plan.header, entry.position, entry.length)
        found = parse_entry(raw, plan.header)
        # Checked again, as these bytes are what is used: the file might have changed since the first look.
        if found is None or replace(found, position=entry.position) != entry:
            raise ImageError("the log changed while it was read")
        yield from entry_pieces(raw, entry)


def refuse_truncated(plan: LogPlan) -> None:
    """9.4 step 1; older entries may have known a longer file."""
    if plan.file_size < plan.head.flushed_file_offset:
        raise ImageDamaged(
            f"truncated: its log was written to a file of {plan.head.flushed_file_offset} bytes, the file has"
            f" {plan.file_size}",
            structure="log entry",
            offset=plan.header.log_offset + plan.head.position,
        )


def update_header(
    file: ImageFile,
    header: Header,
    *,
    file_write_guid: UUID | None = None,
    data_write_guid: UUID | None = None,
    log_guid: UUID | None = None,
) -> Header:
    """Writes the next header over the copy that is not current, durably (disk-formats.md 3), and returns it.

    Call it twice for any change, so that no copy is left that names an older log.
    """
    if header.sequence >= (1 << 64) - 1:
        raise ImageDamaged(
            "the header's sequence number cannot grow: the file cannot be written",
            structure="header",
            offset=HEADERS[header.copy],
        )
    following = replace(
        header,
        sequence=header.sequence + 1,
        copy=1 - header.copy,
        file_write_guid=header.file_write_guid if file_write_guid is None else file_write_guid,
        data_write_guid=header.data_write_guid if data_write_guid is None else data_write_guid,
        log_guid=header.log_guid if log_guid is None else log_guid,
    )
    file.write(HEADERS[following.copy], build_header(following))
    # Before anything that relies on it, and before the other copy may be touched: one of the two is always whole.
    file.flush()
    return following


def replay_into(file: ImageFile, header: Header, plan: LogPlan) -> Header:
    """Makes the log's changes in the file and empties the log, durably (9.4). Returns the current header.

    A cut at any moment leaves a file whose log can be replayed again, to the same bytes.
    """
    refuse_truncated(plan)
    header = update_header(file, header, file_write_guid=uuid.uuid4())
    header = update_header(file, header)
    size = plan.file_size
    for offset, content in plan_pieces(file, plan):
        if isinstance(content, bytes):
            file.write(offset, content)
            size = max(size, offset + PAGE)
        else:
            if offset + content > size:
                file.resize(offset + content)
            write_zeros(file, offset, min(content, size - offset))
            size = max(size, offset + content)
    if size < plan.head.last_file_offset:
        file.resize(plan.head.last_file_offset)
    # Before LogGuid goes: from then on nothing would bring a lost page back (rule 10).
    file.flush()
    header = update_header(file, header, log_guid=NO_GUID)
    return update_header(file, header)


def write_zeros(file: ImageFile, offset: int, length: int) -> None:
    """Inside the file; nothing for a length of 0 or less."""
    if length > ZEROS_AT_ONCE:
        try:
            file.punch(offset, length)  # a length of an enemy's choice must not cost its time or space
            return
        except DiskError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
    while length > 0:
        step = min(length, ZEROS_AT_ONCE)
        file.write(offset, bytes(step))
        offset += step
        length -= step


def overlay_of(file: ImageFile, plan: LogPlan) -> Overlay:
    """The changes for ImageFile.lay: what replay would make of the file, which stays as it is."""
    refuse_truncated(plan)
    return Overlay(bounded(plan_pieces(file, plan)), plan.file_size, plan.head.last_file_offset)


def bounded(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """ImageDirty once the pages that have to be kept, or the runs of zeros, are too many for the memory."""
    most = MAX_OVERLAY // PAGE
    pages: set[int] = set()
    zeros = 0
    for offset, content in pieces:
        if isinstance(content, bytes):
            pages.add(offset)
        else:
            zeros += 1
        if len(pages) > most or zeros > most:
            raise ImageDirty(
                f"the disk was not closed cleanly: its log changes more than {MAX_OVERLAY // MIB} MiB, too much to"
                " replay in memory; open it for writing or run hvcore vhd repair"
            )
        yield offset, content


def settle_log(file: ImageFile, header: Header, file_size: int, *, write: bool) -> tuple[Header, tuple[str, ...]]:
    """Replays a log that is not empty, into the file or for reading only over it, so that the rest may be read.

    Returns the header, whose log is empty now, and what is to be reported. file.size() may have grown. ImageDirty:
    the file cannot be opened this way; the message names the remedy.
    """
    plan = read_log(file, header, file_size)
    if plan is None:
        return header, ()
    unclean = "the disk was not closed cleanly"
    if not plan.entries:
        if write:
            raise ImageDirty(f"{unclean} and its log has no valid entry: run hvcore vhd repair, or open it read-only")
        note = f"{unclean} and its log has no valid entry: opened as its last complete state"
    elif write:
        return replay_into(file, header, plan), (f"{unclean}: its log was replayed",)
    else:
        file.lay(overlay_of(file, plan))
        note = f"{unclean}: its log is replayed in memory, the file stays as it is"
    return replace(header, log_guid=NO_GUID), (note,)
