"""Rules in front of a disk: which requests they match, what becomes of those, and what changing them does."""

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hvcore.disk import vector
from hvcore.disk.filter import FilterDisk
from hvcore.disk.image import open_image
from hvcore.disk.null import NullDisk
from hvcore.disk.ram import RamDisk
from hvcore.disk.rules import ERRORS, RULES_MAX, STATUSES, parse
from hvcore.errors import DiskError
from hvcore.scsi.target import Target
from hvcore.vhd import create
from tests.reference.vms import PATIENCE, until

SIZE = 1 << 20
OLD, NEW = b"o" * 4096, b"n" * 4096
HOUR = 3600e6  # "delay_us": as good as for ever
WOULD_BLOCK = -6


@pytest.fixture
def disk() -> Iterator[FilterDisk]:
    with FilterDisk(RamDisk(SIZE)) as disk:
        disk.write(0, OLD)
        yield disk


def ends(disk: FilterDisk, operation: str, offset: int = 0, length: int = 512) -> int:
    """The DiskStatus."""
    if operation == "read":
        return vector.readv(disk, offset, [bytearray(length)])
    if operation == "write":
        return vector.writev(disk, offset, [bytes(length)])
    return vector.flush(disk) if operation == "flush" else vector.trim(disk, offset, length)


@pytest.mark.parametrize(
    ("rule", "hit"),
    [
        ({}, "read write flush trim"),
        ({"operations": "read"}, "read"),
        ({"operations": ["write", "flush"]}, "write flush"),
        ({"offset": 0}, "read write trim"),
        ({"offset": 4096, "length": 1024}, "read write trim"),
        ({"offset": 4608, "length": 1}, "read write trim"),
        ({"offset": 5119}, "read write trim"),
        ({"offset": 5120}, ""),
        ({"length": 4097}, "read write trim"),
        ({"length": 4096}, ""),
        ({"offset": (1 << 64) - 1, "length": 512}, ""),
    ],
)
def test_what_a_rule_matches(disk: FilterDisk, rule: dict[str, Any], hit: str) -> None:
    disk.rules = [rule | {"error": "closed"}]
    found = [name for name in ("read", "write", "flush", "trim") if ends(disk, name, 4096, 1024) == STATUSES["closed"]]
    assert found == hit.split()
    assert disk.counts == [{"seen": len(found), "acted": len(found)}]


