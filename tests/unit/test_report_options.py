"""Every option is checked before anything starts, and the error names it."""

import pytest

from hvcore.partition import config
from hvcore.report import options
from hvcore.report.options import PATHS, CompareOptions, ExplainOptions, OptionError, paths_option, size_option

WRONG = [
    ("--paths", {"paths": ()}),
    ("--paths", {"paths": ("synthetic", "other")}),
    ("--paths", {"paths": ("local", "local")}),
    ("--rw", {"rw": "reads"}),
    ("--bs", {"block_size": 0}),
    ("--bs", {"block_size": 1000}),
    ("--bs", {"block_size": 32 << 20, "memory_bytes": 1 << 30}),
    ("--bs", {"block_size": 512, "sector_size": 4096, "paths": ("synthetic",)}),
    ("--qd", {"queue_depth": 0}),
    ("--qd", {"queue_depth": 1025}),
    ("--runtime", {"seconds": 0.0}),
    ("--runtime", {"seconds": float("nan")}),
    ("--runtime", {"seconds": float("inf")}),
    ("--ide-mode", {"ide_mode": "udma"}),
    ("--format", {"format": "qcow2"}),
    ("--sector-size", {"sector_size": 520}),
    ("--sector-size", {"sector_size": 4096}),
    ("--memory", {"memory_bytes": 0}),
    ("--memory", {"memory_bytes": 5000}),
    ("--memory", {"memory_bytes": 1 << 20, "block_size": 65536, "queue_depth": 16}),
]


@pytest.mark.parametrize(("option", "values"), WRONG)
def test_wrong_value_names_its_option(option, values):
    with pytest.raises(OptionError) as caught:
        CompareOptions(**values)
    assert str(caught.value).startswith(f"{option}: ")
    assert caught.value.option == option
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rw", ["randwrite", "write"])
def test_writing_to_a_named_image_needs_overwrite(rw):
    with pytest.raises(OptionError, match="--overwrite"):
        CompareOptions(image="disk.vhd", rw=rw)
    assert CompareOptions(image="disk.vhd", rw=rw, overwrite=True).writes
    assert CompareOptions(image=None, rw=rw).writes


def test_memory_error_says_how_much_is_needed():
    with pytest.raises(OptionError, match="queue depth 16 of 64 KiB needs more than 1 MiB"):
        CompareOptions(memory_bytes=1 << 20, block_size=65536, queue_depth=16)


def test_large_sectors_without_the_emulated_path():
    options = CompareOptions(sector_size=4096, paths=("local", "synthetic"))
    assert not options.writes


@pytest.mark.parametrize("count", [0, -1, 1_000_001])
def test_explain_counts(count):
    with pytest.raises(OptionError, match=r"^--count: "):
        ExplainOptions(count=count)


def test_defaults_are_allowed():
    assert CompareOptions().paths == ExplainOptions().paths == PATHS
    assert ("local", *config.PATHS) == PATHS
    assert options.IDE_MODES == config.IDE_MODES
    assert set(PATHS) - {"local", "synthetic"} == set(options.IDE_PATHS) > set(options.IDE_MODE_PATHS)


def test_sizes_and_paths_as_typed():
    assert size_option("--bs", "64K") == 65536
    assert paths_option("synthetic, local") == ("synthetic", "local")
    with pytest.raises(OptionError, match=r"^--bs: '4q' is not a size"):
        size_option("--bs", "4q")
