"""Job files: what they mean, and errors that name file, line and key."""

import pytest

from hvcore.report.job import JobError, parse, read
from hvcore.report.options import CompareOptions, OptionError, is_axis, sweep_option
from hvcore.report.workload import Workload

WHOLE = """
[global]
runtime = 2.5
warm_up = 1
memory = "128M"
series = false
queue_depth = 4
read = 100

[job.database]
image = "data.vhdx"
overwrite = true
read = 70
write = 30
block_size = { "4k" = 3, 65536 = 1 }
offsets = "zipf"
theta = 1.2
first = "1M"
length = "8M"
rate = 1000
arrivals = "poisson"
seed = 7

[job.log]
path = "emulated"
offsets = "sequential"
size = "16M"
"""


def test_a_whole_file():
    file = parse(WHOLE, "folder/jobs.toml")
    assert (file.seconds, file.warm_up, file.memory_bytes, file.series, file.requests) == (
        2.5,
        1,
        128 << 20,
        False,
        None,
    )
    database, log = file.jobs
    assert (database.name, database.image, database.overwrite) == ("database", "folder/data.vhdx", True)
    assert database.workload == Workload(
        operations={"read": 70, "write": 30},
        block_sizes={4096: 3, 65536: 1},
        offsets="zipf",
        theta=1.2,
        first=1 << 20,
        length=8 << 20,
        queue_depth=4,
        rate=1000,
        arrivals="poisson",
        seed=7,
    )
    assert (log.path, log.image, log.size_bytes) == ("emulated", None, 16 << 20)
    assert (log.workload.operations, log.workload.rw, log.workload.queue_depth) == ({"read": 100}, "read", 4)


def test_defaults():
    file = parse("[job.a]")
    assert (file.seconds, file.requests, file.series) == (3.0, None, True)
    assert file.jobs[0].workload == Workload()
    assert parse("[global]\nrequests = 10\n[job.a]").seconds is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[job.a]\n\nblock_size = '5q'", "f.toml:3: job.a.block_size: '5q' is not a size"),
        ("[global]\nruntime = 0\n[job.a]", "f.toml:2: global.runtime: 0 is not above 0"),
        ("[global]\nruntime = nan\n[job.a]", "f.toml:2: global.runtime: nan is not a number"),
        ("[global]\nruntime = true\n[job.a]", "f.toml:2: global.runtime: True is not a number"),
        ("[job.a]\nqueue_depth = 257", "f.toml:2: job.a.queue_depth: 257 is not a whole number between 1 and 256"),
        ("[job.a]\nqueue_depth = 1.5", "f.toml:2: job.a.queue_depth: 1.5 is not a whole number"),
        ("[job.a]\nreads = 1", "f.toml:2: job.a.reads: there is no such key; there are image,"),
        ("[job.a]\nruntime = 1", "f.toml:2: job.a.runtime: there is no such key"),
        ("[job.a]\nread = 0", "f.toml:1: job.a: no operation has a share above 0"),
        ("[job.a]\nwrite = -1", "f.toml:2: job.a.write: -1 is not between 0"),
        ("[job.a]\npath = 'nvme'", "f.toml:2: job.a.path: 'nvme' is not one of local, synthetic"),
        ("[job.a]\noffsets = 1", "f.toml:2: job.a.offsets: 1 is not one of uniform, sequential, zipf"),
        ("[job.a]\nblock_size = {4k = 1, 6k = 1}", "f.toml:2: job.a.block_size: 6144 bytes are not a multiple"),
        ("[job.a]\nblock_size = {4k = 1, 4096 = 1}", "f.toml:2: job.a.block_size: a block size is given twice"),
        ("[job.a]\nblock_size.4k = 0", "f.toml:2: job.a.block_size: no block size has a weight"),
        ("[job.a]\nverify = 1", "f.toml:2: job.a.verify: 1 is not true or false"),
        ("[job.a]\nimage = ''", "f.toml:2: job.a.image: '' is not the name of a file"),
        ("[job.a]\nwrite = 1\nimage = 'x'", "f.toml:3: job.a.image: the job would destroy"),
        ("[job.a]\nsize = 1048577", "f.toml:2: job.a.size: a temporary image is a number of MiB"),
        ("[job.a]\nsize = '1M'\nfirst = '1M'", "f.toml:2: job.a.size: the range ends at"),
        ("[job.a]\nfirst = 513", "f.toml:2: job.a.first: byte 513"),
        ("[job.a]\nlength = '2k'", "f.toml:2: job.a.length: no block of 4096 bytes fits"),
        ("[job.a]\nformat = 'vhd'", "f.toml:2: job.a.format: a temporary image is raw"),
        ("[job.a]\npath='local'\nqueue_depth = 2", "f.toml:3: job.a.queue_depth: the local path"),
        ("[job.a]\npath='emulated'\nsector_size=4096", "f.toml:3: job.a.sector_size: an IDE disk"),
        ("[job.'a b']", "f.toml: job.a b: a job's name is"),
        ("[jobs.a]", "f.toml: jobs: there is no such section"),
        ("[global]", "f.toml: job: a file has 1 to 64 sections"),
        ("job = 1", "f.toml: job: a file has 1 to 64 sections"),
        ("job.a = 1", "f.toml: job.a: not a table"),
        ("global = 1\n[job.a]", "f.toml: global: not a table"),
        ("[job.a]\nx", "f.toml: not TOML: "),
    ],
)
def test_a_mistake_names_line_and_key(text, message):
    with pytest.raises(JobError) as caught:
        parse(text, "f.toml")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


