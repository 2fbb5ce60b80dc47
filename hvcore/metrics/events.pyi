from typing import Any, Self, final

from typing_extensions import Buffer

HEADER_BYTES: int
EVENT_BYTES: int
PER_SECOND: int
AT_ONCE: int
KINDS: dict[str, int]

@final
class EventWriter:
    def __new__(cls, buffer: Buffer) -> Self: ...
    @property
    def capacity(self) -> int: ...
    @property
    def slow_ns(self) -> int: ...
    def slow(self, latency_ns: int) -> bool: ...
    def write(
        self,
        kind: str,
        trace_id: int = 0,
        *,
        time_ns: int | None = None,
        transaction_id: int = 0,
        lba: int = 0,
        length: int = 0,
        latency_ns: int = 0,
        opcode: int = 0,
        srb_status: int = 0,
        scsi_status: int = 0,
        sense_key: int = 0,
        asc: int = 0,
        ascq: int = 0,
    ) -> bool: ...
    def write_minimum(
        self,
        missed: bool,
        trace_id: int = 0,
        *,
        wanted_iops: int = 0,
        got_iops: int = 0,
        wanted_bandwidth: int = 0,
        got_bandwidth: int = 0,
        busy_percent: int = 100,
    ) -> bool: ...
    def write_run(self, trace_id: int, count: int) -> None: ...

@final
class EventReader:
    def __new__(cls, buffer: Buffer) -> Self: ...
    @property
    def capacity(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def slow_ns(self) -> int: ...
    @slow_ns.setter
    def slow_ns(self, ns: int) -> None: ...
    @property
    def suppressed(self) -> dict[str, int]: ...
    def collect(self) -> list[dict[str, Any]]: ...
