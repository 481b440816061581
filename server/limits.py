"""How much one request may ask for."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What the contract allows; an operator may allow less."""

    page_size: int = 1000
    batch_items: int = 1000
    filter_terms: int = 50
    filter_depth: int = 20


CONTRACT = Limits()

LARGEST_VALID_BYTES = 16 * 1024
"""A message with more, but for the batches, breaks rules, maybe a million times."""
