"""Ask whether the service is ready."""

from __future__ import annotations

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from taskservice_client._async import io
from taskservice_client.channels import Options, Tls, credentials_for, options_for
from taskservice_client.errors import error_of
from taskservice_client.requests import new_call_id

_READINESS = HealthCheckRequest(service="taskservice.v1.TaskService")


async def check_health(
    target: str, tls: Tls | bool | None, options: Options, timeout: float
) -> bool:
    """Return whether the service is ready. Raises: TaskServiceError.

    The connection is its own: the channel of calls waits for a service that is ready.
    """
    own: Options = [("grpc.service_config", "{}"), ("grpc.use_local_subchannel_pool", 1)]
    channel = io.open_channel(
        target, credentials_for(target, tls), options_for(tls, [*options, *own]), ()
    )
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    call_id = new_call_id()
    try:
        response = await check(
            _READINESS, timeout=timeout, metadata=(("x-request-id", call_id),), wait_for_ready=True
        )
    except grpc.RpcError as failure:
        raise error_of(failure, call_id) from failure
    finally:
        await channel.close()
    return bool(response.status == HealthCheckResponse.SERVING)
