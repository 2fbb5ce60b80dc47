"""vm.run: a child partition in a process of its own."""

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.errors import GuestGone, HostError
from hvcore.partition.client import VirtualMachine
from tests.conftest import ended
from tests.reference.vms import MIB, PATIENCE, content, events, raw, state, until

DATA = content(MIB)


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMachine]:
    folder = tmp_path_factory.mktemp("images")
    disks = [raw(folder / "a", DATA, read_only=True), raw(folder / "b", DATA, path="emulated")]
    with hvcore.Host() as host, host.create_vm("child", "16M", disks) as made:
        made.start()
        yield made


def run(vm: VirtualMachine, function: str, *arguments: Any) -> Any:
    with vm.run(f"tests.reference.children:{function}", *arguments) as child:
        return child.wait(PATIENCE)


def test_result(vm: VirtualMachine) -> None:
    child = vm.run("tests.reference.children:add", 2, 3)
    result = child.wait(PATIENCE)
    assert result == {"sum": 5, "disks": [MIB, MIB], "pid": child.pid}
    assert child.pid != os.getpid() and ended(child.pid, 0)
    with pytest.raises(HostError, match="the child is closed"):
        child.wait()
    child.close()


def test_large_results_and_arguments(vm: VirtualMachine) -> None:
    assert run(vm, "first_bytes") == DATA[:4096]
    blob = content(3 * MIB, 5)
    with pytest.raises(KeyError) as caught:
        run(vm, "fail", blob)
    assert caught.value.args == (blob,)


def test_exception_with_the_childs_traceback(vm: VirtualMachine) -> None:
    with pytest.raises(KeyError, match="no such thing") as caught:
        run(vm, "fail", "no such thing")
    (note,) = caught.value.__notes__
    assert note.startswith("in the child:\nTraceback") and "in fail\n" in note and note.endswith("'no such thing'")


def test_device_errors_travel_whole(vm: VirtualMachine) -> None:
    with pytest.raises(hvcore.DiskError, match="write protected") as caught:
        run(vm, "device_error")
    error = caught.value
    assert (error.srb_status, error.sense_key, error.asc, error.errno) == (4, 7, 0x27, 30)
    assert "in the child:" in error.__notes__[0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_device_errors_pickle(protocol: int) -> None:
    error = hvcore.DiskError("text", srb_status=4, sense_key=3, asc=4, ascq=5, index=6, statuses=[1, 2])
    error.errno = 5
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert (type(copy), vars(copy), str(copy), copy.errno) == (hvcore.DiskError, vars(error), "text", 5)


@pytest.mark.parametrize(("function", "what"), [("unpicklable", "result"), ("odd_exception", "exception")])
def test_what_cannot_travel(vm: VirtualMachine, function: str, what: str) -> None:
    with pytest.raises(HostError, match=f"the child's {what} cannot travel: "):
        run(vm, function)


def test_a_function_that_is_not_there(vm: VirtualMachine) -> None:
    with pytest.raises(ValueError, match="does not name a function"):
        vm.run("not a function")
    for target in ("tests.reference.children:none", "no.such.module:none"):
        with pytest.raises((AttributeError, ModuleNotFoundError)), vm.run(target) as child:
            child.wait(PATIENCE)
    assert run(vm, "add", 1, 1)["sum"] == 2  # the VM has room for the next


def test_exits(vm: VirtualMachine) -> None:
    with pytest.raises(SystemExit, match="3"):
        run(vm, "leave", 3)
    with pytest.raises(HostError, match=r"without a result \(exit status 4\)"):
        run(vm, "vanish", 4)


def test_killed(vm: VirtualMachine) -> None:
    child = vm.run("tests.reference.children:hang")
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(HostError, match=r"without a result \(killed by signal 9\)"):
        child.wait(PATIENCE)
    assert child.closed


def test_hang(vm: VirtualMachine, tmp_path: Path) -> None:
    """wait() has a timeout, the VM has one guest, close() ends it."""
    said = tmp_path / "said"
    os.mkfifo(said)
    child = vm.run("tests.reference.children:report_and_hang", str(said))
    with said.open("rb") as pipe:
        assert pipe.readline() == b"here\n"
        with pytest.raises(TimeoutError, match=r"did not end within 0\.05 seconds"):
            child.wait(timeout=0.05)
        with pytest.raises(HostError, match="child has a guest already"):
            vm.run("tests.reference.children:add", 1, 2)
        with pytest.raises(HostError, match="child has a guest already"):
            vm.attach()
        assert not ended(child.pid, 0)
        child.close()
        assert ended(child.pid, 0)
    child.close()
    assert run(vm, "add", 2, 2)["sum"] == 4
    assert "guest gone" in events(vm.host)


def test_a_stopped_vm_ends_the_childs_waits(tmp_path: Path) -> None:
    said = tmp_path / "said"
    os.mkfifo(said)
    with hvcore.Host() as host, host.create_vm("stop", "16M", [raw(tmp_path / "disk")]) as vm:
        vm.start()
        child = vm.run("tests.reference.children:write_rounds", 0, 0, str(said))
        with said.open("rb", buffering=0) as pipe:
            assert pipe.read(1) == b"."
            vm.stop()
            with pytest.raises(GuestGone):
                child.wait(PATIENCE)


def test_the_host_closes_its_children(tmp_path: Path) -> None:
    with hvcore.Host() as host:
        vm = host.create_vm("close", "16M", [raw(tmp_path / "disk")])
        vm.start()
        child = vm.run("tests.reference.children:hang")
        until(lambda: state(Path(f"/proc/{child.pid}")) == "S", "the child is there")
    assert child.closed and ended(child.pid, 0)
