from os import PathLike
from types import TracebackType
from typing import Self, TypeAlias, final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from hvcore.metrics.histogram import LatencyHistogram

# numpy's arrays are buffers, but its stubs say so only from Python 3.12 on.
_Offsets: TypeAlias = Buffer | npt.NDArray[np.uint64]

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
    def run(self, offsets: _Offsets) -> tuple[float, LatencyHistogram]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

def serve() -> None: ...
def local_preadv(
    path: str | bytes | PathLike[str], offsets: _Offsets, block_size: int = 4096, depth: int = 1
) -> tuple[float, LatencyHistogram]: ...
