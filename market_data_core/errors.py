"""The error tree of mdp.

    MdpError                      exit 1
    ├── ConfigError               exit 2   a key, a value or a combination in the configuration
    │   └── ExpressionError       exit 2   a condition or a template of a rule; carries the column
    ├── UsageError                exit 2   a wrong invocation
    ├── DatasetError              exit 1   a file that cannot be read as described
    ├── ModelError                exit 1   a model's file that may not or cannot be used
    ├── PoisonRecord              a record that cannot be an event; carries the reason
    ├── MissingExtra              exit 1   an optional package is not installed
    ├── EmbeddedError             exit 1   the managed local Redis or PostgreSQL
    ├── WorkerLost                retriable   a process of a pool died over its task
    ├── BusError                  exit 1
    │   └── BusUnavailable        retriable
    │       └── BusNotReady       retriable   it is there, and still reading its files or electing a master
    └── StoreError                exit 1
        ├── StoreUnavailable      retriable
        │   └── StoreNotReady     retriable   it is there, and still starting or recovering
        ├── SchemaOutOfDate       exit 1
        └── Fenced                a newer owner holds the partition: drop the state and stop

Drivers translate their library's errors at the edge, so callers catch only these. Every message is one
sentence that says what is wrong and what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class MdpError(Exception):
    """Something mdp can explain in one sentence."""

    exit_code: ClassVar[int] = 1
    retriable: ClassVar[bool] = False


class ConfigError(MdpError):
    """The configuration is wrong; the message names the file, the key and the fix."""

    exit_code = 2


class ExpressionError(ConfigError):
    """A condition or a template of a rule cannot be understood: ``problem``, at ``column``, which counts from 1."""

    def __init__(self, column: int, problem: str) -> None:
        super().__init__(f"column {column}: {problem}")
        self.column = column
        self.problem = problem


class UsageError(MdpError):
    """The command line is wrong; the message names the option and the fix."""

    exit_code = 2


class DatasetError(MdpError):
    """A dataset cannot be read as described; the message names the file, the row and the fix."""


class ModelError(MdpError):
    """A model cannot be used; the message names its file and the fix."""


class PoisonRecord(MdpError):
    """A record that can never become an event, whatever is retried. ``str(error)`` is the reason."""


class MissingExtra(MdpError):
    """An optional package is needed; the message is the exact ``pip install`` line."""


class EmbeddedError(MdpError):
    """The managed local Redis or PostgreSQL cannot be started or stopped."""


class WorkerLost(MdpError):
    """A process of a pool died over its task; another may do it."""

    retriable = True


class BusError(MdpError):
    """The bus refused a command for good."""


class BusUnavailable(BusError):
    """The bus cannot be reached now; the same call may succeed later."""

    retriable = True


class BusNotReady(BusUnavailable):
    """The bus answers that it takes no commands now; it will by itself."""


class StoreError(MdpError):
    """The store refused a command for good."""


class StoreUnavailable(StoreError):
    """The store cannot be reached now; the same call may succeed later."""

    retriable = True


class StoreNotReady(StoreUnavailable):
    """The store answers that it takes nobody in now; it will by itself."""


class SchemaOutOfDate(StoreError):
    """The database schema is not the one this version needs."""


class Fenced(StoreError):
    """A newer epoch owns the partition, so this worker may write nothing more for it."""
