"""What the machine allows is tried, not guessed."""

import errno
import os

import pytest

from hvcore.report import doctor


def refuse(*arguments):
    raise OSError(errno.EPERM, "refused here")


def test_every_check_answers():
    checks = doctor.examine()
    assert len({check.name for check in checks}) == len(checks) == 8
    assert all(check.found and check.follows for check in checks)


@pytest.mark.parametrize(("name", "call"), [("memfd sealing", "memfd_create"), ("eventfd", "eventfd")])
def test_refused_call_is_said_and_makes_it_unhealthy(monkeypatch, name, call):
    monkeypatch.setattr(os, call, refuse)
    checks = doctor.examine()
    (check,) = [check for check in checks if check.name == name]
    assert not check.ok and check.needed
    assert check.found == "refused: Operation not permitted"
    assert not doctor.healthy(checks)


def test_what_is_not_needed_does_not_fail_it(monkeypatch):
    monkeypatch.setattr(doctor, "_system_call", lambda number, *rest: -errno.ENOSYS if rest[-1] is None else 0)
    checks = doctor.examine()
    (check,) = [check for check in checks if check.name == "io_uring"]
    assert not check.ok and check.follows == "blocking files go to a pool of threads"
    assert doctor.healthy(checks)


def test_json_has_every_check():
    found = doctor.to_dict(doctor.examine())
    assert found.keys() == {"schema", "healthy", "checks"}
    assert {frozenset(check) for check in found["checks"]} == {frozenset(("name", "ok", "needed", "found", "follows"))}
