"""The command `tune dpo` on the synthetic market: an artifact that generates, made once, and errors that teach."""

import asyncio
import shutil
import time

import numpy as np
import polars as pl
import pytest

from leadre import artifact, config
from leadre.__main__ import main
from leadre.data import histories
from leadre.data.moment import of_requests
from leadre.data.prices import object_prices
from leadre.lm.prior import NO_PRICE_EXPONENTS
from leadre.semid import codebook as codebooks
from leadre.serve.ipc.messages import GenerateRequest
from leadre.serve.processes.model_server import ModelServer
from leadre.store.contract import ProfileEvent
from leadre.tune import model as saved
from leadre.tune import run as tune
from leadre.tune.preferences import run as run_dpo
from leadre.tune.threads import serving_prompt

PARENTS = {"data": artifact.TABLES, "semid": artifact.CODEBOOK}

MODEL = {
    "data": "--source world --world-users 60 --world-ads 60 --world-contents 12",
    "semid": "--levels 8,6 --collisions 24 --collaborative 2 --collaborative-dim 8",
    "tune": "--layers 0 --short-tokens 150 --long-tokens 60 --described 0 --max-steps 2 --batch-tokens 800",
}
PREFER = "--on-policy true --users 8 --max-steps 4 --batch-tokens 800 --validate-every 2 --guard 0.9"
ALIGN = (
    ("generate", "--users 8"),
    ("generate", "--split train --users 8 --step generate-negatives"),
    ("tune dpo", PREFER),
    ("generate", "--users 8 --model dpo --step generate-dpo"),
)


def verb(name, work, flags):
    """Exit status of one verb in the run `r`."""
    return main([*name.split(), "--work", str(work), "--run", "r", "--threads", "1", *flags.split()])


def link(work, source, **steps):
    """A run that links steps of another run; ``steps``: name here -> name there."""
    (work / "r").mkdir()
    for step in ("data", "semid", "tune-sft", "generate-negatives"):
        (work / "r" / step).symlink_to(source / "r" / step)
    for step, there in steps.items():
        (work / "r" / step).symlink_to(source / "r" / there)


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def aligned(tiny_encoder, tiny_llama, tmp_path_factory):
    """A model after a few steps: its lists of training requests, preference training on them, and its new lists."""
    work = tmp_path_factory.mktemp("work")
    models = {
        "data": "",
        "semid": f" --encoder {tiny_encoder}",
        "tune": f" --backbone {tiny_llama} --burn-in 0.4 --affinity true",
    }
    for name, flags in [*((name, flags + models[name]) for name, flags in MODEL.items()), *ALIGN]:
        assert verb(name, work, flags) == 0
    return work


def model(work, step="tune-dpo"):
    return artifact.read(work / "r" / step, artifact.MODEL)


def lists(work, step):
    ranked = artifact.read(work / "r" / step, artifact.LISTS)
    return ranked, pl.read_parquet(ranked.path / "lists.parquet")


def test_preference_training_writes_a_model_that_generates(aligned):
    tuned = model(aligned)
    before = model(aligned, "tune-sft")
    assert set(before.meta["files"]) - {"loss.png"} <= set(tuned.meta["files"])
    changed = {name for name, digest in before.meta["files"].items() if tuned.meta["files"].get(name) != digest}
    assert changed == {"model.safetensors", "loss.csv", "valid.csv", "loss.png"}
    assert list(tuned.meta["parents"]) == ["data", "semid", "tune-sft", "generate-negatives"]
    pairs = pl.read_csv(tuned.path / "pairs.csv")
    of = [f"{what} {name}" for name in ("chosen", "rejected") for what in ("log_p", "gained")]
    assert pairs.columns == ["step", "preference", "margin", "accuracy", *of]
    assert pairs["step"].to_list() == [1, 2, 3, 4] and pairs["margin"][0] == pytest.approx(0, abs=1e-6)
    assert pl.read_csv(tuned.path / "valid.csv")["step"].to_list() == [0, 0, 2, 4]  # before, with prices, and so on
    generated, ours = lists(aligned, "generate-dpo")
    assert generated.meta["parents"]["tune-dpo"] == tuned.hash
    _, theirs = lists(aligned, "generate")
    assert ours.select("request", "view").equals(theirs.select("request", "view"))
    assert not ours["scores"].equals(theirs["scores"])


def test_a_preference_model_weighs_prices_in_prior_and_pointer(aligned):
    tables, codebook = (artifact.read(aligned / "r" / step, kind) for step, kind in PARENTS.items())
    plain, priced = (
        saved.load(tables, codebooks.load(codebook), model(aligned, step), training=False)
        for step in ("tune-sft", "tune-dpo")
    )
    worth_O = priced.live.rates_O / plain.live.rates_O
    price_O = object_prices(plain.threads.logs)
    np.testing.assert_allclose(worth_O, (price_O / np.median(price_O)) ** priced.live.money.prior)
    assert (
        plain.live.money == NO_PRICE_EXPONENTS
        and priced.live.money == (0.5, 0.1)
        and worth_O.max() > 1.1 * worth_O.min()
    )


