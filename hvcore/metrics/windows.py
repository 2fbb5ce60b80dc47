"""Windows' performance counters from hvcore's: the same set, counter and unit that Performance Monitor shows.

A counter that hvcore cannot count as Windows does is not here. docs/qos-and-counters.md has the table.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

STORAGE_DEVICE = "Hyper-V Virtual Storage Device"
IDE_CONTROLLER = "Hyper-V Virtual IDE Controller (Emulated)"
MACHINE_BUS = "Hyper-V Virtual Machine Bus"
VIRTUAL_PROCESSOR = "Hyper-V Hypervisor Virtual Processor"

SECTOR = 512
# What is now, not what was counted: may go down.
GAUGES = frozenset({"queue_length"})
REQUESTS = ("read_operations", "write_operations", "flushes", "unmaps")


class Rates:
    """What was counted between two snapshots of one block (or of one sum of blocks), `seconds` apart.

    ValueError when the snapshots are in the wrong order, not of the same block, or no time lies between them.
    """

    def __init__(self, previous: Mapping[str, int], present: Mapping[str, int], seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"the snapshots are {seconds} seconds apart")
        # What describes the block beside its counters (its number, its channel) is not counted.
        previous = {name: value for name, value in previous.items() if isinstance(value, int)}
        present = {name: value for name, value in present.items() if isinstance(value, int)}
        for name, value in present.items():
            if name not in GAUGES and value < previous.get(name, 0):
                raise ValueError(f"{name} went back from {previous[name]} to {value}: not the same block, or not later")
        self.previous, self.present, self.seconds = dict(previous), dict(present), seconds

    def delta(self, *names: str) -> int:
        return sum(self.present[name] - self.previous.get(name, 0) for name in names)

    def per_second(self, *names: str) -> float:
        return self.delta(*names) / self.seconds

    @property
    def lower_latency(self) -> float | None:
        """Mean seconds from a request's turn to its completion, of the samples; None without any."""
        samples = self.delta("latency_samples")
        return self.delta("latency_ns") / samples / 1e9 if samples else None

    @property
    def throttle_wait(self) -> float:
        """Mean seconds that a request waited for its turn: exact, over all requests."""
        requests = self.delta(*REQUESTS)
        return self.delta("throttle_wait_ns") / requests / 1e9 if requests else 0.0

    @property
    def latency(self) -> float | None:
        lower = self.lower_latency
        return None if lower is None else lower + self.throttle_wait

    def queue(self, latency: float | None) -> float | None:
        """Requests under way on average: each one was, for `latency` seconds (Little's law). None when requests were
        completed and none of them was a sample."""
        requests = self.per_second(*REQUESTS)
        if not requests:
            return 0.0
        return None if latency is None else requests * latency


@dataclass(frozen=True, slots=True)
class Disk:
    """What a disk's counters cannot tell: its limits (0 = none) and its controller's open channels."""

    max_iops: int = 0
    max_bandwidth: int = 0
    min_iops: int = 0
    min_bandwidth: int = 0
    open_channels: int | None = None


@dataclass(frozen=True, slots=True)
class Counter:
    """One of Windows' counters. source: of which of hvcore's counters it is made."""

    set_name: str
    name: str
    unit: str
    source: str
    value: Callable[[Rates, Disk], float | int | None] = field(repr=False)


def _rate(set_name: str, name: str, unit: str, *sources: str) -> Counter:
    return Counter(set_name, name, unit, " + ".join(sources), lambda rates, _: rates.per_second(*sources))


def _total(name: str, unit: str, source: str) -> Counter:
    return Counter(STORAGE_DEVICE, name, unit, source, lambda rates, _: rates.present[source])


def _limit(name: str, unit: str, limit: str) -> Counter:
    return Counter(STORAGE_DEVICE, name, unit, f"limit {limit}", lambda _, disk: getattr(disk, limit))


def _sectors(name: str, source: str) -> Counter:
    return Counter(
        IDE_CONTROLLER, name, "sectors/s", f"{source} / {SECTOR}", lambda rates, _: rates.per_second(source) / SECTOR
    )


