"""SIGKILL on the trapped path: who is left goes on, what was flushed is there, and nothing stays behind."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import hvcore
from hvcore.errors import GuestGone, HostError
from tests.process.test_kills import Writer, check
from tests.reference.vms import IDE_MODES, MIB, PATIENCE, content, events, gone, raw, until

DATA = content(MIB)


@pytest.mark.parametrize("mode", ["dma", "pio-string"])
def test_worker_killed_again_and_again(tmp_path: Path, mode: str) -> None:
    """The driver sees a controller that was reset, and does again what it had not seen completed: no call fails."""
    disks = [raw(tmp_path / name, path="trapped", ide_mode=mode) for name in "abc"]
    with hvcore.Host() as host, host.create_vm("worker", "16M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            stop = threading.Event()
            failed: list[BaseException] = []
            done = [0, 0, 0]

            def work(number: int) -> None:
                disk = guest.disks[number]
                try:
                    while not stop.is_set():
                        data = content(16384, seed=3 * done[number] + number)
                        disk.write(4096 * number, data)
                        disk.flush()
                        assert disk.read(4096 * number, 16384) == data
                        done[number] += 1
                except BaseException as error:
                    failed.append(error)

            threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
            for thread in threads:
                thread.start()
            for _ in range(3):
                before, worker = list(done), vm.describe()["worker"]
                until(lambda before=before: all(now > then for now, then in zip(done, before)), "all go on")  # noqa: B905
                os.kill(worker, signal.SIGKILL)
                until(lambda worker=worker: vm.describe()["worker"] not in (None, worker), "another worker")
            before = list(done)
            until(lambda: failed or all(now > then for now, then in zip(done, before, strict=True)), "all go on")
            stop.set()
            for thread in threads:
                thread.join(PATIENCE)
            assert not failed
            assert sum(disk.channel.counters()["retries"] for disk in guest.disks) >= 1
        assert events(host).count("worker ended") == 3


def test_worker_that_always_ends_fails_the_request(tmp_path: Path) -> None:
    """After a few restarts nobody takes over: requests end with an error, and the next guest finds a worker again."""
    with hvcore.Host() as host, host.create_vm("w", "16M", [raw(tmp_path / "a", DATA, path="trapped")]) as vm:
        vm.start()
        with vm.attach() as guest:
            (disk,) = guest.disks
            while "worker not restarted" not in events(host):
                worker = vm.describe()["worker"]
                if worker is not None:
                    os.kill(worker, signal.SIGKILL)
                    until(lambda worker=worker: vm.describe()["worker"] != worker, "its end is seen")
            with pytest.raises(hvcore.DiskError) as caught:
                disk.read(0, 4096)
            assert (caught.value.srb_status, caught.value.sense_key) == (2, 0xB)
        with vm.attach() as guest:
            assert guest.disks[0].read(0, 4096) == DATA[:4096]


@pytest.mark.parametrize("mode", IDE_MODES)
def test_child_killed(tmp_path: Path, mode: str) -> None:
    fifo = tmp_path / "said"
    os.mkfifo(fifo)
    with hvcore.Host() as host, host.create_vm("c", "16M", [raw(tmp_path / "a", path="trapped", ide_mode=mode)]) as vm:
        vm.start()
        worker = vm.describe()["worker"]
        child = vm.run("tests.reference.children:write_rounds", 0, 1, str(fifo))
        with fifo.open("rb", buffering=0) as said:
            flushed = sum(len(said.read(1)) for _ in range(1 if mode == "pio" else 4))
            os.kill(child.pid, signal.SIGKILL)
            flushed += len(said.readall())
        with pytest.raises(HostError, match="killed by signal 9"):
            child.wait(PATIENCE)
        with vm.attach() as guest:  # the drives are as after power-on
            check(guest.disks[0].channel.channel.read(0, 0, 0, MIB)[0], 1, flushed)  # type: ignore[attr-defined]
        assert vm.describe()["worker"] == worker
        assert events(host).count("guest gone") == 2


def test_host_killed_in_the_midst_of_transfers(tmp_path: Path) -> None:
    """Every call ends with GuestGone, and what was flushed is in the image."""
    disks = [raw(tmp_path / str(n), path="trapped", ide_mode=mode) for n, mode in enumerate(("dma", "pio-string"))]
    with hvcore.Host() as host:
        vm = host.create_vm("host", "16M", disks)
        vm.start()
        worker = vm.describe()["worker"]
        with vm.attach() as guest:
            writers = [Writer(guest, number) for number in range(2)]
            for writer in writers:
                writer.start()
            until(lambda: all(writer.flushed > 1 or writer.error for writer in writers), "rounds are flushed")
            os.kill(host.pid, signal.SIGKILL)
            for writer in writers:
                writer.join(PATIENCE)
                assert isinstance(writer.error, GuestGone), writer.error
        assert gone([worker])
    for number, writer in enumerate(writers):
        check((tmp_path / str(number)).read_bytes(), number, writer.flushed)


def test_ctrl_c_ends_a_wait_and_the_channel_works_on(tmp_path: Path) -> None:
    """A signal's handler runs while a request waits; one that raises gives the request up."""
    image = tmp_path / "a"
    image.write_bytes(DATA)
    script = f"""
import os, signal, threading, hvcore
with hvcore.Host() as host, host.create_vm("c", "16M", [hvcore.DiskConfig({str(image)!r}, "trapped", "raw")]) as vm:
    vm.start()
    with vm.attach() as guest:
        (disk,) = guest.disks
        worker = vm.describe()["worker"]
        os.kill(worker, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            disk.read(0, 4096)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        os.kill(worker, signal.SIGCONT)
        print(disk.read(0, 4096) == open({str(image)!r}, "rb").read(4096))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=2 * PATIENCE)
    assert (done.stdout.split(), done.stderr) == (["interrupted", "True"], "")
