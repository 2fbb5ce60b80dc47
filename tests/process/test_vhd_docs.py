"""What the pages about images show is what the commands print: every console block is run, in a folder of its own."""

import shutil

import pytest

from tests.reference.console import ROOT, Shell, blocks, constant


@pytest.mark.parametrize("page", ["rescue-vhdx.md", "vhd-command.md"])
def test_commands_print_what_is_shown(page, tmp_path):
    text = (ROOT / "docs" / page).read_text()
    found = list(blocks(text))
    assert found
    if "$ qemu-" in text and shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    shell = Shell(tmp_path)
    for block in found:
        for command, shown in block:
            assert constant(shell.run(command)) == constant(shown), command
