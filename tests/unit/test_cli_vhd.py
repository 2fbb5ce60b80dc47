"""hvcore vhd: what each command hands over, says, prints as JSON and ends with. The work itself is replaced."""

import json
import signal
from dataclasses import replace
from uuid import UUID

import pytest

import hvcore.vhd
from hvcore.cli import main
from hvcore.disk.image import ImageInfo
from hvcore.errors import DiskError, ImageDamaged, ImageInUse
from hvcore.vhd.check import CheckResult, Finding
from hvcore.vhd.compact import CompactResult
from hvcore.vhd.compare import Difference
from hvcore.vhd.extents import Extent
from hvcore.vhd.repair import RepairResult

MIB = 1 << 20
ID = UUID("00112233-4455-6677-8899-aabbccddeeff")
INFO = ImageInfo("a.vhdx", "vhdx", "dynamic", 64 * MIB, 4 * MIB, 512, 4096, block_size=2 * MIB, disk_id=ID, identity=ID)
CHILD = replace(INFO, path="c.vhdx", type="differencing", parent="a.vhdx")
CLEAN = CheckResult("a.vhdx", "vhdx", "dynamic", (), 32, 3, 0, 10 * MIB, "empty")
HEADER = Finding("header 1", 65536, "its checksum is wrong", "damage", "written anew from header 2")
ENTRY = Finding("BAT entry 5", 2 * MIB + 40, "its block lies beyond the end of the file", "damage", None)
WARNING = Finding("file", None, "1 MiB is not referenced", "warning", None)


