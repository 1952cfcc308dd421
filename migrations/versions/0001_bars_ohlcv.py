"""Bars."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from market_data_store.timescale import drop_rollups

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    name = sa.Text(collation="C")
    op.create_table(
        "bars_ohlcv",
        sa.Column("interval", name, nullable=False),
        sa.Column("symbol", name, nullable=False),
        sa.Column("ts", sa.DateTime(timezone=True), nullable=False),
        sa.Column("provider", name, nullable=False),
        sa.Column("open", sa.Double, nullable=False),
        sa.Column("high", sa.Double, nullable=False),
        sa.Column("low", sa.Double, nullable=False),
        sa.Column("close", sa.Double, nullable=False),
        sa.Column("volume", sa.Double, nullable=False),
        sa.Column("volume_lo", sa.Double, nullable=False, server_default=sa.text("0")),
        sa.Column("notional", sa.Double),
        sa.Column("notional_lo", sa.Double, nullable=False, server_default=sa.text("0")),
        sa.Column("vwap", sa.Double),
        sa.Column("n_events", sa.BigInteger, nullable=False),
        sa.Column("first_ts", sa.BigInteger, nullable=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("last_ts", sa.BigInteger, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, server_default=sa.text("1")),
        sa.Column("writer", name, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.PrimaryKeyConstraint("interval", "symbol", "ts", "provider", name="pk_bars_ohlcv"),
        sa.CheckConstraint(
            "low > '-Infinity' AND low <= high AND high < 'Infinity'", name=op.f("ck_bars_ohlcv_range")
        ),
        sa.CheckConstraint(
            "open BETWEEN low AND high AND close BETWEEN low AND high", name=op.f("ck_bars_ohlcv_inside")
        ),
        sa.CheckConstraint("volume >= 0 AND volume < 'Infinity'", name=op.f("ck_bars_ohlcv_volume")),
        sa.CheckConstraint("n_events >= 1 AND first_ts <= last_ts", name=op.f("ck_bars_ohlcv_events")),
        sa.CheckConstraint("revision >= 1", name=op.f("ck_bars_ohlcv_revision")),
    )


def downgrade() -> None:
    drop_rollups(op.get_bind())
    op.drop_table("bars_ohlcv")
