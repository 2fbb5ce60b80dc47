from hvcore.scsi.result import ScsiResult
from hvcore.scsi.target import Target

INTERFACES: dict[str, bytes]

def complete(packet: bytes | bytearray | memoryview, result: ScsiResult) -> bytes: ...
def execute(
    target: Target,
    packet: bytes | bytearray | memoryview,
    data_out: bytes | bytearray | memoryview = b"",
    *,
    version: int = 0x0600,
) -> tuple[bytes, bytes]: ...
