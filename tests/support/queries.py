"""Parse the queries that ship in rules, dashboard and runbooks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser as promql
import yaml

from deploy.observability import dashboard
from tests.support.prometheus import OBSERVABILITY, RULES

RUNBOOKS = OBSERVABILITY.parents[1] / "docs" / "runbooks"

# What Grafana puts into a query: everything is chosen.
_VARIABLES = {"$__rate_interval": "1m", "$job": ".+", "$instance": ".+", "$method": ".+"}


class Target(NamedTuple):
    """A query of a panel, and the labels that name its lines."""

    panel: str
    query: str
    labels: list[str]


def rules() -> list[dict[str, Any]]:
    """The rules that ship."""
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> set[str]:
    return {rule["alert"] for rule in rules() if "alert" in rule}


def targets() -> list[Target]:
    """The queries of the dashboard that ships, its variables included."""
    board = json.loads(dashboard.FILE.read_text())
    found = [
        Target(
            panel["title"],
            _filled_in(target["expr"]),
            re.findall(r"{{(\w+)}}", target["legendFormat"]),
        )
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.+), (\w+)\)", _filled_in(variable["query"]))
            assert query, variable["query"]
            found.append(Target(f"the choice of {variable['name']}", query[1], [query[2]]))
    return found


def in_runbooks(language: str) -> list[str]:
    """What the runbooks say to run, in this language."""
    block = re.compile(rf"^ *```{language}\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
    return [
        text for page in sorted(RUNBOOKS.glob("*.md")) for text in block.findall(page.read_text())
    ]


def of(origin: str) -> list[str]:
    """All queries of the rules, the dashboard, or the runbooks."""
    match origin:
        case "rules":
            return [rule["expr"] for rule in rules()]
        case "dashboard":
            return [target.query for target in targets()]
        case _:
            return in_runbooks("promql")


def _filled_in(query: str) -> str:
    for variable, value in _VARIABLES.items():
        query = query.replace(variable, value)
    return query


def selectors(expression: promql.Expr) -> set[str]:
    """All that the expression reads, without ranges and offsets."""
    found = set()

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.add(f"{node.name or ''}{node.matchers}")
        return True

    promql.walk(expression, pre_visit=visit)
    return found


def groupings(expression: promql.Expr) -> Iterator[tuple[str, promql.Expr]]:
    """Each label that is grouped by or matched on, with the expression that is to have it."""
    found: list[tuple[str, promql.Expr]] = []

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.AggregateExpr) and node.modifier:
            found.extend((label, node.expr) for label in node.modifier.labels)
        if isinstance(node, promql.BinaryExpr) and node.modifier and node.modifier.matching:
            labels = node.modifier.matching.labels
            found.extend((label, side) for label in labels for side in (node.lhs, node.rhs))
        return True

    promql.walk(expression, pre_visit=visit)
    yield from found
