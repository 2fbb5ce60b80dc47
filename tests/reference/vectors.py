"""Vector files of the tests: sections of rows, "[name] what the columns are" above each."""

from pathlib import Path


def sections(path: Path) -> dict[str, list[list[str]]]:
    """Per section its rows, split at blanks; lines that begin with # are left out."""
    found: dict[str, list[list[str]]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            current = found.setdefault(line[1 : line.index("]")], [])
        elif line and not line.startswith("#"):
            current.append(line.split())
    return found
