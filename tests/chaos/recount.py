"""Counts everything again when a scenario has ended, and compares: the table and the topics with the oracles."""

from __future__ import annotations

import polars as pl

from tests.chaos import audit, oracle, signals_audit, signals_oracle
from tests.chaos.deployment import PARTITIONS, WINDOW_NS, Deployment
from tests.chaos.report import Report, SignalsReport


async def recount(d: Deployment, report: Report) -> pl.DataFrame:
    """Compare the table and the topic with the oracle; the bars of the table."""
    assert d.load is not None
    want = oracle.expected(d.load, d.until, WINDOW_NS)
    table = await audit.stored(d.servers.postgres_url, d.plan.name)
    async with d.servers.open_bus() as bus:
        topic = await audit.published(bus, d.bars_topic, PARTITIONS, d.plan.name)
        letters = await audit.dead_letters(bus, d.topic)
    difference = oracle.compare(want.bars, table)
    report.events, report.copies = want.events, want.copies
    report.bars, report.bar_records = len(table), topic.records
    report.amended_bars = len(table.filter(table["revision"] > 1))
    report.lost, report.duplicated = difference.lost, difference.duplicated
    report.wrong_bars = difference.wrong
    if not difference.none:
        report.failures.append(
            f"{difference.wrong} bars differ from the oracle, {difference.lost} events lost, "
            f"{difference.duplicated} duplicated:\n{difference.rows}"
        )
    missing = len(table.join(topic.newest, on=list(audit.COLUMNS), how="anti", nulls_equal=True))
    extra = len(topic.newest.join(table, on=list(audit.COLUMNS), how="anti", nulls_equal=True))
    report.wrong_published = max(missing, extra)
    if missing or extra or topic.contradictions:
        report.failures.append(
            f"{missing} bars of the table are not the newest on the topic, {extra} on the topic are not in the "
            f"table, {topic.contradictions} were published with two contents"
        )
    if letters:
        report.failures.append(f"{letters} dead letters, and every event was good")
    return table


async def recount_signals(d: Deployment, bars: pl.DataFrame, failures: list[str]) -> SignalsReport:
    """Compare the signals in the table and on the topic with the recount from ``bars``, the stored ones."""
    want = signals_oracle.wanted(bars, d.plan.events)
    table = await signals_audit.stored(d.servers.postgres_url, d.plan.name)
    async with d.servers.open_bus() as bus:
        topic = await signals_audit.published(bus, d.signals_topic, PARTITIONS, d.plan.name)
        letters = await audit.dead_letters(bus, d.bars_topic)
    difference = signals_oracle.compare(want, table)
    found = SignalsReport(
        fenced=d.inferrers.fenced(),
        flushes=d.inferrers.watch.flushes,
        signals=len(table),
        by_name=dict(sorted(table["name"].value_counts().rows())),
        withdrawn=int(table["withdrawn"].sum()),
        records=topic.records,
        unsure=len(want.unsure),
        lost=difference.lost,
        doubled=difference.doubled,
        unwanted=difference.unwanted,
        wrong=difference.wrong,
        recovery_s=d.inferrers.watch.recoveries,
    )
    if not difference.none:
        failures.append(
            f"{difference.lost} signals lost, {difference.doubled} doubled, {difference.unwanted} that the rules do "
            f"not give, {difference.wrong} with other values:\n{difference.rows}"
        )
    missing = table.join(topic.newest, on=table.columns, how="anti", nulls_equal=True)
    extra = topic.newest.join(table, on=table.columns, how="anti", nulls_equal=True)
    found.wrong_published = max(len(missing), len(extra))
    if found.wrong_published:
        failures.append(
            f"{len(missing)} signals of the table are not the newest on the topic, {len(extra)} on the topic are not "
            f"in the table:\n{missing.head(6)}\n{extra.head(6)}"
        )
    if not found.fenced:
        failures.append("no write of a stopped infer was refused")
    if not found.withdrawn or len(found.by_name) < signals_oracle.NAMES:
        failures.append(f"the load is too tame: {found.withdrawn} withdrawn, {found.by_name}")
    if letters:
        failures.append(f"{letters} dead letters of bars, and every bar was good")
    return found
