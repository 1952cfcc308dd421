"""The engine decides whatever an adapter does: hang, raise, return nonsense, recover."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from market_data_core.batch import I64
from market_data_core.clock import ManualClock
from market_data_pipeline.features.table import FeatureTable
from market_data_pipeline.inference.adapter import Decisions
from market_data_pipeline.inference.engine import InferenceEngine
from tests.feature_tables import feature_table
from tests.unit.scripted_adapter import Scripted, Told, one_a_row

TABLE = feature_table({"x": np.arange(4.0)})
WANTED = np.array([1, 3])
TIMEOUT_S = 0.6
RESET_S = 10.0
SECOND = 10**9


class Bench:
    """An engine with a model and rules, whose time stands still."""

    def __init__(
        self, *, fallback: bool = True, blocking: bool = True, pool_size: int = 1, failures: int = 3
    ) -> None:
        self.model = Scripted(blocking=blocking)
        self.rules = Scripted("rules", blocking=False)
        self.told = Told()
        self.clock = ManualClock()
        self.engine = InferenceEngine(
            self.model,
            self.rules if fallback else None,
            timeout_s=TIMEOUT_S,
            pool_size=pool_size,
            failures=failures,
            reset_s=RESET_S,
            observer=self.told,
            clock=self.clock,
        )

    async def decided_by(self) -> str:
        """Who decides the next batch; empty for nobody."""
        return _by(await self.engine.decide(TABLE, WANTED))

    async def trip(self) -> None:
        """Let the model fail until it is left alone."""
        self.model.fail()
        while self.told.states[-1] != ("model", "open"):
            assert await self.decided_by() == "rules"


def _by(decisions: Decisions) -> str:
    assert set(decisions.row.tolist()) in (set(), set(WANTED.tolist()))
    return "".join(set(decisions.name))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.engine.close()


@pytest.mark.parametrize("blocking", [True, False])
async def test_decisions_are_handed_on(blocking: bool) -> None:
    bench = Bench(blocking=blocking)
    decisions = await bench.engine.decide(TABLE, WANTED)
    assert decisions.row.tolist() == decisions.value.tolist() == [1, 3]
    assert list(decisions.name) == ["model", "model"]
    assert [(name, rows) for name, _, rows in bench.told.evaluations] == [("model", 2)]
    assert bench.told.failures == []
    assert bench.rules.calls == 0


async def test_what_any_of_the_adapters_needs() -> None:
    model, rules = Scripted(features=("a", "b")), Scripted("rules", features=("b", "c"), needs_previous=True)
    engine = InferenceEngine(model, rules)
    assert engine.features == ("a", "b", "c")
    assert engine.needs_previous
    assert not InferenceEngine(model).needs_previous


async def test_nothing_wanted_is_nothing_asked(bench: Bench) -> None:
    assert len(await bench.engine.decide(TABLE, np.empty(0, np.int64))) == 0
    assert (bench.model.calls, bench.rules.calls) == (0, 0)


@pytest.mark.parametrize("blocking", [True, False])
async def test_a_batch_that_fails_is_decided_by_the_fallback(blocking: bool) -> None:
    bench = Bench(blocking=blocking)
    bench.model.fail(ZeroDivisionError("by zero"))
    with capture_logs() as logs:
        assert await bench.decided_by() == "rules"
        assert await bench.decided_by() == "rules"
        bench.model.recover()
        assert await bench.decided_by() == "model"
        bench.model.fail()
        assert await bench.decided_by() == "rules"
    assert bench.told.failures == [("model", "exception")] * 3
    said = [log["error"] for log in logs if log["event"] == "inference failed"]
    assert said == ["ZeroDivisionError: by zero", "RuntimeError: out of order"], (
        "once for each run of failures"
    )


async def test_when_all_fail_there_is_no_decision(bench: Bench) -> None:
    bench.model.fail()
    bench.rules.fail()
    assert await bench.decided_by() == ""
    assert bench.told.failures == [("model", "exception"), ("rules", "exception")]


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), StopIteration(), GeneratorExit()])
async def test_no_exception_of_a_model_reaches_the_program(bench: Bench, error: BaseException) -> None:
    bench.model.fail(error)
    assert await bench.decided_by() == "rules"
    assert bench.told.failures == [("model", "exception")]


def _with(**columns: Any) -> Callable[[FeatureTable, I64], Decisions]:
    return lambda table, wanted: replace(one_a_row("model")(table, wanted), **columns)


NONSENSE: dict[str, Callable[[FeatureTable, I64], Any]] = {
    "None": lambda table, wanted: None,
    "an array": lambda table, wanted: wanted,
    "a value of NaN": _with(value=np.array([1.0, np.nan])),
    "an infinite score": _with(score=np.array([np.inf, 1.0])),
    "too few values": _with(value=np.ones(1)),
    "two columns": _with(value=np.ones((2, 2))),
    "a list": _with(value=[1.0, 2.0]),
    "texts": _with(score=np.array(["a", "b"])),
    "objects": _with(value=np.array([1.0, 2.0], object)),
    "rows of floats": _with(row=np.array([1.0, 3.0])),
    "a row not wanted": _with(row=np.array([1, 2])),
    "a row beyond": _with(row=np.array([1, 4])),
    "a row from behind": _with(row=np.array([1, -1])),
    "the same twice": _with(row=np.array([3, 3])),
    "one name": _with(name="up"),
    "too many names": _with(name=["up"] * 3),
    "an empty name": _with(name=["up", ""]),
    "a name that is none": _with(name=["up", None]),
    "a name in bytes": _with(name=["up", b"up"]),
    "a name of two lines": _with(name=["up", "u\np"]),
    "a name without end": _with(name=["up", "u" * 65]),
    "no meta": _with(meta=[]),
    "meta that is no dict": _with(meta=[{}, []]),
    "meta that JSON cannot hold": _with(meta=[{}, {"a": object()}]),
    "meta of numpy": _with(meta=[{}, {"a": np.int64(1)}]),
    "meta that PostgreSQL cannot hold": _with(meta=[{}, {"a": ["\0"]}]),
    "meta of half a character": _with(meta=[{}, {"a": "\ud800"}]),
    "a negative cooldown": _with(cooldown_ns=np.array([0, -1])),
    "too few cooldowns": _with(cooldown_ns=np.array([0])),
    "a broken cooldown": _with(cooldown_ns=np.array([0.5, 1])),
}


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_is_a_failure(what: str, blocking: bool) -> None:
    bench = Bench(blocking=blocking)
    bench.model.behave = NONSENSE[what]
    assert await bench.decided_by() == "rules"
    assert bench.told.failures == [("model", "result")]


async def test_sense_is_none(bench: Bench) -> None:
    unusual = _with(
        row=np.array([3, 1], np.int32),
        name=("ü" * 64, "a"),
        value=np.array([-0.0, 1e308]),
        score=np.array([1, 0]),
        meta=[{"a": "\\u0000", "b": None, "c": float("nan")}, {}],
        cooldown_ns=np.array([0, 5], np.uint16),
    )
    bench.model.behave = unusual
    decisions = await bench.engine.decide(TABLE, WANTED)
    assert bench.told.failures == []
    assert decisions.row.dtype == np.int64
    assert decisions.score.dtype == np.float64
    assert decisions.cooldown_ns is not None
    assert decisions.cooldown_ns.tolist() == [0, 5]


async def test_the_same_row_under_two_names(bench: Bench) -> None:
    bench.model.behave = _with(row=np.array([1, 1]), name=["up", "down"])
    assert len(await bench.engine.decide(TABLE, WANTED)) == 2


# --- hanging -----------------------------------------------------------------------------------------------------


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("mdp-inference-")}


@pytest.mark.parametrize("pool_size", [1, 2])
async def test_a_thread_that_hangs_gets_no_more_work(pool_size: int) -> None:
    bench = Bench(pool_size=pool_size, failures=100)
    before, freed = _threads(), bench.model.hang()
    for _ in range(pool_size):
        assert await bench.decided_by() == "rules"
    assert bench.told.failures == [("model", "timeout")] * pool_size
    begun = time.monotonic()
    for _ in range(20):
        assert await bench.decided_by() == "rules"
    assert time.monotonic() - begun < 10 * TIMEOUT_S, "it fails at once, and does not wait twenty times"
    assert bench.told.failures[pool_size:] == [("model", "hangs")] * 20
    assert bench.model.calls == pool_size
    assert len(_threads() - before) == pool_size
    freed.set()
    bench.model.recover()
    assert await _until_decided_by(bench, "model")


async def _until_decided_by(bench: Bench, name: str) -> bool:
    for _ in range(1000):
        if await bench.decided_by() == name:
            return True
        await asyncio.sleep(0.002)
    return False


async def test_one_of_two_threads_hangs_and_the_other_works() -> None:
    bench = Bench(pool_size=2)
    freed = bench.model.hang()
    assert await bench.decided_by() == "rules"
    bench.model.recover()
    for _ in range(5):
        assert await bench.decided_by() == "model"
    freed.set()


async def test_calls_wait_for_a_thread_that_works() -> None:
    bench = Bench()
    running = []

    def alone(table: FeatureTable, wanted: I64) -> Decisions:
        running.append(threading.current_thread())
        time.sleep(0.01)
        assert running == [threading.current_thread()]
        running.clear()
        return one_a_row("model")(table, wanted)

    bench.model.behave = alone
    assert await asyncio.gather(*(bench.decided_by() for _ in range(4))) == ["model"] * 4
    assert bench.told.failures == []


async def test_a_call_waits_no_longer_than_the_timeout(bench: Bench) -> None:
    freed = bench.model.hang()
    decided = await asyncio.gather(*(bench.decided_by() for _ in range(2)))
    freed.set()
    assert decided == ["rules", "rules"]
    assert sorted(bench.told.failures) == [("model", "busy"), ("model", "timeout")]


@pytest.mark.parametrize("what", ["hangs", "computes"])
async def test_the_loop_goes_on_meanwhile(what: str) -> None:
    longest: list[float] = []
    while len(longest) < 5 and not (longest and longest[-1] < 0.05):
        longest.append(await _heartbeat(what))
    assert longest[-1] < 0.05, (
        f"the loop stood still for {longest} s: a busy machine may once, but not each time"
    )


async def _heartbeat(what: str) -> float:
    """The longest that the loop is late, in seconds, while a model hangs or computes for half a second."""
    model = Scripted()
    freed = model.hang()
    if what == "computes":
        model.behave = _compute
    engine = InferenceEngine(model, timeout_s=0.5)
    decided = asyncio.create_task(engine.decide(TABLE, WANTED))
    longest, beats = 0.0, 0
    while not decided.done():
        begun = time.monotonic()
        await asyncio.sleep(0.001)
        longest, beats = max(longest, time.monotonic() - begun - 0.001), beats + 1
    freed.set()
    await engine.close()
    assert model.calls == 1
    assert beats > 5
    return longest


def _compute(table: FeatureTable, wanted: I64) -> Decisions:
    """Half a second of Python and of numpy."""
    end = time.monotonic() + 0.4
    numbers = np.random.default_rng(0).normal(size=100_000)
    while time.monotonic() < end:
        sum(i * i for i in range(20_000))
        np.sort(numbers)
    return one_a_row("model")(table, wanted)


def test_a_process_ends_although_a_model_hangs() -> None:
    program = """
