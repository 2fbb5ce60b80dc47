"""`hvcore load` and `hvcore compare --sweep`, `--job`: real disks on real paths, and what they report."""

import json
import subprocess
import sys

import pytest

import hvcore
from hvcore.dispatch.load import LoadRun, run_loads
from hvcore.dispatch.pattern import KnownContent
from hvcore.dispatch.requesters import ChannelRequester
from hvcore.metrics.histogram import LatencyHistogram
from hvcore.report.options import PATHS
from tests.reference.vms import MIB, content, raw

JOBS = """
[global]
requests = 400
warm_up = 0.01
size = "1M"

[job.mixed]
queue_depth = 16
read = 50
write = 40
flush = 4
trim = 6
block_size = { "4k" = 3, "16k" = 1 }
offsets = "zipf"
length = "64k"

[job.ide]
path = "emulated"
offsets = "sequential"

[job.open]
rate = 20000
arrivals = "poisson"
queue_depth = 4

[job.ports]
path = "trapped"
queue_depth = 8
read = 5
write = 4
flush = 1
trim = 1

[job.words]
path = "trapped"
ide_mode = "pio-multiple"
rate = 5000

[job.fast]
path = "accelerated"
queue_depth = 8
write = 1

[job.here]
path = "local"
write = 1
"""


