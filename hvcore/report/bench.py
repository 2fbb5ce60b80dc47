"""What compare and explain have in common: an image of known content, and a VM with one disk for each path."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hvcore.disk.image import open_described, open_image
from hvcore.disk.ops import Backend
from hvcore.dispatch.load import LoadRun, Requester
from hvcore.dispatch.pattern import KnownContent, fill_pattern
from hvcore.dispatch.requesters import ChannelRequester, DiskRequester
from hvcore.dispatch.traced import run_traced, run_traced_drive
from hvcore.partition.client import Host, VirtualMachine
from hvcore.partition.config import DiskConfig
from hvcore.partition.disk import Disk
from hvcore.partition.guest import Guest
from hvcore.partition.trapped import TrappedDisk
from hvcore.report import model
from hvcore.report.hops import DRIVE_GUEST, ChannelHops, DriveHops, Hops
from hvcore.report.options import OptionError
from hvcore.report.workload import Workload
from hvcore.sizes import format_size

TEMPORARY_BYTES = 64 << 20
PATTERN_SEED = 0x6876636F7265
MAX_REQUEST = 256 << 10  # what one SRB moves (storvsp.md 3.4)
TRACE_BATCH = 500  # requests between two looks at the host's trace ring, which holds ten times as many
WORKER_STAMPS = 8192  # that the worker's trace ring holds: two for each port access
LOOKS = 50  # at a trace ring that does not hold all requests, and then shows the last ones only


@dataclass(frozen=True)
class Subject:
    """The image under measurement. pattern_seed: of its known content, None when hvcore did not make it."""

    path: str
    format: str | None
    sector_size: int | None
    described: model.Image
    pattern_seed: int | None


@contextlib.contextmanager
def subject(
    image: str | None, format: str | None, sector_size: int | None, size: int = TEMPORARY_BYTES
) -> Iterator[Subject]:
    """The image that was named, or a temporary one of `size` bytes, gone at the end."""
    if image is not None:
        disk, info = open_described(image, format=format, sector_size=sector_size)
        disk.close()
        described = model.Image(image, info.format, info.size, info.sector_size)
        yield Subject(image, format, sector_size, described, None)
        return
    with tempfile.TemporaryDirectory(prefix="hvcore-") as folder:
        path = str(Path(folder, "disk.img"))
        make_image(path, size)
        sector = sector_size or 512
        yield Subject(path, "raw", sector, model.Image(None, "raw", size, sector), PATTERN_SEED)


def make_image(path: str, size: int) -> None:
    """A raw image of `size` bytes (a multiple of 1 MiB) with the known content."""
    chunk = bytearray(1 << 20)
    with open(path, "xb") as file:
        for offset in range(0, size, len(chunk)):
            fill_pattern(chunk, offset, PATTERN_SEED)
            file.write(chunk)


def check_block(block_size: int, paths: Sequence[str]) -> None:
    if block_size > MAX_REQUEST and set(paths) - {"local"}:
        raise OptionError("--bs", f"one request moves at most {format_size(MAX_REQUEST)}")


@dataclass(frozen=True)
class Bench:
    """A running VM with this process as its child partition, and its disks by path."""

    vm: VirtualMachine
    guest: Guest
    disks: dict[str, Disk | TrappedDisk]


@contextlib.contextmanager
def bench(made: Subject, paths: Sequence[str], *, ide_mode: str, writes: bool, memory: int) -> Iterator[Bench | None]:
    """None when no path needs a VM."""
    wanted = [path for path in paths if path != "local"]
    if not wanted:
        yield None
        return
    disks = [
        DiskConfig(
            str(Path(made.path).absolute()),
            path=path,
            format=made.format,
            read_only=not writes,
            ide_mode=ide_mode,
            sector_size=made.sector_size if made.format == "raw" else None,
        )
        for path in wanted
    ]
    with Host() as host, host.create_vm("compare", memory, disks) as vm:
        vm.start()
        with vm.attach() as guest:
            yield Bench(vm, guest, dict(zip(wanted, guest.disks, strict=True)))


def open_local(made: Subject, writes: bool) -> Backend:
    """The image in this process: no VM, no VMBus."""
    sector = made.sector_size if made.format == "raw" else None
    return open_image(made.path, mode="r+" if writes else "r", format=made.format, sector_size=sector)


def requester(disk: Any) -> Requester:
    """What takes a load's requests to a guest's disk, or to one of this process."""
    if isinstance(disk, Backend):
        return DiskRequester(disk)
    if hasattr(disk, "requester"):  # a disk without a storvsp channel
        found: Requester = disk.requester()
        return found
    return ChannelRequester(disk.channel, disk.size, disk.sector_size, lun=disk.lun)


def guest_counters(disk: Any) -> dict[str, int]:
    """What the guest's end of a disk cost so far."""
    found: dict[str, int] = (disk if hasattr(disk, "counters") else disk.channel).counters()
    return found


