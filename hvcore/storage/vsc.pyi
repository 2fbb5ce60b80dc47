from collections.abc import Callable, Sequence
from typing import Self

from hvcore.memory.region import Region

_Failure = tuple[int, int, int, bytes, bytes]

class Channel:
    version: int
    relid: int
    sub_channels_max: int
    def __new__(
        cls,
        memory: Region,
        events: Region,
        doorbell: int,
        relid: int,
        ring_pages: Sequence[int],
        downstream_offset: int,
        allocate: Callable[[int], int],
        depth: int = 256,
        spins: bool = True,
        patience: float = 30,
    ) -> Self: ...
    @property
    def max_transfer(self) -> int: ...
    @property
    def ended(self) -> bool: ...
    def start(self, timeout: float = 10.0) -> None: ...
    def inherit(self, primary: Channel) -> None: ...
    def create_sub_channels(self, count: int, timeout: float = 10.0) -> None: ...
    def reset(self, *, lun: int | None = None, timeout: float = 10.0) -> None: ...
    def notices(self) -> int: ...
    def attentions(self, lun: int) -> tuple[int, list[tuple[int, int]]]: ...
    @property
    def in_flight(self) -> int: ...
    def execute(
        self,
        cdb: bytes,
        data_out: object = b"",
        allocation: int = 0,
        lun: int = 0,
        timeout: float | None = None,
        *,
        patient: bool = False,
    ) -> tuple[int, int, bytes, bytes]: ...
    def transfer(
        self,
        write: bool,
        offsets: object | None,
        offset: int,
        block: int,
        data: object,
        sector_size: int,
        *,
        lun: int = 0,
        queue_depth: int = 0,
        timeout: float | None = None,
        fua: bool = False,
        also: tuple[Channel, ...] = (),
    ) -> _Failure | None: ...
    def read(
        self, offset: int, length: int, sector_size: int, *, lun: int = 0, timeout: float | None = None
    ) -> tuple[bytes, _Failure | None]: ...
    def counters(self) -> dict[str, int]: ...
    def drain(self, timeout: float | None = None) -> None: ...
    def end(self) -> None: ...
