"""Control runs: the prior alone, a frozen body, random word embeddings, and a run that learns nothing."""

import json

import numpy as np
import pytest
import torch

from leadre import artifact
from leadre.__main__ import main
from leadre.data.histories import TEST
from leadre.evaluate.ablation.variants import CONTROLS
from leadre.lm import backbone as backbones
from leadre.semid import codebook as codebooks
from leadre.tune import model as saved
from leadre.tune import sft
from leadre.tune.answers import Outcomes

from .schedules import schedule

FLAGS = "--layers 0 --short-tokens 150 --long-tokens 60 --described 0 --max-steps 2 --batch-tokens 800"
OPTIONS = {row.name: row.options for row in CONTROLS}


def validate():
    return {"all": Outcomes(np.ones(1), np.zeros(1), np.zeros(1))}


def test_frozen_body_keeps_its_weights_while_code_rows_learn(small, tmp_path):
    backbone = small.backbone(seed=3)
    backbones.freeze(backbone, body=True, codes=False)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    sft.train(backbone, small.examples(), schedule(), tmp_path, "a", validate)
    changed = {name for name, tensor in backbone.state_dict().items() if not torch.equal(before[name], tensor)}
    assert {"codes_SD", "bias_S", "pointer.query.weight"} <= changed
    assert not [name for name in changed if name.startswith("body.")]


@pytest.fixture(scope="module")
def runs(tiny_encoder, tiny_llama, tmp_path_factory):
    """Work folder: the world's tables and IDs, and a model of each control by the options of the ablation's row."""
    work = tmp_path_factory.mktemp("work")
    common = ["--work", str(work), "--threads", "1"]

    def verb(name, run, flags):
        assert main([name, *common, "--run", run, *flags.split()]) == 0

    verb("data", "base", "--source world --world-users 40 --world-ads 40 --world-contents 12")
    verb("semid", "base", f"--encoder {tiny_encoder} --levels 8,6 --collisions 24")
    for name in ("base", "untrained", "prior-alone", "frozen-body", "random-all"):
        (work / name).mkdir(exist_ok=True)
        for step in ("data", "semid"):
            if name != "base":
                (work / name / step).symlink_to(work / "base" / step)
        options = {key: json.dumps(value) for key, value in OPTIONS.get(name, {}).items()}
        options = {"max_steps": 2} | options
        flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in options.items())
        verb("tune", name, f"{FLAGS.replace(' --max-steps 2', '')} --backbone {tiny_llama} {flags}")
    return work


def load(work, run):
    tables = artifact.read(work / run / "data", artifact.TABLES)
    ids = codebooks.load(artifact.read(work / run / "semid", artifact.CODEBOOK))
    return saved.load(tables, ids, artifact.read(work / run / "tune-sft", artifact.MODEL), training=False)


def test_prior_alone_answers_with_the_response_rates(runs):
    """Each object's probability is its share of the rates of the live objects."""
    tuned = load(runs, "prior-alone")
    assert tuned.backbone.pointer is None and not tuned.backbone.codes_SD.any()
    r = int(tuned.threads.logs.requests_of(TEST)[0])
    moment = tuned.threads.moments[r]
    ranked = tuned.searcher().answer_one(moment, "all", 64)
    rates_O = tuned.live.rates_O
    expected = np.log(rates_O[ranked.objects] / rates_O[moment.inventory.objects].sum())
    np.testing.assert_allclose(ranked.log_p, expected, atol=1e-4)
    assert len(ranked.objects) > 10 and len(set(np.round(expected, 4))) > 3


def test_untrained_row_has_the_weights_of_the_start(runs):
    """All but the biases, which centring sets before the first step."""
    states = {run: load(runs, run).backbone.state_dict() for run in ("base", "untrained", "frozen-body", "random-all")}
    body = [name for name in states["base"] if name.startswith("body.") and states["base"][name].dim() == 2]
    for name in body:
        assert torch.equal(states["untrained"][name], states["frozen-body"][name])  # the pretrained weights
        assert not torch.equal(states["untrained"][name], states["base"][name])
        assert not torch.equal(states["untrained"][name], states["random-all"][name])
    assert not torch.equal(states["untrained"]["codes_SD"], states["frozen-body"]["codes_SD"])


def test_random_words_have_the_spread_of_the_pretrained_ones(runs):
    words = {run: load(runs, run).backbone.words_VD.float() for run in ("base", "random-all", "untrained")}
    assert torch.equal(words["base"], words["untrained"])
    both = torch.stack([words["base"].flatten(), words["random-all"].flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.05
    assert float(words["random-all"].std()) == pytest.approx(float(words["base"].std()), rel=0.03)


def test_preference_training_leaves_a_frozen_body_frozen(runs):
    work = runs
    flags = "--users 8 --max-steps 2 --batch-tokens 800 --validate-every 2 --guard 1"
    assert main(["tune", "dpo", "--work", str(work), "--run", "frozen-body", "--threads", "1", *flags.split()]) == 0
    tables = artifact.read(work / "frozen-body" / "data", artifact.TABLES)
    ids = codebooks.load(artifact.read(work / "frozen-body" / "semid", artifact.CODEBOOK))
    model = artifact.read(work / "frozen-body" / "tune-dpo", artifact.MODEL)
    tuned = saved.load(tables, ids, model, training=True)
    frozen = [name for name, p in tuned.backbone.named_parameters() if not p.requires_grad]
    assert frozen and all(name.startswith("body.") for name in frozen)
    before = load(work, "frozen-body").backbone.state_dict()
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in tuned.backbone.state_dict().items() if name in frozen
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--freeze-body true --adapter lora", "LoRA trains the body; set --adapter full"),
        ("--freeze-body true --zero-codes true --pointer false", "nothing is left to train"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, capsys, flags, message):
    assert main(["tune", "--work", str(tmp_path), *flags.split()]) == 2
    assert message in capsys.readouterr().err
