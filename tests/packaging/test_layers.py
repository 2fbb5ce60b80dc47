"""Imports and cimports only point down."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Floors from low to high; those of one line may use each other in one direction.
FLOORS = [
    {"__init__", "_cython", "errors", "progress", "sizes"},
    {"linux"},
    {"memory"},
    {"metrics"},
    {"vmbus"},
    {"hypervisor"},
    {"disk"},
    {"vhd", "scsi"},
    {"storage", "ide"},
    {"dispatch"},
    {"kvm"},
    {"partition", "worker"},
    {"wmi", "report"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}
# import hvcore.x, hvcore.y / cimport ... / from hvcore.x cimport y / from hvcore cimport x
STATEMENT = re.compile(r"^[ \t]*(?:from[ \t]+(hvcore[\w.]*)[ \t]+)?c?import[ \t]+(\([^)]*\)|[^\n#]*)", re.MULTILINE)


def sources():
    return [
        path
        for folder in (ROOT / "hvcore", ROOT / "pyx/hvcore")
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd")
    ]


def floor_of(path):
    below = path.relative_to(ROOT / "pyx" if path.suffix in (".pyx", ".pxd") else ROOT).with_suffix("").parts
    return below[1]


def imported(text, suffix):
    """Dotted names of hvcore that the source imports."""
    if suffix in (".py", ".pyi"):
        nodes = list(ast.walk(ast.parse(text)))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        names = []
        for source, listed in STATEMENT.findall(text):
            for name in re.findall(r"([\w.]+)(?:\s+as\s+\w+)?", listed):
                names.append(f"{source}.{name}" if source else name)
    return [name for name in names if name.split(".")[0] == "hvcore"]


def target(name):
    """The floor of a dotted name; what hvcore itself holds (its version) is on the lowest."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in HEIGHT else "__init__"


def arrows():
    for path in sources():
        for name in imported(path.read_text(encoding="utf-8"), path.suffix):
            yield path, floor_of(path), name


def test_every_package_has_a_floor():
    found = {floor_of(path) for path in sources()}
    assert found <= HEIGHT.keys()
    assert {"errors", "vmbus", "disk", "report", "cli"} <= found


def test_no_import_points_up():
    upward = [
        f"{path.relative_to(ROOT)}: {name}" for path, floor, name in arrows() if HEIGHT[target(name)] > HEIGHT[floor]
    ]
    assert not upward


def test_neighbours_do_not_need_each_other():
    pairs = {(floor, target(name)) for _, floor, name in arrows() if HEIGHT[floor] == HEIGHT[target(name)]}
    assert not [(one, other) for one, other in pairs if one < other and (other, one) in pairs]


def test_imports_are_absolute():
    relative = re.compile(r"^\s*from\s+\.", re.MULTILINE)
    assert not [str(path.relative_to(ROOT)) for path in sources() if relative.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    ("suffix", "text", "names"),
    [
        (".py", "from hvcore.disk import ops", ["hvcore.disk.ops"]),
        (".py", "def f():\n    import hvcore.cli, os", ["hvcore.cli"]),
        (".pyx", "from hvcore.disk.ops cimport (DISK_OK,\n    DiskRef as R)", ["hvcore.disk.ops.DISK_OK"]),
        (".pyx", "    from hvcore cimport cli  # why", ["hvcore.cli"]),
        (".pxd", "cimport hvcore.vmbus.ring as ring\nfrom libc.stdint cimport uint8_t", ["hvcore.vmbus.ring"]),
    ],
)
def test_imports_are_found(suffix, text, names):
    found = imported(text, suffix)
    assert found[: len(names)] == names
    assert all(HEIGHT[target(name)] > 0 for name in found)
