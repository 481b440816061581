"""A real PostgreSQL 18 of the service's own, for development and tests: the default database.

Two ideas carry it. The lock: `postgres.lock` is locked with flock, and its descriptor is inherited
by everything started here, so the lock is free exactly when no process of that PostgreSQL lives any
more; what a crash left behind can then be deleted without looking at process ids. The guard: a
small program that is PostgreSQL's parent, and ends it when the service is gone, however it went.
"""

from storage.embedded.account import EmbeddedPostgresError
from storage.embedded.launcher import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
