"""The law of products: its labels have its log-odds, and each part of these is there."""

from __future__ import annotations

import numpy as np

from leadre.data.worlds import interaction


def test_labels_are_drawn_with_their_log_odds() -> None:
    rows = interaction.draw(3, seed=1).rows(4000, 8, seed=2)
    p = 1 / (1 + np.exp(-rows.logit_RC))
    for level in np.unique(rows.logit_RC):
        of_level = rows.logit_RC == level
        assert abs(rows.label_RC[of_level].mean() - p[of_level][0]) < 4 / np.sqrt(of_level.sum())


def test_log_odds_are_a_product_of_the_first_fields_and_a_fifth_of_their_mean() -> None:
    law = interaction.draw(4, seed=1, fields=7)
    rows = law.rows(50, 3, seed=2)
    user = rows.user_RP - 1
    candidate = rows.candidate_RCK - 1
    assert user.shape == (50, 4) and candidate.shape == (50, 3, 3)
    for r, c in ((0, 0), (7, 2), (49, 1)):
        values = (user[r, 0], candidate[r, c, 0], user[r, 1], candidate[r, c, 1])
        signs = [int(law.sign_FV[field, value]) for field, value in enumerate(values)]
        expected = interaction.LOGIT * (0.8 * np.prod(signs) + 0.2 * np.mean(signs))
        np.testing.assert_allclose(rows.logit_RC[r, c], expected)


def test_same_seed_gives_the_same_law_and_rows() -> None:
    first, second, other = (interaction.draw(2, seed).rows(20, 4, seed) for seed in (5, 5, 6))
    assert (first.label_RC == second.label_RC).all() and (first.candidate_RCK == second.candidate_RCK).all()
    assert (first.candidate_RCK != other.candidate_RCK).any()
