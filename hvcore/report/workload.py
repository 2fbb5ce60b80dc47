"""What a load does to one disk, checked; the native generator takes it as it stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PLAIN = ("randread", "randwrite", "read", "write")
MIXED = ("randrw", "rw")
NAMES = (*PLAIN, *MIXED)
READ_PERCENT = 70.0  # of randrw and rw
WRITING = ("write", "trim")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """operations: share of each by name; block_sizes: weight of each in bytes. Offsets within `length` bytes (None: to
    the end) from byte `first` on. rate: requests per second of an open loop, None: closed. Sizes are bytes."""

    operations: Mapping[str, float] = field(default_factory=lambda: {"read": 1.0})
    block_sizes: Mapping[int, float] = field(default_factory=lambda: {4096: 1.0})
    offsets: str = "uniform"
    theta: float = 0.99
    first: int = 0
    length: int | None = None
    queue_depth: int = 1
    rate: float | None = None
    arrivals: str = "constant"
    seed: int = 1

    @classmethod
    def plain(cls, rw: str, block_size: int, queue_depth: int, read_percent: float = READ_PERCENT) -> "Workload":
        """What `--rw`, `--bs` and `--qd` say."""
        if rw in MIXED:
            operations = {"read": read_percent, "write": 100.0 - read_percent}
        else:
            operations = {"write" if "write" in rw else "read": 1.0}
        return cls(
            operations={name: share for name, share in operations.items() if share},
            block_sizes={block_size: 1.0},
            offsets="uniform" if rw.startswith("rand") else "sequential",
            queue_depth=queue_depth,
        )

    @property
    def rw(self) -> str:
        """The name of the nearest plain workload."""
        used = {name for name, share in self.operations.items() if share}
        kind = "read" if used <= {"read"} else "rw" if "read" in used else "write"
        return kind if self.offsets == "sequential" else f"rand{kind}"

    @property
    def writes(self) -> bool:
        """Whether it changes the disk."""
        return any(self.operations.get(name) for name in WRITING)

    @property
    def smallest(self) -> int:
        return min(self.block_sizes)

    @property
    def largest(self) -> int:
        return max(self.block_sizes)

    @property
    def buffer_bytes(self) -> int:
        return self.queue_depth * self.largest

    def parameters(self, seed: int) -> dict[str, Any]:
        """The workload of one LoadRun; `seed` makes one run's requests other than another's."""
        return {
            "operations": dict(self.operations),
            "block_sizes": dict(self.block_sizes),
            "offsets": self.offsets,
            "theta": self.theta,
            "first": self.first,
            "length": self.length,
            "rate": self.rate,
            "arrivals": self.arrivals,
            "seed": self.seed << 20 ^ seed,
        }