def test_the_last_model_is_the_one_by_value_until_another_is_fine_tuned(aligned, tmp_path, capsys):
    ask = config.Common(work=tmp_path, run="r")
    assert tune.latest(ask) == tmp_path / "r" / "tune-sft"  # where there is none yet
    link(tmp_path, aligned)
    assert tune.latest(ask) == tmp_path / "r" / "tune-sft"
    (tmp_path / "r" / "tune-dpo").symlink_to(aligned / "r" / "tune-dpo")
    assert tune.latest(ask) == tmp_path / "r" / "tune-dpo"
    (tmp_path / "r" / "tune-sft").unlink()
    assert tune.latest(ask) == tmp_path / "r" / "tune-dpo"
    shutil.copytree(aligned / "r" / "tune-dpo", tmp_path / "r" / "tune-sft")  # a model, but not the one it began with
    capsys.readouterr()
    assert tune.latest(ask) == tmp_path / "r" / "tune-sft"
    assert "run `leadre tune dpo`" in capsys.readouterr().err


def test_negatives_answer_training_requests_of_the_users_asked_for(aligned):
    ranked, negatives = lists(aligned, "generate-negatives")
    logs = histories.load(artifact.read(aligned / "r" / "data", artifact.TABLES))
    requests = histories.choose_requests(logs, split="train", users=8, seed=0)
    assert negatives["request"].unique().sort().to_list() == requests.tolist()
    assert "step" not in ranked.meta["config"] and ranked.meta["config"]["split"] == "train"


def test_a_second_run_does_nothing(aligned, capsys):
    capsys.readouterr()
    for name, flags in ALIGN:
        assert verb(name, aligned, flags) == 0
        assert "is current, nothing to do" in capsys.readouterr().err
    assert not [path.name for path in (aligned / "r").iterdir() if path.name.startswith(".")]


def test_a_killed_run_changes_no_byte(aligned, tmp_path, monkeypatch):
    link(tmp_path, aligned)
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "_swap", interrupt)
        assert verb("tune dpo", tmp_path, PREFER) == 130
    assert not (tmp_path / "r" / "tune-dpo").exists()
    assert (tmp_path / "r" / ".tune-dpo.checkpoint").exists()
    assert verb("tune dpo", tmp_path, PREFER) == 0
    assert model(tmp_path).meta["files"] == model(aligned).meta["files"]


def test_a_changed_option_trains_again(aligned, tmp_path, capsys):
    """Without the lists, it is another model; the fine-tuned one stays as it is."""
    link(tmp_path, aligned)
    capsys.readouterr()
    assert verb("tune dpo", tmp_path, f"{PREFER} --on-policy false --max-steps 1") == 0
    assert ", 0 on_policy" in capsys.readouterr().err
    assert list(model(tmp_path).meta["parents"]) == ["data", "semid", "tune-sft"]
    assert verb("tune dpo", tmp_path, f"{PREFER} --max-steps 1") == 0
    assert ", 0 on_policy" not in capsys.readouterr().err


def test_training_requests_are_weighed_as_they_were_for_fine_tuning(aligned):
    """By affinities that have not seen the user; what is served is weighed by those that have."""
    tables, codebook = (artifact.read(aligned / "r" / step, kind) for step, kind in PARENTS.items())
    ids = codebooks.load(codebook)
    logs = histories.load(tables)
    config = tune.Config(affinity=True)
    theirs = tune._live(config, logs, ids)
    moments = of_requests(logs)
    for step in ("tune-sft", "tune-dpo"):
        ours = saved.load_live(logs, ids, model(aligned, step), training=True, money=NO_PRICE_EXPONENTS)
        served = saved.load_live(logs, ids, model(aligned, step), training=False, money=NO_PRICE_EXPONENTS)
        differs = 0
        for r in range(0, len(logs.request_user_R), 7):
            moment = moments[r]
            weights = theirs.weights(moment, moment.inventory.objects)
            assert np.allclose(ours.weights(moment, moment.inventory.objects), weights)
            differs += not np.allclose(served.weights(moment, moment.inventory.objects), weights)
        assert differs > 0.5 * np.mean(logs.request_split_R == 0) * r / 7


