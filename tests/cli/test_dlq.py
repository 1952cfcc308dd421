"""``mdp stream dlq`` against a real Redis: listing, showing, correcting, requeueing, purging."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from market_data_core.batch import EventBatch
from market_data_core.codecs import DeadLetter, encode_events
from market_data_core.events import StreamEvent
from market_data_pipeline.streaming.dead_letters import DeadLetters
from market_data_pipeline.streaming.redis_bus import RedisBus
from tests.cli.conftest import Ended, Invoke, Services

_numbers = itertools.count(1)
_SECOND = 1_000_000_000


@pytest.fixture
def topic(services: Services, monkeypatch: pytest.MonkeyPatch, clean_environment: None) -> str:
    """The topic that commands use in this test."""
    name = f"dlq.test.{next(_numbers)}"
    monkeypatch.setenv("MDP_HOME", str(services.home))
    monkeypatch.setenv("MDP_BUS__REDIS__STREAM", name)
    return name


@pytest.fixture
def bury(services: Services, topic: str) -> Callable[..., None]:
    """Puts letters aside: (reason, value, age in seconds)."""

    def put(*letters: tuple[str, bytes, int]) -> None:
        async def main() -> None:
            async with RedisBus(services.redis) as bus:
                await bus.ensure_topic(topic, 2)
                now = time.time_ns()
                await DeadLetters(bus, topic).put(
                    [
                        DeadLetter(
                            reason, topic, 1, f"17630000000{n:02}-0", "SPY", None, value, now - age * _SECOND
                        )
                        for n, (reason, value, age) in enumerate(letters)
                    ]
                )

        asyncio.run(main())

    return put


def rows(ended: Ended) -> list[dict[str, Any]]:
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


def published(services: Services, topic: str) -> list[tuple[int, str, bytes]]:
    """(partition, key, value) of everything on the topic."""

    async def main() -> list[tuple[int, str, bytes]]:
        async with RedisBus(services.redis) as bus:
            return [
                (p, r.key, r.value)
                for p in range(await bus.partitions(topic))
                for r in await bus.read(topic, p, None, 100)
            ]

    return asyncio.run(main())


def event() -> bytes:
    made = StreamEvent("x", "SPY", "tick", "1s", _SECOND, _SECOND, 1.5, 1.5, 1.5, 1.5, 10.0, 1)
    return encode_events(EventBatch.from_events([made]))[0]


def test_an_empty_list(invoke: Invoke, topic: str) -> None:
    assert invoke("stream", "dlq", "list") == Ended(0, "", "no dead letters\n")
    assert invoke("stream", "dlq", "list", "--json") == Ended(0, "", "")
    assert invoke("stream", "dlq", "list", "--summary") == Ended(0, "", "no dead letters\n")


def test_list_shows_where_each_comes_from_and_why(
    invoke: Invoke, topic: str, bury: Callable[..., None]
) -> None:
    bury(("not a frame", b"\xc1\xff", 5), ("late", b"{}", 4), ("late", b"{ }", 3))
    listed = rows(invoke("stream", "dlq", "list", "--json"))
    assert [(r["topic"], r["partition"], r["offset"], r["key"], r["bytes"], r["reason"]) for r in listed] == [
        (topic, 1, "1763000000000-0", "SPY", 2, "not a frame"),
        (topic, 1, "1763000000001-0", "SPY", 2, "late"),
        (topic, 1, "1763000000002-0", "SPY", 3, "late"),
    ]
    table = invoke("stream", "dlq", "list").out
    assert all(f"{r['id']} " in table and str(r["offset"]) in table for r in listed)

    limited = invoke("stream", "dlq", "list", "--limit", "2", "--json")
    assert rows(limited) == listed[:2]
    assert limited.err == "there are more: add --limit, or --summary to count them by reason\n"
    assert rows(invoke("stream", "dlq", "list", "--reason", "late", "--json")) == listed[1:]
    summary = rows(invoke("stream", "dlq", "list", "--summary", "--json"))
    assert summary == [{"reason": "late", "count": 2}, {"reason": "not a frame", "count": 1}]


def test_show_gives_back_the_original_bytes(invoke: Invoke, topic: str, bury: Callable[..., None]) -> None:
    value = b'{"ver": 1, "symbol": "SP\xff"}\r\n'
    bury(("not UTF-8", value, 5))
    (row,) = rows(invoke("stream", "dlq", "list", "--json"))
    assert invoke("stream", "dlq", "show", row["id"], "--raw").out == value.decode("utf-8", "replace")
    (shown,) = rows(invoke("stream", "dlq", "show", row["id"], "--json"))
    assert base64.b64decode(shown.pop("value_base64")) == value
    assert shown == row
    text = invoke("stream", "dlq", "show", row["id"]).out
    assert "reason     not UTF-8\n" in text
    assert 'value      {"ver": 1, "symbol": "SP\\xff"}\\x0d\\x0a\n' in text


def test_requeue_sends_a_corrected_record_where_it_came_from(
    invoke: Invoke, services: Services, topic: str, bury: Callable[..., None], tmp_path: Path
) -> None:
    bury(("v is missing", b"{}", 5), ("late", b"stays", 5))
    first, second = rows(invoke("stream", "dlq", "list", "--json"))
    (tmp_path / "good.json").write_bytes(event())
    ended = invoke("stream", "dlq", "requeue", first["id"], "--value-file", "good.json", "--json")
    assert rows(ended) == [{"requeued": 1}]
    assert published(services, topic) == [(1, "SPY", event())]
    assert rows(invoke("stream", "dlq", "list", "--json")) == [second]


def test_requeue_by_reason_and_of_all(
    invoke: Invoke, services: Services, topic: str, bury: Callable[..., None]
) -> None:
    bury(("late", b"1", 5), ("late: too", b"2", 5), ("no frame", b"3", 5))
    assert invoke("stream", "dlq", "requeue", "--reason", "late").err == "2 dead letters requeued\n"
    assert [value for _, _, value in published(services, topic)] == [b"1", b"2"]
    assert invoke("stream", "dlq", "requeue", "--all").err == "1 dead letter requeued\n"
    assert [value for _, _, value in published(services, topic)] == [b"1", b"2", b"3"]
    assert invoke("stream", "dlq", "requeue", "--all").err == "0 dead letters requeued\n"


def test_a_replacement_is_for_one(
    invoke: Invoke, topic: str, bury: Callable[..., None], tmp_path: Path
) -> None:
    bury(("late", b"1", 5))
    (tmp_path / "good.json").write_bytes(event())
    ended = invoke("stream", "dlq", "requeue", "--all", "--value-file", "good.json")
    assert ended.code == 2
    assert "give exactly one id" in ended.err


def test_purge_asks_first(
    invoke: Invoke, topic: str, bury: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(("late", b"1", 5), ("late", b"2", 5))
    nobody = invoke("stream", "dlq", "purge", "--all")
    assert (nobody.code, nobody.out) == (2, "")
    assert (
        nobody.err
        == "mdp: 2 dead letters would be removed for good: add --yes to do it without being asked\n"
    )

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    refused = invoke("stream", "dlq", "purge", "--all")
    assert refused.code == 1
    assert refused.err.endswith("mdp: stopped\n")
    assert len(rows(invoke("stream", "dlq", "list", "--json"))) == 2
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    agreed = invoke("stream", "dlq", "purge", "--all")
    assert (agreed.code, agreed.err[-22:]) == (0, "2 dead letters purged\n")
    assert rows(invoke("stream", "dlq", "list", "--json")) == []


def test_purge_what_is_old(invoke: Invoke, topic: str, bury: Callable[..., None]) -> None:
    bury(("late", b"new", 5), ("late", b"old", 7200), ("no frame", b"older", 9000))
    assert rows(
        invoke("stream", "dlq", "purge", "--older-than", "1h", "--reason", "late", "--yes", "--json")
    ) == [{"purged": 1}]
    assert rows(invoke("stream", "dlq", "purge", "--older-than", "1h", "--yes", "--json")) == [{"purged": 1}]
    (left,) = rows(invoke("stream", "dlq", "list", "--json"))
    assert left["bytes"] == 3
    assert rows(invoke("stream", "dlq", "purge", left["id"], "--yes", "--json")) == [{"purged": 1}]


@pytest.mark.parametrize("command", ["requeue", "purge"])
@pytest.mark.parametrize("args", [[], ["--all", "--reason", "x"], ["1-0", "--all"], ["1-0", "--reason", "x"]])
def test_letters_are_chosen_in_one_way(invoke: Invoke, topic: str, command: str, args: list[str]) -> None:
    ended = invoke("stream", "dlq", command, *args)
    assert ended.code == 2
    assert ended.err.startswith("mdp: choose dead letters in one way: give their ids, or --all")
