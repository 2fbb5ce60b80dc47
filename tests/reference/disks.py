"""Disks written as Python classes, for tests that name them in a DiskConfig."""

import errno
from pathlib import Path


class Memory:
    """A disk in memory that can all."""

    def __init__(self, size: int, fill: int = 0) -> None:
        self.size = size
        self.data = bytearray([fill]) * size

    def read(self, offset: int, length: int) -> bytearray:
        return self.data[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        pass

    def trim(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)


class Filling(Memory):
    """Reads into a buffer, and says how much."""

    read = None  # type: ignore[assignment]

    def readinto(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = self.data[offset : offset + len(buffer)]
        return len(buffer)


class Awkward(Memory):
    """What happens depends on the sector that is asked for; see FAULTS. Sector 100 waits until the FIFO is written."""

    FAULTS = ("EIO", "short", "long", "text", "none", "zero", "exit")

    def __init__(self, size: int, fifo: str = "") -> None:
        super().__init__(size)
        self.fifo = fifo

    def read(self, offset: int, length: int) -> bytearray:
        sector = offset // 512
        if sector == 100:
            Path(self.fifo).read_bytes()
        kind = self.FAULTS[sector] if sector < len(self.FAULTS) else "fine"
        if kind == "EIO":
            raise OSError(errno.EIO, "the platter is dented")
        if kind == "zero":
            raise ZeroDivisionError("counted wrong")
        if kind == "exit":
            raise SystemExit(3)
        found = super().read(offset, length)
        wrong = {"short": found[:-1], "long": found + b"x", "text": "x" * length, "none": None}
        return wrong.get(kind, found)  # type: ignore[return-value]

    def write(self, offset: int, data: bytes) -> int | None:  # type: ignore[override]
        sector = offset // 512
        if sector < 4:
            code = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)[sector]
            raise OSError(code, "no")
        super().write(offset, data)
        return len(data) - 1 if sector == 4 else None

    def flush(self) -> None:
        raise RuntimeError("nothing lasts")


class ReadOnly:
    size = 1 << 20
    read_only = True
    sector_size = 4096

    def read(self, offset: int, length: int) -> bytes:
        return (offset // 4096).to_bytes(4, "little") * (length // 4)


class Unborn(Memory):
    def __init__(self) -> None:
        raise RuntimeError("not today")


class Sizeless:
    def read(self, offset: int, length: int) -> bytes:
        return bytes(length)


class Unclosable(Memory):
    def close(self) -> None:
        raise OSError(errno.EBUSY, "held open")
