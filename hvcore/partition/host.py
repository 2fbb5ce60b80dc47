"""The host process: holds the parent partition, and serves the control socket."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import hvcore
from hvcore.dispatch.pool import MediaPool
from hvcore.errors import Error, HostError
from hvcore.hypervisor.partition import Hypervisor
from hvcore.partition import rpc
from hvcore.partition.config import DiskConfig, VmConfig, disk_from_json
from hvcore.partition.images import Images
from hvcore.partition.loop import HANGUP, READ, WRITE, Loop
from hvcore.partition.vm import Vm

EVENTS_KEPT = 1000
VMS_MAX = 256


class _Control:
    """One connection to the control socket as a source of the loop."""

    def __init__(self, host: "HostProcess", sock: socket.socket) -> None:
        self._host = host
        self.connection = rpc.Connection(sock)

    def fileno(self) -> int:
        return self.connection.sock.fileno()

    def interest(self) -> int:
        # A client that does not read its answers is not read either.
        return WRITE if self.connection.wants_write else READ

    def ready(self, events: int) -> None:
        alive = True
        if events & READ:
            lines = self.connection.receive()
            if lines is None:
                alive = False
            for line in lines or []:
                self._host.request(self.connection, line)
        elif events & HANGUP:
            alive = False
        if alive:
            alive = self.connection.flush()
        if not alive:
            self._host.control_closed(self)

    def deadline(self) -> float | None:
        return None


class HostProcess:
    """VMs by name, and the methods by which clients reach them.

    A private host lives as long as its one control connection. Nothing a client sends ends the host but "shutdown".
    """

    def __init__(self, *, memory_limit: int | None = None, allow_python_disks: bool = False) -> None:
        self.loop = Loop()
        self._hypervisor = Hypervisor(memory_limit)
        self._images = Images()
        self._pool = MediaPool()
        self._vms: dict[str, Vm] = {}
        self._numbers = 0
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_KEPT)
        self._event_number = 0
        self._controls: set[_Control] = set()
        self._private = False
        self._allow_python_disks = allow_python_disks
        self._noting = threading.Lock()
        self._methods: dict[str, Callable[..., Any]] = {
            "version": self._version,
            "create": self._create,
            "start": lambda vm: self._vm(vm).start(),
            "stop": lambda vm: self._vm(vm).stop(),
            "delete": self._delete,
            "list": lambda: [vm.describe() for vm in self._vms.values()],
            "add_disk": self._add_disk,
            "remove_disk": lambda vm, disk: self._vm(vm).remove_disk(disk),
            "set_qos": lambda vm, disk, limits: self._vm(vm).set_qos(disk, limits),
            "report_slow": lambda vm, nanoseconds: self._vm(vm).report_slow(nanoseconds),
            "resize_disk": lambda vm, disk, size: self._vm(vm).resize_disk(disk, size),
            "move_disk": lambda vm, disk, path: self._vm(vm).move_disk(disk, path),
            "inject": lambda vm, disk, rules: self._vm(vm).inject(disk, rules),
            "injected": lambda vm, disk: self._vm(vm).injected(disk),
            "checkpoint": lambda vm, disk, image: self._vm(vm).checkpoint(disk, image),
            "counters": lambda vm: self._vm(vm).counters(),
            "trace": lambda vm, enable=None: self._vm(vm).trace(enable),
            "events": self._events_since,
            "shutdown": self.loop.stop,
        }

    # Connections.

    def serve_private(self, sock: socket.socket) -> None:
        """Serves one client until it goes away."""
        self._private = True
        self.add_control(sock)
        self.loop.run()

    def add_control(self, sock: socket.socket) -> None:
        control = _Control(self, sock)
        self._controls.add(control)
        self.loop.add(control)

    def control_closed(self, control: _Control) -> None:
        self.loop.remove(control)
        self._controls.discard(control)
        control.connection.close()
        if self._private:
            self.loop.stop()

    def request(self, connection: rpc.Connection, line: bytes) -> None:
        """Answers one line. The work is done here and now: the control path is not the data path."""
        identity = None
        answered = True
        descriptors: list[int] = []
        try:
            try:
                request = json.loads(line)
            except (ValueError, RecursionError):
                raise _Refused(rpc.PARSE_ERROR, "not a JSON text") from None
            if not isinstance(request, dict) or request.get("jsonrpc") != "2.0":
                raise _Refused(rpc.INVALID_REQUEST, "not a request of JSON-RPC 2.0")
            number = request.get("id")
            if not isinstance(request.get("method"), str) or not isinstance(number, int | float | str | None):
                raise _Refused(rpc.INVALID_REQUEST, "not a request of JSON-RPC 2.0")
            identity = number
            answered = "id" in request  # else a notification
            params = request.get("params", {})
            if not isinstance(params, dict):
                raise _Refused(rpc.INVALID_PARAMS, "params are given by name")
            if request["method"] == "attach":
                result = self._attach(descriptors, **self._checked(self._attach, params, 1))
            else:
                method = self._methods.get(request["method"])
                if method is None:
                    raise _Refused(rpc.METHOD_NOT_FOUND, f"there is no method {request['method']!r}")
                result = method(**self._checked(method, params))
            reply = {"jsonrpc": "2.0", "id": identity, "result": result}
        except _Refused as error:
            reply = _error(identity, error.code, str(error))
        except (Error, OSError, ValueError, MemoryError) as error:
            reply = _error(identity, rpc.FAILED, str(error) or type(error).__name__, type(error).__name__)
        if answered:
            connection.reply(reply, descriptors)
        else:
            for fd in descriptors:
                os.close(fd)

    @staticmethod
    def _checked(method: Callable[..., Any], params: dict[str, Any], skip: int = 0) -> dict[str, Any]:
        code = method.__code__ if hasattr(method, "__code__") else method.__func__.__code__  # type: ignore[attr-defined]
        names = code.co_varnames[: code.co_argcount]
        names = tuple(name for name in names if name != "self")[skip:]
        required = len(names) - len(getattr(method, "__defaults__", None) or ())
        missing = [name for name in names[:required] if name not in params]
        unknown = [name for name in params if name not in names]
        if missing or unknown:
            what = f"missing: {', '.join(missing)}" if missing else f"unknown: {', '.join(unknown)}"
            raise _Refused(rpc.INVALID_PARAMS, f"parameters {what}")
        return params

    # Methods.

    def note(self, event: str, **details: Any) -> None:
        """From any thread."""
        with self._noting:
            self._event_number += 1
            self._events.append({"number": self._event_number, "time": time.time(), "event": event, **details})

    def _events_since(self, after: int = 0) -> list[dict[str, Any]]:
        if not isinstance(after, int):
            raise ValueError("after is the number of an event")
        for vm in self._vms.values():
            vm.report_events()
        with self._noting:
            return [event for event in self._events if event["number"] > after]

    def _version(self) -> dict[str, Any]:
        return {"protocol": rpc.VERSION, "hvcore": hvcore.__version__, "pid": os.getpid()}

    def _vm(self, name: Any) -> Vm:
        found = self._vms.get(name) if isinstance(name, str) else None
        if found is None:
            raise HostError(f"there is no VM {name!r}")
        return found

    def _create(self, config: Any, search: Any = None) -> dict[str, Any]:
        checked = VmConfig.from_json(config)
        self._admit_classes(checked.disks, search)
        if checked.name in self._vms:
            raise HostError(f"there is a VM {checked.name!r} already")
        if len(self._vms) == VMS_MAX:
            raise HostError(f"a host holds at most {VMS_MAX} VMs")
        self._numbers += 1
        self._vms[checked.name] = Vm(
            self.loop, self._hypervisor, self._images, self._pool, checked, self._numbers & 0xFFFF, self.note
        )
        self.note("created", vm=checked.name)
        return self._vms[checked.name].describe()

    def _add_disk(self, vm: str, disk: Any, search: Any = None) -> dict[str, Any]:
        checked = disk_from_json(disk)
        self._admit_classes([checked], search)
        return self._vm(vm).add_disk(checked)

    def _admit_classes(self, disks: Iterable[DiskConfig], search: Any) -> None:
        """Python disks run a client's code in this process: a private host is its client's own, a shared one is asked.

        search: where a private host finds the modules, after all other places.
        """
        if all(disk.format != "python" for disk in disks):
            return
        if not self._private and not self._allow_python_disks:
            raise HostError("this host runs no Python disks: it was started without --allow-python-disks")
        if search is not None:
            if not self._private or not isinstance(search, list) or not all(isinstance(one, str) for one in search):
                raise ValueError("search is a list of folders, for a private host")
            from hvcore.disk.classes import extend_search

            extend_search(search)

    def _delete(self, vm: str) -> None:
        self._vm(vm).close()
        del self._vms[vm]
        self.note("deleted", vm=vm)

    def _attach(self, descriptors: list[int], vm: str) -> dict[str, Any]:
        fd, disks = self._vm(vm).attach()
        descriptors.append(fd)
        return {"disks": disks}

    def close(self) -> None:
        """Ends every VM and closes every connection."""
        for vm in self._vms.values():
            with contextlib.suppress(Error, OSError):
                vm.close()
        self._vms.clear()
        for control in list(self._controls):
            with contextlib.suppress(OSError):
                control.connection.flush()
            self.loop.remove(control)
            control.connection.close()
        self._controls.clear()
        self._pool.close()
        self.loop.close()


class _Refused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def _error(identity: Any, code: int, message: str, kind: str | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if kind is not None:
        error["data"] = {"kind": kind}
    return {"jsonrpc": "2.0", "id": identity, "error": error}


def stop_on_signals(host: HostProcess) -> None:
    """SIGTERM ends the loop in order; SIGINT is the business of whoever started the host."""
    signal.signal(signal.SIGTERM, lambda *_: host.loop.stop())


def main(fd: int) -> None:
    """A private host over an inherited control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(fd, False)
    host = HostProcess()
    stop_on_signals(host)
    try:
        with socket.socket(fileno=fd) as sock:
            host.serve_private(sock.dup())
    finally:
        host.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
