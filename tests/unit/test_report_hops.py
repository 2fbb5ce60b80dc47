"""From stamps to hops: every moment of a request belongs to exactly one."""

import pytest

from hvcore.errors import Error
from hvcore.report.hops import (
    ACCESS_ANSWERED,
    ACCESS_TAKEN,
    COMPLETED,
    DISK_DONE,
    DRIVE_GUEST,
    GUEST,
    MEDIA_GIVEN,
    MEDIA_POSTED,
    RECEIVED,
    ChannelHops,
    DriveHops,
)

STARTED = 5
# A read with two accesses up to the medium and one after it: (ns after the request was asked, stamp).
DMA = [
    *((30, ACCESS_TAKEN), (34, ACCESS_ANSWERED), (50, ACCESS_TAKEN), (60, MEDIA_POSTED), (65, ACCESS_ANSWERED)),
    *((70, STARTED), (160, DISK_DONE), (200, MEDIA_GIVEN), (230, ACCESS_TAKEN), (237, ACCESS_ANSWERED)),
]
BUILT, DONE = 10, 260
SPENT = {"submit": 10, "intercept": 20 + 16, "emulate": 4 + 10, "media": 100, "emulate_answer": 40, "answer": 60}


def host(at, stamps):
    return [[at + ns, 7, 0, hop, 0] for ns, hop in stamps]


def found(hops):
    """Sums in ns: those of one request, or of equal ones."""
    return {name: histogram.sum for name, histogram in hops.histograms.items()}


def test_accesses_are_summed_on_both_sides_of_the_medium():
    hops = DriveHops()
    hops.add(DRIVE_GUEST.pack(1000, 1000 + BUILT, 1000 + DONE, 3), host(1000, DMA))
    assert found(hops) == SPENT
    assert sum(SPENT.values()) == hops.total.sum == DONE
    assert hops.accesses() == {"intercept": 2, "emulate": 2, "answer": 1}
    assert hops.percentiles().keys() == SPENT.keys()


def test_a_held_access_is_the_mediums_time_while_it_is_asked():
    stamps = [(20, ACCESS_TAKEN), (25, MEDIA_POSTED), (80, DISK_DONE), (90, MEDIA_GIVEN), (99, ACCESS_ANSWERED)]
    hops = DriveHops()
    hops.add(DRIVE_GUEST.pack(0, 0, 120, 1), host(0, stamps))
    spent = {"submit": 0, "intercept": 20, "emulate": 5, "media": 55, "emulate_answer": 10, "answer": 30}
    assert found(hops) == spent


def test_all_media_accesses_but_the_last_belong_to_the_way_there():
    rounds = [(10, ACCESS_TAKEN), (12, MEDIA_POSTED), (13, ACCESS_ANSWERED), (30, DISK_DONE), (35, MEDIA_GIVEN)]
    hops = DriveHops()
    hops.add(DRIVE_GUEST.pack(0, 0, 120, 2), host(0, rounds + [(ns + 40, hop) for ns, hop in rounds]))
    spent = {"submit": 0, "intercept": 10 + 15, "emulate": 4, "media": 36, "emulate_answer": 10, "answer": 45}
    assert found(hops) == spent and hops.accesses() == {"intercept": 2, "emulate": 2, "answer": 0}


def test_requests_follow_each_other():
    hops = DriveHops()
    guest = b"".join(DRIVE_GUEST.pack(at, at + BUILT, at + DONE, 3) for at in (1000, 2000, 2000 + DONE))
    hops.add(guest, [stamp for at in (1000, 2000, 2000 + DONE) for stamp in host(at, DMA)])
    assert found(hops) == {name: 3 * ns for name, ns in SPENT.items()}


@pytest.mark.parametrize("lost", [at for at, (_, hop) in enumerate(DMA) if hop != STARTED])
def test_what_the_trace_does_not_hold_whole_counts_as_a_whole_only(lost):
    stamps = host(0, DMA)
    hops = DriveHops()
    hops.add(DRIVE_GUEST.pack(0, BUILT, DONE, 3), stamps[:lost] + stamps[lost + 1 :])
    assert (hops.total.count, hops.percentiles(), hops.accesses()) == (1, {}, {})


def test_channel_hops_are_joined_by_transaction_id():
    hops = ChannelHops("synthetic")
    stamps = [[130, 1, 9, RECEIVED, 4], [150, 1, 9, DISK_DONE, 4], [155, 2, 9, COMPLETED, 5], [160, 1, 9, COMPLETED, 4]]
    hops.add(GUEST.pack(9, 100, 105, 120, 190), stamps, 4)
    expected = {"submit": 5, "request": 15, "deliver": 10, "media": 20, "complete": 10, "answer": 30}
    assert found(hops) == expected and hops.accesses() == {}
    with pytest.raises(Error, match="does not hold"):
        hops.add(GUEST.pack(8, 100, 105, 120, 190), stamps, 4)