import asyncio, threading
from market_data_pipeline.inference.engine import InferenceEngine
from tests.unit.scripted_adapter import Scripted
from tests.unit.test_inference_engine import TABLE, WANTED

async def main():
    model = Scripted()
    model.behave = lambda table, wanted: threading.Event().wait()
    engine = InferenceEngine(model, timeout_s=0.05)
    assert not len(await engine.decide(TABLE, WANTED))
    await engine.close()
    print("closed", model.closed)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.endswith("closed 1\n")


# --- the breaker -------------------------------------------------------------------------------------------------


async def test_after_so_many_failures_the_model_is_left_alone(bench: Bench) -> None:
    bench.model.fail()
    with capture_logs() as logs:
        for _ in range(10):
            assert await bench.decided_by() == "rules"
    assert bench.model.calls == 3
    assert bench.told.failures == [("model", "exception")] * 3, "being left alone is no failure"
    assert bench.told.states == [("model", "closed"), ("model", "open")]
    assert [log["event"] for log in logs if log["log_level"] != "debug"] == [
        "inference failed",
        "adapter left alone",
    ]


async def test_a_success_in_between_counts_anew(bench: Bench) -> None:
    for _ in range(3):
        bench.model.fail()
        assert [await bench.decided_by() for _ in range(2)] == ["rules"] * 2
        bench.model.recover()
        assert await bench.decided_by() == "model"
    assert bench.told.states == [("model", "closed")]


