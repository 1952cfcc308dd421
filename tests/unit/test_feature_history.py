"""BarHistory: what it holds, what it says it holds, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from market_data_core.batch import I32, I64, BarBatch
from market_data_core.events import BarSeries
from market_data_pipeline.features.history import ALWAYS, EMPTY, NO_BAR, BarHistory
from tests.unit.feature_oracle import INTERVAL, T0, Candle, batch
from tests.unit.strategies import SEEDS

REACH = 40


def bars(*windows: int, symbol: str = "SPY", revision: int = 1) -> BarBatch:
    return batch([Candle(w, 100.0 + w, symbol=symbol, revision=revision) for w in windows])


def ts(*windows: int) -> I64:
    return T0 + np.array(windows, np.int64) * INTERVAL


def one(history: BarHistory, symbol: str = "SPY", times: int = 1) -> I32:
    return np.repeat(history.codes([BarSeries("sim", symbol, "2s")]), times)


def held(history: BarHistory, symbol: str = "SPY") -> list[int]:
    """The windows that have a bar."""
    window = np.arange(-2 * history.width, 8 * history.width) + T0 // INTERVAL
    found = history.held(one(history, symbol, len(window)), window)
    return [int(w) - T0 // INTERVAL for w in window[found]]


def closes(history: BarHistory, *windows: int) -> list[float]:
    column = history.column("close")
    return [float(column[(T0 // INTERVAL + w) % history.width, 0]) for w in windows]


def test_what_moves_out_is_gone_and_what_is_between_is_empty() -> None:
    history = BarHistory(INTERVAL, REACH)
    width = history.width
    assert width == 128
    history.put(bars(0, 1, 2, 5))
    history.put(bars(width, width + 2))
    assert held(history) == [5, width, width + 2]
    history.put(bars(5 * width))
    assert held(history) == [5 * width]
    assert np.isnan(closes(history, 5 * width - 1, 5 * width + 2)).all()
    history.put(bars(5 * width + 1, symbol="IBM"))
    history.put(bars(7 * width, symbol="IBM"))
    assert held(history, "IBM") == [7 * width]
    assert held(history) == [5 * width], "each series moves on by itself"


def test_the_newest_revision_is_held() -> None:
    history = BarHistory(INTERVAL, REACH)
    history.put(batch([Candle(1, 3.0, revision=3), Candle(1, 2.0, revision=2)]))
    assert closes(history, 1) == [3.0]
    history.put(batch([Candle(1, 1.0, revision=1)]))
    assert closes(history, 1) == [3.0]
    history.put(batch([Candle(1, 4.0, revision=4), Candle(0, 9.0)]))
    history.put(batch([Candle(1, 5.0, revision=4), Candle(1, 6.0, revision=4)]))
    assert closes(history, 0, 1) == [9.0, 6.0]


def test_what_is_too_old_is_refused_and_nothing_of_the_batch_is_put() -> None:
    history = BarHistory(INTERVAL, REACH)
    history.put(bars(500))
    with pytest.raises(ValueError, match=r"a bar of SPY is 128 or more windows older .* by chunks\(\)"):
        history.put(bars(501, 500 - history.width))
    with pytest.raises(ValueError, match="older than the newest"):
        history.put(bars(501, 501 + history.width))
    assert held(history) == [500]
    history.put(bars(501 - history.width))
    assert held(history) == [501 - history.width, 500]


def test_another_interval_is_refused() -> None:
    history = BarHistory(INTERVAL, REACH)
    with pytest.raises(ValueError, match="SPY has bars of 1m, and this history holds 2s"):
        history.codes([BarSeries("sim", "SPY", "1m")])
    mixed = BarBatch.concat([bars(1), batch([Candle(1, 1.0, symbol="IBM")], "1m", 30 * INTERVAL)])
    with pytest.raises(ValueError, match="IBM has bars of 1m"):
        history.put(mixed)
    history.put(mixed.take(slice(0, 1)))
    assert (history.series, held(history)) == ((BarSeries("sim", "SPY", "2s"),), [1])


def test_covered() -> None:
    history = BarHistory(INTERVAL, REACH)
    code = one(history, times=4)
    asked = ts(REACH - 1, REACH, 1000, 1000 + history.width)
    assert not history.covered(code, asked).any(), "not loaded"
    history.mark_loaded(code[:1], int(ts(0)[0]))
    assert history.covered(code, asked).tolist() == [False, True, True, True]
    history.mark_loaded(code[:2], ts(200, 100))
    assert history.covered(code, asked).tolist() == [False, True, True, True], "what was loaded stays so"
    history.put(bars(1000))
    oldest = 1000 - history.width + REACH
    assert history.covered(code[:2], ts(oldest, oldest + 1)).tolist() == [False, True]
    history.forget(code[:1])
    assert not history.covered(code, asked).any()


def test_after_and_previous() -> None:
    history = BarHistory(INTERVAL, REACH)
    history.put(bars(0, 3, 10, 11, 60))
    history.put(bars(2, 4, symbol="IBM"))
    code, found = history.after(one(history, times=2), ts(3, 0), 8)
    assert (code.tolist(), found.tolist()) == ([0, 0, 0], ts(3, 10, 11).tolist())
    both = np.array([1, 0], np.int32)
    code, found = history.after(both, ts(2, 11), 1000)
    assert (code.tolist(), found.tolist()) == ([0, 1], ts(60, 4).tolist())
    assert len(history.after(both[:1], ts(4), 1000)[0]) == 0
    asked = ts(0, 3, 5, 11, 60, 51, 52)
    before = history.previous(one(history, times=len(asked)), asked)
    assert before.tolist() == [NO_BAR, *ts(0, 3, 10).tolist(), NO_BAR, ts(11)[0], NO_BAR]
    assert history.previous(one(history), ts(60), 49).tolist() == ts(11).tolist()


def test_a_code_that_was_forgotten_is_given_again_and_is_empty() -> None:
    history = BarHistory(INTERVAL, REACH)
    spy = bars(0, 1, 2)
    history.put(spy)
    history.forget(one(history))
    history.put(bars(1, symbol="IBM"))
    assert history.series == (BarSeries("sim", "IBM", "2s"),)
    assert held(history, "IBM") == [1]
    history.put(spy)
    assert history.codes_of(spy).tolist() == [1, 1, 1]
    assert (held(history), held(history, "IBM")) == ([0, 1, 2], [1])


def test_bars_that_do_not_begin_with_their_window() -> None:
    """A vendor's: the later one of a window is held, and its own time comes back."""
    history = BarHistory(INTERVAL, REACH)
    late, early = bars(3), bars(3)
    late.ts[:] += 7
    history.put(late)
    history.put(early)
    history.put(bars(5))
    assert history.previous(one(history), ts(5)).tolist() == late.ts.tolist()
    assert history.after(one(history), ts(1), 2)[1].tolist() == late.ts.tolist()


