"""The repository that writes one task at a time."""

from __future__ import annotations

import pytest

from storage.database import Database
from tests.support.repository import OneByOne


@pytest.fixture
def repository(database: Database) -> OneByOne:
    return OneByOne(database)
