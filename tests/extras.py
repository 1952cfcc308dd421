"""Packages that few tests need and .ci/run installs: requirements.ci.lock."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest


def without(package: str) -> pytest.MarkDecorator:
    """Skip where ``package`` is not installed, except in CI, where its absence is a failure."""
    return pytest.mark.skipif(
        find_spec(package) is None and os.environ.get("CI") != "true",
        reason=f"{package} is not installed: pip install -r requirements.ci.lock",
    )
