"""Image locks that QEMU and hvcore both keep: byte ranges locked by open file description.

QEMU gives each permission on an image a number. Who has permission n holds a shared lock on byte 100 + n of the file;
who lets nobody else have it holds one on byte 200 + n. Locks are taken first and the others' bytes tested afterwards,
so that of two openers at once at least one sees the other.
"""

import errno
import fcntl
import os
import struct

from hvcore.errors import ImageError, ImageInUse

CONSISTENT_READ, WRITE, RESIZE = 0, 1, 3
HELD, DENIED = 100, 200

# l_type, l_whence, l_start, l_len, l_pid as the kernel lays them out on 64-bit machines
FLOCK = struct.Struct("hhqqi4x")


def lock_image(fd: int, *, write: bool) -> None:
    """Locks an image for reading or for writing until fd (and its duplicates) are closed.

    Any number of readers, or one writer. ImageError: another program uses the image the other way, or the file system
    knows no locks.
    """
    held = (CONSISTENT_READ, WRITE) if write else (CONSISTENT_READ,)
    denied = (WRITE, RESIZE)
    try:
        for byte in [HELD + n for n in held] + [DENIED + n for n in denied]:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        taken = any(locked(fd, DENIED + n) for n in held) or any(locked(fd, HELD + n) for n in denied)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise ImageError(f"cannot be locked: {os.strerror(error.errno or errno.EIO).lower()}") from None
        taken = True
    if taken:
        raise in_use(write)


def give_up_writing(fd: int) -> None:
    """Turns a writer's lock into a reader's."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, HELD + WRITE, 1, 0))


def in_use(write: bool) -> ImageInUse:
    error = ImageInUse(
        "in use by another program: cannot be opened for writing" if write else "in use by a program that writes it"
    )
    error.errno = errno.EBUSY
    return error


def locked(fd: int, byte: int) -> bool:
    """Whether another open file description holds the byte."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
