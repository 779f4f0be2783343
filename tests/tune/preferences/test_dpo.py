"""Preference optimisation: the margin grows, a killed run resumes exactly, the guard ends a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from leadre.lm.prior import PriceExponents
from leadre.tune import answers, losses, optimizer, plots, sft
from leadre.tune.preferences import dpo, pairs
from leadre.tune.preferences.values import ObjectValues

from ..schedules import schedule as short_schedule

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
    return short_schedule(**{"weight_decay": 0.0} | changes)


class Killed(Exception):
    """Raised in place of a signal that ends the process."""


@pytest.fixture(scope="module")
def examples(small):
    logs = small.logs
    requests = logs.requests_of(0)[::16]
    embeddings_OD = small.codebook.embeddings_OD[small.live.rows_O]
    mined = pairs.mine_pairs(small.moments, ObjectValues(logs), small.live, embeddings_OD, requests, RULES, 0, {})
    return dpo.PreferenceExamples(small.threads(), small.live, small.layout, mined)


def outcomes(recall, gmv=0.0, requests=9):
    """Outcomes of one view in which every request has this recall and this share of its money."""
    ones = np.ones(requests)
    return answers.Outcomes(recall_V=recall * ones, caught_nanos_V=gmv * ones, total_nanos_V=ones)


def train(small, examples, folder, *, settings=None, objective=PLAIN, seen=(), kill_at=0, resume_key="a", shots=None):
    """(backbone, history); with ``kill_at`` the run ends in its validation of that number.

    ``seen``: the outcomes by view that the validations return. ``shots`` receives the weights at each validation.
    """
    backbone = small.backbone(seed=3)
    shots = [] if shots is None else shots
    backbone.train()
    first = len(shots)

    def validate():
        shots.append(weights(backbone))
        if kill_at and len(shots) - first == kill_at:
            raise Killed
        return seen[len(shots) - first - 1] if seen else {"all": outcomes(0.5)}

    def validate_reference():
        return {"all": outcomes(0.5)}

    settings = settings or schedule()
    history = dpo.train(backbone, examples, settings, objective, folder, resume_key, validate, validate_reference)
    return backbone, history


def weights(backbone):
    return {name: parameter.detach().clone() for name, parameter in backbone.named_parameters()}


def same(first, other):
    return all(torch.equal(first[name], tensor) for name, tensor in other.items())


def all_batches(examples):
    return examples.epoch(0, 500)


def margins(backbone, before, examples):
    """The gain of each pair on ``before``, in nats."""
    now = dpo.reference_log_p(backbone, examples, all_batches(examples))
    return ((now[0] - before[0]) - (now[1] - before[1])).sum(1)


def test_every_pair_is_in_a_batch_with_the_codes_of_its_objects(small, examples):
    seen = []
    for windows in all_batches(examples):
        pair_batch = examples.pair_batch(windows)
        codes = pair_batch.batch.targets_NL.numpy()
        for objects_P, rows in (
            (examples.pairs.chosen_P, pair_batch.chosen_P),
            (examples.pairs.rejected_P, pair_batch.rejected_P),
        ):
            expected = small.live.codes_OL[objects_P[pair_batch.pair_P.numpy()]]
            assert np.array_equal(codes[rows.numpy()], expected)
        seen += pair_batch.pair_P.tolist()
    assert sorted(seen) == list(range(len(examples.pairs))) and len(seen) > 50
    assert len(set(examples.pairs.rule_P.tolist())) == 2


def test_chosen_objects_have_the_likelihood_of_fine_tuning(small, examples):
    """The chosen are targets of their request, so SFT's batches score them too."""
    backbone = small.backbone(seed=3)
    sft_examples = small.examples(new_weight=0.0)
    r = int(examples.requests_R[0])
    window = next(window for window in examples.windows(0) if r in window.requests)
    with torch.no_grad():
        pair_batch = examples.pair_batch([window])
        batch = sft_examples.batch([window])
        chosen = dpo.log_p_of_pairs(backbone, pair_batch)[0].sum(1)
        known = losses.log_likelihood(sft.level_log_p(backbone, batch), batch.targets_NL)
    targets = {}
    for request in window.requests.tolist():
        for o in np.unique(small.logs.ad_object_A[small.logs.relevant(request)[0]]).tolist():
            targets[request, o] = len(targets)
    targets_P = [
        targets[int(examples.pairs.request_P[p]), int(examples.pairs.chosen_P[p])] for p in pair_batch.pair_P.tolist()
    ]
    torch.testing.assert_close(chosen, known[targets_P], rtol=0, atol=2e-2)  # bfloat16 in other batches


