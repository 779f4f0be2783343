"""Preferences are learnt: the margin grows, a killed run ends where an undisturbed one does, the guard guards."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from leadre.tune import losses, plots, sft
from leadre.tune.preferences import dpo, pairs

RULES = pairs.PairRules(
    live_unbought=True,
    higher_value=True,
    on_policy=False,
    negatives=2,
    value_ratio=1.1,
    margin=0.0,
    value_margin=0.1,
    similarity=True,
)
PLAIN = dpo.PreferenceObjective(loss="dpo", beta=0.5, stop_shared=True, sft_weight=0.1, money=0.0, guard=0.1)


def schedule(**changes):
    settings = {
        "epochs": 2,
        "max_steps": 6,
        "batch_tokens": 500,
        "learning_rate": 1e-3,
        "codes_learning_rate": 3e-3,
        "weight_decay": 0.0,
        "seed": 0,
        "validate_every": 2,
        "checkpoint_s": -1.0,  # after every step
    }
    return sft.TrainingSchedule(**settings | changes)


class Killed(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def contests(small):
    logs = small.logs
    requests = logs.requests_of(0)[::16]
    found = pairs.mine_pairs(logs, small.live, small.codebook.embeddings_OD[small.live.rows_O], requests, RULES, 0, {})
    return dpo.PreferenceExamples(small.threads(), small.live, small.layout, found)


def learn(small, contests, folder, *, plan=None, objective=PLAIN, recall=(), kill_at=0, identity="a", shots=None):
    """(model, history); with ``kill_at`` the run dies in its validation of that number.

    ``recall`` is what the validations find; ``shots`` gets the weights that each of them saw.
    """
    backbone, shots = small.backbone(seed=3), [] if shots is None else shots
    backbone.train()
    first = len(shots)

    def validate():
        shots.append(weights(backbone))
        if kill_at and len(shots) - first == kill_at:
            raise Killed
        return {"all": np.full(9, recall[len(shots) - first - 1] if recall else 0.5)}

    def before():
        return {"all": np.full(9, 0.5)}

    return backbone, dpo.train(backbone, contests, plan or schedule(), objective, folder, identity, validate, before)


def weights(backbone):
    return {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


def everything(contests):
    return contests.epoch(0, 500)


def margins(backbone, before, contests):
    """What each pair has gained on ``before``."""
    now = dpo.reference(backbone, contests, everything(contests))
    return ((now[0] - before[0]) - (now[1] - before[1])).sum(1)


def test_every_pair_is_in_a_batch_at_its_own_rows(small, contests):
    seen = []
    for windows in everything(contests):
        duels = contests.duels(windows)
        codes = duels.batch.targets_NL.numpy()
        for objects_P, rows in (
            (contests.pairs.chosen_P, duels.chosen_P),
            (contests.pairs.rejected_P, duels.rejected_P),
        ):
            expected = small.live.codes_OL[objects_P[duels.pair_P.numpy()]]
            assert np.array_equal(codes[rows.numpy()], expected)
        seen += duels.pair_P.tolist()
    assert sorted(seen) == list(range(len(contests.pairs))) and len(seen) > 50
    assert len(set(contests.pairs.rule_P.tolist())) == 2


def test_a_pair_is_scored_as_its_answers_are_for_fine_tuning(small, contests):
    """The chosen are answers of their request, so SFT's batches score them too."""
    backbone, examples = small.backbone(seed=3), small.examples(new_weight=0.0)
    r = int(contests.requests_R[0])
    window = next(window for window in contests.windows(0) if r in window.requests)
    with torch.no_grad():
        duels, batch = contests.duels([window]), examples.batch([window])
        chosen = dpo.log_p_of_pairs(backbone, duels)[0].sum(1)
        known = losses.log_likelihood(sft.level_log_p(backbone, batch), batch.targets_NL)
    places = {}
    for request in window.requests.tolist():
        for o in np.unique(small.logs.ad_object_A[small.logs.relevant(request)[0]]).tolist():
            places[request, o] = len(places)
    mine = [places[int(contests.pairs.request_P[p]), int(contests.pairs.chosen_P[p])] for p in duels.pair_P.tolist()]
    torch.testing.assert_close(chosen, known[mine], rtol=0, atol=2e-2)  # bfloat16 in other batches


