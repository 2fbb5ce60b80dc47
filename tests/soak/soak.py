"""Mixed load on many VMs while workers, guests, VMs and the host itself are killed, with verification of every sector.

`python -m tests.soak.soak --seconds 600` from the top of the source tree. What may be read when is said in model.py.
The seed fixes what is done; when it happens, and with it which request it meets, is the machine's.
"""

import argparse
import contextlib
import os
import resource
import select
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import hvcore
from hvcore.errors import GuestGone, HostError
from hvcore.partition.child import Child
from hvcore.partition.client import VirtualMachine
from hvcore.partition.config import PATHS
from hvcore.vhd import create
from hvcore.vhd import open as open_vhd
from hvcore.vhd.check import check
from tests.conftest import descendants, descriptors, ended
from tests.reference.vms import IDE_MODES, PATIENCE, until
from tests.soak.model import ENDED, READ, RECORD_BYTES, SECTOR, WRITE, DiskModel, Record

MIB = 1 << 20
SIZE = 2 * MIB
AT_ONCE = MIB
GROWTH = 64 << 20  # bytes of anonymous memory that the host may have more at the end of its life
# name, format, type, size of sectors
KINDS = (
    ("raw", "raw", "fixed", 512),
    ("vhdx", "vhdx", "dynamic", 512),
    ("vhd", "vhd", "dynamic", 512),
    ("vhdx", "vhdx", "fixed", 512),
    ("vhdx", "vhdx", "dynamic", 4096),
    ("vhd", "vhd", "fixed", 512),
)
IDE_PATHS = tuple(path for path in PATHS if path != "synthetic")


@dataclass
class SoakDisk:
    config: hvcore.DiskConfig
    model: DiskModel
    slot: int = 0  # its number in its VM


class Journal(threading.Thread):
    """Reads what one guest says, into the models of its disks, until the guest has ended and all of it is read."""

    def __init__(self, fifo: int, guest: int, models: dict[int, DiskModel], counts: Counter[str]) -> None:
        super().__init__(daemon=True)
        self._fifo = fifo
        self._guest = os.pidfd_open(guest)
        self._models = models
        self._counts = counts
        self.heard = threading.Event()  # the guest's first requests are done
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._follow_guest()
        except BaseException as error:
            self.error = error
        finally:
            os.close(self._fifo)
            os.close(self._guest)

    def _follow_guest(self) -> None:
        poll = select.poll()
        poll.register(self._fifo, select.POLLIN)
        poll.register(self._guest, select.POLLIN)
        rest = b""
        while True:
            ready = dict(poll.poll())
            data = b""
            if ready.get(self._fifo, 0) & select.POLLIN or self._guest in ready:
                with contextlib.suppress(BlockingIOError):
                    data = os.read(self._fifo, 65536)
            elif self._fifo in ready:
                poll.unregister(self._fifo)  # no writer any more: only the guest's end is left to wait for
            if not data and self._guest in ready:
                assert not rest, "a record is cut"
                return
            data = rest + data
            whole = len(data) // RECORD_BYTES * RECORD_BYTES
            rest = data[whole:]
            for record in Record.parse(data[:whole]):
                self._take(record)
                if record.phase == ENDED:
                    self.heard.set()

    def _take(self, record: Record) -> None:
        if record.phase == ENDED:
            self._counts[f"requests: {record.kind}"] += 1
            if record.sectors and record.status == 1:
                self._counts[f"bytes: {record.kind}"] += record.sectors * SECTOR
            if record.status != 1:
                self._counts[f"errors: {record.kind}, SRB status {record.status:#04x}"] += 1
        if record.kind != READ:
            self._models[record.disk].follow(record)


@dataclass
class Machine:
    """A VM, its disks, and the guest that now works on them."""

    name: str
    disks: list[SoakDisk]
    fifo: Path
    vm: VirtualMachine | None = None
    child: Child | None = None
    journal: Journal | None = None
    lives: int = 0


