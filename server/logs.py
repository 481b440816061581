"""Logging: JSON lines where a machine reads them, plain ones where a developer does."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog
from structlog.typing import Processor

from server.settings import Settings


def configure(settings: Settings) -> None:
    """Sends our log lines, and those of libraries, to standard output in one form.

    Ours go there straight: by way of the standard library's logging a line costs three times as
    much, and there is one for each call.
    """
    level = "DEBUG" if settings.debug else settings.log_level
    prepare: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render = _rendering(settings)
    output = cast("TextIO", _Output(sys.stdout))
    structlog.configure(
        processors=[*prepare, *render],
        logger_factory=structlog.WriteLoggerFactory(output),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=prepare,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level)
    # Statements, without their parameters: those are the callers' data.
    logging.getLogger("sqlalchemy.engine").setLevel("INFO" if settings.debug else "WARNING")


class _Output:
    """A log that cannot be written fails no call: its reader may be gone, or the disk full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _rendering(settings: Settings) -> list[Processor]:
    if settings.environment == "development":
        # A plain traceback: a rich one shows local variables, and so the callers' data.
        return [
            structlog.dev.ConsoleRenderer(
                colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
