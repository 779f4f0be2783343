"""A small synthetic market as logs, and the lists of an undisturbed run."""

import pytest

from leadre.__main__ import main
from leadre.data import histories, world

from .tiny import LISTS, MODEL, argv, lines_of


@pytest.fixture(scope="session")
def logs():
    market = world.read(seed=5, users=80, ads=60, contents=15)
    return histories.of_tables(market, "conversion")


@pytest.fixture(scope="session")
def work(tiny_encoder, tiny_llama, tmp_path_factory):
    """A run with a model of a few training steps."""
    folder = tmp_path_factory.mktemp("work")
    models = {"data": "", "semid": f" --encoder {tiny_encoder}", "tune": f" --backbone {tiny_llama}"}
    for name, flags in MODEL.items():
        assert main(argv(name, folder, flags + models[name])) == 0
    return folder


@pytest.fixture(scope="session")
def undisturbed(work):
    """The lists of a run without kills or failures, as lines."""
    assert main(argv("generate lists", work, LISTS)) == 0
    assert not (work / "r" / ".generate-lists").exists(), "a finished run removes its leases"
    return lines_of(f"lmdb:{work / 'r' / 'state' / 'lists'}")
