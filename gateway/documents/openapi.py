"""Write the contract as OpenAPI 3.1, for the REST surface that the gateway serves."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib import metadata

from gateway.documents.contract import Contract, Operation, behaviors
from gateway.documents.errors import error_examples
from gateway.documents.schemas import EXAMPLE_ID, TASK, Json, Schemas
from server.access.authorization import NEEDED

_REASONS = "taskservice.v1.ErrorReason"

# How Envoy's transcoder maps the codes, and what rest.lua refines.
_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_REFINED = {"REQUEST_TOO_LARGE": 413}
_MEANINGS = {
    400: "The request is not valid, or not in this state of the task.",
    401: "Valid credentials are needed.",
    403: "The credentials lack a scope.",
    404: "There is no such task.",
    409: "The request conflicts with the state of the task.",
    412: "The task is no longer in the state that If-Match names.",
    413: "The request is too large.",
    415: "The body is not application/json.",
    429: "A limit is reached.",
    499: "The client cancelled the call.",
    500: "An unexpected error; the log has an entry with the request id.",
    501: "The call ended without a request.",
    503: "The service cannot serve now.",
    504: "The call took too long.",
}

_WRITE = "TRANSACTION_CONFLICT", "ETAG_MISMATCH", "TASK_NOT_FOUND"
_CREATE = "TASK_EXISTS", "REQUEST_ID_REUSED", "TASK_NOT_FOUND"
_UPDATE = *_WRITE, "TASK_DELETED", "STATUS_TRANSITION_NOT_ALLOWED", "REQUEST_ID_REUSED"
# The reasons of single methods; every method may fail for all others.
_OWN_REASONS: dict[str, tuple[str, ...]] = {
    "CreateTask": _CREATE,
    "GetTask": ("TASK_NOT_FOUND",),
    "UpdateTask": _UPDATE,
    "DeleteTask": _WRITE,
    "UndeleteTask": (*_WRITE, "TASK_NOT_DELETED"),
    "BatchGetTasks": ("TASK_NOT_FOUND", "ANSWER_TOO_LARGE"),
    "BatchCreateTasks": (*_CREATE, "ANSWER_TOO_LARGE"),
    "BatchUpdateTasks": (*_UPDATE, "ANSWER_TOO_LARGE"),
    "BatchDeleteTasks": (*_WRITE, "ANSWER_TOO_LARGE"),
    "ListTaskEvents": ("TASK_NOT_FOUND",),
    "WatchTasks": (
        "RESUME_TOKEN_EXPIRED",
        "CREDENTIALS_EXPIRED",
        "TOO_MANY_WATCHES",
        "TOO_MANY_WATCH_FILTERS",
    ),
}

_QUERY_EXAMPLES = {
    "filter": "status = PENDING AND tags:billing",
    "order_by": "priority desc, due_date",
    "page_size": 50,
}
_ETAG = {"schema": {"type": "string"}, "description": "The state of the task (RFC 9110)."}


class OpenApi:
    """Build the document of a contract."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._schemas = Schemas(contract)

    def document(self) -> Json:
        """Return the whole document."""
        paths: dict[str, Json] = defaultdict(dict)
        for operation in self._contract.operations:
            path = re.sub(r"\{[^}]*\}", "{id}", operation.path)
            paths[path][operation.verb] = self._operation(operation)
        paths["/health"] = {"get": _health()}
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Task Service",
                "version": metadata.version("task-service"),
                "description": "Task management by REST; the same contract is served over gRPC.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "tags": [{"name": "tasks", "description": "Tasks and their history."}],
            "paths": dict(paths),
            "components": {
                "schemas": dict(sorted(self._schemas.named.items())),
                "examples": {
                    reason: {"value": example} for reason, example in error_examples().items()
                },
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "bearerFormat": "JWT",
                        "description": "Needed if the operator requires authentication.",
                    }
                },
            },
        }

    def _operation(self, operation: Operation) -> Json:
        replaces = operation.verb == "put"
        scopes = sorted(NEEDED[operation.name])
        summary, _, rest = operation.comment.partition("\n\n")
        result: Json = {
            "operationId": "ReplaceTask" if replaces else operation.name,
            "tags": ["tasks"],
            "summary": " ".join(summary.split()),
            "description": f"{rest}\n\nScopes: {', '.join(scopes)}.".strip(),
            "security": [{"bearer": scopes}, {}],
            "parameters": self._parameters(operation),
            "responses": self._responses(operation),
        }
        if operation.body:
            schema, media = self._body(operation), ["application/json"]
            if operation.verb == "patch":
                media.append("application/merge-patch+json")
            content = {kind: {"schema": schema} for kind in media}
            result["requestBody"] = {"required": True, "content": content}
        return result

    def _parameters(self, operation: Operation) -> list[Json]:
        in_path = re.findall(r"\{([^}]*)\}", operation.path)
        found = [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "description": "The id of the task.",
                "schema": {"type": "string", "format": "uuid", "example": EXAMPLE_ID},
            }
            for _ in in_path
        ]
        for field in self._contract.messages[operation.request].field:
            if field.name in in_path or operation.body in {"*", field.name}:
                continue
            example = _QUERY_EXAMPLES.get(field.name)
            found.append(
                {
                    "name": field.name,
                    "in": "query",
                    "required": "REQUIRED" in behaviors(field),
                    "description": self._contract.comments[f"{operation.request}.{field.name}"],
                    "schema": self._schemas.field(field, "", "query"),
                    **({"example": example} if example else {}),
                }
            )
        condition = _condition(operation)
        return [*found, *([condition] if condition else [])]

    def _body(self, operation: Operation) -> Json:
        if operation.body != "*":
            kind = "TaskPatch" if operation.verb == "patch" else "TaskCreate"
            return self._schemas.task(kind)
        in_path = set(re.findall(r"\{([^}]*)\}", operation.path))
        return self._schemas.message(operation.request, "request", without=in_path)

    def _responses(self, operation: Operation) -> Json:
        schema = self._schemas.message(operation.response, "response")
        is_task = operation.response == TASK
        good: Json = {
            "description": "The result.",
            "content": {"application/json": {"schema": schema}},
        }
        if is_task:
            good["headers"] = {"ETag": _ETAG}
        if operation.is_stream:
            good["description"] = "The changes, one message in each line or event."
            good["content"] = {
                kind: {"schema": schema} for kind in ("application/x-ndjson", "text/event-stream")
            }
        responses: Json = {"200": good}
        if operation.name == "CreateTask":
            location = {"schema": {"type": "string"}, "description": "The path of the task."}
            headers = {"ETag": _ETAG, "Location": location}
            responses = {
                "200": {key: good[key] for key in ("description", "content")},
                "201": good | {"description": "The new task.", "headers": headers},
            }
        elif operation.verb == "delete":
            responses = {"204": {"description": "The task is deleted."}}
        elif operation.name == "GetTask":
            known = {"description": "If-None-Match names this state.", "headers": {"ETag": _ETAG}}
            responses["304"] = known
        return responses | self._errors(operation)

    def _errors(self, operation: Operation) -> Json:
        """Return a response for each status, with the reasons for which it occurs."""
        own = {reason for reasons in _OWN_REASONS.values() for reason in reasons}
        by_status: dict[int, list[str]] = defaultdict(list)
        for name, comment in self._reasons().items():
            if name in own and name not in _OWN_REASONS.get(operation.name, ()):
                continue
            if name == "REQUEST_TOO_LARGE" and not operation.body:
                continue
            code = re.split(r"[:,]", comment, maxsplit=1)[0]
            by_status[_REFINED.get(name, _STATUSES[code])].append(name)
            if name == "ETAG_MISMATCH" and _condition(operation):
                by_status[412].append(name)
        if operation.body:
            by_status[415].append("MEDIA_TYPE_NOT_SUPPORTED")
        return {
            str(status): self._error(status, names) for status, names in sorted(by_status.items())
        }

    def _reasons(self) -> Mapping[str, str]:
        values = [value.name for value in self._contract.enums[_REASONS].value[1:]]
        return {
            name.removeprefix("ERROR_REASON_"): self._contract.comments[f"{_REASONS}.{name}"]
            for name in values
        }

    def _error(self, status: int, names: Iterable[str]) -> Json:
        known = self._reasons()
        texts = [
            f"* {name}: {_line(known[name])}" if name in known else f"* {name}" for name in names
        ]
        error: Json = {
            "description": "\n".join([_MEANINGS[status], "", *texts]),
            "content": {
                "application/json": {
                    "schema": self._schemas.message("google.rpc.Status", "response"),
                    "examples": {name: {"$ref": f"#/components/examples/{name}"} for name in names},
                }
            },
        }
        if status in {429, 503}:
            after = {"schema": {"type": "integer"}, "description": "Seconds to wait."}
            error["headers"] = {"Retry-After": after}
        if status == 401:
            error["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
        return error


def _condition(operation: Operation) -> Json | None:
    """Return the conditional header of an operation on one task."""
    names = {"GetTask": "If-None-Match", "UpdateTask": "If-Match", "DeleteTask": "If-Match"}
    if operation.name not in names:
        return None
    return {
        "name": names[operation.name],
        "in": "header",
        "description": "An ETag of the task.",
        "schema": {"type": "string"},
    }


def _line(text: str) -> str:
    return " ".join(text.split())


def _health() -> Json:
    body = {"type": "object", "properties": {"status": {"type": "string"}}}
    return {
        "operationId": "CheckHealth",
        "tags": ["tasks"],
        "summary": "Returns whether the service is ready.",
        "security": [],
        "responses": {
            "200": {
                "description": "It is ready.",
                "content": {"application/json": {"schema": body}},
            },
            "503": {"description": "It is not ready."},
        },
    }
