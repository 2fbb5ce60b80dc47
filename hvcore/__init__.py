"""hvcore: Hyper-V's I/O architecture as Linux processes.

Names are loaded on first use, so that a worker process loads only the floors it stands on.
"""

import importlib
from typing import Any

_EXPORTS = {
    "DiskConfig": "hvcore.partition.config",
    "DiskError": "hvcore.errors",
    "Error": "hvcore.errors",
    "GuestGone": "hvcore.errors",
    "Host": "hvcore.partition.client",
    "HostError": "hvcore.errors",
    "ImageError": "hvcore.errors",
}
__all__ = [*_EXPORTS]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'hvcore' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
