"""Import tasks from lines of JSON: each under its id, once, however often the import runs."""

import datetime as dt
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from taskservice_client import (
    AlreadyExists,
    InvalidRequest,
    Task,
    TaskClient,
    TaskNotFound,
    Violation,
)
from taskservice_client.cli.filters import either, quoted
from taskservice_client.cli.lines import Line, LineError, batches, parse
from taskservice_client.cli.progress import Bar

KINDS = ("created", "unchanged", "conflict", "invalid", "due_dates_dropped")

_IDS_OF_A_FILTER = 40  # A filter has at most 2048 characters.
_ITEM = re.compile(r"requests\[(\d+)\]\.(.*)")


class Import:
    """An import, with a count of each kind."""

    def __init__(self, client: TaskClient, bar: Bar, *, drops_past_due_dates: bool) -> None:
        self.counts = Counter(dict.fromkeys(KINDS, 0))
        self._client = client
        self._bar = bar
        self._drops_past_due_dates = drops_past_due_dates

    def run(self, file: BinaryIO) -> None:
        """Import all lines of a file."""
        for batch in batches(self._parsed(file)):
            self._import(batch)

    def _parsed(self, file: BinaryIO) -> Iterator[Line]:
        for number, text in enumerate(file, start=1):
            try:
                yield parse(number, text)
            except LineError as error:
                self._refuse(number, "invalid", str(error))

    def _import(self, batch: Sequence[Line]) -> None:
        """Compare a batch with the tasks that exist, or create it: one call for most batches."""
        try:
            existing = self._client.get_many([line.task.id for line in batch])
        except (TaskNotFound, InvalidRequest):
            self._create(batch)
        else:
            self._compare(batch, {task.id: task for task in existing})

    def _create(self, batch: Sequence[Line], *, is_new: bool = False) -> None:
        """Create a batch, but for the lines that are invalid and the tasks that exist."""
        if not batch:
            return
        try:
            tasks = self._client.create_many([line.request(is_new=is_new) for line in batch])
        except InvalidRequest as error:
            self._create(self._without_invalid(batch, error), is_new=is_new)
        except (AlreadyExists, TaskNotFound):
            # Some tasks exist, or the same request created one that was purged since.
            self._create(self._compare(batch, self._find(batch)), is_new=True)
        else:
            # A request that succeeded before returns its task, which is older than the new ones.
            newest = max(task.created_at.ToNanoseconds() for task in tasks)
            older = {task.id: task for task in tasks if task.created_at.ToNanoseconds() < newest}
            self._count("created", len(self._compare(batch, older)))

    def _without_invalid(self, batch: Sequence[Line], error: InvalidRequest) -> list[Line]:
        """Return the lines to try again: those without violations, or with their date dropped."""
        refused: defaultdict[int, list[str]] = defaultdict(list)
        dropped = 0
        for number, field, violation in _of_items(error):
            if self._drops_past_due_dates and violation.reason == "TIMESTAMP_IN_PAST":
                batch[number].task.ClearField("due_date")
                dropped += 1
            else:
                refused[number].append(f"{field}: {violation.description}")
        if not refused and not dropped:
            raise error
        for number, violations in refused.items():
            self._refuse(batch[number].number, "invalid", "; ".join(violations))
        self.counts.update({"due_dates_dropped": dropped} if dropped else {})
        return [line for number, line in enumerate(batch) if number not in refused]

    def _find(self, batch: Sequence[Line]) -> dict[str, Task]:
        """Find those tasks of a batch that exist."""
        found: dict[str, Task] = {}
        ids = [quoted(line.task.id) for line in batch]
        for start in range(0, len(ids), _IDS_OF_A_FILTER):
            some = either("id", ids[start : start + _IDS_OF_A_FILTER])
            found |= {task.id: task for task in self._client.list(some, show_deleted=True)}
        return found

    def _compare(self, batch: Sequence[Line], existing: Mapping[str, Task]) -> list[Line]:
        """Count the lines whose tasks exist, equal or not, and return the others."""
        for line in batch:
            if task := existing.get(line.task.id):
                self._compare_one(line, task)
        return [line for line in batch if line.task.id not in existing]

    def _compare_one(self, line: Line, existing: Task) -> None:
        if existing.HasField("deleted_at"):
            self._refuse(line.number, "conflict", f"{existing.id} is deleted")
        elif different := line.differences(existing) - self._ignored(line, existing):
            fields = ", ".join(sorted(different))
            self._refuse(line.number, "conflict", f"{existing.id} exists with another {fields}")
        else:
            self._count("unchanged", 1)

    def _ignored(self, line: Line, existing: Task) -> set[str]:
        """Ignore a missing due date, if this import would have dropped it."""
        is_past = line.task.due_date.ToDatetime(dt.UTC) < dt.datetime.now(dt.UTC)
        dropped = self._drops_past_due_dates and is_past and not existing.HasField("due_date")
        return {"due_date"} if dropped else set()

    def _refuse(self, number: int, kind: str, why: str) -> None:
        self._bar.message(f"line {number}: {kind}: {why}")
        self._count(kind, 1)

    def _count(self, kind: str, lines: int) -> None:
        self.counts[kind] += lines
        self._bar.advance(lines)


def _of_items(error: InvalidRequest) -> Iterator[tuple[int, str, Violation]]:
    """Yield the violations of items, each with the number of its item and its field."""
    for violation in error.violations:
        if match := _ITEM.match(violation.field):
            yield int(match[1]), match[2].removeprefix("task."), violation
