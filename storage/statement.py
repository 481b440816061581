"""How statements are compiled, prepared and run.

SQLAlchemy builds a statement; `Statement` compiles it once, and `Session` runs its text on the
driver's cursor. A frequent one is prepared by each session at its first use (docs/decisions/0020).
"""

import itertools
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import Any, Self, TypeAlias

import psycopg2
from psycopg2.errors import FeatureNotSupported, InvalidSqlStatementName
from psycopg2.extensions import connection as DriverConnection  # noqa: N812 - used as a type
from psycopg2.extensions import cursor as Cursor  # noqa: N812 - used as a type
from sqlalchemy import URL, ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler

from storage.cancellation import Cancellation, CancelRequest, RunningStatement, StatementTimer
from storage.errors import ends_connection, translated
from storage.measures import StatementMeasured
from storage.session import DRIVER

log = logging.getLogger(__name__)

Parameters: TypeAlias = dict[str, Any]
Row: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = list[Row]

_DIALECT = URL.create(DRIVER).get_dialect()()
_numbers = itertools.count()


class Statement:
    """A compiled statement, under the name by which it is measured and traced."""

    def __init__(self, name: str, statement: ClauseElement, *, prepared: bool = False) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101 - whatever can be executed
        self.name = name
        self.sql = compiled.string
        self.is_prepared = prepared
        binds = {name: bind for bind, name in compiled.bind_names.items()}
        self._given: Parameters = {n: bind.value for n, bind in binds.items() if not bind.required}
        form = f"{name.replace(' ', '_')}_{next(_numbers)}"
        numbered = {name: f"${number}" for number, name in enumerate(binds, 1)}
        self.prepare_sql = f"PREPARE {form} AS {self.sql % numbered}"
        values = ", ".join(f"%({name})s" for name in binds)
        self.execute_sql = f"EXECUTE {form} ({values})" if values else f"EXECUTE {form}"

    @cached_property
    def unprepared(self) -> Self:
        """The same statement, planned at each run: for a batch, by the number of its items."""
        statement = copy(self)
        statement.is_prepared = False
        return statement

    def values(self, parameters: Parameters | None) -> Parameters:
        """Return the values of all parameters."""
        return self._given | (parameters or {})


Query: TypeAlias = Statement | ClauseElement
"""What can be run; what is not compiled yet is compiled for one run."""


class Session:
    """A pooled connection: it runs statements, and remembers which it has prepared."""

    def __init__(
        self, connection: DriverConnection, timer: StatementTimer, *, prepares: bool
    ) -> None:
        self._connection = connection
        self._cancel_request = CancelRequest(connection)
        self._timer = timer
        self._prepares = prepares
        self._prepared: set[Statement] = set()
        self.is_lost = False

    def run(
        self,
        cancellation: Cancellation,
        query: Query,
        parameters: Parameters | None = None,
        seconds: float = math.inf,
    ) -> Rows:
        """Run a statement, no longer than its call or `seconds`. Raises: StorageError."""
        statement = query if isinstance(query, Statement) else Statement("other", query)
        log.debug("%s", statement.sql)
        with (
            self._errors(cancellation),
            RunningStatement(cancellation, self._cancel_request, self._timer, seconds),
            StatementMeasured(statement.name, statement.sql),
            self._connection.cursor() as cursor,
        ):
            self._execute(cursor, statement, statement.values(parameters))
            return cursor.fetchall() if cursor.description else []

    def _execute(self, cursor: Cursor, statement: Statement, values: Parameters) -> None:
        # Within a transaction a failed EXECUTE could not be repeated.
        if not (self._prepares and statement.is_prepared and self._connection.autocommit):
            cursor.execute(statement.sql, values)
            return
        try:
            self._execute_prepared(cursor, statement, values)
        except (InvalidSqlStatementName, FeatureNotSupported):
            # Something deallocated it, or a migration changed the type of a column.
            cursor.execute("DEALLOCATE ALL")
            self._prepared.clear()
            self._execute_prepared(cursor, statement, values)

    def _execute_prepared(self, cursor: Cursor, statement: Statement, values: Parameters) -> None:
        if statement not in self._prepared:
            cursor.execute(statement.prepare_sql)
            self._prepared.add(statement)
        cursor.execute(statement.execute_sql, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the statements of the block in a transaction; what is not committed is undone."""
        self._connection.set_session(isolation_level="READ COMMITTED", autocommit=False)
        try:
            yield
        finally:
            if not self.is_lost:
                with self._errors(Cancellation()):
                    self._connection.rollback()
                    self._connection.autocommit = True

    def commit(self) -> None:
        """Commit the transaction. Raises: StorageError."""
        with self._errors(Cancellation()), StatementMeasured("commit", "COMMIT"):
            self._connection.commit()

    @contextmanager
    def _errors(self, cancellation: Cancellation) -> Iterator[None]:
        """Raise a StorageError in place of the driver's error; note a lost connection."""
        try:
            yield
        except psycopg2.Error as error:
            self.is_lost = self.is_lost or ends_connection(error)
            raise translated(error, is_cancelled=cancellation.cancelled) from None