def run(*arguments, folder=None):
    return subprocess.run(
        [sys.executable, "-m", "hvcore", *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_jobs_run_together_and_verify(tmp_path):
    (tmp_path / "jobs.toml").write_text(JOBS)
    result = run("load", "jobs.toml", "--json", folder=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert found["schema"] == "hvcore.load/1"
    jobs = {job["name"]: job for job in found["jobs"]}
    assert list(jobs) == ["mixed", "ide", "open", "ports", "words", "fast", "here"]
    total, whole = found["total"], LatencyHistogram()
    for job in jobs.values():
        assert (job["requests"], job["errors"], job["wrong_blocks"], job["behind"]) == (400, 0, 0, 0)
        assert sum(row["requests"] for row in job["series"]) == 400
        assert sum(row["bytes"] for row in job["series"]) == job["bytes"]
        assert sum(each["requests"] for each in job["operations"].values()) == 400
        whole.merge(LatencyHistogram.from_dict(job["histogram"]))
    assert jobs["mixed"]["verified_bytes"] > 0 and jobs["mixed"]["operations"].keys() == {
        "read", "write", "flush", "trim"
    }  # fmt: skip
    assert jobs["ide"]["verified_bytes"] >= 400 * 4096 and (jobs["open"]["lag_ns"] is None) is False
    assert total["requests"] == 2800 == sum(row["requests"] for row in total["series"])
    assert LatencyHistogram.from_dict(total["histogram"]) == whole


def test_a_job_in_a_table(tmp_path):
    (tmp_path / "jobs.toml").write_text(JOBS)
    result = run("load", "jobs.toml", folder=tmp_path)
    assert result.returncode == 0 and max(map(len, result.stdout.splitlines())) <= 100
    heads = [line.split() for line in result.stdout.splitlines() if line.split()[:1] in (["mixed"], ["fast"])]
    assert heads[:2] == [["mixed", "ide", "open", "ports", "words"], ["fast", "here", "total"]]


def test_a_mistake_in_a_job_file_is_one_line(tmp_path):
    (tmp_path / "job.toml").write_text("[job.a]\nread = 'x'")
    result = run("load", "job.toml", folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "hvcore: job.toml:2: job.a.read: 'x' is not a number\n"
    assert run("load", "none.toml", folder=tmp_path).returncode == 1


def test_compare_runs_a_job_on_every_path(tmp_path):
    (tmp_path / "job.toml").write_text("[global]\nruntime = 0.05\n[job.a]\nread = 1\nwrite = 1\nqueue_depth = 4")
    found = json.loads(run("compare", "--job", "job.toml", "--json", folder=tmp_path).stdout)
    assert [one["path"] for one in found["runs"]] == list(PATHS)
    for one in found["runs"]:
        assert (one["rw"], one["errors"], one["load"]["operations"]) == ("randrw", 0, {"read": 1, "write": 1})
        assert one["verified_bytes"] > 0


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("[job.a]\n[job.b]", []),
        ("[global]\nrequests = 1\n[job.a]", []),
        ("[job.a]", ["--sweep", "qd=1"]),
    ],
)
def test_jobs_that_compare_cannot_run(tmp_path, text, arguments):
    (tmp_path / "job.toml").write_text(text)
    result = run("compare", "--job", "job.toml", *arguments, folder=tmp_path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1


def test_a_sweep_reports_each_combination():
    arguments = ["compare", "--runtime", "0.02", "--sweep", "bs=4k,8k", "qd=1,2", "paths=synthetic,emulated"]
    result = run(*arguments, "--json")
    assert result.returncode == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert found["schema"] == "hvcore.compare/1"
    assert [(one["block_size"], one["queue_depth"], one["path"]) for one in found["runs"]] == [
        (size, depth, path) for size in (4096, 8192) for depth in (1, 2) for path in ("synthetic", "emulated")
    ]
    assert [ratio["parameters"]["queue_depth"] for ratio in found["ratios"]] == [1, 2, 1, 2]
    table = run(*arguments)
    assert max(map(len, table.stdout.splitlines())) <= 100
    assert [line.split("  ")[0].strip() for line in table.stdout.splitlines() if " qd " in line] == [
        f"{size} KiB, qd {depth}" for size in (4, 8) for depth in (1, 2)
    ]


def test_a_block_that_changed_behind_the_vm_is_found(tmp_path):
    """The image is overwritten while the load rests: on the next pass the guest finds the place."""
    disk = raw(tmp_path / "disk.img", content(MIB))
    account = KnownContent(0, MIB, 4096)
    with hvcore.Host() as host, host.create_vm("load", "32M", [disk]) as vm:
        vm.start()
        with vm.attach() as guest:
            target = ChannelRequester(guest.disks[0].channel, MIB, 512, lun=guest.disks[0].lun)
            buffer = guest.alloc(8 * 4096)

            def one(operation):
                work = {"operations": {operation: 1}, "offsets": "sequential", "content": account}
                return run_loads([LoadRun(target, depth=8, buffer=buffer, **work)], requests=MIB // 4096)[0]

            assert one("write")["errors"] == 0
            assert (one("read")["verified_bytes"], one("read")["wrong_blocks"]) == (MIB, 0)
            with (tmp_path / "disk.img").open("r+b") as file:
                file.seek(123 * 4096)
                file.write(bytes(512))
            found = one("read")
            assert (found["wrong_blocks"], found["wrong_offset"], found["wrong_kind"]) == (1, 123 * 4096, "wrong")


def test_several_disks_are_loaded_at_once(tmp_path):
    disks = [raw(tmp_path / f"{number}.img", content(MIB), path=path) for number, path in enumerate(("synthetic",) * 3)]
    with hvcore.Host() as host, host.create_vm("load", "32M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            runs = [
                LoadRun(
                    ChannelRequester(disk.channel, disk.size, disk.sector_size, lun=disk.lun),
                    depth=depth,
                    buffer=guest.alloc(depth * 4096),
                )
                for disk, depth in zip(guest.disks, (1, 4, 16), strict=True)
            ]
            assert [each["requests"] for each in run_loads(runs, requests=1000)] == [1000] * 3
            assert [host_disk["requests"] for host_disk in vm.counters()["disks"]] >= [1000] * 3
            vm.stop()
            with pytest.raises(hvcore.GuestGone):
                run_loads(
                    [LoadRun(ChannelRequester(guest.disks[0].channel, MIB, 512), buffer=guest.alloc(4096))], requests=1
                )
