"""What the pages about images show is what the commands print: every console block is run, in a folder of its own."""

import pytest

from tests.reference.console import ROOT, Shell, blocks, constant


@pytest.mark.parametrize("page", ["rescue-vhdx.md", "vhd-command.md"])
def test_commands_print_what_is_shown(page, tmp_path):
    found = list(blocks((ROOT / "docs" / page).read_text()))
    assert found
    shell = Shell(tmp_path)
    for block in found:
        for command, shown in block:
            assert constant(shell.run(command)) == constant(shown), command
