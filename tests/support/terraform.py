"""Terraform's files as data, and the arguments that its AWS provider knows."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
NODE = ROOT / ".tools" / "npm" / "node_modules"
PROVIDER = NODE / "@cdktn" / "provider-aws" / "lib"
META_ARGUMENTS = {"count", "depends_on", "dynamic", "for_each", "lifecycle"}

Body = dict[str, object]
Named = dict[str, list[Body]]


@dataclass
class Module:
    """The blocks of a folder's files."""

    variable: Named = field(default_factory=dict)
    output: Named = field(default_factory=dict)
    module: Named = field(default_factory=dict)
    locals: Body = field(default_factory=dict)
    resource: dict[str, Named] = field(default_factory=dict)
    data: dict[str, Named] = field(default_factory=dict)

    def blocks(self) -> Iterator[tuple[str, str, Body]]:
        """The resources and data sources, with the provider's name of each kind."""
        for prefix, kinds in (("", self.resource), ("data.", self.data)):
            for kind, named in kinds.items():
                for name, [body] in named.items():
                    yield prefix + kind, name, body


@cache
def parse(folder: Path) -> Module:
    """Parse a folder's files with HashiCorp's parser."""
    program = ROOT / "deploy" / "tools" / "hcl2json.cjs"
    module = Module()
    ran = subprocess.run(
        ["node", program, *sorted(folder.glob("*.tf"))],
        env=os.environ | {"NODE_PATH": str(NODE)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    for file in json.loads(ran.stdout).values():
        module.variable.update(file.get("variable", {}))
        module.output.update(file.get("output", {}))
        module.module.update(file.get("module", {}))
        for block in file.get("locals", []):
            module.locals.update(block)
        for section, kinds in (("resource", module.resource), ("data", module.data)):
            for kind, named in file.get(section, {}).items():
                kinds.setdefault(kind, {}).update(named)
    return module


@dataclass(frozen=True)
class Argument:
    """An argument of the provider; its type is an interface if it is a block."""

    required: bool
    type: str


Interfaces = dict[str, dict[str, Argument]]


def bindings(kind: str) -> str:
    """Read the provider's bindings of a resource or data source."""
    folder = kind.replace("data.", "data-").removeprefix("aws_").replace("_", "-")
    return (PROVIDER / folder / "index.d.ts").read_text()


def attributes(kind: str) -> set[str]:
    """List what other blocks can read of a resource or data source."""
    getters = re.findall(r"^    get (\w+)\(\)", bindings(kind), re.MULTILINE)
    return {re.sub(r"[A-Z]", lambda letter: f"_{letter[0].lower()}", name) for name in getters}


@cache
def interfaces(kind: str) -> Interfaces:
    """List the arguments of a resource or data source, and of its blocks."""
    interface = re.compile(r"^export interface (\w+)[^{]*\{\n(.*?)^\}", re.DOTALL | re.MULTILINE)
    found = interface.findall(bindings(kind))
    return {name: dict(_arguments(body)) for name, body in found}


def _arguments(interface: str) -> Iterator[tuple[str, Argument]]:
    for documented in interface.split("/**")[1:]:
        name = re.findall(r" \w+#(\w+)\}", documented)[-1]
        member = re.search(r"readonly \w+(\??): (\w*)", documented)
        assert member, documented
        yield name, Argument(member[1] == "", member[2])


def mistakes(kind: str, body: Body) -> list[str]:
    """Compare a block with the provider: what is unknown to it, and what it requires."""
    known = interfaces(kind)
    return list(_compare(known, next(iter(known)), body))


def _compare(known: Interfaces, interface: str, body: Body) -> Iterator[str]:
    arguments = known[interface]
    given = dict(_given(body))
    yield from (f"{name} is unknown" for name in given.keys() - arguments.keys())
    required = {name for name, argument in arguments.items() if argument.required}
    yield from (f"{name} is required" for name in required - given.keys())
    for name, blocks in given.items():
        if name in arguments and arguments[name].type in known:
            for block in blocks:
                inner = _compare(known, arguments[name].type, block)
                yield from (f"{name}: {mistake}" for mistake in inner)


def _given(body: Body) -> Iterator[tuple[str, list[Body]]]:
    """The arguments of a block, each with its blocks, and those that are dynamic."""
    for name, value in body.items():
        values = value if isinstance(value, list) else [value]
        if name == "dynamic" and isinstance(value, dict):
            yield from ((inner, block["content"]) for inner, [block] in value.items())
        elif name not in META_ARGUMENTS:
            yield name, [block for block in values if isinstance(block, dict)]
