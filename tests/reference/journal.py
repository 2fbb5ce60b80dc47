"""The journal of a file disk, read back, and what a power cut may leave of it."""

import struct
from typing import NamedTuple

WRITE, FLUSH, FLUSHED, PUNCH, RESIZE = 1, 2, 3, 4, 5
RECORD = struct.Struct("=IIQQ")
SECTOR = 512


class Record(NamedTuple):
    kind: int
    file: int
    offset: int
    length: int
    data: bytes


def parse(journal: bytes) -> list[Record]:
    records = []
    at = 0
    while at < len(journal):
        kind, file, offset, length = RECORD.unpack_from(journal, at)
        assert kind in (WRITE, FLUSH, FLUSHED, PUNCH, RESIZE)
        at += RECORD.size
        data = journal[at : at + length] if kind == WRITE else bytes(length)
        assert len(data) == length
        at += length if kind == WRITE else 0
        records.append(Record(kind, file, offset, length, data))
    return records


def cut(start: bytes, records: list[Record], survives: list[bool]) -> bytearray:
    """The file after a cut behind the last of `records`.

    Sectors written before the beginning of a flush that succeeded are there; of those written later, the n-th one
    that may be lost is there when survives[n % len(survives)].
    """
    durable = 0
    begun = 0
    for index, record in enumerate(records):
        if record.kind == FLUSH:
            begun = index
        elif record.kind == FLUSHED:
            durable = begun
    image = bytearray(start)
    loose = 0
    for index, record in enumerate(records):
        if record.kind not in (WRITE, PUNCH):
            continue
        at = record.offset
        while at < record.offset + record.length:
            stop = min(at - at % SECTOR + SECTOR, record.offset + record.length)
            keep = index < durable or survives[loose % len(survives)]
            loose += index >= durable
            if keep:
                image[at:stop] = record.data[at - record.offset : stop - record.offset]
            at = stop
    return image
