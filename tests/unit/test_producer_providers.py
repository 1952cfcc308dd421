"""Providers by name: ours, and those of installed packages."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from market_data_core.batch import EventBatch
from market_data_core.config import Settings
from market_data_core.errors import UsageError
from market_data_pipeline.producers import provider
from market_data_pipeline.producers.counts import Counts, ProducerObserver
from market_data_pipeline.producers.progress import note, shown
from market_data_pipeline.producers.provider import ProviderRequest, load_provider, provider_names

PACKAGE = '''
from market_data_core.batch import EventBatch
from market_data_core.events import StreamEvent


class Coins:
    """The page of twenty lines: one event for each symbol asked for."""

    name = "coins"
    can_wait = True

    def __init__(self, request):
        self.symbols = request.symbols or ("BTC",)

    def batches(self):
        for i, symbol in enumerate(self.symbols):
            yield EventBatch.from_events(
                [StreamEvent(self.name, symbol, "tick", "1s", i * 10**9, 0, 1.0, 1.0, 1.0, 1.0, 1.0, i)]
            )
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with providers, as pip leaves it."""
    (tmp_path / "coin_feed.py").write_text(PACKAGE)
    about = tmp_path / "coin_feed-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: coin-feed\nVersion: 1.0\n")
    points = (
        "[mdp.providers]\ncoins = coin_feed:Coins\nbroken = no_such_module:X\nempty = coin_feed:Nothing\n"
    )
    (about / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.usefixtures("installed")
def test_an_installed_provider_is_found_by_its_name() -> None:
    assert {"coins", "dataset", "synthetic"} <= set(provider_names())
    coins = load_provider("coins")(ProviderRequest(Settings(), symbols=("BTC", "ETH")))
    batches = list(coins.batches())  # type: ignore[arg-type]
    assert [b.series[0].symbol for b in batches if isinstance(b, EventBatch)] == ["BTC", "ETH"]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["broken", "empty"])
def test_a_provider_that_cannot_be_imported_says_so(name: str) -> None:
    with pytest.raises(
        UsageError, match=f"the provider '{name}' .* cannot be imported: .*; reinstall its package"
    ):
        load_provider(name)


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(UsageError, match="there is no provider 'ibkr'; use one of dataset, synthetic"):
        load_provider("ibkr")


def test_a_provider_is_imported_when_it_is_asked_for() -> None:
    assert set(provider._BUILT_IN) == {"dataset", "synthetic"}
    for name, path in provider._BUILT_IN.items():
        module, _, _ = path.partition(":")
        kept = {m: sys.modules.pop(m) for m in list(sys.modules) if m == module}
        assert callable(load_provider(name))
        sys.modules.update(kept)


def test_what_is_shown_beside_the_count() -> None:
    counts = Counts("p", "t", newest=1_700_000_000 * 10**9, spool_events=1234, dropped=5, bad_rows=6)
    assert note(counts) == (
        "2023-11-14 22:13:20  [yellow]1,234 on disk, the bus is away[/]  [red]5 dropped[/]  [yellow]6 bad rows[/]"
    )
    assert note(Counts("p", "t")) == ""


def test_without_a_terminal_nothing_is_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    told = ProducerObserver()
    with shown("p", 10, told, on_terminal=False) as observer:
        assert observer is told
        observer.published(Counts("p", "t"), 3)
    assert capfd.readouterr() == ("", "")


def test_on_a_terminal_the_count_is_drawn_and_told_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")

    class Counting(ProducerObserver):
        events = 0

        def published(self, counts: Counts, events: int) -> None:
            self.events += events

    told = Counting()
    with shown("synthetic", 10_000, told, on_terminal=True) as observer:
        counts = Counts("synthetic", "t")
        for _ in range(3):
            counts.published += 1500
            observer.published(counts, 1500)
        counts.dropped = 7
        observer.changed(counts)
    assert told.events == 4500
    drawn = capfd.readouterr().err
    assert "synthetic" in drawn
    assert "4,500 events" in drawn
