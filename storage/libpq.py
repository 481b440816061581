"""Cancel requests of libpq: the only module of storage that relies on a private part of a library.

psycopg2's public `connection.cancel()` holds the interpreter's lock until the server answers, so a
server that does not would stop every thread of the process (docs/decisions/0003). ctypes releases
the lock. This relies on `psycopg2._psycopg` being the extension module that libpq is linked to;
`pgconn_ptr` is documented. `pyproject.toml` bounds the version of psycopg2.
"""

from __future__ import annotations

import ctypes

import psycopg2
from psycopg2.extensions import connection as DriverConnection  # noqa: N812 - used as a type

_libpq = ctypes.CDLL(psycopg2._psycopg.__file__)
_libpq.PQgetCancel.argtypes = _libpq.PQfreeCancel.argtypes = [ctypes.c_void_p]
_libpq.PQgetCancel.restype = ctypes.c_void_p
_libpq.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]


class CancelRequest:
    """A request to cancel a connection's statement; it may outlive the connection."""

    def __init__(self, connection: DriverConnection) -> None:
        self._request = _libpq.PQgetCancel(connection.pgconn_ptr)

    def __del__(self) -> None:
        _libpq.PQfreeCancel(self._request)

    def send(self) -> None:
        """Return when the server has signalled the statement, or cannot be reached."""
        error = ctypes.create_string_buffer(256)
        _libpq.PQcancel(self._request, error, len(error))
