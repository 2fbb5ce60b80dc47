from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, final

from hvcore.scsi.result import MediaAccess, ScsiResult
from hvcore.scsi.unit import LogicalUnit

@final
class Target:
    def __new__(
        cls,
        image: Any,
        *,
        id: bytes | bytearray | memoryview | None = None,
        serial: str | None = None,
        max_transfer: int = 0,
        strict_alloc: bool = True,
        discard: bool = True,
        extensions: bool = True,
        unit: LogicalUnit | None = None,
        nexus: bytes | bytearray | memoryview | None = None,
    ) -> Target: ...
    @property
    def image(self) -> Any: ...
    def exchange(self, image: Any) -> None: ...
    @property
    def logical_unit(self) -> LogicalUnit: ...
    @property
    def nexus(self) -> bytes: ...
    @property
    def id(self) -> bytes: ...
    @property
    def serial(self) -> str: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def raise_unit_attention(self, asc: int, ascq: int) -> None: ...
    def media_access(
        self, cdb: bytes | bytearray | memoryview, buffer_length: int = 0, *, to_guest: bool = True
    ) -> MediaAccess | None: ...
    def execute(
        self,
        cdb: bytes | bytearray | memoryview,
        data_out: bytes | bytearray | memoryview = b"",
        allocation: int = 0,
        *,
        disk_status: int = 0,
    ) -> ScsiResult: ...

def report_luns(
    luns: Iterable[int], cdb: bytes | bytearray | memoryview, allocation: int, *, strict_alloc: bool = True
) -> ScsiResult: ...
def absent(cdb: bytes | bytearray | memoryview, lun: int, allocation: int = 0) -> ScsiResult: ...
