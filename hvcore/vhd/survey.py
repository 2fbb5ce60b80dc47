"""What a check learns of an image, for its result and for the repair."""

from dataclasses import dataclass, field

from hvcore.vhd.finding import Findings

DROP_OFFSETS = "the offset is set to 0 through the log: a block of zeros has none"


@dataclass
class Survey:
    """steps: what repair() has to do, names that repair_vhdx and repair_vhd know; in no order."""

    type: str | None = None
    blocks: int = 0
    allocated_blocks: int = 0
    unreferenced_bytes: int = 0
    log: str | None = None
    findings: Findings = field(default_factory=Findings)
    steps: set[str] = field(default_factory=set)
