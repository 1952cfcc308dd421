"""Alembic's entry: runs on the connection that :mod:`market_data_store.schema` hands over."""

from __future__ import annotations

from alembic import context

from market_data_store.schema import COMPARISON, alembic_connection

with alembic_connection(context.config) as connection:
    context.configure(connection=connection, **COMPARISON)
    with context.begin_transaction():
        context.run_migrations()
