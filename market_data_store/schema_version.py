"""Which schema this version needs, known without alembic: every worker checks it when it starts."""

from __future__ import annotations

from typing import Final

from market_data_core.errors import SchemaOutOfDate
from market_data_core.redact import redact
from market_data_store.connection import FIX_SCHEMA

HEAD: Final = "0006"
"""The newest migration; a test holds it equal to what is in the folder."""


def out_of_date(url: str, revision: str | None) -> SchemaOutOfDate:
    """The error for a database at ``revision`` (None: empty), which is not :data:`HEAD`."""
    where = redact(url)
    if revision is None:
        return SchemaOutOfDate(f"{where} has no schema of mdp yet: {FIX_SCHEMA}")
    if revision > HEAD:
        return SchemaOutOfDate(f"{where} is at {revision}, newer than this mdp ({HEAD}): update mdp")
    return SchemaOutOfDate(f"{where} is at {revision}, this mdp needs {HEAD}: {FIX_SCHEMA}")
