"""Disks that are Python classes, by the name of the class: "package.module:Class"."""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hvcore.disk.image import ImageInfo
from hvcore.disk.names import judge_class_name
from hvcore.disk.python import PythonDisk, place_of
from hvcore.errors import ImageError


def extend_search(paths: Iterable[str]) -> None:
    """Modules are looked for in these places too, after all others, so that nothing that is found now is hidden."""
    sys.path.extend(path for path in dict.fromkeys(paths) if path and path not in sys.path)


def open_class(
    name: str,
    options: Mapping[str, Any],
    *,
    read_only: bool = False,
    sector_size: int | None = None,
    report: Callable[[str], object] | None = None,
) -> tuple[PythonDisk, ImageInfo]:
    """Imports the class, makes its object from the options, and the disk that the object is (see PythonDisk).

    The object's `size` is that of the disk in bytes; `sector_size` (512), `read_only` (False) and `concurrent` (False)
    count if it has them, unless they are given here. ImageError, one line with the name: any of this failed. This runs
    whatever code the module has.
    """
    try:
        judge_class_name(name)
        module, _, attribute = name.partition(":")
        made: Any = importlib.import_module(module)
        for part in attribute.split("."):
            made = getattr(made, part)
        target = made(**options)
        size = target.size
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"size is a number of bytes, not {size!r}")
        sector = getattr(target, "sector_size", 512) if sector_size is None else sector_size
        disk = PythonDisk(
            target,
            size,
            sector_size=sector,
            read_only=read_only or bool(getattr(target, "read_only", False)),
            concurrent=bool(getattr(target, "concurrent", False)),
            report=report,
        )
    except Exception as error:
        raise ImageError(f"{name}: {type(error).__name__}: {error}{raised_at(error)}") from error
    return disk, ImageInfo(name, "python", None, size, 0, sector, sector)


def raised_at(error: BaseException) -> str:
    """Where, if not in hvcore: the line of the class that is to blame."""
    place = place_of(error)
    return f" ({place})" if place and not place.startswith((__file__, "<frozen")) else ""
