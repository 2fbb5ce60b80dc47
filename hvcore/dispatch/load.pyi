from collections.abc import Sequence
from typing import Any, final

from hvcore.disk.ops import Backend
from hvcore.dispatch.pattern import FAULTS as FAULTS
from hvcore.dispatch.pattern import KnownContent
from hvcore.dispatch.pattern import fill_pattern as fill_pattern
from hvcore.dispatch.workload import OPERATIONS as OPERATIONS
from hvcore.storage.vsc import Channel

DEPTH_MAX: int
OUTCOMES: tuple[str, ...]

class Requester:
    def describe(self, detail: int) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sector_size(self) -> int: ...
    @property
    def depth(self) -> int: ...

@final
class LoadRun:
    def __init__(
        self,
        requester: Requester,
        *,
        depth: int = 1,
        buffer: object = None,
        rate: float | None = None,
        arrivals: str = "constant",
        pattern_seed: int | None = None,
        content: KnownContent | None = None,
        series: bool = False,
        **workload: Any,
    ) -> None: ...
    def result(self) -> dict[str, Any]: ...

def run_loads(
    runs: Sequence[LoadRun], *, seconds: float | None = None, requests: int | None = None, warm_up: float = 0.0
) -> list[dict[str, Any]]: ...
def run_channel(
    channel: Channel,
    buffer: object,
    size: int,
    sector_size: int,
    *,
    rw: str = "randread",
    block: int = 4096,
    depth: int = 1,
    seconds: float | None = None,
    requests: int | None = None,
    seed: int = 1,
    pattern_seed: int | None = None,
    warm_up: float = 0.0,
    lun: int = 0,
) -> dict[str, Any]: ...
def run_disk(
    disk: Backend,
    *,
    rw: str = "randread",
    block: int = 4096,
    seconds: float | None = None,
    requests: int | None = None,
    seed: int = 1,
    pattern_seed: int | None = None,
    warm_up: float = 0.0,
) -> dict[str, Any]: ...