async def test_without_a_fallback_what_is_not_decided_is_counted() -> None:
    bench = Bench(fallback=False, failures=1)
    bench.model.fail()
    assert [await bench.decided_by() for _ in range(3)] == [""] * 3
    assert bench.told.failures == [("model", "exception"), ("model", "open"), ("model", "open")]


async def test_it_is_tried_again_and_recovers(bench: Bench) -> None:
    await bench.trip()
    bench.model.recover()
    bench.clock.advance(int(RESET_S * SECOND) - 1_000_000)
    assert await bench.decided_by() == "rules"
    bench.clock.advance(1_000_000)
    assert [await bench.decided_by() for _ in range(2)] == ["model"] * 2
    assert [state for _, state in bench.told.states] == ["closed", "open", "half-open", "closed"]


async def test_it_is_tried_once_and_fails_again(bench: Bench) -> None:
    await bench.trip()
    calls = bench.model.calls
    for _ in range(3):
        bench.clock.advance(int(RESET_S * SECOND))
        assert [await bench.decided_by() for _ in range(5)] == ["rules"] * 5
    assert bench.model.calls - calls == 3, "one try each time"
    assert [state for _, state in bench.told.states[1:]] == ["open", *["half-open", "open"] * 3]


async def test_only_one_call_tries(bench: Bench) -> None:
    await bench.trip()
    calls = bench.model.calls
    freed = bench.model.hang()
    bench.clock.advance(int(RESET_S * SECOND))
    trying = [asyncio.create_task(bench.decided_by()) for _ in range(4)]
    await asyncio.wait(trying[1:])
    freed.set()
    assert await asyncio.gather(*trying) == ["model", "rules", "rules", "rules"]
    assert bench.model.calls - calls == 1


