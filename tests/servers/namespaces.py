"""Machines of their own on one machine: network namespaces that hang on one bridge.

The bridge lies in a namespace too, the hub, which the test enters: so nothing of it is seen outside, and neither the
machine's routes nor its firewall have a part in it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from tests.servers import ServerMissing

_NEW_NETWORK: Final = 0x40000000
"""CLONE_NEWNET."""
_HERE: Final = Path("/proc/self/task")


class Network:
    """``hosts`` namespaces of one address each, and a hub with the address :attr:`hub`, for as long as it is entered.

    Raises:
        ServerMissing: there is no ``ip`` command, or this user may make no namespaces.
    """

    hub: Final = "10.213.77.1"

    def __init__(self, hosts: int) -> None:
        self._stem = f"mdp{os.getpid()}"
        self.hosts = [f"{self._stem}-{i}" for i in range(hosts)]
        if shutil.which("ip") is None:
            raise ServerMissing("network namespaces are made by the command ip: apt-get install iproute2")
        if os.geteuid() != 0:
            raise ServerMissing("only root may make network namespaces")

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self._stem)
        except subprocess.CalledProcessError as error:
            raise ServerMissing(
                f"network namespaces are not permitted here: {error.stderr.strip()}"
            ) from None
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        # Links go with their namespaces.
        for name in (*self.hosts, self._stem):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def _build(self) -> None:
        inside = ("-netns", self._stem, "link")
        _ip(*inside, "set", "lo", "up")
        _ip(*inside, "add", "bridge", "type", "bridge")
        _ip("-netns", self._stem, "address", "add", f"{self.hub}/24", "dev", "bridge")
        _ip(*inside, "set", "bridge", "up")
        for i, host in enumerate(self.hosts):
            _ip("netns", "add", host)
            _ip(*inside, "add", f"port{i}", "type", "veth", "peer", "name", "wire", "netns", host)
            _ip(*inside, "set", f"port{i}", "master", "bridge", "up")
            _ip("-netns", host, "address", "add", f"10.213.77.{i + 2}/24", "dev", "wire")
            _ip("-netns", host, "link", "set", "wire", "up")
            _ip("-netns", host, "link", "set", "lo", "up")

    def on(self, host: int, command: list[str]) -> list[str]:
        """``command`` as it is started on a host."""
        return ["ip", "netns", "exec", self.hosts[host], *command]

    def cut(self, host: int) -> None:
        """Pull the host's plug: connections stay as they are, and nothing comes through."""
        _ip("-netns", self._stem, "link", "set", f"port{host}", "down")

    def heal(self, host: int) -> None:
        _ip("-netns", self._stem, "link", "set", f"port{host}", "up")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within, this thread and what it starts are on the hub."""
        with _namespace(_HERE / str(threading.get_native_id()) / "ns/net") as home:
            with _namespace(Path("/run/netns") / self._stem) as there:
                _enter(there)
            try:
                yield
            finally:
                _enter(home)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def _namespace(path: Path) -> Iterator[int]:
    found = os.open(path, os.O_RDONLY)
    try:
        yield found
    finally:
        os.close(found)


def _enter(namespace: int) -> None:
    # os.setns comes with Python 3.12.
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "this thread cannot enter a network namespace")
