"""Windows' counters and structured events as people read them: plain text, one line each."""

from collections.abc import Iterator, Mapping
from typing import Any

from hvcore.metrics.windows import COUNTERS
from hvcore.report.facts import NONE, digits

UNITS = {(counter.set_name, counter.name): counter.unit for counter in COUNTERS}


def duration(seconds: float) -> str:
    """12.3 ms: three significant digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{digits(seconds * scale)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def counter_rows(set_name: str, values: Mapping[str, float | int | None]) -> Iterator[tuple[str, str, str]]:
    """(name, value, unit) of each counter of a set, as hvcore.metrics.windows.counters_of gives them."""
    for name, value in values.items():
        unit = UNITS[set_name, name]
        if value is None:
            yield name, NONE, unit
        elif unit == "s":
            yield name, *duration(value).split(" ", 1)  # type: ignore[misc]
        else:
            yield name, f"{value:,}" if isinstance(value, int) else digits(value), unit


def event_line(event: Mapping[str, Any]) -> str:
    """What happened, as one sentence; event as EventReader.collect gives it."""
    where = f"VM {event['vm']}, disk {event['disk']}: "
    held = f" ({event['suppressed']:,} more like it before)" if event["suppressed"] else ""
    if "wanted_iops" in event:
        figures = [
            f"{event[f'got_{what}']:,} of {event[f'wanted_{what}']:,} {unit}"
            for what, unit in (("iops", "normalised operations/s"), ("bandwidth", "bytes/s"))
            if event[f"wanted_{what}"]
        ]
        return f"{where}{event['kind']}: {', '.join(figures)}, busy {event['busy_percent']} % of the time{held}"
    request = f"operation {event['opcode']:02X}h of {event['length']:,} bytes at LBA {event['lba']:,}"
    took = "" if event["latency_ns"] is None else f", {duration(event['latency_ns'] / 1e9)}"
    ended = ""
    if event["kind"] == "failed":
        sense = f"{event['sense_key']:X}/{event['asc']:02X}/{event['ascq']:02X}"
        ended = f", SRB status {event['srb_status']:02X}h, SCSI status {event['scsi_status']:02X}h, sense {sense}"
    return f"{where}{event['kind']}: {request}{took}{ended}, transaction {event['transaction_id']:#x}{held}"
