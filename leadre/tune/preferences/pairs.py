"""Preference pairs by business value: of two objects live in a request, which one should have been written.

What is preferred is always a conversion; three rules say over what (`RULES`). Value is GMV: the money of the object in
the request that acted on it, as the logs hold it. Where ads carry bids, an object acted on would be worth its eCPM, bid
times probability of the action that the bid pays for; that number would stand in the place of the money, in `_values`
for what was acted on and instead of the typical money for what was not.

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
from leadre.lm.prior import InventoryPrior

RULES = ("live_unbought", "higher_value", "on_policy")
MIN_WEIGHT = 1e-3  # a pair of twins teaches nothing

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PairRules:
    """Which rules make pairs, and how.

    live_unbought   over live objects that were not acted on, drawn in proportion to the prior: plausible ones
    higher_value    over another conversion of the request, worth less by a factor of ``value_ratio`` or more
    on_policy       over what the model itself ranked above it, and was not acted on
    negatives       how many of them each conversion is set against, by the first rule and by the last
    margin          the least reward margin asked of a pair
    value_margin    and how much more for every factor of e in money
    similarity      an object not acted on counts 1 - cosine of its embedding and the conversion's
    """

    live_unbought: bool
    higher_value: bool
    on_policy: bool
    negatives: int
    value_ratio: float
    margin: float
    value_margin: float
    similarity: bool


@dataclass(frozen=True)
class Pairs:
    """P pairs, by request ascending: object indices, the reward margin asked for, weight, and index into `RULES`.

    ``worth_P`` is the money of the chosen in units of a typical conversion's; 1 where it is not known.
    """

    request_P: Ints
    chosen_P: Ints
    rejected_P: Ints
    margin_P: NDArray[np.float32]
    weight_P: NDArray[np.float32]
    worth_P: NDArray[np.float32]
    rule_P: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.request_P)


def mine_pairs(
    logs: Logs,
    live: InventoryPrior,
    embeddings_OD: NDArray[np.float32],
    requests_R: Ints,
    rules: PairRules,
    seed: int,
    lists: Mapping[int, Ints],
) -> Pairs:
    """The pairs of these requests, ascending. ``embeddings_OD`` are by object of the logs, ``lists`` from `listed`.

    The pairs that a rule finds in one request share a weight that grows with the root of their number, as the answers
    of a large visit do. What was not acted on has no money of its own, so it counts as much as a typical conversion.
    """
    unit_OD = embeddings_OD / np.maximum(np.linalg.norm(embeddings_OD, axis=1, keepdims=True), 1e-9)
    typical = _typical_nanos(logs)
    parts = []
    for r in progress.bar(requests_R.tolist(), len(requests_R), "tune-dpo: pairs"):
        for rule, chosen, rejected, nanos, others in _of_request(logs, live, r, rules, seed, lists.get(r), typical):
            weight = np.full(len(chosen), max(len(chosen), 1) ** -0.5)
            if rules.similarity and rule != "higher_value":  # two conversions differ in money, however alike they are
                weight *= 1 - np.clip((unit_OD[chosen] * unit_OD[rejected]).sum(1), 0, 1)
            margin = rules.margin + rules.value_margin * np.maximum(_log_ratio(nanos, others), 0)
            worth = np.exp(_log_ratio(nanos, typical))
            whose = np.full(len(chosen), r), chosen, rejected
            parts.append((*whose, margin, weight, worth, np.full(len(chosen), RULES.index(rule))))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.zeros(0)] * len(fields(Pairs))
    kept = columns[4] >= MIN_WEIGHT
    types = (np.int64, np.int64, np.int64, np.float32, np.float32, np.float32, np.int8)
    return Pairs(*(column[kept].astype(kind) for column, kind in zip(columns, types, strict=True)))


def listed(lists: pl.DataFrame, logs: Logs) -> dict[int, Ints]:
    """The objects of generated lists, best first, by training request; ``lists`` as `generate` writes them."""
    frame = lists.filter(pl.col("view") == "all").select("request", "ads")
    found = {}
    for r, ads in frame.iter_rows():
        if logs.request_split_R[r] == TRAIN:
            objects = logs.ad_object_A[np.array(ads, np.int64)].astype(np.int64)
            found[r] = objects[np.sort(np.unique(objects, return_index=True)[1])]
    return found


def _of_request(
    logs: Logs, live: InventoryPrior, r: int, rules: PairRules, seed: int, ranked: Ints | None, typical: float
) -> Iterator[tuple[str, Ints, Ints, Floats, Floats]]:
    """(rule, chosen, rejected, what the chosen and the rejected are worth in billionths) for each rule that is on."""
    objects, nanos_N = _values(logs, r)
    if not len(objects):
        return
    if rules.live_unbought:
        row_P, rejected = _draw(live, r, objects, rules.negatives, np.random.default_rng((seed, r)))
        yield "live_unbought", objects[row_P], rejected, nanos_N[row_P], np.full(len(row_P), typical)
    if rules.higher_value:
        beats_NN = (nanos_N[:, None] >= rules.value_ratio * nanos_N) & (nanos_N > 0)
        row_P, less_P = np.nonzero(beats_NN)
        yield "higher_value", objects[row_P], objects[less_P], nanos_N[row_P], nanos_N[less_P]
    if rules.on_policy and ranked is not None:
        row_P, rejected = _ranked_above(ranked, objects, rules.negatives)
        yield "on_policy", objects[row_P], rejected, nanos_N[row_P], np.full(len(row_P), typical)


def _values(logs: Logs, r: int) -> tuple[Ints, Floats]:
    """(objects acted on in request ``r``, ascending, their money in billionths)."""
    ads, nanos = logs.relevant(r)
    objects, row_of_ad = np.unique(logs.ad_object_A[ads], return_inverse=True)
    return objects.astype(np.int64), np.bincount(row_of_ad, weights=nanos.astype(np.float64)).astype(np.float64)


def _draw(live: InventoryPrior, r: int, objects: Ints, count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """(row of ``objects``, object not acted on): ``count`` distinct ones for each, or as many as are live."""
    others = np.setdiff1d(live.objects(r), objects)
    weights_M = live.weights(r, others)
    # the largest of logarithms plus Gumbel noise are a draw without replacement in proportion to the weights
    keys_NM = rng.gumbel(size=(len(objects), len(others))) + (0 if weights_M is None else np.log(weights_M))
    drawn_NK = np.argsort(-keys_NM, axis=1)[:, :count]
    return np.repeat(np.arange(len(objects)), drawn_NK.shape[1]), others[drawn_NK.ravel()]


def _ranked_above(ranked: Ints, objects: Ints, count: int) -> tuple[Ints, Ints]:
    """(row of ``objects``, object not acted on that stands above it in ``ranked``): the first ``count`` for each.

    An object that is not listed stands below all that are.
    """
    is_wrong = ~np.isin(ranked, objects)
    place = {int(o): at for at, o in enumerate(ranked)}
    ends = [place.get(int(o), len(ranked)) for o in objects]
    first = [ranked[:end][is_wrong[:end]][:count] for end in ends]
    return np.repeat(np.arange(len(objects)), [len(wrong) for wrong in first]), np.concatenate(first)


def _log_ratio(chosen_nanos: Floats, rejected_nanos: Floats | float) -> Floats:
    """Logarithm of the quotient; zero where either is worth nothing, which says that its money is not known."""
    known = (chosen_nanos > 0) & (np.asarray(rejected_nanos) > 0)
    chosen, rejected = np.where(known, chosen_nanos, 1.0), np.where(known, rejected_nanos, 1.0)
    return np.asarray(np.log(chosen / rejected), np.float64)


def _typical_nanos(logs: Logs) -> float:
    """Median money of a training conversion, of those that brought any; 0 where none did."""
    split = np.repeat(logs.request_split_R, np.diff(logs.relevant_offsets))
    nanos = logs.relevant_value_nanos[(split == TRAIN) & (logs.relevant_value_nanos > 0)]
    return float(np.median(nanos)) if len(nanos) else 0.0
