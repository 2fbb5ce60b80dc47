"""What one request costs on each path: exact on every machine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hvcore
from hvcore.partition.client import VirtualMachine
from hvcore.partition.disk import Disk
from hvcore.partition.guest import Guest
from hvcore.progress import silent
from hvcore.report.compare import compare
from hvcore.report.explain import explain
from hvcore.report.options import PATHS, CompareOptions, ExplainOptions
from tests.reference.vms import IDE_MODES, MIB, content, raw

PORT_ACCESSES = {"dma": 15, "pio": 2063, "pio-string": 23, "pio-multiple": 16}
# Up to the media access, and after it.
PARTS = {"dma": (11, 4), "pio": (7, 2056), "pio-string": (7, 16), "pio-multiple": (7, 9)}
EXACT = ("requests", "ring_packets", "hand_overs", "media_accesses", "port_accesses", "intercepts", "bytes_copied")
SYNTHETIC = dict(zip(EXACT, (1, 2, 2, 1, 0, 0, 0), strict=True))
DATA = content(MIB)
PER_REQUEST = {
    *("hand_overs", "ring_packets", "port_accesses", "intercepts", "bytes_copied"),
    *("doorbells", "blocking_waits", "context_switches"),
}
RUN = {
    *("path", "partition", "rw", "block_size", "queue_depth", "requests", "seconds", "iops", "bytes_per_second"),
    *("errors", "verified_bytes", "latency_ns", "per_request", "hops"),
}


def emulated(mode: str) -> dict[str, int]:
    copied = 0 if mode == "dma" else 4096
    return dict(zip(EXACT, (1, 2, 6, 1, PORT_ACCESSES[mode], 0, copied), strict=True))


def trapped(mode: str) -> dict[str, int]:
    """Each port access is an intercept, handed over and back, and so is the media access. VMBus takes no part."""
    accesses, copied = PORT_ACCESSES[mode], 0 if mode == "dma" else 4096
    return dict(zip(EXACT, (1, 0, 2 * accesses + 2, 1, accesses, accesses, copied), strict=True))


def expected_of(path: str, mode: str) -> dict[str, int]:
    """The accelerated path costs what the synthetic one costs: the emulated twin takes no part."""
    found = {"local": dict.fromkeys(SYNTHETIC, 0) | {"media_accesses": 1}, "synthetic": SYNTHETIC}
    found |= {"emulated": emulated(mode), "trapped": trapped(mode), "accelerated": SYNTHETIC}
    return found[path]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VirtualMachine, Guest]]:
    folder = tmp_path_factory.mktemp("images")
    disks = [raw(folder / "synthetic", DATA)]
    disks += [raw(folder / mode, DATA, path="emulated", ide_mode=mode) for mode in IDE_MODES]
    with hvcore.Host() as host, host.create_vm("counts", "32M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            yield vm, guest


def cost(vm: VirtualMachine, disk: Disk, call: Callable[[], object]) -> tuple[dict[str, int], dict[str, int]]:
    """What the call added to the host's counters and to the VSC's."""
    host, guest = vm.counters()["disks"], disk.channel.counters()
    call()
    host_now, guest_now = vm.counters()["disks"], disk.channel.counters()
    for other in range(len(host)):
        assert other == disk.number or all(host_now[other][name] == host[other][name] for name in EXACT)
    return (
        {name: host_now[disk.number][name] - host[disk.number][name] for name in EXACT},
        {name: guest_now[name] - guest[name] for name in guest},
    )


@pytest.mark.parametrize("number", range(5), ids=["synthetic", *IDE_MODES])
def test_a_read_of_4_kib(running: tuple[VirtualMachine, Guest], number: int) -> None:
    vm, guest = running
    disk = guest.disks[number]
    expected = emulated(disk.ide_mode) if disk.ide_mode else SYNTHETIC
    buffer = guest.alloc(4096)
    for offset in (0, 8192, MIB - 4096):
        host, vsc = cost(vm, disk, lambda offset=offset: disk.readinto(offset, buffer))
        assert host == expected
        assert (vsc["requests"], vsc["bytes_copied"], vsc["strays"]) == (1, 0, 0)
        assert memoryview(buffer) == DATA[offset : offset + 4096]


@pytest.mark.parametrize("number", range(5), ids=["synthetic", *IDE_MODES])
def test_bytes_are_copied_once_in_the_vsc(running: tuple[VirtualMachine, Guest], number: int) -> None:
    vm, guest = running
    disk = guest.disks[number]
    expected = emulated(disk.ide_mode) if disk.ide_mode else SYNTHETIC
    host, vsc = cost(vm, disk, lambda: disk.read(4096, 4096))
    assert host == expected
    assert (vsc["requests"], vsc["bytes_copied"]) == (1, 4096)
    host, vsc = cost(vm, disk, lambda: disk.readinto(4096, bytearray(4096)))
    assert host == expected
    assert (vsc["requests"], vsc["bytes_copied"]) == (1, 4096)


def test_a_batch_costs_what_its_requests_cost(running: tuple[VirtualMachine, Guest]) -> None:
    vm, guest = running
    for disk in guest.disks:
        one = emulated(disk.ide_mode) if disk.ide_mode else SYNTHETIC
        host, vsc = cost(
            vm, disk, lambda disk=disk: disk.read_batch([4096 * n for n in range(40)], bytearray(40 * 4096))
        )
        assert host == {name: 40 * value for name, value in one.items()}
        assert (vsc["requests"], vsc["bytes_copied"]) == (40, 40 * 4096)


def test_a_split_request_costs_its_parts(running: tuple[VirtualMachine, Guest]) -> None:
    vm, guest = running
    disk = guest.disks[0]
    host, vsc = cost(vm, disk, lambda: disk.readinto(0, guest.alloc(MIB)))
    parts = MIB // disk.channel.max_transfer
    assert parts > 1 and host == {name: parts * value for name, value in SYNTHETIC.items()}
    assert (vsc["requests"], vsc["bytes_copied"]) == (parts, 0)


@pytest.mark.parametrize("mode", IDE_MODES)
def test_explain_reports_just_these(mode: str) -> None:
    found = json.loads(explain(ExplainOptions(count=20, ide_mode=mode), silent).to_json())
    assert (found["schema"], found["block_size"], found["requests"]) == ("hvcore.explain/1", 4096, 20)
    assert [path["path"] for path in found["paths"]] == list(PATHS)
    for path in found["paths"]:
        expected = expected_of(path["path"], mode)
        assert path["per_request"] == {name: value for name, value in expected.items() if name != "requests"}
        assert path["total_ns"]["min"] > 0
        assert path["ide_mode"] == (mode if path["path"] in ("emulated", "trapped") else None)
        steps = path["steps"] + path["way_back"]
        assert [step["number"] for step in steps] == list(range(1, len(steps) + 1))
        assert all(step["p50_ns"] is not None for step in steps)
    assert [len(path["steps"]) for path in found["paths"]] == [1, 4, 5, 4, 4]
    assert [len(path["way_back"]) for path in found["paths"]] == [0, 2, 3, 2, 2]


@pytest.mark.parametrize("mode", IDE_MODES)
def test_explain_says_how_many_accesses_a_step_sums(mode: str) -> None:
    found = explain(ExplainOptions(count=5, ide_mode=mode, paths=("trapped", "emulated")), silent)
    through_ports, through_vmbus = found.paths
    forward, back = PARTS[mode]
    assert forward + back == PORT_ACCESSES[mode]
    assert [step.accesses for step in through_ports.steps] == [None, forward, forward, None]
    assert [step.accesses for step in through_ports.way_back] == [None, back]
    assert {step.accesses for step in through_vmbus.steps + through_vmbus.way_back} == {None}


@pytest.mark.parametrize(("mode", "rw"), [("pio-string", "read"), ("dma", "randwrite")])
def test_compare_reports_just_these(mode: str, rw: str) -> None:
    found = json.loads(compare(CompareOptions(seconds=0.08, ide_mode=mode, rw=rw, queue_depth=2), silent).to_json())
    assert found.keys() >= {"schema", "image", "machine", "runs", "ratios"} and found["schema"] == "hvcore.compare/1"
    assert [run["path"] for run in found["runs"]] == list(PATHS)
    others = [path for path in PATHS if path != "synthetic"]
    assert [(ratio["path"], ratio["over"]) for ratio in found["ratios"]] == [(path, "synthetic") for path in others]
    for run in found["runs"]:
        assert run.keys() >= RUN and run["per_request"].keys() >= PER_REQUEST
        assert (run["rw"], run["block_size"], run["errors"]) == (rw, 4096, 0)
        assert run["requests"] > 0 and run["seconds"] > 0 and run["iops"] == run["requests"] / run["seconds"]
        assert run["queue_depth"] == (1 if run["path"] in ("local", "trapped") else 2)
        if "read" in rw:
            assert run["verified_bytes"] > 0
        if run["path"] != "local":
            assert run["partition"] == "process" and run["hops"]
            assert all(hop["p50_ns"] <= hop["p99_ns"] for hop in run["hops"])
            for name, value in run["per_request"].items():
                if name in SYNTHETIC:
                    assert value == expected_of(run["path"], mode)[name], (run["path"], name)


def test_compare_of_a_named_image_leaves_it_alone(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(DATA)
    found = compare(CompareOptions(image=str(image), format="raw", seconds=0.02, paths=("synthetic",)), silent)
    assert found.to_dict()["image"] == {"path": str(image), "format": "raw", "size_bytes": MIB, "sector_size": 512}
    assert image.read_bytes() == DATA
