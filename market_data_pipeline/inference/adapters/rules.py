"""Rules as an adapter: each condition asked of a whole table, and Python objects only for what fires."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from market_data_core.batch import I64, Mask
from market_data_core.events import BarSeries
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions
from market_data_pipeline.inference.rule import Rule
from market_data_pipeline.inference.templates import Template

NAME: Final = "rules"
MAX_NAME: Final = 64
"""Longest name of a signal; one that a long symbol makes longer is cut."""
_PRICE: Final = "price"


class Rules:
    """An :class:`~market_data_pipeline.inference.adapter.InferenceAdapter` of ``rules``.

    A signal has the rule's name, value and score; its ``meta`` has ``adapter``, ``window`` (the bar's interval),
    ``price`` (None where it is missing), and what the rule adds.
    """

    name = NAME
    blocking = False

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        used = dict.fromkeys([_PRICE])
        for rule in self._rules:
            used.update(dict.fromkeys(rule.features))
        self._features = tuple(used)
        self._varying = any(rule.name.varies for rule in self._rules)
        self._series: tuple[BarSeries, ...] = ()
        self._concerned: list[Mask | None] = []

    @property
    def features(self) -> tuple[str, ...]:
        """What the rules read, ``price`` first."""
        return self._features

    @property
    def needs_previous(self) -> bool:
        """Whether some rule has ``trigger: edge``."""
        return any(rule.edge for rule in self._rules)

    def decide(self, table: FeatureTable, wanted: I64) -> Decisions:
        """The signals of the ``wanted`` rows: in the order of the rows, and for one row in that of the rules.

        Where the names of two rules come to the same on one row, the later rule counts.
        """
        fired = [self._fired(rule, i, table, wanted) for i, rule in enumerate(self._rules)]
        row = np.concatenate(fired) if fired else np.empty(0, np.int64)
        if not len(row):
            return Decisions.none()
        names: list[str] = []
        metas: list[dict[str, Any]] = []
        for rule, rows in zip(self._rules, fired, strict=True):
            _describe(rule, table, rows, names, metas)
        order = np.argsort(row, kind="stable")
        if self._varying:
            order = order[_last(row[order].tolist(), [names[i] for i in order.tolist()])]
        which = np.repeat(np.arange(len(fired)), [len(rows) for rows in fired])[order]
        at = order.tolist()
        cooldown = np.array([rule.cooldown_ns for rule in self._rules], np.int64)
        return Decisions(
            row[order],
            [names[i] for i in at],
            np.array([rule.signal for rule in self._rules])[which],
            np.array([rule.score for rule in self._rules])[which],
            [metas[i] for i in at],
            cooldown[which] if cooldown.any() else None,
        )

    def close(self) -> None:
        """Nothing is held."""

    def _fired(self, rule: Rule, index: int, table: FeatureTable, wanted: I64) -> I64:
        """The rows of ``wanted`` for which the rule signals."""
        concerned = self._symbols(table.series)[index]
        rows = wanted if concerned is None else wanted[concerned[table.code[wanted]]]
        rows = rows[_holds(rule, table, rows)]
        if rule.edge and len(rows):
            before = table.previous[rows]
            there = np.flatnonzero(before >= 0)
            again = there[_holds(rule, table, before[there])]
            rows = np.delete(rows, again)
        return rows

    def _symbols(self, series: tuple[BarSeries, ...]) -> list[Mask | None]:
        """For each rule and series whether it concerns it, None for all."""
        if series is not self._series and series != self._series:
            self._concerned = [
                None
                if rule.symbols is None
                else np.array([rule.concerns(s.symbol) for s in series], np.bool_)
                for rule in self._rules
            ]
            self._series = series
        return self._concerned


def _holds(rule: Rule, table: FeatureTable, rows: I64) -> Mask:
    columns = {name: table.columns[name][rows] for name in rule.condition.features}
    return rule.condition.truth(columns, len(rows)).true


def _last(rows: list[int], names: list[str]) -> list[int]:
    """Where the last of each (row, name) is, in order."""
    return sorted({key: i for i, key in enumerate(zip(rows, names, strict=True))}.values())


def _printable(name: str) -> str:
    """A name with a symbol in it, as a signal can have it."""
    return "".join(c if c.isprintable() else "?" for c in name[:MAX_NAME])


def _describe(
    rule: Rule, table: FeatureTable, rows: I64, names: list[str], metas: list[dict[str, Any]]
) -> None:
    """Add a name and a ``meta`` for each of ``rows``."""
    prices = table.columns[_PRICE][rows]
    said = {name: table.columns[name][rows].tolist() for name in rule.said}
    finite = np.isfinite(prices).tolist()
    for i, (code, price) in enumerate(zip(table.code[rows].tolist(), prices.tolist(), strict=True)):
        series = table.series[code]
        meta: dict[str, Any] = {
            "adapter": NAME,
            "window": series.interval,
            "price": price if finite[i] else None,
        }
        texts: dict[str, str] = series._asdict() if rule.meta or rule.name.varies else {}
        if rule.meta:
            numbers = {name: values[i] for name, values in said.items()}
            for called, value in rule.meta:
                meta[called] = value.value(texts, numbers) if isinstance(value, Template) else value
        names.append(_printable(rule.name.render(texts, {})) if rule.name.varies else rule.name.text)
        metas.append(meta)
