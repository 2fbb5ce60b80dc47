"""What a VM may be made of."""

from pathlib import Path

import pytest

from hvcore.partition.config import DiskConfig, VmConfig


def test_round_trip() -> None:
    disks = [DiskConfig("a.vhd", read_only=True), DiskConfig("b", path="emulated", format="raw", ide_mode="pio")]
    config = VmConfig.make("web-1.x_y", "64M", disks)
    assert config.memory == 64 << 20
    assert VmConfig.from_json(config.to_json()) == config


def test_classes_and_rules_travel() -> None:
    disk = DiskConfig("a.b:C", format="python", options={"size": 512}, inject=[{"delay_us": 5}])
    config = VmConfig.make("x", "1M", [disk])
    assert VmConfig.from_json(config.to_json()).disks == (disk,)
    assert hash(disk) == hash(DiskConfig("a.b:C", format="python"))


def test_names_for_disks() -> None:
    config = VmConfig.make("x", 1 << 20, ["a.vhd", Path("b.vhdx"), DiskConfig(Path("c"))])  # type: ignore[arg-type]
    assert [disk.image for disk in config.disks] == ["a.vhd", "b.vhdx", "c"]
    assert {disk.path for disk in config.disks} == {"synthetic"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"path": "direct"}, "path is one of synthetic, emulated, trapped, accelerated"),
        ({"ide_mode": "udma"}, "ide_mode is one of dma, pio, pio-string, pio-multiple"),
        ({"format": "qcow2"}, "format is one of raw, vhd, vhdx"),
        ({"sector_size": 1024}, "sector_size is one of 512, 4096"),
        ({"image": ""}, "name of a file"),
        ({"image": "a\0b"}, "name of a file"),
        ({"format": "python"}, "'a' does not name a class as \"package.module:Class\""),
        ({"format": "raw", "options": {}}, 'a: options are for disks of format "python"'),
        ({"image": "a:B", "format": "python", "options": [1]}, "a:B: options are a dict"),
        ({"inject": [{"log": 1}]}, 'rule 0: "log" is true or false, not 1'),
        ({"inject": {"log": True}}, "rules are a list of dicts"),
        ({"path": "emulated", "sector_size": 4096}, "sectors of 512 bytes, not 4096"),
    ],
)
def test_disks_that_cannot_be(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DiskConfig(**({"image": "a"} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "x",
        [],
        {},
        {"name": "x"},
        {"name": "x", "memory": 1, "disks": None},
        {"name": "x", "memory": 1, "disks": [None]},
        {"name": "x", "memory": 1, "disks": [{}]},
        {"name": "x", "memory": 1, "disks": ["a"]},
        {"name": "x", "memory": 1, "disks": [{"image": 1}]},
        {"name": "x", "memory": 1, "disks": [{"image": "a", "read_only": "yes"}]},
        {"name": "x", "memory": 1, "disks": [{"image": "a", "format": []}]},
        {"name": "x", "memory": 1, "disks": [{"image": "a", "more": 1}]},
        {"name": "x", "memory": 1, "disks": [], "more": 1},
        {"name": "x", "memory": True, "disks": []},
        {"name": "x", "memory": 1.5, "disks": []},
        {"name": "x", "memory": -1, "disks": []},
        {"name": 1, "memory": 1, "disks": []},
        {"name": "x\n", "memory": 1, "disks": []},
    ],
)
def test_descriptions_of_no_vm(value: object) -> None:
    with pytest.raises(ValueError):
        VmConfig.from_json(value)
