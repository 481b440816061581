"""Serve functions of bytes with plain grpcio."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import grpc

THREADS = 4
"""As many as a worker of TaskService has."""


def serve(service: str, methods: Mapping[str, Callable[[bytes], bytes]]) -> None:
    """Serve methods on PORT, which other processes may share, until the process ends."""
    server = grpc.server(ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 1)])
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                service, {name: _handler(work) for name, work in methods.items()}
            )
        ]
    )
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    server.start()
    server.wait_for_termination()


def _handler(work: Callable[[bytes], bytes]) -> grpc.RpcMethodHandler[bytes, bytes]:
    return grpc.unary_unary_rpc_method_handler(lambda request, _context: work(request))
