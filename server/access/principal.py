"""Name the principal of a call, its scopes, and the origin of its writes."""

import math
import re
import unicodedata
from typing import Literal, NamedTuple, TypeAlias

from opentelemetry.trace import format_trace_id, get_current_span

from storage.repository import Origin

Scope: TypeAlias = Literal["tasks:read", "tasks:write", "tasks:admin"]


class Principal(NamedTuple):
    """The authenticated client of a call, and its scopes."""

    name: str
    scopes: frozenset[Scope] = frozenset()
    expires: float = math.inf  # The end of its credentials, in seconds since 1970.


ANONYMOUS = Principal("anonymous")  # Not authenticated, and without a scope.

_MAX_NAME_CHARACTERS = 200
# Printable by `str.isprintable`, but shown as nothing or as a blank: the letters and marks among
# Unicode's Default_Ignorable_Code_Point, and the blank pattern of Braille.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0000-\U000e0fff]"
)


def name_problem(name: str) -> str:
    """Describe what is wrong with the name of a principal; empty if it is valid.

    Logs, events and limits contain names, which are compared exactly: names that look the same must
    be the same.
    """
    if not name.strip():
        return "the name is blank"
    if name != name.strip():
        return "the name begins or ends with white space"
    if len(name) > _MAX_NAME_CHARACTERS:
        return f"the name has more than {_MAX_NAME_CHARACTERS} characters"
    if not name.isprintable() or _INVISIBLE.search(name):
        return "the name has characters that are not shown"
    if not unicodedata.is_normalized("NFC", name):
        return "the name is not in Unicode's normal form C"
    if unicodedata.normalize("NFKC", name).casefold() == ANONYMOUS.name:
        return "the name is reserved"
    return ""


def origin(principal: Principal) -> Origin:
    """Return the principal and the trace of a write, for its events."""
    context = get_current_span().get_span_context()
    trace_id = format_trace_id(context.trace_id) if context.is_valid else None
    return Origin(principal.name, trace_id)
