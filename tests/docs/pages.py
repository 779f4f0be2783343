"""Runs the blocks of a page in a scratch folder that looks like a checkout of the repository."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..serve.bidder import free_port
from .blocks import Block, PageError, matches

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0  # guards against a hang
PORTS = ("8080", "8081", "8090")  # of the pages; each page has ports of its own instead
COPIED = ("Makefile", "configs")
LINKED = ("bench", "clients", "constraints.txt", "docs", "leadre", "mkdocs.yml", "pyproject.toml", "runs", "tests")
EXPORTS = ".exports"  # the variables that the blocks of a page have exported
# A server gets the ports of its page. A repeated flag overrides, and so does the first of these.
LEADRE = """#!/bin/sh
verb=$1; shift
case "$verb,$1" in
  serve,|serve,--*) exec {python} -m leadre serve --port {port} --manage-port {manage_port} "$@" ;;
  *) exec {python} -m leadre "$verb" "$@" ;;
esac
"""


class Scratch:
    """A scratch folder for the blocks of one page, for a ``with``; its end stops the servers.

    ``setups``: name of a setup -> function that prepares this folder, called at the first block that needs it.
    """

    def __init__(self, folder: Path, setups: dict[str, Callable[[Scratch], None]]) -> None:
        self.folder = folder
        self.ports = dict(zip(PORTS, (str(free_port()) for _ in PORTS), strict=True))
        self.output = ""
        self._setups = setups
        self._done: set[str] = set()
        self._servers: list[subprocess.Popen[bytes]] = []
        # Variables of `make test` would make every `make` of a page a recursive one.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        self.environment = inherited | {
            "PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Scratch:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.folder / name)
        for path in (self.folder / "configs").glob("*.toml"):
            path.write_text(self.with_ports(path.read_text()))
        for name in LINKED:
            (self.folder / name).symlink_to(ROOT / name)
        self._link_environment()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the servers and wait until they have ended."""
        for server in self._servers:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
        for server in self._servers:
            server.wait(PATIENCE_S)

    def _link_environment(self) -> None:
        """A .venv of links to this Python's, up to date for make, with a `leadre` that has the ports of the page."""
        real = Path(sys.prefix)
        venv = self.folder / ".venv"
        (venv / "bin").mkdir(parents=True)
        for path in [*real.iterdir(), *(real / "bin").iterdir()]:
            link = venv / path.relative_to(real)
            if not link.exists() and path.name not in (".installed", "leadre"):
                link.symlink_to(path)
        python = shlex.quote(str(venv / "bin" / "python"))
        text = LEADRE.format(python=python, port=self.ports["8080"], manage_port=self.ports["8081"])
        (venv / "bin" / "leadre").write_text(text)
        (venv / "bin" / "leadre").chmod(0o755)
        (venv / ".installed").touch()  # newer than what it is made from: `make setup` has nothing to do

    def with_ports(self, text: str) -> str:
        """The text with the ports of this page."""
        return re.sub(rf"\b({'|'.join(PORTS)})\b", lambda match: self.ports[match[1]], text)

    def run(self, block: Block) -> None:
        """Run a block, write its file or compare the output before. PageError with the output if that fails."""
        text = self.with_ports(block.small)
        name = block.argument("after")
        reason = block.argument("skip")
        if reason is not None:
            print(f"{block.where}: skipped, {reason}")
        elif (path := block.argument("file")) is not None:
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        elif block.argument("output") is not None:
            if not matches(text, self.output):
                raise PageError(f"{block.where}: the output differs. It is:\n{self.output}")
        elif block.language in ("sh", "python"):
            if name is not None:
                self.set_up(name)
            if (url := block.argument("server")) is not None:
                self.start(text, self.with_ports(url), block.where)
            else:
                self.output = self.call(text, block.language, block.where)

    def set_up(self, name: str) -> None:
        """Run a setup, once."""
        if name not in self._setups:
            raise PageError(f"unknown setup {name!r}; there are {', '.join(self._setups)}")
        if name not in self._done:
            self._done.add(name)
            self._setups[name](self)

    def call(self, text: str, language: str, where: str) -> str:
        """Run a text to its end; returns stdout and stderr. Exported variables pass to later calls of sh."""
        keep = f'trap "export -p > {shlex.quote(str(self.folder / EXPORTS))}" EXIT\n'
        process = subprocess.Popen(
            _shell(keep + text) if language == "sh" else ["python", "-c", text],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=PATIENCE_S)
        except BaseException as error:  # the time limit of the test too
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # what left the group may hold the pipe
                process.communicate(timeout=5.0)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            output = (error.stdout or b"").decode(errors="replace")
            raise PageError(f"{where}: not done after {PATIENCE_S:.0f} s\n{output}") from error
        if process.returncode:
            raise PageError(f"{where}: exit status {process.returncode}\n{output}")
        return output

    def start(self, text: str, url: str, where: str) -> None:
        """Start a server, and wait for the first response of ``url``, of any status."""
        log = self.folder / f".server-{len(self._servers)}"
        with log.open("wb") as file:
            server = subprocess.Popen(
                _shell(text),
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._servers.append(server)
        end_s = time.monotonic() + PATIENCE_S
        while not _responds(url):
            if server.poll() is not None or time.monotonic() > end_s:
                raise PageError(f"{where}: no response of {url}\n{log.read_text(errors='replace')}")
            time.sleep(0.05)

    def responds(self, url: str) -> bool:
        """Whether a server of this page responds at a URL of the pages."""
        return _responds(self.with_ports(url))


def _shell(text: str) -> list[str]:
    return ["bash", "-euo", "pipefail", "-c", f"[ ! -e {EXPORTS} ] || . ./{EXPORTS}\n{text}"]


def _responds(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5.0).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