def test_margin_is_zero_before_the_first_step(small, examples):
    backbone = small.backbone(seed=3)
    windows = all_batches(examples)[0]
    before = dpo.reference_log_p(backbone, examples, [windows])
    loss, figures = dpo.step_loss(
        backbone, examples.pair_batch(windows), examples.pairs, before, replace(PLAIN, sft_weight=0)
    )
    assert figures["margin"] == 0 and figures["accuracy"] == 0
    margin = examples.pairs.margin_P[examples.pair_batch(windows).pair_P.numpy()]
    assert margin.max() > 0 and loss.item() > np.log(2)
    assert torch.isnan(before).any()  # pairs of other batches were not computed


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_margin_grows_on_the_trained_pairs(small, examples, tmp_path, monkeypatch, loss):
    monkeypatch.setattr(optimizer, "WARMUP_STEPS", 5)
    before = dpo.reference_log_p(small.backbone(seed=3), examples, all_batches(examples))
    settings = schedule(epochs=4, max_steps=0, validate_every=1000, checkpoint_s=1e9)
    backbone, history = train(small, examples, tmp_path, settings=settings, objective=replace(PLAIN, loss=loss))
    gained = margins(backbone, before, examples)
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


def test_sft_term_keeps_the_likelihood_of_the_chosen(small, examples, tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer, "WARMUP_STEPS", 5)
    settings = schedule(epochs=3, max_steps=0, validate_every=1000, checkpoint_s=1e9)
    likelihood = {}
    for weight in (0.0, 5.0):
        objective = replace(PLAIN, sft_weight=weight)
        backbone, _ = train(small, examples, tmp_path / str(weight), settings=settings, objective=objective)
        likelihood[weight] = float(dpo.reference_log_p(backbone, examples, all_batches(examples))[0].sum(1).mean())
    assert likelihood[5.0] > likelihood[0.0] + 0.2


def test_sft_term_weights_conversions_by_value(small, examples):
    """With exponent 1 a conversion of twice the typical value has twice the weight."""
    backbone = small.backbone(seed=3)
    pair_batch = examples.pair_batch(all_batches(examples)[0])
    before = dpo.reference_log_p(backbone, examples, all_batches(examples))
    p = pair_batch.pair_P.numpy()
    chosen = before[0].sum(1)[p]
    weights_P = examples.pairs.weight_P[p]
    value_P = examples.pairs.value_P[p]
    assert value_P.max() > 1.5 * value_P.min()
    sft_term = {}
    for money in (0.0, 1.0):
        objective = replace(PLAIN, sft_weight=1.0, money=money)
        loss, figures = dpo.step_loss(backbone, pair_batch, examples.pairs, before, objective)
        sft_term[money] = loss.item() - figures["preference"]
        expected = -np.average(chosen.numpy(), weights=weights_P * value_P**money)
        assert sft_term[money] == pytest.approx(expected, rel=1e-3)
    assert abs(sft_term[0.0] - sft_term[1.0]) > 1e-3


def test_loss_none_trains_on_the_sft_term_alone(small, examples):
    """Its gradient does not depend on the rejected objects; the figures of the preference are reported all the same."""
    windows = all_batches(examples)[0]
    before = dpo.reference_log_p(small.backbone(seed=3), examples, [windows])
    grads = {}
    for loss, sft_weight in (("none", 1.0), ("dpo", 1.0), ("dpo", 0.0)):
        backbone = small.backbone(seed=3)
        objective = replace(PLAIN, loss=loss, sft_weight=sft_weight)
        total, row = dpo.step_loss(backbone, examples.pair_batch(windows), examples.pairs, before, objective)
        total.backward()
        grads[loss, sft_weight] = backbone.bias_S.grad
        assert row["preference"] > 0 and (total.item() > row["preference"]) == (sft_weight > 0)
    likelihood = grads["dpo", 1.0] - grads["dpo", 0.0]
    assert float(grads["dpo", 0.0].abs().max()) > 1e-3
    torch.testing.assert_close(grads["none", 1.0], likelihood, rtol=0, atol=1e-5)