COUNTERS: tuple[Counter, ...] = (
    _rate(STORAGE_DEVICE, "Read Bytes/sec", "bytes/s", "read_bytes"),
    _rate(STORAGE_DEVICE, "Write Bytes/sec", "bytes/s", "write_bytes"),
    _rate(STORAGE_DEVICE, "Read Operations/Sec", "operations/s", "read_operations"),
    _rate(STORAGE_DEVICE, "Write Operations/Sec", "operations/s", "write_operations"),
    _total("Read Count", "operations", "read_operations"),
    _total("Write Count", "operations", "write_operations"),
    _total("Flush Count", "operations", "flushes"),
    _total("Error Count", "requests", "errors"),
    _rate(STORAGE_DEVICE, "Throughput", "operations/s", "read_operations", "write_operations"),
    _rate(STORAGE_DEVICE, "Normalized Throughput", "8 KiB units/s", "io_units"),
    Counter(
        STORAGE_DEVICE, "Latency", "s", "Lower Latency + throttle_wait_ns / requests", lambda rates, _: rates.latency
    ),
    Counter(STORAGE_DEVICE, "Lower Latency", "s", "latency_ns / latency_samples", lambda rates, _: rates.lower_latency),
    Counter(
        STORAGE_DEVICE,
        "Queue Length",
        "requests",
        "Latency x requests/s",
        lambda rates, _: rates.queue(rates.latency),
    ),
    Counter(
        STORAGE_DEVICE,
        "Lower Queue Length",
        "requests",
        "Lower Latency x requests/s",
        lambda rates, _: rates.queue(rates.lower_latency),
    ),
    _limit("Minimum IO Rate", "8 KiB units/s", "min_iops"),
    _limit("Maximum IO Rate", "8 KiB units/s", "max_iops"),
    _limit("Maximum Bandwidth", "bytes/s", "max_bandwidth"),
    _limit("IO Quota Replenishment Rate", "8 KiB units/s", "max_iops"),
    _limit("Byte Quota Replenishment Rate", "bytes/s", "max_bandwidth"),
    Counter(
        STORAGE_DEVICE,
        "Adapter Open Channel Count",
        "channels",
        "open channels of the controller",
        lambda _, disk: disk.open_channels,
    ),
    _rate(IDE_CONTROLLER, "Read Bytes/sec", "bytes/s", "read_bytes"),
    _rate(IDE_CONTROLLER, "Write Bytes/sec", "bytes/s", "write_bytes"),
    _sectors("Read Sectors/sec", "read_bytes"),
    _sectors("Written Sectors/sec", "write_bytes"),
    _rate(MACHINE_BUS, "Interrupts Received/sec", "interrupts/s", "interrupts_received"),
    _rate(MACHINE_BUS, "Interrupts Sent/sec", "interrupts/s", "interrupts_sent"),
    _rate(VIRTUAL_PROCESSOR, "IO Intercept Messages/sec", "messages/s", "intercepts"),
)


def counters_of(set_name: str, rates: Rates, disk: Disk | None = None) -> dict[str, float | int | None]:
    """A set's counters by Windows' names. None: it cannot be told (no sample in the interval, no channels given).

    STORAGE_DEVICE is of one disk; IDE_CONTROLLER of the sum (see total) of a VM's disks that take the emulated or the
    trapped path; MACHINE_BUS and VIRTUAL_PROCESSOR of the sum of all of a VM's blocks. ValueError: no such set.
    """
    found = [counter for counter in COUNTERS if counter.set_name == set_name]
    if not found:
        raise ValueError(f"there is no counter set {set_name!r}")
    return {counter.name: counter.value(rates, disk or Disk()) for counter in found}


def total(snapshots: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several blocks' snapshots."""
    found: dict[str, int] = {}
    for snapshot in snapshots:
        for name, value in snapshot.items():
            greatest = max(found.get(name, 0), value)
            found[name] = greatest if name == "latency_max_ns" else found.get(name, 0) + value
    return found
