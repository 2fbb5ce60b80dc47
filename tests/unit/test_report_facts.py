"""Facts in a pipe read the same, whether the library that draws tables is loaded or not."""

import subprocess
import sys
from pathlib import Path

import pytest

from hvcore.report.facts import WIDTH, plain_facts
from hvcore.report.table import console, facts_table

ROOM = WIDTH - len("file size") - 2
LOADED = """
import sys
from hvcore.cli import main
code = main(sys.argv[1:])
sys.exit(code or "rich" in sys.modules)
"""


def drawn(facts: dict[str, object]) -> str:
    screen = console()
    with screen.capture() as captured:
        screen.print(facts_table(facts))
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").split("\n"))


@pytest.mark.parametrize(
    "facts",
    [
        {"path": "d.vhdx", "file_size": 4 << 20, "disk_id": None, "notes": ()},
        {"file_size": 1023, "notes": ("one", "and another")},
        {"file_size": 3, "path": "x" * ROOM},
        {"file_size": 3, "path": " a  [bold]b[/bold] c "},
    ],
)
def test_plain_as_drawn(facts: dict[str, object]) -> None:
    assert plain_facts(facts) == drawn(facts)


@pytest.mark.parametrize("path", ["x" * (ROOM + 1), "名", "tab\tbed", "\x1b[1m", "é"])
def test_what_must_be_drawn(path: str) -> None:
    assert plain_facts({"file_size": 3, "path": path}) is None


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_a_pipe_loads_no_tables(tmp_path: Path, json: list[str]) -> None:
    path = tmp_path / "d"
    command = [sys.executable, "-c", LOADED, "vhd", "create", path.name, "1M", *json]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, path.exists()) == (0, "", True)
