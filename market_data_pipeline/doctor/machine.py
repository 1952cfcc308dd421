"""This machine: versions, extras, the port of the exporter, and the disks that mdp writes to."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psutil

from market_data_core import __version__
from market_data_pipeline.doctor.finding import Finding

LITTLE_BYTES: Final = 2_000_000_000
LEAST_BYTES: Final = 256_000_000
_EXTRAS: Final = {"parquet": "pyarrow", "kafka": "aiokafka", "ml": "sklearn"}


def versions() -> Iterator[Finding]:
    """Of mdp and Python, and which extras are not there."""
    about = f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("mdp", "ok", about)
    for extra, module in _EXTRAS.items():
        if find_spec(module) is None:
            fix = f"pip install 'mdp[{extra}]' if you need it"
            yield Finding("extra", "warn", f"{extra} is not installed", fix)


def metrics_port(host: str, port: int) -> Finding:
    """Whether the exporter could listen, and who is there if not."""
    check = "metrics port"
    if port == 0:
        return Finding(check, "ok", "off")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            holder = _holder(port)
            found = f"{port} on {host}: {error.strerror}" + (f", by {holder}" if holder else "")
            fix = "stop who has it (perhaps another mdp), or set telemetry.metrics_port"
            return Finding(check, "warn", found, fix)
    return Finding(check, "ok", f"{port} on {host} is free")


def _holder(port: int) -> str | None:
    """Who listens on ``port``, as far as this user may know."""
    try:
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
                return f"{psutil.Process(one.pid).name()} (process {one.pid})"
    except psutil.Error:
        return None
    return None


def free_bytes(folder: Path) -> int:
    """What a process of this user may still write there."""
    return shutil.disk_usage(folder).free


def disks(
    home: Path | None, spool: Path, spool_bytes: int, free: Callable[[Path], int] = free_bytes
) -> Iterator[Finding]:
    """Room for the embedded services (``home``; None when servers of the user's own are used) and for the spool, which
    may grow to ``spool_bytes``."""
    if home is not None:
        yield _room(
            "disk", home, LEAST_BYTES, LITTLE_BYTES, "free some, or set MDP_HOME to another disk", free
        )
    fix = "free some, set producers.spool.path to another disk, or lower producers.spool.max_bytes"
    least = max(0, spool_bytes - _size(spool))
    finding = _room("spool disk", spool, 0, least, fix, free)
    if finding.state == "ok" and not os.access(_existing(spool), os.W_OK):
        fix = "make it writable for this user, or set producers.spool.path"
        yield Finding("spool disk", "fail", f"{spool} cannot be written", fix)
    else:
        yield finding


def _room(
    check: str, folder: Path, least: int, little: int, fix: str, free: Callable[[Path], int]
) -> Finding:
    left = free(_existing(folder))
    found = f"{left / 1e9:.1f} GB free for {folder}"
    if left <= least:
        return Finding(check, "fail", found, fix)
    if left < little:
        return Finding(check, "warn", f"{found}, and {little / 1e9:.1f} GB may be needed", fix)
    return Finding(check, "ok", found)


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def _size(folder: Path) -> int:
    """The bytes of the files in ``folder``, which producers may be writing and removing now."""
    total = 0
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:
                    continue
    return total
