"""`leadre tune dpo` on the synthetic market: its artifact, resumption, and one-line errors."""

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
from leadre.tune.latest import latest
from leadre.tune.preferences import run as run_dpo
from leadre.tune.preferences.values import ObjectValues
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
    """Link the inputs of `tune dpo` from ``source`` into the empty folder ``work``; ``steps``: new name -> old name."""
    (work / "r").mkdir()
    for step in ("data", "semid", "tune-sft", "generate-negatives"):
        (work / "r" / step).symlink_to(source / "r" / step)
    for step, source_step in steps.items():
        (work / "r" / step).symlink_to(source / "r" / source_step)


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def aligned(tiny_encoder, tiny_llama, tmp_path_factory):
    """A work folder: a model of two steps, its lists of training requests, `tune dpo` on them, and its lists."""
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
    """(artifact, its table) of a step of `generate`."""
    generated = artifact.read(work / "r" / step, artifact.LISTS)
    return generated, pl.read_parquet(generated.path / "lists.parquet")


def test_dpo_writes_a_model_that_generates(aligned):
    tuned = model(aligned)
    base = model(aligned, "tune-sft")
    assert set(base.meta["files"]) - {"loss.png"} <= set(tuned.meta["files"])
    changed = {name for name, digest in base.meta["files"].items() if tuned.meta["files"].get(name) != digest}
    assert changed == {"model.safetensors", "loss.csv", "valid.csv", "loss.png"}
    assert list(tuned.meta["parents"]) == ["data", "semid", "tune-sft", "generate-negatives"]
    pairs = pl.read_csv(tuned.path / "pairs.csv")
    sides = [f"{figure} {side}" for side in ("chosen", "rejected") for figure in ("log_p", "gained")]
    assert pairs.columns == ["step", "preference", "margin", "accuracy", *sides]
    assert pairs["step"].to_list() == [1, 2, 3, 4] and pairs["margin"][0] == pytest.approx(0, abs=1e-6)
    steps = pl.read_csv(tuned.path / "valid.csv")["step"].to_list()
    assert steps == [0, 0, 2, 4]  # step 0 without price exponents, then with them
    generated, tuned_lists = lists(aligned, "generate-dpo")
    assert generated.meta["parents"]["tune-dpo"] == tuned.hash
    _, base_lists = lists(aligned, "generate")
    assert tuned_lists.select("request", "view").equals(base_lists.select("request", "view"))
    assert not tuned_lists["scores"].equals(base_lists["scores"])


def test_dpo_model_weighs_prices_in_prior_and_pointer(aligned):
    tables, codebook = (artifact.read(aligned / "r" / step, kind) for step, kind in PARENTS.items())
    plain, priced = (
        saved.load(tables, codebooks.load(codebook), model(aligned, step), training=False)
        for step in ("tune-sft", "tune-dpo")
    )
    ratio_O = priced.live.rates_O / plain.live.rates_O
    price_O = object_prices(plain.threads.logs)
    np.testing.assert_allclose(ratio_O, (price_O / np.median(price_O)) ** priced.live.money.prior)
    assert (
        plain.live.money == NO_PRICE_EXPONENTS
        and priced.live.money == (0.5, 0.1)
        and ratio_O.max() > 1.1 * ratio_O.min()
    )


def test_latest_model_is_dpo_until_another_model_is_fine_tuned(aligned, tmp_path, capsys):
    common = config.Common(work=tmp_path, run="r")
    assert latest(common) == tmp_path / "r" / "tune-sft"  # no model exists yet
    link(tmp_path, aligned)
    assert latest(common) == tmp_path / "r" / "tune-sft"
    (tmp_path / "r" / "tune-dpo").symlink_to(aligned / "r" / "tune-dpo")
    assert latest(common) == tmp_path / "r" / "tune-dpo"
    (tmp_path / "r" / "tune-sft").unlink()
    assert latest(common) == tmp_path / "r" / "tune-dpo"
    shutil.copytree(aligned / "r" / "tune-dpo", tmp_path / "r" / "tune-sft")  # a model, but not the parent of tune-dpo
    capsys.readouterr()
    assert latest(common) == tmp_path / "r" / "tune-sft"
    assert "run `leadre tune dpo`" in capsys.readouterr().err


