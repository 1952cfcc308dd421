"""Signals."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    name = sa.Text(collation="C")
    op.create_table(
        "signals",
        sa.Column("symbol", name, nullable=False),
        sa.Column("ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("provider", name, nullable=False),
        sa.Column("name", name, nullable=False),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("meta", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("symbol", "ts", "provider", "name", name="pk_signals"),
    )


def downgrade() -> None:
    op.drop_table("signals")