def test_gradients_at_shared_codes_cancel(small, examples):
    """Stopping them changes the gradient by rounding errors alone."""
    pair_batch = examples.pair_batch(all_batches(examples)[0])
    grads = {}
    for stop in (True, False):
        backbone = small.backbone(seed=3)
        before = dpo.reference_log_p(backbone, examples, [all_batches(examples)[0]])
        objective = replace(PLAIN, sft_weight=0.0, stop_shared=stop)
        dpo.step_loss(backbone, pair_batch, examples.pairs, before, objective)[0].backward()
        grads[stop] = backbone.codes_SD.grad
    *_, shared = dpo.log_p_of_pairs(small.backbone(seed=3), pair_batch)
    assert shared.any() and not torch.equal(grads[True], grads[False])
    torch.testing.assert_close(grads[True], grads[False], rtol=0, atol=0.05 * float(grads[False].abs().max()))


def test_killed_run_ends_with_the_weights_of_an_undisturbed_one(small, examples, tmp_path, capsys):
    expected, whole = train(small, examples, tmp_path / "whole")
    with pytest.raises(Killed):
        train(small, examples, tmp_path / "killed", kill_at=2)  # in step 4
    shots = []
    backbone, history = train(small, examples, tmp_path / "killed", shots=shots)
    assert "takes the weights of step 3" in capsys.readouterr().err
    assert same(weights(backbone), weights(expected))
    assert history.pairs == whole.pairs and history.loss == whole.loss and history.valid == whole.valid
    assert (history.step, len(shots)) == (6, 2)
    other, _ = train(small, examples, tmp_path / "killed", resume_key="another", shots=shots)
    assert len(shots) == 2 + 3 and same(weights(other), weights(expected))


def all_views(recall, new=0.1, gmv=0.0):
    return {"all": outcomes(recall, gmv), "new": outcomes(new)}


@pytest.mark.parametrize(("share", "validations", "kept"), [(0.1, 2, 0), (0.3, 3, 2)])
def test_guard_ends_a_run_whose_recall_falls(small, examples, tmp_path, capsys, share, validations, kept):
    """Recall falls from .5 by a fifth in step 4: more than the first guard allows, less than the second."""
    shots = []
    seen = [{"all": outcomes(recall)} for recall in (0.46, 0.4, 0.6)]
    objective = replace(PLAIN, guard=share)
    backbone, history = train(small, examples, tmp_path, objective=objective, seen=seen, shots=shots)
    expected = [0.5, 0.46, 0.4, 0.6][: validations + 1]
    assert [row["recall@10 all"] for _, row in history.valid] == pytest.approx(expected)
    assert history.step == 2 * validations == history.pairs[-1][0]
    assert ("training ends" in capsys.readouterr().err) == (validations < 3)
    assert [same(weights(backbone), shot) for shot in shots] == [n == kept for n in range(validations)]


def test_run_keeps_the_weights_of_the_highest_gmv(small, examples, tmp_path, capsys):
    """GMV of 0.3, 0.5 and 0.4: the second validation's weights, although the last ones pass the guard too."""
    shots = []
    seen = [{"all": outcomes(0.5, gmv)} for gmv in (0.3, 0.5, 0.4)]
    backbone, history = train(small, examples, tmp_path, seen=seen, shots=shots)
    assert history.step == 6 and history.kept == (4, pytest.approx(0.5))
    assert [same(weights(backbone), shot) for shot in shots] == [False, True, False]
    assert [row.get("gmv@10 all") for _, row in history.valid] == pytest.approx([0, 0.3, 0.5, 0.4])
    assert "keeps the weights of step 4" in capsys.readouterr().err


def test_gmv_buys_no_weights_that_fail_the_guard(small, examples, tmp_path):
    """A fall of `new` alone, of two hits in nine requests that chance explains, is not kept however much it earns."""
    shots = []
    few = np.array([1.0, 1, 1, 0, 0, 0, 0, 0, 0])
    reference = {"all": outcomes(0.5), "new": replace(outcomes(0), recall_V=few)}
    fallen = {"all": outcomes(0.6, 0.9), "new": replace(outcomes(0), recall_V=np.roll(few, 2) * (np.arange(9) != 4))}
    comparison = dpo.compare_outcomes(fallen, reference, 0.1)
    assert not comparison.passes and not comparison.is_proven
    passing = {"all": outcomes(0.5, 0.2), "new": reference["new"]}
    seen = [passing, fallen, fallen]
    backbone = small.backbone(seed=3)
    backbone.train()
    taken = iter(seen)

    def validate():
        shots.append(weights(backbone))
        return next(taken)

    history = dpo.train(backbone, examples, schedule(), PLAIN, tmp_path, "a", validate, lambda: reference)
    assert history.step == 6 and history.kept == (2, pytest.approx(0.2))
    assert same(weights(backbone), shots[0])


