"""Mutated folders: every one is read or refused with words, and no row is lost without a word."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from leadre.__main__ import main
from tests.data import mutations


@pytest.mark.parametrize("seed", range(40))
def test_mutated_folder_is_read_or_refused(seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`bench/mutated_logs.py` checks thousands of them."""
    folder = mutations.write_mutated(random.Random(seed), tmp_path / "logs")
    options = ["--run", "mine", "--work", str(tmp_path / "work"), "--source", "files", "--path", str(tmp_path / "logs")]
    status = main(["data", *options, *folder.arguments])
    output = capfd.readouterr()
    if status == 0:
        assert mutations.faults(folder, output.err, tmp_path / "work" / "mine" / "data") == []
    else:
        assert status == 2
        assert "leadre: " in output.err
