"""The training loop: the loss falls, and a killed run ends with the weights of an undisturbed one."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from leadre.lm import backbone as backbones
from leadre.tune import optimizer, sft
from leadre.tune import run as tune_stage
from leadre.tune.answers import Outcomes
from leadre.tune.batches import Examples

from .schedules import schedule


class Killed(Exception):
    """Raised in place of a signal that ends the process."""


def train(small, folder, settings=None, *, backbone=None, resume_key="a", kill_at=0):
    """(backbone, history); with ``kill_at`` the run ends in that step's validation."""
    backbone = backbone or untrained(small)
    calls = []

    def validate():
        calls.append(1)
        if kill_at and 2 * len(calls) >= kill_at:
            raise Killed
        return {"all": Outcomes(np.array([float(len(calls))]), np.zeros(1), np.zeros(1))}

    history = sft.train(backbone, small.examples(), settings or schedule(), folder, resume_key, validate)
    return backbone, history


def untrained(small):
    """The backbone as `tune` creates it, with random word embeddings instead of pretrained ones."""
    backbone = backbones.create(small.folder, small.layout, small.live.codes_OL, layers=0, pointer=True)
    titles = [np.array([o % 90, 7]) for o in range(len(backbone.objects_OL))]
    backbones.init_codes(backbone, small.codebook.centroids, titles, seed=0)
    with torch.no_grad():  # the pointer is initialised from the global generator
        for index, parameter in enumerate(backbone.pointer.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.05)
    return backbone


