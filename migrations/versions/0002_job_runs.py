"""The audit of runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    name = sa.Text(collation="C")
    stamp = sa.DateTime(timezone=True)
    op.create_table(
        "job_runs",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("job", name, nullable=False),
        sa.Column("command", name, nullable=False),
        sa.Column("args", JSONB, nullable=False, server_default=sa.text("'[]'::jsonb")),
        sa.Column("host", name, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("version", name, nullable=False),
        sa.Column("started_at", stamp, nullable=False),
        sa.Column("heartbeat_at", stamp, nullable=False),
        sa.Column("finished_at", stamp),
        sa.Column("outcome", name, nullable=False, server_default=sa.text("'running'")),
        sa.Column("error", name),
        sa.Column("counters", JSONB, nullable=False, server_default=sa.text("'{}'::jsonb")),
        sa.PrimaryKeyConstraint("id", name="pk_job_runs"),
        sa.CheckConstraint(
            "outcome IN ('running', 'done', 'failed', 'interrupted', 'abandoned')",
            name=op.f("ck_job_runs_outcome"),
        ),
    )
    op.create_index("ix_job_runs_started_at", "job_runs", ["started_at"])


def downgrade() -> None:
    op.drop_table("job_runs")
