"""Bad usage of the command line: found before anything starts, named in one line."""

import signal

import pytest

from hvcore.cli import main


@pytest.fixture(autouse=True)
def signals():
    """The command line takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["compare", "--bs", "4q"], "--bs"),
        (["compare", "--bs", "1000"], "--bs"),
        (["compare", "--paths", "synthetic,none"], "--paths"),
        (["compare", "--rw", "trim"], "--rw"),
        (["compare", "--qd", "many"], "--qd"),
        (["compare", "--qd", "0"], "--qd"),
        (["compare", "--runtime", "-1"], "--runtime"),
        (["compare", "--memory", "1"], "--memory"),
        (["compare", "--ide-mode", "udma"], "--ide-mode"),
        (["compare", "disk.vhd", "--rw", "write"], "--overwrite"),
        (["compare", "one", "two"], "two"),
        (["compare", "--unknown"], "--unknown"),
        (["compare", "--sweep", "bs=4q"], "--sweep"),
        (["compare", "--sweep", "bs=4k", "one", "two"], "one, two"),
        (["compare", "--read-percent", "101"], "--read-percent"),
        (["load"], "FILE"),
        (["explain", "--count", "0"], "--count"),
        (["explain", "--format", "qcow2"], "--format"),
        (["serve"], "--socket"),
        (["vhd"], "command"),
        (["unknown"], "unknown"),
    ],
)
def test_bad_usage_names_what_is_wrong(arguments, name, capsys):
    assert main(arguments) == 2
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("hvcore: ") and line.count("\n") == 1
    assert name.lower() in line.lower()
