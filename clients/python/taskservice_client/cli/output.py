"""Write results to standard output: tables for people, JSON or YAML for programs."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import TypeVar

import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console, RenderableType

Record = dict[str, object]
M = TypeVar("M", bound=Message)

_WIDTH_OF_PIPES = 1000  # No cell is shortened where another program reads the table.


class Format(StrEnum):
    """The form of the output."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"


def console(*, errors: bool = False) -> Console:
    """Make a console that takes texts literally; without colours if it is no terminal."""
    file = sys.stderr if errors else sys.stdout
    width = None if file.isatty() else _WIDTH_OF_PIPES
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def show(form: Format, message: M, table: Callable[[M], RenderableType]) -> None:
    """Write one message."""
    if form is Format.TABLE:
        console().print(table(message))
    else:
        write_record(form, record(message))


def show_all(
    form: Format, messages: Iterable[M], table: Callable[[Iterable[M]], RenderableType]
) -> None:
    """Write messages: a table or an array, for which all must have come, or a line for each."""
    if form is Format.TABLE:
        console().print(table(messages))
    else:
        write_records(form, map(record, messages))


def write_record(form: Format, fields: Record) -> None:
    """Write one record for programs: a document of YAML, or JSON, in one line if it is a stream."""
    if form is Format.YAML:
        sys.stdout.write("---\n" + _yaml(fields))
    else:
        indent = 2 if form is Format.JSON else None
        sys.stdout.write(json.dumps(fields, ensure_ascii=False, indent=indent) + "\n")


def write_records(form: Format, records: Iterable[Record]) -> None:
    """Write records for programs: an array, a list of YAML, or lines."""
    if form is Format.JSON:
        sys.stdout.writelines(_array(records))
    elif form is Format.YAML:
        sys.stdout.writelines(_items(records))
    else:
        sys.stdout.writelines(map(json_line, records))


def record(message: Message) -> Record:
    """Convert a message to its JSON form, with the contract's names, as by REST."""
    fields: Record = MessageToDict(message, preserving_proto_field_name=True)
    return fields


def json_line(fields: Record) -> str:
    """Return a record as one line of JSON."""
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _array(records: Iterable[Record]) -> Iterator[str]:
    before = "["
    for fields in records:
        yield f"{before}\n  {json_line(fields).rstrip()}"
        before = ","
    yield "[]\n" if before == "[" else "\n]\n"


def _items(records: Iterable[Record]) -> Iterator[str]:
    empty = True
    for fields in records:
        yield _yaml([fields])
        empty = False
    if empty:
        yield "[]\n"


def _yaml(value: object) -> str:
    return str(yaml.safe_dump(value, allow_unicode=True, sort_keys=False))
