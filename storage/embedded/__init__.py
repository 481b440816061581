"""A private PostgreSQL 18 for development and tests, from a wheel (docs/decisions/0004)."""

from storage.embedded.launcher import EmbeddedPostgres, EmbeddedPostgresError, program

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "program"]
