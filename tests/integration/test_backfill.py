"""``mdp backfill`` on a real database: the stream's bars to the last bit, through deaths, poison and changed files."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil
import psycopg
import pytest

from market_data_core.clock import SystemClock
from market_data_core.config import Settings
from market_data_core.config_files import load
from market_data_core.events import StreamEvent
from market_data_core.protocols import Claim
from market_data_pipeline.consumers.exactly_once import ConsumerSettings, ExactlyOnceConsumer
from market_data_pipeline.consumers.micro_batcher import BatcherSettings, PartitionBars
from market_data_pipeline.consumers.stats import RunStats
from market_data_pipeline.producers.dataset import DatasetProvider, file_provider, find_dataset
from market_data_pipeline.producers.replay import replay_lane
from market_data_pipeline.producers.runner import ProducerRunner, RunnerOptions
from market_data_pipeline.streaming.memory_bus import MemoryBus
from market_data_pipeline.windows.tumbling import WindowSettings
from market_data_store import StoreClient
from tests.integration.backfills import Command, workers_of
from tests.unit.backfill_files import SECOND, ticks, write

DATA = Path(os.environ.get("MDP_DATA", Path(__file__).parents[3] / "shared" / "data")) / "equity"
MINUTE = 60 * SECOND
CONFIG = """
datasets:
  ticks:
    path: "{folder}/*.{suffix}"
    provider: p
    columns: {{time: time, symbol: symbol, price: price, volume: size, seq: seq}}
    time_unit: ns
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


