"""A small synthetic market as logs."""

import pytest

from leadre.data import histories, world


@pytest.fixture(scope="session")
def logs():
    made = world.read(seed=5, users=80, ads=60, contents=15)
    frames = {name: frame for name, frame in made.named().items() if name != "bad_rows"}
    return histories.build(**frames, positive="conversion")
