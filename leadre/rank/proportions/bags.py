"""Rows in bags: of each bag the number of actions is known, as an aggregated report of conversions has it.

`hide` is the one function that reads the labels of rows, and it keeps their sums. Trainings get blocks: whole bags,
whose rows are grouped by request again, so that the user of a request is computed once in a block.

Letters: N rows in the order of the examples, B bags, C candidates of an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leadre.data.histories import Logs
from leadre.rank.inputs import MONDAY_DAYS, RequestInputs
from leadre.rank.rows import Example
from leadre.units import US_PER_DAY

I64 = NDArray[np.int64]
Floats = NDArray[np.float64]

BLOCK_ROWS = 128  # of small bags that make a block


@dataclass(frozen=True, kw_only=True)
class BagRows:
    """Rows in bags: ``examples`` without labels, the bag of each row, and by bag its actions and its weight.

    ``weight_B``: factor of the loss of a bag and of its rows, above 1 where bags like it were left out.
    """

    examples: Sequence[Example]
    bag_N: I64
    sum_B: I64
    weight_B: Floats

    @property
    def size_B(self) -> I64:
        """Rows of each bag."""
        return np.bincount(self.bag_N, minlength=len(self.sum_B))

    @property
    def rate(self) -> float:
        """Share of the rows with an action."""
        return float((self.weight_B * self.sum_B).sum() / (self.weight_B * self.size_B).sum())


def hide(examples: Sequence[Example], bag_N: I64, *, empty: float = 1.0, seed: int = 0) -> BagRows:
    """Rows with the labels of each bag summed, and no label else. The first label counts.

    ``empty``: share of the bags without an action that are kept; their weight is 1 / ``empty``. Bags are drawn by
    their sum, so the draw reads no label of a row either.
    """
    label_N = np.concatenate([row.label_CH[:, 0] for row in examples])
    sum_B = np.bincount(bag_N, weights=label_N).astype(np.int64)
    is_kept_B = (sum_B > 0) | (np.random.default_rng(seed).random(len(sum_B)) < empty)
    is_kept_N = is_kept_B[bag_N]
    row_M = np.flatnonzero(is_kept_N)
    zeros_N = np.zeros(len(label_N))
    return BagRows(
        examples=_parts(examples, row_M, [0, len(row_M)], zeros_N, zeros_N, bag_N)[0],
        bag_N=(np.cumsum(is_kept_B) - 1)[bag_N[is_kept_N]],
        sum_B=sum_B[is_kept_B],
        weight_B=np.where(sum_B > 0, 1.0, 1 / empty)[is_kept_B],
    )


def random_bags(rows: int, size: int, seed: int) -> I64:
    """The bag of each row, drawn by the seed; bags have ``size`` rows, the last one perhaps fewer."""
    bag_N = np.empty(rows, np.int64)
    bag_N[np.random.default_rng(seed).permutation(rows)] = np.arange(rows) // size
    return bag_N


def report_bags(logs: Logs, examples: Sequence[Example]) -> I64:
    """The bag of each row by placement, week from Monday on, and object, in this order."""
    request_E = np.array([row.request for row in examples])
    example_N = np.repeat(np.arange(len(examples)), [len(row.ads) for row in examples])
    object_N = logs.ad_object_A[np.concatenate([row.ads for row in examples])]
    keys_N3 = np.concatenate([_placement_week(logs, request_E)[example_N], object_N[:, None]], axis=1)
    bag_N: I64 = np.unique(keys_N3, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return bag_N


def drawn_reports(logs: Logs, requests: I64, most: int, seed: int) -> I64:
    """Requests of placements and weeks drawn by the seed, ascending: about ``most``, all for 0; none is in part."""
    if not 0 < most < len(requests):
        return requests
    group_R = np.unique(_placement_week(logs, requests), axis=0, return_inverse=True)[1].reshape(-1)
    order_G = np.random.default_rng(seed).permutation(group_R.max() + 1)
    size_G = np.bincount(group_R)[order_G]
    chosen_G = order_G[: 1 + int(np.searchsorted(np.cumsum(size_G), most))]
    return requests[np.isin(group_R, chosen_G)]


def _placement_week(logs: Logs, requests: I64) -> I64:
    """Placement and week of requests, [R, 2]."""
    week_R = (logs.request_at_us_R[requests] // US_PER_DAY - MONDAY_DAYS) // 7
    return np.stack([logs.request_placement_R[requests], week_R], axis=1)


def blocks(rows: BagRows, target_N: Floats | None = None, first_bag: int = 0) -> list[list[Example]]:
    """Whole bags as lists of examples; bags count from ``first_bag`` on. Without ``target_N`` rows have weight 0."""
    size_B = rows.size_B
    block_B = np.unique((np.cumsum(size_B) - size_B) // BLOCK_ROWS, return_inverse=True)[1]
    order_N = np.argsort(block_B[rows.bag_N], kind="stable")
    starts = np.searchsorted(block_B[rows.bag_N[order_N]], np.arange(block_B[-1] + 2)).tolist()
    weight_N = rows.weight_B[rows.bag_N] * (target_N is not None)
    target_N = np.zeros(len(order_N)) if target_N is None else target_N
    return _parts(rows.examples, order_N, starts, target_N, weight_N, first_bag + rows.bag_N)


def _parts(
    examples: Sequence[Example], row_M: I64, starts: Sequence[int], target_N: Floats, weight_N: Floats, bag_N: I64
) -> list[list[Example]]:
    """Examples with the rows ``row_M``, in lists that begin at ``starts``, each ascending; target, weight, bag by row.

    The rows of one example stay together within a list. Arrays are gathered once, and examples have slices of them.
    """
    sizes = [len(row.ads) for row in examples]
    example_M = np.repeat(np.arange(len(examples)), sizes)[row_M]
    ads_M = np.concatenate([row.ads for row in examples])[row_M]
    inputs = [row.inputs for row in examples]
    number_MF = np.concatenate([part.number_CF for part in inputs])[row_M]
    field_MK = np.concatenate([part.field_CK for part in inputs])[row_M]
    content_M = np.concatenate([part.content_C for part in inputs])[row_M]
    is_new_M = np.concatenate([part.is_new_C for part in inputs])[row_M]
    target_M1, weight_M1 = (values_N[row_M, None].astype(np.float32) for values_N in (target_N, weight_N))
    bag_M = bag_N[row_M]
    no_label_M1 = np.zeros((len(row_M), 1), np.bool_)
    bounds = np.union1d(np.flatnonzero(np.diff(example_M, prepend=-1)), starts).tolist()
    result: list[list[Example]] = [[] for _ in starts[1:]]
    list_of = (np.searchsorted(starts, bounds[:-1], side="right") - 1).tolist()
    for first, end, number in zip(bounds[:-1], bounds[1:], list_of, strict=True):
        rows = slice(first, end)
        whole = examples[example_M[first]]
        result[number].append(
            Example(
                request=whole.request,
                ads=ads_M[rows],
                label_CH=no_label_M1[rows],
                inputs=RequestInputs(
                    number_CF=number_MF[rows],
                    field_CK=field_MK[rows],
                    content_C=content_M[rows],
                    user_P=whole.inputs.user_P,
                    sequences=whole.inputs.sequences,
                    is_new_C=is_new_M[rows],
                ),
                weight_CH=weight_M1[rows],
                target_CH=target_M1[rows],
                bag_C=bag_M[rows],
            )
        )
    return result
