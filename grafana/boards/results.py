"""Store Operations, Feature Computation, and Inference Engine."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.panels import board, chart, figure, filled, timeline
from grafana.queries import WINDOW, quantiles, rate


def store_operations() -> Dashboard:
    page = board("store-operations", "Store Operations", "What the database does for us.")
    seconds = "store_write_duration_seconds"
    panels = (
        figure(
            "Write duration, p95",
            "One transaction.",
            "s",
            quantiles(seconds, "", 0.95)[0][0],
            warn=0.5,
            bad=2,
        ),
        figure("Transactions", "Commits a second.", "ops", rate(f"{seconds}_count")),
        figure("Rows", "Rows a second, whatever became of them.", "rowsps", rate("store_rows_total")),
        figure(
            "Errors",
            "Failed calls a second; each is made again.",
            "ops",
            rate("errors_total", '@, component="store"'),
            bad=0.01,
        ),
        chart("Write duration", "One transaction, by table.", "s", *quantiles(seconds, "table")),
        chart(
            "Transactions",
            "Commits, by table.",
            "ops",
            (rate(f"{seconds}_count", by="table"), "{{table}}"),
        ),
        chart(
            "Rows",
            "By what the store did with them. `refused`: a stored bar was made of more events.",
            "rowsps",
            (rate("store_rows_total", by="table, result"), "{{table}} {{result}}"),
            stacked=True,
        ),
        chart(
            "Errors and retries",
            "Calls that failed and are made again.",
            "ops",
            (rate("errors_total", '@, component="store"', by="reason"), "{{reason}}"),
            (rate("retries_total", '@, component="store"'), "retries"),
        ),
        chart(
            "Fenced writes",
            "Writes refused to a worker that was replaced.",
            "short",
            (f"sum by (topic) (increase(stream_fenced_writes_total{{@}}{WINDOW}))", "{{topic}}"),
            whole=True,
        ),
        chart(
            "Time spent writing",
            "Share of the time in which a commit is under way.",
            "percentunit",
            (rate(f"{seconds}_sum", by="instance, table"), "{{instance}} {{table}}"),
        ),
    )
    return filled(page, panels)


def feature_computation() -> Dashboard:
    page = board("feature-computation", "Feature Computation", "Rolling features of bars.")
    seconds = "features_update_duration_seconds"
    panels = (
        figure("Update duration, p95", "Of one bar.", "s", quantiles(seconds, "", 0.95)[0][0]),
        figure("Updates", "Bars a second.", "ops", rate(f"{seconds}_count")),
        figure(
            "Active windows",
            "Intervals of bars that features are computed of.",
            "short",
            f"count(count by (window) ({seconds}_count{{@}}))",
        ),
        figure(
            "Active symbols",
            "Symbols that features are computed of; those beyond telemetry.max_symbols are one.",
            "short",
            f"count(count by (symbol) ({seconds}_count{{@}}))",
        ),
        chart("Update duration", "Of one bar, by interval.", "s", *quantiles(seconds, "window")),
        chart("Updates", "Bars, by interval.", "ops", (rate(f"{seconds}_count", by="window"), "{{window}}")),
        chart(
            "Slowest symbols",
            "Mean duration of an update, the ten slowest.",
            "s",
            (
                f"topk(10, {rate(f'{seconds}_sum', by='symbol')} / {rate(f'{seconds}_count', by='symbol')})",
                "{{symbol}}",
            ),
        ),
        chart(
            "Busiest symbols",
            "Updates, the ten most frequent.",
            "ops",
            (f"topk(10, {rate(f'{seconds}_count', by='symbol')})", "{{symbol}}"),
            wide=True,
        ),
        chart(
            "Time spent",
            "Share of the time that features take, by interval.",
            "percentunit",
            (rate(f"{seconds}_sum", by="instance, window"), "{{instance}} {{window}}"),
            wide=True,
        ),
    )
    return filled(page, panels)


def inference_engine() -> Dashboard:
    page = board("inference-engine", "Inference Engine", "From features to signals.")
    seconds = "inference_eval_duration_seconds"
    panels = (
        figure("Evaluation, p95", "One batch.", "s", quantiles(seconds, "", 0.95)[0][0], warn=0.1, bad=1),
        figure("Rows", "Bars evaluated a second.", "rowsps", rate("inference_evaluated_rows_total")),
        figure("Signals", "New or changed signals a second.", "ops", rate("signals_emitted_total")),
        figure(
            "Open breakers",
            "Adapters that are left alone for now.",
            "short",
            'sum(inference_breaker_state{@, state="open"})',
            bad=1,
        ),
        chart("Evaluation", "One batch, by adapter.", "s", *quantiles(seconds, "adapter")),
        chart(
            "Evaluations",
            "Batches, by adapter.",
            "ops",
            (rate(f"{seconds}_count", by="adapter"), "{{adapter}}"),
        ),
        chart(
            "Rows",
            "Bars evaluated, by adapter.",
            "rowsps",
            (rate("inference_evaluated_rows_total", by="adapter"), "{{adapter}}"),
        ),
        chart(
            "Signals",
            "New or changed signals, by name and adapter.",
            "ops",
            (rate("signals_emitted_total", by="name, adapter"), "{{name}} {{adapter}}"),
            stacked=True,
        ),
        timeline(
            "Breaker",
            "What the breaker of each adapter is.",
            ("max by (adapter, state) (inference_breaker_state{@})", "{{adapter}} {{state}}"),
        ),
        chart(
            "Failures",
            "Batches without decisions, by reason.",
            "ops",
            (rate("errors_total", '@, component="inference"', by="reason"), "{{reason}}"),
        ),
    )
    return filled(page, panels)
