from collections.abc import Iterable
from typing import Literal, NamedTuple, final

from typing_extensions import Buffer

from hvcore.ide.device import Controller

class Result(NamedTuple):
    outcome: Literal["ok", "error", "not ready", "refused", "unexpected", "dma error"]
    status: int
    error: int
    bm_status: int
    sectors_done: int
    commands: int
    interrupts: int
    port_accesses: int
    bytes_copied: int

@final
class Driver:
    def __init__(self, controller: Controller, channel: int = 0, table: int | None = None) -> None: ...
    @property
    def controller(self) -> Controller: ...
    def execute(
        self,
        kind: Literal["read", "write", "flush", "identify", "trim"],
        *,
        drive: int = 0,
        mode: Literal["dma", "pio", "pio-string", "pio-multiple"] = "dma",
        lba: int = 0,
        sectors: int = 0,
        data: Buffer | None = None,
        segments: Iterable[tuple[int, int]] = (),
    ) -> Result: ...
