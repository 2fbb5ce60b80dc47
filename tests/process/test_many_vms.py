"""Many VMs on one host process: each disk is its own, and no VM notices another."""

import os
from pathlib import Path

import hvcore
from tests.reference.vms import MIB, raw

VMS, DISKS = 64, 4


def mark(vm: int, disk: int) -> bytes:
    return bytes([vm, disk]) * 256


def test_sixty_four_vms_with_four_disks_each(tmp_path: Path) -> None:
    with hvcore.Host() as host:
        threads = len(list(Path(f"/proc/{host.pid}/task").iterdir()))
        vms, guests = [], []
        for number in range(VMS):
            disks = [raw(tmp_path / f"{number}-{disk}", bytes(MIB)) for disk in range(DISKS)]
            vms.append(host.create_vm(f"vm{number}", "4M", disks))
            vms[-1].start()
            guests.append(vms[-1].attach())
        # One data thread for each VM; the pool's are shared by all.
        assert len(list(Path(f"/proc/{host.pid}/task").iterdir())) == threads + VMS
        for number, guest in enumerate(guests):
            for disk in guest.disks:
                disk.write(512 * number, mark(number, disk.number))
        for number, guest in enumerate(guests):
            assert [disk.read(512 * number, 512) for disk in guest.disks] == [mark(number, d) for d in range(DISKS)]
            guest.disks[0].flush()
        vms[7].stop()
        assert guests[8].disks[3].read(512 * 8, 512) == mark(8, 3)
        for guest in guests:
            guest.close()
        for vm in vms:
            vm.delete()
        assert len(list(Path(f"/proc/{host.pid}/task").iterdir())) == threads
    for number in range(VMS):
        with (tmp_path / f"{number}-2").open("rb") as file:
            file.seek(512 * number)
            assert file.read(512) == mark(number, 2)
            assert os.fstat(file.fileno()).st_size == MIB
