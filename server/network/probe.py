"""Ask HEALTH_PORT on this machine for a status: `python -m server.network.probe [service]`.

It reads no other setting: a probe runs every few seconds, and settings take longer than the call.
"""

import os
import sys

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

_READINESS = "taskservice.v1.TaskService"
_SECONDS = 3.0


def main(service: str = _READINESS) -> str | None:
    """Return None if the service serves, else the reason."""
    address = f"localhost:{os.environ.get('HEALTH_PORT')}"
    try:
        with grpc.insecure_channel(address) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                HealthCheckRequest.SerializeToString,
                HealthCheckResponse.FromString,
            )
            status = check(HealthCheckRequest(service=service), timeout=_SECONDS).status
    except grpc.RpcError as error:
        return f"{address}: {error.code().name}"
    if status == HealthCheckResponse.SERVING:
        return None
    return HealthCheckResponse.ServingStatus.Name(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
