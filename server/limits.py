"""Limits of a request that more than one room enforces."""

from __future__ import annotations

MAX_BATCH_ITEMS = 1000
"""The contract's limit for the items of a batch, and for any other repeated field."""

MAX_REQUEST_BYTES = 256 * 1024
MAX_BATCH_REQUEST_BYTES = 3 * 1024 * 1024
"""The answer to a batch of this size is within the 4 MiB that clients accept by default."""

LARGEST_VALID_BYTES = 16 * 1024
"""A message that keeps the rules of the contract is smaller, except for a batch."""
