"""The packages of clients/prebid, installed by npm from its lock file, for tests that run Node."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[1] / "clients" / "prebid"
OLDEST_NODE = (20, 11)
# Error codes of npm without a registry; any other failure is a fault of ours.
NO_REGISTRY = ("ENOTFOUND", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH", "ERR_SOCKET_TIMEOUT")


def installed() -> Path:
    """The folder with the node_modules of the lock file, kept from run to run.

    Skips where there is no Node or no registry; with LEADRE_BROWSER=required that is a failure.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        without_node("node and npm are not installed")
    version = run("node", "--version", at=CLIENT).strip().removeprefix("v")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_NODE:
        without_node(f"node {version} is older than {'.'.join(map(str, OLDEST_NODE))}")
    cache = Path(os.environ.get("LEADRE_NODE", "~/.cache/leadre")).expanduser()
    folder = cache / f"prebid-{hashlib.sha256((CLIENT / 'package-lock.json').read_bytes()).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:  # tests in another process may need the folder too
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            install(folder)
    return folder


def install(folder: Path) -> None:
    """Install the packages of the lock file into a new folder, whole or not at all."""
    cache = folder.parent
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=cache))
    try:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(CLIENT / name, part)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        done = subprocess.run(command, cwd=part, capture_output=True, text=True)
        if done.returncode and any(sign in done.stderr for sign in NO_REGISTRY):
            without_node(f"npm reaches no registry: {done.stderr.strip().splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def without_node(why: str) -> None:
    if os.environ.get("LEADRE_BROWSER") == "required":
        pytest.fail(f"LEADRE_BROWSER=required, but {why}")
    pytest.skip(f"no Node with packages: {why}")


def run(*command: str, at: Path, stdin: str = "", **environment: str) -> str:
    """The output of a command; a failure is an error with what it wrote to stderr."""
    environment = os.environ | environment
    done = subprocess.run(command, cwd=at, input=stdin, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
