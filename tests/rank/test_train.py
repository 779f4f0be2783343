"""Training: a killed run and a run of several processes end with the weights of a plain one."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from leadre.rank import train
from leadre.rank.checkpoint import Checkpoint
from leadre.rank.models.dien import Dien
from leadre.rank.models.registry import RANKERS
from leadre.rank.train import Training

from .conftest import LAW, planted

TRAINING = Training(epochs=3, batch=16, checkpoint_s=0)


def fit(model, training=TRAINING, **options):
    return train.fit(model, LAW, planted(96, seed=1), planted(40, seed=2), training, 0, **options)


@dataclasses.dataclass
class Failing:
    """A ranker that fails in a call, as if the process were killed there."""

    ranker: object
    calls: int

    def init(self, spec, rng):
        return self.ranker.init(spec, rng)

    def user(self, params, spec, batch):
        return self.ranker.user(params, spec, batch)

    def score(self, params, spec, state, batch):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.ranker.score(params, spec, state, batch)


class FailingAssisted(Failing):
    def auxiliary(self, *arguments):
        return self.ranker.auxiliary(*arguments)


@pytest.fixture(scope="module")
def plain():
    return fit(RANKERS["tin"])


@pytest.mark.parametrize("calls", [2, 8, 9, 16])  # 6 batches and 3 validation batches an epoch
def test_a_killed_training_resumes_and_ends_with_the_same_bytes(plain, tmp_path, calls):
    checkpoint = Checkpoint(folder=tmp_path, key="a")
    with pytest.raises(KeyboardInterrupt):
        fit(Failing(RANKERS["tin"], calls), checkpoint=checkpoint)
    counted = Failing(RANKERS["tin"], 1000)
    weights, curve = fit(counted, checkpoint=checkpoint)
    assert {name: values.tobytes() for name, values in weights.items()} == {
        name: values.tobytes() for name, values in plain[0].items()
    }
    assert curve == plain[1]
    assert 1000 - counted.calls < 3 * 9, "the steps before the kill are not repeated"


def test_a_killed_training_with_an_auxiliary_loss_resumes_with_the_same_chance(tmp_path):
    """Its negatives are drawn by seed and step, so those after the kill are those of a plain run."""
    plain = fit(RANKERS["dien"])
    checkpoint = Checkpoint(folder=tmp_path, key="a")
    with pytest.raises(KeyboardInterrupt):
        fit(FailingAssisted(RANKERS["dien"], 8), checkpoint=checkpoint)
    weights, curve = fit(FailingAssisted(RANKERS["dien"], 1000), checkpoint=checkpoint)
    assert curve == plain[1]
    for name, values in plain[0].items():
        np.testing.assert_array_equal(weights[name], values)


def test_an_auxiliary_loss_is_no_part_of_the_losses_of_a_curve():
    still = dataclasses.replace(TRAINING, learning_rate=0.0, table_rate=0.0)
    curves = [fit(Dien(alpha=alpha), still)[1] for alpha in (0.0, 1.0)]
    assert curves[0] == curves[1]
    moved = [fit(Dien(alpha=alpha))[0] for alpha in (0.0, 1.0)]
    assert (moved[0]["interest.state"] != moved[1]["interest.state"]).any()


def test_a_checkpoint_of_another_training_is_not_resumed(plain, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        fit(Failing(RANKERS["tin"], 8), checkpoint=Checkpoint(folder=tmp_path, key="a"))
    _, curve = fit(RANKERS["tin"], checkpoint=Checkpoint(folder=tmp_path, key="b"))
    assert curve == plain[1]
    assert "training starts anew" in capsys.readouterr().err


def test_training_stops_after_epochs_without_gain():
    never = dataclasses.replace(TRAINING, learning_rate=0.0, table_rate=0.0, patience=2)
    _, curve = fit(RANKERS["tin"], dataclasses.replace(never, epochs=9))
    assert len(curve.valid) == 3, "the first epoch, and two that are not better"


def test_two_processes_end_with_the_weights_of_one(plain, tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path)], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (load_file(tmp_path / f"{number}.safetensors") for number in (0, 1))
    for name, values in plain[0].items():
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], values, atol=2e-5, err_msg=name)
