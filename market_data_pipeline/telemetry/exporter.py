"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP, in a thread of their own."""

from __future__ import annotations

import errno
import gzip
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final, NamedTuple

from prometheus_client import disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from market_data_core.errors import ConfigError
from market_data_pipeline.telemetry.health import Health
from market_data_pipeline.telemetry.metrics import Metrics

LOOPBACK: Final = "127.0.0.1"
_without_created: Callable[[], None] = disable_created_metrics
"""A gauge beside each counter and histogram, which the library would add and nobody asks for."""
_PLAIN_NAME: Final = re.compile(rb"^((?:# (?:HELP|TYPE) )?microbatch_flush_rows)_total\b", re.MULTILINE)
"""The one counter whose name has no suffix; prometheus_client gives one to all."""


def exposition(metrics: Metrics) -> bytes:
    """All metrics in Prometheus' text format."""
    return _PLAIN_NAME.sub(rb"\1", generate_latest(metrics.registry))


@contextmanager
def exporter(
    metrics: Metrics,
    port: int,
    host: str = LOOPBACK,
    health: Health | None = None,
    *,
    option: str = "telemetry.metrics_port",
) -> Iterator[None]:
    """Serve on ``host`` and ``port`` while the block runs; nothing when ``port`` is 0.

    ``option``: what the port was given by, for the message.

    Raises:
        ConfigError: the port is taken, or ``host`` is no address of this machine.
    """
    if port == 0:
        yield
        return
    _without_created()
    try:
        server = _Server(host, port, metrics, health or Health())
    except OSError as error:
        raise _explained(error, host, port, option) from None
    thread = threading.Thread(target=server.serve_forever, name="mdp-exporter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _explained(error: OSError, host: str, port: int, option: str) -> Exception:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(
            f"telemetry.metrics_host: {host} is no address of this machine ({error.strerror}); "
            f"use {LOOPBACK}, or 0.0.0.0 for all"
        )
    if error.errno in (errno.EADDRINUSE, errno.EACCES):
        return ConfigError(
            f"{option}: port {port} on {host} cannot be used ({error.strerror}); "
            "set another one, or 0 to switch the exporter off"
        )
    return error


class _Answer(NamedTuple):
    status: int
    kind: str
    body: bytes


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, metrics: Metrics, health: Health) -> None:
        self._host = host
        self._metrics = metrics
        self._health = health
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Request)

    def server_bind(self) -> None:
        # HTTPServer's own asks a name server who this is, which may take its time.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self._host, self.server_address[1]

    def answer(self, path: str) -> _Answer:
        """What ``GET path`` gets."""
        health = self._health
        if path == "/metrics":
            return _Answer(200, CONTENT_TYPE_PLAIN_0_0_4, exposition(self._metrics))
        if path == "/healthz":
            about: dict[str, Any] = {
                "status": "ok" if health.alive else "stuck",
                "loop_silent_s": round(health.stuck_s(), 3),
            }
            return _json(200 if health.alive else 503, about)
        if path == "/readyz":
            ready = health.ready
            about = {"status": "ready" if ready else "not ready", "checks": health.report()}
            return _json(200 if ready else 503, about)
        return _json(404, {"error": "use /metrics, /healthz or /readyz"})


def _json(status: int, value: Any) -> _Answer:
    return _Answer(status, "application/json", json.dumps(value).encode() + b"\n")


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30
    server_version = "mdp"
    sys_version = ""

    def do_GET(self) -> None:
        status, kind, body = self.server.answer(self.path.partition("?")[0])
        self.send_response(status)
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 1)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """A scrape every few seconds is no news."""
