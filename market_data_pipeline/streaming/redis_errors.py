"""What the errors of redis-py, of sockets and of TLS mean, each in one sentence with the fix."""

from __future__ import annotations

import re
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from market_data_core.errors import BusError, BusNotReady, BusUnavailable
from market_data_core.redact import redact
from market_data_pipeline.streaming.redis_url import RedisUrl

FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError)
"""All that talking to Redis can raise."""
_PASSING: Final = (
    *(BusyLoadingError, ClusterDownError, MasterDownError, NoScriptError, OutOfMemoryError),
    *(ReadOnlyError, TryAgainError),
)
_PASSING_WORDS: Final = ("BUSY", "MISCONF", "NOGROUP", "NOREPLICAS", "UNBLOCKED")
"""Refusals that end by themselves or by an operator's hand, without a change on our side."""
_LOOK: Final = "check that it runs, and REDIS_URI or bus.redis.uri"
_IN_SCRIPT: Final = re.compile(r"ACL failure|user executing the script can't run|can't run this command")
_COMMAND: Final = re.compile(r"'([a-z|_-]+)' (?:sub)?command", re.IGNORECASE)


def closed_meanwhile(error: AttributeError) -> bool:
    """Whether redis-py was about to write to a connection that another task closed: it then has no writer."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return error.obj is None and where == "redis.asyncio.connection"


def explain(error: BaseException, url: RedisUrl) -> BusError:
    """What ``error`` means to somebody who can change the URL or the server."""
    while isinstance(error, RedisClusterException) and (inner := error.__cause__ or error.__context__):
        # That the cluster could not be asked: why not is what counts.
        error = inner
    where = f"Redis at {url.where}"
    text = redact(str(error)).strip().rstrip(".") or type(error).__name__
    return _refused_login(error, text, where, url) or _tls(text, where) or _other(error, text, where, url)


def _refused_login(error: BaseException, text: str, where: str, url: RedisUrl) -> BusError | None:
    if isinstance(error, AuthenticationError | AuthorizationError) or text.startswith(
        ("NOAUTH", "WRONGPASS")
    ):
        return BusError(
            f"{where} refuses the login ({text}): correct the user or password in REDIS_URI or bus.redis.uri"
        )
    in_script = _IN_SCRIPT.search(text) is not None
    if not (isinstance(error, NoPermissionError) or text.startswith("NOPERM") or in_script):
        return None
    command = _COMMAND.search(text)
    if in_script and command is None:
        # Redis 6.2 does not say which.
        return BusError(
            f"user {url.user} of {where} may not use a command that a script needs: "
            f"ACL SETUSER {url.user} +zadd +zrange +zremrangebyscore +xinfo +xgroup +time +get +del +pexpire +pttl "
            f"({text})"
        )
    if command is not None:
        rule, lacks = f"+{command[1].lower()}", f"may not use the command {command[1].upper()}"
    else:
        rule, lacks = "~mdp* ~{mdp*", "may not use a key that is needed"
    return BusError(f"user {url.user} of {where} {lacks}: ACL SETUSER {url.user} {rule} ({text})")


def _tls(text: str, where: str) -> BusError | None:
    said = text.lower().replace("_", " ")
    if "certificate verify failed" in said:
        reason = text.partition("certificate verify failed: ")[2].partition(" (")[0].rstrip(".") or text
        return BusError(
            f"the certificate of {where} is not trusted ({reason}): set bus.redis.tls_ca to the file of the "
            "authority that signed it, and use a name that it is made out for"
        )
    if "certificate required" in said:
        return BusError(
            f"{where} asks for a certificate of ours: set bus.redis.tls_cert and bus.redis.tls_key"
        )
    if "wrong version number" in said or "record layer failure" in said:
        return BusError(
            f"{where} does not speak TLS on this port: use redis in place of rediss, or its TLS port"
        )
    return None


def _other(error: BaseException, text: str, where: str, url: RedisUrl) -> BusError:
    if isinstance(error, RedisTimeoutError | TimeoutError):
        port = ", that this port speaks TLS" if url.tls else ""
        return BusUnavailable(f"{where} did not answer in time: {_LOOK.replace(',', port + ',', 1)}")
    if isinstance(error, SlotNotCoveredError):
        return BusUnavailable(
            f"{where} has no master for a part of its slots: look at redis-cli CLUSTER INFO"
        )
    if isinstance(error, AskError | ClusterCrossSlotError) and url.kind != "cluster":
        return BusError(f"{where} is one node of a cluster: begin its URL with redis+cluster:// ({text})")
    if isinstance(error, AskError | RedisClusterException):
        return BusUnavailable(f"{where} is changing its nodes: {text}")
    if isinstance(error, _PASSING) or text.startswith(_PASSING_WORDS):
        return BusNotReady(f"{where} cannot take commands now: {text}")
    if isinstance(error, RedisConnectionError | OSError):
        return BusUnavailable(f"{where} cannot be reached ({text}): {_LOOK}")
    if "cluster support disabled" in text:
        return BusError(f"{where} is no cluster: begin its URL with redis:// or rediss://")
    return _refused(error, text, where)


def _refused(error: BaseException, text: str, where: str) -> BusError:
    if "DB index" in text:
        return BusError(f"{where} has no such database ({text}): correct the number in the URL")
    if isinstance(error, ResponseError) and "unknown command" in text:
        return BusError(f"{where} is too old, 6.2 or newer is needed: {text}")
    if text.startswith("WRONGTYPE"):
        return BusError(
            f"a key of {where} with a topic's name is not a stream: remove it or use another topic ({text})"
        )
    return BusError(f"{where} refused a command: {text}")