class Content:
    """What a workload finds on a disk and leaves there, from its first run to its last, whatever path they take."""

    def __init__(self, workload: Workload, size: int, pattern_seed: int | None, verify: bool = True) -> None:
        """pattern_seed: of the disk's known content, None when nothing is known of it."""
        length = size - workload.first if workload.length is None else workload.length
        length -= length % workload.smallest
        self.workload = replace(workload, length=length)
        self._pattern_seed = None if workload.writes or not verify else pattern_seed
        self._known: KnownContent | None = None
        if workload.writes and verify:
            self._known = KnownContent(workload.first, length, workload.smallest, pattern_seed)

    def depth(self, target: Requester) -> int:
        """Requests in flight: what the workload wants, as far as the path goes."""
        return min(self.workload.queue_depth, target.depth)

    def run(self, target: Requester, buffer: Any, seed: int, series: bool = False) -> LoadRun:
        return LoadRun(
            target,
            depth=self.depth(target),
            buffer=buffer,
            pattern_seed=self._pattern_seed,
            content=self._known,
            series=series,
            arrivals=self.workload.arrivals,
            **{key: value for key, value in self.workload.parameters(seed).items() if key != "arrivals"},
        )


def traced(
    made: Subject, running: Bench, path: str, block_size: int, requests: int, seed: int, verify: bool = True
) -> Hops:
    """A pass of single reads with tracing on. verify: the image still has its known content."""
    disk = running.disks[path]
    if isinstance(disk, TrappedDisk):
        return _traced_drive(made, running, disk, block_size, requests, seed, verify)
    buffer = running.guest.alloc(block_size)
    hops = ChannelHops(path)
    running.vm.trace(True)
    try:
        for done in range(0, requests, TRACE_BATCH):
            stamps = run_traced(
                disk.channel,
                buffer,
                disk.size,
                disk.sector_size,
                block=block_size,
                requests=min(TRACE_BATCH, requests - done),
                seed=seed + done,
                pattern_seed=made.pattern_seed if verify else None,
            )
            hops.add(stamps, running.vm.trace()["stamps"], disk.channel.relid)
    finally:
        running.vm.trace(False)
    return hops


def _traced_drive(
    made: Subject, running: Bench, disk: TrappedDisk, block_size: int, requests: int, seed: int, verify: bool
) -> Hops:
    buffer = running.guest.alloc(block_size)
    hops = DriveHops()
    done, batch = 0, 1  # the first tells how many stamps one makes
    running.vm.trace(True)
    try:
        while done < requests:
            stamps = run_traced_drive(
                disk.drive.channel,
                disk.drive.number,
                disk.drive.mode,
                buffer,
                disk.size,
                block=block_size,
                requests=batch,
                seed=seed + done,
                pattern_seed=made.pattern_seed if verify else None,
            )
            hops.add(stamps, running.vm.trace()["stamps"])
            done += batch
            accesses = DRIVE_GUEST.unpack_from(stamps)[3]
            batch = max(WORKER_STAMPS // (2 * accesses + 8), requests // LOOKS, 1)
            batch = max(1, min(batch, TRACE_BATCH, requests - done))
    finally:
        running.vm.trace(False)
    return hops


def latency(summary: dict[str, float]) -> model.Latency:
    """The summary of a LatencyHistogram as the report has it."""
    whole = {key: int(summary[key]) for key in ("min", "p50", "p90", "p99", "p99_9", "max")}
    return model.Latency(**whole, mean=float(summary["mean"]))
