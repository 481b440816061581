"""Write the contract as a page of Markdown: each method with its rules, REST path and errors."""

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from gateway.documents.contract import Contract, Field, Operation, behaviors, in_words
from gateway.documents.schemas import EXAMPLE_ID as _ID
from gateway.documents.schemas import Json
from server.access.authorization import NEEDED

_COMMON = "[those of every method](#errors-of-every-method)"
_Error: TypeAlias = tuple[str, str]
"""An HTTP status and a reason."""

_REQUESTS: dict[str, dict[str, Any]] = {
    "CreateTask": {"task": {"title": "Send the invoice", "tags": ["billing"]}},
    "GetTask": {"id": _ID},
    "ListTasks": {"filter": "status = PENDING AND tags:billing", "order_by": "due_date"},
    "UpdateTask": {
        "task": {"id": _ID, "title": "Paid"},
        "update_mask": "title",
    },
    "DeleteTask": {"id": _ID},
    "UndeleteTask": {"id": _ID},
    "GetTaskStats": {},
    "BatchGetTasks": {"ids": [_ID]},
    "BatchCreateTasks": {"requests": [{"task": {"title": "one"}}, {"task": {"title": "two"}}]},
    "BatchUpdateTasks": {
        "requests": [
            {
                "task": {
                    "id": _ID,
                    "status": "TASK_STATUS_COMPLETED",
                },
                "update_mask": "status",
            }
        ]
    },
    "BatchDeleteTasks": {"requests": [{"id": _ID}]},
    "ListTaskEvents": {"task_id": _ID},
    "WatchTasks": {"filter": "tags:billing", "send_initial_tasks": True},
    "PurgeTasks": {"filter": 'deleted_at < "2026-01-01T00:00:00Z"'},
}
_SCALARS = {
    Field.TYPE_STRING: "string",
    Field.TYPE_BOOL: "bool",
    Field.TYPE_INT32: "int32",
    Field.TYPE_INT64: "int64",
    Field.TYPE_DOUBLE: "double",
}


def reference(contract: Contract, openapi: Json) -> str:
    """Return the page."""
    errors = _errors(openapi)
    common = set.intersection(*errors.values())
    parts = [
        "# API reference",
        "Written from `proto/` by `make proto`; do not edit. REST is described for programs in "
        "[openapi.json](../gateway/static/openapi.json), and for people in [rest.md](rest.md).",
        "## Methods",
        *_methods(contract, errors, common),
        "## Errors of every method",
        "[ErrorReason](#errorreason) describes each reason; [errors.md](errors.md) is about "
        "retries.",
        _table(common),
        "## Messages",
        *_messages(contract),
        "## Enums",
        *_enums(contract),
    ]
    return "\n\n".join(parts) + "\n"


def _errors(openapi: Json) -> dict[str, set[_Error]]:
    """Return the errors of each method by its REST form."""
    errors = {}
    for path in openapi["paths"].values():
        for operation in path.values():
            errors[operation["operationId"]] = {
                (status, reason)
                for status, answer in operation["responses"].items()
                for content in answer.get("content", {}).values()
                for reason in content.get("examples", {})
            }
    return {name: errors[name] for name in NEEDED}


def _methods(
    contract: Contract, errors: dict[str, set[_Error]], common: set[_Error]
) -> Iterator[str]:
    for name in dict.fromkeys(operation.name for operation in contract.operations):
        operation, *others = [found for found in contract.operations if found.name == name]
        routes = [f"`{route.verb.upper()} {route.path}`" for route in (operation, *others)]
        stream = "stream of " if operation.is_stream else ""
        yield f"### {name}"
        yield (
            f"{_link(operation.request)} → {stream}{_link(operation.response)} · "
            f"{', '.join(routes)} · scopes {', '.join(sorted(NEEDED[name]))}"
        )
        yield operation.comment
        yield f"```sh\n{_grpcurl(name)}\n{_curl(operation, _REQUESTS[name])}\n```"
        if own := errors[name] - common:
            yield f"Errors, beside {_COMMON}:"
            yield _table(own)
        else:
            yield f"Errors: {_COMMON}."


def _table(errors: Iterable[_Error]) -> str:
    by_status: dict[str, list[str]] = defaultdict(list)
    for status, reason in sorted(errors):
        by_status[status].append(f"`{reason}`")
    rows = [f"| {status} | {', '.join(reasons)} |" for status, reasons in by_status.items()]
    return "\n".join(["| HTTP status | reasons |", "|---|---|", *rows])


def _grpcurl(name: str) -> str:
    body = json.dumps(_REQUESTS[name])
    return f"grpcurl -plaintext -d '{body}' localhost:50051 taskservice.v1.TaskService/{name}"


def _curl(operation: Operation, request: Mapping[str, Any]) -> str:
    """Return the command that sends a request by REST."""
    rest = dict(request)
    if operation.body not in {"", "*"}:
        rest = dict(rest[operation.body])
    in_path = re.findall(r"\{([^}]*)\}", operation.path)
    values = {name: rest.pop(name.rpartition(".")[2]) for name in in_path}
    path = re.sub(r"\{([^}]*)\}", lambda match: values[match[1]], operation.path)
    words = ["curl", f"localhost:8080{path}"]
    if operation.verb != "get":
        words[1:1] = ["-X", operation.verb.upper()]
    if operation.body:
        return shlex.join([*words, "-H", "content-type: application/json", "-d", json.dumps(rest)])
    if rest:
        words.insert(1, "-G")
    for name, value in rest.items():
        for item in value if isinstance(value, list) else [value]:
            text = item if isinstance(item, str) else json.dumps(item)
            words += ["--data-urlencode", f"{name}={text}"]
    return shlex.join(words)


def _messages(contract: Contract) -> Iterator[str]:
    for name, message in sorted(contract.messages.items()):
        if not name.startswith("taskservice.") or not message.field:
            continue
        yield f"### {_short(name)}"
        yield contract.comments[name]
        rows = [
            f"| `{field.name}` | {_type(field)} | {_notes(field)} "
            f"| {_row(contract.comments[f'{name}.{field.name}'])} |"
            for field in message.field
        ]
        yield "\n".join(["| field | type | rules | |", "|---|---|---|---|", *rows])


def _enums(contract: Contract) -> Iterator[str]:
    for name, enum in sorted(contract.enums.items()):
        if not name.startswith("taskservice."):
            continue
        yield f"### {_short(name)}"
        yield contract.comments[name]
        rows = [
            f"| `{value.name}` | {_row(contract.comments[f'{name}.{value.name}'])} |"
            for value in enum.value
        ]
        yield "\n".join(["| value | |", "|---|---|", *rows])


def _notes(field: Field) -> str:
    behavior = [word.lower().replace("_", " ") for word in sorted(behaviors(field) - {"OPTIONAL"})]
    return "; ".join([*behavior, *in_words(field)])


def _row(text: str) -> str:
    return text.replace("|", "\\|").replace("\n\n", "<br>").replace("\n", " ")


def _type(field: Field) -> str:
    name = field.type_name.removeprefix(".")
    kind = _link(name) if name else _SCALARS[field.type]
    return f"repeated {kind}" if field.label == Field.LABEL_REPEATED else kind


def _link(name: str) -> str:
    if not name.startswith("taskservice."):
        return name.removeprefix("google.protobuf.")
    short = _short(name)
    return f"[{short}](#{short.lower().replace('.', '')})"


def _short(name: str) -> str:
    return name.removeprefix("taskservice.v1.")
