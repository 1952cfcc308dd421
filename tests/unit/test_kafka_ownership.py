"""What a member of a Kafka group owns: by what it was given, by what it let go of, and by its own clock."""

from __future__ import annotations

import math

import pytest

from market_data_core.clock import ManualClock
from market_data_pipeline.streaming.kafka_ownership import Ownership

SESSION_MS = 1000
MS = 1_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def owned(clock: ManualClock) -> Ownership:
    ownership = Ownership("t for g", SESSION_MS, clock)
    ownership.heard(clock.monotonic())
    return ownership


def test_what_is_given_is_announced_once(owned: Ownership) -> None:
    assert not owned.take([1, 0], [])
    assert owned.changed.is_set()
    assert owned.take_changes() == ([0, 1], [], [])
    assert owned.take_changes() == ([], [], [])
    assert owned.held == {0, 1}


def test_what_is_not_given_again_is_handed_over_and_owned_until_released(owned: Ownership) -> None:
    owned.take([0, 1], [])
    owned.take_changes()
    assert not owned.take([0], [0, 1])
    assert owned.take_changes() == ([], [1], [])
    assert (owned.keeping, owned.leaving, owned.held) == ([0], [1], {0, 1})
    owned.release(1)
    assert (owned.keeping, owned.leaving) == ([0], [])


def test_what_the_caller_was_not_told_of_goes_without_a_word(owned: Ownership) -> None:
    owned.take([0, 1], [])
    assert owned.take([0], [0, 1]), "the group has to be told that it is free"
    assert owned.take_changes() == ([0], [], [])


def test_a_session_counts_from_before_the_question(owned: Ownership, clock: ManualClock) -> None:
    owned.take([0], [])
    owned.take_changes()
    asked = clock.monotonic()
    clock.advance(900 * MS)
    owned.heard(asked)
    assert owned.seconds_left() == pytest.approx(0.1)
    clock.advance(99 * MS)
    assert owned.held == {0}
    clock.advance(1 * MS)
    assert owned.held == set()
    assert owned.vacated
    assert owned.take_changes() == ([], [], [0])
    assert owned.seconds_left() == math.inf


def test_an_old_answer_does_not_shorten_a_session(owned: Ownership, clock: ManualClock) -> None:
    owned.take([0], [])
    first = clock.monotonic()
    clock.advance(500 * MS)
    owned.heard(clock.monotonic())
    owned.heard(first)
    clock.advance(900 * MS)
    assert owned.held == {0}


def test_what_is_lost_while_the_group_shares_out_is_asked_for_again(
    owned: Ownership, clock: ManualClock
) -> None:
    owned.take([0, 1], [])
    owned.take_changes()
    claimed = owned.keeping
    clock.advance(SESSION_MS * MS)
    assert owned.take_changes() == ([], [], [0, 1])
    owned.heard(clock.monotonic())
    # The answer to a join that was sent before: the group believes that both are still owned.
    assert owned.take([0, 1], claimed), "nobody would own them"
    assert owned.held == set()
    assert not owned.take([0, 1], owned.keeping)
    assert owned.take_changes() == ([0, 1], [], [])


def test_a_hand_over_that_was_overtaken_by_a_loss_is_not_asked_for(
    owned: Ownership, clock: ManualClock
) -> None:
    owned.take([0, 1], [])
    owned.take_changes()
    owned.take([0], [0, 1])
    clock.advance(SESSION_MS * MS)
    assert owned.take_changes() == ([], [], [0, 1])
