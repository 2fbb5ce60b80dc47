"""Facts as JSON has them and as people read them, without the library that draws tables: it loads slower than most
commands work.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from hvcore.sizes import format_size

if TYPE_CHECKING:
    from hvcore.disk.image import ImageInfo

WIDTH = 100
NONE = "–"


def plain(value: Any) -> Any:
    """Results as JSON has them: objects of fields, lists, text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(each) for name, each in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, UUID) else value


def image_facts(info: "ImageInfo") -> dict[str, Any]:
    facts: dict[str, Any] = plain(info)
    return facts


def digits(value: float) -> str:
    """Three significant digits, whole numbers in groups of thousands."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def about(size: int) -> str:
    """A byte count in at most four digits: exact where that is possible, else three significant digits."""
    exact = format_size(size)
    if size < 1024 or len(exact.split()[0]) <= 4:
        return exact
    value, unit = size / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{digits(value)} {unit}"


def exact_size(size: int) -> str:
    """A byte count as people say it, and to the byte."""
    said = about(size)
    return f"{size:,} bytes" if said.endswith("bytes") else f"{said}, {size:,} bytes"


def _value(key: str, value: object) -> str:
    if value is None or value in ("", (), []):
        return NONE
    if isinstance(value, int) and key.endswith("size"):
        return exact_size(value)
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def fact_rows(facts: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Names and what they stand for; a whole number whose key ends in "size" is bytes."""
    return ((key.replace("_", " "), _value(key, value)) for key, value in facts.items())


def plain_facts(facts: Mapping[str, object]) -> str | None:
    """The text that facts_table() is in a pipe; None where that takes the library: lines to be folded, wide letters."""
    rows = [*fact_rows(facts)]
    label = max(len(name) for name, _ in rows)
    lines = []
    for name, value in rows:
        for number, line in enumerate(value.split("\n")):
            if line != NONE and not (line.isascii() and line.isprintable() and label + 2 + len(line) <= WIDTH):
                return None
            lines.append(f"{'' if number else name:<{label}}  {line}".rstrip())
    return "\n".join(lines)