@dataclass
class Soak:
    folder: Path
    seed: int
    vms: int
    random: Random = field(init=False)
    counts: Counter[str] = field(default_factory=Counter)
    machines: list[Machine] = field(default_factory=list)
    host: hvcore.Host | None = None
    before: tuple[Counter[str], int] = (Counter(), 0)  # of the host, before its first guest: descriptors, bytes

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        number = 0
        for index in range(self.vms):
            disks = []
            for place in range(self.random.randrange(2, 5)):
                # Every path in turn, and every kind on each of them.
                path = PATHS[number % len(PATHS)]
                name, format, type, sector = KINDS[number // len(PATHS) % len(KINDS)]
                if sector == 4096 and path != "synthetic":
                    name, format, type, sector = KINDS[0]
                disks.append(self._disk(f"{index}-{place}.{name}", number, path, format, type, sector))
                number += 1
            fifo = self.folder / f"journal-{index}"
            os.mkfifo(fifo)
            self.machines.append(Machine(f"soak-{index}", disks, fifo))

    def _disk(self, name: str, number: int, path: str, format: str, type: str, sector: int) -> SoakDisk:
        image = self.folder / name
        if format == "raw":
            image.write_bytes(bytes(SIZE))
        else:
            create(image, SIZE, format=format, type=type, sector_size=sector)
        # Word by word, each an intercept, one verification of a trapped disk would be a million of them.
        modes = [mode for mode in IDE_MODES if mode != "pio" or path != "trapped"]
        mode = self.random.choice(modes) if path in IDE_PATHS else "dma"
        config = hvcore.DiskConfig(str(image), path=path, format=format, ide_mode=mode)
        return SoakDisk(config, DiskModel(number, SIZE // SECTOR))

    # Lives of hosts, VMs and guests.

    def start_host(self) -> None:
        self.host = hvcore.Host()
        for machine in self.machines:
            self.make(machine)
            self.verify(machine, opened=True)
        self.before = self.descriptors_of_host(), self.size_of_host()
        for machine in self.machines:
            self.start_guest(machine)

    def descriptors_of_host(self) -> Counter[str]:
        """What they lead to, without the numbers of sockets and pipes."""
        assert self.host is not None
        found: Counter[str] = Counter()
        for entry in Path(f"/proc/{self.host.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found[str(entry.readlink()).partition(":[")[0]] += 1
        return found

    def size_of_host(self) -> int:
        """Bytes of memory that are its own."""
        assert self.host is not None
        pid = self.host.pid
        status = Path(f"/proc/{pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        return int(line.split()[1]) << 10

    def judge_host(self) -> None:
        """All VMs run and no guest is attached, as when it began."""
        assert self.host is not None
        descriptors, size = self.before
        # A guest that left is seen a moment later.
        deadline = time.monotonic() + PATIENCE
        while more := self.descriptors_of_host() - descriptors:
            assert time.monotonic() < deadline, f"the host has descriptors more than in the beginning: {more}"
            self.wait(0.01)
        maps = Path(f"/proc/{self.host.pid}/maps").read_text().splitlines()
        named = [line for line in maps if " /dev/shm/" in line and str(self.folder) not in line]
        assert not named, f"the host has memory that has a name and may stay: {named}"
        now = self.size_of_host()
        assert now <= size + GROWTH, f"the host had {size:,} bytes, now {now:,}"
        self.counts["host: bytes grown, at most"] = max(self.counts["host: bytes grown, at most"], now - size)

    def make(self, machine: Machine) -> None:
        assert self.host is not None
        machine.vm = self.host.create_vm(machine.name, "16M", [disk.config for disk in machine.disks])
        for number, disk in enumerate(machine.disks):
            disk.slot = number
        machine.vm.start()

    def verify(self, machine: Machine, *, opened: bool = False) -> None:
        """As the VM's guest, every sector of every disk. opened: its images were just opened."""
        assert machine.vm is not None
        with machine.vm.attach() as guest:
            for disk, seen in zip(machine.disks, guest.disks, strict=True):
                for offset in range(0, SIZE, AT_ONCE):
                    disk.model.verify(offset // SECTOR, seen.read(offset, AT_ONCE, timeout=PATIENCE))
                if opened:
                    disk.model.opened()
                self.counts["bytes: verified"] += SIZE
        self.counts["verified disks"] += len(machine.disks)

    def start_guest(self, machine: Machine) -> None:
        assert machine.vm is not None
        machine.lives += 1
        fifo = os.open(machine.fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = [disk.model.number for disk in machine.disks]
        try:
            machine.child = machine.vm.run(
                "tests.soak.guest:load", numbers, self.seed, machine.lives, str(machine.fifo)
            )
            models = {disk.model.number: disk.model for disk in machine.disks}
            machine.journal = Journal(fifo, machine.child.pid, models, self.counts)
        except BaseException:
            os.close(fifo)
            raise
        machine.journal.start()

    def end_guest(self, machine: Machine, *, kill: bool, gone: bool | None = None) -> None:
        """kill: with SIGKILL. gone: it ends, or may have ended, by itself, as its host, VM or a disk of it is gone."""
        gone = not kill if gone is None else gone
        child, journal = machine.child, machine.journal
        assert child is not None and journal is not None
        if kill:
            os.kill(child.pid, signal.SIGKILL)
        try:
            said = child.wait(PATIENCE)
            assert said == "gone" and gone, f"a guest ended by itself: {said}"
        except GuestGone as error:
            assert gone, error  # it had just begun to attach
        except HostError as error:
            assert kill and "killed by signal 9" in str(error), error
        finally:
            journal.join(PATIENCE)
        assert not journal.is_alive()
        if journal.error is not None:
            raise journal.error
        machine.child = machine.journal = None
        for disk in machine.disks:
            disk.model.guest_ended()

    # What happens to them. Each leaves every VM with a guest at work, after all its sectors were verified.

    def some_machine(self) -> Machine:
        """Mostly with a guest at work; else it may be met while it attaches."""
        machine = self.random.choice(self.machines)
        if self.random.random() < 0.9:
            self.at_work(machine)
        return machine

    def at_work(self, machine: Machine) -> None:
        journal = machine.journal
        assert journal is not None
        until(lambda: journal.heard.is_set() or not journal.is_alive(), f"the guest of {machine.name} works")

    def kill_worker(self) -> None:
        machine = self.some_machine()
        assert machine.vm is not None
        worker = machine.vm.describe()["worker"]
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        elif any(disk.config.path in IDE_PATHS for disk in machine.disks):
            self.count("guests restarted, as their worker was killed too often")
            self.replace_guest(machine)

    def count(self, what: str) -> None:
        self.counts[f"did: {what}"] += 1

    def replace_guest(self, machine: Machine) -> None:
        self.end_guest(machine, kill=True)
        self.verify(machine)
        self.start_guest(machine)

    def kill_guest(self) -> None:
        self.replace_guest(self.some_machine())

    def stop_vm(self) -> None:
        machine = self.some_machine()
        assert machine.vm is not None
        machine.vm.stop()
        self.end_guest(machine, kill=False)
        machine.vm.start()
        self.verify(machine)
        self.start_guest(machine)

    def make_vm_again(self) -> None:
        machine = self.some_machine()
        assert machine.vm is not None
        machine.vm.delete()
        self.end_guest(machine, kill=False)
        self.make(machine)
        self.verify(machine, opened=True)
        self.start_guest(machine)

    def replace_disk(self) -> None:
        """A disk goes and the same image comes again, under load; an IDE disk does so only while its VM is stopped."""
        machine = self.some_machine()
        assert machine.vm is not None
        disk = self.random.choice(machine.disks)
        ide = disk.config.path != "synthetic"
        if ide:
            machine.vm.stop()
        machine.vm.remove_disk(disk.slot)
        disk.slot = machine.vm.add_disk(disk.config)
        if ide:
            machine.vm.start()
        self.end_guest(machine, kill=True, gone=True)
        # The guests to come see it last.
        machine.disks.remove(disk)
        machine.disks.append(disk)
        self.verify(machine)
        self.start_guest(machine)

    def kill_host(self) -> None:
        host = self.host
        assert host is not None
        self.some_machine()
        os.kill(host.pid, signal.SIGKILL)
        assert ended(host.pid, PATIENCE)
        for machine in self.machines:
            self.end_guest(machine, kill=False)
            for disk in machine.disks:
                disk.model.host_killed()
        host.close()
        self.start_host()

    def actions(self) -> list[tuple[str, int, Callable[[], None]]]:
        found: list[tuple[str, int, Callable[[], None]]] = [
            ("workers killed", 34, self.kill_worker),
            ("guests killed", 40, self.kill_guest),
            ("VMs stopped and started", 12, self.stop_vm),
            ("VMs deleted and made again", 8, self.make_vm_again),
            ("hosts killed", 6, self.kill_host),
        ]
        if hasattr(VirtualMachine, "remove_disk"):
            found.append(("disks removed and added", 8, self.replace_disk))
        return found

    def failures(self) -> None:
        """Of guests that ended by themselves."""
        for machine in self.machines:
            if machine.journal is not None and not machine.journal.is_alive():
                self.end_guest(machine, kill=False)
                raise AssertionError(f"the guest of {machine.name} ended without being told")

    def run(self, seconds: float, gap: float) -> None:
        names = self.actions()
        self.start_host()
        end = time.monotonic() + seconds
        # The first of each kind come in turn and in any case, then it is chance.
        due = list(names)
        while (left := end - time.monotonic()) > 0 or due:
            self.wait(max(0.0, min(left, self.random.expovariate(1 / gap))))
            self.failures()
            name, _, act = due.pop(0) if due else self.random.choices(names, [weight for _, weight, _ in names])[0]
            self.count(name)
            act()
        self.finish()

    def wait(self, seconds: float) -> None:
        """Until then, or until a guest ends."""
        pidfds = [os.pidfd_open(machine.child.pid) for machine in self.machines if machine.child is not None]
        try:
            select.select(pidfds, [], [], seconds)
        finally:
            for fd in pidfds:
                os.close(fd)

    def finish(self) -> None:
        """Everything is ended in order; the images are then judged without any host."""
        assert self.host is not None
        for machine in self.machines:
            self.end_guest(machine, kill=True)
        for machine in self.machines:
            self.verify(machine)
        self.judge_host()
        for machine in self.machines:
            assert machine.vm is not None
            machine.vm.delete()
        self.host.close()
        for disk in (disk for machine in self.machines for disk in machine.disks):
            image = disk.config.image
            if disk.config.format != "raw":
                found = check(image)
                assert found.clean, f"{image}: {found.findings}"
            with open_vhd(image, "r", disk.config.format) as opened:
                for offset in range(0, SIZE, AT_ONCE):
                    disk.model.verify(offset // SECTOR, opened.read(offset, AT_ONCE))
            self.counts["bytes: verified"] += SIZE
        self.counts["lives of guests"] = sum(machine.lives for machine in self.machines)

    def close(self) -> None:
        """After a failure too."""
        if self.host is not None:
            self.host.close()
        for machine in self.machines:
            if machine.journal is not None:
                machine.journal.join(PATIENCE)


@contextlib.contextmanager
def places() -> Iterator[Path]:
    """A folder for the images, and sockets and temporary files of hvcore in a place that must be empty at the end."""
    with tempfile.TemporaryDirectory(prefix="hvcore-soak-") as name:
        private = {}
        for variable in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "TMPDIR"):
            private[variable] = Path(name, variable.lower())
            private[variable].mkdir(mode=0o700)
        before = {variable: os.environ.get(variable) for variable in private}
        os.environ.update({variable: str(folder) for variable, folder in private.items()})
        try:
            images = Path(name, "images")
            images.mkdir()
            yield images
            left = [str(file) for folder in private.values() for file in folder.rglob("*")]
            assert not left, f"files left behind: {left}"
        finally:
            for variable, value in before.items():
                if value is None:
                    del os.environ[variable]
                else:
                    os.environ[variable] = value


def soak(seconds: float, seed: int, vms: int, gap: float = 0.3) -> Counter[str]:
    """What was done, counted. AssertionError: with the seed, and the sector if it is one."""
    fds, processes = len(descriptors()), descendants()
    with places() as folder:
        run = Soak(folder, seed, vms)
        try:
            run.run(seconds, gap)
        except Exception as error:
            did = {name: number for name, number in run.counts.items() if name.startswith("did: ")}
            raise AssertionError(f"seed {seed}, {vms} VMs: {type(error).__name__}: {error}; {did}") from error
        finally:
            run.close()
    assert all(ended(pid, PATIENCE) for pid in descendants() - processes), "processes are left"
    assert len(descriptors()) <= fds, "descriptors of this process are left"
    return run.counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--vms", type=int, default=8)
    parser.add_argument("--gap", type=float, default=0.3, help="mean seconds between two kills")
    options = parser.parse_args()
    print(f"seed {options.seed}: {options.vms} VMs, {options.seconds:g} s", flush=True)
    counts = soak(options.seconds, options.seed, options.vms, options.gap)
    for name, number in sorted(counts.items()):
        print(f"  {name}: {number:,}")
    print(f"  memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10:,} bytes")
    assert counts[f"requests: {WRITE}"] and counts["bytes: verified"]
    print("every sector held what it must, and nothing is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