def test_guard_at_the_first_validation_returns_the_reference(small, examples, tmp_path):
    backbone, history = train(small, examples, tmp_path, seen=({"all": outcomes(0.1)},))
    assert history.step == 2
    assert same(weights(backbone), weights(small.backbone(seed=3)))


def test_training_that_loses_gmv_returns_the_reference(small, examples, tmp_path):
    backbone = small.backbone(seed=3)
    backbone.train()
    start = {"all": outcomes(0.5, 0.4)}
    lower = {"all": outcomes(0.5, 0.3)}
    history = dpo.train(backbone, examples, schedule(), PLAIN, tmp_path, "a", lambda: lower, lambda: start)
    assert history.step == 6 and history.kept == (0, pytest.approx(0.4))
    assert same(weights(backbone), weights(small.backbone(seed=3)))


def test_without_money_the_last_weights_that_pass_are_kept(small, examples, tmp_path):
    free = {"all": replace(outcomes(0.5), total_nanos_V=np.zeros(9))}
    shots = []
    backbone, history = train(small, examples, tmp_path, seen=(free,) * 3, shots=shots)
    assert history.kept == (6, 0.0) and "gmv@10 all" not in history.valid[-1][1]
    assert [same(weights(backbone), shot) for shot in shots] == [False, False, True]


def test_fall_in_a_single_view_fails_the_guard():
    before = all_views(0.5, new=0.1)
    now = all_views(0.6, new=0.08)
    assert not dpo.compare_outcomes(now, before, 0.1).passes and dpo.compare_outcomes(now, before, 0.3).passes


def test_fall_within_two_standard_errors_fails_the_guard_but_is_not_proven():
    """Two of 20 hits lost and one gained in 100 requests may be chance; the same fall in 1,600 requests is not."""
    before = np.zeros(100)
    now = np.zeros(100)
    before[:20] = 1
    now[2:21] = 1

    def views(recall_V):
        return {"new": replace(outcomes(0.0, requests=len(recall_V)), recall_V=recall_V)}

    comparison = dpo.compare_outcomes(views(now), views(before), 0.02)
    assert comparison.text == "new 0.1900 (was 0.2000, standard error of the fall 0.0173)"
    assert not comparison.passes and not comparison.is_proven
    many = views(np.tile(now, 16)), views(np.tile(before, 16))
    assert dpo.compare_outcomes(*many, 0.02).is_proven  # 2.3 standard errors
    assert dpo.compare_outcomes(*many, 0.06).passes and not dpo.compare_outcomes(*many, 0.06).is_proven


def test_recall_with_prices_alone_is_reported_before_the_first_step(small, examples, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(examples.live, "money", PriceExponents(0.0, 0.1))  # in the prior alone
    seen = [{"all": outcomes(recall, gmv)} for recall, gmv in ((0.4, 0.9), (0.5, 0.2), (0.5, 0.1), (0.5, 0.1))]
    _, history = train(small, examples, tmp_path, seen=seen)
    recalls = [(step, row["recall@10 all"]) for step, row in history.valid]
    assert recalls[:3] == [(0, 0.5), (0, pytest.approx(0.4)), (2, 0.5)]
    assert "prices alone: all 0.4000 (was 0.5000" in (output := capsys.readouterr().err)
    assert "lower --money or --money-prior" in output and "training ends" not in output
    assert history.kept == (2, pytest.approx(0.2))  # prices alone earn more and fail the guard


def test_resumed_run_falls_back_to_weights_that_passed_before_the_kill(small, examples, tmp_path):
    """Recall falls after the restart; the passed weights come from disk."""
    shots = []
    with pytest.raises(Killed):
        train(small, examples, tmp_path, kill_at=2, shots=shots)
    backbone, history = train(small, examples, tmp_path, seen=({"all": outcomes(0.1)},))
    assert [row["recall@10 all"] for _, row in history.valid] == pytest.approx([0.5, 0.5, 0.1])
    assert same(weights(backbone), shots[0])


def test_plot_is_a_png(small, examples, tmp_path):
    _, history = train(small, examples, tmp_path / "run", settings=schedule(max_steps=2))
    plots.preferences(history, 0.02, tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
