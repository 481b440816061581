"""Take note of the statements that sessions run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from storage.statement import Session, Statement


@contextmanager
def each_statement(note: Callable[[Statement, dict[str, Any]], object]) -> Iterator[None]:
    """Call `note` before each statement of every session in this process."""
    execute = Session._execute

    def note_and_execute(session: Session, cursor: Any, statement: Statement, values: Any) -> None:
        note(statement, values)
        execute(session, cursor, statement, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_execute", note_and_execute)
        yield
