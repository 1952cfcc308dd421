"""An authority of the test's own, and certificates that it signed, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.servers import ServerMissing

_NEW: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, both PEM."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates into ``folder``.

    Raises:
        ServerMissing: there is no openssl.
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        found = shutil.which("openssl")
        if found is None:
            raise ServerMissing("openssl is not installed: apt-get install openssl")
        self._openssl = found
        self._folder = folder
        self._own = self._make(name, "-addext", "basicConstraints=critical,CA:TRUE")
        self.file = self._own.certificate

    def sign(self, name: str) -> Certificate:
        """A certificate for ``localhost`` and 127.0.0.1."""
        signed = ("-CA", str(self._own.certificate), "-CAkey", str(self._own.key))
        return self._make(name, *signed, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")

    def _make(self, name: str, *options: str) -> Certificate:
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        files = ("-out", str(made.certificate), "-keyout", str(made.key))
        command = [self._openssl, "req", "-x509", *_NEW, "-subj", f"/CN={name}", *files, *options]
        subprocess.run(command, check=True, capture_output=True)
        return made
