"""Log plain lines in development and JSON elsewhere; SIGUSR1 and SIGUSR2 change the level."""

import atexit
import datetime as dt
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from select import PIPE_BUF
from typing import TextIO, cast

import orjson
import structlog
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
from structlog.typing import EventDict, Processor

from server.settings import Settings

log = structlog.get_logger()

_LEVELS = [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR]
_NUMBERS = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()} | {
    "exception": logging.ERROR
}
_level = logging.INFO
_calls: "_Output | None" = None

# The lines of calls are written together. A process that is killed loses those of this time.
FLUSH_SECONDS = 0.1


def configure(settings: Settings) -> None:
    """Write our log lines, and those of libraries, to standard output in one form.

    Ours do not pass the standard library's logging: a line would cost three times as much.
    """
    _set_level(logging.getLevelName(settings.level))
    prepare: list[Processor] = [
        structlog.processors.add_log_level,
        _add_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render = _rendering(settings)
    global _calls  # noqa: PLW0603
    destination = _Output(sys.stdout)
    _calls = None if settings.environment == "development" else destination
    output = cast("TextIO", destination)
    structlog.configure(
        processors=[_drop_below_level, *prepare, *render],
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.addFilter(_IntervalFilter("opentelemetry", seconds=60))
    formatter = structlog.stdlib.ProcessorFormatter
    handler.setFormatter(
        formatter(processors=[formatter.remove_processors_meta, *render], foreign_pre_chain=prepare)
    )
    logging.getLogger().handlers = [handler]
    # Statements, without their parameters: those are the clients' data.
    statements = "INFO" if settings.level == "DEBUG" else "WARNING"
    logging.getLogger("sqlalchemy.engine").setLevel(statements)
    logging.getLogger("sqlalchemy.pool").setLevel("WARNING")
    # It quotes a malformed tracestate, which is the client's data.
    logging.getLogger("opentelemetry.trace").setLevel("ERROR")


def write_call(level: str, fields: dict[str, object]) -> None:
    """Write the line of a call, in JSON up to FLUSH_SECONDS later.

    Structlog's processors, and a system call for each line, would cost a tenth of a call.
    """
    if _NUMBERS[level] < _level:
        return
    if _calls is None:
        getattr(log, level)("call", **fields)
        return
    _add_trace(None, level, fields)
    now = dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z")
    fields |= {"level": level, "timestamp": now, "message": "call"}
    _calls.write_later(orjson.dumps(fields).decode() + "\n")


def change_level(number: int) -> None:
    """Raise the verbosity after SIGUSR1, lower it after SIGUSR2."""
    at = _LEVELS.index(_level) + (-1 if number == signal.SIGUSR1 else 1)
    _set_level(_LEVELS[max(0, min(at, len(_LEVELS) - 1))])
    log.warning("log level changed", to=logging.getLevelName(_level))


def is_verbose() -> bool:
    """Whether lines at level DEBUG are written."""
    return _level <= logging.DEBUG


def _set_level(level: int) -> None:
    global _level  # noqa: PLW0603
    _level = level
    logging.getLogger().setLevel(max(level, logging.INFO))  # Libraries' details are not ours.


def _drop_below_level(_logger: object, method: str, event: EventDict) -> EventDict:
    if _NUMBERS[method] < _level:
        raise structlog.DropEvent
    return event


def _add_trace(_logger: object, _method: str, event: EventDict) -> EventDict:
    context = get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format_trace_id(context.trace_id)
        event["span_id"] = format_span_id(context.span_id)
    return event


class LogThrottle:
    """Log a repeated event once per interval, so that logging does not add to an overload."""

    def __init__(self, seconds: float = 1) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._count = 0
        self._next = 0.0

    def count(self) -> int:
        """Count an event; return how many its line stands for, 0 for no line."""
        with self._lock:
            self._count += 1
            now = time.monotonic()
            if now < self._next:
                return 0
            self._next = now + self._seconds
            count, self._count = self._count, 0
            return count


class _IntervalFilter(logging.Filter):
    """Pass one record of a family of loggers per interval."""

    def __init__(self, family: str, *, seconds: float) -> None:
        super().__init__(family)
        self._throttle = LogThrottle(seconds)

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True
        count = self._throttle.count()
        if count > 1:
            record.msg = f"{record.getMessage()} ({count - 1} such lines were omitted)"
            record.args = ()
        return count > 0


class _Output:
    """Write whole lines; ignore failures, so that a full disk or a closed pipe fails no call.

    Workers share a pipe: what one system call writes, up to PIPE_BUF bytes, is not torn apart.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._later: list[str] = []
        self._is_pending = threading.Event()
        self._flusher: threading.Thread | None = None

    def write(self, text: str) -> None:
        with self._lock:
            lines, self._later = [*self._later, text], []
            for chunk in _chunks(lines):
                with suppress(OSError):
                    self._stream.write(chunk)
                    self._stream.flush()

    def flush(self) -> None:
        """Do nothing: what is written is flushed."""

    def write_later(self, line: str) -> None:
        """Write with the next line, or after FLUSH_SECONDS."""
        with self._lock:
            self._later.append(line)
            if self._flusher is None:
                atexit.register(self.write, "")
                self._flusher = threading.Thread(target=self._flush_often, daemon=True)
                self._flusher.start()
        self._is_pending.set()

    def _flush_often(self) -> None:
        while self._is_pending.wait():
            time.sleep(FLUSH_SECONDS)
            self._is_pending.clear()
            self.write("")


def _chunks(lines: Iterable[str]) -> Iterator[str]:
    """Join lines up to PIPE_BUF bytes."""
    chunk, size = "", 0
    for line in lines:
        length = len(line.encode())
        if chunk and size + length > PIPE_BUF:
            yield chunk
            chunk, size = "", 0
        chunk, size = chunk + line, size + length
    if chunk:
        yield chunk


def _rendering(settings: Settings) -> list[Processor]:
    if settings.environment == "development":
        # A plain traceback: a rich one shows local variables, and so the clients' data.
        return [
            structlog.processors.format_exc_info,
            _escape,
            structlog.dev.ConsoleRenderer(
                colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(_to_json),
    ]


def _escape(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Escape control characters, which a terminal obeys; a stack keeps its lines."""
    for key, value in event.items():
        text = value if isinstance(value, str) else repr(value)
        if key in {"exception", "stack"}:
            event[key] = "\n".join(map(_shown, text.split("\n")))
        elif not text.isprintable():
            event[key] = _shown(text)
    return event


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _to_json(event: EventDict, **_options: object) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
