"""Parse the order of a list (AIP-132)."""

from __future__ import annotations

from functools import lru_cache

from server.tasks.validation import FieldError
from storage.query import NEWEST_FIRST, Sort

# Fields with an index.
SORTABLE = frozenset(
    {"created_at", "updated_at", "due_date", "priority", "status", "assigned_to", "title"}
)


@lru_cache(maxsize=1024)
def parse_order(text: str) -> tuple[Sort, ...]:
    """Parse an order; return newest first if it is empty. Raises: FieldError."""
    if not text.strip():
        return NEWEST_FIRST
    order: dict[str, Sort] = {}
    position = 1
    for term in text.split(","):
        field, *direction = term.split()[:3] or [""]
        if field not in SORTABLE:
            problem = f"cannot order by {field[:100]!a}; known are {', '.join(sorted(SORTABLE))}"
        elif direction not in ([], ["asc"], ["desc"]):
            problem = f"{' '.join(direction)[:100]!a} must be asc or desc"
        elif field in order:
            problem = f"{field} occurs twice"
        else:
            order[field] = Sort(field, descending=direction == ["desc"])
            position += len(term) + 1
            continue
        position += len(term) - len(term.lstrip())
        raise FieldError(f"at character {position}: {problem}", "ORDER_BY_INVALID")
    return tuple(order.values())