@pytest.fixture(autouse=True)
def signals():
    """The command line takes SIGTERM for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


class Replaced:
    """Stands for one function of hvcore.vhd: keeps what it was called with, gives or raises what it was told."""

    def __init__(self, result):
        self.result = result
        self.arguments = self.options = None

    def __call__(self, *arguments, **options):
        assert self.arguments is None, "called twice"
        options.pop("progress", None)
        self.arguments, self.options = arguments, options
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def replaced(monkeypatch):
    def put(name, result):
        stand_in = Replaced(result)
        monkeypatch.setattr(hvcore.vhd, name, stand_in, raising=False)
        return stand_in

    return put


@pytest.fixture
def run(capsys):
    def command(*arguments):
        code = main(["vhd", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return command


def words(text):
    """The words of each line that has any."""
    return [line.split() for line in text.splitlines() if line]


# --- what is handed over -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["d.vhdx", "64M"], ("vhdx", "dynamic", None, 512)),
        (["d", "64M"], ("vhdx", "dynamic", None, 512)),
        (["d.qcow2", "64M"], ("vhdx", "dynamic", None, 512)),
        (["d.avhdx", "64M"], ("vhdx", "dynamic", None, 512)),
        (["d.vhd", "64M"], ("vhd", "dynamic", None, 512)),
        (["d.AVHD", "64M"], ("vhd", "dynamic", None, 512)),
        (["d.raw", "64M"], ("raw", "dynamic", None, 512)),
        (["d.img", "64M"], ("raw", "dynamic", None, 512)),
        (["d.img", "64M", "--format", "vhdx"], ("vhdx", "dynamic", None, 512)),
        (["d.vhdx", "64M", "--type", "fixed", "--block-size", "1M"], ("vhdx", "fixed", MIB, 512)),
        (["d.vhdx", "64M", "--sector-size", "4096"], ("vhdx", "dynamic", None, 4096)),
    ],
)
def test_create_goes_by_format_then_by_name(arguments, given, run, replaced):
    create = replaced("create", INFO)
    assert run("create", *arguments)[0] == 0
    assert create.arguments == (arguments[0], 64 * MIB, *given)
    assert create.options == {"preallocate": True}


def test_create_may_leave_space_to_the_file_system(run, replaced):
    create = replaced("create", INFO)
    assert run("create", "d.vhd", "1G", "--type", "fixed", "--no-preallocate")[0] == 0
    assert create.options == {"preallocate": False}


def test_a_child_goes_by_its_parent(run, replaced):
    replaced("info", INFO)
    child = replaced("create_child", CHILD)
    assert run("create", "c.avhdx", "--parent", "a.vhdx", "--block-size", "1M")[0] == 0
    assert (child.arguments, child.options) == (("a.vhdx", "c.avhdx"), {"block_size": MIB})


def test_a_child_may_be_larger(run, replaced):
    replaced("info", INFO)
    replaced("create_child", CHILD)
    resize = replaced("resize", replace(CHILD, size=128 * MIB))
    code, out, _ = run("create", "c.vhdx", "128M", "--parent", "a.vhdx")
    assert (code, resize.arguments) == (0, ("c.vhdx", 128 * MIB))
    assert ["size", "128", "MiB,", "134,217,728", "bytes"] in words(out)


def test_a_child_that_cannot_be_larger_is_not_left(run, replaced, tmp_path):
    (tmp_path / "c.vhdx").touch()
    replaced("info", INFO)
    replaced("create_child", CHILD)
    replaced("resize", DiskError("no space"))
    assert run("create", str(tmp_path / "c.vhdx"), "128M", "--parent", "a.vhdx") == (1, "", "hvcore: no space\n")
    assert not (tmp_path / "c.vhdx").exists()


def test_convert_hands_over_what_was_asked(run, replaced):
    convert = replaced("convert", INFO)
    options = ["--to", "vhd", "--type", "fixed", "--block-size", "512k", "--sector-size", "512", "--format", "raw"]
    assert run("convert", "a.img", "b.vhdx", "--no-preallocate", *options)[0] == 0
    assert convert.arguments == ("a.img", "b.vhdx", "vhd", "fixed")
    assert convert.options == {
        **{"source_format": "raw", "block_size": 512 << 10, "sector_size": 512},
        **{"preallocate": False},
    }


@pytest.mark.parametrize(("name", "format"), [("b.vhd", "vhd"), ("b.img", "raw"), ("b", "vhdx")])
def test_convert_goes_by_the_name_of_the_new_file(name, format, run, replaced):
    convert = replaced("convert", INFO)
    assert run("convert", "a.vhdx", name)[0] == 0
    assert convert.arguments == ("a.vhdx", name, format, "dynamic")


@pytest.mark.parametrize(("text", "size"), [("128M", 128 * MIB), ("+1G", 64 * MIB + (1 << 30)), ("1k", 1024)])
def test_resize_takes_a_size_or_a_growth(text, size, run, replaced):
    replaced("info", INFO)
    resize = replaced("resize", replace(INFO, size=size))
    code, out, _ = run("resize", "a.vhdx", text, "--force", "--format", "vhdx", "--json")
    assert (code, resize.arguments) == (0, ("a.vhdx", size))
    assert resize.options == {"format": "vhdx", "force": True}
    found = json.loads(out)
    assert (found["schema"], found["size"], found["previous_size"]) == ("hvcore.vhd-resize/1", size, 64 * MIB)


@pytest.mark.parametrize(
    ("name", "arguments", "result", "given", "options"),
    [
        ("check", ["a"], CLEAN, ("a", None), {"chain": True}),
        ("check", ["a", "--no-chain", "--format", "vhd"], CLEAN, ("a", "vhd"), {"chain": False}),
        ("repair", ["a"], RepairResult("a", None, (), ()), ("a", None), {"trust_head": False, "backup": None}),
        (
            *("repair", ["a", "--trust-head", "--backup", "b", "--format", "vhd"]),
            *(RepairResult("a", "b", (), ()), ("a", "vhd"), {"trust_head": True, "backup": "b"}),
        ),
        ("compact", ["a"], CompactResult("a", 2, 1, 1, 0), ("a",), {"zeros": True}),
        ("compact", ["a", "--keep-zeros"], CompactResult("a", 2, 1, 1, 0), ("a",), {"zeros": False}),
        ("merge", ["c"], INFO, ("c",), {}),
        ("rebase", ["c", "p"], CHILD, ("c", "p"), {"copy": True}),
        ("rebase", ["c", "p", "--unsafe"], CHILD, ("c", "p"), {"copy": False}),
        ("chain", ["c", "--format", "vhdx"], [CHILD, INFO], ("c", "vhdx"), {}),
        (
            *("compare", ["a", "b", "--format", "raw", "--second-format", "vhd"], Difference(True, None, (1, 1))),
            *(("a", "b"), {"first_format": "raw", "second_format": "vhd"}),
        ),
    ],
)
def test_what_is_asked_is_handed_over(name, arguments, result, given, options, run, replaced):
    work = replaced(name, result)
    code, _, err = run(name, *arguments)
    assert (code, err, work.arguments, work.options) == (0, "", given, options)


def test_repair_puts_a_backup_back(run, monkeypatch):
    restore = Replaced(None)
    monkeypatch.setattr("hvcore.vhd.backup.restore", restore)
    assert run("repair", "a", "--restore", "b") == (0, "a: as it was when b was made\n", "")
    assert restore.arguments == ("b", "a")


def test_repair_puts_a_backup_back_as_json(run, monkeypatch):
    monkeypatch.setattr("hvcore.vhd.backup.restore", Replaced(None))
    assert as_json(run("repair", "a", "--restore", "b", "--json")) == (
        *(0, {"schema": "hvcore.vhd-repair/1", "path": "a", "restored": "b"}),
    )


# --- bad usage and failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["create"], "path"),
        (["create", "d.vhdx"], "SIZE"),
        (["create", "d.vhdx", "large"], "SIZE"),
        (["create", "d.vhdx", "1M", "--format", "qcow2"], "--format"),
        (["create", "d.vhdx", "1M", "--type", "sparse"], "--type"),
        (["create", "d.vhdx", "1M", "--block-size", "2 miles"], "--block-size"),
        (["create", "d.vhdx", "1M", "--sector-size", "1024"], "--sector-size"),
        (["create", "c.vhdx", "--parent", "a.vhdx", "--type", "fixed"], "--type"),
        (["create", "c.vhdx", "--parent", "a.vhdx", "--sector-size", "512"], "--sector-size"),
        (["create", "c.vhdx", "--parent", "a.vhdx", "--no-preallocate"], "--no-preallocate"),
        (["create", "c.vhd", "--parent", "a.vhdx"], "--format"),
        (["create", "c.vhdx", "--parent", "a.vhdx", "--format", "vhd"], "--format"),
        (["convert", "a.vhdx"], "destination"),
        (["convert", "a.vhdx", "b.vhdx", "--to", "vmdk"], "--to"),
        (["convert", "a.vhdx", "b.vhdx", "--type", "thin"], "--type"),
        (["convert", "a.vhdx", "b.vhdx", "--sector-size", "520"], "--sector-size"),
        (["resize", "a.vhdx"], "size"),
        (["resize", "a.vhdx", "+"], "SIZE"),
        (["resize", "a.vhdx", "++1G"], "SIZE"),
        (["resize", "a.vhdx", "-1G"], "-1"),
        (["compact"], "path"),
        (["merge", "a", "b"], "b"),
        (["rebase", "a"], "parent"),
        (["map", "a", "--format", "iso"], "--format"),
        (["compare", "a"], "second"),
        (["compare", "a", "b", "--second-format", "x"], "--second-format"),
        (["info", "a", "b"], "b"),
        (["check", "a", "--fix"], "--fix"),
        (["repair", "a", "--restore", "b", "--backup", "c"], "--restore"),
        (["repair", "a", "--restore", "b", "--trust-head"], "--restore"),
        (["mount", "a"], "mount"),
    ],
)
def test_bad_usage_names_what_is_wrong(arguments, name, run, replaced):
    for work in ("create", "create_child", "convert", "resize", "compact", "merge", "rebase", "check", "compare"):
        replaced(work, AssertionError("called"))
    replaced("info", INFO)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("hvcore: ") and err.count("\n") == 1
    assert name.lower() in err.lower()


def test_bad_usage_says_whose_help_helps(run):
    assert run("resize", "a")[2].endswith("(see hvcore vhd resize --help)\n")


def test_arguments_that_make_no_sense_are_bad_usage(run, replaced):
    replaced("create", ValueError("the size is a positive multiple of 512, not 1000"))
    line = "hvcore: the size is a positive multiple of 512, not 1000\n"
    assert run("create", "d.vhdx", "1000") == (2, "", line)


COMMANDS = {
    "create": ["d.vhdx", "1M"],
    "info": ["d"],
    "check": ["d"],
    "repair": ["d"],
    "convert": ["d", "e"],
    "resize": ["d", "1M"],
    "compact": ["d"],
    "chain": ["d"],
    "merge": ["d"],
    "rebase": ["d", "e"],
    "map": ["d"],
    "compare": ["d", "e"],
}
CALLED = {"info": "chain", "map": "open"}


@pytest.mark.parametrize("json", [[], ["--json"]])
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "error", [ImageInUse("d: in use"), ImageDamaged("d: header 1: wrong"), DiskError("medium error"), OSError("full")]
)
def test_failed_work_is_one_line_and_exit_1(name, error, json, run, replaced):
    replaced("info", INFO)
    replaced(CALLED.get(name, name), error)
    assert run(name, *COMMANDS[name], *json) == (1, "", f"hvcore: {error}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_ends_with_130(name, run, replaced):
    replaced("info", INFO)
    replaced(CALLED.get(name, name), KeyboardInterrupt())
    assert run(name, *COMMANDS[name]) == (130, "", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_what_it_does(name, run):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert "--json" in out


# --- what people read --------------------------------------------------------------------------------------------


def test_info_names_parent_chain_and_notes(run, replaced):
    replaced("chain", [replace(CHILD, notes=("header 1 is damaged", "the log was replayed in memory")), INFO])
    code, out, _ = run("info", "c.vhdx")
    assert code == 0
    lines = words(out)
    assert ["parent", "a.vhdx"] in lines and ["chain", "length", "2"] in lines
    assert ["notes", "header", "1", "is", "damaged"] in lines
    assert ["the", "log", "was", "replayed", "in", "memory"] in lines


def test_chain_lists_the_child_first(run, replaced):
    replaced("chain", [CHILD, INFO])
    assert words(run("chain", "c.vhdx")[1]) == [
        ["0", "c.vhdx"],
        ["vhdx,", "differencing;", "64", "MiB;", "id", str(ID)],
        ["1", "a.vhdx"],
        ["vhdx,", "dynamic;", "64", "MiB;", "id", str(ID)],
    ]


@pytest.mark.parametrize(
    ("findings", "code", "verdict"),
    [
        ((), 0, "a.vhdx: clean"),
        ((WARNING,), 0, "a.vhdx: clean, 1 warning"),
        ((WARNING, replace(WARNING, severity="note"), WARNING), 0, "a.vhdx: clean, 2 warnings"),
        ((HEADER,), 3, "a.vhdx: damaged; repair can mend it without loss"),
        ((HEADER, ENTRY), 3, "a.vhdx: damaged; repair can mend 1 of 2 findings without loss"),
        ((ENTRY, WARNING), 3, "a.vhdx: damaged; repair cannot mend it"),
    ],
)
def test_check_ends_in_a_verdict(findings, code, verdict, run, replaced):
    replaced("check", replace(CLEAN, findings=findings))
    found, out, err = run("check", "a.vhdx")
    assert (found, err, out.splitlines()[-1]) == (code, "", verdict)


def test_check_says_where_and_what_helps(run, replaced):
    replaced("check", replace(CLEAN, findings=(HEADER, ENTRY, WARNING)))
    out = run("check", "a.vhdx")[1]
    assert words(out)[1:] == [
        ["format", "vhdx,", "dynamic"],
        ["file", "size", "10", "MiB,", "10,485,760", "bytes"],
        ["blocks", "3", "of", "32", "allocated"],
        ["unreferenced", "0", "bytes"],
        ["log", "empty"],
        ["damage", "header", "1,", "byte", "65,536", "(0x10000)"],
        ["its", "checksum", "is", "wrong"],
        ["repair:", "written", "anew", "from", "header", "2"],
        ["damage", "BAT", "entry", "5,", "byte", "2,097,192", "(0x200028)"],
        ["its", "block", "lies", "beyond", "the", "end", "of", "the", "file"],
        ["repair:", "cannot", "mend", "this"],
        ["warning", "file"],
        ["1", "MiB", "is", "not", "referenced"],
        ["a.vhdx:", "damaged;", "repair", "can", "mend", "1", "of", "2", "findings", "without", "loss"],
    ]


@pytest.mark.parametrize(
    ("result", "code", "verdict"),
    [
        (RepairResult("a", None, (), ()), 0, "a: nothing to repair"),
        (RepairResult("a", "a.backup", ("header 1 was written anew", "the log was replayed"), ()), 0, "a: repaired"),
        (RepairResult("a", "a.backup", ("header 1 was written anew",), (WARNING,)), 0, "a: repaired"),
        (RepairResult("a", "a.backup", ("header 1 was written anew",), (ENTRY,)), 1, "a: damage remains, 1 finding"),
        (RepairResult("a", None, (), (ENTRY, ENTRY)), 1, "a: damage remains, 2 findings"),
    ],
)
def test_repair_says_what_was_kept_done_and_left(result, code, verdict, run, replaced):
    replaced("repair", result)
    found, out, err = run("repair", "a")
    assert (found, err, out.splitlines()[-1]) == (code, "", verdict)
    assert ["backup", result.backup or "–"] in words(out)
    for action in result.actions:
        assert action in out
    for finding in result.remaining:
        assert finding.message in out


def test_compact_says_what_it_gained(run, replaced):
    replaced("compact", CompactResult("a.vhdx", 12 * MIB, 6 * MIB, 1, 2))
    assert words(run("compact", "a.vhdx")[1]) == [
        ["image", "a.vhdx"],
        ["before", "12", "MiB,", "12,582,912", "bytes"],
        ["after", "6", "MiB,", "6,291,456", "bytes"],
        ["freed", "1", "block"],
        ["moved", "2", "blocks"],
    ]


@pytest.mark.parametrize(
    ("found", "code", "line"),
    [
        (Difference(True, None, (MIB, MIB)), 0, "identical: both disks hold the same 1 MiB"),
        (
            *(Difference(False, 1234567, (MIB, 2 * MIB)), 1),
            "different: the first difference is at byte 1,234,567 (0x12d687) of the disks",
        ),
        (
            *(Difference(False, None, (MIB, 2 * MIB)), 1),
            "different in size only: b has 2,097,152 bytes, a 1,048,576; what only the larger one has reads as zeros",
        ),
    ],
)
def test_compare_says_where_disks_differ(found, code, line, run, replaced):
    replaced("compare", found)
    assert run("compare", "a", "b") == (code, f"{line}\n", "")


class Mapped:
    """An open image of three pieces."""

    size = 64 * MIB
    info = INFO

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def extents(self, *, chain):
        yield Extent(0, 2 * MIB, "data", 4 * MIB)
        if chain:
            yield Extent(2 * MIB, 2 * MIB, "data", 8 * MIB, 1)
        else:
            yield Extent(2 * MIB, 2 * MIB, "parent", None)
        yield Extent(4 * MIB, 60 * MIB, "zero", None, int(chain))


def test_map_lists_pieces_in_order(run, replaced):
    replaced("open", Mapped())
    assert words(run("map", "c.vhdx")[1]) == [
        ["offset", "length", "state", "in", "file"],
        ["0", "2,097,152", "data", "4,194,304"],
        ["2,097,152", "2,097,152", "parent", "–"],
        ["4,194,304", "62,914,560", "zero", "–"],
        ["3", "extents:", "2", "MiB", "data,", "60", "MiB", "zero,", "2", "MiB", "parent"],
    ]


def test_map_of_a_chain_says_in_which_file(run, replaced):
    replaced("open", Mapped())
    replaced("chain", [CHILD, INFO])
    assert words(run("map", "c.vhdx", "--chain")[1])[1:] == [
        ["0", "2,097,152", "data", "4,194,304", "0"],
        ["2,097,152", "2,097,152", "data", "8,388,608", "1"],
        ["4,194,304", "62,914,560", "zero", "–", "1"],
        ["3", "extents:", "4", "MiB", "data,", "60", "MiB", "zero"],
    ]


# --- JSON --------------------------------------------------------------------------------------------------------

FACTS = {
    **{"path": "a.vhdx", "format": "vhdx", "type": "dynamic", "size": 64 * MIB, "file_size": 4 * MIB},
    **{"sector_size": 512, "physical_sector_size": 4096, "block_size": 2 * MIB, "disk_id": str(ID), "parent": None},
    "notes": [],
    "identity": str(ID),
}


def as_json(answer):
    code, out, err = answer
    assert err == ""
    return code, json.loads(out)


@pytest.mark.parametrize(
    ("name", "arguments", "work", "result", "expected"),
    [
        ("create", ["a.vhdx", "64M"], "create", INFO, FACTS),
        ("info", ["a.vhdx"], "chain", [INFO], FACTS | {"chain_length": 1}),
        ("convert", ["a", "a.vhdx"], "convert", INFO, FACTS),
        ("merge", ["c.vhdx"], "merge", INFO, FACTS | {"merged": "c.vhdx"}),
        ("rebase", ["a.vhdx", "p"], "rebase", INFO, FACTS),
        ("chain", ["a.vhdx"], "chain", [INFO, INFO], {"images": [FACTS, FACTS]}),
        (
            *("compact", ["a"], "compact", CompactResult("a", 3, 2, 1, 0)),
            {"path": "a", "before": 3, "after": 2, "freed_blocks": 1, "moved_blocks": 0},
        ),
        (
            *("compare", ["a", "b"], "compare", Difference(True, None, (5, 5))),
            {"first": "a", "second": "b", "equal": True, "offset": None, "sizes": [5, 5]},
        ),
    ],
)
def test_json_is_one_object_of_a_named_schema(name, arguments, work, result, expected, run, replaced):
    replaced(work, result)
    assert as_json(run(name, *arguments, "--json")) == (0, {"schema": f"hvcore.vhd-{name}/1"} | expected)


def test_check_as_json(run, replaced):
    replaced("check", replace(CLEAN, findings=(HEADER,)))
    code, found = as_json(run("check", "a.vhdx", "--json"))
    assert code == 3
    assert found == {
        **{"schema": "hvcore.vhd-check/1", "path": "a.vhdx", "format": "vhdx", "type": "dynamic", "clean": False},
        **{"blocks": 32, "allocated_blocks": 3, "unreferenced_bytes": 0, "file_size": 10 * MIB, "log": "empty"},
        "findings": [
            {
                **{"structure": "header 1", "offset": 65536, "message": "its checksum is wrong"},
                **{"severity": "damage", "repair": "written anew from header 2"},
            }
        ],
    }


def test_repair_as_json(run, replaced):
    replaced("repair", RepairResult("a", "b", ("header 1 was written anew",), (ENTRY,)))
    code, found = as_json(run("repair", "a", "--json"))
    assert code == 1
    assert [found[key] for key in ("schema", "backup", "clean")] == ["hvcore.vhd-repair/1", "b", False]
    assert found["actions"] == ["header 1 was written anew"] and found["remaining"][0]["repair"] is None


def test_map_as_json(run, replaced):
    replaced("open", Mapped())
    code, found = as_json(run("map", "c.vhdx", "--json", "--chain"))
    assert (code, found["schema"], found["path"]) == (0, "hvcore.vhd-map/1", "c.vhdx")
    assert (found["size"], found["chain"]) == (64 * MIB, True)
    assert found["extents"][1] == {
        **{"offset": 2 * MIB, "length": 2 * MIB, "state": "data", "file_offset": 8 * MIB, "depth": 1}
    }
    assert len(found["extents"]) == 3
