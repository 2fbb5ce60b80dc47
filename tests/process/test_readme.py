"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hvcore.disk.image import open_image
from hvcore.vhd import create

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_python_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL).group(1)
    (tmp_path / "example.py").write_text(code)
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").touch()
    (tmp_path / "package/module.py").write_text("def function(guest):\n    return guest.disks[1].path\n")
    create(tmp_path / "root.vhdx", 1 << 20)
    create(tmp_path / "data.vhdx", 1 << 20)
    create(tmp_path / "legacy.vhd", 1 << 20, "vhd", "fixed")
    # The child finds the caller's modules as the caller does.
    start = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import runpy; runpy.run_path('example.py')"
    done = subprocess.run([sys.executable, "-c", start], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("emulated {")
    for name in ("root.vhdx", "root-1.vhdx"):
        with open_image(tmp_path / name) as disk:
            image = disk.read(0, disk.size)
        assert image[4096:8192] == b"\x2a" * 4096
        assert not any(image[:4096]) and not any(image[8192:])


@pytest.mark.parametrize("marker", ["ci:setup", "ci:test"])
def test_each_command_is_one_line(marker):
    block = re.search(rf"<!-- {marker} -->\n```sh\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None and block.group(1).count("\n") == 1
