"""Types of SQL whose column types are known at run time only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Row, Select

Parameters: TypeAlias = dict[str, Any]
AnyColumn: TypeAlias = ColumnElement[Any]
AnyRow: TypeAlias = Row[Any]
AnySelect: TypeAlias = Select[Any]
Rows: TypeAlias = Sequence[AnyRow]
