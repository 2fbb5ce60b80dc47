"""Disk images by themselves, without a host or a VM: VHDX, VHD and raw files, read, written and put in order.

Names are loaded on first use, so that a command loads only what it does.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvcore.disk.image import ImageInfo
    from hvcore.vhd.check import CheckResult, check
    from hvcore.vhd.child import create_child
    from hvcore.vhd.compact import CompactResult, compact
    from hvcore.vhd.compare import Difference, compare
    from hvcore.vhd.convert import convert
    from hvcore.vhd.create import create
    from hvcore.vhd.extents import Extent
    from hvcore.vhd.finding import Finding
    from hvcore.vhd.image import Image, chain, info, open
    from hvcore.vhd.merge import merge
    from hvcore.vhd.rebase import rebase
    from hvcore.vhd.repair import RepairResult, repair
    from hvcore.vhd.resize import resize

_MODULES = {
    "CheckResult": "check",
    "CompactResult": "compact",
    "Difference": "compare",
    "Extent": "extents",
    "Finding": "finding",
    "Image": "image",
    "ImageInfo": "image",
    "RepairResult": "repair",
    "chain": "image",
    "check": "check",
    "compact": "compact",
    "compare": "compare",
    "convert": "convert",
    "create": "create",
    "create_child": "child",
    "info": "image",
    "merge": "merge",
    "open": "image",
    "rebase": "rebase",
    "repair": "repair",
    "resize": "resize",
}
__all__ = [
    "CheckResult",
    "CompactResult",
    "Difference",
    "Extent",
    "Finding",
    "Image",
    "ImageInfo",
    "RepairResult",
    "chain",
    "check",
    "compact",
    "compare",
    "convert",
    "create",
    "create_child",
    "info",
    "merge",
    "open",
    "rebase",
    "repair",
    "resize",
]


class _Package(ModuleType):
    """A package in which check, convert and their like are the functions, whoever loads the modules of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and _MODULES.get(name) == name:  # the import system's, once it is loaded
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:  # so that a name that is not there is an error to the type checker

    def __getattr__(name: str) -> Any:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module 'hvcore.vhd' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"hvcore.vhd.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
