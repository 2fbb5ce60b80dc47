"""What a repair is about to change, kept in a file of its own, and put back from it.

The file: one line that names the format and its version; one line of JSON, {"image": its name, "size": bytes of the
image, "ranges": [[offset, length], ...], "zeros": [[offset, length], ...]}; the bytes of all `ranges`, one behind the
other; the SHA-256 of all that, 32 bytes. `zeros` are ranges that hold zeros.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from hvcore.disk.image import measure, open_file, reported
from hvcore.disk.locks import lock_image
from hvcore.disk.medium import ImageFile
from hvcore.disk.vhdx.log import write_zeros
from hvcore.errors import ImageDamaged, ImageError
from hvcore.vhd.holes import data_runs
from hvcore.vhd.newfile import new_file

FIRST_LINE = b"hvcore metadata backup 1\n"
BYTES_AT_ONCE = 1 << 20
MAX_INDEX = 64 << 20
DIGEST_BYTES = 32

Ranges = list[tuple[int, int]]


def backup_path(path: str) -> str:
    """A new name beside the image."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    place = f"{path}.repair-{stamp}.backup"
    number = 1
    while os.path.lexists(place):
        number += 1
        place = f"{path}.repair-{stamp}-{number}.backup"
    return place


def joined(ranges: Iterable[tuple[int, int]], size: int) -> Ranges:
    """The ranges (offset, length) in order, without overlaps, cut off at the end of a file of `size` bytes."""
    found: Ranges = []
    for offset, length in sorted(ranges):
        end = min(offset + length, size)
        if found and offset <= sum(found[-1]):
            begin = found[-1][0]
            found[-1] = (begin, max(sum(found[-1]), end) - begin)
        elif offset < end:
            found.append((offset, end - offset))
    return found


def write_backup(place: str, name: str, file: ImageFile, size: int, ranges: Iterable[tuple[int, int]]) -> None:
    """Keeps what the ranges of the image `file`, `size` bytes long, hold now; durable under its name on return.

    ImageError: it cannot be written, or the name exists.
    """
    stored: Ranges = []
    zeros: Ranges = []
    for offset, length in joined(ranges, size):
        at = offset
        for begin, end in data_runs(file.fileno(), offset, offset + length):
            if begin > at:
                zeros.append((at, begin - at))
            stored.append((begin, end - begin))
            at = end
        if at < offset + length:
            zeros.append((at, offset + length - at))
    index = {"image": Path(name).name, "size": size, "ranges": stored, "zeros": zeros}
    line = json.dumps(index).encode() + b"\n"
    if len(line) > MAX_INDEX:
        raise ImageError("what would be changed lies in too many pieces to be kept in a backup")
    with new_file(place) as target:
        digest = hashlib.sha256()
        at = 0

        def put(data: bytes) -> None:
            nonlocal at
            target.write(at, data)
            digest.update(data)
            at += len(data)

        put(FIRST_LINE + line)
        for offset, length in pieces(stored):
            put(file.read(offset, length))
        target.write(at, digest.digest())


def pieces(ranges: Ranges) -> Iterator[tuple[int, int]]:
    for offset, length in ranges:
        for begin in range(0, length, BYTES_AT_ONCE):
            yield offset + begin, min(BYTES_AT_ONCE, length - begin)


def restore(backup: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Puts back into the image at `path` what a repair has changed; all that was written to it since is at risk.

    Durable on return; when it is interrupted, do it again. The backup is left as it is. ImageError: one of the files
    cannot be used, or the backup is damaged: nothing was changed then. ImageInUse: a program has the image open.
    """
    source, target = os.fspath(backup), os.fspath(path)
    with reported(source), open_file(source, False) as kept:
        size, stored, zeros, at = read_index(kept)
        with reported(target), open_file(target, True) as file:
            lock_image(file.fileno(), write=True)
            if measure(file.fileno(), True) < size:
                file.resize(size)
            for offset, length in zeros:
                write_zeros(file, offset, length)
            for offset, length in pieces(stored):
                file.write(offset, kept.read(at, length))
                at += length
            if file.size() > size:
                file.resize(size)
            file.flush()


def read_index(kept: ImageFile) -> tuple[int, Ranges, Ranges, int]:
    """(size of the image, stored ranges, ranges of zeros, where the bytes begin), all of the file verified."""

    def fault(words: str) -> ImageDamaged:
        return ImageDamaged(f"the backup is damaged: {words}", structure="backup")

    length = kept.size()
    head = kept.read(0, min(length, MAX_INDEX + len(FIRST_LINE)))
    if not head.startswith(FIRST_LINE):
        raise ImageError("not a backup of a repair, or one of a newer version")
    digest = hashlib.sha256()
    for offset, part in pieces([(0, max(0, length - DIGEST_BYTES))]):
        digest.update(kept.read(offset, part))
    if length < DIGEST_BYTES or digest.digest() != kept.read(length - DIGEST_BYTES, DIGEST_BYTES):
        raise fault("its checksum is wrong")
    line, separator, _ = head[len(FIRST_LINE) :].partition(b"\n")
    at = len(FIRST_LINE) + len(line) + 1
    try:
        index = json.loads(line)
        size = int(index["size"])
        stored, zeros = ([(int(a), int(b)) for a, b in index[key]] for key in ("ranges", "zeros"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise fault("its index cannot be read") from None
    ranges = [*stored, *zeros]
    if not separator or size < 0 or any(offset < 0 or part < 1 or offset + part > size for offset, part in ranges):
        raise fault("its index is no index of an image")
    if at + sum(part for _, part in stored) != length - DIGEST_BYTES:
        raise fault("its length does not agree with its index")
    return size, stored, zeros, at
