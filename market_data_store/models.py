"""The declared schema. Migrations make it, ``mdp store check`` compares the two.

Names (symbols, providers, lanes, topics) are collated "C": byte order, which is what Python sorts by, what an
index compares fastest, and what no upgrade of the machine's locales can change under an index. Times that
need more than the microseconds of ``timestamptz`` are ``bigint`` nanoseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "pk": "pk_%(table_name)s",
}
Name = Text(collation="C")
Timestamp = DateTime(timezone=True)


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Name,
        datetime: Timestamp,
        float: Double,
        dict[str, Any]: JSONB,
        list[str]: JSONB,
        bytes: LargeBinary,
    }


class BarRow(Base):
    """One OHLCV bar. ``volume + volume_lo`` and ``notional + notional_lo`` are exact sums (see BarBatch).

    ``notional`` and ``vwap`` are null where they are not known. ``writer`` is ``topic/group/lane`` of who wrote
    the values last: only it may amend them by late events. The key begins with interval and symbol, so that
    the one index of the table also serves reads ordered by (symbol, ts).
    """

    __tablename__ = "bars_ohlcv"
    __table_args__ = (
        CheckConstraint("low > '-Infinity' AND low <= high AND high < 'Infinity'", name="range"),
        CheckConstraint("open BETWEEN low AND high AND close BETWEEN low AND high", name="inside"),
        CheckConstraint("volume >= 0 AND volume < 'Infinity'", name="volume"),
        CheckConstraint("n_events >= 1 AND first_ts <= last_ts", name="events"),
        CheckConstraint("revision >= 1", name="revision"),
    )

    interval: Mapped[str] = mapped_column(primary_key=True)
    symbol: Mapped[str] = mapped_column(primary_key=True)
    ts: Mapped[datetime] = mapped_column(primary_key=True)
    provider: Mapped[str] = mapped_column(primary_key=True)
    open: Mapped[float]
    high: Mapped[float]
    low: Mapped[float]
    close: Mapped[float]
    volume: Mapped[float]
    volume_lo: Mapped[float] = mapped_column(server_default=text("0"))
    notional: Mapped[float | None]
    notional_lo: Mapped[float] = mapped_column(server_default=text("0"))
    vwap: Mapped[float | None]
    n_events: Mapped[int] = mapped_column(BigInteger)
    first_ts: Mapped[int] = mapped_column(BigInteger)
    first_seq: Mapped[int] = mapped_column(BigInteger)
    last_ts: Mapped[int] = mapped_column(BigInteger)
    last_seq: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    writer: Mapped[str]
    updated_at: Mapped[datetime] = mapped_column(server_default=text("now()"))


class JobRun(Base):
    """One run of a command, for the audit: who, when, how it went, how much it did."""

    __tablename__ = "job_runs"
    __table_args__ = (
        CheckConstraint(
            "outcome IN ('running', 'done', 'failed', 'interrupted', 'abandoned')", name="outcome"
        ),
        Index(None, "started_at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job: Mapped[str]
    command: Mapped[str]
    args: Mapped[list[str]] = mapped_column(server_default=text("'[]'::jsonb"))
    host: Mapped[str]
    pid: Mapped[int] = mapped_column(Integer)
    version: Mapped[str]
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    outcome: Mapped[str] = mapped_column(server_default=text("'running'"))
    error: Mapped[str | None]
    counters: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))


class SignalRow(Base):
    """One decision about a symbol at a time. ``writer`` is the consumer that stored it: it alone may withdraw it."""

    __tablename__ = "signals"

    symbol: Mapped[str] = mapped_column(primary_key=True)
    ts: Mapped[datetime] = mapped_column(primary_key=True)
    provider: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float]
    score: Mapped[float]
    meta: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    updated_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    writer: Mapped[str] = mapped_column(server_default=text("''"))


class StreamClaim(Base):
    """Who owns a partition. ``flush_number`` is the last flush of this epoch, ``last_flush`` what it did.

    ``topic_id``: of the topic that the offsets of its positions are of, empty where the bus has none.
    """

    __tablename__ = "stream_claims"
    __table_args__ = (CheckConstraint("epoch >= 1", name="epoch"),)

    topic: Mapped[str] = mapped_column(primary_key=True)
    consumer_group: Mapped[str] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str]
    claimed_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
    flush_number: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    last_flush: Mapped[dict[str, Any] | None]
    topic_id: Mapped[str] = mapped_column(server_default=text("''"))


class StreamPosition(Base):
    """How far one lane of a partition is handled; offsets are text as the bus writes them."""

    __tablename__ = "stream_positions"

    topic: Mapped[str] = mapped_column(primary_key=True)
    consumer_group: Mapped[str] = mapped_column(primary_key=True)
    partition: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    lane: Mapped[str] = mapped_column(primary_key=True)
    watermark: Mapped[int] = mapped_column(BigInteger)
    read_offset: Mapped[str]
    restart_offset: Mapped[str]
    dedupe_offset: Mapped[str]


class OutboxRow(Base):
    """A record to publish once the transaction that wrote it is committed."""

    __tablename__ = "stream_outbox"
    __table_args__ = (Index(None, "topic", "consumer_group", "partition"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    topic: Mapped[str]
    consumer_group: Mapped[str]
    partition: Mapped[int] = mapped_column(Integer)
    target_topic: Mapped[str]
    target_partition: Mapped[int] = mapped_column(Integer)
    key: Mapped[str]
    lane: Mapped[str | None]
    value: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=text("now()"))
