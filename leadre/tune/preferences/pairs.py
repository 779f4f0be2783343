"""Preference pairs by business value: two objects that are live in a request, of which one should be generated.

The user acted on the chosen object of a pair; three rules select the rejected one (`RULES`). `values.py` defines the
value of an object in a request: its money, or its eCPM where bids are known.

Letters: P pairs, O objects, D width of an embedding, R requests, N objects acted on in a request, M other live objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import progress
from leadre.data.histories import TRAIN, Logs
from leadre.data.moment import Moment, Moments
from leadre.lm.prior import InventoryPrior
from leadre.tune.preferences.options import PairRules
from leadre.tune.preferences.values import ObjectValues

RULES = ("live_unbought", "higher_value", "on_policy")
MIN_WEIGHT = 1e-3  # a pair of near-identical objects has almost no weight and is dropped

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """P pairs, by request ascending: object indices, reward margin to exceed, weight, and index into `RULES`.

    ``value_P`` is the value of the chosen object as a multiple of a typical conversion's; 1 if unknown.
    """

    request_P: Ints
    chosen_P: Ints
    rejected_P: Ints
    margin_P: NDArray[np.float32]
    weight_P: NDArray[np.float32]
    value_P: NDArray[np.float32]
    rule_P: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.request_P)


def mine_pairs(
    moments: Moments,
    values: ObjectValues,
    live: InventoryPrior,
    embeddings_OD: NDArray[np.float32],
    requests_R: Ints,
    rules: PairRules,
    seed: int,
    ranked_by_request: Mapping[int, Ints],
) -> Pairs:
    """The pairs of ``requests_R`` (ascending). ``moments`` are those of all requests of the log.

    ``embeddings_OD`` has a row per object of the log; ``ranked_by_request`` comes from `ranked_objects`. The total
    weight of the pairs of one rule and request is the root of their number, as for the targets of a large basket.
    """
    unit_OD = embeddings_OD / np.maximum(np.linalg.norm(embeddings_OD, axis=1, keepdims=True), 1e-9)
    typical = values.typical
    parts = []
    for r in progress.bar(requests_R.tolist(), len(requests_R), "tune-dpo: pairs"):
        pairs_by_rule = _request_pairs(moments, values, live, r, rules, seed, ranked_by_request.get(r))
        for rule, chosen, rejected, chosen_nanos, rejected_nanos in pairs_by_rule:
            weight = np.full(len(chosen), max(len(chosen), 1) ** -0.5)
            if rules.similarity and rule != "higher_value":  # two conversions differ in value, however similar they are
                weight *= 1 - np.clip((unit_OD[chosen] * unit_OD[rejected]).sum(1), 0, 1)
            margin = rules.margin + rules.value_margin * np.maximum(_log_ratio(chosen_nanos, rejected_nanos), 0)
            value = np.exp(_log_ratio(chosen_nanos, typical))
            request = np.full(len(chosen), r)
            parts.append((request, chosen, rejected, margin, weight, value, np.full(len(chosen), RULES.index(rule))))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.zeros(0)] * len(fields(Pairs))
    kept = columns[4] >= MIN_WEIGHT
    types = (np.int64, np.int64, np.int64, np.float32, np.float32, np.float32, np.int8)
    return Pairs(*(column[kept].astype(kind) for column, kind in zip(columns, types, strict=True)))


def ranked_objects(lists: pl.DataFrame, logs: Logs) -> dict[int, Ints]:
    """Training request -> distinct objects of its generated list, best first; ``lists`` as `generate` writes them."""
    frame = lists.filter(pl.col("view") == "all").select("request", "ads")
    ranked_by_request = {}
    for r, ads in frame.iter_rows():
        if logs.request_split_R[r] == TRAIN:
            objects = logs.ad_object_A[np.array(ads, np.int64)].astype(np.int64)
            ranked_by_request[r] = objects[np.sort(np.unique(objects, return_index=True)[1])]
    return ranked_by_request


def _request_pairs(
    moments: Moments,
    values: ObjectValues,
    live: InventoryPrior,
    r: int,
    rules: PairRules,
    seed: int,
    ranked: Ints | None,
) -> Iterator[tuple[str, Ints, Ints, Floats, Floats]]:
    """(rule, chosen, rejected, value of the chosen, value of the rejected) for each rule that is on; in billionths."""
    objects, nanos_N = values.acted_on(r)
    if not len(objects):
        return
    if rules.live_unbought:
        row_P, rejected = _draw(live, moments[r], objects, rules.negatives, np.random.default_rng((seed, r)))
        yield "live_unbought", objects[row_P], rejected, nanos_N[row_P], values.not_acted_on(r, rejected)
    if rules.higher_value:
        is_higher_NN = (nanos_N[:, None] >= rules.value_ratio * nanos_N) & (nanos_N > 0)
        row_P, lower_P = np.nonzero(is_higher_NN)
        yield "higher_value", objects[row_P], objects[lower_P], nanos_N[row_P], nanos_N[lower_P]
    if rules.on_policy and ranked is not None:
        row_P, rejected = _ranked_above(ranked, objects, rules.negatives)
        yield "on_policy", objects[row_P], rejected, nanos_N[row_P], values.not_acted_on(r, rejected)


def _draw(
    live: InventoryPrior, moment: Moment, objects: Ints, count: int, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """(row of ``objects``, object not acted on): ``count`` distinct draws for each row, or all that are live."""
    others = np.setdiff1d(moment.inventory.objects, objects)
    weights_M = live.weights(moment, others)
    # the largest of log-weights plus Gumbel noise: a draw without replacement in proportion to the weights
    keys_NM = rng.gumbel(size=(len(objects), len(others))) + (0 if weights_M is None else np.log(weights_M))
    drawn_NK = np.argsort(-keys_NM, axis=1)[:, :count]
    return np.repeat(np.arange(len(objects)), drawn_NK.shape[1]), others[drawn_NK.ravel()]


def _ranked_above(ranked: Ints, objects: Ints, count: int) -> tuple[Ints, Ints]:
    """(row of ``objects``, object not acted on with a better rank in ``ranked``): the first ``count`` for each row.

    An object that is not in ``ranked`` ranks below all that are.
    """
    is_other = ~np.isin(ranked, objects)
    rank_of = {int(o): rank for rank, o in enumerate(ranked)}
    ranks = [rank_of.get(int(o), len(ranked)) for o in objects]
    rejected = [ranked[:rank][is_other[:rank]][:count] for rank in ranks]
    return np.repeat(np.arange(len(objects)), [len(above) for above in rejected]), np.concatenate(rejected)


def _log_ratio(numerator_nanos: Floats, denominator_nanos: Floats | float) -> Floats:
    """Logarithm of the quotient; 0 if either value is 0, which means unknown."""
    is_known = (numerator_nanos > 0) & (np.asarray(denominator_nanos) > 0)
    numerator = np.where(is_known, numerator_nanos, 1.0)
    denominator = np.where(is_known, denominator_nanos, 1.0)
    return np.asarray(np.log(numerator / denominator), np.float64)
