"""The machine as the kernel describes it, read from a fabricated tree."""

import os

import pytest

from hvcore.linux.quota import cpu_quota, usable_cpus
from hvcore.report.machine import cpu_list, cpu_model, describe


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_quota_is_the_tightest_of_the_ancestors(tmp_path):
    files = {
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/user/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/user/job/cpu.max": "400000 100000\n",
    }
    assert cpu_quota(tree(tmp_path, files)) == 1.5


def test_quota_in_a_container_is_the_mounts_own(tmp_path):
    files = {"proc/self/cgroup": "0::/not/visible/here\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}
    assert cpu_quota(tree(tmp_path, files)) == 0.5


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_quota_of_the_first_cgroup_version(tmp_path, mount):
    files = {
        "proc/self/cgroup": "3:memory:/job\n2:cpu,cpuacct:/job\n0::/\n",
        f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us": "-1\n",
        f"sys/fs/cgroup/{mount}/cpu.cfs_period_us": "100000\n",
        f"sys/fs/cgroup/{mount}/job/cpu.cfs_quota_us": "200000\n",
        f"sys/fs/cgroup/{mount}/job/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(tree(tmp_path, files)) == 2.0


def test_no_quota_without_cgroups(tmp_path):
    assert cpu_quota(tmp_path) is None


def test_model_name_or_architecture(tmp_path):
    assert cpu_model(tmp_path) == os.uname().machine
    assert cpu_model(tree(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel name\t: Example 9000\n"})) == "Example 9000"


@pytest.mark.parametrize(("cpus", "text"), [([], ""), ([3], "3"), ([1, 0], "0-1"), ([0, 1, 2, 5, 7, 8], "0-2,5,7-8")])
def test_cpu_lists_as_the_kernel_writes_them(cpus, text):
    assert cpu_list(cpus) == text


def test_this_machine():
    machine = describe(placement="pinned")
    assert machine.cpus == sorted(os.sched_getaffinity(0))
    assert machine.placement == "pinned"
    assert machine.spinners == usable_cpus() - 1 >= 0
    assert describe(spinners=0).spinners == 0
