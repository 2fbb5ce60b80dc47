"""Any rules, any requests: the filter and its plain-Python twin end alike, and count, log and hold the same."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.disk import vector
from hvcore.disk.filter import FilterDisk
from hvcore.disk.ram import RamDisk
from hvcore.disk.rules import OPERATIONS, STATUSES
from tests.reference.rules import Twin

SECTORS = 32
SIZE = SECTORS * 512

sectors = st.integers(0, SECTORS - 1)
where = st.one_of(st.just({}), st.fixed_dictionaries({}, optional={"offset": st.integers(0, SIZE), "length": sectors}))
choice = st.fixed_dictionaries(
    {},
    optional={
        "after": st.integers(0, 4),
        "every": st.integers(1, 4),
        "times": st.integers(1, 3),
        "log": st.booleans(),
    },
)
drawn = st.one_of(st.just({}), st.fixed_dictionaries({"probability": st.floats(0, 1), "seed": st.integers(0, 99)}))
errors = st.fixed_dictionaries(
    {"error": st.sampled_from([*STATUSES, "io_error"])},
    optional={"operations": st.lists(st.sampled_from(OPERATIONS), min_size=1, unique=True)},
)
tears = st.fixed_dictionaries(
    {"tear": st.integers(0, 9 * 512)}, optional={"then": st.sampled_from(["error", "success", "cut"])}
)
delays = st.fixed_dictionaries({"delay_us": st.just(0.001)})
logs = st.fixed_dictionaries({"log": st.just(True)}, optional={"operations": st.sampled_from(OPERATIONS)})
spaces = st.fixed_dictionaries(
    {"space": st.integers(0, SIZE), "block": st.sampled_from([512, 1024, 4096, 32768])}, optional={"log": st.booleans()}
)


def joined(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for part in parts:
        whole.update(part)
    if whole.get("length") == 0:
        del whole["length"]
    if whole.get("operations") in (["flush"], "flush"):
        whole.pop("offset", None)
        whole.pop("length", None)
    return whole


rules = st.lists(
    st.one_of(
        st.tuples(where, choice, drawn, st.one_of(errors, tears, delays)).map(joined),
        st.tuples(where, logs).map(joined),
        st.tuples(where, spaces).map(joined),
    ),
    max_size=6,
)
requests = st.lists(st.tuples(st.sampled_from(OPERATIONS), sectors, st.integers(0, 8)), max_size=30)


@settings(max_examples=150)
@given(rules, requests)
def test_the_filter_does_as_its_twin(given_rules: list[dict[str, Any]], wanted: list[tuple[str, int, int]]) -> None:
    names = {number: name for name, number in STATUSES.items()} | {0: "ok"}
    twin = Twin(SIZE, given_rules)
    with RamDisk(SIZE) as below, FilterDisk(below, given_rules) as disk:
        assert disk.rules == given_rules
        for turn, (operation, sector, count) in enumerate(wanted):
            length = min(count, SECTORS - sector) * 512
            data = bytes([turn + 1]) * length
            got = bytearray(length)
            if operation == "read":
                status = vector.readv(disk, sector * 512, [got])
            elif operation == "write":
                status = vector.writev(disk, sector * 512, [data[:100], data[100:]])
            elif operation == "flush":
                status = vector.flush(disk)
            else:
                status = vector.trim(disk, sector * 512, length)
            place = (0, 0) if operation == "flush" else (sector * 512, length)
            assert names[status] == twin.request(operation, *place, data)
            if operation == "read" and status == 0:
                assert got == twin.data[sector * 512 : sector * 512 + length]
        assert [(count["seen"], count["acted"]) for count in disk.counts] == list(
            zip(twin.seen, twin.acted, strict=True)
        )
        records, lost = disk.log()
        assert [(r["operation"], r["offset"], r["length"], r["status"]) for r in records] == twin.log
        assert (lost, disk.cut) == (0, twin.cut)
        assert below.read(0, SIZE) == twin.data
