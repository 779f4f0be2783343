"""The training loop: it learns, and a killed run ends where an undisturbed one does."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from leadre.lm import backbone as backbones
from leadre.tune import run as tune_stage
from leadre.tune import sft
from leadre.tune.batches import Examples


def schedule(**changes):
    settings = {
        "epochs": 2,
        "max_steps": 6,
        "batch_tokens": 500,
        "learning_rate": 1e-3,
        "codes_learning_rate": 3e-3,
        "weight_decay": 0.05,
        "seed": 0,
        "validate_every": 2,
        "checkpoint_s": -1.0,  # after every step
    }
    return sft.TrainingSchedule(**settings | changes)


class Killed(Exception):
    """Stands for whatever ends a process."""


def train(small, folder, plan=None, *, backbone=None, identity="a", kill_at=0):
    """(backbone, history); with ``kill_at`` the run dies in that step's validation."""
    backbone, calls = backbone or fresh(small), []

    def validate():
        calls.append(1)
        if kill_at and 2 * len(calls) >= kill_at:
            raise Killed
        return {"calls": np.array([len(calls)])}

    history = sft.train(backbone, small.examples(), plan or schedule(), folder, identity, validate)
    return backbone, history


def fresh(small):
    """As `tune` makes it, without pretraining's loud words."""
    made = backbones.create(small.folder, small.layout, small.live.codes_OL, layers=0, pointer=True)
    titles = [np.array([o % 90, 7]) for o in range(len(made.objects_OL))]
    backbones.init_codes(made, small.codebook.centroids, titles, seed=0)
    with torch.no_grad():  # the pointer's start comes from the global generator
        for index, parameter in enumerate(made.pointer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.05)
    return made


def weights(backbone):
    return {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    backbone, history = train(small, tmp_path_factory.mktemp("whole"))
    return weights(backbone), history


def test_a_killed_run_ends_where_an_undisturbed_one_does(small, undisturbed, tmp_path, capsys):
    expected, whole = undisturbed
    with pytest.raises(Killed):
        train(small, tmp_path, kill_at=4)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["state.json", "state.safetensors.3"]
    backbone, history = train(small, tmp_path)
    assert "takes the weights of step 3" in capsys.readouterr().err
    assert history.loss == whole.loss
    assert (history.step, history.tokens) == (whole.step, whole.tokens) == (6, whole.loss[-1][3])
    assert [step for step, _ in history.valid] == [step for step, _ in whole.valid] == [2, 4, 6]
    found = weights(backbone)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), f"{name} differs by {(found[name] - tensor).abs().max()}"


def test_a_checkpoint_of_another_config_is_left_alone(small, undisturbed, tmp_path, capsys):
    expected, _ = undisturbed
    with pytest.raises(Killed):
        train(small, tmp_path, identity="another", kill_at=4)
    backbone, history = train(small, tmp_path, identity="a")
    assert "another config" in capsys.readouterr().err
    assert history.loss[0][0] == 1
    assert all(torch.equal(weights(backbone)[name], tensor) for name, tensor in expected.items())


def test_a_write_that_was_cut_off_is_not_read(small, undisturbed, tmp_path):
    """Killed between the weights and the facts: the facts still name the older weights."""
    expected, _ = undisturbed
    with pytest.raises(Killed):
        train(small, tmp_path, kill_at=4)
    (tmp_path / "state.safetensors.4").write_bytes(b"half")
    (tmp_path / "state.json.tmp").write_text("{")
    backbone, _ = train(small, tmp_path)
    assert all(torch.equal(weights(backbone)[name], tensor) for name, tensor in expected.items())


def test_a_run_that_is_through_is_not_run_again(small, tmp_path):
    first, history = train(small, tmp_path)
    second, again = train(small, tmp_path)
    assert again.loss == history.loss
    assert all(torch.equal(weights(second)[name], tensor) for name, tensor in weights(first).items())


