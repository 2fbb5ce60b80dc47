"""What a process loads: a worker must be small and quick to start. Counted in modules, not in time."""

import importlib.util
import json
import pkgutil
import subprocess
import sys

import pytest

LIST_MODULES = "import importlib, json, sys; importlib.import_module(sys.argv[1]); print(json.dumps([*sys.modules]))"
SCREEN = {"rich", "typer"}
REPORT = {"hvcore.report", "hvcore.cli"}


def modules_of(package):
    """The package and its modules, without importing any of them."""
    spec = importlib.util.find_spec(package)
    found = pkgutil.iter_modules(spec.submodule_search_locations)
    return [package, *(f"{package}.{module.name}" for module in found if module.name != "__main__")]


def loaded(module):
    result = subprocess.run(
        [sys.executable, "-c", LIST_MODULES, module], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(result.stdout)


def unwanted(module, prefixes):
    return [name for name in loaded(module) if any(name == each or name.startswith(f"{each}.") for each in prefixes)]


@pytest.mark.parametrize("module", modules_of("hvcore.worker"))
def test_worker_loads_its_floors_only(module):
    assert not unwanted(module, SCREEN | REPORT | {"numpy", "asyncio", "hvcore.vhd", "hvcore.wmi"})


@pytest.mark.parametrize("module", modules_of("hvcore.partition"))
def test_host_and_guest_load_no_numpy_and_no_screen(module):
    assert not unwanted(module, SCREEN | REPORT | {"numpy"})


def test_command_line_loads_its_work_late():
    assert not unwanted("hvcore.cli", {"rich", "numpy", "asyncio", "hvcore.partition", "hvcore.vmbus", "hvcore.disk"})


def test_package_loads_nothing_of_itself():
    assert [name for name in loaded("hvcore") if name.startswith("hvcore")] == ["hvcore"]
