"""Write the contract as a page of Markdown: each method with its rules, REST path and errors."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from gateway.documents.contract import Contract, Field, behaviors, in_words
from gateway.documents.schemas import EXAMPLE_ID as _ID
from server.access.authorization import NEEDED

_SCALARS = {
    Field.TYPE_STRING: "string",
    Field.TYPE_BOOL: "bool",
    Field.TYPE_INT32: "int32",
    Field.TYPE_INT64: "int64",
    Field.TYPE_DOUBLE: "double",
}


def reference(contract: Contract, openapi: dict[str, Any]) -> str:
    """Return the page."""
    parts = [
        "# API reference",
        "Written from `proto/` by `make proto`; do not edit. REST is described for programs in "
        "[openapi.json](../gateway/static/openapi.json), and for people in [rest.md](rest.md).",
        "## Methods",
        *_methods(contract, openapi),
        "## Messages",
        *_messages(contract),
        "## Enums",
        *_enums(contract),
    ]
    return "\n\n".join(parts) + "\n"


def _methods(contract: Contract, openapi: dict[str, Any]) -> Iterator[str]:
    described = {
        item["operationId"]: item for path in openapi["paths"].values() for item in path.values()
    }
    seen = set()
    for operation in contract.operations:
        if operation.name in seen:
            continue
        seen.add(operation.name)
        routes = [
            f"`{other.verb.upper()} {other.path}`"
            for other in contract.operations
            if other.name == operation.name
        ]
        stream = "stream of " if operation.is_stream else ""
        yield f"### {operation.name}"
        yield (
            f"{_link(operation.request)} → {stream}{_link(operation.response)} · "
            f"{', '.join(routes)} · scopes {', '.join(sorted(NEEDED[operation.name]))}"
        )
        yield operation.comment
        if example := _example(operation.name):
            yield f"```sh\n{example}\n```"
        errors = {
            status: answer["description"].splitlines()[2:]
            for status, answer in described[operation.name]["responses"].items()
            if int(status) >= 400
        }
        rows = [f"| {status} | {_reasons(lines)} |" for status, lines in errors.items()]
        yield "\n".join(["| HTTP status | reasons |", "|---|---|", *rows])


def _reasons(lines: Iterable[str]) -> str:
    names = [line.removeprefix("* ").partition(":")[0] for line in lines]
    return ", ".join(f"`{name}`" for name in names)


def _example(method: str) -> str:
    bodies: dict[str, object] = {
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
    body = json.dumps(bodies[method])
    return f"grpcurl -plaintext -d '{body}' localhost:50051 taskservice.v1.TaskService/{method}"


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
