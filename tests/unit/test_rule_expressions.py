"""Conditions, against Python's own parser and arithmetic on one row at a time."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from market_data_core.errors import ConfigError, ExpressionError
from market_data_pipeline.inference.expressions import MAX_DEPTH, Condition
from market_data_pipeline.inference.tokens import MAX_LENGTH

NAMES: Final = ("rsi", "momentum", "volatility", "close", "vwap_1m")
MISTAKES = yaml.safe_load((Path(__file__).parent / "expression_mistakes.yaml").read_text("utf-8"))

# --- an oracle: Python's parser, one row, None for what is missing ---------------------------------------------

_ORDER: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
}
_SUMS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Mod: lambda a, b: a % b,
}
_CALLS: dict[str, Callable[..., float]] = {"abs": abs, "min": min, "max": max, "sqrt": math.sqrt}


def _number(node: ast.expr, row: dict[str, float]) -> float | None:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int | float)
        return float(node.value)
    if isinstance(node, ast.Name):
        return row[node.id] if math.isfinite(row[node.id]) else None
    if isinstance(node, ast.UnaryOp):
        inner = _number(node.operand, row)
        return None if inner is None else -inner if isinstance(node.op, ast.USub) else inner
    if isinstance(node, ast.BinOp):
        nodes: list[ast.expr] = [node.left, node.right]
        call: Callable[..., float] = _SUMS[type(node.op)]
    else:
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        nodes, call = node.args, _CALLS[node.func.id]
    parts = [number for n in nodes if (number := _number(n, row)) is not None]
    if len(parts) < len(nodes):
        return None
    try:
        result = call(*parts)
    except (ZeroDivisionError, ValueError):
        return None
    return result if math.isfinite(result) else None


def _truth(node: ast.expr, row: dict[str, float]) -> bool | None:
    if isinstance(node, ast.UnaryOp):
        inner = _truth(node.operand, row)
        return None if inner is None else not inner
    if isinstance(node, ast.BoolOp):
        parts = [_truth(v, row) for v in node.values]
        decides = isinstance(node.op, ast.Or)
        return decides if decides in parts else None if None in parts else not decides
    assert isinstance(node, ast.Compare)
    numbers = [_number(n, row) for n in (node.left, *node.comparators)]
    pairs = zip(node.ops, numbers, numbers[1:], strict=False)
    steps = [None if a is None or b is None else _ORDER[type(op)](a, b) for op, a, b in pairs]
    return False if False in steps else None if None in steps else True


def _arithmetic(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("{} {} {}".format, inner, st.sampled_from("+-*/%"), inner),
        st.builds("({})".format, inner),
        st.builds("{}{}".format, st.sampled_from("+-"), inner),
        st.builds("{}({})".format, st.sampled_from(("abs", "sqrt")), inner),
        st.builds("{}({},{})".format, st.sampled_from(("min", "max")), inner, inner),
    )


def _logic(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("{} {} {}".format, inner, st.sampled_from(("and", "or")), inner),
        st.builds("({})".format, inner),
        st.builds("not {}".format, inner),
    )


_LEAVES = st.sampled_from((*NAMES, "0", "1", "2.5", ".5", "70.", "1e-3", "1E308"))
_NUMBERS = st.recursive(_LEAVES, _arithmetic, max_leaves=6)
_SIGNS = st.sampled_from(("<", "<=", ">", ">=", "==", "!="))
_COMPARED = st.one_of(
    st.builds("{} {} {}".format, _NUMBERS, _SIGNS, _NUMBERS),
    st.builds("{}{}{}{}{}".format, _NUMBERS, _SIGNS, _NUMBERS, _SIGNS, _NUMBERS),
)
CONDITIONS = st.recursive(_COMPARED, _logic, max_leaves=6)
"""Texts of conditions, with as few parentheses as chance has it, so that precedence matters."""

VALUES = st.one_of(
    st.sampled_from((math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 2.5, 70.0, 1e308, 5e-324)),
    st.floats(allow_nan=False, width=32),
)
ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES)), min_size=1, max_size=8)


def _columns(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {name: np.array([row[name] for row in rows]) for name in NAMES}


def _asked(text: str, rows: list[dict[str, float]]) -> list[bool | None]:
    truth = Condition(text, NAMES).truth(_columns(rows), len(rows))
    assert truth.true.shape == truth.false.shape == (len(rows),)
    assert not (truth.true & truth.false).any()
    return [True if yes else False if no else None for yes, no in zip(truth.true, truth.false, strict=True)]


@settings(max_examples=400, deadline=None)
@given(CONDITIONS, ROWS)
def test_it_is_what_python_would_say_of_each_row(text: str, rows: list[dict[str, float]]) -> None:
    assume(len(text) <= MAX_LENGTH)
    tree = ast.parse(text, mode="eval").body
    assert _asked(text, rows) == [_truth(tree, row) for row in rows]


@settings(max_examples=50, deadline=None)
@given(CONDITIONS, ROWS)
def test_the_columns_are_not_written_to(text: str, rows: list[dict[str, float]]) -> None:
    columns = _columns(rows)
    for column in columns.values():
        column.flags.writeable = False
    Condition(text, NAMES).truth(columns, len(rows))


# --- what is missing -------------------------------------------------------------------------------------------

YES, NO, UNKNOWN = "1 > 0", "1 < 0", "rsi > 70"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (UNKNOWN, None),
        (f"not {UNKNOWN}", None),
        (f"{UNKNOWN} or {YES}", True),
        (f"{UNKNOWN} or {NO}", None),
        (f"{UNKNOWN} and {YES}", None),
        (f"{UNKNOWN} and {NO}", False),
        ("rsi == rsi", None),
        ("rsi != rsi", None),
        ("0 < rsi < 100", None),
        ("1 < 0 < rsi", False),
        ("close / 0 > 1", None),
        ("close % 0 > 1", None),
        ("0 / 0 == 0 / 0", None),
        ("1 / (1 / 0) == 0", None),
        ("log(0) < 0", None),
        ("log(-1) < 0", None),
        ("sqrt(-1) < 0", None),
        ("exp(1000) > 1", None),
        ("exp(-1000) == 0", True),
        ("1e308 * 10 > 1", None),
        ("-1e308 - 1e308 < 0", None),
        ("min(rsi, 1) > 0", None),
        ("max(1, rsi) > 0", None),
        ("clip(rsi, 0, 1) >= 0", None),
        ("close * 0 + rsi != 5", None),
    ],
)
def test_what_is_missing_is_unknown(text: str, expected: bool | None) -> None:
    row = {**dict.fromkeys(NAMES, 5.0), "rsi": math.nan}
    assert _asked(text, [row]) == [expected]


def test_no_warning_escapes_and_the_error_state_is_left_as_it_was() -> None:
    before = np.geterr()
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        assert _asked(
            "log(close) / 0 + exp(1e6) + 1e308 * 1e308 > sqrt(-1)", [dict.fromkeys(NAMES, -1.0)]
        ) == [None]
    assert np.geterr() == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("log(close)", math.log(3.5)),
        ("exp(close)", math.exp(3.5)),
        ("sqrt(close)", math.sqrt(3.5)),
        ("abs(-close)", 3.5),
        ("clip(close, 4, 5)", 4.0),
        ("clip(close, 1, 2)", 2.0),
        ("clip(close, 1, 5)", 3.5),
        ("min(close, 9, 1, 4)", 1.0),
        ("max(close, 9, 1, 4)", 9.0),
        ("-7 % 3", 2.0),
        ("7 % -3", -2.0),
        ("-close % 2", 0.5),
        ("8 / 4 / 2", 1.0),
        ("8 - 4 - 2", 2.0),
        ("2 + 3 * 4", 14.0),
        ("-(-(+close))", 3.5),
    ],
)
def test_arithmetic_and_functions(text: str, expected: float) -> None:
    assert _asked(f"abs({text} - ({expected!r})) < 1e-9", [dict.fromkeys(NAMES, 3.5)]) == [True]


def test_what_no_feature_stands_in_holds_of_every_row_and_of_none() -> None:
    condition = Condition("2 > 1", NAMES)
    assert condition.features == ()
    assert condition.truth({}, 3).true.tolist() == [True] * 3
    assert condition.truth({}, 0).true.tolist() == []


def test_features_are_the_names_in_the_order_of_their_first_use() -> None:
    condition = Condition("rsi > 70 and close > vwap_1m or rsi < 30 and max(volatility, close) > 1", NAMES)
    assert condition.features == ("rsi", "close", "vwap_1m", "volatility")


# --- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m["text"][:60] for m in MISTAKES])
def test_a_mistake_is_named_with_its_column(mistake: dict[str, Any]) -> None:
    with pytest.raises(ExpressionError) as caught:
        Condition(mistake["text"], NAMES)
    assert str(caught.value) == f"column {mistake['column']}: {mistake['says']}"
    assert (caught.value.column, caught.value.problem) == (mistake["column"], mistake["says"])
    assert isinstance(caught.value, ConfigError)
    assert caught.value.exit_code == 2


def _refused(text: str) -> tuple[int, str]:
    """At which column and why; 0 where it is a condition."""
    try:
        Condition(text, NAMES)
    except ExpressionError as error:
        return error.column, str(error)
    return 0, ""


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_a_mistake_in_it(text: str) -> None:
    column, said = _refused(text)
    assert 0 <= column <= len(text) + 1
    said.encode()


@settings(deadline=None)
@given(CONDITIONS, st.data())
def test_a_condition_with_a_hole_is_no_other_error(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    holed = text[:start] + text[data.draw(st.integers(start, len(text))) :]
    assert 0 <= _refused(holed)[0] <= len(holed) + 1


def test_long_sums_and_chains_are_not_deep() -> None:
    for text in ("rsi" + "+rsi" * 240 + "> 1", "rsi" + " < rsi" * 160, "rsi>1" + " or rsi>1" * 100):
        assert len(text) <= MAX_LENGTH
        assert _asked(text, [dict.fromkeys(NAMES, 1.0)])[0] is not None


def test_the_bounds_themselves_are_allowed() -> None:
    Condition("(" * MAX_DEPTH + "rsi > 1" + ")" * MAX_DEPTH, NAMES)
    Condition("rsi > 1".ljust(MAX_LENGTH), NAMES)
    for text in ("(" * (MAX_DEPTH + 1) + "rsi > 1" + ")" * (MAX_DEPTH + 1), "rsi > 1".ljust(MAX_LENGTH + 1)):
        with pytest.raises(ExpressionError):
            Condition(text, NAMES)
