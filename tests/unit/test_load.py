"""The load generator over disks in memory: counts, limits, verification, open loops; nothing here depends on time."""

import pytest

from hvcore.disk.null import NullDisk
from hvcore.disk.ram import RamDisk
from hvcore.dispatch.load import LoadRun, run_disk, run_loads
from hvcore.dispatch.pattern import KnownContent, fill_pattern, holds_pattern
from hvcore.dispatch.requesters import DiskRequester

SIZE = 64 * 4096
SEED = 99
WRITE = {"write": 1}


def known(disk=None):
    """A disk that holds the pattern, and the account of it."""
    disk = disk or RamDisk(SIZE)
    data = bytearray(SIZE)
    fill_pattern(data, 0, SEED)
    disk.write(0, data)
    return disk, KnownContent(0, SIZE, 512, SEED)


def run(disk, requests=64, **options):
    return run_loads([LoadRun(DiskRequester(disk), **options)], requests=requests)[0]


def sweep(disk, content, **options):
    """One sequential pass of 4096-byte requests; the units of the account are 512 bytes."""
    return run(disk, offsets="sequential", block_sizes={512: 0, 4096: 1}, content=content, **options)


def test_counts_are_what_was_asked_for():
    found = run_disk(NullDisk(1 << 20), requests=1000)
    assert (found["requests"], found["errors"], found["bytes"], found["latency"].count) == (1000, 0, 4096000, 1000)
    assert (found["lag"], found["behind"], found["series"], found["error"]) == (None, 0, None, None)


def test_operations_add_up():
    disk = RamDisk(SIZE)
    shares = {"read": 4, "write": 3, "flush": 2, "trim": 1}
    found = run(disk, 2000, operations=shares, series=True, block_sizes={4096: 1, 8192: 1})
    assert found["operations"].keys() == shares.keys()
    for key, total in (("requests", 2000), ("errors", 0)):
        assert sum(each[key] for each in found["operations"].values()) == total == found[key]
    assert sum(found["operations"][name]["bytes"] for name in ("read", "write")) == found["bytes"]
    assert found["operations"]["flush"]["bytes"] == 0 < found["operations"]["trim"]["bytes"]
    rows = found["series"].rows()
    assert sum(row["requests"] for row in rows) == 2000 and sum(row["bytes"] for row in rows) == found["bytes"]


def test_warm_up_is_not_counted():
    found = run_loads([LoadRun(DiskRequester(NullDisk(1 << 20)))], requests=100, warm_up=0.01)[0]
    assert found["requests"] == found["latency"].count == 100 and found["warm_up"]["requests"] > 0


def test_several_targets_run_together():
    runs = [LoadRun(DiskRequester(NullDisk(1 << 20)), series=True) for _ in range(3)]
    assert [each["requests"] for each in run_loads(runs, requests=5000)] == [5000] * 3


def test_a_run_runs_once():
    load = LoadRun(DiskRequester(NullDisk(1 << 20)))
    run_loads([load], requests=1)
    with pytest.raises(ValueError, match="once"):
        run_loads([load], requests=1)


def test_a_target_has_one_load_at_a_time():
    target = DiskRequester(NullDisk(1 << 20))
    with pytest.raises(ValueError, match="busy"):
        run_loads([LoadRun(target), LoadRun(target)], requests=1)
    assert run_loads([LoadRun(target)], requests=1)[0]["requests"] == 1


def test_errors_have_kinds():
    found = run(RamDisk(SIZE, read_only=True), 10, operations={"read": 1, "write": 1}, seed=2)
    refused = found["operations"]["write"]["requests"]
    assert 0 < refused < 10 and found["errors"] == refused and found["outcomes"] == {"write protected": refused}
    assert found["error"].startswith("the write at byte ")


# Open loop.


def test_what_was_due_and_never_started_is_told():
    """A million requests a hundredth of a second: more than any disk does."""
    found = run_loads([LoadRun(DiskRequester(NullDisk(1 << 20)), rate=1e8)], seconds=0.01)[0]
    assert found["requests"] + found["behind"] == 1_000_000 and found["behind"] > 0
    assert found["lag"].count == found["latency"].count == found["requests"]


def test_latency_counts_from_when_a_request_was_due():
    """All are due at the beginning: their latencies are those of a queue, and add up to far more than the time. In a
    closed loop of depth 1 they cannot."""
    opened = run(NullDisk(1 << 20), 2000, rate=1e8)
    assert opened["latency"].sum > 10 * opened["seconds"] * 1e9
    assert opened["latency"].sum >= opened["lag"].sum
    closed = run(NullDisk(1 << 20), 2000)
    assert closed["latency"].sum <= closed["seconds"] * 1e9


def test_a_slow_rate_is_kept():
    found = run_loads([LoadRun(DiskRequester(NullDisk(1 << 20)), rate=1000.0)], seconds=0.05)[0]
    assert found["requests"] + found["behind"] == 50 and found["seconds"] >= 0.05


# Verification.


