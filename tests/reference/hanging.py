"""A disk that does nothing durable until it is let."""

import fcntl
import os
import threading
from pathlib import Path

from hvcore.disk.file import FileDisk
from hvcore.disk.medium import ImageFile, Probe

PAGE = 4096


class Gate:
    """`disk`: its forced writes and flushes wait until open(), as its journal goes into a pipe that is full."""

    def __init__(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.write(self.writer, bytes(fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PAGE)))
        file = ImageFile(os.open(path, os.O_RDWR | os.O_CLOEXEC), probe=Probe(self.writer))
        self.disk = FileDisk(file, len(content), read_only=False)
        self.drain: threading.Thread | None = None

    def open(self) -> None:
        if self.drain is None:
            self.drain = threading.Thread(target=self._read)
            self.drain.start()

    def _read(self) -> None:
        while os.read(self.reader, 1 << 16):
            pass

    def close(self) -> None:
        self.disk.close()
        os.close(self.writer)
        if self.drain is not None:
            self.drain.join()
        os.close(self.reader)
