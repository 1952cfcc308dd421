"""Processes of this machine: they answer, they raise, they die and are replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from market_data_core.errors import DatasetError, WorkerLost
from market_data_pipeline.backfill.local_engine import LocalEngine


def pid_of_worker() -> int:
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(what: str) -> None:
    raise DatasetError(what)


async def test_a_worker_that_dies_takes_only_its_task_along() -> None:
    async with LocalEngine(2) as engine:
        first = await engine.run(pid_of_worker)
        assert first.value != os.getpid()
        assert first.cpu_seconds > 0
        with pytest.raises(DatasetError, match="as it says"):
            await engine.run(refuse, "as it says")
        lost, other = await asyncio.gather(engine.run(die), engine.run(pid_of_worker), return_exceptions=True)
        assert isinstance(lost, WorkerLost)
        assert not isinstance(other, BaseException)
        again = await asyncio.gather(*(engine.run(pid_of_worker) for _ in range(4)))
        pids = {reply.value for reply in again}
        assert len(pids) <= 2
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """They hold connections and would go on with their tasks."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio, time
            from market_data_pipeline.backfill.local_engine import LocalEngine

            async def main():
                async with LocalEngine(1) as engine:
                    reply = await engine.run(time.sleep, 0.0)
                    print(reply.worker.rpartition("-")[2], flush=True)
                    await engine.run(time.sleep, 600)

            if __name__ == "__main__":
                asyncio.run(main())
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        assert psutil.wait_procs([worker], timeout=30)[1] == []
