"""Memory of this process, and the lines of a long command."""

import subprocess
import sys
import threading

import pytest

from leadre import progress
from leadre.errors import InputError
from leadre.train import machine


def write_cgroup(folder, names, limit_mb, used_mb, inactive_mb):
    folder.mkdir(parents=True, exist_ok=True)
    limit, used, inactive = names
    (folder / limit).write_text(f"{limit_mb if limit_mb == 'max' else limit_mb * machine.MB}\n")
    (folder / used).write_text(f"{used_mb * machine.MB}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{inactive} {inactive_mb * machine.MB}\nactive_file 9\n")


@pytest.mark.parametrize(
    ("lines", "root", "names"),
    [
        ("0::/job/step\n", ".", ("memory.max", "memory.current", "inactive_file")),
        (
            "5:devices:/\n4:cpu,memory:/job/step\n0::/\n",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_free_memory_is_that_of_the_container_with_its_page_cache(lines, root, names, tmp_path, monkeypatch):
    (tmp_path / "cgroup").write_text(lines)
    monkeypatch.setattr(machine, "_PROC_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    unlimited = machine.free_mb()
    assert unlimited > 300
    write_cgroup(tmp_path / root, names, 300, 250, 150)  # the group of the container, seen from inside
    assert machine.free_mb() == 200
    write_cgroup(tmp_path / root / "job", names, 100, 60, 40)  # an outer group
    assert machine.free_mb() == 80
    write_cgroup(tmp_path / root / "job" / "step", names, 2**43, 60, 0)  # no limit in version 1
    assert machine.free_mb() == 80
    if names[0] == "memory.max":
        write_cgroup(tmp_path / root / "job", names, "max", 60, 40)
        assert machine.free_mb() == 200


def test_peak_is_measured():
    """In a process of its own: the memory of one that has run other tests may fall meanwhile."""
    code = """
import numpy as np
from leadre.train import machine
with machine.watch(1e9) as peak:
    before = peak.mb
    block = np.ones(64 * machine.MB, np.uint8)
    peak.sample()
    del block
    print(peak.mb - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 <= float(done.stdout) < 100


def test_command_that_takes_too_much_memory_ends_with_words():
    with pytest.raises(InputError, match=r"memory: the command took .* of 1 MB"), machine.watch(1.0):
        threading.Event().wait(20)


def test_stage_that_swallows_an_interruption_is_interrupted_again(monkeypatch):
    monkeypatch.setattr(machine, "INTERRUPT_EVERY_S", 0.05)
    survived = []

    def stage():
        while len(survived) < 3:
            try:
                threading.Event().wait(20)
            except BaseException as error:
                survived.append(type(error))
        threading.Event().wait(20)

    with pytest.raises(InputError, match="run the command again, which continues"), machine.watch(1.0):
        stage()
    assert len(survived) == 3


def test_memory_is_bounded_in_a_background_command():
    """A shell starts background commands with SIGINT ignored."""
    code = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
from leadre.train import machine
with machine.watch(1.0):
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)
    assert "InputError: memory: the command took" in done.stderr


def test_interruption_by_the_user_stays_one():
    with pytest.raises(KeyboardInterrupt), machine.watch(1e9):
        raise KeyboardInterrupt


def test_silent_command_gives_a_sign_of_life(monkeypatch, capsys):
    progress.say("begin")
    progress.sign_of_life("train: running")
    monkeypatch.setattr(progress.console, "said_s", progress.console.said_s - 11)
    progress.sign_of_life("train: running")
    progress.sign_of_life("train: running")
    assert capsys.readouterr().err == "begin\ntrain: running, nothing new for 11 s\n"
