"""SIGKILL in the middle of work: who is left answers, what was flushed is there, and no process stays."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

import hvcore
from hvcore.errors import GuestGone, HostError
from hvcore.partition.guest import Guest
from tests.reference.children import BLOCK, rounds
from tests.reference.vms import MIB, PATIENCE, events, gone, raw, stopped, until

PATHS = ("synthetic", "emulated")


def may_hold(size: int, seed: int, flushed: int) -> list[set[bytes]]:
    """What each block may hold after so many flushed rounds and any part of the next."""
    allowed = [{bytes(BLOCK)} for _ in range(size // BLOCK)]
    for number, batch in enumerate(islice(rounds(size // BLOCK, seed), flushed + 1)):
        for block, data in batch:
            allowed[block] = {data} if number < flushed else allowed[block] | {data}
    return allowed


def check(image: bytes, seed: int, flushed: int) -> None:
    assert flushed > 0
    for block, allowed in enumerate(may_hold(len(image), seed, flushed)):
        assert image[block * BLOCK :][:BLOCK] in allowed, f"block {block}"


class Writer(threading.Thread):
    """Writes rounds from this process until it fails."""

    def __init__(self, guest: Guest, number: int) -> None:
        super().__init__()
        self._guest = guest
        self._number = number
        self.flushed = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        disk = self._guest.disks[self._number]
        try:
            for batch in rounds(disk.size // BLOCK, self._number):
                disk.write_batch([block * BLOCK for block, _ in batch], b"".join(data for _, data in batch))
                disk.flush()
                self.flushed += 1
        except BaseException as error:
            self.error = error


@pytest.mark.parametrize("number", [0, 1], ids=PATHS)
def test_child_killed(tmp_path: Path, number: int) -> None:
    fifo = tmp_path / "said"
    os.mkfifo(fifo)
    disks = [raw(tmp_path / path, path=path) for path in PATHS]
    with hvcore.Host() as host, host.create_vm("child", "16M", disks) as vm:
        vm.start()
        for turn in range(2):
            child = vm.run("tests.reference.children:write_rounds", number, turn, str(fifo))
            with fifo.open("rb", buffering=0) as said:
                flushed = sum(len(said.read(1)) for _ in range(8))
                os.kill(child.pid, signal.SIGKILL)
                flushed += len(said.readall())
            with pytest.raises(HostError, match="killed by signal 9"):
                child.wait(PATIENCE)
            with vm.attach() as guest:  # the host serves the next guest
                if turn == 0:
                    check(guest.disks[number].read(0, MIB), turn, flushed)
                    guest.disks[number].write(0, bytes(MIB))
                    assert guest.disks[1 - number].read(0, MIB) == bytes(MIB)
        assert events(host).count("guest gone") == 4
    check((tmp_path / PATHS[number]).read_bytes(), 1, flushed)


@pytest.mark.parametrize("mode", ["dma", "pio"])
def test_worker_killed_with_requests_in_hand(tmp_path: Path, mode: str) -> None:
    """Only what it had in hand is aborted, one request of each IDE channel; what waits goes to the next worker."""
    disks = [raw(tmp_path / name, path="emulated", ide_mode=mode) for name in "abc"]
    with hvcore.Host() as host, host.create_vm("worker", "16M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            worker = vm.describe()["worker"]
            failed: dict[int, BaseException] = {}

            def write(number: int) -> None:
                try:
                    guest.disks[number].write_batch([BLOCK * n for n in range(8)], bytes([number + 1]) * 8 * BLOCK)
                except BaseException as error:
                    failed[number] = error

            with stopped(worker):
                threads = [threading.Thread(target=write, args=(number,)) for number in (0, 2)]
                for thread in threads:
                    thread.start()
                until(lambda: [in_flight(vm, n) for n in (0, 2)] == [8, 8], "the host has the requests")
                os.kill(worker, signal.SIGKILL)
            for thread in threads:
                thread.join()
            for number in (0, 2):
                error = failed[number]
                assert isinstance(error, hvcore.DiskError)
                assert (error.srb_status, error.index, error.statuses) == (2, 0, [2] + [1] * 7)
                expected = bytes(BLOCK) + bytes([number + 1]) * 7 * BLOCK
                assert guest.disks[number].read(0, 8 * BLOCK) == expected
                guest.disks[number].write(0, b"again!!!" * 64)
                guest.disks[number].flush()
            assert vm.describe()["worker"] not in (worker, None)
            assert events(host).count("worker ended") == 1
    for name in "ac":
        assert (tmp_path / name).read_bytes().startswith(b"again!!!" * 64)


def in_flight(vm: hvcore.partition.client.VirtualMachine, number: int) -> int:
    found: int = vm.counters()["disks"][number]["channel"]["in_flight"]
    return found


def test_worker_killed_again_and_again(tmp_path: Path) -> None:
    """Under load, at any moment: every request is answered, and every block holds what its answer says."""
    disks = [raw(tmp_path / "a", path="emulated"), raw(tmp_path / "b", path="emulated", ide_mode="pio-multiple")]
    disks += [raw(tmp_path / "c")]
    with hvcore.Host() as host, host.create_vm("worker", "16M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            enough = threading.Event()
            wrong: list[object] = []
            aborted = [0] * 3

            def work(number: int) -> None:
                disk = guest.disks[number]
                may = [{bytes(BLOCK)} for _ in range(MIB // BLOCK)]
                for batch in rounds(MIB // BLOCK, number):
                    statuses = [1] * len(batch)
                    try:
                        disk.write_batch([block * BLOCK for block, _ in batch], b"".join(data for _, data in batch))
                    except hvcore.DiskError as error:
                        statuses = error.statuses or []
                    for (block, data), status in zip(batch, statuses, strict=True):
                        may[block] = {data} if status == 1 else may[block] | {data}
                        wrong.extend([(number, "status", status)] if status not in (1, 2) else [])
                        aborted[number] += status == 2
                    if enough.is_set():
                        break
                image = disk.read(0, MIB)
                wrong.extend(
                    (number, block) for block in range(MIB // BLOCK) if image[block * BLOCK :][:BLOCK] not in may[block]
                )

            def run(number: int) -> None:
                try:
                    work(number)
                except BaseException as error:
                    wrong.append(error)

            threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
            for thread in threads:
                thread.start()
            for turn in range(4):
                worker = vm.describe()["worker"]
                before = vm.counters()["disks"][0]["requests"]
                until(lambda before=before: vm.counters()["disks"][0]["requests"] > before + 50, "requests are served")
                os.kill(worker, signal.SIGKILL)
                until(lambda turn=turn: events(host).count("worker ended") == turn + 1, "the host sees it")
            enough.set()
            for thread in threads:
                thread.join()
            assert wrong == []
            assert aborted[2] == 0
            # One more is not replaced: too many in too short a time. Its disks fail at once, the others go on.
            for turn in (4, 5):
                os.kill(vm.describe()["worker"], signal.SIGKILL)
                until(lambda turn=turn: events(host).count("worker ended") == turn + 1, "the host sees it")
            with pytest.raises(hvcore.DiskError) as caught:
                guest.disks[0].read(0, 4096)
            assert caught.value.srb_status == 2
            assert "worker not restarted" in events(host) and vm.describe()["worker"] is None
            guest.disks[2].read(0, 4096)
        with vm.attach() as guest:  # a new guest, a new worker
            guest.disks[0].read(0, 4096)


@pytest.mark.parametrize("number", [0, 1], ids=PATHS)
def test_host_killed_under_a_guest(tmp_path: Path, number: int) -> None:
    disks = [raw(tmp_path / path, path=path) for path in PATHS]
    with hvcore.Host() as host:
        vm = host.create_vm("host", "16M", disks)
        vm.start()
        with vm.attach() as guest:
            worker = vm.describe()["worker"]
            writer = Writer(guest, number)
            writer.start()
            until(lambda: writer.flushed > 5, "some rounds are flushed")
            os.kill(host.pid, signal.SIGKILL)
            writer.join(PATIENCE)
            assert isinstance(writer.error, GuestGone)
            calls: list[Callable[[], object]] = [
                lambda: guest.disks[1 - number].read(0, 512),
                lambda: guest.disks[number].write(0, guest.alloc(512)),
                lambda: guest.disks[number].flush(),
                lambda: guest.disks[number].read_batch([0, 512], bytearray(1024)),
            ]
            for call in calls:
                with pytest.raises(GuestGone):
                    call()
            with pytest.raises(HostError, match="the host is gone"):
                vm.counters()
            assert gone([host.pid, worker])
    check((tmp_path / PATHS[number]).read_bytes(), number, writer.flushed)


def test_host_killed_under_a_child(tmp_path: Path) -> None:
    fifo = tmp_path / "said"
    os.mkfifo(fifo)
    with hvcore.Host() as host:
        vm = host.create_vm("host", "16M", [raw(tmp_path / "disk")])
        vm.start()
        child = vm.run("tests.reference.children:write_rounds", 0, 3, str(fifo))
        with fifo.open("rb", buffering=0) as said:
            flushed = sum(len(said.read(1)) for _ in range(8))
            os.kill(host.pid, signal.SIGKILL)
            flushed += len(said.readall())
        with pytest.raises(GuestGone):
            child.wait(PATIENCE)
    check((tmp_path / "disk").read_bytes(), 3, flushed)


def test_client_killed(tmp_path: Path) -> None:
    """Host, worker and child see the end of their descriptors and go."""
    fifo, image = tmp_path / "said", tmp_path / "disk"
    os.mkfifo(fifo)
    image.write_bytes(bytes(MIB))
    command = [sys.executable, "-m", "tests.reference.children", "client", str(fifo), str(image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 3 and all(Path(f"/proc/{pid}").exists() for pid in pids)
        process.kill()
    assert gone(pids)
    with hvcore.vhd.open(image, mode="r+", format="raw") as disk:  # and the image is free
        disk.write(0, bytes(512))