def weights(backbone):
    return {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    backbone, history = train(small, tmp_path_factory.mktemp("whole"))
    return weights(backbone), history


def test_killed_run_ends_with_the_weights_of_an_undisturbed_one(small, undisturbed, tmp_path, capsys):
    expected, whole = undisturbed
    with pytest.raises(Killed):
        train(small, tmp_path, kill_at=4)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["state.json", "state.safetensors.3"]
    backbone, history = train(small, tmp_path)
    assert "takes the weights of step 3" in capsys.readouterr().err
    assert history.loss == whole.loss
    assert (history.step, history.tokens) == (whole.step, whole.tokens) == (6, whole.loss[-1][3])
    assert [step for step, _ in history.valid] == [step for step, _ in whole.valid] == [2, 4, 6]
    resumed = weights(backbone)
    assert resumed.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(resumed[name], tensor), f"{name} differs by {(resumed[name] - tensor).abs().max()}"


def test_checkpoint_of_another_config_is_ignored(small, undisturbed, tmp_path, capsys):
    expected, _ = undisturbed
    with pytest.raises(Killed):
        train(small, tmp_path, resume_key="another", kill_at=4)
    backbone, history = train(small, tmp_path, resume_key="a")
    assert "another config" in capsys.readouterr().err
    assert history.loss[0][0] == 1
    assert all(torch.equal(weights(backbone)[name], tensor) for name, tensor in expected.items())


def test_interrupted_checkpoint_write_is_ignored(small, undisturbed, tmp_path):
    """Killed between the weights and state.json: state.json still names the older weights."""
    expected, _ = undisturbed
    with pytest.raises(Killed):
        train(small, tmp_path, kill_at=4)
    (tmp_path / "state.safetensors.4").write_bytes(b"half")
    (tmp_path / "state.json.tmp").write_text("{")
    backbone, _ = train(small, tmp_path)
    assert all(torch.equal(weights(backbone)[name], tensor) for name, tensor in expected.items())


def test_finished_run_takes_no_further_step(small, tmp_path):
    first, history = train(small, tmp_path)
    second, again = train(small, tmp_path)
    assert again.loss == history.loss
    assert all(torch.equal(weights(second)[name], tensor) for name, tensor in weights(first).items())


def test_loss_falls_on_a_batch_seen_in_every_epoch(small, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer, "WARMUP_STEPS", 5)
    few = small.examples().threads.training(seed=0)[:3]
    monkeypatch.setattr(Examples, "epoch", lambda self, seed, tokens: [few])
    settings = schedule(epochs=60, max_steps=0, learning_rate=3e-3, validate_every=1000, checkpoint_s=1e9)
    _, history = train(small, tmp_path, settings)
    loss = [row[1] for row in history.loss]
    assert len(loss) == 60
    assert loss[-1] < loss[0] - 0.4  # not to 0: some requests have two answers
    assert not list(tmp_path.iterdir())  # no checkpoint before its time


def test_centring_sets_the_mean_score_of_each_code_to_zero(small):
    """So the prior over live objects decides before the first step."""
    backbone = untrained(small)
    examples = small.examples()
    batches = [examples.batch(windows) for windows in examples.epoch(0, 500)[:4]]
    sft.centre_code_scores(backbone, batches)
    for level in range(len(small.layout.sizes)):
        logits = []
        with torch.no_grad():
            for batch in batches:
                hidden = backbone(batch.ids_BT, batch.positions_BT.clamp(min=0), batch.mask_BNT, batch.thread_length)
                logits.append(backbone.logits(hidden.flatten(0, 1)[batch.predicts_NL[:, level]], level))
        scores = torch.cat(logits)
        assert float(scores.std(0).mean()) > 1e-4
        torch.testing.assert_close(scores.mean(0), torch.zeros(scores.shape[1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("max_steps", "count"), [(3, 3), (0, sft.CENTRING_BATCHES)])
def test_centring_reads_no_batch_that_is_not_trained_on(small, tmp_path, monkeypatch, max_steps, count):
    seen = []
    monkeypatch.setattr(sft, "centre_code_scores", lambda backbone, batches: seen.append(len(batches)) or killed())
    with pytest.raises(Killed):
        train(small, tmp_path, schedule(max_steps=max_steps, epochs=9, batch_tokens=400))
    assert seen == [count]


def killed():
    raise Killed


def test_learning_rate_warms_up_and_decays_to_zero():
    rates = [optimizer.learning_rate(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / optimizer.WARMUP_STEPS)
    assert max(rates) == pytest.approx(1 - (optimizer.WARMUP_STEPS - 1) / 1000)
    assert rates.index(max(rates)) == optimizer.WARMUP_STEPS - 1
    assert rates[-1] == 0 and rates[500] == 0.5
    assert all(a > b for a, b in pairwise(rates[60:]))


@pytest.mark.parametrize(("steps", "warm_up"), [(40, 8), (120, 24), (1000, 60), (4, 1), (1, 1)])
def test_warm_up_takes_at_most_a_fifth_of_the_steps(steps, warm_up):
    """A short run reaches the rate that was set; a fixed warm-up of 60 steps kept 40 steps below a sixth of it."""
    rates = [optimizer.learning_rate(step, steps) for step in range(steps)]
    assert rates.index(max(rates)) == warm_up - 1
    assert max(rates) == pytest.approx(1 - (warm_up - 1) / steps) and max(rates) > 0.8


def test_only_the_body_has_the_body_rate(small):
    backbone = untrained(small)
    body, rest = sft.schedule_optimizer(backbone, schedule()).param_groups
    assert (body["base"], rest["base"]) == (1e-3, 3e-3)
    names = {id(p): name for name, p in backbone.named_parameters()}
    assert all(names[id(p)].startswith("body.") for p in body["params"])
    assert {names[id(p)].split(".")[0] for p in rest["params"]} == {"codes_SD", "bias_S", "pointer"}
    assert len(body["params"]) + len(rest["params"]) == len(names)


def test_lora_trains_adapters_and_codes_and_merges_into_the_body(small, tmp_path):
    backbone = untrained(small)
    before = weights(backbone)
    tune_stage._add_lora(backbone, 4)
    trainable = set(optimizer.trainable_parameters(backbone))
    assert {"codes_SD", "bias_S"} < trainable
    assert all("lora_" in name for name in trainable if name.startswith("body."))
    assert len([name for name in trainable if "lora_A" in name]) == 14  # seven matrices in each of two layers
    train(small, tmp_path / "checkpoint", schedule(max_steps=2), backbone=backbone)
    backbone.body = backbone.body.merge_and_unload()
    after = weights(backbone)
    assert after.keys() == before.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert "codes_SD" in changed
    assert len([name for name in changed if name.endswith("proj.weight")]) == 14
    assert not [name for name in changed if "norm" in name]
    backbones.save(backbone, tmp_path)
    loaded = backbones.load(tmp_path, small.live.codes_OL)
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(loaded).items())


def test_training_restores_denormal_numbers(small, tmp_path):
    train(small, tmp_path, schedule(max_steps=1))
    assert float(torch.tensor(1e-310, dtype=torch.float64) * 0.5) > 0
