"""Logging: JSON lines where a machine reads them, plain ones where a developer does."""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.typing import Processor

from server.settings import Settings


def configure(settings: Settings) -> None:
    """Sends our log lines, and those of libraries, to standard output in one form."""
    level = "DEBUG" if settings.debug else settings.log_level
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_rendering(settings),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level)
    # Statements, without their parameters: those are the callers' data.
    logging.getLogger("sqlalchemy.engine").setLevel("INFO" if settings.debug else "WARNING")


def _rendering(settings: Settings) -> list[Processor]:
    if settings.environment == "development":
        return [structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]
