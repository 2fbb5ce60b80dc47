from os import PathLike
from types import TracebackType
from typing import Self, final

from typing_extensions import Buffer

from hvcore.metrics.histogram import LatencyHistogram

MAX_DEPTH: int

@final
class Floor:
    def __init__(
        self,
        path: str | bytes | PathLike[str],
        block_size: int = 4096,
        depth: int = 1,
        cpus: tuple[int, int] | None = None,
    ) -> None: ...
    @property
    def block_size(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def server_pid(self) -> int | None: ...
    def block(self, slot: int) -> bytes: ...
    def run(self, offsets: Buffer) -> tuple[float, LatencyHistogram]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

def serve() -> None: ...
def local_preadv(
    path: str | bytes | PathLike[str], offsets: Buffer, block_size: int = 4096, depth: int = 1
) -> tuple[float, LatencyHistogram]: ...
