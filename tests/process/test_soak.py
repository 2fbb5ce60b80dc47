"""A few seconds of the soak (tests/soak), in which everything that can be killed is killed once."""

from pathlib import Path

import pytest

from tests.soak.soak import Machine, Soak, soak


def test_nothing_is_lost_and_nothing_is_left() -> None:
    counts = soak(seconds=2, seed=1, vms=2, gap=0.05)
    assert {name for name, number in counts.items() if name.startswith("did: ") and number} >= {
        "did: workers killed",
        "did: guests killed",
        "did: VMs stopped and started",
        "did: VMs deleted and made again",
        "did: hosts killed",
    }
    assert counts["requests: write"] > 100 and counts["requests: flush"] and counts["bytes: verified"] > 1 << 20


def test_a_lost_image_is_told_with_seed_and_sector(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Soak.make
    made: list[str] = []

    def make_from_nothing(run: Soak, machine: Machine) -> None:
        if made:
            image = Path(machine.disks[0].config.image)
            image.write_bytes(bytes(image.stat().st_size))
        made.append(machine.name)
        make(run, machine)

    monkeypatch.setattr(Soak, "make", make_from_nothing)
    with pytest.raises(AssertionError, match=r"^seed 5, 1 VMs: Wrong: disk 0, sector \d+ .* holds zeros; allowed: gen"):
        soak(seconds=0, seed=5, vms=1, gap=0.05)
    assert made == ["soak-0"] * 2
