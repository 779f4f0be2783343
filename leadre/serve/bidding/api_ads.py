"""Ads made at the management API as candidates, beside those of lists and model, which know the ads of the last run.

A request gets at most `MAX_API_ADS` of them, each of another account, so that many ads of one account displace none of
others. They rank below all other candidates: exploration draws them with the others, and without exploration they are
bid where no imp may show another candidate.

Letters: A ads, K candidates, M eligible ads made at the API, by account, I imps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from leadre.serve.bidding.context import Candidates, RequestContext
from leadre.serve.catalogue.shared_masks import Eligibility

MAX_API_ADS = 4
LOWEST_LOG_P = -1e6  # ranks below each candidate of a list or model, at any bid


def with_api_ads(
    context: RequestContext, eligibility: Eligibility, candidates: Candidates, has_others: bool
) -> Candidates:
    """The candidates, and behind them ads made at the API that an imp may show and that are not among them.

    ``has_others``: an imp may show one of ``candidates``.
    """
    columns = context.market.catalogue.columns
    eligible_IM = eligibility.at(columns.api_rows)
    if not eligible_IM or not context.permissions.contextual:
        return candidates
    is_candidate_A = np.zeros(len(context.market.catalogue.ads), np.bool_)  # `numpy.isin` takes 40 times as long
    is_candidate_A[candidates.rows_K] = True
    is_eligible = np.logical_or.reduce(eligible_IM) & ~is_candidate_A[columns.api_rows]
    rows_M = columns.api_rows[is_eligible]
    if not len(rows_M):
        return candidates
    draws = context.bidder.draws.pair(context.request_id, "made")
    rows = select_rows(rows_M, columns.api_accounts[is_eligible], *draws)
    ads = context.market.catalogue.ads
    return replace(
        candidates,
        ad_ids=(*candidates.ad_ids, *(ads[row].ad_id for row in rows.tolist())),
        rows_K=np.concatenate([candidates.rows_K, rows]),
        log_p_K=np.concatenate([candidates.log_p_K, np.full(len(rows), LOWEST_LOG_P)]),
        api_ads=len(rows),
        explores_api_ads=has_others,
    )


def select_rows(
    rows_M: np.ndarray[tuple[int], np.dtype[np.int64]],
    account_M: np.ndarray[tuple[int], np.dtype[np.int64]],
    account_draw: float,
    ad_draw: float,
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """One row of each of at most `MAX_API_ADS` accounts. Each account has the same chance, and each ad within it.

    ``account_M``: ascending. Both draws are uniform in [0, 1).
    """
    starts = np.flatnonzero(np.diff(account_M, prepend=-1))
    counts = np.diff(starts, append=len(account_M))
    accounts = (int(account_draw * len(starts)) + np.arange(min(MAX_API_ADS, len(starts)))) % len(starts)
    return rows_M[starts[accounts] + (ad_draw * counts[accounts]).astype(np.int64)]