@pytest.mark.parametrize("well", [True, False])
async def test_a_try_whose_caller_is_gone_still_counts(bench: Bench, well: bool) -> None:
    await bench.trip()
    freed = threading.Event()

    def behave(table: FeatureTable, wanted: I64) -> Decisions:
        assert freed.wait(60)
        if not well:
            raise RuntimeError("still out of order")
        return one_a_row("model")(table, wanted)

    bench.model.behave = behave
    bench.clock.advance(int(RESET_S * SECOND))
    trying = asyncio.create_task(bench.decided_by())
    for _ in range(3):
        await asyncio.sleep(0)
    assert bench.told.states[-1] == ("model", "half-open")
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert bench.told.states[-1] == ("model", "half-open"), "nobody knows yet"
    freed.set()
    await bench.engine.close()
    assert bench.told.states[-1] == ("model", "closed" if well else "open")


async def test_cancelling_callers_is_no_failure_of_the_model(bench: Bench) -> None:
    for _ in range(10):
        caller = asyncio.create_task(bench.decided_by())
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert await _until_decided_by(bench, "model")
    assert bench.told.states == [("model", "closed")]


@given(
    failures=st.integers(1, 3),
    steps=st.lists(st.sampled_from(["well", "fails", "wait", "wait less"]), min_size=1, max_size=25),
)
@settings(max_examples=40, deadline=None)
def test_the_breaker_is_the_machine_of_the_book(failures: int, steps: list[str]) -> None:
    async def real() -> tuple[list[str], int]:
        bench = Bench(failures=failures)
        decided = []
        for step in steps:
            if step.startswith("wait"):
                bench.clock.advance(int(RESET_S * SECOND * (0.4 if step == "wait less" else 1)))
                continue
            bench.model.recover() if step == "well" else bench.model.fail()
            decided.append(await bench.decided_by())
        await bench.engine.close()
        return decided, bench.model.calls

    def expected() -> tuple[list[str], int]:
        decided, calls, row, now, opened = [], 0, 0, 0.0, None
        for step in steps:
            if step.startswith("wait"):
                now += RESET_S * (0.4 if step == "wait less" else 1)
                continue
            asked = opened is None or now - opened >= RESET_S - 1e-9
            calls += asked
            decided.append("model" if asked and step == "well" else "rules")
            if asked and step == "well":
                row, opened = 0, None
            elif asked:
                row += 1
                opened = now if opened is not None or row >= failures else None
        return decided, calls

    assert asyncio.run(real()) == expected()


# --- the end -----------------------------------------------------------------------------------------------------


async def test_it_closes_its_adapters_once() -> None:
    bench = Bench()
    async with bench.engine:
        assert await bench.decided_by() == "model"
    await bench.engine.close()
    assert (bench.model.closed, bench.rules.closed) == (1, 1)
