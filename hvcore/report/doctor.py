"""What this machine allows, and what follows from it."""

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import resource
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvcore.linux.quota import cpu_quota, usable_cpus
from hvcore.sizes import format_size

SCHEMA = "hvcore.doctor/1"
OPEN_FILES_WANTED = 256
SYS_FUTEX = {"x86_64": 202, "aarch64": 98}
SYS_IO_URING_SETUP = 425
FUTEX_WAKE = 1


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried. needed: without it no virtual machine can be made; follows: what that means here."""

    name: str
    ok: bool
    needed: bool
    found: str
    follows: str


def _system_call(number: int, *arguments: int | None) -> int:
    """The result, or -errno."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    words = [ctypes.c_void_p(argument) for argument in arguments]
    result: int = call(ctypes.c_long(number), *words)
    return -ctypes.get_errno() if result < 0 else result


def _reason(error: int) -> str:
    return f"refused: {os.strerror(error)}"


def _memfd() -> Check:
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    found, ok = "works", True
    try:
        fd = os.memfd_create("hvcore-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            mmap.mmap(fd, mmap.PAGESIZE).close()
        finally:
            os.close(fd)
    except OSError as error:
        found, ok = _reason(error.errno or 0), False
    return Check("memfd sealing", ok, True, found, "guest memory" if ok else "no guest memory, so no virtual machine")


def _eventfd() -> Check:
    found, ok = "works", True
    try:
        os.close(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    except OSError as error:
        found, ok = _reason(error.errno or 0), False
    return Check("eventfd", ok, True, found, "doorbells to the host" if ok else "no doorbell can reach the host")


def _futex() -> Check:
    number = SYS_FUTEX.get(platform.machine())
    if number is None:
        return Check("futex", True, True, f"not tried on {platform.machine()}", "doorbells to the child")
    word = ctypes.c_uint32(0)
    result = _system_call(number, ctypes.addressof(word), FUTEX_WAKE, 1, None, None, 0)
    ok = result >= 0
    follows = "doorbells to the child" if ok else "no doorbell can reach a child partition"
    return Check("futex", ok, True, "works" if ok else _reason(-result), follows)


def _io_uring() -> Check:
    # No parameters: EFAULT when the call is there and allowed, so nothing is set up and nothing is left behind.
    result = _system_call(SYS_IO_URING_SETUP, 1, None)
    ok = result == -errno.EFAULT
    follows = "blocking files could use it" if ok else "blocking files go to a pool of threads"
    return Check("io_uring", ok, False, "allowed" if ok else _reason(-result), follows)


def _kvm() -> Check:
    path = Path("/dev/kvm")
    if not path.exists():
        found, ok = "not there", False
    else:
        ok = os.access(path, os.R_OK | os.W_OK)
        found = "may be opened" if ok else "this user may not open it"
    return Check("/dev/kvm", ok, False, found, "not needed: child partitions here are ordinary processes")


def _cpus() -> Check:
    usable, quota = usable_cpus(), cpu_quota()
    found = f"{len(os.sched_getaffinity(0))} by affinity, " + (f"quota {quota:g}" if quota is not None else "no quota")
    if usable >= 3:
        follows = "child, host and worker can run side by side"
    else:
        follows = "child, host and worker share them: waits show as context switches, compare ratios and not times"
    return Check("CPUs", usable >= 3, False, found, follows)


def _open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = soft == resource.RLIM_INFINITY or soft >= OPEN_FILES_WANTED
    follows = "enough" if ok else f"few virtual machines; raise it with ulimit -n {OPEN_FILES_WANTED}"
    return Check("open files", ok, False, "unlimited" if soft == resource.RLIM_INFINITY else f"{soft}", follows)


def _memory() -> Check:
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        available = min(available, soft)
    ok = available >= 256 << 20
    follows = "enough" if ok else "choose a smaller --memory"
    return Check("memory", ok, False, f"{format_size(available >> 20 << 20)} free", follows)


CHECKS: tuple[Callable[[], Check], ...] = (_memfd, _futex, _eventfd, _io_uring, _kvm, _cpus, _open_files, _memory)


def examine() -> list[Check]:
    """Tries everything once; takes milliseconds and leaves nothing behind."""
    return [check() for check in CHECKS]


def healthy(checks: list[Check]) -> bool:
    """Whether virtual machines can be made here."""
    return all(check.ok for check in checks if check.needed)


def to_dict(checks: list[Check]) -> dict[str, Any]:
    return {"schema": SCHEMA, "healthy": healthy(checks), "checks": [asdict(check) for check in checks]}