SHARED = "[global]\nimage = 'x'\noverwrite = true\nwrite = 1\n[job.a]\n{}\n[job.b]\n{}"


@pytest.mark.parametrize(
    ("one", "other", "fits"),
    [
        ("", "", False),
        ("length = '1M'", "first = '1M'", True),
        ("length = '1M'", "first = '512k'", False),
        ("length = '1M'", "first = '1M'\npath = 'local'", False),
        ("read = 1", "read = 1", True),
    ],
)
def test_writers_of_one_image_have_their_own_ranges(one, other, fits):
    if fits:
        assert len(parse(SHARED.format(one, other)).jobs) == 2
    else:
        with pytest.raises(JobError, match=r"job\.b\.image: "):
            parse(SHARED.format(one, other))


def test_strange_files(tmp_path):
    file = tmp_path / "job.toml"
    file.write_bytes(b"\xff")
    with pytest.raises(JobError, match="not UTF-8"):
        read(str(file))
    file.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(JobError, match="at most"):
        read(str(file))
    with pytest.raises(FileNotFoundError):
        read(str(tmp_path / "none"))


# Plain workloads and sweeps.


@pytest.mark.parametrize("rw", ["randread", "randwrite", "read", "write", "randrw", "rw"])
def test_plain_workloads_have_their_names(rw):
    work = Workload.plain(rw, 4096, 8)
    assert (work.rw, work.writes, work.buffer_bytes) == (rw, rw not in ("read", "randread"), 32768)


def test_read_percent():
    assert Workload.plain("rw", 4096, 1, 20).operations == {"read": 20, "write": 80}
    assert Workload.plain("rw", 4096, 1, 100).rw == "read"
    with pytest.raises(OptionError, match="--read-percent"):
        CompareOptions(rw="rw", read_percent=101)


def test_a_sweep_is_every_combination():
    found = sweep_option(CompareOptions(seconds=1), ["bs=4k,64k", "qd=1,8", "paths=local,synthetic"])
    assert [(each.block_size, each.queue_depth) for each in found] == [(4096, 1), (4096, 8), (65536, 1), (65536, 8)]
    assert {each.paths for each in found} == {("local", "synthetic")} and {each.seconds for each in found} == {1}


@pytest.mark.parametrize(
    ("axes", "named"),
    [
        (["bs"], "'bs' is not one of"),
        (["depth=1"], "'depth=1' is not one of"),
        (["bs=4k", "bs=8k"], "bs is given twice"),
        (["qd=1,1"], "lists a value twice"),
        (["qd=1,x"], "whole numbers"),
        (["qd=0"], "--qd: 0"),
        (["bs=4q"], "--sweep bs: '4q'"),
        (["rw=trim"], "--rw: 'trim'"),
        (["path=none"], "--paths: 'none'"),
        ([], "nothing to sweep"),
        (
            ["qd=" + ",".join(map(str, range(1, 102))), "bs=" + ",".join(str(512 * n) for n in range(1, 11))],
            "more than",
        ),
    ],
)
def test_bad_axes(axes, named):
    with pytest.raises(OptionError) as caught:
        sweep_option(CompareOptions(), axes)
    assert named in str(caught.value)


def test_an_image_is_no_axis():
    assert is_axis("qd=1") and not is_axis("disk.vhd") and not is_axis("./qd=1") and not is_axis("size=1")
