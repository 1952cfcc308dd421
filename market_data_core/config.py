"""The configuration: every key with its type, default, unit and meaning.

These classes are the one declaration; loading, ``mdp config show``, the environment names and the page
docs/configuration.md are all made from them. Nothing here reads a file or the environment: see
:mod:`market_data_core.config_files`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, PrivateAttr, field_validator, model_validator

from market_data_core.config_kafka import KafkaBus
from market_data_core.config_redis import RedisBus
from market_data_core.config_section import (
    Column,
    Count,
    Duration,
    KeyProblem,
    Milliseconds,
    Number,
    Section,
    Symbol,
    key,
    section,
)
from market_data_core.config_signals import Features, Inference
from market_data_core.events import KINDS
from market_data_core.redact import SecretUrl

MAX_OPEN_WINDOWS: Final = 10_000
"""How many windows of one symbol may be open at once because of the allowed lateness."""


class BusSettings(Section):
    type: str = key(
        "redis", "Driver: redis, kafka, memory (one process, for tests), or the name of an installed driver."
    )
    uri: SecretUrl = key(
        SecretUrl(""), "Server of an installed driver, as its documentation says.", example="memory://default"
    )
    codec: Literal["frame", "json", "msgpack"] = key(
        "frame",
        "How producers write: frame (many events a record, as columns), json or msgpack (one event a record).",
    )
    member: str = key(
        "",
        "Name that this process keeps over restarts, each process its own: who comes back within bus.redis.lease_ms "
        "has the same partitions again, and no other is disturbed. Empty: a new name each time.",
        example="worker-0",
        pattern=r"^[A-Za-z0-9._-]*$",
        max_length=200,
    )
    redis: RedisBus = section(
        RedisBus, "The Redis driver; topics, group and retention are those of any driver."
    )
    kafka: KafkaBus = section(KafkaBus, "The Kafka driver.")

    @model_validator(mode="after")
    def _brokers(self) -> Self:
        if self.type == "kafka" and not self.kafka.bootstrap:
            raise KeyProblem("kafka.bootstrap", "must name the brokers while bus.type is kafka")
        return self


class Synthetic(Section):
    enabled: bool = key(True, "Whether `mdp stream run` starts it.")
    symbols: tuple[Symbol, ...] = key(
        ("SPY", "AAPL", "MSFT"), "Symbols to make.", example=["SPY", "AAPL"], min_length=1
    )
    tick_rate: Number = key(
        1.0, "Events of one symbol a second; 0 means as fast as possible.", unit="1/s", ge=0
    )
    price_volatility: Number = key(
        0.02, "Standard deviation of the logarithmic return over one day of ticks.", ge=0, le=10
    )
    seed: Count | None = key(
        None, "Makes the same prices again; empty means another seed each time.", example=42, ge=0
    )
    disorder_ms: Milliseconds = key(0, "Events come out of order by up to this much.", unit="ms", ge=0)
    duplicate_ratio: Number = key(0.0, "Share of events published twice.", ge=0, lt=1)
    gap_ratio: Number = key(0.0, "Share of events left out.", ge=0, lt=1)
    provider: Symbol = key("synthetic", "Provider name written into its events.")

    @field_validator("symbols")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("must name each symbol once")
        return value


class Spool(Section):
    path: str = key(
        "", "Directory for events while the bus is away. Empty: spool in $MDP_HOME.", example="/var/spool/mdp"
    )
    max_bytes: Count = key(
        268_435_456,
        "Most bytes on disk; then the source is slowed, or drops are counted.",
        unit="bytes",
        ge=65_536,
    )


class Producers(Section):
    synthetic: Synthetic = section(Synthetic, "Seeded random prices.")
    spool: Spool = section(Spool, "What producers do while the bus is away.")


class MicroBatch(Section):
    window_ms: Milliseconds = key(
        2000, "Length of a window, aligned to the Unix epoch.", unit="ms", ge=1, le=86_400_000
    )
    max_batch_size: Count = key(
        5000, "Most records taken from a partition at once.", unit="records", ge=1, le=100_000
    )
    allow_late_ms: Milliseconds = key(
        500, "How far the watermark stays behind the newest event.", unit="ms", ge=0, le=86_400_000
    )
    flush_timeout_ms: Milliseconds = key(
        1000,
        "Quiet time after which the clock closes a window without a next event.",
        unit="ms",
        ge=10,
        le=3_600_000,
    )
    late_policy: Literal["amend", "drop"] = key(
        "amend", "What an event does whose window is closed: amend its bar, or go to the dead letters."
    )
    dedupe_horizon_ms: Milliseconds = key(
        120_000, "Event time within which a repeated event_id counts once.", unit="ms", ge=0, le=86_400_000
    )
    late_beyond_horizon: Literal["dead_letter", "amend"] = key(
        "dead_letter",
        "What a late event does that is too old to be told from a copy: go to the dead letters, or amend its bar.",
    )
    max_future_ms: Milliseconds = key(
        86_400_000,
        "Events further ahead of the clock go to the dead letters, as one could close every window; 0 takes all.",
        unit="ms",
        ge=0,
    )
    kinds: tuple[Literal["tick", "bar", "quote"], ...] = key(
        ("tick", "bar"),
        "Kinds of events made into bars; others are passed over.",
        example=["tick", "bar"],
        min_length=1,
    )

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.dedupe_horizon_ms < self.allow_late_ms:
            raise KeyProblem(
                "dedupe_horizon_ms",
                f"must be at least allow_late_ms, {self.allow_late_ms}, or a copy that comes in time counts twice",
            )
        if self.allow_late_ms > self.window_ms * MAX_OPEN_WINDOWS:
            raise KeyProblem(
                "allow_late_ms",
                f"must be at most {MAX_OPEN_WINDOWS} windows of window_ms, {self.window_ms * MAX_OPEN_WINDOWS}, "
                "since that many stay open a symbol",
            )
        return self


class Traces(Section):
    enabled: bool = key(False, "Whether sampled events are traced, for OpenTelemetry; needs the extra otel.")
    endpoint: SecretUrl = key(
        SecretUrl(""),
        "Collector that takes OTLP over HTTP. Empty: as OTEL_EXPORTER_OTLP_ENDPOINT says, or localhost:4318.",
        example="http://127.0.0.1:4318",
    )
    ratio: Number = key(
        0.01, "Share of a producer's publishes that are traced; consumers follow those that are.", ge=0, le=1
    )

    @field_validator("endpoint")
    @classmethod
    def _scheme(cls, value: SecretUrl) -> SecretUrl:
        if value and not value.reveal().startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value


class Telemetry(Section):
    metrics_port: Count = key(
        9101, "Port of the Prometheus exporter and of health checks; 0 switches it off.", ge=0, le=65_535
    )
    metrics_host: str = key(
        "127.0.0.1",
        "Address it listens on; 0.0.0.0 lets other machines in, who need no password.",
        example="0.0.0.0",  # noqa: S104 - an example, as the key is for this
        min_length=1,
    )
    max_symbols: Count = key(
        200, "Symbols with a time series of their own, first come, first kept; all others are `other`.", ge=0
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = key("INFO", "Least level written to stderr.")
    log_format: Literal["auto", "json", "console"] = key(
        "auto", "json, or console for people; auto is console on a terminal without --json, and json else."
    )

    traces: Traces = section(Traces, "Where the time of an event goes, for a few of them.")

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


class StoreSettings(Section):
    url: SecretUrl = key(
        SecretUrl(""),
        "Database, as postgresql://user:password@host:port/name. Empty: the embedded PostgreSQL.",
        example="postgresql://mdp@127.0.0.1:5432/mdp",
    )
    pool_size: Count = key(4, "Most connections of one process.", ge=1, le=100)
    statement_timeout_ms: Milliseconds = key(30_000, "Longest statement; 0 means no limit.", unit="ms", ge=0)

    @field_validator("url")
    @classmethod
    def _scheme(cls, value: SecretUrl) -> SecretUrl:
        text = value.reveal()
        for alias in ("postgres://", "postgresql+psycopg://"):
            if text.startswith(alias):
                return SecretUrl("postgresql://" + text.removeprefix(alias))
        if text and not text.startswith("postgresql://"):
            raise ValueError("must start with postgresql://")
        return value


class Columns(Section):
    """Which column of the file is what, by name or by position from 0."""

    symbol: Column = key(None, "Symbol of the row.", example="symbol")
    time: Column = key(None, "Time of the event.", example="time")
    price: Column = key(None, "Price of a tick.", example="price")
    open: Column = key(None, "First price of a bar.", example="open")
    high: Column = key(None, "Highest price of a bar.", example="high")
    low: Column = key(None, "Lowest price of a bar.", example="low")
    close: Column = key(None, "Last price of a bar.", example="close")
    volume: Column = key(None, "Size traded.", example="volume")
    seq: Column = key(
        None, "Number of the event among those of its time; empty: the row's number.", example="seq"
    )

    @model_validator(mode="after")
    def _prices(self) -> Self:
        bar = {name: getattr(self, name) for name in ("open", "high", "low", "close")}
        missing = [name for name, column in bar.items() if column is None]
        if self.price is not None and len(missing) < 4:
            raise KeyProblem("price", "must not be given together with open, high, low or close")
        if missing and len(missing) < 4:
            raise KeyProblem(missing[0], "must be given too, since a bar needs open, high, low and close")
        return self


class Dataset(Section):
    """A file of events and how to read it."""

    path: str = key("", "File, or a pattern such as data/*.csv.gz.", example="data/ticks.csv.gz")
    provider: Symbol = key("dataset", "Provider name written into the events.")
    format: Literal["csv", "parquet", "store"] | None = key(
        None,
        "csv (also gzip or zip of it), parquet, or store for bars already stored; empty: by the file's name.",
    )
    preset: Literal["lean"] | None = key(
        None, "lean reads QuantConnect LEAN trade files and needs no columns."
    )
    columns: Columns = section(Columns, "Which column is what.")
    symbol: Symbol | None = key(None, "Symbol of every row, when no column has it.", example="SPY")
    kind: Literal["tick", "bar"] = key("tick", "What a row is.")
    interval: Duration = key("1s", "Interval written into the events; a bar's length.", example="1m")
    time_unit: Literal["iso", "s", "ms", "us", "ns"] = key(
        "iso",
        "iso for written times; or the unit of a number since base_date, or since 1970-01-01 without one.",
    )
    base_date: str | None = key(
        None,
        "Day from whose midnight in time_zone numbers count.",
        example="2013-10-07",
        pattern=r"^\d{4}-\d\d-\d\d$",
    )
    time_zone: str = key("UTC", "Zone of times that name none, and of base_date.", example="America/New_York")
    price_scale: Number = key(1.0, "Factor from the file's prices to prices.", example=0.0001, gt=0)
    delimiter: str = key(",", "What separates the columns of a CSV.", min_length=1, max_length=1)
    header: bool = key(True, "Whether the first row of a CSV names the columns.")

    #: Keys that a preset decides and that therefore cannot be given beside it.
    PRESET_KEYS: ClassVar[frozenset[str]] = frozenset(
        {"columns", "time_unit", "base_date", "kind", "header", "delimiter"}
    )

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("must be a time zone such as UTC or America/New_York") from None
        return value

    @field_validator("base_date")
    @classmethod
    def _day(cls, value: str | None) -> str | None:
        from datetime import date

        if value is not None:
            try:
                date.fromisoformat(value)
            except ValueError:
                raise ValueError("must be a day such as 2013-10-07") from None
        return value

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.format == "store":
            return self
        if not self.path:
            raise KeyProblem("path", "must name a file, since only format store needs none")
        if self.preset is not None:
            if given := sorted(self.PRESET_KEYS & self.model_fields_set):
                raise KeyProblem(given[0], f"must not be given beside preset {self.preset}, which decides it")
            return self
        if self.time_unit == "iso" and self.base_date is not None:
            raise KeyProblem(
                "base_date", "must not be given while time_unit is iso, since such times name their day"
            )
        named = [c for c in self.columns.model_dump().values() if isinstance(c, str)]
        if not self.header and named and self.format != "parquet":
            raise KeyProblem(
                "columns", f"must be positions from 0 while header is false, and {named[0]!r} is a name"
            )
        self._enough_columns()
        return self

    def _enough_columns(self) -> None:
        if self.columns.time is None:
            raise KeyProblem("columns.time", "must name the column of the time")
        if self.columns.symbol is None and self.symbol is None:
            raise KeyProblem("symbol", "must be given, as a constant here or as columns.symbol")
        if self.columns.symbol is not None and self.symbol is not None:
            raise KeyProblem("symbol", "must not be given beside columns.symbol")
        if self.kind == "bar" and self.columns.open is None:
            raise KeyProblem("columns.open", "must be given for kind bar, with high, low and close")
        if self.kind == "tick" and self.columns.price is None:
            raise KeyProblem("columns.price", "must name the column of the price for kind tick")


class Settings(Section):
    """The whole configuration."""

    version: Literal[1] = key(1, "Version of this format.")
    bus: BusSettings = section(BusSettings, "The bus.")
    producers: Producers = section(Producers, "Where events come from.")
    micro_batch: MicroBatch = section(MicroBatch, "From events to bars.")
    features: Features = section(Features, "Rolling features for inference.")
    inference: Inference = section(Inference, "From features to signals.")
    telemetry: Telemetry = section(Telemetry, "Metrics, logs and traces.")
    store: StoreSettings = section(StoreSettings, "The database.")
    datasets: dict[str, Dataset] = Field(default_factory=dict, description="Files for replay, by name.")

    _file: Path | None = PrivateAttr(default=None)
    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def file(self) -> Path | None:
        """The file these settings were read from, if any."""
        return self._file

    def source(self, path: str) -> str:
        """Where the value of a dotted key comes from: a file, a variable, an option, or ``default``."""
        while path:
            if path in self._sources:
                return self._sources[path]
            path = path.rpartition(".")[0]
        return "default"

    def locate(self, path: str) -> Path:
        """A path of the configuration: taken from the working directory, or else from the folder of the
        configuration file or the folder above it. Without a match, as it is from the working directory."""
        given = Path(path).expanduser()
        if given.is_absolute() or given.exists() or self._file is None:
            return given
        home = self._file.resolve().parent
        return next((base / given for base in (home, home.parent) if (base / given).exists()), given)


assert set(KINDS) == {"tick", "bar", "quote"}  # noqa: S101 - the Literal of MicroBatch.kinds repeats them
