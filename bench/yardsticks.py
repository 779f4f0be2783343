"""Claim: the journey task is the published one, because its simple yardsticks come out within 2 %.

    python bench/yardsticks.py

Fitted on weeks 1-40 only, read on all visits of weeks 47-53, ranked under the live-inventory mask. R@10 is hits /
min(10, relevant) averaged over visits, GMV@10 the money of the hits over all money. View ``all``: every conversion;
view ``new``: the line's first appearance in the household's log, with the lines bought before the visit left out of
the list.

Their definitions, recovered by reproduction: ``popularity`` counts promoted transaction rows (products, not lines: two
cheeses of one line in one basket are two); ``buyers`` counts distinct households over all purchases; ``svd`` is a
rank-64 SVD of log1p(row counts), household x line; ``item-kNN`` is the cosine of the lines' sets of households, each
line's own entry removed, summed over log1p(row counts); ``own frequency`` is the household's row counts, ties by
buyers.
``as of the visit`` reads the household's baskets strictly before it, one count for each basket and line.

Ends with one line of JSON; exits 1 where a figure is off by more than 2 % (money in the view ``new``: reported only).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from leadre.data import histories
from leadre.data.histories import TEST, VALID, Logs, first_seen
from leadre.data.sources import journey

F64 = npt.NDArray[np.float64]
Score = Callable[[int, npt.NDArray[np.int32]], F64]  # request, live ads -> a score for each

K, DECAY, RANK, TOLERANCE = 10, 0.985, 64, 0.02
PUBLISHED: dict[tuple[str, str], tuple[float, ...]] = {
    ("all", "popularity"): (0.193, 0.172, 0.160),
    ("new", "popularity"): (0.095,),
    ("all", "buyers"): (0.200,),
    ("new", "buyers"): (0.120, 0.072, 0.086),
    ("all", "item-kNN"): (0.195, 0.165, 0.143),
    ("new", "item-kNN"): (0.122, 0.075, 0.088),
    ("all", "svd"): (0.314, 0.256, 0.253),
    ("new", "svd"): (0.117, 0.068, 0.088),
    ("all", "own frequency"): (0.352, 0.287, 0.307),
    ("all", "own, as of the visit"): (0.381,),
    ("all", "own, decayed"): (0.391,),
}


def row_counts(logs: Logs) -> tuple[F64, F64]:
    """(households x lines, lines): transaction rows of weeks 1-40, all of them; and the promoted ones per line."""
    counts_UA = np.zeros((len(logs.users), len(logs.ads)))
    promoted_A = np.zeros(len(logs.ads))
    with duckdb.connect() as db:
        journey.prepare(db, journey.folder_of_package())
        rows = db.sql(
            f"""select household_id, line, count(*), count(*) filter (live.line is not null)
            from transactions t join product_line using (product_id)
            left join live using (market, week, line) where week <= {journey.TRAIN_WEEKS[1]} group by 1, 2"""
        ).fetchall()
    user_index = {name: u for u, name in enumerate(logs.users["user_id"])}
    for household, line, count, promoted in rows:  # ads are sorted by ID, which is the line number
        counts_UA[user_index[f"household-{household}"], line] = count
        promoted_A[line] += promoted
    return counts_UA, promoted_A


def cosine_neighbours(counts_UA: F64) -> F64:
    """Scores [U, A]: log counts times the cosine of the lines' household sets, no line its own neighbour."""
    bought_UA = sp.csr_matrix((counts_UA > 0).astype(np.float64))
    norm_A = np.sqrt(np.asarray(bought_UA.sum(axis=0)).ravel()).clip(1e-9)
    scaled_UA = bought_UA @ sp.diags(1 / norm_A)
    cosine_AA = (scaled_UA.T @ scaled_UA).toarray()
    np.fill_diagonal(cosine_AA, 0)
    scores_UA: F64 = sp.csr_matrix(np.log1p(counts_UA)) @ cosine_AA
    return scores_UA


def truncated_svd(counts_UA: F64, seed: int = 0) -> F64:
    """Scores [U, A]: the rank-64 reconstruction of log1p(counts)."""
    left, values, right = svds(sp.csr_matrix(np.log1p(counts_UA)), k=RANK, random_state=seed)
    scores_UA: F64 = (left * values) @ right
    return scores_UA


