"""Memory of this process, and the lines of a long command."""

import threading

import numpy as np
import pytest

from leadre import progress
from leadre.errors import InputError
from leadre.train import machine


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    unlimited = machine.free_mb()
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("0\n")
    assert machine.free_mb() == pytest.approx(unlimited, rel=0.5)
    (tmp_path / "memory.max").write_text(str(300 * machine.MB))
    (tmp_path / "memory.current").write_text(str(100 * machine.MB))
    assert machine.free_mb() == 200


def test_peak_is_measured():
    with machine.watch(1e9) as peak:
        before = peak.mb
        block = np.ones(64 * machine.MB, np.uint8)
        peak.sample()
        del block
        assert peak.mb >= before + 60


def test_command_that_takes_too_much_memory_ends_with_words():
    with pytest.raises(InputError, match=r"memory: the command took .* of 1 MB"), machine.watch(1.0):
        threading.Event().wait(20)


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
