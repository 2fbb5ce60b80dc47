"""Descriptors that travel over a Unix socket (SCM_RIGHTS).

socket.recv_fds() takes flags and drops them: what it received would stay open in a program started by exec.
"""

import array
import socket
from collections.abc import Sequence


def send(sock: socket.socket, data: bytes, descriptors: Sequence[int]) -> int:
    """sock.send() with descriptors beside the first byte, and never SIGPIPE. The caller's descriptors stay open."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    return sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, size_bytes: int, most: int) -> tuple[bytes, list[int], int]:
    """sock.recv() with up to `most` descriptors, close-on-exec and the caller's to close: (data, descriptors, flags).

    MSG_CTRUNC in the flags: there were more, which the kernel has closed.
    """
    data, ancillary, flags, _ = sock.recvmsg(
        size_bytes, socket.CMSG_LEN(most * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, descriptors.tolist(), flags