def as_of_visit(logs: Logs, decay: float, buyers_A: F64) -> Score:
    """The household's baskets before the visit, each older one worth ``decay`` times the next."""

    def score(r: int, live: npt.NDArray[np.int32]) -> F64:
        past = logs.history(r)
        at_us = logs.at_us_E[past]
        basket = np.cumsum(np.concatenate([[0], np.diff(at_us) != 0])) if len(at_us) else at_us
        weights = decay ** (basket[-1] - basket if len(basket) else basket)
        return np.bincount(logs.object_E[past], weights, len(logs.ads))[live] + 1e-9 * buyers_A[live]

    return score


def read_test(logs: Logs, score: Score, view: str, key_A: F64) -> dict[str, float]:
    """Means over the test visits; ties are broken by the fixed random ``key_A``."""
    discounts = 1 / np.log2(np.arange(2, K + 2))
    recalls: list[float] = []
    ndcgs: list[float] = []
    hit_value = all_value = 0
    for r in logs.requests_of(TEST).tolist():
        relevant, value_nanos = logs.relevant(r)
        live = logs.inventory(r)
        if view == "new":
            new = first_seen(logs, r)
            if not new.any():
                continue
            relevant = relevant[new]
            value_nanos = value_nanos[new]
            live = live[~np.isin(logs.ad_object_A[live], logs.object_E[logs.history(r)])]
        top = live[np.lexsort((key_A[live], -score(r, live)))[:K]]
        hits = np.isin(top, relevant)
        best = min(K, len(relevant))
        recalls.append(hits.sum() / best)
        ndcgs.append((discounts[: len(top)] * hits).sum() / discounts[:best].sum())
        hit_value += int(value_nanos[np.isin(relevant, top)].sum())
        all_value += int(value_nanos.sum())
    means = {"recall@10": np.mean(recalls), "ndcg@10": np.mean(ndcgs), "gmv@10": hit_value / all_value}
    return {"visits": len(recalls)} | {name: round(float(mean), 4) for name, mean in means.items()}


def scorers(logs: Logs) -> dict[str, Score]:
    """Name -> score; fitted on weeks 1-40."""
    counts_UA, promoted_A = row_counts(logs)
    buyers_A = (counts_UA > 0).sum(axis=0).astype(np.float64)
    owned_UA = counts_UA + 1e-9 * buyers_A
    user_R = logs.request_user_R
    knn_UA = cosine_neighbours(counts_UA)
    svd_UA = truncated_svd(counts_UA)
    return {
        "popularity": lambda r, live: promoted_A[live],
        "buyers": lambda r, live: buyers_A[live],
        "item-kNN": lambda r, live: knn_UA[user_R[r], live],
        "svd": lambda r, live: svd_UA[user_R[r], live],
        "own frequency": lambda r, live: owned_UA[user_R[r], live],
        "own, as of the visit": as_of_visit(logs, 1.0, 0 * buyers_A),
        "own, decayed": as_of_visit(logs, DECAY, 0 * buyers_A),
    }


def main() -> None:
    logs = histories.of_tables(journey.read(), "conversion")
    assert logs.request_at_us_R[logs.requests_of(VALID)].min() > 0
    key_A = np.random.default_rng(0).random(len(logs.ads))
    names = ("recall@10", "ndcg@10", "gmv@10")
    result: dict[str, Any] = {"bench": "yardsticks", "views": {"all": {}, "new": {}}}
    worst = 0.0
    sys.stdout.write(f"{'view':5}{'yardstick':22}{'visits':>7}" + "".join(f"{n:>11}{'off':>8}" for n in names) + "\n")
    scores = scorers(logs)
    for view in ("all", "new"):
        for name, score in scores.items():
            if (view, name) not in PUBLISHED:
                continue
            got = read_test(logs, score, view, key_A)
            line = f"{view:5}{name:22}{got['visits']:7d}"
            for metric, published in zip(names, PUBLISHED[view, name], strict=False):
                off = got[metric] / published - 1
                line += f"{got[metric]:11.4f}{off:+8.1%}"
                if (view, metric) != ("new", "gmv@10"):
                    worst = max(worst, abs(off))
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            result["views"][view][name] = got
    result |= {"worst_off": round(worst, 4), "tolerance": TOLERANCE, "holds": worst <= TOLERANCE}
    sys.stdout.write(json.dumps(result) + "\n")
    sys.exit(0 if worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
