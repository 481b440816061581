"""Complete Envoy's configuration, envoy.yaml, by the settings and the contract."""

import copy
import hashlib
import mimetypes
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from google.protobuf.descriptor import Descriptor

from server.settings import Settings
from taskservice.v1 import task_service_pb2 as pb
from taskservice.v1.task_pb2 import Task

Config: TypeAlias = dict[str, Any]

_HERE = Path(__file__).parent
_DESCRIPTORS = Path(pb.__file__).parents[1] / "task.binpb"
_SERVICE = pb.DESCRIPTOR.services_by_name["TaskService"]
_TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
_DISABLED = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}

# A call by REST has no deadline of its own.
_TIMEOUT = "35s"
_READS = "GetTask", "ListTasks", "GetTaskStats", "BatchGetTasks", "ListTaskEvents"
# The service has not seen such a call, so that a write can be repeated, too.
_UNSEEN = "connect-failure,refused-stream"

_ADDRESSES_OF_PAGES = {"/": "index.html", "/docs": "docs.html", "/redoc": "redoc.html"}
_SIDECAR = "drf_spectacular_sidecar"
_ASSETS = (
    "swagger-ui-dist/swagger-ui.css",
    "swagger-ui-dist/swagger-ui-bundle.js",
    "swagger-ui-dist/swagger-ui-bundle.js.LICENSE.txt",
    "redoc/bundles/redoc.standalone.js",
    "redoc/bundles/redoc.standalone.js.LICENSE.txt",
)
_POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
# Swagger UI and Redoc write style elements; Swagger UI's icons are data, Redoc's search is a blob.
_MORE_POLICY = {
    "docs.html": "; style-src 'self' 'unsafe-inline'; img-src 'self' data:",
    "redoc.html": "; style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src blob:",
}
_PAGE_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "max-age=60",
    # For rest.lua, which removes it: no rule of the API applies to a page.
    "x-static": "1",
}

# The gRPC code and the reason of the errors that Envoy finds, by their HTTP status.
_ENVOYS_ERRORS = {
    400: (3, "INVALID_REQUEST"),
    404: (5, "NO_SUCH_ROUTE"),
    408: (4, "REQUEST_TIMEOUT"),
    413: (8, "REQUEST_TOO_LARGE"),
    503: (14, "SERVICE_UNAVAILABLE"),
    504: (4, "REQUEST_TIMEOUT"),
}


def envoy_config(
    settings: Settings, *, port: int, service_port: int, pages: Path, secrets: Mapping[str, str]
) -> Config:
    """Return the configuration of a gateway beside a service on this machine.

    `secrets` are the paths of files with what `envoy_secrets` returns.
    """
    config: Config = yaml.safe_load((_HERE / "envoy.yaml").read_text())
    listener, cluster = (config["static_resources"][kind][0] for kind in ("listeners", "clusters"))
    (chain,) = listener["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    filters = {item["name"]: item["typed_config"] for item in manager["http_filters"]}
    (host,) = manager["route_config"]["virtual_hosts"]

    listener["address"] = _address(settings.grpc_host, port)
    manager["local_reply_config"]["mappers"] = list(_local_replies())
    script = f"{_known_fields()}\n{(_HERE / 'rest.lua').read_text()}"
    filters["envoy.filters.http.lua"]["default_source_code"]["inline_string"] = script
    filters[_TRANSCODER] |= {"proto_descriptor": str(_DESCRIPTORS)}
    filters[_TRANSCODER] |= {"services": [_SERVICE.full_name]}
    host["typed_per_filter_config"]["envoy.filters.http.cors"]["allow_origin_string_match"] = [
        {"exact": origin.strip()} for origin in settings.cors_origins.split(",") if origin.strip()
    ]
    host["routes"] = [
        *_watch_routes(filters[_TRANSCODER]),
        *_method_routes(),
        *_page_routes(pages),
        {"match": {"prefix": "/"}, "route": {"cluster": "service", "timeout": _TIMEOUT}},
    ]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    address = _address(local.get(settings.grpc_host, settings.grpc_host), service_port)
    cluster["load_assignment"] = {
        "cluster_name": "service",
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
    }
    if settings.tls_cert_file:
        chain["transport_socket"] = _served_tls(secrets)
        cluster["transport_socket"] = _verified_tls(secrets)
    return config


def _address(host: str, port: int) -> Config:
    return {"socket_address": {"address": host, "port_value": port}}


def _local_replies() -> Iterator[Config]:
    """Yield how the body of a local reply is written: of rest.lua's as it is, else as a status."""
    is_complete = {
        "matcher": {
            "filter": "taskservice.rest",
            "path": [{"key": "refused"}],
            "value": {"bool_match": True},
        },
        "match_if_key_not_found": False,
    }
    as_it_is = {
        "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
        "content_type": "application/json",
    }
    yield {"filter": {"metadata_filter": is_complete}, "body_format_override": as_it_is}
    for number, (code, reason) in _ENVOYS_ERRORS.items():
        info = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": "taskservice",
            "metadata": {},
        }
        status = {"code": code, "message": "%LOCAL_REPLY_BODY%", "details": [info]}
        value = {"default_value": number, "runtime_key": "none"}
        yield {
            "filter": {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}},
            "body_format_override": {"json_format": status},
        }


