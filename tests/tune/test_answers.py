"""Outcomes of validation: recall and GMV in both views."""

import numpy as np
import pytest

from leadre.data.histories import TEST
from leadre.lm.decode import BeamSearcher
from leadre.tune import answers


def test_outcomes_are_recall_and_money_of_the_first_ten(small):
    """Against a count by hand of the same rankings; a conversion seen before has no part in the view `new`."""
    logs = small.logs
    backbone = small.backbone(seed=3)
    windows = small.threads().serving(logs.requests_of(TEST)[:40])
    outcomes = answers.measure(backbone, small.threads(), small.live, windows, 20)
    backbone.eval()
    searcher = answers.TunedSearcher(BeamSearcher(backbone), small.threads(), small.live)
    expected = {"all": [], "new": []}
    for ranked in sorted(searcher.answer(windows, answers.VIEWS, 20)):
        first_ten = set(ranked.objects[:10].tolist())
        seen = set(logs.object_E[logs.history(ranked.r)].tolist()) if ranked.view == "new" else set()
        bought = {}
        for ad, nanos in zip(*logs.relevant(ranked.r), strict=True):
            if (o := int(logs.ad_object_A[ad])) not in seen:
                bought[o] = bought.get(o, 0) + int(nanos)
        if bought:
            hits = first_ten & set(bought)
            caught = sum(bought[o] for o in hits)
            expected[ranked.view].append((len(hits) / min(10, len(bought)), caught, sum(bought.values())))
    for view, rows in expected.items():
        recall, caught, total = np.array(rows).T
        np.testing.assert_allclose(outcomes[view].recall_V, recall)
        assert 0 < outcomes[view].gmv == pytest.approx(caught.sum() / total.sum())
        assert outcomes[view].gmv != pytest.approx(recall.mean(), abs=1e-3)
    assert len(expected["new"]) < len(expected["all"])
    names = ["recall@10 all", "recall@10 new", "gmv@10 all", "gmv@10 new"]
    assert list(answers.figures(outcomes)) == names


def test_thread_of_many_requests_is_answered_in_parts(small, monkeypatch):
    """The parts have few requests, and their answers are those of the whole thread."""
    windows = small.threads().serving(small.logs.requests_of(TEST)[:24])
    searcher = answers.TunedSearcher(BeamSearcher(small.backbone(seed=3).eval()), small.threads(), small.live)
    assert max(len(window.requests) for window in windows) > 2
    whole = {(ranked.r, ranked.view): ranked for ranked in searcher.answer(windows, answers.VIEWS, 8)}
    monkeypatch.setattr(answers, "MAX_REQUESTS_OF_A_THREAD", 2)
    parts = [part for window in windows for part in answers._parts(searcher.threads.write(window))]
    assert max(len(part.requests) for part in parts) == 2
    split = {(ranked.r, ranked.view): ranked for ranked in searcher.answer(windows, answers.VIEWS, 8)}
    assert split.keys() == whole.keys()
    for key, ranked in split.items():
        np.testing.assert_allclose(ranked.log_p, whole[key].log_p, atol=1e-3)
        assert ranked.objects[:3].tolist() == whole[key].objects[:3].tolist()


def test_view_without_requests_or_money_has_the_figure_zero():
    none = answers.Outcomes(np.zeros(0), np.zeros(0), np.zeros(0))
    free = answers.Outcomes(np.ones(2), np.zeros(2), np.zeros(2))
    assert (none.recall, none.gmv, free.recall, free.gmv) == (0, 0, 1, 0)
    assert answers.figures({"all": free, "new": none}) == {"recall@10 all": 1, "recall@10 new": 0}
