"""Take note of the statements that sessions run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import pytest

from storage.statement import Session, Statement


@contextmanager
def each_statement(
    note: Callable[[Statement, dict[str, Any]], object], *, this_thread: bool = False
) -> Iterator[None]:
    """Call `note` before each statement of this process, or of this thread alone.

    Services that other tests left running in this process have statements of their own.
    """
    caller = get_ident()
    execute = Session._execute

    def note_and_execute(session: Session, cursor: Any, statement: Statement, values: Any) -> None:
        if not this_thread or get_ident() == caller:
            note(statement, values)
        execute(session, cursor, statement, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_execute", note_and_execute)
        yield
