"""Read the contract from its descriptors: operations, messages, rules and comments."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    EnumValueDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from buf.validate import validate_pb2
from taskservice.v1 import task_service_pb2

DESCRIPTORS = Path(task_service_pb2.__file__).parents[1] / "task.binpb"

Field: TypeAlias = FieldDescriptorProto

_Place: TypeAlias = tuple[int, ...]
_Member: TypeAlias = FieldDescriptorProto | EnumValueDescriptorProto | MethodDescriptorProto

# The numbers of fields in descriptor.proto: the path of an element in the source information.
_FILE_MESSAGE, _FILE_ENUM, _FILE_SERVICE = 4, 5, 6
_MEMBER, _NESTED_MESSAGE, _NESTED_ENUM = 2, 3, 4


class Operation(NamedTuple):
    """A method by one of its REST bindings."""

    name: str
    comment: str
    verb: str
    path: str
    body: str
    """The field that is the body; "*" for all, empty for none."""
    request: str
    response: str
    is_stream: bool


class Contract:
    """The elements of the contract by their full names, without a leading dot."""

    def __init__(self, descriptors: bytes) -> None:
        self.messages: dict[str, DescriptorProto] = {}
        self.enums: dict[str, EnumDescriptorProto] = {}
        self.comments: dict[str, str] = {}
        """By name: `Message`, `Message.field`, `Enum`, `Enum.VALUE`, `Service.Method`."""
        self.operations: list[Operation] = []
        for file in FileDescriptorSet.FromString(descriptors).file:
            places = {
                tuple(place.path): place.leading_comments.strip("\n")
                for place in file.source_code_info.location
            }
            self._add(file.package, file.message_type, (_FILE_MESSAGE,), places)
            self._add_enums(file.package, file.enum_type, (_FILE_ENUM,), places)
            for number, service in enumerate(file.service):
                here = _FILE_SERVICE, number
                self._comment_members(service.name, service.method, here, places)
                for method in service.method:
                    self._add_operations(method, self.comments[f"{service.name}.{method.name}"])

    def _add_operations(self, method: MethodDescriptorProto, comment: str) -> None:
        """Add an operation for each REST binding of a method."""
        rule = method.options.Extensions[annotations_pb2.http]
        for binding in (rule, *rule.additional_bindings):
            verb = str(binding.WhichOneof("pattern"))
            operation = Operation(
                name=method.name,
                comment=comment,
                verb=verb,
                path=getattr(binding, verb),
                body=binding.body,
                request=method.input_type.removeprefix("."),
                response=method.output_type.removeprefix("."),
                is_stream=method.server_streaming,
            )
            self.operations.append(operation)

    def _add(
        self,
        scope: str,
        messages: Iterable[DescriptorProto],
        path: _Place,
        places: Mapping[_Place, str],
    ) -> None:
        for number, message in enumerate(messages):
            name, here = f"{scope}.{message.name}", (*path, number)
            self.messages[name] = message
            self.comments[name] = _text(places.get(here, ""))
            self._comment_members(name, message.field, here, places)
            self._add(name, message.nested_type, (*here, _NESTED_MESSAGE), places)
            self._add_enums(name, message.enum_type, (*here, _NESTED_ENUM), places)

    def _add_enums(
        self,
        scope: str,
        enums: Iterable[EnumDescriptorProto],
        path: _Place,
        places: Mapping[_Place, str],
    ) -> None:
        for number, enum in enumerate(enums):
            name, here = f"{scope}.{enum.name}", (*path, number)
            self.enums[name] = enum
            self.comments[name] = _text(places.get(here, ""))
            self._comment_members(name, enum.value, here, places)

    def _comment_members(
        self, name: str, members: Iterable[_Member], path: _Place, places: Mapping[_Place, str]
    ) -> None:
        """Note the comments of fields, of the values of an enum, or of methods."""
        for index, member in enumerate(members):
            place = *path, _MEMBER, index
            self.comments[f"{name}.{member.name}"] = _text(places.get(place, ""))


def read_contract() -> Contract:
    return Contract(DESCRIPTORS.read_bytes())


def behaviors(field: Field) -> set[str]:
    """Return the names of a field's behaviors (AIP-203)."""
    values = field.options.Extensions[field_behavior_pb2.field_behavior]
    return {field_behavior_pb2.FieldBehavior.Name(value) for value in values}


def rules(field: Field) -> validate_pb2.FieldRules:
    """Return the rules of buf.validate for a field."""
    return field.options.Extensions[validate_pb2.field]


def in_words(field: Field) -> Iterator[str]:
    """Yield what a field's rules demand, a phrase for each."""
    given = rules(field)
    yield from _limits(given)
    for rule in (*given.cel, *given.repeated.items.cel):
        yield rule.message


def _limits(given: validate_pb2.FieldRules) -> Iterator[str]:
    for text, where in ((given.string, ""), (given.repeated.items.string, "each ")):
        if text.min_len:
            yield f"{where}at least {text.min_len} characters"
        if text.max_len:
            yield f"{where}at most {text.max_len} characters"
        if text.uuid:
            yield f"{where}a UUID"
    if given.repeated.min_items:
        yield f"at least {given.repeated.min_items} items"
    if given.repeated.max_items:
        yield f"at most {given.repeated.max_items} items"
    if given.int32.HasField("gte"):
        yield f"at least {given.int32.gte}"


def _text(comment: str) -> str:
    """Return a comment without the space that follows each `//`."""
    return "\n".join(line.removeprefix(" ").rstrip() for line in comment.splitlines()).strip()
