"""What the seed's rules say of bars, by pandas and plain Python: shares no code with what makes features."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

YEAR_S: Final = 252 * 6.5 * 3600
BORDER: Final = 1e-9
"""Closer to a threshold than this, rounding decides; such a signal is left out of the comparison."""


def features(bars: pd.DataFrame, interval_s: int) -> pd.DataFrame:
    """momentum, volatility and rsi of one symbol's bars (columns ``ts`` in s, ``close``), by their definitions."""
    window = bars["ts"].to_numpy() // interval_s
    close = bars["close"].to_numpy()
    momentum, volatility, rsi = (np.full(len(bars), np.nan) for _ in range(3))
    for i in range(len(bars)):
        first = int(np.searchsorted(window, window[i] - 9))
        if i > first:
            momentum[i] = close[i] / close[first] - 1
        first = int(np.searchsorted(window, window[i] - 19))
        if i - first >= 2:
            returns = pd.Series(np.log(close[first : i + 1])).diff().dropna()
            volatility[i] = returns.std(ddof=1) * np.sqrt(YEAR_S / interval_s)
        rsi[i] = wilder(close[int(np.searchsorted(window, window[i] - 279)) : i + 1], 14)
    return bars.assign(momentum=momentum, volatility=volatility, rsi=rsi)


def wilder(close: np.ndarray[tuple[int], np.dtype[np.float64]], period: int) -> float:
    """The relative strength index after the last of ``close``; NaN with fewer than ``period`` changes."""
    changes = np.diff(close)
    if len(changes) < period:
        return float("nan")
    gain = sum(max(c, 0.0) for c in changes[:period]) / period
    loss = sum(max(-c, 0.0) for c in changes[:period]) / period
    for change in changes[period:].tolist():
        gain = (gain * (period - 1) + max(change, 0.0)) / period
        loss = (loss * (period - 1) + max(-change, 0.0)) / period
    if gain == 0 and loss == 0:
        return 50.0
    return 100.0 - 100.0 / (1.0 + gain / loss) if loss > 0 else 100.0


def seed_signals(bars: pd.DataFrame, interval_s: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(symbol, at, name, value, score, price) of what fires, and of what is too close to its threshold to tell."""
    frames = [features(of, interval_s).assign(symbol=s) for s, of in bars.groupby("symbol")]
    table = pd.concat(frames)
    rules = (
        ("price_momentum_up", "momentum", 0.01, 1, 1.0, 0.8),
        ("price_momentum_down", "momentum", -0.01, -1, -1.0, 0.8),
        ("high_volatility", "volatility", 0.3, 1, 0.0, 0.9),
        ("rsi_overbought", "rsi", 70.0, 1, -1.0, 0.7),
        ("rsi_oversold", "rsi", 30.0, -1, 1.0, 0.7),
    )
    fired: list[pd.DataFrame] = []
    unsure: list[pd.DataFrame] = []
    for name, feature, threshold, sign, value, score in rules:
        beyond = (table[feature] - threshold) * sign
        close = beyond.abs() <= BORDER * max(abs(threshold), 1.0)
        for rows, out in ((table[(beyond > 0) & ~close], fired), (table[close], unsure)):
            out.append(
                pd.DataFrame(
                    {
                        "symbol": rows["symbol"],
                        "at": rows["ts"] + interval_s,
                        "name": name,
                        "value": value,
                        "score": score,
                        "price": rows["close"],
                    }
                )
            )
    return pd.concat(fired, ignore_index=True), pd.concat(unsure, ignore_index=True)
