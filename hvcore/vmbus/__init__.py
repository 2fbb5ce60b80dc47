"""VMBus: rings, packets and channels.

Names are loaded on first use, as in the package above.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvcore.vmbus.message import Message as Message
    from hvcore.vmbus.message import MessageType as MessageType
    from hvcore.vmbus.message import decode
    from hvcore.vmbus.packet import COMPLETION as COMPLETION
    from hvcore.vmbus.packet import COMPLETION_REQUESTED as COMPLETION_REQUESTED
    from hvcore.vmbus.packet import GPA_DIRECT as GPA_DIRECT
    from hvcore.vmbus.packet import IN_BAND as IN_BAND
    from hvcore.vmbus.packet import TRANSFER_PAGES as TRANSFER_PAGES
    from hvcore.vmbus.packet import GpaRange as GpaRange
    from hvcore.vmbus.packet import Packet as Packet
    from hvcore.vmbus.packet import TransferRange as TransferRange
    from hvcore.vmbus.packet import decode_packet as decode_packet
    from hvcore.vmbus.packet import encode_packet as encode_packet
    from hvcore.vmbus.packet import gpa_direct_header as gpa_direct_header
    from hvcore.vmbus.ring import Ring as Ring

    decode_message = decode

_EXPORTS = {
    "COMPLETION": "hvcore.vmbus.packet",
    "COMPLETION_REQUESTED": "hvcore.vmbus.packet",
    "GPA_DIRECT": "hvcore.vmbus.packet",
    "IN_BAND": "hvcore.vmbus.packet",
    "Message": "hvcore.vmbus.message",
    "MessageType": "hvcore.vmbus.message",
    "TRANSFER_PAGES": "hvcore.vmbus.packet",
    "GpaRange": "hvcore.vmbus.packet",
    "Packet": "hvcore.vmbus.packet",
    "Ring": "hvcore.vmbus.ring",
    "TransferRange": "hvcore.vmbus.packet",
    "decode_message": "hvcore.vmbus.message:decode",
    "decode_packet": "hvcore.vmbus.packet",
    "encode_packet": "hvcore.vmbus.packet",
    "gpa_direct_header": "hvcore.vmbus.packet",
}


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'hvcore.vmbus' has no attribute {name!r}")
    module, _, attribute = module.partition(":")
    return getattr(importlib.import_module(module), attribute or name)
