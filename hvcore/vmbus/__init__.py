"""VMBus: rings, packets and channels.

Names are loaded on first use, as in the package above.
"""

import importlib
from typing import Any

_EXPORTS = {
    "COMPLETION": "hvcore.vmbus.packet",
    "COMPLETION_REQUESTED": "hvcore.vmbus.packet",
    "GPA_DIRECT": "hvcore.vmbus.packet",
    "IN_BAND": "hvcore.vmbus.packet",
    "TRANSFER_PAGES": "hvcore.vmbus.packet",
    "GpaRange": "hvcore.vmbus.packet",
    "Packet": "hvcore.vmbus.packet",
    "Ring": "hvcore.vmbus.ring",
    "TransferRange": "hvcore.vmbus.packet",
    "decode_packet": "hvcore.vmbus.packet",
    "encode_packet": "hvcore.vmbus.packet",
    "gpa_direct_header": "hvcore.vmbus.packet",
}
__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'hvcore.vmbus' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
