"""The worker process of one VM: runs its emulated devices. Knows nothing of images and files; talks to its host alone.

It inherits one SOCK_SEQPACKET socket. Datagrams are JSON: first {"drives": [...]} with the shared memory and the host's
doorbell by SCM_RIGHTS; then {"memory": true} with a guest's memory, or {"memory": false} when the guest is gone. Each
is answered with {"done": true}. End-of-file ends the process.
"""

import array
import contextlib
import json
import os
import signal
import socket
from typing import Any

from hvcore.dispatch.worker import Worker
from hvcore.memory.region import Region

DATAGRAM_MAX = 65536


def receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """One datagram and its descriptors; None at the end."""
    data, ancillary, _, _ = sock.recvmsg(DATAGRAM_MAX, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    descriptors: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            integers = array.array("i")
            integers.frombytes(content[: len(content) - len(content) % 4])
            descriptors.extend(integers)
    return (json.loads(data) if data else None), descriptors


def serve(sock: socket.socket) -> None:
    """Until the host closes the socket."""
    message, descriptors = receive(sock)
    if message is None:
        return
    shared = Region.attach(descriptors[0])
    worker = Worker(shared, descriptors[1], [tuple(drive) for drive in message["drives"]])
    for fd in descriptors:
        os.close(fd)
    worker.start()
    sock.send(b'{"done": true}')
    try:
        while True:
            message, descriptors = receive(sock)
            if message is None:
                return
            worker.memory(Region.attach(descriptors[0]) if message["memory"] else None)
            for fd in descriptors:
                os.close(fd)
            sock.send(b'{"done": true}')
    finally:
        worker.close()


def main(fd: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to whoever started the host
    with socket.socket(fileno=fd) as sock, contextlib.suppress(ConnectionError, BrokenPipeError):
        os.set_inheritable(fd, False)
        serve(sock)
