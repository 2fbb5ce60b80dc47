from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from typing_extensions import Buffer

IN_BAND: int
TRANSFER_PAGES: int
GPA_DIRECT: int
COMPLETION: int
COMPLETION_REQUESTED: int

@dataclass(frozen=True, slots=True)
class GpaRange:
    byte_count: int
    byte_offset: int
    pfns: tuple[int, ...]

@dataclass(frozen=True, slots=True)
class TransferRange:
    byte_count: int
    byte_offset: int

@final
@dataclass(frozen=True)
class Packet:
    type: int = ...
    flags: int = ...
    transaction_id: int = ...
    payload: bytes = ...
    header: bytes = ...
    @property
    def ranges(self) -> tuple[GpaRange, ...] | tuple[TransferRange, ...]: ...

def gpa_direct_header(ranges: Sequence[GpaRange | tuple[int, int, Sequence[int]]]) -> bytes: ...
def encode_packet(packet: Packet) -> bytes: ...
def decode_packet(data: Buffer, role: str = "host") -> Packet: ...