def test_negatives_are_lists_of_training_requests_of_sampled_users(aligned):
    generated, negatives = lists(aligned, "generate-negatives")
    logs = histories.load(artifact.read(aligned / "r" / "data", artifact.TABLES))
    requests = histories.choose_requests(logs, split="train", users=8, seed=0)
    assert negatives["request"].unique().sort().to_list() == requests.tolist()
    assert "step" not in generated.meta["config"] and generated.meta["config"]["split"] == "train"


def test_second_run_skips_current_stages(aligned, capsys):
    capsys.readouterr()
    for name, flags in ALIGN:
        assert verb(name, aligned, flags) == 0
        assert "is current, nothing to do" in capsys.readouterr().err
    assert not [path.name for path in (aligned / "r").iterdir() if path.name.startswith(".")]


def test_resumed_run_writes_the_same_bytes(aligned, tmp_path, monkeypatch):
    link(tmp_path, aligned)
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "_swap", interrupt)
        assert verb("tune dpo", tmp_path, PREFER) == 130
    assert not (tmp_path / "r" / "tune-dpo").exists()
    assert (tmp_path / "r" / ".tune-dpo.checkpoint").exists()
    assert verb("tune dpo", tmp_path, PREFER) == 0
    assert model(tmp_path).meta["files"] == model(aligned).meta["files"]


def test_changed_option_trains_again(aligned, tmp_path, capsys):
    """A run without generated lists gives another model; the fine-tuned model stays."""
    link(tmp_path, aligned)
    capsys.readouterr()
    assert verb("tune dpo", tmp_path, f"{PREFER} --on-policy false --max-steps 1") == 0
    assert ", 0 on_policy" in capsys.readouterr().err
    assert list(model(tmp_path).meta["parents"]) == ["data", "semid", "tune-sft"]
    assert verb("tune dpo", tmp_path, f"{PREFER} --max-steps 1") == 0
    assert ", 0 on_policy" not in capsys.readouterr().err


def test_training_requests_keep_the_prior_of_fine_tuning(aligned):
    """Training uses affinities fitted without the user; serving uses affinities fitted with the user."""
    tables, codebook = (artifact.read(aligned / "r" / step, kind) for step, kind in PARENTS.items())
    ids = codebooks.load(codebook)
    logs = histories.load(tables)
    moments = of_requests(logs)
    fine_tuning = tune._live(tune.Config(affinity=True), logs, tables, ids)
    for step in ("tune-sft", "tune-dpo"):
        training = saved.load_prior(logs, ids, model(aligned, step), training=True, money=NO_PRICE_EXPONENTS)
        serving = saved.load_prior(logs, ids, model(aligned, step), training=False, money=NO_PRICE_EXPONENTS)
        differs = 0
        for r in range(0, len(logs.request_user_R), 7):
            moment = moments[r]
            weights = fine_tuning.weights(moment, moment.inventory.objects)
            assert np.allclose(training.weights(moment, moment.inventory.objects), weights)
            differs += not np.allclose(serving.weights(moment, moment.inventory.objects), weights)
        assert differs > 0.5 * np.mean(logs.request_split_R == 0) * r / 7


def test_pairs_start_after_the_burn_in_of_fine_tuning(aligned):
    tables, codebook = (artifact.read(aligned / "r" / step, kind) for step, kind in PARENTS.items())
    ids = codebooks.load(codebook)
    for step in ("tune-sft", "tune-dpo"):
        loaded = saved.load(tables, ids, model(aligned, step), training=True)
        logs = loaded.threads.logs
        is_relevant_R = np.diff(logs.relevant_offsets) > 0
        at_us = logs.request_at_us_R[(logs.request_split_R == 0) & is_relevant_R]
        burn_in_ends_us = at_us.min() + 0.4 * (at_us.max() - at_us.min())
        examples = run_dpo._examples(run_dpo.Config(), loaded, ids, ObjectValues(logs), [])
        assert logs.request_at_us_R[examples.requests_R].min() >= burn_in_ends_us > at_us.min()
        assert len(examples.requests_R) == (at_us >= burn_in_ends_us).sum()