@pytest.mark.parametrize(
    ("rule", "hit"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"every": 3}, [3, 6, 9]),
        ({"times": 2}, [1, 2]),
        ({"after": 6}, [7, 8, 9]),
        ({"after": 2, "every": 2}, [4, 6, 8]),
        ({"after": 2, "every": 2, "times": 2}, [4, 6]),
        ({"after": 9}, []),
        ({"probability": 0}, []),
        ({"probability": 1, "seed": 7}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_on_which_of_them_it_acts(disk: FilterDisk, rule: dict[str, Any], hit: list[int]) -> None:
    disk.rules = [rule | {"error": "io_error", "operations": "read"}]
    assert [n for n in range(1, 10) if ends(disk, "read")] == hit
    assert disk.counts == [{"seen": 9, "acted": len(hit)}]


def test_probability_depends_on_seed_and_number_alone(disk: FilterDisk) -> None:
    def pattern(seed: int) -> list[int]:
        disk.rules = [{"probability": 0.25, "seed": seed, "error": "io_error"}]
        return [ends(disk, "read") for _ in range(4000)]

    assert pattern(1) == pattern(1) != pattern(2)
    assert 850 < sum(map(bool, pattern(3))) < 1150


@pytest.mark.parametrize("name", ERRORS)
def test_errors_leave_the_medium_alone(disk: FilterDisk, name: str) -> None:
    disk.rules = [{"error": name}]
    for operation in ("read", "write", "flush", "trim"):
        own = "read_error" if operation == "read" else "write_error"
        assert ends(disk, operation) == STATUSES[own if name == "io_error" else name]
    disk.rules = []
    assert disk.read(0, 4096) == OLD


def test_an_error_is_a_device_error(disk: FilterDisk) -> None:
    disk.rules = [{"error": "no_space"}]
    with pytest.raises(DiskError) as caught:
        disk.write(0, NEW)
    assert caught.value.errno == errno.ENOSPC


def test_rules_are_asked_in_order_until_one_decides(disk: FilterDisk) -> None:
    disk.rules = [
        {"log": True},
        {"offset": 4096, "error": "corrupt"},
        {"delay_us": 1, "operations": "read"},
        {"error": "no_space", "every": 2},
        {"error": "range"},
    ]
    assert [ends(disk, "read", at) for at in (0, 4096, 0)] == [-1, -9, -5]
    assert disk.counts == [
        {"seen": 3, "acted": 3},
        {"seen": 1, "acted": 1},
        {"seen": 2, "acted": 2},
        {"seen": 2, "acted": 1},
        {"seen": 1, "acted": 1},
    ]
    records, lost = disk.log()
    assert [record["status"] for record in records] == ["range", "corrupt", "no_space"]
    assert (lost, disk.log()) == (0, ([], 0))


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("then", ["error", "success", "cut"])
@pytest.mark.parametrize("keep", [0, 1, 511, 512, 4096, 4097, 8191, 8192, 9999])
def test_torn_write(keep: int, then: str, sector_size: int) -> None:
    with RamDisk(SIZE, sector_size=sector_size) as below, FilterDisk(below) as disk:
        disk.write(0, OLD * 3)
        disk.rules = [{"tear": keep, "then": then}]
        status = vector.writev(disk, 4096, [NEW[:1000], NEW[1000:], b"", NEW])
        assert status == (0 if then == "success" else STATUSES["write_error"])
        assert below.read(0, 12288) == OLD + (NEW * 2)[:keep] + (OLD * 2)[keep:]
        assert disk.cut == (then == "cut")


def test_after_a_cut_nothing_reaches_the_medium_until_the_rules_change(disk: FilterDisk) -> None:
    disk.rules = [{"tear": 512, "then": "cut", "times": 1}]
    assert ends(disk, "write") == STATUSES["write_error"]
    assert [ends(disk, name) for name in ("read", "write", "flush", "trim")] == [-3, -4, -4, -4]
    assert vector.readv(disk, 0, [bytearray(512)], nowait=True) == WOULD_BLOCK
    disk.rules = []
    assert disk.read(0, 1024) == bytes(512) + OLD[:512]


def test_a_full_disk_and_space_again(disk: FilterDisk) -> None:
    disk.rules = [{"space": 3 * 4096, "block": 4096}]
    assert ends(disk, "write", 0, 4096) == 0
    assert ends(disk, "write", 512, 512) == 0  # has its block
    assert ends(disk, "write", 8192 - 512, 8192 + 512) == STATUSES["no_space"]  # needs three, two are left
    assert disk.below.read(8192 - 512, 1024) == bytes(1024)
    assert ends(disk, "write", 8192, 8192) == 0
    assert ends(disk, "write", 0, 16384) == STATUSES["no_space"]
    assert ends(disk, "write", 0, 4096) == 0
    assert ends(disk, "trim", 8192 - 512, 4096) == 0  # covers no block
    assert ends(disk, "write", 4096, 512) == STATUSES["no_space"]
    assert ends(disk, "trim", 8192, 4096 + 512) == 0
    assert ends(disk, "write", 4096, 512) == 0
    assert ends(disk, "write", 8192, 512) == STATUSES["no_space"]
    disk.rules = []
    assert ends(disk, "write", 8192, 512) == 0


def test_the_block_of_a_large_disk_grows() -> None:
    with FilterDisk(NullDisk(1 << 50), [{"space": 1 << 30}]) as disk:
        assert ends(disk, "write", (1 << 50) - (1 << 28), 1 << 28) == 0
        assert ends(disk, "write", 0) == 0
        assert ends(disk, "trim", 0, 1 << 50) == 0
        assert ends(disk, "write", 1 << 40, 1 << 30) == 0
        with pytest.raises(ValueError, match=r'rule 0: "block" is at least 268435456 for a disk of .*, not 65536'):
            disk.rules = [{"space": 0, "block": 65536}]


def test_a_disk_that_grows_below_its_rules(tmp_path: Path) -> None:
    """A rule about space does not know the new part; nothing else changes."""
    create(tmp_path / "disk", 1 << 20, "raw")
    with FilterDisk(open_image(tmp_path / "disk", mode="r+", format="raw"), [{"space": 65536}]) as disk:
        disk.below.resize(8 << 20)  # type: ignore[attr-defined]
        disk.resized()
        assert disk.size == 8 << 20
        assert ends(disk, "write", 7 << 20, 1 << 20) == ends(disk, "trim", 0, 8 << 20) == 0
        assert ends(disk, "write", 0, 131072) == STATUSES["no_space"]


def test_requests_beyond_the_disk_stay_refused(disk: FilterDisk) -> None:
    for rule in ({"log": True}, {"tear": 512}, {"space": 512, "block": 512}):
        disk.rules = [rule]
        for offset in (SIZE, SIZE - 512, 1 << 63, (1 << 64) - 512):
            assert ends(disk, "write", offset, 1024) == STATUSES["range"]
            assert ends(disk, "read", offset, 1024) == STATUSES["range"]
        assert ends(disk, "write", 0, 512) == (STATUSES["write_error"] if "tear" in rule else 0)


def test_a_request_that_may_not_wait_is_not_counted(disk: FilterDisk) -> None:
    disk.rules = [{"operations": "read", "offset": 4096, "delay_us": HOUR}]
    buffer = bytearray(512)
    assert vector.readv(disk, 4096, [buffer], nowait=True) == WOULD_BLOCK
    assert vector.readv(disk, 0, [buffer], nowait=True) == 0 and buffer == OLD[:512]
    assert vector.writev(disk, 4096, [NEW], nowait=True) == 0
    assert disk.counts == [{"seen": 0, "acted": 0}]


def held(disk: FilterDisk, pool: ThreadPoolExecutor, count: int) -> list[Any]:
    """So many reads that are being delayed."""
    running = [pool.submit(ends, disk, "read") for _ in range(count)]
    until(lambda: disk.held == count, "the reads are delayed")
    return running


def test_new_rules_let_go_what_the_old_ones_delay(disk: FilterDisk) -> None:
    with ThreadPoolExecutor(3) as pool:
        disk.rules = [{"operations": "read", "delay_us": HOUR, "error": "io_error"}]
        running = held(disk, pool, 3)
        assert ends(disk, "write") == 0  # nothing else waits
        disk.rules = [{"error": "no_space"}]
        assert [each.result(PATIENCE) for each in running] == [0, 0, 0]  # untouched by either
        assert disk.counts == [{"seen": 0, "acted": 0}]


def test_without_delays_what_is_held_goes_on_to_its_end(disk: FilterDisk) -> None:
    with ThreadPoolExecutor(2) as pool:
        disk.rules = [{"delay_us": HOUR, "error": "io_error"}]
        running = held(disk, pool, 2)
        disk.delays = False
        assert [each.result(PATIENCE) for each in running] == [STATUSES["read_error"]] * 2
        assert ends(disk, "read") == STATUSES["read_error"] and disk.delays is False
        disk.delays = True
        held(disk, pool, 1)
        disk.rules = []


def test_the_power_goes_while_a_request_is_held(disk: FilterDisk) -> None:
    with ThreadPoolExecutor(1) as pool:
        disk.rules = [{"operations": "read", "delay_us": HOUR}, {"tear": 0, "then": "cut"}]
        running = held(disk, pool, 1)
        ends(disk, "write")
        disk.delays = False
        assert running[0].result(PATIENCE) == STATUSES["read_error"]


def test_a_delay_is_no_shorter_than_it_says(disk: FilterDisk) -> None:
    disk.rules = [{"delay_us": 1500.5, "log": True}, {"operations": "flush", "delay_us": 500, "error": "write_error"}]
    assert (ends(disk, "read"), ends(disk, "flush")) == (0, STATUSES["write_error"])
    read, flush = disk.log()[0]
    assert read["took_ns"] >= 1_500_500 and flush["took_ns"] >= 2_000_500


def test_the_log_keeps_the_last_records(disk: FilterDisk) -> None:
    disk.rules = [{"log": True}]
    for n in range(5000):
        ends(disk, "read", n % 64 * 512)
    records, lost = disk.log()
    assert (len(records), lost) == (4096, 904)
    assert [record["offset"] for record in records] == [n % 64 * 512 for n in range(904, 5000)]
    assert all(one["time_ns"] <= two["time_ns"] for one, two in pairwise(records))


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({}, "rules are a list of dicts, not {}"),
        ("log", "rules are a list of dicts, not 'log'"),
        ([1], "rule 0: a dict, not 1"),
        ([{"log": True}, {}], "rule 1: it does nothing"),
        ([{"errror": "closed"}], "rule 0: there is no key 'errror'; the keys are operations, "),
        ([{"error": "EIO"}], "rule 0: \"error\" is one of range, .*io_error, not 'EIO'"),
        ([{"error": ["range"]}], 'rule 0: "error" is one of'),
        ([{"error": "range", "tear": 5}], 'rule 0: "tear" does not go with "error"'),
        ([{"tear": -1}], 'rule 0: "tear" is a whole number from 0 on, not -1'),
        ([{"tear": 512, "operations": ["read", "write"]}], 'rule 0: "operations" is "write" beside "tear"'),
        ([{"tear": 512, "then": "explode"}], 'rule 0: "then" is one of error, success, cut'),
        ([{"then": "cut", "log": True}], 'rule 0: "then" says nothing without "tear"'),
        ([{"block": 512, "log": True}], 'rule 0: "block" says nothing without "space"'),
        ([{"seed": 1, "log": True}], 'rule 0: "seed" says nothing without "probability"'),
        ([{"space": 1, "every": 2}], 'rule 0: "every" does not go with "space"'),
        ([{"space": 1, "block": 1000}], 'rule 0: "block" is a power of two'),
        ([{"log": 1}], 'rule 0: "log" is true or false, not 1'),
        ([{"log": True, "operations": "reset"}], 'rule 0: "operations" is one or some of read, write, flush, trim'),
        ([{"log": True, "operations": []}], 'rule 0: "operations"'),
        ([{"log": True, "operations": "flush", "offset": 0}], 'rule 0: "offset" and "length" match no flush'),
        ([{"log": True, "offset": 1 << 64}], 'rule 0: "offset" is a whole number'),
        ([{"log": True, "length": 0}], 'rule 0: "length" is a whole number from 1 on'),
        ([{"log": True, "every": 0}], 'rule 0: "every" is a whole number from 1 on'),
        ([{"log": True, "every": True}], 'rule 0: "every" is a whole number'),
        ([{"log": True, "times": 1.0}], 'rule 0: "times" is a whole number'),
        ([{"log": True, "probability": 1.1}], 'rule 0: "probability" is a number from 0 to 1'),
        ([{"log": True, "probability": float("nan")}], 'rule 0: "probability" is a number'),
        ([{"delay_us": -1}], 'rule 0: "delay_us" is a number from 0 to 3600000000'),
        ([{"delay_us": "5"}], 'rule 0: "delay_us" is a number'),
        ([{"log": True}] * (RULES_MAX + 1), "at most 64 rules, not 65"),
    ],
)
def test_rules_that_cannot_be(disk: FilterDisk, rules: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(rules)
    disk.rules = [{"error": "closed"}]
    with pytest.raises(ValueError, match=says):
        disk.rules = rules
    assert disk.rules == [{"error": "closed"}] and ends(disk, "read") == STATUSES["closed"]


def test_as_many_rules_as_there_may_be(disk: FilterDisk) -> None:
    disk.rules = [{"log": True}] * (RULES_MAX - 1) + [{"error": "closed"}]
    assert ends(disk, "read") == STATUSES["closed"]


def test_the_disk_below_shows_through() -> None:
    with RamDisk(SIZE, sector_size=4096, read_only=True) as below, FilterDisk(below) as disk:
        assert (disk.size, disk.sector_size, disk.read_only, disk.below) == (SIZE, 4096, True, below)
        disk.rules = [{"tear": 0, "then": "success"}]
        assert ends(disk, "write", 0, 4096) == STATUSES["read_only"]
        disk.close()
        with pytest.raises(ValueError, match="closed"):
            below.read(0, 4096)
        with pytest.raises(ValueError, match="closed"):
            FilterDisk(below)


def test_a_target_has_a_filter_only_while_it_is_put_in() -> None:
    """Without rules the requests' disk is the image itself."""
    image = RamDisk(SIZE)
    target = Target(image)
    read = bytes([0x28]) + bytes(7) + b"\x01\0"
    assert target.image is image
    with FilterDisk(image, [{"error": "io_error"}]) as disk:
        target.exchange(disk)
        assert target.image is disk and target.execute(read, allocation=512).status == 2
        target.exchange(image)
        assert target.image is image and target.execute(read, allocation=512).status == 0
        assert disk.counts == [{"seen": 1, "acted": 1}]
        for other in (RamDisk(SIZE * 2), RamDisk(SIZE, sector_size=4096), RamDisk(SIZE, read_only=True)):
            with other, pytest.raises(ValueError, match="another size"):
                target.exchange(other)
    with pytest.raises(ValueError, match="closed"):
        target.exchange(disk)


def test_dropped_while_rules_are_in_force() -> None:
    """An owner that forgot close()."""
    disk = FilterDisk(RamDisk(SIZE), [{"space": 512}, {"log": True}])
    thread = threading.Thread(target=ends, args=(disk, "write"))
    thread.start()
    thread.join()
    del disk
