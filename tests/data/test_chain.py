"""The law of clicks and conversions: labels have their log-odds, and selection does what it is named for."""

from __future__ import annotations

import numpy as np
import pytest

from leadre.data.worlds import chain


def test_clicks_and_conversions_are_drawn_with_their_log_odds() -> None:
    rows = chain.draw(0.5, seed=1).rows(20_000, 8, seed=2)
    for label_RC, logit_RC in ((rows.click_RC, rows.click_logit_RC), (rows.converts_RC, rows.converts_logit_RC)):
        p_N = 1 / (1 + np.exp(-logit_RC.ravel()))
        for part in np.array_split(np.argsort(p_N), 10):
            assert abs(label_RC.ravel()[part].mean() - p_N[part].mean()) < 4 * 0.5 / np.sqrt(len(part))


def test_log_odds_are_sums_of_the_effects_of_all_fields() -> None:
    law = chain.draw(-0.3, seed=1, fields=5, values=7)
    rows = law.rows(40, 3, seed=2)
    assert rows.user_RP.shape == (40, 3) and rows.candidate_RCK.shape == (40, 3, 2)
    for r, c in ((0, 0), (7, 2), (39, 1)):
        values = np.array(
            [
                rows.user_RP[r, 0],
                rows.candidate_RCK[r, c, 0],
                rows.user_RP[r, 1],
                rows.candidate_RCK[r, c, 1],
                rows.user_RP[r, 2],
            ]
        )
        effects = law.converts_FV[np.arange(5), values - 1]
        np.testing.assert_allclose(rows.converts_logit_RC[r, c], chain.CONVERSION_LOGIT + effects.sum())


@pytest.mark.parametrize("selection", [-0.7, 0.0, 0.7])
def test_clicked_rows_convert_better_or_worse_with_the_selection(selection: float) -> None:
    rows = chain.draw(selection, seed=3).rows(20_000, 8, seed=2)
    lift = rows.converts_RC[rows.click_RC].mean() / rows.converts_RC.mean()
    assert lift > 1.3 if selection > 0 else lift < 0.8 if selection < 0 else 0.9 < lift < 1.1


def test_same_seed_gives_the_same_law_and_rows() -> None:
    first, second, other = (chain.draw(0.2, seed).rows(20, 4, seed) for seed in (5, 5, 6))
    assert (first.converts_RC == second.converts_RC).all() and (first.candidate_RCK == second.candidate_RCK).all()
    assert (first.candidate_RCK != other.candidate_RCK).any()
