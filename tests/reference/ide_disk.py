"""The disk of the IDE register traces: sector n is n as 8 bytes, then 504 bytes of (n & FF) xor A5."""

import errno


class PatternDisk:
    """A sparse disk of 512-byte sectors that starts with the pattern; sectors in `bad` cannot be read or written."""

    sector_size = 512

    def __init__(self, sectors: int = 0x20000, *, read_only: bool = False, bad: frozenset[int] = frozenset()) -> None:
        self.size = sectors * 512
        self.read_only = read_only
        self.bad = bad
        self.written: dict[int, bytes] = {}
        self.flushes = 0
        self.flush_fails = False
        self.trimmed: list[tuple[int, int]] = []

    def sector(self, lba: int) -> bytes:
        return self.written.get(lba, lba.to_bytes(8, "little") + bytes([lba & 0xFF ^ 0xA5]) * 504)

    def check(self, offset: int, length: int) -> range:
        assert offset % 512 == 0 and length % 512 == 0 and length > 0
        assert offset + length <= self.size, "the controller checks the range before it asks"
        sectors = range(offset // 512, (offset + length) // 512)
        if self.bad.intersection(sectors):
            raise OSError(errno.EIO, "bad sector")
        return sectors

    def read(self, offset: int, length: int) -> bytes:
        return b"".join(self.sector(lba) for lba in self.check(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        assert not self.read_only
        for i, lba in enumerate(self.check(offset, len(data))):
            self.written[lba] = data[512 * i : 512 * i + 512]

    def flush(self) -> None:
        if self.flush_fails:
            raise OSError(errno.EIO, "cannot flush")
        self.flushes += 1

    def trim(self, offset: int, length: int) -> None:
        for lba in self.check(offset, length):
            self.written[lba] = bytes(512)
        self.trimmed.append((offset // 512, length // 512))
