"""Streaming Overview, and Micro-batch Performance."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.panels import board, chart, figure, filled
from grafana.queries import WINDOW, quantiles, rate


def streaming_overview() -> Dashboard:
    page = board("streaming-overview", "Streaming Overview", "What comes in, and how far behind it is.")
    panels = (
        figure("Events in", "Events a second onto the bus.", "eps", rate("stream_events_ingested_total")),
        figure(
            "Consumer lag",
            "Age of the oldest record that was not handed to its consumer.",
            "ms",
            "max(stream_consumer_lag_ms{@})",
            warn=5000,
            bad=30_000,
        ),
        figure(
            "Watermark delay",
            "How far the slowest live lane is behind the clock.",
            "ms",
            "max(microbatch_watermark_delay_ms{@})",
        ),
        figure("Processes up", "Processes that answer.", "short", 'sum(up{@, job="mdp"})'),
        chart(
            "Event rate",
            "Events onto the bus, by provider.",
            "eps",
            (rate("stream_events_ingested_total", by="topic, provider"), "{{topic}} {{provider}}"),
            stacked=True,
        ),
        chart(
            "Throughput",
            "Events out of the bus, by what became of them.",
            "eps",
            (rate("microbatch_events_total", by="result"), "{{result}}"),
            stacked=True,
        ),
        chart(
            "Consumer lag",
            "Age of the oldest record not handed over, by consumer. `nobody`: of partitions without an owner.",
            "ms",
            ("max by (topic, group, consumer) (stream_consumer_lag_ms{@})", "{{group}} {{consumer}}"),
            whole=True,
        ),
        chart(
            "Records behind",
            "Records not handed over. A frame is one record of many events.",
            "short",
            ("max by (topic, group, consumer) (stream_consumer_lag_records{@})", "{{group}} {{consumer}}"),
            whole=True,
        ),
        chart(
            "Watermark delay",
            "How far each live lane is behind the clock. A lane that is silent falls behind without any fault.",
            "ms",
            ("max by (lane) (microbatch_watermark_delay_ms{@})", "{{lane}}"),
        ),
        chart(
            "Owned partitions",
            "Who has how many.",
            "short",
            ("stream_owned_partitions{@}", "{{instance}} {{topic}}"),
            stacked=True,
            whole=True,
        ),
        chart(
            "Spool",
            "Events on a producer's disk, since the bus did not take them.",
            "short",
            ("sum by (provider) (producer_spool_events{@})", "{{provider}}"),
            whole=True,
        ),
        chart(
            "Event loop delay",
            "How late a task is woken: what holds the loop up, holds everything up.",
            "s",
            *quantiles("event_loop_delay_seconds", "instance", 0.99),
        ),
        chart(
            "CPU",
            "CPU seconds a second.",
            "percentunit",
            (f"rate(process_cpu_seconds_total{{@}}{WINDOW})", "{{instance}}"),
        ),
    )
    return filled(page, panels)


def micro_batch() -> Dashboard:
    page = board("micro-batch", "Micro-batch Performance", "From events to bars: how fast and how many.")
    latency = "microbatch_window_latency_ms"
    panels = (
        figure(
            "Window latency, p95",
            "From the moment a window could be closed to its commit.",
            "ms",
            quantiles(latency, "", 0.95)[0][0],
        ),
        figure(
            "Window latency in windows, p95",
            "By the length of a window. The goal is 1.5 or less.",
            "short",
            f"{quantiles(latency, '', 0.95)[0][0]} / max(microbatch_window_length_ms{{@}})",
            warn=1,
            bad=1.5,
        ),
        figure("Bars", "Bars stored a second.", "rowsps", rate("microbatch_flush_rows")),
        figure(
            "Late events",
            "Events a second whose window was closed.",
            "eps",
            rate("microbatch_events_total", '@, result="late"'),
        ),
        chart(
            "Window latency",
            "From the moment a window could be closed to its commit. p95 is to stay below 1.5 windows.",
            "ms",
            *quantiles(latency),
            goal=("1.5 * max(microbatch_window_length_ms{@})", "1.5 windows"),
        ),
        chart(
            "Flush rate by symbol",
            "Commits that held bars of the symbol, the ten most frequent.",
            "ops",
            (f"topk(10, {rate('microbatch_flush_total', by='symbol')})", "{{symbol}}"),
        ),
        chart(
            "Batch size",
            "Bars of one commit, on average.",
            "short",
            (
                f"{rate('microbatch_flush_rows')} / "
                + rate("store_write_duration_seconds_count", '@, table="bars_ohlcv"'),
                "bars",
            ),
        ),
        chart(
            "Open windows",
            "Rows of (symbol, window) in memory, by instance.",
            "short",
            ("sum by (instance) (microbatch_open_windows{@})", "{{instance}}"),
            whole=True,
        ),
        chart(
            "Watermark delay in windows",
            "Behind the clock, less the allowed lateness, in windows. Above 1.5 while events come is too slow.",
            "short",
            (
                "max by (lane) ((microbatch_watermark_delay_ms{@} - on (instance) group_left () "
                "microbatch_allowed_lateness_ms{@}) / on (instance) group_left () microbatch_window_length_ms{@})",
                "{{lane}}",
            ),
            limit=1.5,
        ),
        chart(
            "Late and duplicate",
            "Events out of the ordinary, and the bars that they changed.",
            "eps",
            (
                rate("microbatch_events_total", '@, result=~"late|duplicate|expired"', by="result"),
                "{{result}}",
            ),
            (rate("microbatch_amended_total"), "bars amended"),
        ),
    )
    return filled(page, panels)