async def stream(url: str, provider: DatasetProvider, window_ns: int, partitions: int = 4) -> None:
    """The bars of ``provider`` as a replay and a micro-batcher make them."""
    batcher = BatcherSettings(
        windows=WindowSettings(window_ns, SECOND // 2, 120 * SECOND), flush_timeout_ns=3600 * SECOND
    )
    clock = SystemClock()
    async with MemoryBus(f"memory://{os.urandom(6).hex()}") as bus, await StoreClient.connect(url) as store:
        options = RunnerOptions(partitions=partitions, lane=replay_lane("r", force=False), end_lanes=True)
        await ProducerRunner(bus, provider, "t", options).run()

        def logic(claim: Claim) -> PartitionBars:
            return PartitionBars(claim, batcher, clock, bus.format_offset, bus.parse_offset)

        names = ConsumerSettings("t", "g", "m", "t.bars", "t.dlq", lease_ms=2000)
        await ExactlyOnceConsumer(bus, store, names, logic, clock, RunStats()).run(asyncio.Event(), 0.3)


def configured(command: Command, suffix: str = "csv") -> None:
    (command.folder / "streaming.yaml").write_text(CONFIG.format(folder=command.folder, suffix=suffix))


async def stream_ticks(folder: Path, url: str) -> None:
    """:func:`stream` of the configured ticks."""
    settings = load(folder / "streaming.yaml")
    await stream(url, file_provider(settings, [find_dataset(settings, "ticks", None, None)]), MINUTE)


TICKS = ("--config", "streaming.yaml", "--dataset", "ticks", "--window", "1m", "--workers", "2")


def days_of_files(folder: Path, days: int = 6, n: int = 400, suffix: str = "csv") -> list[list[StreamEvent]]:
    """A file a day of three symbols each; the events of each file."""
    made = ticks(7, n * days, symbols=3, days=days)
    first = made[0].src_ts // (86_400 * SECOND)
    parts = [[e for e in made if e.src_ts // (86_400 * SECOND) == first + day] for day in range(days)]
    for day, part in enumerate(parts):
        write(folder / f"{day}.{suffix}", part)
    return parts


def lean(paths: Sequence[Path]) -> DatasetProvider:
    return file_provider(Settings(), [find_dataset(Settings(), str(path), "lean", None) for path in paths])


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real market data at {DATA}; set MDP_DATA")
def test_real_days_are_those_of_the_stream(command: Command, streamed: Command) -> None:
    asyncio.run(stream(streamed.url, lean(sorted(DATA.glob("tick_*_trade.zip"))), MINUTE))
    given = ("--dataset", f"{DATA}/tick_*_trade.zip", "--preset", "lean", "--window", "1m")
    summary = command.run(*given)
    assert (summary["tasks"], summary["done"], summary["failed"], summary["events"]) == (3, 3, 0, 308_275)
    assert summary["behind_horizon"] == 0
    assert summary["cpu_seconds"] > 0
    rows = command.rows()
    assert rows == streamed.rows()
    assert summary["bars_inserted"] == len(rows) > 1500
    with psycopg.connect(command.url) as connection:
        job = connection.execute("SELECT job, outcome, counters->>'events' FROM job_runs").fetchall()
        left = connection.execute("SELECT count(*) FROM stream_outbox").fetchone()
    assert (job, left) == ([("backfill", "done", "308275")], (0,))

    before = command.versions()
    again = command.run(*given)
    assert (again["tasks"], again["skipped"], again["done"], again["events"]) == (3, 3, 0, 0)
    anew = command.run(*given, "--no-resume")
    assert (anew["done"], anew["bars_inserted"], anew["bars_unchanged"]) == (3, 0, len(rows))
    assert command.versions() == before, "rows were written that did not change"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real market data at {DATA}; set MDP_DATA")
def test_bars_of_a_file_stay_what_they_are(command: Command, streamed: Command) -> None:
    """Minute bars, in windows of five minutes and of a minute: those are stored as they came."""
    paths = [DATA / "minute_spy_20131007_trade.zip"]
    for window, text in ((5 * MINUTE, "5m"), (MINUTE, "1m")):
        asyncio.run(stream(streamed.url, lean(paths), window))
        command.run("--dataset", str(paths[0]), "--preset", "lean", "--window", text)
    rows = command.rows()
    assert rows == streamed.rows()
    assert {row[2] for row in rows} == {"1m", "5m"}


@pytest.mark.parametrize("suffix", ["csv", "zip", "parquet"])
def test_a_mix_of_symbols_and_days_is_that_of_the_stream(
    command: Command, streamed: Command, suffix: str
) -> None:
    days_of_files(command.folder, suffix=suffix)
    configured(command, suffix)
    summary = command.run(*TICKS)
    asyncio.run(stream_ticks(command.folder, streamed.url))
    assert summary["done"] == summary["tasks"] == 18
    assert summary["duplicates"] > 0
    assert command.rows() == streamed.rows()


def test_a_worker_that_is_killed(command: Command, streamed: Command) -> None:
    days_of_files(command.folder, days=12)
    configured(command)
    asyncio.run(stream_ticks(command.folder, streamed.url))
    process = command.start(*TICKS)
    with command.held(after=4):
        for worker in workers_of(process):
            worker.kill()
    summary = command.end(process)
    assert (summary["failed"], summary["done"] + summary["skipped"]) == (0, 36)
    assert summary["workers_lost"] == 2
    assert command.rows() == streamed.rows()


def test_a_command_that_is_killed_is_resumed(command: Command, streamed: Command) -> None:
    days_of_files(command.folder, days=12)
    configured(command)
    asyncio.run(stream_ticks(command.folder, streamed.url))
    process = command.start(*TICKS)
    with command.held(after=4):
        workers = workers_of(process)
        process.kill()
        process.communicate(timeout=60)
        assert psutil.wait_procs(workers, timeout=60)[1] == [], "workers outlive the command"
    finished = command.finished()
    summary = command.run(*TICKS)
    assert 4 <= finished < 36
    assert (summary["skipped"], summary["done"], summary["failed"]) == (finished, 36 - finished, 0)
    assert command.rows() == streamed.rows()


def test_a_command_that_is_interrupted_finishes_what_is_under_way(command: Command) -> None:
    days_of_files(command.folder, days=12)
    configured(command)
    process = command.start(*TICKS)
    with command.held(after=1):
        process.send_signal(signal.SIGINT)
    summary = command.end(process, 130)
    assert summary["interrupted"] is True
    assert summary["done"] == command.finished() < 36
    assert summary["failed"] == 0
    with psycopg.connect(command.url) as connection:
        assert connection.execute("SELECT count(*) FROM job_runs WHERE outcome = 'running'").fetchone() == (
            0,
        )


def test_a_poison_file_does_not_hinder_the_others(command: Command, streamed: Command) -> None:
    parts = days_of_files(command.folder, days=4)
    configured(command)
    asyncio.run(stream_ticks(command.folder, streamed.url))
    (command.folder / "1.csv").write_bytes(b"time,symbol,price,size,seq\nnoon,S1,1,1,1\n")
    damaged = write(command.folder / "2.csv", parts[2])
    damaged.write_text(damaged.read_text().replace("S0", "S0,S0", 1))
    summary = command.run(*TICKS, code=1)
    assert summary["done"] == 6
    of_file = summary["failures"][0]
    assert of_file["symbol"] is None
    assert of_file["reason"].startswith(f"{command.folder}/1.csv:2 is no event")
    assert summary["failed"] == len(summary["failures"]) == 4
    assert all(f"{command.folder}/2.csv:" in f["reason"] for f in summary["failures"][1:])
    write(command.folder / "1.csv", parts[1])
    write(damaged, parts[2])
    summary = command.run(*TICKS)
    assert (summary["skipped"], summary["done"]) == (6, 6)
    assert command.rows() == streamed.rows()


def test_a_changed_file_is_done_again(command: Command) -> None:
    parts = days_of_files(command.folder, days=3)
    configured(command)
    command.run(*TICKS)
    before = {row[:4]: row for row in command.rows()}
    more = parts[1][0]
    path = command.folder / "1.csv"
    path.write_text(path.read_text() + f"{more.src_ts + 1000},{more.symbol},{more.c + 1000},5.0,999999\n")
    summary = command.run(*TICKS)
    assert (summary["skipped"], summary["done"]) == (6, 3)
    assert (summary["bars_amended"], summary["bars_inserted"]) == (1, 0)
    changed = [row for row in command.rows() if before[row[:4]] != row]
    assert [(row[1], row[5], row[-1]) for row in changed] == [(more.symbol, more.c + 1000, 2)]


def test_fewer_events_replace_a_bar_only_by_force(command: Command) -> None:
    (events,) = days_of_files(command.folder, days=1)
    configured(command)
    hourly = (*TICKS, "--window", "1h")
    command.run(*hourly)
    before, versions = command.rows("n_events, revision"), command.versions()
    gone = events[0].event_id
    write(command.folder / "0.csv", [e for e in events if e.event_id != gone])
    refused = command.run(*hourly)
    assert (refused["done"], refused["bars_refused"], refused["bars_amended"]) == (3, 1, 0)
    assert command.versions() == versions
    forced = command.run(*hourly, "--force")
    assert (forced["skipped"], forced["bars_refused"], forced["bars_amended"]) == (0, 0, 1)
    changed = [
        (old, new) for old, new in zip(before, command.rows("n_events, revision"), strict=True) if old != new
    ]
    assert [(old[0] - new[0], old[1], new[1]) for old, new in changed] == [(1, 1, 2)]


def test_two_at_once_on_one_dataset_end_with_the_same_table(command: Command, streamed: Command) -> None:
    days_of_files(command.folder, days=8)
    configured(command)
    asyncio.run(stream_ticks(command.folder, streamed.url))
    both = [command.start(*TICKS) for _ in range(2)]
    for process in both:
        process.communicate(timeout=240)
    command.run(*TICKS)
    assert command.rows() == streamed.rows()