def test_before_the_first_step_nothing_is_gained(small, contests):
    backbone = small.backbone(seed=3)
    windows = everything(contests)[0]
    before = dpo.reference(backbone, contests, [windows])
    loss, figures = dpo.step_loss(
        backbone, contests.duels(windows), contests.pairs, before, replace(PLAIN, sft_weight=0)
    )
    assert figures["margin"] == 0 and figures["accuracy"] == 0
    margin = contests.pairs.margin_P[contests.duels(windows).pair_P.numpy()]
    assert margin.max() > 0 and loss.item() > np.log(2)
    assert torch.isnan(before).any()  # pairs of other batches were not computed


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_the_margin_grows_on_the_pairs_that_are_trained(small, contests, tmp_path, monkeypatch, loss):
    monkeypatch.setattr(sft, "WARMUP_STEPS", 5)
    before = dpo.reference(small.backbone(seed=3), contests, everything(contests))
    plan = schedule(epochs=4, max_steps=0, validate_every=1000, checkpoint_s=1e9)
    backbone, history = learn(small, contests, tmp_path, plan=plan, objective=replace(PLAIN, loss=loss))
    gained = margins(backbone, before, contests)
    assert float(gained.mean()) > 0.5
    assert float((gained > 0).float().mean()) > 0.75
    figures = [row for _, row in history.pairs]
    assert len(figures) == len(history.loss) == history.step
    assert figures[0]["gained chosen"] == figures[0]["gained rejected"] == 0
    last = figures[-1]
    if loss == "dpo":
        assert last["margin"] == pytest.approx(PLAIN.beta * (last["gained chosen"] - last["gained rejected"]), abs=1e-4)
    else:
        assert last["margin"] == pytest.approx(PLAIN.beta * (last["log_p chosen"] - last["log_p rejected"]), abs=1e-4)
    of_epoch = np.array([row["margin"] for row in figures]).reshape(4, -1).mean(1)  # the same batches in each
    assert of_epoch[-1] > of_epoch[0] + 0.5


def test_the_sft_term_holds_the_chosen_up(small, contests, tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "WARMUP_STEPS", 5)
    plan = schedule(epochs=3, max_steps=0, validate_every=1000, checkpoint_s=1e9)
    found = {}
    for weight in (0.0, 5.0):
        objective = replace(PLAIN, sft_weight=weight)
        backbone, _ = learn(small, contests, tmp_path / str(weight), plan=plan, objective=objective)
        found[weight] = float(dpo.reference(backbone, contests, everything(contests))[0].sum(1).mean())
    assert found[5.0] > found[0.0] + 0.2


def test_the_sft_term_may_count_money(small, contests):
    """A conversion of twice the typical money counts twice: the mean leans to what is worth more."""
    backbone, windows = small.backbone(seed=3), everything(contests)[0]
    duels, before = contests.duels(windows), dpo.reference(backbone, contests, everything(contests))
    p = duels.pair_P.numpy()
    chosen, weights_P, worth_P = before[0].sum(1)[p], contests.pairs.weight_P[p], contests.pairs.worth_P[p]
    assert worth_P.max() > 1.5 * worth_P.min()
    found = {}
    for money in (0.0, 1.0):
        objective = replace(PLAIN, sft_weight=1.0, money=money)
        loss, figures = dpo.step_loss(backbone, duels, contests.pairs, before, objective)
        found[money] = loss.item() - figures["preference"]
        expected = -np.average(chosen.numpy(), weights=weights_P * worth_P**money)
        assert found[money] == pytest.approx(expected, rel=1e-3)
    assert abs(found[0.0] - found[1.0]) > 1e-3


def test_gradients_at_shared_codes_can_be_left_in(small, contests):
    """They cancel where they are exact: what stopping them changes is below any gradient that teaches."""
    duels = contests.duels(everything(contests)[0])
    grads = {}
    for stop in (True, False):
        backbone = small.backbone(seed=3)
        before = dpo.reference(backbone, contests, [everything(contests)[0]])
        objective = replace(PLAIN, sft_weight=0.0, stop_shared=stop)
        dpo.step_loss(backbone, duels, contests.pairs, before, objective)[0].backward()
        grads[stop] = backbone.codes_SD.grad
    *_, shared = dpo.log_p_of_pairs(small.backbone(seed=3), duels)
    assert shared.any() and not torch.equal(grads[True], grads[False])
    torch.testing.assert_close(grads[True], grads[False], rtol=0, atol=0.05 * float(grads[False].abs().max()))


