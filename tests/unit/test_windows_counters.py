import doctest
import re
from pathlib import Path

import pytest

from hvcore.metrics.counters import NAMES
from hvcore.metrics.windows import (
    COUNTERS,
    IDE_CONTROLLER,
    MACHINE_BUS,
    STORAGE_DEVICE,
    VIRTUAL_PROCESSOR,
    Disk,
    Rates,
    counters_of,
    total,
)

NONE = dict.fromkeys(NAMES, 0)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "qos-and-counters.md"


def rates(seconds: float = 2.0, previous: dict[str, int] | None = None, **present: int) -> Rates:
    return Rates(NONE | (previous or {}), NONE | (previous or {}) | present, seconds)


def test_storage_device() -> None:
    found = counters_of(
        STORAGE_DEVICE,
        rates(
            previous={"read_operations": 100, "read_bytes": 1000, "errors": 3, "flushes": 7},
            read_operations=300, read_bytes=1000 + 200 * 4096, write_operations=100, write_bytes=100 * 65536,
            io_units=1000, flushes=8, unmaps=99, errors=4, queue_length=17,
            latency_samples=4, latency_ns=4_000_000, throttled=40, throttle_wait_ns=800_000_000,
        ),
        Disk(max_iops=500, max_bandwidth=1 << 20, min_iops=50, min_bandwidth=9, open_channels=3),
    )  # fmt: skip
    assert found == {
        "Read Bytes/sec": 100 * 4096,
        "Write Bytes/sec": 50 * 65536,
        "Read Operations/Sec": 100,
        "Write Operations/Sec": 50,
        "Read Count": 300,
        "Write Count": 100,
        "Flush Count": 8,
        "Error Count": 4,
        "Throughput": 150,
        "Normalized Throughput": 500,
        "Latency": pytest.approx(0.003),  # 1 ms, and 800 ms of waiting over 400 requests
        "Lower Latency": pytest.approx(0.001),
        "Queue Length": pytest.approx(0.6),
        "Lower Queue Length": pytest.approx(0.2),
        "Minimum IO Rate": 50,
        "Maximum IO Rate": 500,
        "Maximum Bandwidth": 1 << 20,
        "IO Quota Replenishment Rate": 500,
        "Byte Quota Replenishment Rate": 1 << 20,
        "Adapter Open Channel Count": 3,
    }


def test_without_a_sample_no_latency() -> None:
    found = counters_of(STORAGE_DEVICE, rates(read_operations=5))
    assert [found[name] for name in ("Latency", "Lower Latency", "Queue Length", "Adapter Open Channel Count")] == [
        None
    ] * 4
    assert found["Read Operations/Sec"] == 2.5


def test_idle() -> None:
    found = counters_of(STORAGE_DEVICE, rates())
    assert (found["Queue Length"], found["Lower Queue Length"], found["Latency"]) == (0, 0, None)


def test_other_sets() -> None:
    present = rates(
        read_bytes=8192, write_bytes=2048, interrupts_received=10, interrupts_sent=6, doorbells=99, intercepts=50
    )
    assert counters_of(IDE_CONTROLLER, present) == {
        "Read Bytes/sec": 4096, "Write Bytes/sec": 1024, "Read Sectors/sec": 8, "Written Sectors/sec": 2,
    }  # fmt: skip
    assert counters_of(MACHINE_BUS, present) == {"Interrupts Received/sec": 5, "Interrupts Sent/sec": 3}
    assert counters_of(VIRTUAL_PROCESSOR, present) == {"IO Intercept Messages/sec": 25}


def test_unknown_set() -> None:
    with pytest.raises(ValueError, match="no counter set 'PhysicalDisk'"):
        counters_of("PhysicalDisk", rates())


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_no_time_between(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds apart"):
        rates(seconds)


def test_snapshots_in_wrong_order() -> None:
    with pytest.raises(ValueError, match="requests went back from 5 to 4"):
        rates(previous={"requests": 5}, requests=4)
    rates(previous={"queue_length": 5}, queue_length=4)


def test_snapshot_of_a_newer_version() -> None:
    """Counters that the earlier snapshot did not have began at 0."""
    assert Rates({}, {"requests": 4}, 2).per_second("requests") == 2


def test_total() -> None:
    blocks = [{"requests": 1, "latency_max_ns": 9}, {"requests": 2, "latency_max_ns": 4, "intercepts": 5}]
    assert total(blocks) == {"requests": 3, "latency_max_ns": 9, "intercepts": 5}
    assert total([]) == {}


def test_page_has_the_table() -> None:
    """Each set's heading is followed by a table of its counters, in order, with unit and source."""
    rows = re.findall(r"^#+ (Hyper-V .*)$|^\| `([^`]+)` \| ([^|]+) \| `([^`]+)` \|", PAGE.read_text("utf-8"), re.M)
    found, heading = [], ""
    for set_name, name, unit, source in rows:
        heading = set_name or heading
        if name:
            found.append((heading, name, unit, source))
    assert found == [(each.set_name, each.name, each.unit, each.source) for each in COUNTERS]


def test_examples_of_the_page() -> None:
    failures, examples = doctest.testfile(str(PAGE), module_relative=False)
    assert (failures, examples > 10) == (0, True)