def test_the_burn_in_of_fine_tuning_makes_no_pairs(aligned):
    tables, codebook = (artifact.read(aligned / "r" / step, kind) for step, kind in PARENTS.items())
    ids = codebooks.load(codebook)
    for step in ("tune-sft", "tune-dpo"):
        loaded = saved.load(tables, ids, model(aligned, step), training=True)
        logs = loaded.threads.logs
        has_answer_R = np.diff(logs.relevant_offsets) > 0
        at_us = logs.request_at_us_R[(logs.request_split_R == 0) & has_answer_R]
        learnt_us = at_us.min() + 0.4 * (at_us.max() - at_us.min())
        examples = run_dpo._examples(run_dpo.Config(), loaded, ids, [])
        assert logs.request_at_us_R[examples.requests_R].min() >= learnt_us > at_us.min()
        assert len(examples.requests_R) == (at_us >= learnt_us).sum()


@pytest.mark.parametrize(
    ("name", "flags", "training"),
    [
        ("tune dpo", "--users 8", True),
        ("generate", "--split train --users 9", True),
        ("generate", "--split valid", False),
    ],
)
def test_lists_of_training_requests(aligned, tmp_path, monkeypatch, name, flags, training):
    link(tmp_path, aligned)
    trainings = []

    def load_live(logs, ids, model, *, training, money, now_us):
        trainings.append(training)
        raise KeyboardInterrupt

    monkeypatch.setattr(saved, "load_live", load_live)
    assert verb(name, tmp_path, flags) == 130
    assert trainings == [training]


def test_a_bidder_counts_what_the_user_pays(aligned):
    """Two users with equal objects and opposite prices: each is offered the object that they paid more for."""
    tables, codebook = (artifact.read(aligned / "r" / step, kind) for step, kind in PARENTS.items())
    with ModelServer(tables, codebook, model(aligned, "tune-dpo"), beam=8) as generator:
        logs = histories.load(tables)
        first, second = of_requests(logs)[0].inventory.objects[:2].tolist()
        ids = list(generator.objects)
        count = len(generator.live.codes_OL)
        live = np.packbits(np.isin(np.arange(count), [first, second])).tobytes()
        answers = []
        prompts = []
        for paid in ((100, 1), (1, 100)):
            nanos = dict(zip((first, second), (euros * 1_000_000_000 for euros in paid), strict=True))
            recent = [ProfileEvent(ids[o], 1_000_000 * (n + 1), "ad", nanos[o]) for n, o in enumerate((first, second))]
            request = GenerateRequest("stranger", recent, 9_000_000, live, 2, time.monotonic() + 60)
            answer = asyncio.run(generator.answer(request))
            answers.append(dict(zip(answer.objects, answer.log_p, strict=True)))
            moment = generator.moment(request.user_id, recent, request.now_us, np.ones(count, np.bool_))
            prompts.append(serving_prompt(generator.prompter, moment).tolist())
    assert prompts[0] == prompts[1] and set(answers[0]) == {first, second}
    assert answers[0][first] > answers[1][first] + 0.1 and answers[1][second] > answers[0][second] + 0.1


def test_a_model_learns_no_preferences_in_ids_that_it_does_not_know(aligned, tiny_encoder, tmp_path, capsys):
    link(tmp_path, aligned)
    (tmp_path / "r" / "semid").unlink()
    assert verb("semid", tmp_path, f"--encoder {tiny_encoder} --levels 6,8") == 0
    capsys.readouterr()
    assert verb("tune dpo", tmp_path, "") == 2
    assert "was tuned on other semantic IDs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("tune", "--stage dp", "unknown subcommand of `leadre tune`; the nearest is `leadre tune dpo`"),
        ("tune dpo", "--layers 2", "unknown key 'layers'"),
        ("tune dpo", "--beta 0", "--beta: must be above 0, got 0.0"),
        ("tune dpo", "--negatives 0", "--negatives: must be at least 1, got 0"),
        ("tune dpo", "--guard -1", "--guard: must be at least 0, got -1.0"),
        ("tune dpo", "--value-ratio 1", "--value-ratio: must be above 1, got 1.0"),
        ("tune dpo", "--live-unbought false --higher-value false", "no rule makes pairs"),
        ("tune dpo", "--on-policy true --lists generate", "another model or other logs made these lists"),
        ("tune dpo", "--on-policy true --seed 5 --users 1", "holds no list of these training requests"),
        ("tune dpo", "--live-unbought false --value-ratio 1e9", "the rules find no pair"),
        ("generate", "--step data", "--step data: must be generate or generate-NAME"),
        ("generate", "--model dpo", "there is no model artifact here; run `leadre tune dpo"),
        ("generate", "--stage dpo", "unknown subcommand of `leadre generate`"),
    ],
)
def test_wrong_input_is_reported_in_one_line(aligned, tmp_path, capsys, name, flags, message):
    link(tmp_path, aligned, generate="generate-dpo")
    capsys.readouterr()
    assert verb(name, tmp_path, flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r" / "tune-dpo").exists()
