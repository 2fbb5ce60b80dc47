"""Disks behind the guest's IDE controller, with host, worker and guest as they are: what they do, and what it costs."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hvcore
from hvcore.partition.client import VirtualMachine
from hvcore.partition.guest import Guest
from hvcore.partition.trapped import TrappedDisk
from tests.reference.vms import IDE_MODES, MIB, content, raw, stopped

DATA = content(MIB)
ACCESSES = {"dma": 15, "pio": 2063, "pio-string": 23, "pio-multiple": 16}  # of a 4 KiB read (ide.md 6.2)
EXACT = ("requests", "port_accesses", "intercepts", "hand_overs", "media_accesses", "ring_packets", "bytes_copied")
Running = tuple[VirtualMachine, Guest, list[TrappedDisk]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("images")
    disks = [raw(folder / mode, DATA, path="trapped", ide_mode=mode) for mode in IDE_MODES]
    with hvcore.Host() as host, host.create_vm("trapped", "32M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            yield vm, guest, [disk for disk in guest.disks if isinstance(disk, TrappedDisk)]


@pytest.fixture(autouse=True)
def same_content(running: Running) -> Iterator[None]:
    yield
    for disk in running[2]:
        mode, disk.drive.mode = disk.drive.mode, 0  # half a million accesses word by word would take their time
        disk.write(0, DATA)
        disk.drive.mode = mode


def cost(running: Running, disk: TrappedDisk, call: Callable[[], object]) -> tuple[dict[str, int], int]:
    """What the call added to the host's counters, and the accesses that the guest made. Nothing to another disk's."""
    vm, _, disks = running
    before, accesses = vm.counters()["disks"], disk.drive.counters()["port_accesses"]
    call()
    after, accesses_now = vm.counters()["disks"], disk.drive.counters()["port_accesses"]
    for other in disks:
        assert other is disk or all(after[other.number][name] == before[other.number][name] for name in EXACT)
    return {name: after[disk.number][name] - before[disk.number][name] for name in EXACT}, accesses_now - accesses


def test_the_drives_say_what_they_are(running: Running) -> None:
    _, _, disks = running
    assert [disk.ide_mode for disk in disks] == list(IDE_MODES)
    for disk in disks:
        assert (disk.path, disk.size, disk.sector_size, disk.read_only) == ("trapped", MIB, 512, False)
        assert (disk.model, len(disk.serial), disk.can_trim) == ("Virtual HD", 20, True)
    assert len({disk.serial for disk in disks}) == 4


@pytest.mark.parametrize("number", range(4), ids=IDE_MODES)
def test_a_read_of_4_kib_costs(running: Running, number: int) -> None:
    """Each access is an intercept, handed from the child to the worker and back; the media access goes to the host."""
    _, guest, disks = running
    disk = disks[number]
    buffer = guest.alloc(4096)
    for offset in (0, MIB - 4096):
        found, accesses = cost(running, disk, lambda offset=offset: disk.readinto(offset, buffer))
        expected = ACCESSES[disk.ide_mode or ""]
        copied = 0 if number == 0 else 4096
        assert found == dict(zip(EXACT, (1, expected, expected, 2 * expected + 2, 1, 0, copied), strict=True))
        assert accesses == expected
        assert memoryview(buffer) == DATA[offset : offset + 4096]


@pytest.mark.parametrize("number", range(4), ids=IDE_MODES)
def test_a_write_of_4_kib_costs(running: Running, number: int) -> None:
    """4.3: one status read more than a read in the PIO modes."""
    _, _, disks = running
    disk = disks[number]
    expected = ACCESSES[disk.ide_mode or ""] + (1 if number else 0)
    found, accesses = cost(running, disk, lambda: disk.write(8192, b"w" * 4096))
    copied = 0 if number == 0 else 4096
    assert found == dict(zip(EXACT, (1, expected, expected, 2 * expected + 2, 1, 0, copied), strict=True))
    assert accesses == expected


@pytest.mark.parametrize("number", range(4), ids=IDE_MODES)
def test_data_of_any_length_both_ways(running: Running, number: int) -> None:
    _, guest, disks = running
    disk = disks[number]
    length = 3072 if number == 1 else MIB
    assert disk.read(MIB - length, length) == DATA[MIB - length :]
    model = bytearray(DATA)
    for offset, length in ((512, 512), (0, 4096), (65536 - 512, 1024), (10240, 3072 if number == 1 else 200_192)):
        written = content(length, seed=offset)
        disk.write(offset, written)
        model[offset : offset + length] = written
        assert disk.read(offset, length) == written
    disk.flush()
    assert disk.read(0, 16384) == model[:16384]
    assert disk.read(MIB - 512, 512) == model[-512:]
    # Memory of the guest is read and written in place, also at odd pages' ends.
    buffer = guest.alloc(9 * 4096)
    memoryview(buffer)[:] = bytes(9 * 4096)
    view = memoryview(buffer)[2046 : 2046 + 8192]
    view[:] = content(8192, seed=7)
    disk.write(512, view)
    assert disk.read(512, 8192) == bytes(view)
    view[:] = bytes(8192)
    disk.readinto(512, view)
    assert bytes(view) == content(8192, seed=7) and not any(memoryview(buffer)[:2046])
    del view


@pytest.mark.parametrize("number", range(4), ids=IDE_MODES)
def test_batches(running: Running, number: int) -> None:
    _, _, disks = running
    disk = disks[number]
    offsets = [4096 * n for n in (3, 1, 200, 7, 7)]
    out = bytearray(5 * 4096)
    disk.read_batch(offsets, out, queue_depth=8)
    assert out == b"".join(DATA[at : at + 4096] for at in offsets)
    disk.write_batch(offsets[:4], content(4 * 4096, seed=3))
    out = bytearray(4 * 4096)
    disk.read_batch(offsets[:4], out)
    assert out == content(4 * 4096, seed=3)


def test_trim(running: Running) -> None:
    _, _, disks = running
    for disk in disks:
        disk.trim(4096, 65536)
        assert disk.read(0, 8192) == DATA[:4096] + bytes(4096)
        assert disk.read(65536, 8192) == bytes(4096) + DATA[69632:73728]


def test_asyncio(running: Running) -> None:
    _, _, disks = running

    async def all_of_them() -> list[bytes]:
        for disk in disks:
            await disk.awrite(0, DATA[4096:8192])
            await disk.aflush()
        return list(await asyncio.gather(*(disk.aread(0, 4096) for disk in disks)))

    assert asyncio.run(all_of_them()) == 4 * [DATA[4096:8192]]


def test_threads_share_processor_and_channels(running: Running) -> None:
    _, _, disks = running
    failed: list[BaseException] = []

    def work(disk: TrappedDisk, part: int) -> None:
        try:
            for turn in range(4):
                data = content(8192, seed=100 * part + turn)
                disk.write(16384 * part, data)
                assert disk.read(16384 * part, 8192) == data
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(disks[n], part)) for n in (0, 2, 3) for part in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_mistakes_are_value_errors(running: Running) -> None:
    disk = running[2][0]
    for call in (lambda: disk.read(1, 512), lambda: disk.read(0, 100), lambda: disk.read(MIB, 512)):
        with pytest.raises(ValueError):
            call()
    assert disk.read(0, 0) == b""


@pytest.mark.parametrize("number", [0, 1, 2], ids=IDE_MODES[:3])
def test_a_timeout_leaves_a_channel_that_works(running: Running, number: int) -> None:
    vm, _, disks = running
    disk = disks[number]
    target = bytearray(b"x" * 4096)
    with stopped(vm.describe()["worker"]):
        for call in (lambda: disk.readinto(4096, target, timeout=0.02), lambda: disk.flush(timeout=0)):
            with pytest.raises(TimeoutError):
                call()
    assert disk.read(4096, 4096) == DATA[4096:8192]
    assert target == b"x" * 4096


def test_ports_without_intercept_never_leave_the_guest(running: Running) -> None:
    _, guest, _ = running
    processor = guest.ide.processor
    before = processor.counters()
    assert (processor.inb(0x3F7), processor.inw(0x2F8), processor.inl(0x60)) == (0xFF, 0xFFFF, 0xFFFFFFFF)
    processor.outb(0x3F7, 1)
    after = processor.counters()
    assert after["port_accesses"] - before["port_accesses"] == 4 and after["intercepts"] == before["intercepts"]


def test_read_only_disk_and_drive_that_cannot_trim(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(DATA)
    hvcore.vhd.convert(path, tmp_path / "fixed.vhd", format="vhd", type="fixed", source_format="raw")
    disks = [raw(path, path="trapped", read_only=True), hvcore.DiskConfig(str(tmp_path / "fixed.vhd"), path="trapped")]
    with hvcore.Host() as host, host.create_vm("ro", "2M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            disk, fixed = guest.disks
            assert disk.read_only and disk.read(0, 4096) == DATA[:4096]
            disk.flush()
            with pytest.raises(hvcore.DiskError, match="write protected") as caught:
                disk.write(0, bytes(512))
            error = caught.value
            assert (error.sense_key, error.asc, error.srb_status) == (7, 0x27, 4)
            assert (error.ata_status, error.ata_error) == (0x51, 0x04)
            with pytest.raises(hvcore.DiskError) as caught:
                fixed.trim(0, 4096)
            assert caught.value.ata_error == 0x04
            assert fixed.read(0, MIB) == DATA
    assert path.read_bytes() == DATA


def test_a_lost_sector_is_named(tmp_path: Path) -> None:
    """An image that is shorter than its drive: what is missing cannot be read, the rest can."""
    path = tmp_path / "image"
    with hvcore.Host() as host, host.create_vm("short", "16M", [raw(path, DATA, path="trapped")]) as vm:
        vm.start()
        with vm.attach() as guest:
            (disk,) = guest.disks
            with path.open("r+b") as file:
                file.truncate(MIB // 2)
            out = bytearray(3 * 4096)
            with pytest.raises(hvcore.DiskError, match="unrecovered read error") as caught:
                disk.read_batch([0, MIB - 4096, 4096], out)
            error = caught.value
            assert (error.index, error.statuses, error.sense_key) == (1, [1, 4, 1], 3)
            assert (error.ata_status, error.ata_error) == (0x51, 0x40)
            assert out[:4096] == DATA[:4096] and out[8192:] == DATA[4096:8192]


def test_an_accelerated_disk_and_its_twin_are_one_disk(tmp_path: Path) -> None:
    """ide.md 7.3: what one path wrote the other reads, and both flush the same medium."""
    disks = [raw(tmp_path / name, DATA, path="accelerated") for name in "ab"]
    with hvcore.Host() as host, host.create_vm("twins", "16M", disks) as vm:
        vm.start()
        with vm.attach() as guest:
            for disk in guest.disks:
                twin = guest.twin(disk)
                assert twin.size == disk.size and twin.read(0, 65536) == disk.read(0, 65536) == DATA[:65536]
                for turn in range(8):
                    data = content(4096, seed=turn)
                    disk.write(4096 * turn, data)
                    assert twin.read(4096 * turn, 4096) == data
                    twin.write(4096 * turn, data[::-1])
                    twin.flush()
                    assert disk.read(4096 * turn, 4096) == data[::-1]
        assert (tmp_path / "b").read_bytes()[:4096] == content(4096, seed=0)[::-1]
