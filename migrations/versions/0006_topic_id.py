"""Which topic the offsets of a claim are of: on Kafka one that is deleted and made anew begins at 0 again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    topic_id = sa.Column("topic_id", sa.Text(collation="C"), nullable=False, server_default=sa.text("''"))
    op.add_column("stream_claims", topic_id)


def downgrade() -> None:
    op.drop_column("stream_claims", "topic_id")
