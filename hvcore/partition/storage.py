"""A VM's disks and controllers: which image is at which place, and what is offered to the guest for it."""

import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from hvcore.disk.filter import FilterDisk
from hvcore.dispatch.host import Dispatch
from hvcore.dispatch.pool import MediaPool
from hvcore.errors import Error, HostError
from hvcore.partition.config import IDE_DRIVES, IDE_MODES, LUNS, DiskConfig, VmConfig
from hvcore.partition.emulator import Drive, GuestDrive
from hvcore.partition.images import Images, OpenImage
from hvcore.scsi import LogicalUnit, Target
from hvcore.storage.packet import IDE_INTERFACE, SCSI_INTERFACE
from hvcore.vhd.live import resize
from hvcore.vmbus.offers import Offer

Event = Callable[..., None]
PORT_PATHS = ("trapped", "accelerated")  # at the ports of the guest's IDE controller
IDE_SECTOR = 512
IDE_SIZE_MAX = IDE_SECTOR << 48
# storvsp.md 1: what an offer of an IDE disk tells Windows beside its instance.
IDE_USER_DATA = struct.Struct("<HBBII12x")
IDE_DEVICE = 0x2


class Controller:
    """What a guest sees as one storvsp controller: several LUNs of SCSI, or a single disk that is an IDE drive too."""

    def __init__(self, number: int, interface: uuid.UUID, instance: uuid.UUID, user_defined: bytes = b"") -> None:
        self.number = number
        self.units: dict[int, VirtualDisk] = {}
        self._interface = interface
        self._instance = instance
        self._user_defined = user_defined

    def offer(self, sub_channel: int = 0) -> Offer:
        """Of the primary channel (0) or a sub-channel: they differ in the index only (vmbus.md CM-20)."""
        return Offer(self._interface, self._instance, user_defined=self._user_defined, subchannel_index=sub_channel)

    @property
    def instance(self) -> str:
        return str(self._instance)

    @property
    def emulated(self) -> bool:
        """Whether its requests pass through the worker."""
        return any(disk.config.path == "emulated" for disk in self.units.values())


class VirtualDisk:
    """One disk of a VM. number: in the VM, for as long as the disk is there. index: in the data path."""

    def __init__(
        self, config: DiskConfig, image: OpenImage, number: int, identity: uuid.UUID, target: Target, index: int
    ) -> None:
        self.config = config
        self.image = image
        self.number = number
        self.identity = identity
        self.target = target
        self.index = index
        self.controller: Controller | None = None
        self.lun = 0
        self.place: int | None = None  # 2 * IDE channel + drive
        self.filter: FilterDisk | None = None  # once there were rules; it stays, as requests may still be with it

    @property
    def rules(self) -> list[dict[str, Any]]:
        """Those in front of it."""
        return self.filter.rules if self.filter is not None else []

    def delays(self, value: bool) -> None:
        """False: rules delay nothing, and what they do delay goes on, as nobody waits for the answers any more."""
        if self.filter is not None:
            self.filter.delays = value

    def drive(self) -> Drive:
        assert self.place is not None
        disk = self.image.disk
        channel, drive = divmod(self.place, 2)
        sectors = disk.size // IDE_SECTOR
        return channel, drive, sectors, disk.read_only, self.identity.hex[:20], disk.physical_sector_size

    def describe(self) -> dict[str, Any]:
        """What a guest's library has to know to find the disk, and people want to."""
        return {
            "number": self.number,
            "instance": self.controller.instance if self.controller is not None else None,
            "controller": self.config.controller if self.config.path == "synthetic" else None,
            "lun": self.lun,
            "place": self.place,
            "read_only": self.image.disk.read_only,
            "path": self.config.path,
            "ide_mode": self.config.ide_mode,
            "image": self.image.info.path,
            "parent": self.image.info.parent,
        }


