"""A real day of SPY and IBM while inference is killed fifty times: ``python -m tests.chaos.real_day [SEED]``.

Two workers on four partitions, one of them stopped beyond its lease on the way. At the end the signals equal a recount
by pandas, row by row, and the topic equals the table. It takes a minute and a half, and the data of shared/.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import pandas as pd

from tests.integration.test_real_ticks import DATA, Mdp
from tests.integration.test_signals_emission import infer, published, stored, wanted, without

KILLS: Final = 50
STOP_AFTER: Final = 20


def main(seed: int) -> None:
    """Raises AssertionError where something differs."""
    rng, began = random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        mdp = Mdp(Path(home), MDP_BUS__REDIS__PARTITIONS="4", MDP_BUS__REDIS__LEASE_MS="1000")
        mdp.run("dev", "up")
        try:
            _blows(mdp, rng)
            infer(mdp)
            table, topic, (expected, unsure) = stored(mdp), published(mdp), wanted(mdp)
        finally:
            mdp.run("dev", "down")
    pd.testing.assert_frame_equal(without(table, unsure), without(expected, unsure), check_dtype=False)
    pd.testing.assert_frame_equal(topic, table)
    seconds = time.monotonic() - began
    print(f"seed {seed}: {KILLS} kills, 1 stop, {len(table)} signals, all right, {seconds:.0f} s")


def _blows(mdp: Mdp, rng: random.Random) -> None:
    """Replay the day in about a minute, with bars and signals made beside it."""

    def worker() -> subprocess.Popen[str]:
        return mdp.start("stream", "infer", "--adapter", "rules", "--json")

    workers, stopped = [worker(), worker()], []
    batcher = mdp.start("stream", "micro-batch", "--window", "2s", "--until-idle", "8s", "--json")
    files = [str(DATA / f"tick_{symbol}_20131007_trade.zip") for symbol in ("spy", "ibm")]
    replays = [
        mdp.start("stream", "replay", "--dataset", f, "--preset", "lean", "--speed", "900") for f in files
    ]
    for kill in range(KILLS):
        time.sleep(rng.uniform(0.3, 1.5))
        victim = rng.randrange(2)
        if kill == STOP_AFTER:
            zombie = workers[victim]
            zombie.send_signal(signal.SIGSTOP)
            workers[victim] = worker()
            time.sleep(3)
            zombie.send_signal(signal.SIGCONT)
            stopped.append(zombie)
        workers[victim].kill()
        workers[victim].communicate()
        workers[victim] = worker()
    for process in (*replays, batcher):
        process.communicate(timeout=200)
        assert process.returncode == 0
    for process in (*workers, *stopped):
        process.terminate()
        process.communicate(timeout=60)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
