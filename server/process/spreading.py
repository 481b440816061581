"""Spread the connections of a client over the workers (Linux).

The kernel chooses a worker by a hash: four connections reach one of two workers in one of eight
cases. As Linux gives a client's successive connections ports 2 to 16 apart, a BPF program that
changes the worker every 16 ports does so in one of 60 cases.
"""

import os
import socket
import stat
import struct
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import structlog

log = structlog.get_logger()

# Of Linux; the socket module does not name them.
_ATTACH_REUSEPORT_CBPF = 51
_DETACH_REUSEPORT_BPF = 68

# Classic BPF: code, jump if true, jump if false, operand.
_INSTRUCTION = struct.Struct("HBBI")
_LOAD_BYTE, _LOAD_HALF = 0x30, 0x28
_JUMP, _JUMP_IF_AT_LEAST = 0x05, 0x35
_MULTIPLY, _SHIFT_RIGHT, _MODULO, _RETURN = 0x24, 0x74, 0x94, 0x16
# Offsets relative to the IP header (SKF_NET_OFF). TCP's header begins with the client's port.
_IP_HEADER = 0xFFF00000
_IPV4_BYTES, _IPV6_BYTES = 20, 40
_LISTENING = "0A"


def spread_connections(port: int, workers: int) -> None:
    """Choose the worker of a new connection by the client's port; call it in each worker.

    The kernel uses its hash if the program chooses a worker that does not listen. Services that
    share the port are left to the hash; one listener more than workers is a replacement.
    """
    try:
        is_alone = workers > 1 and _listening(port) <= workers + 1
        for listener in _listeners(port):
            if is_alone:
                _attach(listener, _program(workers))
            else:
                with suppress(FileNotFoundError):  # No program is attached.
                    listener.setsockopt(socket.SOL_SOCKET, _DETACH_REUSEPORT_BPF, 0)
    except OSError as error:
        log.debug("connections are spread by the kernel's hash", why=str(error))


def _program(workers: int) -> "array[int]":
    """Assemble: the client's port, and one for every 16 ports, modulo the workers."""
    instructions = [
        (_LOAD_BYTE, 0, 0, _IP_HEADER),
        (_JUMP_IF_AT_LEAST, 2, 0, 6 << 4),  # The version is in the upper half of the byte.
        (_LOAD_HALF, 0, 0, _IP_HEADER + _IPV4_BYTES),
        (_JUMP, 0, 0, 1),
        (_LOAD_HALF, 0, 0, _IP_HEADER + _IPV6_BYTES),
        # Adding the port itself also spreads ports that differ by one.
        (_MULTIPLY, 0, 0, 17),
        (_SHIFT_RIGHT, 0, 0, 4),
        (_MODULO, 0, 0, workers),
        (_RETURN, 0, 0, 0),
    ]
    return array("B", b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions))


def _attach(listener: socket.socket, program: "array[int]") -> None:
    """Attach a program to all sockets that listen on the address of this one."""
    address, size = program.buffer_info()
    value = struct.pack("HP", size // _INSTRUCTION.size, address)
    listener.setsockopt(socket.SOL_SOCKET, _ATTACH_REUSEPORT_CBPF, value)


def _listeners(port: int) -> Iterator[socket.socket]:
    """Yield the sockets of this process that listen on a port: grpc does not expose its own."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue  # Of others, socket.fromfd leaves a copy open.
            with socket.fromfd(int(name), socket.AF_INET, socket.SOCK_STREAM) as held:
                is_listening = held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if is_listening and held.getsockname()[1] == port:
                    yield held


def _listening(port: int) -> int:
    """Count the sockets of all processes that listen on a port."""
    tables = [table.read_text().splitlines() for table in Path("/proc/net").glob("tcp*")]
    rows = [line.split() for table in tables for line in table]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == _LISTENING for row in rows)