class Storage:
    """All of one VM. `dispatch` is its data path."""

    def __init__(
        self, vm_id: uuid.UUID, number: int, config: VmConfig, images: Images, pool: MediaPool, note: Event
    ) -> None:
        """Opens the images. ImageError, HostError, ValueError: nothing is left open."""
        self.disks: dict[int, VirtualDisk] = {}
        self.controllers: list[Controller] = []
        self._vm_id = vm_id
        self._vm_number = number
        self._vm_name = config.name
        self._images = images
        self._note = note
        self._next = 0
        self._made = 0
        self.dispatch = Dispatch(pool)
        try:
            for index in range(config.controllers):
                at = self.dispatch.add_controller(sub_channels=config.sub_channels)
                self.controllers.append(Controller(at, SCSI_INTERFACE, uuid.uuid5(vm_id, f"controller {index}")))
            for disk in config.disks:
                self.add(disk)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[VirtualDisk]:
        return iter(self.disks.values())

    def find(self, number: Any) -> VirtualDisk:
        found = self.disks.get(number) if isinstance(number, int) and not isinstance(number, bool) else None
        if found is None:
            raise ValueError(f"{self._vm_name} has no disk {number!r}")
        return found

    def by_index(self, index: int) -> VirtualDisk | None:
        return next((disk for disk in self if disk.index & 0xFF == index), None)

    @property
    def drives(self) -> list[Drive]:
        """What the worker emulates for the VSP."""
        return [disk.drive() for disk in self if disk.config.path == "emulated"]

    @property
    def guest_drives(self) -> list[GuestDrive]:
        """What the worker emulates for the guest's port accesses."""
        return [
            (*disk.drive(), disk.image.disk.can_trim, self.dispatch.trace_base(disk.index))
            for disk in self
            if disk.config.path in PORT_PATHS
        ]

    @property
    def needs_worker(self) -> bool:
        return any(disk.place is not None for disk in self)

    # Coming and going.

    def add(self, config: DiskConfig, number: int | None = None) -> VirtualDisk:
        """Opens the image and puts the disk at its place. number: that of a disk that was there before."""
        image = self._images.open(config, self._vm_id, self._reporter(config))
        try:
            return self._add(config, image, self._next if number is None else number)
        except BaseException:
            self._release(image)
            raise

    def _add(self, config: DiskConfig, image: OpenImage, number: int) -> VirtualDisk:
        place = self._free_place(config, image) if config.path != "synthetic" else None
        controller, lun = (None, 0) if place is not None else self._free_lun(config)
        self._made += 1
        identity = uuid.uuid5(self._vm_id, str(self._made - 1))
        target = self._target(image, identity)
        ide: dict[str, int] = {}
        if config.path == "emulated" and place is not None:
            ide = {"channel": place // 2, "drive": place % 2, "mode": IDE_MODES.index(config.ide_mode)}
        path = "emulated" if config.path == "emulated" else "synthetic"
        index = self.dispatch.add_disk(target, path, vm=self._vm_number, **ide)
        disk = VirtualDisk(config, image, number, identity, target, index)
        try:
            if config.inject:
                self.inject(disk, config.inject)
            if place is not None:
                disk.place = place
                controller = self._ide_controller(config, identity, place) if config.path != "trapped" else None
            if controller is not None:
                self.dispatch.attach_unit(controller.number, lun, index)
            if place is not None and config.path in PORT_PATHS:
                self.dispatch.attach_drive(index, *divmod(place, 2))
        except BaseException:
            self.dispatch.remove_disk(index)
            raise
        disk.controller, disk.lun = controller, lun
        if controller is not None:
            controller.units[lun] = disk
        self.disks[number] = disk
        if any(config.limits.values()):
            self.dispatch.set_limits(index, **config.limits)
        self._next = max(self._next, number + 1)
        return disk

    def _reporter(self, config: DiskConfig) -> Callable[[str], None]:
        """For a disk of a Python class, in whatever thread it fails."""

        def report(failure: str) -> None:
            self._note("disk class failed", vm=self._vm_name, image=config.image, reason=failure)

        return report

    def _target(self, image: OpenImage, identity: uuid.UUID) -> Target:
        """The VM is the initiator (storvsp.md 9.11); a second disk of it on the same shared image is another one."""
        if image.unit is None:
            unit = LogicalUnit(image.disk, id=identity.bytes, serial=identity.hex[:20])
            return Target(image.disk, unit=unit, nexus=self._vm_id.bytes)
        first = all(disk.image is not image for disk in self)
        return Target(image.disk, unit=image.unit, nexus=(self._vm_id if first else identity).bytes)

    def _free_lun(self, config: DiskConfig) -> tuple[Controller, int]:
        if config.controller >= len(self.controllers):
            raise HostError(
                f"{config.image}: there is no controller {config.controller}, "
                f"{self._vm_name} has {len(self.controllers)}"
            )
        controller = self.controllers[config.controller]
        free = [lun for lun in range(LUNS) if lun not in controller.units]
        if config.lun is not None and config.lun not in free:
            raise HostError(f"{config.image}: LUN {config.lun} of controller {config.controller} is taken")
        if not free:
            raise HostError(f"{config.image}: controller {config.controller} has no LUN left of {LUNS}")
        return controller, free[0] if config.lun is None else config.lun

    def _free_place(self, config: DiskConfig, image: OpenImage) -> int:
        if image.disk.sector_size != IDE_SECTOR:
            raise ValueError(
                f"{config.image}: an IDE disk has sectors of {IDE_SECTOR} bytes, not {image.disk.sector_size}"
            )
        if image.disk.size > IDE_SIZE_MAX:
            raise ValueError(f"{config.image}: an IDE disk has at most 2**48 sectors")
        taken = {disk.place for disk in self}
        free = [place for place in range(IDE_DRIVES) if place not in taken]
        if not free:
            raise HostError(f"{config.image}: {self._vm_name} has {IDE_DRIVES} IDE disks already")
        return free[0]

    def _ide_controller(self, config: DiskConfig, identity: uuid.UUID, place: int) -> Controller:
        if config.path == "accelerated":
            channel, drive = divmod(place, 2)
            instance = uuid.UUID(f"{channel:08x}-{drive:04x}-8899-0000-000000000000")
            data = IDE_USER_DATA.pack(0, channel, drive, 0, IDE_DEVICE)
            return Controller(self.dispatch.add_controller(single_disk=True), IDE_INTERFACE, instance, data)
        return Controller(self.dispatch.add_controller(), SCSI_INTERFACE, identity)

    def detach(self, disk: VirtualDisk) -> None:
        """The guest cannot reach the disk any more; its requests under way go on (dispatch.drain_disk)."""
        disk.delays(False)
        if disk.controller is not None:
            del disk.controller.units[disk.lun]
            self.dispatch.detach_unit(disk.controller.number, disk.lun)
        del self.disks[disk.number]

    def discard(self, disk: VirtualDisk) -> None:
        """After detach(), with nothing in flight and an IDE disk's channel closed: forgets it and closes its image."""
        self.dispatch.remove_disk(disk.index)
        disk.target.close()
        if disk.place is not None and disk.controller is not None:
            self.dispatch.remove_controller(disk.controller.number)
        self._release(disk.image)

    def set_limits(self, disk: VirtualDisk, limits: dict[str, Any]) -> None:
        disk.config = replace(disk.config, **limits)
        self.dispatch.set_limits(disk.index, **disk.config.limits)

    # Rules in front of disks.

    def inject(self, disk: VirtualDisk, rules: Any) -> None:
        """Its rules from now on. Without any there is nothing between the VSP and the image."""
        below = disk.image.disk
        if disk.filter is None:
            disk.filter = FilterDisk(below, rules)
        else:
            disk.filter.rules = rules
        self.dispatch.exchange_disk(disk.index, disk.filter if rules else below)

    def injected(self, disk: VirtualDisk) -> dict[str, Any]:
        """What the rules did so far, and the log since the last call."""
        if disk.filter is None:
            return {"rules": [], "held": 0, "cut": False, "log": [], "lost": 0}
        log, lost = disk.filter.log()
        counted = [{"rule": rule, **count} for rule, count in zip(disk.rules, disk.filter.counts, strict=True)]
        return {"rules": counted, "held": disk.filter.held, "cut": disk.filter.cut, "log": log, "lost": lost}

    def resize(self, disk: VirtualDisk, size: int) -> None:
        disk.image.info = resize(disk.image.disk, disk.image.info, size)
        for one in self:
            if one.image is disk.image and one.filter is not None:
                one.filter.resized()
            if one.image is disk.image and one.controller is not None:
                self.dispatch.notify(one.controller.number)
        for unit in {
            id(one.target.logical_unit): one.target.logical_unit for one in self if one.image is disk.image
        }.values():
            unit.resized()  # every initiator hears of it, of this VM and others

    def _release(self, image: OpenImage) -> None:
        try:
            self._images.release(image)
        except Error as error:
            self._not_clean(image, error)

    def _not_clean(self, image: OpenImage, error: Error) -> None:
        self._note("image not closed cleanly", vm=self._vm_name, image=image.info.path, reason=str(error))

    def settle(self) -> None:
        """A stopped VM's images can be copied: nothing in them waits for a log's replay."""
        for image in {id(disk.image): disk.image for disk in self}.values():
            error = self._images.settle(image)
            if error is not None:
                self._not_clean(image, error)

    def close(self) -> None:
        """Ends the data path and closes the images. Idempotent."""
        self.dispatch.close()
        for disk in self:
            disk.target.close()
            self._release(disk.image)
        self.disks.clear()
