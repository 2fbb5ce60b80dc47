import pytest

from hvcore.metrics.events import EVENT_BYTES, HEADER_BYTES, EventReader, EventWriter
from hvcore.metrics.windows import COUNTERS, STORAGE_DEVICE, Disk, Rates, counters_of
from hvcore.report.counters import counter_rows, duration, event_line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ns"), (5e-7, "500 ns"), (1.234e-5, "12.3 µs"), (0.004, "4.00 ms"), (2.5, "2.50 s"), (1234, "1,234 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counter_rows() -> None:
    names = {"read_operations": 3000, "write_operations": 0, "flushes": 0, "unmaps": 0, "throttle_wait_ns": 0}
    present = dict.fromkeys(["read_bytes", "write_bytes", "errors", "io_units"], 0) | names
    rates = Rates({}, present | {"latency_samples": 10, "latency_ns": 40_000_000}, 1)
    values = counters_of(STORAGE_DEVICE, rates, Disk(max_iops=1_000_000))
    rows = {name: (value, unit) for name, value, unit in counter_rows(STORAGE_DEVICE, values)}
    assert list(rows) == [counter.name for counter in COUNTERS if counter.set_name == STORAGE_DEVICE]
    assert rows["Latency"] == ("4.00", "ms")
    assert rows["Read Operations/Sec"] == ("3,000", "operations/s")
    assert rows["Read Count"] == ("3,000", "operations")
    assert rows["Maximum IO Rate"] == ("1,000,000", "8 KiB units/s")
    assert rows["Adapter Open Channel Count"] == ("–", "channels")


def test_event_lines() -> None:
    buffer = bytearray(HEADER_BYTES + 8 * EVENT_BYTES)
    writer = EventWriter(buffer)
    where = {"trace_id": 1 << 48 | 2 << 40 | 3, "transaction_id": 0x77, "lba": 2048, "length": 4096, "opcode": 0x28}
    writer.write("slow", **where, latency_ns=23_400_000)
    writer.write("failed", **where, srb_status=0x84, scsi_status=2, sense_key=3, asc=0x11)
    writer.write_minimum(True, 1 << 48, wanted_iops=1000, got_iops=640, busy_percent=98)
    writer.write_minimum(False, 1 << 48, wanted_iops=1000, got_iops=999, wanted_bandwidth=5000, got_bandwidth=6000)
    slow, failed, missed, met = EventReader(buffer).collect()
    place = "operation 28h of 4,096 bytes at LBA 2,048"
    assert event_line(slow) == f"VM 1, disk 2: slow: {place}, 23.4 ms, transaction 0x77"
    assert event_line(failed | {"suppressed": 1200}) == (
        f"VM 1, disk 2: failed: {place}, SRB status 84h, SCSI status 02h, sense 3/11/00, transaction 0x77"
        " (1,200 more like it before)"
    )
    assert event_line(missed) == (
        "VM 1, disk 0: minimum missed: 640 of 1,000 normalised operations/s, busy 98 % of the time"
    )
    assert event_line(met) == (
        "VM 1, disk 0: minimum met: 999 of 1,000 normalised operations/s, 6,000 of 5,000 bytes/s,"
        " busy 100 % of the time"
    )
