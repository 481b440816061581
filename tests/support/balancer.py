"""Run Envoy before the instances of a service: it sends calls to those that are ready."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.request import urlopen

from server.network.health import READINESS
from tests.support.rest import ENVOY, has_envoy
from tests.support.service import PATIENCE_SECONDS, wait_until

Config: TypeAlias = dict[str, Any]

_TYPES = "type.googleapis.com/envoy.extensions"
_ROUTER = f"{_TYPES}.filters.http.router.v3.Router"
_MANAGER = f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"
_HTTP = f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions"
# The service has not seen such a call, so that a write can be repeated, too: on another instance.
_UNSEEN = {
    "retry_on": "connect-failure,refused-stream",
    "num_retries": 2,
    "host_selection_retry_max_attempts": 5,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": f"{_TYPES}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            },
        }
    ],
}
# A client that watched the health of one instance would wait while it drains, though others serve.
_NO_HEALTH = {
    "match": {"prefix": "/grpc.health.v1.Health/"},
    "direct_response": {"status": 200},
    "response_headers_to_add": [
        {"header": {"key": "content-type", "value": "application/grpc"}},
        {"header": {"key": "grpc-status", "value": "12"}},
    ],
}
_HEALTH_CHECK = {
    "timeout": "1s",
    "interval": "0.2s",
    "no_traffic_interval": "0.2s",
    "unhealthy_threshold": 1,
    "healthy_threshold": 1,
    "grpc_health_check": {"service_name": READINESS},
}


class Balancer:
    """A running Envoy."""

    def __init__(self, admin: str) -> None:
        self._admin = admin
        listeners = self._get("listeners")["listener_statuses"]
        self.port = int(listeners[0]["local_address"]["socket_address"]["port_value"])

    def _get(self, page: str) -> Any:
        with urlopen(f"http://{self._admin}/{page}?format=json") as answer:
            return json.load(answer)

    def healthy(self) -> set[int]:
        """Return the ports of the instances that get calls."""
        (cluster,) = self._get("clusters")["cluster_statuses"]
        return {
            host["address"]["socket_address"]["port_value"]
            for host in cluster["host_statuses"]
            if host["health_status"] == {"eds_health_status": "HEALTHY"}
        }


@contextmanager
def running_balancer(folder: Path, ports: Sequence[int]) -> Iterator[Balancer]:
    """Run Envoy before the instances at these ports."""
    has_envoy()
    config, admin, log = (folder / name for name in ("envoy.json", "envoy.admin", "envoy.log"))
    config.write_text(json.dumps(_config(ports)))
    command = [str(ENVOY), "--config-path", str(config), "--admin-address-path", str(admin)]
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
    with log.open("w") as output:
        process = subprocess.Popen([*command, *options], stdout=output, stderr=output)
    try:
        wait_until(lambda: admin.exists() and admin.read_text(), "Envoy runs")
        yield Balancer(admin.read_text())
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _config(ports: Sequence[int]) -> Config:
    return {
        "admin": {"address": _address(0)},
        "static_resources": {
            "listeners": [{"address": _address(0), "filter_chains": [{"filters": [_manager()]}]}],
            "clusters": [_cluster(ports)],
        },
    }


def _address(port: int) -> Config:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _manager() -> Config:
    route = {"cluster": "service", "timeout": "0s", "retry_policy": _UNSEEN}
    routes = [_NO_HEALTH, {"match": {"prefix": "/"}, "route": route}]
    return {
        "name": "http",
        "typed_config": {
            "@type": _MANAGER,
            "stat_prefix": "calls",
            "codec_type": "HTTP2",
            "route_config": {
                "virtual_hosts": [{"name": "service", "domains": ["*"], "routes": routes}]
            },
            "http_filters": [{"name": "router", "typed_config": {"@type": _ROUTER}}],
        },
    }


def _cluster(ports: Sequence[int]) -> Config:
    http = {"@type": _HTTP, "explicit_http_config": {"http2_protocol_options": {}}}
    endpoints = [{"endpoint": {"address": _address(port)}} for port in ports]
    return {
        "name": "service",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http
        },
        "health_checks": [_HEALTH_CHECK],
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "load_assignment": {
            "cluster_name": "service",
            "endpoints": [{"lb_endpoints": endpoints}],
        },
    }
