"""Claims, positions and the outbox: what makes the effect exactly-once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    name = sa.Text(collation="C")
    stamp = sa.DateTime(timezone=True)
    op.create_table(
        "stream_claims",
        sa.Column("topic", name, nullable=False),
        sa.Column("consumer_group", name, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("owner", name, nullable=False),
        sa.Column("claimed_at", stamp, nullable=False, server_default=sa.text("now()")),
        sa.Column("flush_number", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("last_flush", JSONB),
        sa.PrimaryKeyConstraint("topic", "consumer_group", "partition", name="pk_stream_claims"),
        sa.CheckConstraint("epoch >= 1", name=op.f("ck_stream_claims_epoch")),
    )
    op.create_table(
        "stream_positions",
        sa.Column("topic", name, nullable=False),
        sa.Column("consumer_group", name, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("lane", name, nullable=False),
        sa.Column("watermark", sa.BigInteger, nullable=False),
        sa.Column("read_offset", name, nullable=False),
        sa.Column("restart_offset", name, nullable=False),
        sa.Column("dedupe_offset", name, nullable=False),
        sa.PrimaryKeyConstraint("topic", "consumer_group", "partition", "lane", name="pk_stream_positions"),
    )
    op.create_table(
        "stream_outbox",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("topic", name, nullable=False),
        sa.Column("consumer_group", name, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("target_topic", name, nullable=False),
        sa.Column("target_partition", sa.Integer, nullable=False),
        sa.Column("key", name, nullable=False),
        sa.Column("lane", name),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("created_at", stamp, nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("id", name="pk_stream_outbox"),
    )
    # Frames are columns of floats that live for a second: compressing them costs more than it saves.
    op.execute("ALTER TABLE stream_outbox ALTER COLUMN value SET STORAGE EXTERNAL")
    op.create_index(
        "ix_stream_outbox_topic_consumer_group_partition",
        "stream_outbox",
        ["topic", "consumer_group", "partition"],
    )


def downgrade() -> None:
    op.drop_table("stream_outbox")
    op.drop_table("stream_positions")
    op.drop_table("stream_claims")
