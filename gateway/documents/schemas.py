"""Write messages of the contract as JSON Schemas, for each direction."""

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from buf.validate.validate_pb2 import FieldRules
from gateway.documents.contract import Contract, Field, behaviors, rules

Json: TypeAlias = dict[str, Any]

TASK = "taskservice.v1.Task"
_UPDATE = "taskservice.v1.UpdateTaskRequest"
_PACKAGES = re.compile(r"^(taskservice\.v1|google\.rpc)\.")

_WELL_KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string"},
    "google.protobuf.FieldMask": {"type": "string", "description": "Names, separated by commas."},
    "google.protobuf.Value": {},
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "required": ["@type"],
    },
}
_SCALARS: dict[int, Json] = {
    Field.TYPE_STRING: {"type": "string"},
    Field.TYPE_BOOL: {"type": "boolean"},
    Field.TYPE_INT32: {"type": "integer", "format": "int32"},
    Field.TYPE_INT64: {"type": "string", "format": "int64"},
    Field.TYPE_DOUBLE: {"type": "number"},
}

EXAMPLE_ID = "0198c5c0-1d2e-7a3b-8c4d-5e6f708192a3"
_EXAMPLES: dict[str, Json] = {
    "Task": {
        "id": EXAMPLE_ID,
        "title": "Send the invoice",
        "description": "",
        "status": "TASK_STATUS_PENDING",
        "priority": "TASK_PRIORITY_HIGH",
        "assigned_to": "ann@example.com",
        "due_date": "2030-01-31T17:00:00Z",
        "tags": ["billing"],
        "created_by": "ann",
        "created_at": "2026-01-05T09:00:00.123456Z",
        "updated_at": "2026-01-05T09:00:00.123456Z",
        "etag": '"599e790818fb917"',
    },
    "TaskCreate": {
        "title": "Send the invoice",
        "priority": "TASK_PRIORITY_HIGH",
        "tags": ["billing"],
    },
    "TaskPatch": {"status": "TASK_STATUS_COMPLETED", "due_date": None},
}


class Schemas:
    """The schemas of a contract's messages; `named` has those that were asked for."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self.named: dict[str, Json] = {}

    def message(self, name: str, direction: str, without: Iterable[str] = ()) -> Json:
        """Return a reference to the schema of a message, which is added."""
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        if name == TASK and direction == "request":
            return self.task("TaskCreate")
        key = _PACKAGES.sub("", name)
        if key not in self.named:
            self.named[key] = {}  # A message may contain itself.
            self.named[key] = self._object(name, direction, set(without)) | _examples(key)
        return {"$ref": f"#/components/schemas/{key}"}

    def task(self, kind: str) -> Json:
        """Return a reference to a task as a client writes it."""
        if kind not in self.named:
            schema = self._object(TASK, "request", set())
            if kind == "TaskPatch":
                schema.pop("required")
                for name in (
                    "description",
                    "status",
                    "priority",
                    "assigned_to",
                    "due_date",
                    "tags",
                ):
                    schema["properties"][name] = _nullable(schema["properties"][name])
            self.named[kind] = schema | _examples(kind)
        return {"$ref": f"#/components/schemas/{kind}"}

    def _object(self, name: str, direction: str, without: set[str]) -> Json:
        message = self._contract.messages[name]
        properties, required = {}, []
        for field in message.field:
            if field.name in without or (direction == "request" and self._is_output(field)):
                continue
            schema = self.field(field, name, direction)
            properties[field.name] = schema | {
                "description": self._contract.comments[f"{name}.{field.name}"]
            }
            if self._is_required(field, direction):
                required.append(field.name)
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        if comment := self._contract.comments[name]:
            schema["description"] = comment
        return schema | ({"required": required} if required else {})

    def _is_output(self, field: Field) -> bool:
        return "OUTPUT_ONLY" in behaviors(field)

    def _is_required(self, field: Field, direction: str) -> bool:
        """Return whether the field is always there: the gateway writes empty values too."""
        if direction == "request":
            return "REQUIRED" in behaviors(field)
        if field.label == Field.LABEL_REPEATED:
            return True
        return field.type != Field.TYPE_MESSAGE and not field.HasField("oneof_index")

    def field(self, field: Field, message: str, direction: str) -> Json:
        if message == _UPDATE and field.type_name == f".{TASK}":  # In a batch: no path has the id.
            return {"allOf": [self.task("TaskPatch"), {"required": ["id"]}]}
        schema = self._value(field, direction)
        given = rules(field)
        if field.label == Field.LABEL_REPEATED:
            schema = {"type": "array", "items": schema | _text_rules(given.repeated.items)}
            for key, limit in (
                ("minItems", given.repeated.min_items),
                ("maxItems", given.repeated.max_items),
            ):
                schema |= {key: limit} if limit else {}
        elif direction in {"request", "query"}:
            schema |= _text_rules(given)
        if given.int32.HasField("gte"):
            schema |= {"minimum": given.int32.gte}
        if direction == "response" and message == TASK and self._is_output(field):
            schema |= {"readOnly": True} if "$ref" not in schema else {}
        return schema

    def _value(self, field: Field, direction: str) -> Json:
        name = field.type_name.removeprefix(".")
        if field.type == Field.TYPE_ENUM:
            values = [value.name for value in self._contract.enums[name].value]
            if direction != "response":  # An answer with ids alone has the zero value.
                values = [value for value in values if not value.endswith("_UNSPECIFIED")]
            return {"type": "string", "enum": values}
        if field.type == Field.TYPE_MESSAGE:
            return self.message(name, "request" if direction == "query" else direction)
        return dict(_SCALARS[field.type])


def _examples(key: str) -> Json:
    return {"examples": [_EXAMPLES[key]]} if key in _EXAMPLES else {}


def _text_rules(given: FieldRules) -> Json:
    """Return the limits of a text: its length, its format, and the patterns of its CEL rules."""
    schema: Json = {}
    if given.string.max_len:
        schema["maxLength"] = given.string.max_len
    if given.string.uuid:
        schema["format"] = "uuid"
    patterns = [pattern for rule in given.cel if (pattern := _pattern(rule.expression))]
    if len(patterns) == 1:
        schema["pattern"] = patterns[0]
    elif patterns:
        schema["allOf"] = [{"pattern": pattern} for pattern in patterns]
    expressions = " ".join(rule.expression for rule in given.cel)
    if excluded := re.findall(r"!this\.matches\('(\^[^']*\$)'\)", expressions):
        schema["not"] = {"pattern": "|".join(excluded)}
    return schema


def _pattern(expression: str) -> str | None:
    """Translate a CEL rule on one character class into a pattern of JSON Schema."""
    match = re.fullmatch(r"(!?)this\.matches\('\[(\^?)([^\]]*)\]'\)", expression)
    if match is None:
        return None
    negated, inverted, characters = match.groups()
    characters = re.sub(r"\\+U([0-9a-fA-F]{8})", lambda m: chr(int(m[1], 16)), characters)
    characters = re.sub(r"\\+u", r"\\u", characters)
    return f"^[^{characters}]*$" if negated else f"[{inverted}{characters}]"


def _nullable(schema: Json) -> Json:
    if "type" not in schema:
        return schema
    nullable = schema | {"type": [schema["type"], "null"]}
    return nullable | ({"enum": [*schema["enum"], None]} if "enum" in schema else {})