def _known_fields() -> str:
    """Return a Lua table of the fields that bodies may have, by both of their JSON names."""
    tables = {"task": _fields(Task.DESCRIPTOR)}
    for name in ("Undelete", "BatchCreate", "BatchUpdate", "BatchDelete", "Purge"):
        plural = "" if name == "Undelete" else "s"
        method = _SERVICE.methods_by_name[f"{name}Task{plural}"]
        tables[name[0].lower() + name[1:]] = _fields(method.input_type)
    return f"local FIELDS = {{{','.join(f'{name}={table}' for name, table in tables.items())}}}"


def _fields(message: Descriptor) -> str:
    entries = []
    for field in message.fields:
        nested = field.message_type
        fields = ""
        if nested is not None and nested.full_name.startswith("taskservice."):
            fields = f",fields={_fields(nested)}"
        for name in sorted({field.name, field.json_name}):
            entries.append(f'["{name}"]={{name="{field.name}"{fields}}}')
    return f"{{{','.join(entries)}}}"


def _watch_routes(transcoder: Config) -> Iterator[Config]:
    """Yield the two forms of a watch: server-sent events if the client accepts them, else lines."""
    accepts_events = {"name": "accept", "string_match": {"contains": "text/event-stream"}}
    for headers, are_events in ([accepts_events], True), ([], False):
        form = copy.deepcopy(transcoder)
        form["print_options"] |= {
            "stream_newline_delimited": True,
            "stream_sse_style_delimited": are_events,
        }
        yield {
            "match": {"path": "/tasks:watch", "headers": headers},
            "route": {"cluster": "service", "timeout": "0s", "idle_timeout": "0s"},
            "typed_per_filter_config": {_TRANSCODER: form},
        }


def _method_routes() -> Iterator[Config]:
    """Yield a route for each method, also of gRPC-Web: its timeouts, and what may be repeated."""
    for method in _SERVICE.methods:
        retries = f"{_UNSEEN},unavailable" if method.name in _READS else _UNSEEN
        limits = {"timeout": _TIMEOUT}
        if method.name == "WatchTasks":
            limits = {"timeout": "0s", "idle_timeout": "0s"}
        retry = {"retry_on": retries, "num_retries": 2}
        yield {
            "match": {"path": f"/{_SERVICE.full_name}/{method.name}"},
            "route": {"cluster": "service", "retry_policy": retry, **limits},
        }


def _page_routes(folder: Path) -> Iterator[Config]:
    """Yield a route for each file of a folder and of the assets, and for the addresses of pages."""
    found = sorted(file for file in folder.glob("[!.]*") if file.is_file())
    files = {f"/{file.name}": file for file in [*found, *_assets()]}
    for path, name in _ADDRESSES_OF_PAGES.items():
        if f"/{name}" in files:
            files[path] = files[f"/{name}"]
    for path, file in files.items():
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        headers = _PAGE_HEADERS | {
            "content-security-policy": _POLICY + _MORE_POLICY.get(file.name, ""),
            "content-type": f"{kind}; charset=utf-8" if kind.startswith("text/") else kind,
            "etag": f'"{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"',
        }
        yield {
            "match": {"path": path},
            "direct_response": {"status": 200, "body": {"filename": str(file)}},
            "typed_per_filter_config": {_TRANSCODER: _DISABLED},
            "response_headers_to_add": [
                {
                    "header": {"key": name, "value": value},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }
                for name, value in headers.items()
            ],
        }


def _assets() -> Iterator[Path]:
    """Yield the files of Swagger UI and Redoc, if they are installed."""
    package = find_spec(_SIDECAR)  # Importing it would need Django.
    if package and package.origin:
        yield from (Path(package.origin).parent / "static" / _SIDECAR / name for name in _ASSETS)


def envoy_secrets(settings: Settings) -> dict[str, Config]:
    """Return by name what the gateway serves by, and what the service must show: the same.

    Envoy reads the certificate again when its folder changes, as the service does.
    """
    if not settings.tls_cert_file:
        return {}
    chain = {"filename": str(settings.tls_cert_file)}
    key = {"filename": str(settings.tls_key_file)}
    folder = {"watched_directory": {"path": str(settings.tls_cert_file.parent)}}
    served = {"tls_certificate": {"certificate_chain": chain, "private_key": key} | folder}
    trusted = {"validation_context": {"trusted_ca": chain} | folder}
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    return {
        name: {"resources": [{"@type": kind, "name": name} | secret]}
        for name, secret in {"served": served, "trusted": trusted}.items()
    }


def _served_tls(secrets: Mapping[str, str]) -> Config:
    """Serve HTTPS by the service's own certificate."""
    certificates = [_secret("served", secrets)]
    protocols = ["h2", "http/1.1"]
    return _tls(
        "Downstream",
        {"alpn_protocols": protocols, "tls_certificate_sds_secret_configs": certificates},
    )


def _verified_tls(secrets: Mapping[str, str]) -> Config:
    """Connect to the service over TLS, which must show this certificate."""
    trusted = _secret("trusted", secrets)
    return _tls(
        "Upstream", {"alpn_protocols": ["h2"], "validation_context_sds_secret_config": trusted}
    )


def _secret(name: str, files: Mapping[str, str]) -> Config:
    source = {"path_config_source": {"path": files[name]}, "resource_api_version": "V3"}
    return {"name": name, "sds_config": source}


def _tls(side: str, context: Config) -> Config:
    kind = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext"
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": kind, "common_tls_context": context},
    }