def test_what_is_seen_again_and_again_is_learnt(small, tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "WARMUP_STEPS", 5)
    few = small.examples().threads.training(seed=0)[:3]
    monkeypatch.setattr(Examples, "epoch", lambda self, seed, tokens: [few])
    plan = schedule(epochs=60, max_steps=0, learning_rate=3e-3, validate_every=1000, checkpoint_s=1e9)
    _, history = train(small, tmp_path, plan)
    loss = [row[1] for row in history.loss]
    assert len(loss) == 60
    assert loss[-1] < loss[0] - 0.4  # not to nothing: some requests have two answers
    assert not list(tmp_path.iterdir())  # no checkpoint before its time


def test_the_untrained_model_has_no_opinion_on_average(small):
    """After the opening, a code's mean score is zero, so what is live and how popular it is decides."""
    backbone, examples = fresh(small), small.examples()
    batches = [examples.batch(windows) for windows in examples.epoch(0, 500)[:4]]
    sft.start_from_prior(backbone, batches)
    for level in range(len(small.layout.sizes)):
        asked = []
        with torch.no_grad():
            for batch in batches:
                hidden = backbone(batch.ids_BT, batch.positions_BT.clamp(min=0), batch.mask_BNT, batch.thread)
                asked.append(backbone.logits(hidden.flatten(0, 1)[batch.predicts_NL[:, level]], level))
        scores = torch.cat(asked)
        assert float(scores.std(0).mean()) > 1e-4
        torch.testing.assert_close(scores.mean(0), torch.zeros(scores.shape[1]), rtol=0, atol=1e-5)


def test_the_rate_warms_up_and_ends_at_nothing():
    rates = [sft.learning_rate(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / sft.WARMUP_STEPS)
    assert max(rates) == pytest.approx(1 - (sft.WARMUP_STEPS - 1) / 1000)
    assert rates.index(max(rates)) == sft.WARMUP_STEPS - 1
    assert rates[-1] == 0 and rates[500] == 0.5
    assert all(a > b for a, b in pairwise(rates[60:]))


def test_only_the_body_learns_at_the_bodys_rate(small):
    backbone = fresh(small)
    body, rest = sft.make_optimizer(backbone, schedule()).param_groups
    assert (body["base"], rest["base"]) == (1e-3, 3e-3)
    names = {id(p): name for name, p in backbone.named_parameters()}
    assert all(names[id(p)].startswith("body.") for p in body["params"])
    assert {names[id(p)].split(".")[0] for p in rest["params"]} == {"codes_SD", "bias_S", "pointer"}
    assert len(body["params"]) + len(rest["params"]) == len(names)


def test_lora_trains_adapters_beside_the_codes_and_merges_into_the_body(small, tmp_path):
    backbone = fresh(small)
    was = weights(backbone)
    tune_stage._add_lora(backbone, 4)
    learns = set(sft.trained(backbone))
    assert {"codes_SD", "bias_S"} < learns
    assert all("lora_" in name for name in learns if name.startswith("body."))
    assert len([name for name in learns if "lora_A" in name]) == 14  # seven matrices in each of two layers
    train(small, tmp_path / "checkpoint", schedule(max_steps=2), backbone=backbone)
    backbone.body = backbone.body.merge_and_unload()
    now = weights(backbone)
    assert now.keys() == was.keys()
    changed = {name for name, tensor in was.items() if not torch.equal(tensor, now[name])}
    assert "codes_SD" in changed
    assert len([name for name in changed if name.endswith("proj.weight")]) == 14
    assert not [name for name in changed if "norm" in name]
    backbones.save(backbone, tmp_path)
    loaded = backbones.load(tmp_path, small.live.codes_OL)
    assert all(torch.equal(tensor, now[name]) for name, tensor in weights(loaded).items())


def test_training_leaves_denormal_numbers_as_they_were(small, tmp_path):
    train(small, tmp_path, plan=schedule(max_steps=1))
    assert float(torch.tensor(1e-310, dtype=torch.float64) * 0.5) > 0
