"""hvcore vhd as a process, on real images: what is made, found, mended and changed, and how the command ends."""

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hvcore import vhd
from hvcore.cli import main

MIB = 1 << 20
SIZE = 16 * MIB
# The command line with the copying of a convert replaced by a wait, so that a signal meets it in the middle.
WAITING = """
import signal, sys
import hvcore.vhd.convert
from hvcore.cli import main

def copy_ranges(*arguments, **options):
    print("copying", file=sys.stderr, flush=True)
    signal.pause()

sys.modules["hvcore.vhd.convert"].copy_ranges = copy_ranges
sys.exit(main())
"""


@pytest.fixture
def hvcore(tmp_path):
    """Runs one command in the folder of the test's images."""

    def run(*arguments, **options):
        command = [sys.executable, "-m", "hvcore", "vhd", *arguments]
        options = {"capture_output": True, "cwd": tmp_path, "text": True, "timeout": 120} | options
        return subprocess.run(command, **options)

    return run


@pytest.fixture
def done(tmp_path, monkeypatch):
    """Runs a command that must succeed without a word on stderr, and returns what its JSON says. In this process: each
    command as a process of its own is run by `hvcore` and by the tests of the pages (test_vhd_docs.py)."""
    monkeypatch.chdir(tmp_path)
    signals = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            code = main(["vhd", *arguments, "--json"])
        said, complained = (stream.buffer.getvalue().decode() for stream in streams if not stream.flush())
        assert (code, complained) == (0, "")
        return json.loads(said)

    yield run
    signal.signal(signal.SIGTERM, signals)


