"""What a remote judge was paid for travels with its result, and is committed in the counts of the shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

PAID = ("paid_requests", "paid_input_tokens", "paid_output_tokens")
"""Names of the counts. Tokens are those that the server reports; replies from a cache are not paid for."""
KEY = b"kumite.spent"


def with_spent(table: pa.Table, spent: Mapping[str, int]) -> pa.Table:
    """The same table with what was paid for it in its metadata, which is not stored with the table."""
    if not spent:
        return table
    return table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: json.dumps(dict(spent)).encode()})


def spent(result: Any) -> dict[str, int]:
    """What was paid for the result of a role; empty if nothing."""
    metadata = (result.schema.metadata or {}) if isinstance(result, pa.Table) else {}
    return json.loads(metadata[KEY]) if KEY in metadata else {}
