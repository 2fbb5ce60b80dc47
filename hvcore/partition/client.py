"""The Python face of a host: start one or join one, make VMs, attach to them."""

import contextlib
import os
import socket
import sys
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from subprocess import Popen
from types import TracebackType
from typing import Any, Self

from hvcore.errors import HostError
from hvcore.partition.child import Child
from hvcore.partition.config import DiskConfig, VmConfig
from hvcore.partition.guest import Guest
from hvcore.partition.process import end, spawn
from hvcore.partition.rpc import VERSION, Caller
from hvcore.sizes import parse_size

END_PATIENCE = 10.0
Objects = list[dict[str, Any]]
Users = list[Guest | Child]


class Host:
    """A host process: `with Host() as host` starts a private one that ends with it; Host.connect(path) joins one.

    Calls are for one thread at a time.
    """

    def __init__(self) -> None:
        self._vms: dict[str, VirtualMachine] = {}
        self._guests: weakref.WeakSet[Guest] = weakref.WeakSet()  # one that is attached lives by its thread
        self._children: list[Child] = []
        ours, theirs = socket.socketpair()
        with theirs:
            self._process: Popen[bytes] | None = spawn(
                "hvcore.partition.host", [str(theirs.fileno())], [theirs.fileno()]
            )
        self._caller = Caller(ours)
        self._private = True
        self.closed = False
        self._check()

    @classmethod
    def connect(cls, path: str | os.PathLike[str]) -> Self:
        """Joins the host behind a control socket (`hvcore serve`). Closing then leaves host and VMs as they are."""
        self = cls.__new__(cls)
        self._vms, self._guests, self._children = {}, weakref.WeakSet(), []
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            raise HostError(f"no host answers at {os.fspath(path)}: {error.strerror or error}") from None
        self._process = None
        self._caller = Caller(sock)
        self._private = False
        self.closed = False
        self._check()
        return self

    def _check(self) -> None:
        try:
            answer = self.call("version")
            if not isinstance(answer, dict) or not isinstance(answer.get("pid"), int):
                raise HostError("what answers is no host")
            if answer.get("protocol") != VERSION:
                raise HostError(
                    f"the host speaks version {answer.get('protocol')} of the control protocol, not {VERSION}"
                )
            self.pid: int = answer["pid"]
        except BaseException:
            self.close()
            raise

    def call(self, method: str, **params: Any) -> Any:
        """A method of the control socket."""
        if self.closed:
            raise HostError("the host is closed")
        return self._caller.call(method, **params)

    def create_vm(
        self,
        name: str,
        memory: str | int = "64M",
        disks: Iterable[DiskConfig | str | os.PathLike[str]] = (),
        *,
        controllers: int = 1,
        sub_channels: int = 0,
    ) -> "VirtualMachine":
        """Makes a VM and opens its images. memory: bytes, or text like "64M". controllers: SCSI controllers, at most 4;
        sub_channels: how many channels beside the first a guest may have on each. ValueError, HostError."""
        config = VmConfig.make(name, memory, disks, controllers, sub_channels)
        described = config.to_json() | {"disks": [absolute(disk) for disk in config.disks]}
        self.call("create", config=described, **self._search(config.disks))
        self._vms[name] = VirtualMachine(self, name)
        return self._vms[name]

    def _search(self, disks: Iterable[DiskConfig]) -> dict[str, Any]:
        """A private host finds the classes that are disks as the caller does."""
        return {"search": sys.path} if self._private and any(disk.format == "python" for disk in disks) else {}

    def vm(self, name: str) -> "VirtualMachine":
        """A VM that exists, by name."""
        if not any(vm["name"] == name for vm in self.list()):
            raise HostError(f"there is no VM {name!r}")
        return self._vms.setdefault(name, VirtualMachine(self, name))

    def list(self) -> Objects:
        """What each VM is and does."""
        found: Objects = self.call("list")
        return found

    def events(self, after: int = 0) -> Objects:
        """What happened since the event numbered `after`."""
        found: Objects = self.call("events", after=after)
        return found

    def attach(self, name: str) -> tuple[socket.socket, Objects]:
        """A socket on which to attach as the VM's child partition (docs/vmbus-user.md), and what its disks are."""
        if self.closed:
            raise HostError("the host is closed")
        answer, descriptors = self._caller.call_with_descriptors("attach", vm=name)
        if len(descriptors) != 1:
            for fd in descriptors:
                os.close(fd)
            raise HostError("the host sent no socket to attach to")
        return socket.socket(fileno=descriptors[0]), answer["disks"]

    def forget(self, name: str) -> None:
        self._vms.pop(name, None)

    def keep(self, user: Guest | Child) -> None:
        """Closed with the host, before it."""
        self._children = [child for child in self._children if not child.closed]
        if isinstance(user, Guest):
            self._guests.add(user)
        else:
            self._children.append(user)

    def close(self) -> None:
        """Detaches guests, ends children; a private host ends with all its VMs. Idempotent."""
        if self.closed:
            return
        self.closed = True
        users: Users = [*self._guests, *self._children]
        for user in users:
            with contextlib.suppress(HostError):
                user.close()
        self._children = []
        self._caller.close()
        if self._process is not None:
            end(self._process, END_PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def absolute(disk: DiskConfig) -> dict[str, Any]:
    """For a host whose current directory is another one."""
    return asdict(disk) | ({} if disk.format == "python" else {"image": str(Path(disk.image).absolute())})


class VirtualMachine:
    """One VM of a host."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name

    def start(self) -> None:
        """Starts its worker, when it has emulated disks; then a guest can attach."""
        self.host.call("start", vm=self.name)

    def stop(self) -> None:
        """Ends its guest and worker. Idempotent."""
        self.host.call("stop", vm=self.name)

    def delete(self) -> None:
        """Stops it and closes its images."""
        self.host.call("delete", vm=self.name)
        self.host.forget(self.name)

    def attach(self, timeout: float = 30.0, *, sub_channels: int | None = None, queue_policy: str = "thread") -> Guest:
        """This process becomes the VM's child partition, until the Guest is closed. The options are the Guest's."""
        sock, disks = self.host.attach(self.name)
        guest = Guest(sock, disks, timeout=timeout, sub_channels=sub_channels, queue_policy=queue_policy)
        self.host.keep(guest)
        return guest

    def run(self, target: str, *arguments: Any) -> Child:
        """The child partition in a process of its own, which calls `target`, "package.module:function", as
        function(guest, *arguments). Arguments and result travel by pickle."""
        sock, disks = self.host.attach(self.name)
        with sock:
            child = Child(sock.fileno(), disks, target, arguments, search=sys.path)
        self.host.keep(child)
        return child

    def add_disk(self, disk: DiskConfig | str | os.PathLike[str]) -> int:
        """One disk more, also under a guest, which is told; its number. An IDE disk is added to a stopped VM only."""
        config = disk if isinstance(disk, DiskConfig) else DiskConfig(os.fspath(disk))
        search = self.host._search([config])
        number: int = self.host.call("add_disk", vm=self.name, disk=absolute(config), **search)["number"]
        return number

    def remove_disk(self, number: int) -> None:
        """One disk less, also under a guest, which is told; requests that are under way end first."""
        self.host.call("remove_disk", vm=self.name, disk=number)

    def set_qos(self, number: int, **limits: int) -> dict[str, int]:
        """Sets limits of a disk, in force at once: max_iops, min_iops (operations of 8 KiB per second), max_bandwidth,
        min_bandwidth (bytes per second); 0 takes one away, those not named stay. All four as they are then."""
        found: dict[str, int] = self.host.call("set_qos", vm=self.name, disk=number, limits=limits)
        return found

    def report_slow(self, seconds: float) -> None:
        """Requests that take so long, or wait so long for a limit, become events of the host; 0: none (the default)."""
        self.host.call("report_slow", vm=self.name, nanoseconds=int(seconds * 1e9))

    def resize_disk(self, number: int, size: str | int) -> None:
        """Gives a disk and its image another size (bytes, or text like "4G"), also under a guest, which is told."""
        self.host.call("resize_disk", vm=self.name, disk=number, size=parse_size(size))

    def move_disk(self, number: int, path: str) -> None:
        """Puts a disk of a stopped VM on another path: "synthetic", "emulated", ..."""
        self.host.call("move_disk", vm=self.name, disk=number, path=path)

    def checkpoint(self, disk: int, path: str | os.PathLike[str]) -> None:
        """Makes the new file `path` a differencing image on top of disk number `disk`, which goes on with it; requests
        wait meanwhile, none fails. The image of before keeps what the disk held, durable, and is only read from now on.

        HostError: it cannot be made, and the disk goes on as before; raw and read-only images have no checkpoints.
        """
        self.host.call("checkpoint", vm=self.name, disk=disk, image=str(Path(path).absolute()))

    def inject(self, disk: int, rules: Iterable[Mapping[str, Any]]) -> None:
        """Puts rules (hvcore.disk.rules) in front of disk number `disk` in place of those that are there, also while
        requests run; none takes them away, and what they delay goes on. HostError names the rule and the key."""
        self.host.call("inject", vm=self.name, disk=disk, rules=[dict(rule) for rule in rules])

    def injected(self, disk: int) -> dict[str, Any]:
        """What the rules did. "rules": each with the requests that it matched ("seen") and on which it acted ("acted");
        "held": requests that are being delayed; "cut": whether a rule cut the power; "log": what rules with "log"
        recorded since the last call, "lost": how many more (see FilterDisk.log)."""
        found: dict[str, Any] = self.host.call("injected", vm=self.name, disk=disk)
        return found

    def counters(self) -> dict[str, Any]:
        """Of each disk since the VM was made: see hvcore.metrics.counters."""
        found: dict[str, Any] = self.host.call("counters", vm=self.name)
        return found

    def trace(self, enable: bool | None = None) -> dict[str, Any]:
        """Turns the tracing of requests on or off; the stamps since the last call."""
        found: dict[str, Any] = self.host.call("trace", vm=self.name, enable=enable)
        return found

    def describe(self) -> dict[str, Any]:
        return next(vm for vm in self.host.list() if vm["name"] == self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self.host.closed:
            with contextlib.suppress(HostError):
                self.delete()