def pattern(size):
    """Content that differs from sector to sector, with a hole in the middle."""
    half = b"".join(number.to_bytes(8, "little") * 64 for number in range(1, size // 2048 + 1))
    return half + bytes(size - 2 * len(half)) + half


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "source.img"
    path.write_bytes(pattern(SIZE))
    return path


@pytest.mark.parametrize("type", ["dynamic", "fixed"])
@pytest.mark.parametrize("name", ["a.vhdx", "a.vhd", "a.avhdx", "a"])
def test_a_new_image_is_what_was_asked_for_and_clean(name, type, done, tmp_path):
    made = done("create", name, "16M", "--type", type)
    assert done("info", name) == made | {"schema": "hvcore.vhd-info/1", "chain_length": 1}
    assert (made["format"], made["type"], made["size"]) == ("vhd" if name == "a.vhd" else "vhdx", type, SIZE)
    assert made["file_size"] == (tmp_path / name).stat().st_size
    found = done("check", name)
    assert found["clean"] and {each["severity"] for each in found["findings"]} <= {"note"}


def test_content_survives_every_format(done, raw, tmp_path):
    name = raw.name
    for target in ("one.vhdx", "two.vhd", "three.vhdx", "four.img"):
        type = "fixed" if target.startswith("three") else "dynamic"
        option = ["--format", "raw"] if name.endswith("img") else []
        done("convert", name, target, "--type", type, *option)
        assert done("compare", raw.name, target, "--format", "raw", *second(target))["equal"]
        name = target
    assert (tmp_path / "four.img").read_bytes() == pattern(SIZE)


def second(name):
    return ["--second-format", "raw"] if name.endswith("img") else []


def test_different_disks_end_with_1_and_a_place(hvcore, done, raw, tmp_path):
    done("convert", raw.name, "a.vhdx", "--format", "raw")
    with vhd.open(tmp_path / "a.vhdx", "r+") as image:
        image.write(5 * MIB + 512, b"\1" * 512)
    result = hvcore("compare", "a.vhdx", raw.name, "--second-format", "raw")
    line = f"different: the first difference is at byte {5 * MIB + 512:,} ({5 * MIB + 512:#x}) of the disks\n"
    assert (result.returncode, result.stdout, result.stderr) == (1, line, "")


def test_what_exists_is_never_overwritten(hvcore, raw):
    for arguments in (["create", raw.name, "1M"], ["convert", raw.name, raw.name, "--format", "raw"]):
        result = hvcore(*arguments)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == f"hvcore: {raw.name}: exists already\n"
    assert raw.read_bytes() == pattern(SIZE)


@pytest.mark.parametrize("name", ["info", "check", "repair", "chain", "map", "compact", "merge"])
def test_what_is_not_there_is_one_line(name, hvcore):
    result = hvcore(name, "nothing.vhdx")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "hvcore: nothing.vhdx: no such file or directory\n"


def test_an_image_in_use_is_left_alone(hvcore, done, tmp_path):
    done("create", "a.vhdx", "16M")
    with vhd.open(tmp_path / "a.vhdx", "r+"):
        for arguments in (["info"], ["check"], ["repair"], ["compact"], ["map"]):
            result = hvcore(*arguments, "a.vhdx")
            assert (result.returncode, result.stdout) == (1, "")
            assert result.stderr.startswith("hvcore: a.vhdx: in use by ") and result.stderr.count("\n") == 1


def test_damage_is_found_mended_and_gone(hvcore, done, raw, tmp_path):
    done("convert", raw.name, "a.vhdx", "--format", "raw")
    with open(tmp_path / "a.vhdx", "r+b") as file:
        file.seek(64 << 10)
        file.write(bytes(4096))
    result = hvcore("check", "a.vhdx", "--json")
    found = json.loads(result.stdout)
    assert (result.returncode, result.stderr, found["clean"]) == (3, "", False)
    (finding,) = [each for each in found["findings"] if each["severity"] == "damage"]
    assert (finding["structure"], finding["offset"]) == ("header 1", 64 << 10)
    assert finding["repair"]
    mended = done("repair", "a.vhdx")
    assert mended["clean"] and mended["actions"] and (tmp_path / mended["backup"]).exists()
    assert done("check", "a.vhdx")["clean"]
    assert done("compare", "a.vhdx", raw.name, "--second-format", "raw")["equal"]
    assert done("repair", "a.vhdx")["actions"] == []


def test_damage_beyond_repair_stays_damage(hvcore, done, tmp_path):
    done("create", "a.vhdx", "16M")
    with open(tmp_path / "a.vhdx", "r+b") as file:
        for offset in (192 << 10, 256 << 10):
            file.seek(offset)
            file.write(bytes(4096))
    before = (tmp_path / "a.vhdx").read_bytes()
    assert hvcore("check", "a.vhdx").returncode == 3
    result = hvcore("repair", "a.vhdx")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith("a.vhdx: damage remains, ")
    assert (tmp_path / "a.vhdx").read_bytes() == before


@pytest.fixture(params=["vhdx", "vhd"])
def family(request, done, tmp_path):
    """A base whose first MiB is 1, and a child that has the second MiB of 2."""
    base, child = f"base.{request.param}", f"child.{request.param}"
    done("create", base, "16M")
    with vhd.open(tmp_path / base, "r+") as image:
        image.write(0, b"\1" * MIB)
    done("create", child, "--parent", base)
    with vhd.open(tmp_path / child, "r+") as image:
        image.write(MIB, b"\2" * MIB)
    return base, child


def content(path):
    with vhd.open(path) as image:
        return image.read(0, 3 * MIB)


FAMILY = b"\1" * MIB + b"\2" * MIB + bytes(MIB)


def test_a_chain_is_listed_and_mapped(family, done, tmp_path):
    base, child = family
    images = done("chain", child)["images"]
    assert [Path(each["path"]).name for each in images] == [child, base]
    assert [each["type"] for each in images] == ["differencing", "dynamic"]
    assert done("info", child)["chain_length"] == 2
    assert done("check", child)["clean"]
    pieces = done("map", child, "--chain")["extents"]
    assert [(each["offset"], each["state"], each["depth"]) for each in pieces if each["offset"] <= MIB][:2] == [
        (0, "data", 1),
        (MIB, "data", 0),
    ]
    assert sum(each["length"] for each in pieces) == SIZE
    own = done("map", child)["extents"]
    assert {each["state"] for each in own} == {"parent", "data"}


def test_merge_leaves_the_parent_with_everything(family, done, tmp_path):
    base, child = family
    merged = done("merge", child)
    assert (Path(merged["path"]).name, merged["merged"]) == (base, child)
    assert not (tmp_path / child).exists()
    assert content(tmp_path / base) == FAMILY
    assert done("check", base)["clean"]


def test_rebase_keeps_what_the_disk_reads_as(family, done, tmp_path):
    base, child = family
    other = "other" + Path(base).suffix
    done("create", other, "16M")
    assert Path(done("rebase", child, other)["parent"]).name == other
    assert content(tmp_path / child) == FAMILY


def test_rebase_unsafe_only_changes_the_link(family, done, tmp_path):
    base, child = family
    other = "other" + Path(base).suffix
    done("create", other, "16M")
    done("rebase", child, other, "--unsafe")
    assert content(tmp_path / child) == bytes(MIB) + b"\2" * MIB + bytes(MIB)


def test_a_child_may_be_larger_than_its_parent(family, done):
    base, _ = family
    made = done("create", "large" + Path(base).suffix, "32M", "--parent", base)
    assert (made["size"], made["type"]) == (2 * SIZE, "differencing")


def test_a_lost_parent_is_named(family, hvcore, tmp_path):
    base, child = family
    (tmp_path / base).rename(tmp_path / "elsewhere")
    result = hvcore("info", child)
    assert (result.returncode, result.stdout) == (1, "")
    assert base in result.stderr and result.stderr.count("\n") == 1
    assert hvcore("check", child).returncode == 3
    assert hvcore("check", child, "--no-chain").returncode == 0


@pytest.mark.parametrize("name", ["a.vhdx", "a.vhd", "a.img"])
def test_disks_grow(name, done, tmp_path):
    option = ["--format", "raw"] if name == "a.img" else []
    done("create", name, "16M")
    with vhd.open(tmp_path / name, "r+", *(["raw"] if option else [])) as image:
        image.write(SIZE - 512, b"\3" * 512)
    grown = done("resize", name, "+16M", *option)
    assert (grown["previous_size"], grown["size"]) == (SIZE, 2 * SIZE)
    with vhd.open(tmp_path / name, "r", *(["raw"] if option else [])) as image:
        assert image.read(SIZE - 512, 1024) == b"\3" * 512 + bytes(512)


def test_a_disk_loses_data_by_force_only(done, hvcore, tmp_path):
    done("create", "a.vhdx", "16M")
    with vhd.open(tmp_path / "a.vhdx", "r+") as image:
        image.write(SIZE - 512, b"\3" * 512)
    result = hvcore("resize", "a.vhdx", "8M")
    assert (result.returncode, result.stdout) == (1, "") and result.stderr.count("\n") == 1
    assert done("info", "a.vhdx")["size"] == SIZE
    assert done("resize", "a.vhdx", "8M", "--force")["size"] == 8 * MIB


def test_compact_gives_back_what_holds_zeros(done, tmp_path):
    done("create", "a.vhdx", "16M")
    with vhd.open(tmp_path / "a.vhdx", "r+") as image:
        image.write(0, b"\3" * SIZE)
        image.write(0, bytes(SIZE // 2))
    gained = done("compact", "a.vhdx")
    assert gained["after"] == (tmp_path / "a.vhdx").stat().st_size < gained["before"]
    assert gained["freed_blocks"] == 4
    with vhd.open(tmp_path / "a.vhdx") as image:
        assert image.read(0, SIZE) == bytes(SIZE // 2) + b"\3" * (SIZE // 2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_convert_leaves_nothing(number, code, raw, tmp_path):
    command = [sys.executable, "-c", WAITING, "vhd", "convert", raw.name, "a.vhdx", "--format", "raw"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stderr.readline() == "copying\n"
            assert len(list(tmp_path.iterdir())) == 2  # the new file, under a name of its own
            child.send_signal(number)
            assert child.communicate(timeout=60) == ("", "")
        finally:
            child.kill()
    assert child.returncode == code
    assert list(tmp_path.iterdir()) == [raw]


def test_progress_is_for_terminals(hvcore, raw, tmp_path):
    ours, theirs = pty.openpty()
    try:
        result = hvcore(
            *("convert", raw.name, "a.vhdx", "--format", "raw"),
            **{"capture_output": False, "stdout": subprocess.PIPE, "stderr": theirs},
            env=os.environ | {"TERM": "xterm"},
        )
        os.close(theirs)
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
    assert result.returncode == 0
    assert "copying" in shown and "copying" not in result.stdout
    assert hvcore("convert", raw.name, "b.vhdx", "--format", "raw").stderr == ""


def test_a_reader_of_the_map_may_leave_early(hvcore, done):
    done("create", "a.vhdx", "16M")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = hvcore("map", "a.vhdx", capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


def test_no_line_is_wider_than_the_terminal(hvcore, family, raw):
    _, child = family
    environment = os.environ | {"COLUMNS": "80"}
    for name in ("info", "check", "chain", "map"):
        lines = hvcore(name, child, env=environment).stdout.splitlines()
        assert lines and max(map(len, lines)) <= 80
        assert all(line == line.rstrip() for line in lines)


def test_names_that_are_no_text_are_handled(hvcore, tmp_path):
    name = os.fsdecode(b"a\xff.vhdx")
    assert hvcore("create", name, "16M").returncode == 0
    assert (tmp_path / name).exists()
    assert json.loads(hvcore("info", name, "--json").stdout)["path"] == name
