"""What the progress line and the summary say."""

from __future__ import annotations

import pytest

from market_data_pipeline.backfill.bundle import Done, Outcome
from market_data_pipeline.backfill.progress import note, shown
from market_data_pipeline.backfill.totals import MOST_FAILURES, Totals


def test_what_a_bundle_adds() -> None:
    totals = Totals(tasks=3)
    totals.take(
        Done(
            [
                Outcome("A", "2025-01-01", inserted=3, amended=1),
                Outcome("B", "2025-01-01", skipped=True),
                Outcome("C", "2025-01-01", failure="no", unchanged=2, refused=4),
            ],
            events=9,
            duplicates=1,
            bad_rows=2,
            behind=3,
        )
    )
    summary = totals.summary()
    names = ("tasks", "done", "skipped", "failed", "events", "duplicates", "bad_rows", "behind_horizon")
    assert [summary[name] for name in names] == [3, 1, 1, 1, 9, 1, 2, 3]
    assert [summary[f"bars_{n}"] for n in ("inserted", "amended", "unchanged", "refused")] == [3, 1, 2, 4]
    assert summary["failures"] == [{"symbol": "C", "date": "2025-01-01", "reason": "no"}]
    assert "failures" not in totals.counters()


def test_failures_are_bounded() -> None:
    totals = Totals()
    for _ in range(MOST_FAILURES + 5):
        totals.fail(None, None, "no")
    assert (totals.failed, len(totals.failures)) == (MOST_FAILURES + 5, MOST_FAILURES)


def test_cpu_is_added_over_workers() -> None:
    totals = Totals(cpu={"a": 1.5, "b": 2.0})
    assert totals.summary()["cpu_seconds"] == 3.5
    assert "cpu" not in totals.summary()


@pytest.mark.parametrize(
    ("totals", "said"),
    [
        (Totals(), "0 events"),
        (Totals(events=3000, files=2, files_scanned=2), "3,000 events  1,500/s"),
        (Totals(files=7, files_scanned=2), "0 events  2 of 7 files scanned"),
        (Totals(failed=1, workers_lost=2), "0 events  [yellow]2 workers lost[/]  [red]1 failed[/]"),
    ],
)
def test_the_note(totals: Totals, said: str) -> None:
    assert note(totals, 2.0) == said


def test_the_line_is_drawn_on_a_terminal_alone(capsys: pytest.CaptureFixture[str]) -> None:
    totals = Totals(tasks=4, done=1)
    with shown("ticks", totals, on_terminal=False) as draw:
        draw()
    assert capsys.readouterr().err == ""
    with shown("ticks", totals, on_terminal=True) as draw:
        draw()
