"""The installed package: every source is a compiled module with a stub that tells the truth."""

import importlib
import importlib.machinery
import site
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import hvcore

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(hvcore.__file__).parent
COMPILED = sorted(
    ".".join(path.relative_to(ROOT / "pyx").with_suffix("").parts) for path in (ROOT / "pyx").rglob("*.pyx")
)
# What Cython adds to modules and classes of its own. __buffer__ is a method since Python 3.12 only, and Cython's
# dataclasses have no __replace__ (3.13).
ALLOWED = r"""
.*\.__pyx_.*
.*\.__reduce_cython__
.*\.__setstate_cython__
.*\.__test__
.*\.__buffer__
.*\.__replace__
hvcore\.__main__
"""


@pytest.mark.parametrize("name", COMPILED)
def test_source_is_built_and_loaded_compiled(name):
    module = importlib.import_module(name)
    assert isinstance(module.__spec__.loader, importlib.machinery.ExtensionFileLoader)
    assert Path(module.__file__).is_relative_to(PACKAGE)


@pytest.mark.parametrize("name", COMPILED)
def test_source_has_a_stub(name):
    stub = Path(*name.split(".")).with_suffix(".pyi")
    assert (ROOT / stub).is_file()
    assert (PACKAGE.parent / stub).read_text() == (ROOT / stub).read_text()


def test_no_module_without_a_source():
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = {".".join(path.relative_to(PACKAGE.parent).parts).removesuffix(suffix) for path in PACKAGE.rglob("*.so")}
    assert {name for name in built if not name.endswith("._cython")} == set(COMPILED)


def test_version_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == hvcore.__version__


def test_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_stubs_agree_with_the_modules(tmp_path):
    allowed = tmp_path / "allowed"
    allowed.write_text(ALLOWED)
    # mypy finds an installed package by itself, and one in a source tree from the folder that it is started in.
    installed = any(PACKAGE.is_relative_to(folder) for folder in site.getsitepackages())
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy.stubtest", "--concise", "--ignore-disjoint-bases"),
            *("--ignore-unused-allowlist", "--allowlist", allowed, *COMPILED),
        ],
        cwd=tmp_path if installed else PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
