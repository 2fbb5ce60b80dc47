"""A disk that hangs until it is told to go on."""

import fcntl
import os
from pathlib import Path

from hvcore.disk.file import FileDisk
from hvcore.disk.medium import ImageFile, Probe

PAGE = 4096


class Gate:
    """A disk whose forced writes and flushes wait until open(): its journal goes into a pipe that is full."""

    def __init__(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        self.capacity = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PAGE)
        os.write(self.writer, bytes(self.capacity))
        file = ImageFile(os.open(path, os.O_RDWR | os.O_CLOEXEC), probe=Probe(self.writer))
        self.disk = FileDisk(file, len(content), read_only=False)

    def open(self) -> None:
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 1 << 20)
        if self.capacity:
            os.read(self.reader, self.capacity)
            self.capacity = 0

    def close(self) -> None:
        self.disk.close()
        os.close(self.reader)
        os.close(self.writer)
