"""A private PostgreSQL 18 for development and tests, from a wheel: the default database.

docs/decisions/0004 has the reasons.
"""

from storage.embedded.launcher import EmbeddedPostgres, EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
