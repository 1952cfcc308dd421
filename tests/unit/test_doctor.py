"""What the doctor makes of what it was told: groups, disks and ports, without any server."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil
import pytest

from market_data_core.errors import MdpError
from market_data_pipeline.doctor import Finding, machine
from market_data_pipeline.doctor.finding import failure, skew
from market_data_pipeline.doctor.groups import groups
from market_data_pipeline.streaming.bus import GroupPartition, GroupStatus, TopicStatus

LEASE_MS = 10_000
PATIENCE_MS = 60_000


def told(*parts: GroupPartition, members: tuple[str, ...] = ("w",)) -> list[tuple[str, str]]:
    """State and text of each finding about one group."""
    topic = TopicStatus("t", len(parts), 10, [GroupStatus("g", list(members), list(parts))])
    found = list(groups([topic], lease_ms=LEASE_MS, patience_ms=PATIENCE_MS))
    assert {finding.check for finding in found} == {"group g"}
    assert all(finding.fix for finding in found if finding.state != "ok")
    return [(finding.state, f"{finding.found} {finding.fix}") for finding in found]


def test_a_group_that_keeps_up_is_well() -> None:
    assert told(GroupPartition(0, "w", 3, 400, 20, PATIENCE_MS, 7000)) == [
        ("ok", "t: 1 member, 3 records behind ")
    ]


def test_a_group_that_rests_with_nothing_to_do_is_well() -> None:
    ((state, _),) = told(GroupPartition(0, None, 0, 0, 0, 0), members=())
    assert state == "ok"


def test_without_groups_there_is_one_line() -> None:
    assert [f.state for f in groups([], lease_ms=1, patience_ms=1)] == ["ok"]


@pytest.mark.parametrize(
    ("left", "state", "says"),
    [
        (-1, "fail", "for ever"),
        (LEASE_MS + 1, "fail", "for another 10 s"),
        (LEASE_MS, "warn", "for another 10.0 s"),
        (0, "warn", "for another 0.0 s"),
    ],
)
def test_a_lease_of_a_member_that_does_not_beat(left: int, state: str, says: str) -> None:
    ((found, text),) = told(
        GroupPartition(1, "ghost", 0, 0, 0, 0, left), GroupPartition(0, "w", 0, 0, 0, 0, 9)
    )
    assert (found, says in text) == (state, True)
    assert ("redis-cli DEL '{t.1}:lease:g'" in text) == (state == "fail")


@pytest.mark.parametrize(
    ("members", "age", "state", "says"),
    [
        ((), 1, "warn", "5 records wait and 2 are unacknowledged in partition 0, and no member runs"),
        (("w",), 3 * LEASE_MS, "warn", "which no member owns"),
        (("w",), 3 * LEASE_MS + 1, "fail", "which no member owns"),
    ],
)
def test_records_that_nobody_reads(members: tuple[str, ...], age: int, state: str, says: str) -> None:
    ((found, text),) = told(GroupPartition(0, None, 5, 0, 2, age), members=members)
    assert (found, says in text) == (state, True)


def test_a_member_that_does_not_get_on_is_named() -> None:
    ((state, text),) = told(GroupPartition(3, "w", 0, 0, 2, PATIENCE_MS + 1))
    assert (state, "w has had records of partition 3 for 60 s" in text) == ("warn", True)


def test_lag_is_told_from_half_a_minute_on() -> None:
    parts = GroupPartition(0, "w", 1000, 30_001, 0, 0), GroupPartition(1, "w", 500, 90_000, 0, 0)
    ((state, text),) = told(*parts)
    assert (state, "1,500 records and 90 s behind in partitions 0, 1" in text) == ("warn", True)


# --- disks -------------------------------------------------------------------------------------------------------


def disks(home: Path | None, spool: Path, free: int, spool_bytes: int = 0) -> dict[str, Finding]:
    return {f.check: f for f in machine.disks(home, spool, spool_bytes, lambda _: free)}


@pytest.mark.parametrize(
    ("free", "state"),
    [
        (machine.LEAST_BYTES, "fail"),
        (machine.LEAST_BYTES + 1, "warn"),
        (machine.LITTLE_BYTES, "ok"),
        (0, "fail"),
    ],
)
def test_room_for_the_embedded_services(tmp_path: Path, free: int, state: str) -> None:
    found = disks(tmp_path / "not" / "made" / "yet", tmp_path, free)["disk"]
    assert (found.state, "MDP_HOME" in found.fix) == (state, state != "ok")
    assert "disk" not in disks(None, tmp_path, free), "servers of the user's own have their own disks"


def test_the_spool_needs_what_it_may_still_grow_by(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(bytes(4_000))
    for free, state in ((0, "fail"), (1, "warn"), (5_999, "warn"), (6_000, "ok")):
        assert disks(None, tmp_path, free, 10_000)["spool disk"].state == state
    assert "producers.spool.max_bytes" in disks(None, tmp_path, 1, 10_000)["spool disk"].fix


def test_free_space_is_what_the_system_says(tmp_path: Path) -> None:
    about = os.statvfs(tmp_path)
    assert abs(machine.free_bytes(tmp_path) - about.f_bavail * about.f_frsize) < 10**9


# --- ports -------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_names_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = machine.metrics_port("127.0.0.1", port)
    assert (found.state, f"(process {os.getpid()})" in found.found) == ("warn", True)
    assert "telemetry.metrics_port" in found.fix
    assert machine.metrics_port("127.0.0.1", port).state == "ok"
    assert machine.metrics_port("127.0.0.1", 0).found == "off"


def test_a_port_is_told_of_also_where_processes_may_not_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str) -> list[object]:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = machine.metrics_port("127.0.0.1", taken.getsockname()[1])
    assert (found.state, "by" in found.found) == ("warn", False)


# --- the rest ----------------------------------------------------------------------------------------------------


def test_a_clock_is_off_only_beyond_what_the_round_trip_explains() -> None:
    assert skew("c", 260_000_000, 40_000_000).state == "ok"
    assert skew("c", -300_000_000, 40_000_000).state == "warn"


@pytest.mark.parametrize(
    ("message", "found", "fix"),
    [
        ("a (b: c); do x", "a (b: c)", "do x"),
        (
            "cannot use it now (refused): check that it runs",
            "cannot use it now (refused)",
            "check that it runs",
        ),
        ("broken", "broken", "see the message"),
    ],
)
def test_an_error_is_what_is_wrong_and_the_fix(message: str, found: str, fix: str) -> None:
    assert failure("c", MdpError(message)) == Finding("c", "fail", found, fix)
    assert failure("c", MdpError(message), "other") == Finding("c", "fail", message, "other")
