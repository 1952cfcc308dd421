"""The programs that are measured: how each is started, and what is to be known of it."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from benchmarks.measure import ROOT
from benchmarks.peers import venvs
from benchmarks.peers.given import ENVIRONMENT, TABLE, Given
from benchmarks.peers.stage import OURS, Stage, Topic
from benchmarks.ticks import WINDOW_NS
from tests.servers import free_port

LATE_MS: Final = 500
"""How late a tick may come: mdp's default, given to all."""

Kind = Literal["ours", "peer", "floor"]


@dataclass(frozen=True, slots=True)
class Contender:
    """``topic``: which of the runner's it reads; ``lock``: what its environment has, empty for mdp's own;
    ``arguments``: of its interpreter. ``kind``: a floor makes no bars."""

    label: str
    kind: Kind
    arguments: tuple[str, ...] = ()
    lock: str = ""
    topic: str = "json"

    @property
    def table(self) -> str:
        return OURS if self.kind == "ours" else TABLE

    def python(self) -> Path:
        """Its interpreter; makes its environment.

        Raises:
            ServerMissing: that is not possible.
        """
        return venvs.python_of(self.lock) if self.lock else Path(sys.executable)


CONTENDERS: Final[dict[str, Contender]] = {
    "mdp": Contender("mdp, JSON", "ours"),
    "mdp-frames": Contender("mdp, frames", "ours", topic="frames"),
    "bytewax": Contender(
        "bytewax", "peer", ("-m", "bytewax.run", "benchmarks.peers.with_bytewax:flow"), "bytewax.lock"
    ),
    "quix": Contender("quix-streams", "peer", ("-m", "benchmarks.peers.with_quix"), "quix.lock"),
    "faust": Contender(
        "faust-streaming",
        "peer",
        ("-m", "benchmarks.peers.with_faust", "worker", "--loglevel=warn"),
        "faust.lock",
        topic="short",
    ),
    "pathway": Contender("pathway", "peer", ("-m", "benchmarks.peers.with_pathway"), "pathway.lock"),
    "getmany": Contender("aiokafka getmany, nothing else", "floor", ("-m", "benchmarks.peers.with_aiokafka")),
    "decode": Contender(
        "the same, and JSON decoded", "floor", ("-m", "benchmarks.peers.with_aiokafka", "decode")
    ),
}


@dataclass(frozen=True, slots=True)
class Start:
    """``began``: asks when the first record was consumed, for a program that does not say so itself."""

    command: list[str]
    environment: dict[str, str]
    began: Callable[[], float | None] | None


def start_of(contender: Contender, python: Path, stage: Stage, topic: Topic) -> Start:
    """How to start one run, in a consumer group of its own."""
    group = f"bench-{uuid.uuid4().hex[:12]}"
    if contender.kind == "ours":
        command = [str(python.parent / "mdp"), "stream", "micro-batch", "--window", f"{WINDOW_NS // 10**9}s"]
        command += ["--topic", topic.name, "--group", group]
        environment = {
            "MDP_BUS__TYPE": "kafka",
            "KAFKA_BOOTSTRAP": stage.kafka.bootstrap,
            "DATABASE_URL": stage.servers.database_url,
            "MDP_TELEMETRY__METRICS_PORT": str(free_port()),
        }
        return Start(command, environment, lambda: stage.claimed_at(group))
    told = Given(
        stage.kafka.bootstrap,
        topic.name,
        group,
        stage.database,
        topic.records,
        len(topic.bars),
        WINDOW_NS // 10**6,
        LATE_MS,
    )
    environment = {ENVIRONMENT: json.dumps(asdict(told)), "PYTHONPATH": str(ROOT)}
    return Start([str(python), *contender.arguments], environment, None)