def test_columns_that_nobody_asked_for_are_not_held() -> None:
    history = BarHistory(INTERVAL, REACH, ("volume",))
    history.put(bars(1, 2))
    for name in EMPTY:
        if name in ALWAYS or name == "volume":
            assert history.column(name).shape[0] == history.width
        else:
            with pytest.raises(KeyError):
                history.column(name)


@given(SEEDS)
def test_chunks_can_be_put_and_nothing_that_they_need_is_dropped(seed: int) -> None:
    rng = np.random.default_rng(seed)
    windows = np.concatenate([np.arange(start, start + 700) for start in (0, 10_000)])
    candles = [Candle(int(w), 1.0, symbol=s) for s in ("A", "B") for w in windows if rng.random() < 0.6]
    rng.shuffle(candles)
    everything = batch(candles)
    history = BarHistory(INTERVAL, REACH)
    code = history.codes_of(everything)
    history.mark_loaded(np.unique(code), int(ts(-10_000)[0]))
    present = {(int(c), int(t)) for c, t in zip(code, everything.ts, strict=True)}
    seen = []
    for rows in history.chunks(code, everything.ts):
        history.put(everything.take(rows))
        assert history.covered(code[rows], everything.ts[rows]).all()
        for row in rows[:: max(1, len(rows) // 5)].tolist():
            past = everything.ts[row] // INTERVAL - np.arange(REACH + 1)
            found = history.held(np.repeat(code[row], len(past)), past)
            assert found.tolist() == [(int(code[row]), int(w) * INTERVAL) in present for w in past]
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(everything)))
