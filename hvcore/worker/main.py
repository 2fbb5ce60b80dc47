"""The worker process of one VM: runs its emulated devices. Knows nothing of images and files; talks to its host alone.

It inherits one SOCK_SEQPACKET socket. Datagrams are JSON: first {"drives": [...], "guest_drives": [...]} with the
shared memory and the host's doorbell by SCM_RIGHTS; then {"memory": true, "epoch": n} with a guest's memory and perhaps
the pages of its port intercepts, or {"memory": false} when the guest is gone. Each is answered with {"done": true}.
End-of-file ends the process.
"""

import contextlib
import json
import os
import signal
import socket
from typing import Any

from hvcore.dispatch.worker import Worker
from hvcore.linux import descriptors
from hvcore.memory.region import Region

DATAGRAM_MAX = 65536


def receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """One datagram and its descriptors; None at the end."""
    data, found, _ = descriptors.receive(sock, DATAGRAM_MAX, 2)
    return (json.loads(data) if data else None), found


def serve(sock: socket.socket) -> None:
    """Until the host closes the socket."""
    message, fds = receive(sock)
    if message is None:
        return
    shared = Region.attach(fds[0])
    drives, guest_drives = ([tuple(drive) for drive in message[name]] for name in ("drives", "guest_drives"))
    worker = Worker(shared, fds[1], drives, guest_drives)
    for fd in fds:
        os.close(fd)
    worker.start()
    sock.send(b'{"done": true}')
    try:
        while True:
            message, fds = receive(sock)
            if message is None:
                return
            memory = Region.attach(fds[0]) if message["memory"] else None
            worker.memory(memory, Region.attach(fds[1]) if len(fds) > 1 else None, message["epoch"])
            for fd in fds:
                os.close(fd)
            sock.send(b'{"done": true}')
    finally:
        worker.close()


def main(fd: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to whoever started the host
    with socket.socket(fileno=fd) as sock, contextlib.suppress(ConnectionError, BrokenPipeError):
        os.set_inheritable(fd, False)
        serve(sock)