def test_the_pattern_is_found():
    disk, _ = known()
    found = run(disk, 64, pattern_seed=SEED, offsets="sequential")
    assert (found["verified_bytes"], found["wrong_blocks"]) == (SIZE, 0)
    disk.write(5 * 4096, bytes(512))
    found = run(disk, 64, pattern_seed=SEED, offsets="sequential")
    assert (found["wrong_blocks"], found["wrong_offset"], found["wrong_kind"]) == (1, 5 * 4096, "wrong")


def test_writes_with_a_pattern_write_it():
    disk = RamDisk(SIZE)
    run(disk, 64, pattern_seed=SEED, offsets="sequential", operations=WRITE)
    assert holds_pattern(disk.read(0, SIZE), 0, SEED)


def test_mixed_loads_verify_what_they_wrote():
    disk, content = known()
    for seed in range(3):
        found = run(
            disk, 3000, content=content, seed=seed, block_sizes={512: 1, 4096: 2}, offsets="zipf",
            operations={"read": 5, "write": 4, "trim": 1},
        )  # fmt: skip
        assert found["wrong_blocks"] == 0 and found["verified_bytes"] > 0


def generations(disk, content):
    """Two passes of writes: every block has an older generation and a last one."""
    sweep(disk, content, operations=WRITE)
    sweep(disk, content, operations=WRITE)
    assert content.generation(0) == 65 and content.generation(SIZE - 512) == 128


@pytest.mark.parametrize(
    ("kind", "first", "generation", "length"),
    [
        ("stale", 3 * 4096, 4, 4096),  # the whole of the last write is lost
        ("torn", 3 * 4096, 4, 2048),  # its first half is
        ("torn", 3 * 4096 + 1024, 4, 512),
        ("torn", 3 * 4096 + 512, 0, 512),  # what was there before any write
        ("wrong", 3 * 4096, 5, 4096),  # written to another block, of this number
        ("wrong", 3 * 4096 + 512, 1 << 50, 512),  # of the future
    ],
)
def test_a_planted_block_is_found(kind, first, generation, length):
    disk, content = known()
    generations(disk, content)
    assert sweep(disk, content)["wrong_blocks"] == 0
    block = bytearray(length)
    # A generation of another block: its content is that of the block where it belongs.
    fill_pattern(block, first + (4096 if generation == 5 else 0), SEED, generation)
    disk.write(first, block)
    found = sweep(disk, content)
    assert (found["wrong_blocks"], found["wrong_kind"], found["wrong_kinds"]) == (1, kind, {kind: 1})
    assert 3 * 4096 <= found["wrong_offset"] < 4 * 4096


def test_a_block_torn_within_a_unit_is_found():
    disk, content = known()
    generations(disk, content)
    unit = bytearray(disk.read(0, 512))
    fill_pattern(memoryview(unit)[256:], 256, SEED, 1)
    assert content.check(unit, 0) == ("torn", 0, 512)
    disk.write(0, unit)
    assert sweep(disk, content)["wrong_kind"] == "torn"


def test_two_writes_are_not_one_torn_write():
    """Of two adjacent blocks, written one after the other, one is lost: that is stale, not torn."""
    disk, content = known()
    run(disk, 2 * SIZE // 512, content=content, offsets="sequential", block_sizes={512: 1}, operations=WRITE)
    block = bytearray(512)
    fill_pattern(block, 512, SEED, 2)
    disk.write(512, block)
    assert sweep(disk, content)["wrong_kind"] == "stale"


def test_unknown_blocks_are_not_compared():
    content = KnownContent(0, SIZE, 4096)
    assert content.check(b"\x01" * 8192, 0) == ("none", None, 0)
    disk = RamDisk(SIZE)
    found = run(disk, 2, content=content, offsets="sequential", operations=WRITE)
    assert found["errors"] == 0 and (content.generation(0), content.generation(8192)) == (1, 0)
    found = run(disk, 64, content=content, offsets="sequential")
    assert (found["verified_bytes"], found["wrong_blocks"]) == (8192, 0)


def test_a_failed_write_makes_its_block_unknown():
    content = KnownContent(0, SIZE, 4096, SEED)
    run(RamDisk(SIZE, read_only=True), 1, content=content, offsets="sequential", operations=WRITE)
    assert content.generation(0) is None and content.generation(4096) == 0


# What does not fit.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"depth": 2}, "queue depth 2"),
        ({"depth": 0}, "queue depth 0"),
        ({"buffer": bytearray(512)}, "512 bytes does not hold"),
        ({"rate": 0.0}, "a rate of 0"),
        ({"content": KnownContent(0, SIZE, 512)}, "not of this range"),
        ({"content": KnownContent(0, SIZE, 4096), "pattern_seed": 1}, "own pattern"),
        ({"pattern_seed": 1, "operations": {"read": 1, "trim": 1}}, "trimmed"),
    ],
)
def test_what_does_not_fit_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        LoadRun(DiskRequester(RamDisk(SIZE)), **options)


def test_a_load_needs_an_end():
    with pytest.raises(ValueError, match="neither"):
        run_loads([])


def test_an_unknown_parameter_is_named():
    with pytest.raises(TypeError, match="blocksize"):
        LoadRun(DiskRequester(RamDisk(SIZE)), blocksize=512)
