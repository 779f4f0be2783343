"""The counts network as a prior: who has seen what, and a search that ranks by it alone."""

import dataclasses

import numpy as np
import pytest
import torch

from leadre.data.counts import NAMES
from leadre.data.histories import TEST, TRAIN
from leadre.lm import backbone as backbones
from leadre.lm import counts_fit, counts_networks, sasrec_fit
from leadre.lm.beam import BeamPolicy, BeamRequest
from leadre.lm.decode import BeamSearcher
from leadre.lm.prior import InventoryPrior, PriceExponents


@pytest.fixture(scope="module")
def fit(small):
    return counts_fit.fit(small.logs, 0, 1)


def moments_of(small, fit, split):
    """Moments of a split that the fit may score."""
    logs = small.logs
    rows = logs.requests_of(split)
    return [small.moments[r] for r in rows[logs.request_at_us_R[rows] >= fit.from_us].tolist()]


def test_training_moments_use_a_network_without_their_user_and_earlier_tables(small, fit):
    live = InventoryPrior(small.logs, small.codebook, learnt=fit)
    differ = 0
    for moment in moments_of(small, fit, TRAIN):
        other = fit.held_out[moment.user % counts_networks.FOLDS]
        assert other.tables.before_us <= moment.at_us
        scores = other.scores(moment).astype(float)
        weights = live.weights(moment, moment.inventory.objects)
        np.testing.assert_allclose(weights, np.exp(scores - scores.max()))
        differ += not np.allclose(scores, fit.full.scores(moment), atol=1e-3)
    assert differ > 10
    for moment in moments_of(small, fit, TEST):
        scores = fit.full.scores(moment).astype(float)
        np.testing.assert_allclose(live.weights(moment, moment.inventory.objects), np.exp(scores - scores.max()))


def test_both_views_of_a_moment_share_one_pass_of_the_network(small, fit, monkeypatch):
    passes = []
    weights = InventoryPrior.weights
    monkeypatch.setattr(InventoryPrior, "weights", lambda *args: passes.append(args[1]) or weights(*args))
    live = InventoryPrior(small.logs, small.codebook, learnt=fit)
    first, second = moments_of(small, fit, TEST)[:2]
    for number, moment in enumerate((first, second, first), start=1):
        tries = [live.all(moment)[0], live.new(moment)[0]]
        assert len(passes) == number and passes[-1] is moment
        fresh = InventoryPrior(small.logs, small.codebook, learnt=fit)
        for trie, expected in zip(tries, (fresh.all(moment)[0], fresh.new(moment)[0]), strict=True):
            np.testing.assert_allclose(trie.mass, expected.mass)
        passes[number:] = []


def test_a_network_has_not_seen_the_users_of_its_fold(small, fit):
    """Other answers of one fold change the networks of all users and of the other fold, and leave its own alone."""
    logs = small.logs
    first = logs.request_user_R[np.repeat(np.arange(len(logs.request_user_R)), np.diff(logs.relevant_offsets))]
    ads = logs.relevant_ads.copy()
    own = np.flatnonzero(first % counts_networks.FOLDS == 0)
    ads[own] = np.roll(ads[own], 1)
    changed = counts_fit.fit(dataclasses.replace(logs, relevant_ads=ads), 0, 1)
    same = [
        all(np.array_equal(a, b) for (a, _), (b, _) in zip(before.layers, after.layers, strict=True))
        for before, after in zip((*fit.held_out, fit.full), (*changed.held_out, changed.full), strict=True)
    ]
    assert same == [True, False, False]


def test_training_moments_before_the_tables_are_refused(small, fit):
    live = InventoryPrior(small.logs, small.codebook, learnt=fit)
    moment = next(m for m in small.moments if m.is_training and m.at_us < fit.from_us)
    with pytest.raises(AssertionError, match="own time"):
        live.all(moment)


def test_prices_weigh_the_learnt_prior(small, fit):
    plain = InventoryPrior(small.logs, small.codebook, learnt=fit)
    priced = InventoryPrior(small.logs, small.codebook, learnt=fit, money=PriceExponents(0.0, 0.5))
    moment = moments_of(small, fit, TEST)[0]
    objects = moment.inventory.objects
    ratio = priced.weights(moment, objects) / plain.weights(moment, objects)
    np.testing.assert_allclose(ratio, np.exp(0.5 * (priced.log_price_O[objects] - priced.typical)))


def test_saved_networks_weigh_alike(small, fit, tmp_path):
    fit.save(tmp_path)
    again = counts_networks.load(tmp_path)
    assert again.from_us == fit.from_us
    for moment in (*moments_of(small, fit, TRAIN)[:5], *moments_of(small, fit, TEST)[:5]):
        assert np.array_equal(again.network(moment).scores(moment), fit.network(moment).scores(moment))


def test_scores_of_some_objects_are_those_among_all(small, fit):
    moment = moments_of(small, fit, TEST)[0]
    objects = moment.inventory.objects
    np.testing.assert_allclose(
        fit.full.scores(moment, objects[::3]), fit.full.scores(moment)[::3], rtol=1e-4, atol=1e-4
    )


def test_a_model_without_information_ranks_by_the_network(small, fit):
    """Codes of zeros and no pointer: log-probabilities are the network's, in both views."""
    live = InventoryPrior(small.logs, small.codebook, learnt=fit)
    backbone = backbones.create(small.folder, small.layout, live.codes_OL, layers=0, pointer=False)
    with torch.no_grad():
        backbone.codes_SD.zero_()
        backbone.bias_S.zero_()
    searcher = BeamSearcher(backbone)
    ids = small.prompter().plain("a user")
    for moment in moments_of(small, fit, TEST)[:8]:
        for trie, objects in (live.all(moment), live.new(moment)):
            if not len(objects):
                continue
            request = BeamRequest(len(ids) - 1, trie, objects)
            ((result,),) = searcher([(ids, [request])], BeamPolicy(64))
            scores = fit.full.scores(moment)[np.isin(moment.inventory.objects, objects)].astype(float)
            log_p = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
            assert len(result.rows) == len(objects)
            np.testing.assert_allclose(result.log_p, log_p[result.rows], atol=0.02)  # bfloat16


