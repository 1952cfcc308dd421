"""Who stored a signal: the consumer that may withdraw it when a late event changes the bar it was made of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    writer = sa.Column("writer", sa.Text(collation="C"), nullable=False, server_default=sa.text("''"))
    op.add_column("signals", writer)


def downgrade() -> None:
    op.drop_column("signals", "writer")