@pytest.mark.parametrize(
    ("name", "flags", "training"),
    [
        ("tune dpo", "--users 8", True),
        ("generate", "--split train --users 9", True),
        ("generate", "--split valid", False),
    ],
)
def test_prior_is_loaded_for_the_split_of_the_requests(aligned, tmp_path, monkeypatch, name, flags, training):
    link(tmp_path, aligned)
    trainings = []

    def load_prior(logs, ids, model, *, training, money, now_us):
        trainings.append(training)
        raise KeyboardInterrupt

    monkeypatch.setattr(saved, "load_prior", load_prior)
    assert verb(name, tmp_path, flags) == 130
    assert trainings == [training]


def test_model_server_weighs_the_prices_that_the_user_paid(aligned):
    """Two users bought the same two objects at swapped prices; each gets a higher score for the dearer purchase."""
    tables, codebook = (artifact.read(aligned / "r" / step, kind) for step, kind in PARENTS.items())
    with ModelServer(tables, codebook, model(aligned, "tune-dpo"), beam=8) as server:
        logs = histories.load(tables)
        first, second = of_requests(logs)[0].inventory.objects[:2].tolist()
        ids = list(server.objects)
        count = len(server.live.codes_OL)
        live = np.packbits(np.isin(np.arange(count), [first, second])).tobytes()
        scores = []
        prompts = []
        for paid in ((100, 1), (1, 100)):
            nanos = dict(zip((first, second), (euros * 1_000_000_000 for euros in paid), strict=True))
            recent = [ProfileEvent(ids[o], 1_000_000 * (n + 1), "ad", nanos[o]) for n, o in enumerate((first, second))]
            request = GenerateRequest("unknown", recent, 9_000_000, live, 2, time.monotonic() + 60)
            reply = asyncio.run(server.answer(request))
            scores.append(dict(zip(reply.objects, reply.log_p, strict=True)))
            moment = server.moment(request.user_id, recent, request.now_us, np.ones(count, np.bool_))
            prompts.append(serving_prompt(server.prompter, moment).tolist())
    assert prompts[0] == prompts[1] and set(scores[0]) == {first, second}
    assert scores[0][first] > scores[1][first] + 0.1 and scores[1][second] > scores[0][second] + 0.1


def test_dpo_refuses_ids_that_the_model_was_not_tuned_on(aligned, tiny_encoder, tmp_path, capsys):
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
        ("tune dpo", "--value ecpm", "none of 60 ads has both bid_nanos above 0 and bid_type"),
        ("tune dpo", "--loss none --sft-weight 0", "nothing would be trained; set --sft-weight above 0"),
        ("tune dpo", "--live-unbought false --higher-value false", "no rule makes pairs"),
        ("tune dpo", "--on-policy true --lists generate", "another model or other logs made these lists"),
        ("tune dpo", "--on-policy true --seed 5 --users 1", "holds no list of these training requests"),
        ("tune dpo", "--live-unbought false --value-ratio 1e9", "the rules find no pair"),
        ("generate", "--step data", "--step data: must be generate or generate-NAME"),
        ("generate", "--model dpo", "there is no model artifact here; run `leadre tune dpo"),
        ("generate", "--stage dpo", "unknown subcommand of `leadre generate`"),
    ],
)
def test_invalid_flag_is_refused_with_one_line(aligned, tmp_path, capsys, name, flags, message):
    link(tmp_path, aligned, generate="generate-dpo")
    capsys.readouterr()
    assert verb(name, tmp_path, flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r" / "tune-dpo").exists()