def test_shortened_histories_are_the_last_visits(small):
    moments = small.moments
    visits_M = moments.visits_before() - moments.first_visits()
    rows = np.flatnonzero(visits_M > 10)[::2]
    short = counts_fit.shortened(moments, rows, np.random.default_rng(0))
    kept_N = (short.visits_before() - short.first_visits())[rows]
    assert 0 < (kept_N == 0).sum() < len(rows) / 2
    assert kept_N.max() > 5 and np.median(kept_N) < np.median(visits_M[rows]) / 2
    for r in rows[:20].tolist():
        shown = short[r].history.object_E.tolist()
        assert shown == moments[r].history.object_E[len(moments[r].history) - len(shown) :].tolist()
    others = np.setdiff1d(np.arange(len(moments)), rows)
    assert np.array_equal(short.begin_M[others], moments.begin_M[others])


def test_some_training_visits_count_again_with_a_short_history(small, monkeypatch):
    seen = []

    def spy(visits, *rest):
        return examples((seen.append(moment) or (moment, acted) for moment, acted in visits), *rest)

    examples = counts_fit.counts.examples
    monkeypatch.setattr(counts_fit.counts, "examples", spy)
    counts_fit.fit(small.logs, 0, 1)
    visits = [(moment.user, moment.at_us) for moment in seen]
    whole = {visit: len(moment.history) for visit, moment in zip(visits, seen, strict=True) if visits.count(visit) == 1}
    again = [len(moment.history) for moment in seen[len(set(visits)) :]]
    assert len(whole) > 0.3 * len(set(visits)) and len(again) > 0.3 * len(set(visits))
    assert np.median(again) < np.median(list(whole.values())) / 2


@pytest.fixture(scope="module")
def both(small):
    """A fit that reads SASRec as well; one pass over the log is enough for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sasrec_fit, "SHORT", dataclasses.replace(sasrec_fit.SHORT, epochs=1))
        yield counts_fit.fit(small.logs, 0, 1, sequence=sasrec_fit.fit(small.logs, 0, 1))


def test_log_probabilities_of_a_sequence_model_sum_to_one_over_the_inventory(small, both):
    for moment in moments_of(small, both, TEST)[:5]:
        objects = moment.inventory.objects
        log_p = both.full.sequence.log_probabilities(moment, objects)
        assert np.exp(log_p).sum() == pytest.approx(1, rel=1e-4)
        some = both.full.sequence.log_probabilities(moment, objects[1::3])
        np.testing.assert_allclose(some, log_p[1::3], atol=1e-5)


def test_networks_of_training_read_a_sequence_model_of_earlier_events(small, both):
    """Other events after the tables end leave the sequence model of training alone, and change that of serving."""
    logs = small.logs
    objects = logs.object_E.copy()
    late = logs.at_us_E >= both.from_us
    objects[late] = np.roll(objects[late], 1)
    changed = counts_fit.ending(dataclasses.replace(logs, object_E=objects), both.from_us)
    again = sasrec_fit.fit(changed, 0, 1)
    moment = moments_of(small, both, TRAIN)[0]
    live = moment.inventory.objects
    early = both.held_out[0].sequence
    assert (early.shape, early.repeats) == (both.full.sequence.shape, both.full.sequence.repeats)
    assert np.array_equal(early.log_probabilities(moment, live), again.log_probabilities(moment, live))
    assert not np.allclose(early.log_probabilities(moment, live), both.full.sequence.log_probabilities(moment, live))


def test_a_sequence_model_is_an_input_of_the_network_and_survives_the_disk(small, both, tmp_path):
    moment = moments_of(small, both, TEST)[0]
    assert both.full.centre_F.shape == (len(NAMES) + 1,)
    both.save(tmp_path)
    again = counts_networks.load(tmp_path)
    assert np.array_equal(again.full.scores(moment), both.full.scores(moment))
    assert {part.mixture for part in (again.full, *again.held_out)} == {both.full.mixture} != {(1.0, 0.0)}
    with torch.no_grad():
        again.full.sequence.network.item.weight.zero_()
    assert not np.allclose(again.full.scores(moment), both.full.scores(moment), atol=1e-2)


def test_a_log_that_ends_earlier_has_no_later_labels(small):
    logs = small.logs
    acted_E = np.flatnonzero((logs.request_E >= 0) & (logs.ad_E >= 0))
    late = acted_E[len(acted_E) // 3]
    at_us = logs.at_us_E.copy()
    request = logs.request_E[late]
    end_us = int(logs.request_at_us_R[request]) + 1
    at_us[late] = end_us + 5  # an action after the end, on a request before it
    cut = counts_fit.ending(dataclasses.replace(logs, at_us_E=at_us), end_us)
    assert logs.ad_E[late] in logs.relevant(request)[0] and logs.ad_E[late] not in cut.relevant(request)[0]
    assert len(cut.requests_of(TRAIN)) < len(logs.requests_of(TRAIN))
    assert cut.request_at_us_R[cut.requests_of(TRAIN)].max() < end_us
    later = logs.requests_of(TEST)[-1]
    assert np.array_equal(cut.relevant(later)[0], logs.relevant(later)[0])