def test_a_killed_run_ends_where_an_undisturbed_one_does(small, contests, tmp_path, capsys):
    expected, whole = learn(small, contests, tmp_path / "whole")
    with pytest.raises(Killed):
        learn(small, contests, tmp_path / "killed", kill_at=2)  # in step 4
    shots = []
    backbone, history = learn(small, contests, tmp_path / "killed", shots=shots)
    assert "takes the weights of step 3" in capsys.readouterr().err
    assert same(weights(backbone), weights(expected))
    assert history.pairs == whole.pairs and history.loss == whole.loss and history.valid == whole.valid
    assert (history.step, len(shots)) == (6, 2)
    other, _ = learn(small, contests, tmp_path / "killed", identity="another", shots=shots)
    assert len(shots) == 2 + 3 and same(weights(other), weights(expected))


@pytest.mark.parametrize(("share", "validations", "kept"), [(0.1, 2, 0), (0.3, 3, 2)])
def test_the_guard_ends_a_run_whose_recall_falls(small, contests, tmp_path, capsys, share, validations, kept):
    """Recall falls from .5 by a fifth in step 4: too much for one guard, nothing to the other."""
    shots, recall = [], (0.46, 0.4, 0.6)
    objective = replace(PLAIN, guard=share)
    backbone, history = learn(small, contests, tmp_path, objective=objective, recall=recall, shots=shots)
    assert [row["all"] for _, row in history.valid] == pytest.approx([0.5, *recall[:validations]])
    assert history.step == 2 * validations == history.pairs[-1][0]
    assert ("too low" in capsys.readouterr().err) == (validations < 3)
    assert [same(weights(backbone), shot) for shot in shots] == [n == kept for n in range(validations)]


def test_a_guard_that_trips_at_once_gives_back_the_reference(small, contests, tmp_path):
    backbone, history = learn(small, contests, tmp_path, recall=(0.1,))
    assert history.step == 2
    assert same(weights(backbone), weights(small.backbone(seed=3)))


def test_one_view_that_falls_is_enough():
    before, now = ({"all": np.full(9, one), "new": np.full(9, other)} for one, other in ((0.5, 0.1), (0.6, 0.08)))
    assert dpo._compare(now, before, 0.1)[1] and not dpo._compare(now, before, 0.3)[1]


def test_a_fall_that_so_few_requests_cannot_tell_from_chance_does_not_count():
    """Two hits lost and one won in 100 requests that had 20 is a fall of 5 % that may be chance; in 1,600 it is one."""
    before, now = np.zeros(100), np.zeros(100)
    before[:20], now[2:21] = 1, 1
    told, has_fallen = dpo._compare({"new": now}, {"new": before}, 0.02)
    assert told == "new 0.1900 (was 0.2000, standard error of the fall 0.0173)" and not has_fallen
    many = {"new": np.tile(now, 16)}, {"new": np.tile(before, 16)}
    assert dpo._compare(*many, 0.02)[1] and not dpo._compare(*many, 0.06)[1]  # 2.3 standard errors


def test_what_prices_alone_do_is_told_before_the_first_step(small, contests, tmp_path, capsys):
    objective = replace(PLAIN, money=0.5)
    _, history = learn(small, contests, tmp_path, objective=objective, recall=(0.4, 0.5, 0.5, 0.5))
    assert [(step, row["all"]) for step, row in history.valid][:3] == [(0, 0.5), (0, pytest.approx(0.4)), (2, 0.5)]
    assert "prices alone: all 0.4000 (was 0.5000" in (said := capsys.readouterr().err)
    assert "lower --money or --money-prior" in said and "too low" not in said


def test_a_run_killed_after_a_pass_still_falls_back_to_it(small, contests, tmp_path):
    """What passed is on disk, not in the process: here recall falls after the restart."""
    shots = []
    with pytest.raises(Killed):
        learn(small, contests, tmp_path, kill_at=2, shots=shots)
    backbone, history = learn(small, contests, tmp_path, recall=(0.1,))
    assert [row["all"] for _, row in history.valid] == pytest.approx([0.5, 0.5, 0.1])
    assert same(weights(backbone), shots[0])


def test_the_curves_are_drawn(small, contests, tmp_path):
    _, history = learn(small, contests, tmp_path / "run", plan=schedule(max_steps=2))
    plots.preferences(history, 0.02, tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
