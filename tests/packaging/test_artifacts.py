"""What is published: the source distribution holds every tracked file, and installs where nothing else is."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Of use in a checkout only.
CHECKOUT_ONLY = {".gitignore"}
# Without its extensions, so that nothing is in the archive only because the build happened to name it.
BUILD_SDIST = """
import sys
import Cython.Build
Cython.Build.cythonize = lambda extensions, **options: []
from setuptools import build_meta
build_meta.build_sdist(sys.argv[1])
"""


def tracked():
    """Files that git tracks, or None outside a checkout."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return None
    listed = subprocess.run(
        # The checkout may belong to another user, as in a container.
        [git, "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, built from a copy of the tracked files."""
    files = tracked()
    if files is None:
        pytest.skip("not a git checkout: nothing says which files are sources")
    folder = tmp_path_factory.mktemp("sdist")
    for name in files:
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    subprocess.run(
        [sys.executable, "-c", BUILD_SDIST, folder], cwd=folder / "tree", check=True, capture_output=True, timeout=120
    )
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_sdist_holds_every_tracked_file(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in tracked() - CHECKOUT_ONLY if not name.startswith(".ci/")}
    assert {"setup.py", "pyx/hvcore/vmbus/ring.pxd", "tests/conftest.py"} <= wanted
    assert not wanted - held
    assert not {name for name in held if name.endswith((".so", ".pyc", ".c"))} - wanted


@pytest.mark.slow
def test_sdist_installs_in_an_empty_environment(sdist, tmp_path):
    # Nothing of this run's Python may help.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command):
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run(sys.executable, "-m", "venv", "empty")
    run("empty/bin/pip", "install", sdist)
    modules = [".".join(path.relative_to(ROOT / "pyx").with_suffix("").parts) for path in ROOT.glob("pyx/**/*.pyx")]
    run("empty/bin/python", "-c", f"import {', '.join(modules)}")
    assert run("empty/bin/hvcore", "--version").startswith("hvcore ")
