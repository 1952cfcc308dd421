"""``mdp stream produce`` and ``mdp stream replay`` on a real Redis: what they publish, and what they say when wrong."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from market_data_core.batch import EventBatch
from market_data_core.codecs import Decoded, EventDecoder, decode_dead_letter, parse_time
from market_data_pipeline.cli import app
from market_data_pipeline.producers.stored import StoredBars
from market_data_store import StoreClient
from tests.integration.store_samples import T0, S, bars, flush
from tests.servers.redis import RedisServer, running

DATA = Path(os.environ.get("MDP_DATA", Path(__file__).parents[3] / "shared" / "data")) / "equity"
TOPIC = "mdp.events"


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, object]:
        assert self.code == 0, self.err
        found: dict[str, object] = json.loads(self.out)
        return found


Mdp = Callable[..., Ended]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    yield from running("6.2")


@pytest.fixture
def mdp(
    server: RedisServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Mdp:
    """Run a command in this process, in an empty folder, on an empty Redis."""
    for name in [name for name in os.environ if name.startswith("MDP_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("REDIS_URI", server.uri)
    monkeypatch.setenv("MDP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with server.client() as client:
        client.flushall()

    def run(*args: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            app.main(list(args))
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


def stored(server: RedisServer, topic: str = TOPIC) -> Decoded:
    """All records of a topic of one partition."""
    with server.client() as client:
        entries = [fields for _, fields in client.xrange(topic)]
    lanes = [e[b"l"].decode() if b"l" in e else None for e in entries]
    decoded = EventDecoder().decode([e[b"v"] for e in entries], lanes)
    assert decoded.poison == []
    return decoded


def test_synthetic(mdp: Mdp, server: RedisServer) -> None:
    command = ["stream", "produce", "--provider", "synthetic", "--symbols", "spy,qqq", "--rate", "0"]
    command += ["--limit", "5000", "--seed", "4", "--start-time", "2025-01-02T03:04:05Z", "--json"]
    summary = mdp(*command).summary
    assert (summary["taken"], summary["published"], summary["provider"]) == (5000, 5000, "synthetic")
    first = stored(server).batch
    assert {s.symbol for s in first.series} == {"SPY", "QQQ"}
    assert int(first.src_ts[0]) == parse_time("2025-01-02T03:04:05Z")
    mdp(*command)
    both = stored(server).batch
    assert len(both) == 10_000
    assert np.array_equal(both.c[:5000], both.c[5000:]), "the same seed, the same prices"
    assert np.array_equal(both.src_ts[:5000], both.src_ts[5000:])


def test_synthetic_for_people(mdp: Mdp) -> None:
    ended = mdp("stream", "produce", "--provider", "synthetic", "--rate", "200", "--duration", "500ms")
    assert ended.code == 0
    assert ended.out == ""
    assert "100 events of synthetic on mdp.events in " in ended.err


def test_synthetic_disturbed(mdp: Mdp, server: RedisServer) -> None:
    mdp(
        *(
            "stream",
            "produce",
            "--provider",
            "synthetic",
            "--rate",
            "0",
            "--limit",
            "20000",
            "--codec",
            "msgpack",
        ),
        *("--disorder", "5ms", "--duplicates", "0.1", "--late", "0.01", "--gaps", "0.1", "--seed", "1"),
        *("--start-time", "2025-01-02"),
    )
    batch = stored(server).batch
    assert len(batch) > 21_000
    behind = np.maximum.accumulate(batch.src_ts) - batch.src_ts
    assert behind.max() > 5_000_000


@pytest.mark.parametrize("codec", ["frame", "json", "msgpack"])
def test_a_dataset_goes_live(mdp: Mdp, server: RedisServer, tmp_path: Path, codec: str) -> None:
    archive = tmp_path / "spy.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr(
            "20131007_spy_Trade_Tick.csv",
            "".join(f"{34_200_000 + i},1674100,{i},P,2000,0\n" for i in range(1000)),
        )
    command = ["stream", "produce", "--provider", "dataset", "--dataset", str(archive), "--preset", "lean"]
    assert mdp(*command, "--codec", codec, "--json").summary["published"] == 1000
    decoded = stored(server)
    assert set(decoded.lanes or []) <= {None}
    assert decoded.batch.v.tolist() == list(range(1000))
    assert decoded.batch.series[0].provider == "lean"
    assert mdp(*command, "--limit", "7", "--provider-name", "quant", "--json").summary["provider"] == "quant"
    assert "quant" in {s.provider for s in stored(server).batch.series}


def real(name: str) -> str:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set MDP_DATA to the folder of the market data")
    return str(path)


def test_a_replay_of_real_days(mdp: Mdp, server: RedisServer) -> None:
    files = [real(f"tick_{n}_trade.zip") for n in ("spy_20131007", "ibm_20131007", "ibm_20131008")]
    given = [x for file in files for x in ("--dataset", file)]
    summary = mdp("stream", "replay", *given, "--preset", "lean", "--json").summary
    assert summary["published"] == 250_601 + 24_293 + 33_381
    run = summary["run"]
    decoded = stored(server)
    assert len(decoded.batch) == summary["published"]
    assert np.all(np.diff(decoded.batch.src_ts) >= 0)
    assert set(decoded.lanes or []) == {f"replay/{run}/lean"}
    assert [name for _, name in decoded.ends] == [f"replay/{run}/lean"]
    assert decoded.ends[0][0] == len(decoded.lanes or []) - 1


def test_a_range_and_the_whole_windows_within(mdp: Mdp, server: RedisServer) -> None:
    file = real("tick_spy_20131007_trade.zip")
    command = ["stream", "replay", "--dataset", file, "--preset", "lean", "--json"]
    command += ["--from", "2013-10-07T10:00:30-04:00", "--to", "2013-10-07T14:05:30"]
    first = mdp(*command).summary
    whole = stored(server).batch
    assert len(whole) == first["published"] == 5469
    assert whole.src_ts.min() >= parse_time("2013-10-07T14:00:30Z")
    assert whole.src_ts.max() < parse_time("2013-10-07T14:05:30Z")
    second = mdp(*command, "--window", "1m", "--force").summary
    decoded = stored(server)
    cut = decoded.batch.take(np.arange(len(whole), len(decoded.batch)))
    assert second["published"] == len(cut) < len(whole)
    assert cut.src_ts.min() >= parse_time("2013-10-07T14:01:00Z")
    assert cut.src_ts.max() < parse_time("2013-10-07T14:05:00Z")
    assert [name for _, name in decoded.ends] == [
        f"replay/{first['run']}/lean",
        f"replay!/{second['run']}/lean",
    ]
    assert str(first["run"]) < str(second["run"]), "names of runs sort"


def test_bad_rows_of_a_file(mdp: Mdp, server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "streaming.yaml").write_text(
        "version: 1\ndatasets:\n  ticks:\n    path: ticks.csv\n    columns: {time: t, symbol: s, price: p, volume: v}\n"
    )
    (tmp_path / "ticks.csv").write_text(
        "t,s,p,v\n2025-01-02T03:04:05Z,A,1,1\n2025-01-02T03:04:06Z,A,-x,1\n2025-01-02T03:04:07Z,A,1,1\n"
    )
    command = ["stream", "replay", "--config", "streaming.yaml", "--dataset", "ticks"]
    ended = mdp(*command)
    assert ended.code == 1
    assert ended.err.strip().splitlines()[-1] == (
        "mdp: ticks.csv:3 is no event: price '-x' is not a number; correct it, or go on without it by "
        "--bad-rows dlq or skip"
    )
    assert mdp(*command, "--bad-rows", "skip", "--json").summary["bad_rows"] == 1
    assert mdp(*command, "--bad-rows", "dlq", "--json").summary["published"] == 2
    with server.client() as client:
        ((_, letter),) = client.xrange(TOPIC + ".dlq")
    found = decode_dead_letter(letter[b"v"])
    assert (found.offset, found.reason, found.value) == (
        "ticks.csv:3",
        "price '-x' is not a number",
        b"2025-01-02T03:04:06Z,A,-x,1",
    )


PRODUCE = ("stream", "produce", "--provider")
REPLAY = ("stream", "replay", "--dataset")
WRONG = [
    ((*PRODUCE, "ibkr"), 2, "there is no provider 'ibkr'; use one of dataset, synthetic"),
    ((*PRODUCE, "synthetic", "--rate", "-1"), 2, "--rate: must be 0 (as fast as possible) or more"),
    ((*PRODUCE, "synthetic", "--limit", "-5"), 2, "--limit: must be 0 or more"),
    ((*PRODUCE, "synthetic", "--seed", "-5"), 2, "--seed"),
    ((*PRODUCE, "synthetic", "--symbols", "A,A"), 2, "--symbols"),
    ((*PRODUCE, "synthetic", "--duration", "soon"), 2, "--duration: must be a duration such as"),
    ((*PRODUCE, "synthetic", "--start-time", "noon"), 2, "--start-time: 'noon' is no time"),
    ((*PRODUCE, "synthetic", "--codec", "xml"), 2, "--codec"),
    ((*PRODUCE, "synthetic", "--bad-rows", "eat"), 2, "--bad-rows: must be fail, dlq or skip"),
    ((*PRODUCE, "synthetic", "--duplicates", "2"), 2, "--duplicates"),
    ((*PRODUCE, "synthetic", "--late", "2"), 2, "--late: must be a share"),
    ((*PRODUCE, "dataset"), 2, "needs a file or the name of a configured dataset; add --dataset"),
    ((*PRODUCE, "dataset", "--dataset", "none.zip", "--preset", "lean"), 1, "there is no file none.zip"),
    ((*REPLAY, "nope"), 2, "there is no dataset 'nope' in the configuration, nor a file of that name"),
    ((*REPLAY, "x.zip", "--preset", "learn"), 2, "there is no preset 'learn'; use --preset lean"),
    (
        (*REPLAY, "x", "--from", "2025-01-02", "--to", "2025-01-01"),
        2,
        "--from 2025-01-02 is not before --to 2025-01-01",
    ),
    ((*REPLAY, "x", "--from", "yesterday"), 2, "--from: 'yesterday' is no time"),
    ((*REPLAY, "x", "--speed", "fast"), 2, "--speed: must be max or a number above 0"),
    ((*REPLAY, "x", "--speed", "0"), 2, "--speed: must be max or a number above 0"),
    ((*REPLAY, "x", "--window", "1x"), 2, "--window: must be a duration"),
    (
        (*REPLAY, "x", "--from", "2025-01-01T00:00:30Z", "--to", "2025-01-01T00:01:30Z", "--window", "1m"),
        2,
        "no whole window of 1m lies from",
    ),
    ((*REPLAY, "store", "--interval", "1m"), 2, "stored bars are replayed by range; add --from and --to"),
    ((*REPLAY, "store", "--from", "2025-01-01", "--to", "2025-01-02"), 2, "add --interval"),
    ((*REPLAY, "store", "--dataset", "x.zip", "--preset", "lean"), 2, "give --dataset store alone"),
]


@pytest.mark.parametrize(("command", "code", "said"), WRONG, ids=[" ".join(c[2:]) for c, _, _ in WRONG])
def test_wrong_invocations_are_one_sentence(mdp: Mdp, command: tuple[str, ...], code: int, said: str) -> None:
    ended = mdp(*command)
    assert (ended.code, ended.out) == (code, "")
    (line,) = ended.err.strip().splitlines()
    assert line.startswith("mdp: ")
    assert said in line


def test_a_bus_that_is_not_there(mdp: Mdp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URI", "redis://:secret-word@127.0.0.1:1/0")
    ended = mdp(*PRODUCE, "synthetic", "--limit", "1")
    assert ended.code == 1
    assert "cannot be reached" in ended.err
    assert "secret-word" not in ended.err


async def test_stored_bars_are_events_in_time_order(store: StoreClient) -> None:
    claim = await store.claim("t", "g", 0, "me")
    many = bars(3000, symbols=["B", "A"])
    await store.commit(flush(claim, 1, many))
    await store.commit(flush(claim, 2, bars(10, symbols=["A"], provider="alt", start=T0 + 40_000 * 60 * S)))
    end = T0 + 50_000 * 60 * S
    found = [b async for b in StoredBars(store, "1m", T0 + 60 * S, end).batches()]
    events = EventBatch.concat(found)
    assert len(found) > 3
    assert np.all(np.diff(events.src_ts) >= 0)
    assert len(events) == 2 * 2999 + 10
    bar = next(e for e in events.events() if e.symbol == "A" and e.src_ts == T0 + 120 * S)
    want = next(b for b in many.bars() if b.symbol == "A" and b.ts == T0 + 120 * S)
    assert (bar.kind, bar.interval, bar.provider) == ("bar", "1m", "sim")
    assert (bar.o, bar.h, bar.l, bar.c, bar.v) == (want.open, want.high, want.low, want.close, want.volume)
    some = StoredBars(store, "1m", T0, end, ("A",), "alt")
    assert [len(b) async for b in some.batches()] == [10]
    assert some.name == "alt"


def test_stored_bars_are_replayed(
    mdp: Mdp, server: RedisServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    async def fill() -> None:
        async with await StoreClient.connect(database) as store:
            claim = await store.claim("t", "g", 0, "me")
            await store.commit(flush(claim, 1, bars(100, symbols=["A"])))

    asyncio.run(fill())
    monkeypatch.setenv("DATABASE_URL", database)
    summary = mdp(
        *("stream", "replay", "--dataset", "store", "--interval", "60s", "--json"),
        *("--from", "2023-11-14", "--to", "2023-11-15"),
    ).summary
    decoded = stored(server)
    assert summary["published"] == len(decoded.batch) > 0
    assert {(s.kind, s.interval, s.provider) for s in decoded.batch.series} == {("bar", "1m", "sim")}
    assert [name for _, name in decoded.ends] == [f"replay/{summary['run']}/sim"]
