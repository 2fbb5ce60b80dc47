"""The parent locator of a differencing VHDX: which disk it builds on and where that may be (disk-formats.md 8)."""

import re
import struct
from dataclasses import dataclass
from uuid import UUID

from hvcore.errors import ImageDamaged

LOCATOR_TYPE = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")
HEAD = struct.Struct("<16sHH")
RECORD = struct.Struct("<IIHH")
MAX_PAIRS = 256

LINKAGE, LINKAGE2 = "parent_linkage", "parent_linkage2"
PATHS = ("relative_path", "volume_path", "absolute_win32_path")
GUID_TEXT = re.compile(r"\{[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class ParentLocator:
    """linkage: the parent's DataWriteGuid. linkage2: a second one that is right as well while a merge changes it.

    Paths are as stored, with the separators of Windows; at least one is there. unknown: other keys and their values,
    which mean nothing here and are kept.
    """

    linkage: UUID
    linkage2: UUID | None = None
    relative_path: str | None = None
    volume_path: str | None = None
    absolute_win32_path: str | None = None
    unknown: tuple[tuple[str, str], ...] = ()

    def accepts(self, data_write_guid: UUID) -> bool:
        """Whether a disk with this DataWriteGuid is the parent."""
        return data_write_guid in (self.linkage, self.linkage2)

    def build(self) -> bytes:
        """The metadata item. ValueError: it would have no path, or not fit."""
        pairs = [(LINKAGE, f"{{{self.linkage}}}")]
        if self.linkage2 is not None:
            pairs.append((LINKAGE2, f"{{{self.linkage2}}}"))
        paths = [(key, value) for key in PATHS if (value := getattr(self, key))]
        if not paths:
            raise ValueError("a parent locator needs a path")
        pairs += [*paths, *self.unknown]
        keys = [key for key, _ in pairs]
        if len(pairs) > MAX_PAIRS or len(set(keys)) != len(keys) or not all(keys):
            raise ValueError(f"a parent locator has at most {MAX_PAIRS} keys, each once")
        records, texts = b"", b""
        at = HEAD.size + RECORD.size * len(pairs)
        for pair in pairs:
            key, value = (text.encode("utf-16-le") for text in pair)
            if max(len(key), len(value)) > 0xFFFF or any("\0" in text for text in pair):
                raise ValueError(f"the text of {pair[0]!r} cannot be stored: too long, or with a NUL in it")
            records += RECORD.pack(at + len(texts), at + len(texts) + len(key), len(key), len(value))
            texts += key + value
        return HEAD.pack(LOCATOR_TYPE.bytes_le, 0, len(pairs)) + records + texts


def parse_locator(raw: bytes, offset: int | None = None) -> ParentLocator:
    """raw: the whole metadata item. ImageDamaged: the fault; offset: where the item begins in the file, for that."""

    def fault(words: str) -> ImageDamaged:
        return ImageDamaged(f"the parent locator {words}", structure="parent locator", offset=offset)

    if len(raw) < HEAD.size:
        raise fault(f"has {len(raw)} bytes, fewer than {HEAD.size}")
    kind, reserved, count = HEAD.unpack_from(raw)
    if kind != LOCATOR_TYPE.bytes_le:
        raise fault(f"is of the unknown type {UUID(bytes_le=kind)}")
    if reserved:
        raise fault("has reserved bits set")
    if not 1 <= count <= MAX_PAIRS:
        raise fault(f"has {count} keys, not 1 to {MAX_PAIRS}")
    if HEAD.size + RECORD.size * count > len(raw):
        raise fault(f"of {len(raw)} bytes is too small for {count} keys")
    pairs: dict[str, str] = {}
    for entry in range(count):
        key_at, value_at, key_length, value_length = RECORD.unpack_from(raw, HEAD.size + RECORD.size * entry)
        texts = []
        for what, at, length in (("key", key_at, key_length), ("value", value_at, value_length)):
            if at + length > len(raw):
                raise fault(f"has {what} {entry} outside of itself")
            try:
                text = raw[at : at + length].decode("utf-16-le")
            except UnicodeDecodeError:
                raise fault(f"has a {what} {entry} that is not UTF-16") from None
            if "\0" in text:
                raise fault(f"has a NUL in {what} {entry}")
            texts.append(text)
        key, value = texts
        if not key:
            raise fault(f"has an empty key {entry}")
        if key in pairs:
            raise fault(f"has the key {key!r} twice")
        pairs[key] = value
    linkages = []
    for key in (LINKAGE, LINKAGE2):
        text = pairs.pop(key, "")
        if text and not GUID_TEXT.fullmatch(text):
            raise fault(f"has a {key} that is no GUID in braces")
        linkages.append(UUID(text) if text else None)
    linkage, linkage2 = linkages
    if linkage is None:
        raise fault(f"has no {LINKAGE}")
    # An empty path leads nowhere: it is as good as none.
    relative, volume, absolute = (pairs.pop(key, None) or None for key in PATHS)
    if not (relative or volume or absolute):
        raise fault("has no path")
    return ParentLocator(linkage, linkage2, relative, volume, absolute, tuple(pairs.items()))
