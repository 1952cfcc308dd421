"""The page of the contract lists every behaviour that the suites test, on every bus."""

from __future__ import annotations

import re

from tests.conformance.__main__ import BUSES, FOLDER, SUITES, behaviours, in_words
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "bus-contract.md").read_text("utf-8")


def test_the_page_of_the_contract_has_every_behaviour_once() -> None:
    rows = [row.split(" | ") for row in re.findall(r"^\| (.+) \|$", PAGE, re.M)]
    heads = [[title, *BUSES] for title in SUITES]
    assert [row for row in rows if row[0] in SUITES] == heads
    lines = [row for row in rows if row[0] not in SUITES]
    assert [row[0] for row in lines] == [in_words(n) for suite in SUITES.values() for n in behaviours(suite)]
    assert {tuple(sorted(set(row[1:]))) for row in lines} <= {("yes",), ("-", "yes")}


def test_every_bus_is_in_the_table() -> None:
    tested = {path.name for path in FOLDER.glob("test_*.py")} - {"test_adapters.py"}
    assert tested == set(BUSES.values())
