"""What docs/disks-in-python.md shows works as it stands there.

`python -m tests.process.test_python_docs` puts into the page what its programs print now.
"""

import re
import sys
import tempfile
from pathlib import Path

from tests.reference.console import BLOCK, ROOT, Shell, blocks, commands, constant

PAGE = ROOT / "docs/disks-in-python.md"
FILE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shell_of(folder: Path, page: str) -> Shell:
    """A shell where the page's programs lie."""
    shell = Shell(folder)
    shell.environment.pop("PYTHONSAFEPATH", None)  # a program finds what lies beside it
    for name, text in FILE.findall(page):
        (shell.folder / name).write_text(text)
    return shell


def test_programs_print_what_is_shown(tmp_path: Path) -> None:
    page = PAGE.read_text()
    shell = shell_of(tmp_path, page)
    shown = [pair for block in blocks(page) for pair in block]
    assert len(shown) == len(list(FILE.findall(page))) - 1 == 2
    for command, output in shown:
        assert constant(shell.run(command)) == constant(output), command


def test_the_example_class_is_short() -> None:
    (text,) = (text for name, text in FILE.findall(PAGE.read_text()) if name == "sparse.py")
    assert text.count("\n") < 30


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        shell = shell_of(Path(folder), PAGE.read_text())

        def filled(match: "re.Match[str]") -> str:
            printed = ["$ " + command + "\n" + shell.run(command) for command, _ in commands(match[1])]
            return f"```console\n{''.join(printed)}```"

        sys.stdout.write(BLOCK.sub(filled, PAGE.read_text()))
