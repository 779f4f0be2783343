"""The scripts of bench/ and runs/ import what the package has: no type checker reads them, and they run seldom."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# scripts of bench/rivals run in an environment of the rival's own, which the script beside them makes
SCRIPTS = sorted([*ROOT.glob("bench/*.py"), *ROOT.glob("bench/load/*.py"), *ROOT.glob("runs/*.py")])


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.relative_to(ROOT).as_posix() for path in SCRIPTS])
def test_script_imports(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path.parent))
    runpy.run_path(str(path), run_name="imported")
